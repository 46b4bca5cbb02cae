"""The supervised loss of a diffusion model on text-image pairs (DDPM, arXiv:2006.11239, eq. 14), with min-SNR weights."""

from __future__ import annotations

import torch
from torch import Tensor

from omr_ray.algorithm.gaussian import per_row
from omr_ray.types import UserError


def target_of(z0: Tensor, noise: Tensor, alpha_bar_t: Tensor, prediction_type: str) -> Tensor:
    """What the model should have said of sqrt(a) z0 + sqrt(1 - a) noise: the noise, v = sqrt(a) noise - sqrt(1 - a) z0
    (arXiv:2202.00512, appendix D), or z0.

    z0 and noise [N, C, H, W], alpha_bar_t [N]; returns float32 [N, C, H, W]. Raises UserError for any other prediction type.
    """
    if prediction_type == "epsilon":
        return noise.float()
    if prediction_type == "v_prediction":
        return per_row(alpha_bar_t.sqrt(), z0) * noise.float() - per_row((1 - alpha_bar_t).sqrt(), z0) * z0.float()
    if prediction_type == "sample":
        return z0.float()
    raise UserError(f"a scheduler's prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}; take another model")


def min_snr_weight(alpha_bar_t: Tensor, prediction_type: str, gamma: float) -> Tensor:
    """Weight of a timestep, float32 [N], with SNR = a / (1 - a) (arXiv:2303.09556, section 3.4).

    sample min(SNR, gamma);  epsilon min(SNR, gamma) / SNR;  v_prediction min(SNR, gamma) / (SNR + 1)
    """
    snr = alpha_bar_t.float() / (1 - alpha_bar_t.float())
    clipped = snr.clamp(max=gamma)
    return clipped / {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction_type]


def denoising_loss(
    model_output: Tensor,
    z0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
    min_snr_gamma: float | None,
) -> Tensor:
    """Mean square error over C H W of what the model said of the noised z0, float32 [N]; `min_snr_gamma` None weighs all alike.

    model_output, z0, noise [N, C, H, W]; timesteps i64 [N]; alphas_cumprod [T].
    """
    alpha_bar_t = alphas_cumprod.to(z0.device).float()[timesteps.to(z0.device)]
    error = (model_output.float() - target_of(z0, noise, alpha_bar_t, prediction_type)).square().flatten(1).mean(1)
    return error if min_snr_gamma is None else error * min_snr_weight(alpha_bar_t, prediction_type, min_snr_gamma)
