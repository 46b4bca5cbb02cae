"""The multi-round loss: a data pair's first image is taken to the second through two noised rounds (OMR eq. 3, 4, 5, 13)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omr_ray.algorithm.gaussian import ddim_mean_and_sigma, per_row, x0_and_epsilon
from omr_ray.algorithm.multi_scale import multi_scale_square

Predict = Callable[[Tensor, Tensor, Any], Tensor]  # latents [N, C, H, W], timesteps [N], text -> model output


def noised(z0: Tensor, timesteps: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """z_tau = sqrt(a) z0 + sqrt(1 - a) noise: the N(tau) of OMR eq. 3 (DDPM, arXiv:2006.11239, eq. 4).

    z0 and noise [N, C, H, W], timesteps i64 [N], alphas_cumprod [T]; returns float32 [N, C, H, W].
    """
    a = alphas_cumprod.to(z0.device).float()[timesteps.to(z0.device)]
    return per_row(a.sqrt(), z0) * z0.float() + per_row((1 - a).sqrt(), z0) * noise.float()


def predicted_x0(model_output: Tensor, latents: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """The clean latent that the model sees in `latents` at `timesteps`, float32 [N, C, H, W]."""
    alpha_bar = alphas_cumprod.to(latents.device)[timesteps.to(latents.device)]
    return x0_and_epsilon(model_output, latents, alpha_bar, prediction_type)[0]


def denoised(predict: Predict, latents: Tensor, tau: Tensor, text: Any, steps: int, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """G_0^tau of OMR eq. 3: the clean latent of `latents` [N, C, H, W] at tau i64 [N] in `steps` even DDIM steps without noise.

    In one step, the form of eq. 5, it is `predicted_x0`. Returns float32 [N, C, H, W].
    """
    timesteps = tau
    for left in range(steps - 1, 0, -1):
        output, following = predict(latents, timesteps, text), tau * left // steps
        latents, _, _ = ddim_mean_and_sigma(output, latents, timesteps, following, alphas_cumprod, prediction_type, eta=0.0)
        timesteps = following
    return predicted_x0(predict(latents, timesteps, text), latents, timesteps, alphas_cumprod, prediction_type)


def one_step_regression(
    model_output: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    previous_timesteps: Tensor,
    target: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
    scales: Mapping[int, float],
) -> Tensor:
    """|| z_{t-1} - DM(z_t, psi(P), t, W_new) ||^2, averaged over C H W (OMR eq. 13, and the right-hand side of eq. 5),
    with scales other than {1: 1} also of means over blocks (`multi_scale_square`).

    z_{t-1} is the noiseless DDIM step from `latents` whose clean latent is `target`; DM is the same step with the
    model's clean latent. The paper calls eq. 13 L_BCE, though it is a norm; it is squared here, as in Algorithm 1, line 16.

    model_output, latents, target [N, C, H, W]; timesteps and previous_timesteps i64 [N]; returns float32 [N].
    """
    steps = (latents, timesteps, previous_timesteps, alphas_cumprod)
    wanted, _, _ = ddim_mean_and_sigma(target, *steps, prediction_type="sample", eta=0.0)
    made, _, _ = ddim_mean_and_sigma(model_output, *steps, prediction_type=prediction_type, eta=0.0)
    return multi_scale_square(wanted - made, scales)


def draw_rounds(
    rngs: Sequence[np.random.Generator], like: Tensor, tau1: tuple[float, float], tau2: tuple[float, float], steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `multi_round_loss` needs to be drawn, each row from a generator of its own: tau1 and tau2 i64 [N], even over
    these shares of the `steps` of the training schedule, and noise1 and noise2 float32, shaped and placed as `like` [N, C, H, W].
    """
    drawn = []
    for rng in rngs:
        taus = (min(steps - 1, int(rng.uniform(*span) * steps)) for span in (tau1, tau2))
        drawn.append((*taus, *rng.standard_normal((2, *like.shape[1:]), dtype=np.float32)))
    first, second, noise1, noise2 = (torch.from_numpy(np.stack(column)).to(like.device) for column in zip(*drawn, strict=True))
    return first, second, noise1, noise2


def multi_round_loss(
    predict: Predict,
    z_x: Tensor,
    z_y: Tensor,
    tau1: Tensor,
    tau2: Tensor,
    previous_tau2: Tensor,
    text_x: Any,
    text_y: Any,
    noise1: Tensor,
    noise2: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
    through_rounds: bool,
    first_steps: int,
    scales: Mapping[int, float],
) -> Tensor:
    """L_multi of OMR eq. 4, float32 [N]; with first_steps = 1 in the one-step form of eq. 5.

    z_x and z_y are the clean latents of rounds r and r + 1. z_x is noised to tau1 and denoised under text_x in
    `first_steps` steps; that is noised to tau2, z^xy of eq. 5, and one step under text_y is compared with the step that leads to z_y.
    `through_rounds` lets the gradient pass through the first round as well, the paper's "propagating the loss gradient
    back through the rounds".

    z_x, z_y, noise1, noise2 [N, C, H, W]; tau1, tau2, previous_tau2 i64 [N]; alphas_cumprod [T].
    """
    with torch.set_grad_enabled(through_rounds and torch.is_grad_enabled()):
        z_tau1 = noised(z_x, tau1, noise1, alphas_cumprod)
        first_round = denoised(predict, z_tau1, tau1, text_x, first_steps, alphas_cumprod, prediction_type)
        z_xy = noised(first_round, tau2, noise2, alphas_cumprod)
    output = predict(z_xy, tau2, text_y)
    return one_step_regression(output, z_xy, tau2, previous_tau2, z_y, alphas_cumprod, prediction_type, scales)
