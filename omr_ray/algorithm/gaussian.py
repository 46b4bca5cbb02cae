"""One DDIM step as a Gaussian policy: pi(z_{t-1} | z_t, P) = N(mean, sigma^2 I) (OMR eq. 2; DDIM, arXiv:2010.02502, eq. 12, 16).

The sampler and the learner both take their numbers from here, so that an importance ratio starts at exactly 1.
All arithmetic is float32, whatever the network ran in. Rows of one batch may stand at different timesteps.
"""

from __future__ import annotations

import math

from torch import Tensor

from omr_ray.types import UserError

# A step whose previous timestep is itself (both 0) has no variance; a density needs one. Real steps stay above 0.01.
SIGMA_FLOOR = 1e-3


def x0_and_epsilon(model_output: Tensor, latents: Tensor, alpha_bar_t: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise that a model output stands for (DDIM eq. 12; v: arXiv:2202.00512, appendix D).

    epsilon       x0 = (z - sqrt(1 - a) e) / sqrt(a)
    v_prediction  x0 = sqrt(a) z - sqrt(1 - a) v,   e = sqrt(a) v + sqrt(1 - a) z
    sample        e  = (z - sqrt(a) x0) / sqrt(1 - a)

    model_output and latents [N, C, H, W], alpha_bar_t [N]; returns two float32 [N, C, H, W].
    Raises UserError for any other prediction type.
    """
    output, latents = model_output.float(), latents.float()
    signal = per_row(alpha_bar_t.float().sqrt(), latents)
    noise = per_row((1 - alpha_bar_t.float()).sqrt(), latents)
    if prediction_type == "epsilon":
        return (latents - noise * output) / signal, output
    if prediction_type == "v_prediction":
        return signal * latents - noise * output, signal * output + noise * latents
    if prediction_type == "sample":
        return output, (latents - signal * output) / noise
    raise UserError(f"a scheduler's prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}; take another model")


def ddim_mean_and_sigma(
    model_output: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    previous_timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
    eta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of z_{t-1} given z_t (DDIM eq. 12 and 16), and the clean latent they lead to.

    sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'),   mean = sqrt(a') x0 + sqrt(1 - a' - sigma^2) e
    with a = alphas_cumprod[t] and a' = alphas_cumprod[previous t].

    model_output and latents [N, C, H, W]; timesteps and previous_timesteps i64 [N], the latter clamped to >= 0 by the
    caller; alphas_cumprod [T]. Returns mean [N, C, H, W], sigma [N], x0 [N, C, H, W], all float32; differentiable in
    model_output and latents.
    """
    alphas = alphas_cumprod.to(latents.device).float()
    a, a_previous = alphas[timesteps.to(latents.device)], alphas[previous_timesteps.to(latents.device)]
    x0, epsilon = x0_and_epsilon(model_output, latents, a, prediction_type)
    sigma = eta * ((1 - a_previous) / (1 - a) * (1 - a / a_previous)).clamp(min=0).sqrt()
    direction = (1 - a_previous - sigma.square()).clamp(min=0).sqrt()
    mean = per_row(a_previous.sqrt(), x0) * x0 + per_row(direction, x0) * epsilon
    return mean, sigma, x0


def log_prob(next_latents: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(z_{t-1}; mean, sigma^2), averaged over the latent's dimensions (the convention of DDPO, arXiv:2305.13301).

    next_latents (as stored, never before rounding) and mean [N, C, H, W], sigma [N]; returns float32 [N].
    sigma below SIGMA_FLOOR counts as SIGMA_FLOOR.
    """
    sigma = sigma.float().clamp(min=SIGMA_FLOOR)
    residual = (next_latents.float() - mean.float()) / per_row(sigma, mean)
    return -0.5 * residual.square().flatten(1).mean(1) - sigma.log() - 0.5 * math.log(2 * math.pi)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """values [N] shaped to multiply like [N, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
