"""What a learner descends: the loss of a few rows, with every row that is not finite left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omr_ray.algorithm.gaussian import ddim_mean_and_sigma, log_prob
from omr_ray.algorithm.ppo import clipped_policy_loss, gaussian_kl
from omr_ray.algorithm.refl import distance_from_siblings, one_step_reward, refl_loss
from omr_ray.config.run import Ppo, RunConfig
from omr_ray.diffusion.features import features
from omr_ray.diffusion.policy import Policy
from omr_ray.diffusion.rounds import policy_round_losses
from omr_ray.types import Batch, RoundPairs

Score = Callable[[Tensor, Any], Tensor]  # images [N 3 H W] in [0, 1] and prompts -> reward [N], differentiable


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of one forward on one rank. The loss is `scale` times the sum of `present` times the rows' losses."""

    present: np.ndarray  # f32 [n], 1, or 0 for a row that only fills the shape
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart(Part):
    batch: Batch  # n rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPart(Part):
    pairs: RoundPairs  # n rows
    indices: np.ndarray  # i64 [n], of the rows within the step's pairs: their noise follows from it
    step: int


def shares(rows: np.ndarray, *, rank: int, ranks: int, micro_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This rank's share of `rows` (i64 [M]), `micro_batch` at a time, and which of them count.

    Every rank gets the same number of rows, so that all make the same collective calls: the shares of later ranks are
    filled up with the first row, which then does not count (0 in the second array).
    """
    size = -(-len(rows) // ranks)
    mine = rows[rank::ranks]
    present = np.concatenate([np.ones(len(mine), np.float32), np.zeros(size - len(mine), np.float32)])
    mine = np.concatenate([mine, np.repeat(rows[:1], size - len(mine))])
    for start in range(0, size, micro_batch):
        yield mine[start : start + micro_batch], present[start : start + micro_batch]


def finite_rows(batch: Batch) -> Batch:
    """The rows in which every number is finite."""
    arrays = (batch.latents, batch.next_latents, batch.log_probs, batch.advantages, batch.siblings)
    finite = np.logical_and.reduce([np.isfinite(array.reshape(len(batch), -1)).all(1) for array in arrays])
    return batch if finite.all() else batch.take(np.flatnonzero(finite))


class Objective(nn.Module):
    """The loss of a Part. The UNet is its only submodule: that is what DeepSpeed sees, shards and hooks."""

    def __init__(self, policy: Policy, config: RunConfig, score: Score | None) -> None:
        super().__init__()
        self.network = policy.network
        self.policy, self.config, self.score = policy, config, score

    def forward(self, part: RewardPart | PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and, for each row, what the metrics are made of; "broken" rows are left out of both.

        A row is broken if its loss or the gradient of its loss is not finite. The latter is known only after the
        backward pass: "broken" is filled in then.
        """
        broken = torch.zeros(len(part.present), dtype=torch.bool, device=self.policy.device)
        if isinstance(part, RewardPart):
            losses, values = self._reward_rows(part.batch, broken)
        else:
            losses, values = self._pair_rows(part)
        broken |= ~torch.isfinite(losses.detach())
        present = torch.from_numpy(part.present).to(losses.device)
        loss = part.scale * (present * torch.where(broken, 0.0, losses)).sum()
        return loss, {**values, "present": present, "broken": broken}

    def _reward_rows(self, batch: Batch, broken: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO, ReFL or both on one forward, and the KL term, each [n]."""
        policy, algorithm, sampler = self.policy, self.config.algorithm, self.config.sampler
        device, alphas, kind = policy.device, policy.alphas_cumprod, policy.prediction_type
        text = policy.encode_text(batch.prompt_ids)
        latents, next_latents, old, advantages, t, previous = (
            torch.from_numpy(np.array(array)).to(device)
            for array in (batch.latents, batch.next_latents, batch.log_probs, batch.advantages, batch.timesteps, batch.previous_timesteps)
        )
        output = policy.predict(latents, t, text, sampler.guidance_scale)
        _leave_out_broken_gradients(output, broken)
        mean, sigma, _ = ddim_mean_and_sigma(output, latents, t, previous, alphas, kind, sampler.eta)
        if isinstance(algorithm, Ppo):
            estimate = clipped_policy_loss(
                log_prob(next_latents, mean, sigma), old, advantages, algorithm.clip_range, algorithm.advantage_clip
            )
            losses = estimate.loss
            values = {"ratio": estimate.ratio, "clipped": estimate.clipped.float()}
        else:
            losses, values = torch.zeros(len(batch), device=device), {}
        if algorithm.reward_gradient > 0:
            assert self.score is not None
            prompts, score = batch.prompts.tolist(), self.score
            reward = one_step_reward(
                lambda *_: output, policy.decode, lambda images: score(images, prompts), latents, t, text, alphas, kind
            )
            losses, values["reward"] = losses + algorithm.reward_gradient * refl_loss(reward, algorithm.reward_cap), reward.detach()
        if algorithm.diversity_gradient > 0:
            siblings = torch.from_numpy(np.array(batch.siblings)).to(device)
            distance = one_step_reward(
                lambda *_: output,
                lambda x0: features(policy, x0),
                lambda found: distance_from_siblings(found, siblings),
                latents,
                t,
                text,
                alphas,
                kind,
            )
            losses, values["diversity"] = losses + algorithm.diversity_gradient * refl_loss(distance), distance.detach()
        values["policy_loss"] = losses.detach()
        if algorithm.kl_weight > 0:
            with torch.no_grad(), policy.adapter_off():
                reference, *_ = policy.step(latents, t, previous, text, eta=sampler.eta, guidance_scale=sampler.guidance_scale)
            kl = gaussian_kl(mean, reference, sigma)
            losses, values["kl"] = losses + algorithm.kl_weight * kl, kl.detach()
        return losses, values

    def _pair_rows(self, part: PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """L_multi of OMR eq. 4, 5 on data pairs, [n], beside the reward (Algorithm 1, lines 16-17)."""
        policy, config = self.policy, self.config
        z_x, z_y = policy.encode_images(part.pairs.images_x), policy.encode_images(part.pairs.images_y)
        losses = policy_round_losses(
            policy,
            z_x,
            z_y,
            policy.encode_text(policy.tokenize(part.pairs.prompts_x)),
            policy.encode_text(policy.tokenize(part.pairs.prompts_y)),
            [np.random.default_rng([config.seed, part.step, int(row)]) for row in part.indices],
            **config.noise_loss.model_dump(include={"tau1", "tau2", "through_rounds", "first_steps", "scales"}),
            steps=config.sampler.steps,
        )
        return losses, {"noise_loss": losses.detach()}


def _leave_out_broken_gradients(output: Tensor, broken: Tensor) -> None:
    """Let no row whose gradient is not finite reach the network, where rows meet in one weight; mark it in `broken`."""

    def leave_out(gradient: Tensor) -> Tensor:
        lost = ~torch.isfinite(gradient.flatten(1)).all(1)
        broken.logical_or_(lost)
        return torch.where(lost.reshape(-1, *[1] * (gradient.ndim - 1)), 0.0, gradient)

    if output.requires_grad:
        output.register_hook(leave_out)
