"""Statistics between models on the same dialogues, NumPy only. Cubes are f64 [D R G], NaN where there is no value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import cbook

from omr_ray.evaluation.metrics import Interval, paired_bootstrap
from omr_ray.evaluation.protocols import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED

Better = Literal["up", "down"]


def by_dialogue(cube: np.ndarray) -> np.ndarray:
    """Mean of a dialogue's known values, whatever the other axes are: f64 [D ...] to [D]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a dialogue without values is NaN, and left out by what follows
        return np.nanmean(cube.reshape(len(cube), -1), axis=1)


def interval(cube: np.ndarray) -> Interval | None:
    """Mean over dialogues, with its 95% bootstrap interval over dialogues; None where nothing is known."""
    values = by_dialogue(cube)
    value, low, high = paired_bootstrap(np.zeros(len(values)), values, BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED)
    return Interval(value=value, low=low, high=high) if np.isfinite(value) else None


def difference(before: np.ndarray, after: np.ndarray) -> Interval | None:
    """after - before, paired by dialogue; None where no dialogue has both."""
    value, low, high = paired_bootstrap(by_dialogue(before), by_dialogue(after), BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED)
    return Interval(value=value, low=low, high=high) if np.isfinite(value) else None


def won(ours: np.ndarray, theirs: np.ndarray, better: Better = "up") -> np.ndarray:
    """1 where our value of the same dialogue, round and sibling is better, 0.5 where they are equal, 0 where it is worse; NaN unknown."""
    gain = np.sign(ours - theirs) * (1 if better == "up" else -1)
    return np.where(np.isfinite(ours) & np.isfinite(theirs), (gain + 1) / 2, np.nan)


def win_rates(cubes: Mapping[str, np.ndarray], better: Better = "up") -> np.ndarray:
    """Win rate of row against column, f64 [M M], NaN on the diagonal (OMR fig. 7)."""
    names = list(cubes)
    rates = np.full((len(names), len(names)), np.nan)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if i != j:
                rates[i, j] = np.nanmean(by_dialogue(won(cubes[one], cubes[other], better)))
    return rates


def ranks(values: Sequence[float | None], better: Better) -> list[int | None]:
    """Competition ranks from 1 ("1, 2, 2, 4"), as in OMR table 1; a missing value has none.

    Example: ranks([0.4, 0.1, 0.4, None], "down") == [2, 1, 2, None]
    """
    known = [value for value in values if value is not None and np.isfinite(value)]
    ahead = (lambda a, b: a > b) if better == "up" else (lambda a, b: a < b)
    return [None if value is None or not np.isfinite(value) else 1 + sum(ahead(other, value) for other in known) for value in values]


def box(values: np.ndarray) -> dict[str, Any]:
    """Box-plot statistics after Tukey, by matplotlib, of the finite values.

    med, q1, q3, mean, whislo and whishi (the last values within 1.5 times q3 - q1 of the box), fliers (those beyond).
    """
    (found,) = cbook.boxplot_stats(values[np.isfinite(values)])
    return found
