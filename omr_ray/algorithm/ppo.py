"""Clipped policy gradient on stored denoising steps (OMR Algorithm 1, line 14).

PPO is arXiv:1707.06347; its use on the steps of a diffusion model follows DDPO, arXiv:2305.13301.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from omr_ray.algorithm.gaussian import SIGMA_FLOOR, per_row


class PolicyLoss(NamedTuple):
    loss: Tensor  # f32 [N], not reduced, so that a row can be left out
    ratio: Tensor  # f32 [N], without gradient; exactly 1 where sampler and learner agree
    clipped: Tensor  # bool [N], the ratio lies outside 1 +- clip_range


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float, advantage_clip: float
) -> PolicyLoss:
    """-min(A r, A clip(r, 1 - c, 1 + c)) with r = exp(log pi - log pi_old) (PPO eq. 7), for each stored step.

    log_probs, old_log_probs, advantages [N]; advantages are clipped to +- advantage_clip first. Log-probabilities are
    means over the latent's dimensions, so the ratio is that of the whole step to the power 1 / (C H W): clip_range is
    of the order 1e-4 to 1e-3.
    """
    advantages = advantages.float().clamp(-advantage_clip, advantage_clip)
    ratio = (log_probs.float() - old_log_probs.float()).exp()
    loss = -(advantages * ratio).minimum(advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    return PolicyLoss(loss=loss, ratio=ratio.detach(), clipped=(ratio.detach() - 1).abs() > clip_range)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(mean, sigma^2) || N(reference_mean, sigma^2)) = (mean - reference_mean)^2 / (2 sigma^2), averaged over C H W.

    mean and reference_mean [N, C, H, W], sigma [N] (below SIGMA_FLOOR counts as SIGMA_FLOOR); returns float32 [N].
    """
    sigma = per_row(sigma.float().clamp(min=SIGMA_FLOOR), mean)
    return 0.5 * ((mean.float() - reference_mean.float()) / sigma).square().flatten(1).mean(1)
