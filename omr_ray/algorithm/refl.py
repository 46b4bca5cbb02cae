"""Algorithm 1 of OMR to the letter: the gradient of a differentiable reward through one denoising step (ReFL, arXiv:2304.05977)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
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
    decode: latents -> images [N, 3, H, W] in [0, 1], or what else the reward looks at; reward: that -> [N]. Returns [N].
    """
    output = predict(latents, timesteps, text)  # line 7
    x0 = predicted_x0(output, latents, timesteps, alphas_cumprod, prediction_type)  # line 8
    return reward(decode(x0))  # lines 9 and 11


def distance_from_siblings(features: Tensor, siblings: Tensor) -> Tensor:
    """1 - cos(f(z_i), f(z_j)), the mean over the siblings j != i: the credit of sample i in OMR eq. 6, with gradient.

    features [N, F]; siblings [N, F], for each row the mean direction of the others (`rewards.diversity.mean_of_others`),
    which stay where they are: each moves away from the others when its own row is descended. Returns [N].
    """
    return 1 - (F.normalize(features.float(), dim=-1) * siblings).sum(-1)


def refl_loss(reward: Tensor, cap: float | None = None) -> Tensor:
    """-min(R, cap) for each row: descending it is the W <- W + grad R of OMR Algorithm 1, line 14.

    A row whose reward is above `cap` has no gradient, as with the ReLU of ReFL (arXiv:2304.05977): an image that is
    good enough is not pushed on. reward [N]; returns [N], not reduced.
    """
    return -(reward.float() if cap is None else reward.float().clamp(max=cap))
