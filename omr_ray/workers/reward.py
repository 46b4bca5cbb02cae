"""The reward worker: the Qwen-VL preference model, and the scorers of added terms, in a process of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from omr_ray.config.run import RunConfig
from omr_ray.loading import device_for, reward_engine_from
from omr_ray.workers.scorers import Score, scorer_from

if TYPE_CHECKING:
    from omr_ray.vlm.engine import RewardEngine


class RewardWorker:
    """Scores images under prompts (OMR eq. 8). Idempotent; everything loads at the first call, as in RolloutWorker."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def ready(self) -> tuple[None, dict[str, float]]:
        """Load the model, and whatever scores `rewards.terms`."""
        start = time.perf_counter()
        assert self._model is not None
        assert self._scorers is not None
        return None, {"load": time.perf_counter() - start}

    def score(
        self, images: np.ndarray, rows: Sequence[int], prompts: Sequence[str], term: str = "mutual_information"
    ) -> tuple[list[float | None], dict[str, float]]:
        """Scores of N pairs, image `rows[n]` of images u8 [M H W 3] under prompt n. One that is not finite is None: missing, not zero."""
        start = time.perf_counter()
        shown = images[np.asarray(rows)]
        if term == "mutual_information":
            scores = self._model.score(shown, prompts, batch_size=len(shown)).tolist()
        else:
            scores = self._scorers[term](shown, prompts)
        known = [score if score is not None and math.isfinite(score) else None for score in scores]
        return known, {"score": time.perf_counter() - start}

    @cached_property
    def _model(self) -> RewardEngine:
        actors = self._config.workers.reward
        return reward_engine_from(self._config.rewards.preference, device_for(actors, "reward"), actors.threads, actors.num_gpus)

    @cached_property
    def _scorers(self) -> dict[str, Score]:
        return {term.name: scorer_from(term, self._config) for term in self._config.rewards.terms}
