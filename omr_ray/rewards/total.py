"""The total reward of a sample (OMR eq. 9): three terms and those that users add, standardised, weighted by the round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from omr_ray.rewards.consistency import consistency_credits
from omr_ray.rewards.diversity import diversity_credits
from omr_ray.types import RewardBreakdown, Rollout, ScoredRollout

Scores = Sequence[Sequence[float | None]]  # [R][G], None where the scorer failed


@dataclass
class RunningStatistics:
    """Mean and variance of everything seen so far (Welford, Technometrics 4(3), 1962)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0  # sum of squared deviations from the mean

    def add(self, value: float) -> None:
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (value - self.mean)

    def standardized(self, value: float) -> float:
        """(value - mean) / standard deviation; 0 while all values were equal."""
        std = math.sqrt(self.m2 / self.count)
        return (value - self.mean) / std if std > 1e-8 else 0.0


class TotalReward:
    """R_total = lambda_div(t) R_div + lambda_cons(t) R_cons + lambda_MI(t) R_MI + ... for every sample (OMR eq. 9).

    schedule: round (from 1) -> weights by term, added ones included. standardize: each term is taken relative to its
    running mean and standard deviation over all samples and rounds so far, this step included; off is the raw sum.
    diversity_scope: a sample is compared with the siblings of its round, or with all samples of its dialogue.
    Round 1 has no consistency term. `missing` is the number of samples of the last `score` that got no total.
    """

    def __init__(
        self,
        schedule: Callable[[int], Mapping[str, float]],
        standardize: bool = True,
        diversity_scope: Literal["siblings", "dialogue"] = "siblings",
    ):
        self.schedule, self.standardize, self.diversity_scope = schedule, standardize, diversity_scope
        self.statistics: dict[str, RunningStatistics] = {}
        self.missing = 0

    def score(self, rollouts: Sequence[Rollout], scores: Sequence[Mapping[str, Scores]]) -> list[ScoredRollout]:
        """Scored rollouts; scores holds, for each, the terms that scorers made: mutual_information, and those that users add.

        A term that is None or not finite is missing, and so is the sample's total. The statistics are updated in the
        order of the arguments before any sample is weighed: same arguments, same totals.
        """
        terms = [self._terms(rollout, made) for rollout, made in zip(rollouts, scores, strict=True)]
        for sample in (sample for rollout in terms for round_ in rollout for sample in round_):
            for name, value in sample.items():
                if value is not None:
                    self.statistics.setdefault(name, RunningStatistics()).add(value)
        weights = [self.schedule(t) for t in range(1, max((len(rollout) for rollout in terms), default=0) + 1)]
        rewards = [
            tuple(tuple(self._breakdown(sample, weights[t]) for sample in round_) for t, round_ in enumerate(rollout)) for rollout in terms
        ]
        self.missing = sum(reward.total is None for rollout in rewards for round_ in rollout for reward in round_)
        return [ScoredRollout(rollout=rollout, rewards=reward) for rollout, reward in zip(rollouts, rewards, strict=True)]

    def state(self) -> dict[str, dict[str, float]]:
        """The running statistics, ready for JSON; `load` takes them back."""
        return {name: asdict(statistics) for name, statistics in self.statistics.items()}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.statistics = {name: RunningStatistics(**values) for name, values in state.items()}

    def _terms(self, rollout: Rollout, scores: Mapping[str, Scores]) -> list[list[dict[str, float | None]]]:
        """Raw terms [R][G] of one rollout (OMR eq. 6, 7, 8, and what was added)."""
        features = np.array([[trajectory.features for trajectory in round_] for round_ in rollout.trajectories])  # [R G F]
        rounds, siblings, _ = features.shape
        if self.diversity_scope == "siblings":
            diversity = np.stack([diversity_credits(round_) for round_ in features])
        else:
            diversity = diversity_credits(features.reshape(rounds * siblings, -1)).reshape(rounds, siblings)
        consistency = consistency_credits(features)
        samples: list[list[dict[str, float | None]]] = []
        for r in range(rounds):
            samples.append([])
            for g in range(siblings):
                terms = {"diversity": _known(diversity[r, g]), **{name: _known(rows[r][g]) for name, rows in scores.items()}}
                samples[r].append(terms if r == 0 else {**terms, "consistency": _known(consistency[r, g])})
        return samples

    def _breakdown(self, terms: Mapping[str, float | None], weights: Mapping[str, float]) -> RewardBreakdown:
        total: float | None = 0.0
        for name, value in terms.items():
            if value is None or total is None:
                total = None
            else:
                total += weights[name] * (self.statistics[name].standardized(value) if self.standardize else value)
        return RewardBreakdown(terms=terms, weights=weights, total=total)


def _known(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
