"""One rank of the learner: a batch becomes optimizer steps (OMR Algorithm 1, lines 14-17).

Everything is a function of (config.seed, step, state): row order, noise and shares are drawn from these and nothing is
kept in a random generator, so a repeated step, or one on another number of ranks, gives the same update.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from omr_ray.config.run import DiffusersModel, Ppo, RunConfig
from omr_ray.loading import policy_from, reward_model_from
from omr_ray.types import Batch, LearnerState, RoundPairs
from omr_ray.workers.learner_engine import AdapterEngine
from omr_ray.workers.learner_objective import Objective, PairPart, RewardPart, Score, finite_rows, shares

MEANS = {"ratio": "ratio_mean", "clipped": "clip_fraction", "reward": "one_step_reward", "diversity": "one_step_diversity"}


class LearnerRank:
    """Policy, optimizer and adapter EMA of one rank; its process group exists already (learner_engine.join_group)."""

    def __init__(self, config: RunConfig, state: LearnerState | None, device: str) -> None:
        self.config = config
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.policy = policy_from(config.model, config.lora, device, config.workers.learner.threads)
        if state is not None:
            self.policy.load_lora(state.weights)
        if config.learner.gradient_checkpointing:
            self.policy.network.enable_gradient_checkpointing()
        objective = Objective(self.policy, config, self._score(device))
        channels_last = isinstance(config.model, DiffusersModel) and config.model.channels_last
        self.engine = AdapterEngine(objective, self.policy.lora_parameters(), config.learner, channels_last)
        if state is not None and state.optimizer:
            self.engine.load_moments(state.optimizer)
        self.version = 0 if state is None else state.policy_version
        self.weights = self.engine.weights()
        kept = state.ema if state is not None and state.ema else self.weights
        self.ema = dict(kept) if config.learner.ema_decay > 0 else {}

    def step(self, batch: Batch, pairs: RoundPairs | None, step: int) -> dict[str, float]:
        """All passes and minibatches of one training step; returns its metrics, the same on every rank.

        Rows that are not finite are dropped before anything is drawn: they change nothing but `dropped_rows`.
        """
        algorithm, count = self.config.algorithm, len(batch)
        batch = finite_rows(batch)
        rate = self._learning_rate(step)
        tally = Tally(self.policy.device, first_rows=isinstance(algorithm, Ppo))
        norms: list[float | None] = []
        for pass_ in range(algorithm.passes):
            order = np.random.default_rng([self.config.seed, step, pass_]).permutation(len(batch))
            for index, rows in enumerate(np.array_split(order, algorithm.minibatches)):
                parts = [*self._reward_parts(batch, rows), *self._pair_parts(pairs, index, step)]
                for number, part in enumerate(parts, start=1):
                    tally.add(self.engine.accumulate(part, last=number == len(parts)))
                if parts:
                    norms.append(self.engine.apply(rate))
                tally.first = False
        self._finish()
        applied = [norm for norm in norms if norm is not None]
        means, broken = tally.metrics()
        return means | {
            "rows": float(len(batch)),
            "dropped_rows": float(count - len(batch)) + broken,
            "trained_steps": float(len(batch) * algorithm.passes),
            "skipped_updates": float(len(norms) - len(applied)),
            "grad_norm": sum(applied) / max(1, len(applied)),
            "lr": rate,
            "adapter_norm": float(np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in self.weights.values()))),
        }

    def state(self) -> LearnerState:
        """Full tensors by name. All ranks must call: with ZeRO each holds a share."""
        return LearnerState(policy_version=self.version, weights=self.weights, ema=self.ema, optimizer=self.engine.moments())

    def _score(self, device: str) -> Score | None:
        """The differentiable reward that ReFL ascends; the ratio of PPO needs no reward model here."""
        if self.config.algorithm.reward_gradient == 0:
            return None
        return reward_model_from(self.config.rewards.preference, device, self.config.workers.learner.threads).score_tensor

    def _reward_parts(self, batch: Batch, rows: np.ndarray) -> Iterator[RewardPart]:
        for mine, present in self._shares(rows):
            yield RewardPart(batch=batch.take(mine), present=present, scale=1 / len(rows))

    def _pair_parts(self, pairs: RoundPairs | None, index: int, step: int) -> Iterator[PairPart]:
        """The pairs of minibatch `index`: each pair once a pass."""
        if pairs is None or self.config.noise_loss.weight == 0:
            return
        rows = np.array_split(np.arange(len(pairs)), self.config.algorithm.minibatches)[index]
        for mine, present in self._shares(rows):
            taken = RoundPairs(
                images_x=pairs.images_x[mine],
                images_y=pairs.images_y[mine],
                prompts_x=tuple(pairs.prompts_x[i] for i in mine),
                prompts_y=tuple(pairs.prompts_y[i] for i in mine),
            )
            yield PairPart(pairs=taken, indices=mine, step=step, present=present, scale=self.config.noise_loss.weight / len(rows))

    def _shares(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return shares(rows, rank=self.rank, ranks=self.ranks, micro_batch=self.config.learner.micro_batch)

    def _learning_rate(self, step: int) -> float:
        """Up in a straight line over the first `warmup_steps` training steps, counted from 1, and down over the last `cooldown_steps`."""
        learner, left = self.config.learner, self.config.steps - step + 1
        return learner.learning_rate * min(1.0, step / max(1, learner.warmup_steps), left / (learner.cooldown_steps + 1))

    def _finish(self) -> None:
        """A new version: weights as they are now, and ema <- d ema + (1 - d) weights."""
        self.version += 1
        self.weights = self.engine.weights()
        decay = np.float32(self.config.learner.ema_decay)
        self.ema = {name: decay * value + (1 - decay) * self.weights[name] for name, value in self.ema.items()}


class Tally:
    """Sums over the rows of all parts and, once, over all ranks."""

    def __init__(self, device: torch.device, first_rows: bool) -> None:
        self.first = first_rows  # still in the first minibatch, before any update
        self._has_first = first_rows
        self._device = device
        self._sums: dict[str, list[Tensor]] = {}
        self._deviation = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, values: dict[str, Tensor]) -> None:
        """The values of one part, after its backward pass."""
        counts = values["present"].double() * ~values["broken"]
        totals = {name: value for name, value in values.items() if name not in ("present", "broken")}
        for name, value in totals.items():
            kept = torch.where(counts > 0, value.double(), 0.0)
            self._sums.setdefault(name, []).append(torch.stack([(kept * counts).sum(), counts.sum()]))
        self._sums.setdefault("broken", []).append(torch.stack([(values["present"].double() * values["broken"]).sum(), counts.sum()]))
        if self.first and "ratio" in values:
            deviation = torch.where(counts > 0, (values["ratio"].double() - 1).abs(), 0.0)
            self._deviation = torch.maximum(self._deviation, deviation.max())

    def metrics(self) -> tuple[dict[str, float], float]:
        """Means over all counted rows of all ranks, and the number of broken ones.

        All ranks must call, having added parts of the same kinds.
        """
        if not self._sums:
            return {}, 0.0
        names = sorted(self._sums)
        sums = torch.stack([torch.stack(self._sums[name]).sum(0) for name in names])
        dist.all_reduce(sums)
        dist.all_reduce(self._deviation, op=dist.ReduceOp.MAX)
        found = dict(zip(names, sums.tolist(), strict=True))
        broken = found.pop("broken")[0]
        means = {MEANS.get(name, name): total / max(1.0, count) for name, (total, count) in found.items()}
        return means | ({"first_ratio_deviation": float(self._deviation)} if self._has_first else {}), broken
