"""How much each reward counts in dialogue round t, from 1 (OMR eq. 9 and figure 3)."""

from __future__ import annotations

import math
from collections.abc import Callable

Weights = dict[str, float]  # diversity, consistency, mutual_information


def exponential(t: int, *, alpha: float, beta: float, gamma: float) -> Weights:
    """lambda_div = exp(-alpha t), lambda_cons = 1 - exp(-beta t), lambda_MI = exp(-gamma t) / 2 (OMR eq. 9).

    The text says that lambda_MI grows, the formula falls; the formula stands. Round 1 of the published alpha 0.15,
    beta 0.1, gamma 0.075: 0.860708, 0.095163, 0.463872.
    """
    return {
        "diversity": math.exp(-alpha * t),
        "consistency": 1 - math.exp(-beta * t),
        "mutual_information": 0.5 * math.exp(-gamma * t),
    }


def constant(t: int, *, diversity: float, consistency: float, mutual_information: float) -> Weights:
    """The same weights in every round; 0.25 each is Ours_RC25 of OMR table 1."""
    return {"diversity": diversity, "consistency": consistency, "mutual_information": mutual_information}


def linear(t: int, *, first: tuple[float, float, float], last: tuple[float, float, float], rounds: int) -> Weights:
    """Straight lines from `first` in round 1 to `last` in round `rounds`, flat after it: an ablation of OMR eq. 9."""
    share = 1.0 if t >= rounds else (t - 1) / (rounds - 1)
    diversity, consistency, mutual_information = (a + share * (b - a) for a, b in zip(first, last, strict=True))
    return {"diversity": diversity, "consistency": consistency, "mutual_information": mutual_information}


SCHEDULES: dict[str, Callable[..., Weights]] = {"exponential": exponential, "constant": constant, "linear": linear}
