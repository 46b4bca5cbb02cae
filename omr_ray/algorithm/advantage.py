"""From rewards to advantages: siblings of one dialogue round are compared with one another."""

from __future__ import annotations

from typing import Literal

import numpy as np

Baseline = Literal["group", "leave_one_out"]


def group_advantages(rewards: np.ndarray, *, baseline: Baseline = "group", eps: float = 1e-6) -> np.ndarray:
    """Advantages within the last axis; NaN is a missing reward, is left out of its group, and stays NaN.

    group          A_i = (r_i - mean) / (std + eps)           (GRPO, arXiv:2402.03300, section 4.1.2)
    leave_one_out  A_i = r_i - mean of the others             (RLOO, arXiv:2402.14740, eq. 8; keeps the rewards' scale)

    rewards [..., G]; returns float64 of the same shape. A group with fewer than two rewards, or with equal ones, has
    nothing to compare: its advantages are 0.
    """
    rewards = np.where(np.isfinite(rewards), rewards, np.nan).astype(np.float64)
    known = np.isfinite(rewards)
    count = known.sum(-1, keepdims=True)
    centred = rewards - np.nansum(rewards, -1, keepdims=True) / np.maximum(count, 1)
    if baseline == "leave_one_out":
        advantages = centred * count / np.maximum(count - 1, 1)
    else:
        std = np.sqrt(np.nansum(centred**2, -1, keepdims=True) / np.maximum(count, 1))
        advantages = centred / (std + eps)
    low, high = np.where(known, rewards, np.inf).min(-1, keepdims=True), np.where(known, rewards, -np.inf).max(-1, keepdims=True)
    return np.where(known & (low >= high), 0.0, advantages)


def return_to_go(rewards: np.ndarray, discount: float) -> np.ndarray:
    """sum over k >= r of discount^(k - r) rewards[k]: a round is credited with the rounds that start from its latent.

    rewards [R, G]; returns float64 [R, G]. A missing (NaN) reward makes the returns of its own and of earlier rounds
    unknown, unless discount is 0.
    """
    returns = np.array(rewards, dtype=np.float64)
    if discount > 0:
        for r in range(len(returns) - 2, -1, -1):
            returns[r] += discount * returns[r + 1]
    return returns
