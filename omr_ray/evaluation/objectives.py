"""What a trial of a sweep is worth: figures of held-out dialogues, their intervals, and which trials no other one beats.

Preference, consistency and diversity are the terms of OMR eq. 6, 7 and 8, without the weights of eq. 9; rounds to intent as in OMR table 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omr_ray.config.sweep import OBJECTIVES
from omr_ray.evaluation import metrics
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.protocols import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED, last_round, over_rounds
from omr_ray.evaluation.results import Evaluation


def figures(found: Evaluation) -> dict[str, np.ndarray]:
    """Every objective by dialogue, f64 [D]: preference over all rounds, the others of the last one; without what was not measured."""
    held = found.held_out
    values = {
        "preference": over_rounds(held.preference),
        "consistency": last_round(held.consistency),
        "diversity": last_round(held.diversity),
        "accuracy": last_round(held.accuracy),
    }
    if found.intent is not None:
        values["rounds_to_intent"] = found.intent.rounds.mean(axis=1)
    return {name: values[name] for name in OBJECTIVES if name in values and np.isfinite(values[name]).any()}


def intervals(found: Evaluation) -> dict[str, Interval]:
    """The mean of every objective over the dialogues."""
    return {name: _interval(np.zeros(len(values)), values) for name, values in figures(found).items()}


def gains(base: Evaluation, found: Evaluation) -> dict[str, Interval]:
    """What is added to the base's, paired by dialogue. Both sides must have seen the same dialogues (`protocols.compare` checks)."""
    before, after = figures(base), figures(found)
    return {name: _interval(before[name], values) for name, values in after.items() if name in before}


def pareto(points: np.ndarray, objectives: Sequence[str]) -> np.ndarray:
    """Which points (f64 [N M], one column an objective) no other one dominates: bool [N].

    A point dominates another that it is at least as good as in every objective, and better than in one. A point with a
    missing figure (NaN) is on no front.
    """
    signed = _signed(points, objectives)
    known = np.isfinite(signed).all(axis=1)
    no_worse = np.all(signed[None] >= signed[:, None], axis=2)  # [i j]: j is at least as good as i
    better = np.any(signed[None] > signed[:, None], axis=2)
    beaten = np.logical_and(no_worse, better)[:, known].any(axis=1)
    return np.logical_and(known, ~beaten)


def best(points: np.ndarray, objectives: Sequence[str]) -> int | None:
    """The place of the best point: of the front, the one nearest to the best of each objective, every range of the front being 1.

    With one objective that is the best there is. None where no point has all figures.
    """
    front = np.flatnonzero(pareto(points, objectives))
    if not front.size:
        return None
    signed = _signed(points[front], objectives)
    span = np.ptp(signed, axis=0)
    missing = (signed.max(axis=0) - signed) / np.where(span > 0, span, 1.0)
    return int(front[np.linalg.norm(missing, axis=1).argmin()])


def _signed(points: np.ndarray, objectives: Sequence[str]) -> np.ndarray:
    """With a sign that makes more better in every column."""
    return np.asarray(points, dtype=np.float64) * np.array([1.0 if OBJECTIVES[name] == "max" else -1.0 for name in objectives])


def _interval(before: np.ndarray, after: np.ndarray) -> Interval:
    value, low, high = metrics.paired_bootstrap(before, after, BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED)
    return Interval(value=value, low=low, high=high)
