"""The mutual-information reward (OMR eq. 8) from the scores of a preference model.

By default a sample's own score stands for I(X; Y), as in the paper, which also calls it the preference score. The
functions here are the alternative: a lower bound on I(X; Y) that compares every prompt of a batch with every image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from omr_ray.types import Rollout, Trajectory


def infonce(scores: np.ndarray) -> float:
    """I(X; Y) >= log N + mean over i of log softmax_j(s_ij)[i] (OMR eq. 8; InfoNCE, arXiv:1807.03748, section 2.3).

    scores [N, N]: image j under prompt i, so that the diagonal holds the pairs that belong together. At most log N.
    """
    return float(np.mean(infonce_credits(scores)))


def infonce_credits(scores: np.ndarray) -> np.ndarray:
    """What each sample adds to `infonce`: log N + log softmax_j(s_ij)[i], float64 [N]. Their mean is the bound."""
    scores = np.asarray(scores, dtype=np.float64)
    highest = scores.max(1)
    log_normaliser = highest + np.log(np.exp(scores - highest[:, None]).sum(1))
    return math.log(len(scores)) + np.diag(scores) - log_normaliser


def rival_pairs(rollouts: Sequence[Rollout]) -> list[tuple[Trajectory, str]]:
    """Every image of a group under every prompt of it: what `rival_credits` needs the scores of, in this order.

    A group holds the samples of one round and sibling index, one of each dialogue that has the round.
    """
    groups = ([rollouts[d].trajectories[r][g] for d in dialogues] for r, g, dialogues in _groups(rollouts))
    return [(image, own.prompt) for group in groups for own in group for image in group]


def rival_credits(rollouts: Sequence[Rollout], scores: Sequence[float | None]) -> list[list[list[float | None]]]:
    """The InfoNCE term of every sample, [R][G] a rollout (OMR eq. 8), from the scores of `rival_pairs`.

    Each is at most log D for a group of D, so 0 in a group of one. NaN where a score in the sample's row is missing.
    """
    credits: list[list[list[float | None]]] = [[[None] * len(siblings) for siblings in rollout.trajectories] for rollout in rollouts]
    known, start = np.array(scores, dtype=np.float64), 0  # None becomes NaN
    for r, g, dialogues in _groups(rollouts):
        size = len(dialogues)
        matrix = known[start : start + size**2].reshape(size, size)
        for d, credit in zip(dialogues, infonce_credits(matrix), strict=True):
            credits[d][r][g] = float(credit)
        start += size**2
    return credits


def _groups(rollouts: Sequence[Rollout]) -> Iterator[tuple[int, int, list[int]]]:
    """Round and sibling index (both from 0), and which rollouts have that round."""
    for r in range(max((len(rollout.trajectories) for rollout in rollouts), default=0)):
        having = [d for d, rollout in enumerate(rollouts) if r < len(rollout.trajectories)]
        for g in range(len(rollouts[having[0]].trajectories[r])):
            yield r, g, having
