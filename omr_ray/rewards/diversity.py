"""The diversity reward (OMR eq. 6)."""

from __future__ import annotations

import numpy as np

from omr_ray.rewards.cosine import unit


def diversity(features: np.ndarray) -> float:
    """R_div = 1 / (N (N - 1)) sum over i != j of 1 - cos(f(z_i), f(z_j)) (OMR eq. 6). features [N, F], N >= 2."""
    return float(np.mean(diversity_credits(features)))


def mean_of_others(features: np.ndarray) -> np.ndarray:
    """For each sample the mean direction of the others, float32 [N F]: 1 - its dot product with f(z_i) / |f(z_i)| is the credit below.

    Zero where there is no other that has a direction.
    """
    directions = np.nan_to_num(unit(features), nan=0.0)
    known = directions.any(-1)
    others = known.sum() - known
    return ((directions.sum(0) - directions) / np.maximum(others, 1)[:, None]).astype(np.float32)


def diversity_credits(features: np.ndarray) -> np.ndarray:
    """What each sample adds to OMR eq. 6: the mean over the others of 1 - cosine, float64 [N]. Their mean is eq. 6.

    A sample without direction (see `unit`) has a NaN credit and is no neighbour of the others. A sample without
    neighbours differs from nothing: 0.
    """
    directions = unit(features)
    known = np.isfinite(directions).all(-1)
    others = max(int(known.sum()) - 1, 1)
    total = np.where(known[:, None], directions, 0.0).sum(0)
    # sum over j != i of (1 - u_i . u_j), with u_i . u_i = 1 taken out of the sum over all j
    credits = ((known.sum() - 1) - (directions @ total - 1)) / others
    return np.where(known, credits, np.nan)
