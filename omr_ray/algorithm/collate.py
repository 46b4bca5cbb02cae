"""Scored rollouts become one learner batch: credit, advantages, stored steps flattened to rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from omr_ray.algorithm.advantage import Baseline, group_advantages, return_to_go
from omr_ray.rewards.diversity import mean_of_others
from omr_ray.types import Batch, RoundPairs, ScoredRollout, Trajectory


def advantages(scored: ScoredRollout, *, baseline: Baseline, discount: float | None) -> np.ndarray:
    """Advantage of every sample of one dialogue, [R G]; NaN where a score is missing.

    Siblings of one dialogue round are the group. `discount` None is the immediate reward of the round; a number adds
    the discounted rewards of later rounds, which start from this round's latent.
    """
    totals = np.array([[np.nan if reward.total is None else reward.total for reward in round_] for round_ in scored.rewards])
    if discount is not None:
        totals = return_to_go(totals, discount)
    return group_advantages(totals, baseline=baseline)


class Space:
    """Memory of the last batch, taken again for the next one: the pages of fresh memory cost several times the copy."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def join(self, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """`arrays` one after the other, as np.concatenate; of use until the next call for `name`."""
        shape, kind = (sum(len(array) for array in arrays), *arrays[0].shape[1:]), arrays[0].dtype
        kept = self._arrays.get(name)
        if kept is None or len(kept) < shape[0] or kept.shape[1:] != shape[1:] or kept.dtype != kind:
            kept = self._arrays[name] = np.empty(shape, kind)
        return np.concatenate(arrays, out=kept[: shape[0]])


def collate(scored: Sequence[ScoredRollout], *, baseline: Baseline, discount: float | None, space: Space | None = None) -> Batch | None:
    """All stored steps of all samples whose score is known, as one Batch; None if there is no such sample.

    With `space` the batch's large arrays are of use until the next call that is given it.
    """
    space = space or Space()
    kept: list[Trajectory] = []
    credits: list[float] = []
    directions: list[np.ndarray] = []  # of the siblings
    for rollout in scored:
        values = advantages(rollout, baseline=baseline, discount=discount)
        for siblings, row in zip(rollout.rollout.trajectories, values.tolist(), strict=True):
            others = mean_of_others(np.stack([trajectory.features for trajectory in siblings]))
            for trajectory, credit, other in zip(siblings, row, others, strict=True):
                if math.isfinite(credit):
                    kept.append(trajectory)
                    credits.append(credit)
                    directions.append(other)
    if not kept:
        return None
    steps = [len(trajectory.timesteps) for trajectory in kept]
    return Batch(
        latents=space.join("latents", [t.latents for t in kept]),
        next_latents=space.join("next_latents", [t.next_latents for t in kept]),
        timesteps=np.concatenate([t.timesteps for t in kept], dtype=np.int64),
        previous_timesteps=np.concatenate([t.previous_timesteps for t in kept], dtype=np.int64),
        log_probs=np.concatenate([t.log_probs for t in kept], dtype=np.float32),
        advantages=np.repeat(np.array(credits, dtype=np.float32), steps),
        prompt_ids=np.repeat(np.stack([t.prompt_ids for t in kept]), steps, axis=0),
        rounds=np.repeat(np.array([t.round for t in kept], dtype=np.int64), steps),
        prompts=np.repeat(np.array([t.prompt for t in kept]), steps),
        siblings=space.join("siblings", [np.broadcast_to(d, (count, len(d))) for d, count in zip(directions, steps, strict=True)]),
        oldest_version=min(t.policy_version for t in kept),
    )


def round_pairs(scored: Sequence[ScoredRollout], *, count: int, seed: Sequence[int]) -> RoundPairs | None:
    """`count` pairs of target images of consecutive rounds (OMR eq. 4), drawn from the dialogues; None without images."""
    rounds = [rollout.rollout.dialogue.rounds for rollout in scored]
    pairs = [
        (x, y) for dialogue in rounds for x, y in zip(dialogue, dialogue[1:], strict=False) if x.target is not None and y.target is not None
    ]
    if not pairs:
        return None
    rng = np.random.default_rng(seed)
    chosen = [pairs[i] for i in rng.choice(len(pairs), size=count, replace=count > len(pairs))]
    return RoundPairs(
        images_x=np.stack([x.target for x, _ in chosen]),
        images_y=np.stack([y.target for _, y in chosen]),
        prompts_x=tuple(x.prompt for x, _ in chosen),
        prompts_y=tuple(y.prompt for _, y in chosen),
    )
