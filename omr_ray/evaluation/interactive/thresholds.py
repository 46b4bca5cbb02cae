"""Attend-and-Excite at several thresholds: how often it is used, and what it brings (TDRI table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from omr_ray.config.comparison import Excite
from omr_ray.config.generation import AttendAndExcite
from omr_ray.evaluation.generating import derived_seed
from omr_ray.types import Dialogue

THRESHOLDS = Excite().thresholds


class Painter(Protocol):
    def excited(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: AttendAndExcite | None, adapter: str | None
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def similarity(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray: ...


class Judge(Protocol):
    def accuracy(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcitedImage:
    """One image of an intent from noise."""

    dialogue: str
    threshold: float | None  # None: without Attend-and-Excite
    used: bool  # L_AE exceeded the threshold in an early step (TDRI eq. 8)
    accuracy: float  # share of the intent's aspects that the oracle reads off it
    similarity: float  # CLIP's cosine of intent and image


def excited_images(
    painter: Painter, judge: Judge, dialogues: Sequence[Dialogue], *, seed: int, settings: AttendAndExcite, adapter: str | None
) -> list[ExcitedImage]:
    """Every intent without it and at each threshold, from the same noise."""
    intents = [dialogue.intent for dialogue in dialogues]
    seeds = [derived_seed(seed, dialogue.id, 0, 1) for dialogue in dialogues]
    found: list[ExcitedImage] = []
    for threshold in (None, *THRESHOLDS):
        at = None if threshold is None else settings.model_copy(update={"threshold": threshold})
        images, used = painter.excited(intents, seeds, at, adapter)
        accuracy, similarity = judge.accuracy(images, intents).tolist(), painter.similarity(images, intents).tolist()
        for row, dialogue in enumerate(dialogues):
            found.append(
                ExcitedImage(
                    dialogue=dialogue.id, threshold=threshold, used=bool(used[row]), accuracy=accuracy[row], similarity=similarity[row]
                )
            )
    return found
