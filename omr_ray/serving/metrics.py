"""What Prometheus reads at /metrics.

    omr_serve_requests_total{method, route, status}     of this process, as is the next one
    omr_serve_request_seconds{method, route}            histogram; of a stream: until it has ended
    omr_serve_rounds{status}                            stored ones, the same from every process
    omr_serve_rounds_waiting                            that nobody works on: the queue
    omr_serve_round_seconds                             from stored to ended, of the rounds of the last hour: a distribution, no counter

A route is its template, never a path, so nobody can make new series by asking for them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omr_ray.serving.store import queue
from omr_ray.serving.store.database import Database

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE = "none"
CLIENT_GONE = 499
BUCKETS_S = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WINDOW_S = 3600.0


class Metrics:
    """Of one web process."""

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(StoredRounds(database))
        self.requests = Counter("omr_serve_requests", "Requests", ["method", "route", "status"], registry=self._registry)
        self.seconds = Histogram(
            "omr_serve_request_seconds",
            "Time of a request",
            ["method", "route"],
            buckets=(0.01, 0.05, 0.1, *BUCKETS_S),
            registry=self._registry,
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


class StoredRounds(Collector):
    """Looks into the store whenever it is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return ()  # registering it must not ask the database, which may not have its tables yet

    def collect(self) -> Iterator[Metric]:
        with self._database.read() as transaction:
            counts, waiting = queue.by_status(transaction), queue.waiting(transaction)
            seconds = queue.seconds_to_end(transaction, time.time() - WINDOW_S)
        rounds = GaugeMetricFamily("omr_serve_rounds", "Stored rounds", labels=["status"])
        for status, count in counts.items():
            rounds.add_metric([status], count)
        yield rounds
        yield GaugeMetricFamily("omr_serve_rounds_waiting", "Rounds that nobody works on yet", value=waiting)
        taken = [0] * (len(BUCKETS_S) + 1)
        for value in seconds:
            taken[bisect_left(BUCKETS_S, value)] += 1
        buckets = list(zip([*map(str, BUCKETS_S), "+Inf"], accumulate(taken), strict=True))
        told = "Time from stored to ended of the rounds of the last hour"
        yield GaugeHistogramMetricFamily("omr_serve_round_seconds", told, buckets=buckets, gsum_value=sum(seconds))


class Measured:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = CLIENT_GONE, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)
