"""Which timesteps a sampler visits (DDIM, arXiv:2010.02502), the same ones as diffusers' DDIMScheduler."""

from __future__ import annotations

import numpy as np

from omr_ray.types import UserError


def schedule(num_train_timesteps: int, steps: int, spacing: str, steps_offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps t and the timesteps t' they lead to, both i64 [S], descending.

    leading   t = k floor(T / S) + offset
    trailing  t = round(T - k T / S) - 1
    linspace  t = round(k (T - 1) / (S - 1))
    and always t' = max(0, t - floor(T / S)). (arXiv:2305.08891, table 2, and diffusers' DDIMScheduler.) t' stops at 0
    and not at a clean latent, so that the last step keeps a positive variance.

    Raises UserError when there are more steps than training timesteps, or for another spacing.
    """
    if not 1 <= steps <= num_train_timesteps:
        raise UserError(f"sampler.steps must lie in 1..{num_train_timesteps}, the model's training timesteps, got {steps}; lower it")
    stride = num_train_timesteps // steps
    timesteps: np.ndarray
    if spacing == "leading":
        timesteps = np.arange(steps)[::-1] * stride + steps_offset
    elif spacing == "trailing":
        timesteps = np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)) - 1
    elif spacing == "linspace":
        timesteps = np.linspace(0, num_train_timesteps - 1, steps).round()[::-1]
    else:
        raise UserError(f"the scheduler's timestep_spacing must be leading, trailing or linspace, got {spacing!r}; take another scheduler")
    timesteps = timesteps.astype(np.int64)
    if timesteps[0] >= num_train_timesteps:  # "leading" with an offset, and as many steps as training timesteps
        raise UserError(
            f"sampler.steps {steps} with steps_offset {steps_offset} leaves the model's {num_train_timesteps} timesteps; lower it"
        )
    return timesteps, np.maximum(timesteps - stride, 0)


def executed_steps(strength: float, steps: int) -> int:
    """How many of `steps` a later round runs when it is noised to tau = `strength` (OMR eq. 3): at least one."""
    return max(1, round(strength * steps))
