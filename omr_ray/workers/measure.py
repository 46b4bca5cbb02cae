"""The worker that measures images for a comparison: every metric in a process of its own, in the place of a reward worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omr_ray.config.comparison import ComparisonConfig
from omr_ray.config.run import RunConfig
from omr_ray.evaluation.asked import Asked
from omr_ray.evaluation.stored import Value

if TYPE_CHECKING:
    from omr_ray.evaluation.measuring import Metric


class MeasureWorker:
    """Idempotent; a metric loads at its first call, as in RolloutWorker, and the one before it is let go."""

    def __init__(self, config: ComparisonConfig, run: RunConfig) -> None:
        self._config, self._run = config, run
        self._name = ""
        self._metric: Metric | None = None

    def ready(self) -> tuple[None, dict[str, float]]:
        """Nothing loads before a metric is named."""
        return None, {}

    def load(self, metric: str) -> tuple[None, dict[str, float]]:
        """Raises UserError where the metric's weights are not there."""
        start = time.perf_counter()
        self._held(metric)
        return None, {"load": time.perf_counter() - start}

    def measure(self, metric: str, asked: Sequence[Asked]) -> tuple[list[Value], dict[str, float]]:
        """What `metric` says of the images, one value or more for each."""
        held, start = self._held(metric), time.perf_counter()
        return held.measure(asked), {"score": time.perf_counter() - start}

    def _held(self, name: str) -> Metric:
        from omr_ray.evaluation.measuring import metric_from

        if self._metric is None or self._name != name:
            self._metric = None  # its memory is free before the next one takes some
            self._name, self._metric = name, metric_from(name, self._config, self._run)
        return self._metric
