"""L_multi of a policy on pairs of consecutive rounds (OMR eq. 4, 5, 13), with what it needs drawn row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from omr_ray.algorithm.multi_round import draw_rounds, multi_round_loss
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.text import Text


def policy_round_losses(
    policy: Policy,
    z_x: Tensor,
    z_y: Tensor,
    text_x: Text,
    text_y: Text,
    rngs: Sequence[np.random.Generator],
    *,
    tau1: tuple[float, float],
    tau2: tuple[float, float],
    through_rounds: bool,
    first_steps: int,
    scales: Mapping[int, float],
    steps: int,
) -> Tensor:
    """`multi_round_loss` of latents z_x and z_y [N C H W] of rounds r and r + 1 under their prompts, float32 [N].

    Each row is drawn from its own generator. tau1 and tau2 are shares of the training schedule; the first round takes
    `first_steps` steps, and the step that is compared is one of a sampler with `steps` steps.
    """
    length = policy.num_train_timesteps
    drawn1, drawn2, noise1, noise2 = draw_rounds(rngs, z_x, tau1, tau2, length)
    return multi_round_loss(
        policy.predict,
        z_x,
        z_y,
        drawn1,
        drawn2,
        (drawn2 - length // steps).clamp(min=0),
        text_x,
        text_y,
        noise1,
        noise2,
        policy.alphas_cumprod,
        policy.prediction_type,
        through_rounds,
        first_steps,
        scales,
    )
