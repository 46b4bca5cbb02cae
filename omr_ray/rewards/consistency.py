"""The consistency reward (OMR eq. 7)."""

from __future__ import annotations

import numpy as np

from omr_ray.rewards.cosine import unit


def consistency(features: np.ndarray) -> float:
    """R_cons = sum over t of cos(f(z_t), f(z_{t+1})) over the rounds of one sample (OMR eq. 7). features [R, F]."""
    return float(np.sum(consistency_credits(features)))


def consistency_credits(features: np.ndarray) -> np.ndarray:
    """What each round adds to OMR eq. 7: the cosine with the round before it, 0 in round 1. Their sum is eq. 7.

    features [R, ..., F]; returns float64 [R, ...]. NaN where one of the two rounds has no direction (see `unit`).
    """
    directions = unit(features)
    credits = np.zeros(directions.shape[:-1])
    credits[1:] = (directions[1:] * directions[:-1]).sum(-1)
    return credits
