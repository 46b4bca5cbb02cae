"""Calls on a set of equal actors: the least loaded one gets the next call, and one that dies or hangs is replaced.

    waiting calls ──► free worker ──► answer ──────────────────────────► results, in the order of the calls
          ▲               │ dead, out of time, or a fault of its machine
          └── again ◄─────┴──► killed; a new actor loads its models, then takes calls

A worker holds one call at a time, so its time limit counts from the moment it starts to work. Calls must be
idempotent: whatever a call depends on is among its arguments. Threads take turns: one `run` at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from omr_ray.tracking import Mean, Span
from omr_ray.types import UserError

logger = logging.getLogger(__name__)

CLOSE_LIMIT_S = 60.0  # for a run of another thread to hear that its actors are gone
FAULTS_OF_A_MACHINE = (RuntimeError, OSError, MemoryError)  # torch raises RuntimeError for a broken or full GPU


class WorkersFailed(RuntimeError):
    """A call that no worker could do; says what was waited for, how long, and what happened last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`method(*args)` of any worker. `what` names the work in messages: "step 3: dialogues 'a' to 'd'"."""

    method: str
    args: tuple
    what: str


@dataclass(slots=True, eq=False)
class _Job:
    call: Call
    attempts: int = 0
    since: float = field(default_factory=time.monotonic)
    result: Any = None
    done: bool = False  # answered, or nobody waits for it any more


@dataclass(slots=True, eq=False)
class _Worker:
    index: int
    handle: Any = None
    ref: Any = None  # what it is working on; None: it is free
    job: _Job | None = None  # None with a ref: it is loading its models
    begin: float = 0.0  # unix seconds: when it was given what it is working on
    deadline: float = 0.0
    busy: float = 0.0  # seconds since the last metrics()
    failed_starts: int = 0
    lost: bool = False  # given up for this run
    last_fault: str = ""


class Supervisor:
    """Starts `count` actors at once and without waiting; the first `run` waits for the first of them.

    `start(index)` starts one; what replaces it gets the same index.

    Errors of `run`: UserError as raised by a worker; WorkersFailed after `max_attempts` of one call, or when no worker
    can be started; a programming error as Ray reports it, at once, because doing it again would not help.
    """

    def __init__(
        self, name: str, start: Callable[[int], Any], *, count: int, max_attempts: int, timeout_s: float, start_timeout_s: float
    ) -> None:
        self._name, self._start = name, start
        self._max_attempts, self._timeout_s, self._start_timeout_s = max_attempts, timeout_s, start_timeout_s
        self._lock, self._closed = threading.Lock(), False
        self._retries = self._replacements = 0
        self._queue_peak, self._queue_wait = 0, Mean()
        self._spans: list[Span] = []
        self._measured_since = time.monotonic()
        self._workers = [_Worker(index) for index in range(count)]
        for worker in self._workers:
            self._bring_up(worker)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """The results of `calls`, in their order, whoever did them."""
        jobs = [_Job(call) for call in calls]
        waiting = deque(jobs)
        with self._lock:
            try:
                self._call_lost_workers_back()
                while not all(job.done for job in jobs):
                    if self._closed:
                        raise WorkersFailed(f"{self._name}: closed before {jobs[-1].call.what} was done")
                    self._hand_out(waiting)
                    self._wait(waiting)
            finally:
                for job in jobs:
                    job.done = True
        return [job.result for job in jobs]

    def metrics(self) -> dict[str, float]:
        """Since the last call: retries, replacements, share of time in which each worker did nothing; workers that are up now.

        The queue: how many calls waited at most for a worker, and how long one waited on average.
        """
        with self._lock:
            return self._figures(time.monotonic())

    def _figures(self, now: float) -> dict[str, float]:
        span = max(now - self._measured_since, 1e-9)
        up = [worker for worker in self._workers if not worker.lost and (worker.ref is None or worker.job is not None)]
        figures: dict[str, float] = {
            f"{self._name}/retries": self._retries,
            f"{self._name}/replacements": self._replacements,
            f"{self._name}/up": len(up),
            f"{self._name}/queue_peak": self._queue_peak,
        }
        wait = self._queue_wait.value()
        if wait is not None:
            figures[f"{self._name}/queue_wait_s"] = wait
        for worker in self._workers:
            figures[f"{self._name}/idle_share/{worker.index}"] = min(max(1 - worker.busy / span, 0.0), 1.0)
            worker.busy = 0.0
        self._retries = self._replacements = self._queue_peak = 0
        self._queue_wait = Mean()
        self._measured_since = now
        return {name: float(value) for name, value in figures.items()}

    def spans(self) -> list[Span]:
        """What each worker did, since the last call."""
        with self._lock:
            spans, self._spans = self._spans, []
        return spans

    def close(self) -> None:
        """Kill every actor. A `run` of another thread ends with WorkersFailed."""
        self._closed = True
        self._kill()  # so that a run that waits for one hears of it
        ended = self._lock.acquire(timeout=CLOSE_LIMIT_S)
        self._kill()  # those that it started meanwhile
        if ended:
            self._lock.release()

    def _kill(self) -> None:
        for worker in self._workers:
            ray.kill(worker.handle)

    def _bring_up(self, worker: _Worker) -> None:
        worker.handle = self._start(worker.index)
        self._begin(worker, None, worker.handle.ready.remote(), self._start_timeout_s)

    def _begin(self, worker: _Worker, job: _Job | None, ref: Any, limit: float) -> None:
        worker.ref, worker.job, worker.begin, worker.deadline = ref, job, time.time(), time.monotonic() + limit

    def _record(self, worker: _Worker, timings: Mapping[str, float], fate: str = "") -> None:
        """A span of what it worked on as seen from here, and within it, at its end, those that the worker measured itself."""
        track, end = f"{self._name} {worker.index}", time.time()
        name = worker.job.call.method if worker.job else "load"
        self._spans.append(Span(track=track, name=name + fate, begin=worker.begin, seconds=max(end - worker.begin, 0.0)))
        begin = end - sum(timings.values())
        for part, seconds in timings.items():
            self._spans.append(Span(track=track, name=part, begin=max(begin, worker.begin), seconds=seconds))
            begin += seconds

    def _hand_out(self, waiting: deque[_Job]) -> None:
        free = [worker for worker in self._workers if worker.ref is None and not worker.lost]
        for worker in sorted(free, key=lambda worker: (worker.busy, worker.index)):
            if waiting:
                job = waiting.popleft()
                self._queue_wait.add(time.monotonic() - job.since)
                self._begin(worker, job, getattr(worker.handle, job.call.method).remote(*job.call.args), self._timeout_s)
        self._queue_peak = max(self._queue_peak, len(waiting))

    def _wait(self, waiting: deque[_Job]) -> None:
        """Until one worker answers or is out of time."""
        working = {worker.ref: worker for worker in self._workers if worker.ref is not None}
        if not working:
            raise WorkersFailed(self._nobody(waiting[0]))
        limit = min(worker.deadline for worker in working.values()) - time.monotonic()
        answered, _ = ray.wait(list(working), num_returns=1, timeout=max(limit, 0.0))
        if answered:
            return self._settle(working[answered[0]], waiting)
        for worker in working.values():
            if worker.deadline <= time.monotonic():
                name, seconds = ("timeout_s", self._timeout_s) if worker.job else ("start_timeout_s", self._start_timeout_s)
                self._replace(worker, waiting, f"no answer within {seconds:g} s (workers.{name})")
        return None

    def _settle(self, worker: _Worker, waiting: deque[_Job]) -> None:
        job = worker.job
        try:
            result, timings = ray.get(worker.ref, timeout=self._timeout_s)
        except GetTimeoutError:
            return self._replace(worker, waiting, f"its result did not arrive within {self._timeout_s:g} s (workers.timeout_s)")
        except RayTaskError as error:
            if isinstance(error, FAULTS_OF_A_MACHINE):
                return self._replace(worker, waiting, _one_line(error.cause))
            worker.ref = worker.job = None
            if isinstance(error, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            return self._replace(worker, waiting, _one_line(error))
        self._record(worker, timings)
        worker.ref = worker.job = None
        worker.failed_starts = 0
        worker.busy += sum(timings.values())
        if job is not None:
            job.result, job.done = result, True
        return None

    def _replace(self, worker: _Worker, waiting: deque[_Job], reason: str) -> None:
        """A new actor instead of this one, and its work again from the front of the queue."""
        self._record(worker, {}, fate=" (lost)")
        job, worker.ref, worker.job = worker.job, None, None
        work = job.call.what if job else "loading its models"
        logger.warning("%s worker %d: %s: %s; replacing it", self._name, worker.index, work, reason)
        ray.kill(worker.handle)
        worker.failed_starts += job is None
        worker.lost = worker.failed_starts >= self._max_attempts
        worker.last_fault = reason
        if not worker.lost:
            self._replacements += 1
            self._bring_up(worker)
        if job is not None and not job.done:
            job.attempts += 1
            if job.attempts >= self._max_attempts:
                raise WorkersFailed(self._exhausted(job, reason))
            self._retries += 1
            waiting.appendleft(job)

    def _call_lost_workers_back(self) -> None:
        """One try a run: the machine they need may be there again."""
        for worker in self._workers:
            if worker.lost and not self._closed:
                worker.lost, worker.failed_starts = False, self._max_attempts - 1
                self._bring_up(worker)

    def _exhausted(self, job: _Job, reason: str) -> str:
        return (
            f"{self._name}: {job.call.what}: {job.attempts} of {job.attempts} attempts failed (workers.max_attempts), "
            f"{time.monotonic() - job.since:.1f} s after it was asked for; the last: {reason}"
        )

    def _nobody(self, job: _Job) -> str:
        return (
            f"{self._name}: {job.call.what}: waited {time.monotonic() - job.since:.1f} s, and none of {len(self._workers)} workers "
            f"could load its models in {self._max_attempts} attempts (workers.max_attempts); the last: {self._workers[0].last_fault}"
        )


def _one_line(error: BaseException) -> str:
    """Type and last line: Ray's own errors carry a whole traceback, and end with what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"
