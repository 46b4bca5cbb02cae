"""Figures of the evaluation, NumPy only. Axis letters: D dialogues, R rounds, B bootstrap samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its 95% interval. Example: Interval(value=0.12, low=0.08, high=0.16)"""

    value: float
    low: float
    high: float


def rounds_to_intent(matches: np.ndarray) -> np.ndarray:
    """First round (from 1) whose image shows the whole intent, else R + 1 (OMR table 1, "Round").

    matches: bool [D R], whether the image of a round shows every aspect of the intent. Returns i64 [D].
    """
    matches = np.asarray(matches, dtype=bool)
    return np.where(matches.any(axis=1), matches.argmax(axis=1) + 1, matches.shape[1] + 1)


def satisfaction(rounds: np.ndarray, max_rounds: int) -> np.ndarray:
    """Share of dialogues whose intent was met within 1, 2, ... `max_rounds` rounds (TDRI fig. 10). f64 [max_rounds]."""
    return np.array([(np.asarray(rounds) <= limit).mean() for limit in range(1, max_rounds + 1)])


def paired_bootstrap(before: np.ndarray, after: np.ndarray, samples: int, seed: int) -> tuple[float, float, float]:
    """Mean of after - before over paired dialogues and its 95% percentile interval: (value, low, high).

    before, after: f64 [D], one figure a dialogue; a dialogue with a missing (NaN) side is left out of both.
    Resamples dialogues, not images: siblings of one dialogue are not independent. Efron & Tibshirani 1993, chapter 13.
    """
    return _interval(_resampled(before, after, samples, seed), lambda means: means[1] - means[0])


def paired_ratio(before: np.ndarray, after: np.ndarray, samples: int, seed: int) -> tuple[float, float, float]:
    """mean(after) / mean(before) over paired dialogues and its 95% percentile interval: (value, low, high)."""
    return _interval(_resampled(before, after, samples, seed), lambda means: means[1] / means[0])


def _resampled(before: np.ndarray, after: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means of both sides, f64 [2 1+B]: the data itself first, then `samples` draws of dialogues with replacement."""
    pair = np.stack([np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)])
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    count = pair.shape[1]
    if count == 0:
        return np.full((2, 1), np.nan)
    drawn = np.random.default_rng(seed).integers(count, size=(samples, count))
    return np.concatenate([pair.mean(axis=1, keepdims=True), pair[:, drawn].mean(axis=2)], axis=1)


def _interval(means: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(means)
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn.size else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)
