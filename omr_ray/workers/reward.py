"""The reward worker: the Qwen-VL preference model in a process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from omr_ray.config.run import RunConfig
from omr_ray.workers.loading import device_for, reward_engine_from

if TYPE_CHECKING:
    from omr_ray.vlm.engine import RewardEngine


class RewardWorker:
    """Scores images under prompts (OMR eq. 8). Idempotent; the model loads at the first call, as in RolloutWorker."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def ready(self) -> tuple[None, dict[str, float]]:
        """Load the model."""
        start = time.perf_counter()
        assert self._model is not None
        return None, {"load": time.perf_counter() - start}

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[list[float | None], dict[str, float]]:
        """Scores of images u8 [N H W 3] under N prompts. One that is not finite is None: missing, not zero."""
        start = time.perf_counter()
        scores = self._model.score(images, prompts, batch_size=len(images)).tolist()
        return [score if math.isfinite(score) else None for score in scores], {"score": time.perf_counter() - start}

    @cached_property
    def _model(self) -> RewardEngine:
        actors = self._config.workers.reward
        return reward_engine_from(self._config.rewards.preference, device_for(actors, "reward"), actors.threads, actors.num_gpus)
