"""Whether a reward model picks better images than others would: top 3 of 9, 25, 64 (OMR fig. 6).

For each prompt many images are drawn; each scorer keeps its best three of the first 9, 25 and 64; a judge that is none of the
scorers says what the kept ones are worth. In the paper people judged; here it is whatever the caller passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omr_ray.evaluation.metrics import Interval, paired_bootstrap

KEEP = 3
SIZES = (9, 25, 64)
RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What the reward model's picks are worth beside a rival's, prompt by prompt.

    Example: Contest(rival="random", size=9, win=30, tie=10, lose=8, ours=0.93, theirs=0.86, gain=Interval(...))
    """

    rival: str
    size: int
    win: int
    tie: int
    lose: int
    ours: float  # mean worth of the kept images
    theirs: float
    gain: Interval  # ours - theirs, 95% over prompts


def top(scores: np.ndarray, keep: int = KEEP) -> np.ndarray:
    """Places of the `keep` highest scores of each row (f64 [P N] to i64 [P keep]); of equals the first, a missing (NaN) score last."""
    return np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")[:, :keep]


def contests(
    worth: np.ndarray, ours: np.ndarray, rivals: Mapping[str, np.ndarray], *, sizes: Sequence[int] = SIZES, keep: int = KEEP, seed: int = 0
) -> list[Contest]:
    """Every rival at every size; "random" is added to the rivals.

    worth, ours and each rival: f64 [P N], the judge's and the scorers' values of N images under P prompts; N is at least the largest size.
    A prompt that cannot be judged (NaN) is left out. Raises ValueError where there are fewer images than the largest size.
    """
    prompts, images = worth.shape
    if images < max(sizes) or keep > min(sizes):
        raise ValueError(f"top {keep} of {min(sizes)}..{max(sizes)} needs {max(sizes)} images a prompt, got {images}")
    scores = dict(rivals) | {RANDOM: np.random.default_rng(seed).random(worth.shape)}
    found = []
    for size in sizes:
        mine = _kept(worth[:, :size], ours[:, :size], keep)
        for name, values in scores.items():
            other = _kept(worth[:, :size], values[:, :size], keep)
            known = np.isfinite(mine) & np.isfinite(other)
            gain, low, high = paired_bootstrap(other, mine, 10_000, seed)
            difference = (mine - other)[known]
            close = np.abs(difference) < 1e-9  # sums of the same values in another order
            found.append(
                Contest(
                    rival=name,
                    size=size,
                    win=int((~close & (difference > 0)).sum()),
                    tie=int(close.sum()),
                    lose=int((~close & (difference < 0)).sum()),
                    ours=float(mine[known].mean()),
                    theirs=float(other[known].mean()),
                    gain=Interval(value=gain, low=low, high=high),
                )
            )
    return found


def _kept(worth: np.ndarray, scores: np.ndarray, keep: int) -> np.ndarray:
    """Mean worth of the images that `scores` keeps, f64 [P]."""
    return np.take_along_axis(worth, top(scores, keep), axis=1).mean(axis=1)
