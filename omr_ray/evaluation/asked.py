"""What a metric is asked about one image. Crosses processes; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omr_ray.evaluation.stored import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One image and what it is judged by. A side that there is not is None."""

    dialogue: str
    round: int
    sibling: int
    image: np.ndarray  # u8 [H W 3]
    prompt: str
    intent: str
    previous: np.ndarray | None = None  # the same sibling's image of the round before
    target: np.ndarray | None = None  # what the user wants to see after the round

    def value(self, measure: str, value: float) -> Value:
        number = float(value)
        known = number if np.isfinite(number) else None
        return Value(dialogue=self.dialogue, round=self.round, sibling=self.sibling, measure=measure, value=known)
