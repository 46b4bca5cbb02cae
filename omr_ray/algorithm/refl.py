"""Algorithm 1 of OMR to the letter: the gradient of a differentiable reward through one denoising step (ReFL, arXiv:2304.05977)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from omr_ray.algorithm.multi_round import Predict, predicted_x0


def one_step_reward(
    predict: Predict,
    decode: Callable[[Tensor], Tensor],
    reward: Callable[[Tensor], Tensor],
    latents: Tensor,
    timesteps: Tensor,
    text: Any,
    alphas_cumprod: Tensor,
    prediction_type: str,
) -> Tensor:
    """The reward of the image that one step from z_t leads to, with gradient (OMR Algorithm 1, lines 7 to 11).

    Lines 4 to 6, without gradient, are the sampler's: latents [N, C, H, W] is what it stored at timesteps i64 [N].
    decode: latents -> images [N, 3, H, W] in [0, 1]; reward: images -> [N]. Returns [N].
    """
    output = predict(latents, timesteps, text)  # line 7
    x0 = predicted_x0(output, latents, timesteps, alphas_cumprod, prediction_type)  # line 8
    return reward(decode(x0))  # lines 9 and 11


def refl_loss(reward: Tensor, cap: float | None = None) -> Tensor:
    """-min(R, cap) for each row: descending it is the W <- W + grad R of OMR Algorithm 1, line 14.

    A row whose reward is above `cap` has no gradient, as with the ReLU of ReFL (arXiv:2304.05977): an image that is
    good enough is not pushed on. reward [N]; returns [N], not reduced.
    """
    return -(reward.float() if cap is None else reward.float().clamp(max=cap))
