"""What a supervisor writes down of its workers: figures and spans, each since somebody asked last."""

from __future__ import annotations

import time
from collections.abc import Mapping

from omr_ray.tracking import Mean, Span


class Record:
    """Counts of one set of workers, called `name`, and what each of them did."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.retries = self.replacements = 0
        self.queue_peak = 0  # calls that waited at most for a worker
        self.queue_wait = Mean()  # seconds
        self._spans: list[Span] = []
        self._since = time.monotonic()

    def figures(self, *, busy: Mapping[int, float], up: int, pending: int, draining: int) -> dict[str, float]:
        """Since the last call; `busy` has the seconds that each worker worked, the others say how many there are now."""
        now = time.monotonic()
        span = max(now - self._since, 1e-9)
        figures: dict[str, float] = {
            "retries": self.retries,
            "replacements": self.replacements,
            "up": up,
            "pending": pending,
            "draining": draining,
            "queue_peak": self.queue_peak,
        }
        wait = self.queue_wait.value()
        if wait is not None:
            figures["queue_wait_s"] = wait
        figures |= {f"idle_share/{index}": min(max(1 - seconds / span, 0.0), 1.0) for index, seconds in busy.items()}
        self.retries = self.replacements = self.queue_peak = 0
        self.queue_wait, self._since = Mean(), now
        return {f"{self._name}/{name}": float(value) for name, value in figures.items()}

    def span(self, worker: int, what: str, begin: float, timings: Mapping[str, float]) -> None:
        """`what` as seen from here, from `begin` (unix seconds) to now; at its end what the worker measured itself."""
        track, end = f"{self._name} {worker}", time.time()
        self._spans.append(Span(track=track, name=what, begin=begin, seconds=max(end - begin, 0.0)))
        start = end - sum(timings.values())
        for part, seconds in timings.items():
            self._spans.append(Span(track=track, name=part, begin=max(start, begin), seconds=seconds))
            start += seconds

    def spans(self) -> list[Span]:
        spans, self._spans = self._spans, []
        return spans
