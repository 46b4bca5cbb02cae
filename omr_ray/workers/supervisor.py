"""Calls on a set of equal actors: the least loaded one gets the next call, and one that dies or hangs is replaced.

    waiting calls ──► free worker ──► answer ──────────────────────────► results, in the order of the calls
          ▲               │ dead, out of time, or a fault of its machine
          └── again ◄─────┴──► killed; a new actor waits for a place, loads its models, then takes calls

A worker holds one call at a time, so its time limit counts from the moment it starts to work. Calls must be
idempotent: whatever a call depends on is among its arguments. Threads take turns: one `run` at a time.

The set grows and shrinks with the cluster. An actor that no machine has room for yet is *pending*: it joins when one has,
and is no failed start. A worker whose machine has given notice (it is *draining*) finishes its call while the actor that
takes its place starts elsewhere. A run goes on as long as somebody is up.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from omr_ray.tracking import Span
from omr_ray.types import UserError
from omr_ray.workers.call import Call, Job, Worker, WorkersFailed, one_line
from omr_ray.workers.record import Record
from omr_ray.workers.runtime import RayRuntime, Runtime

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at who has a place and which machines leave; each asks Ray's GCS
CLOSE_LIMIT_S = 60.0  # for a run of another thread to hear that its actors are gone
FAULTS_OF_A_MACHINE = (RuntimeError, OSError, MemoryError)  # torch raises RuntimeError for a broken or full GPU


class Supervisor:
    """Starts `count` actors at once and without waiting; the first `run` waits for the first of them.

    `start(index)` starts one; what replaces it gets the same index. `asked` is what one asks the cluster for, for messages.

    Errors of `run`: UserError as raised by a worker; WorkersFailed after `max_attempts` of one call, when no worker can be
    started, or when there was a place for none of them for `start_timeout_s`; a programming error as Ray reports it, at
    once, because doing it again would not help.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[int], Any],
        *,
        count: int,
        max_attempts: int,
        timeout_s: float,
        start_timeout_s: float,
        asked: str,
        runtime: Runtime | None = None,
    ) -> None:
        self._name, self._start, self._asked, self._runtime = name, start, asked, runtime or RayRuntime()
        self._max_attempts, self._timeout_s, self._start_timeout_s = max_attempts, timeout_s, start_timeout_s
        self._lock, self._closed = threading.Lock(), False
        self._record = Record(name)
        self._next_look, self._stranded = 0.0, inf  # monotonic: when to look again; since when nobody has a place
        self._open = 0  # calls of this run that have no answer yet
        self._working: dict[Any, Worker] = {}  # by what they work on
        self._deadlines: list[tuple[float, int, Any]] = []  # a heap; of what has been answered, too
        self._numbers = itertools.count()
        self._workers = [Worker(index) for index in range(count)]
        self._leaving: list[Worker] = []
        for worker in self._workers:
            self._bring_up(worker)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """The results of `calls`, in their order, whoever did them."""
        jobs = [Job(call) for call in calls]
        waiting = deque(jobs)
        with self._lock:
            self._open, self._stranded = len(jobs), inf
            try:
                self._call_lost_workers_back()
                while self._open:
                    if self._closed:
                        raise WorkersFailed(f"{self._name}: closed before {jobs[-1].call.what} was done")
                    self._look(jobs)
                    self._hand_out(waiting)
                    self._wait(waiting)
            finally:
                for job in jobs:
                    job.done = True
        return [job.result for job in jobs]

    def metrics(self) -> dict[str, float]:
        """Since the last call: retries, replacements, share of time in which each worker did nothing.

        Now: workers that are up, that wait for a place (pending), whose machine leaves (draining). The queue: how many
        calls waited at most for a worker, and how long one waited on average.
        """
        with self._lock:
            up = sum(not worker.lost and (worker.ref is None or worker.job is not None) for worker in self._workers)
            pending = sum(not worker.lost and not worker.placed for worker in self._workers)
            busy = {worker.index: worker.busy for worker in self._workers}
            for worker in self._workers:
                worker.busy = 0.0
            return self._record.figures(busy=busy, up=up, pending=pending, draining=len(self._leaving))

    def spans(self) -> list[Span]:
        """What each worker did, since the last call."""
        with self._lock:
            return self._record.spans()

    def close(self) -> None:
        """Kill every actor. A `run` of another thread ends with WorkersFailed."""
        self._closed = True
        self._kill()  # so that a run that waits for one hears of it
        ended = self._lock.acquire(timeout=CLOSE_LIMIT_S)
        self._kill()  # those that it started meanwhile
        if ended:
            self._lock.release()

    def _kill(self) -> None:
        for worker in [*self._workers, *self._leaving]:
            self._runtime.kill(worker.handle)

    def _bring_up(self, worker: Worker) -> None:
        worker.handle, worker.placed = self._start(worker.index), False
        self._make_ready(worker, inf)

    def _make_ready(self, worker: Worker, limit: float) -> None:
        self._begin(worker, None, self._runtime.call(worker.handle, "ready", ()), limit)

    def _begin(self, worker: Worker, job: Job | None, ref: Any, limit: float) -> None:
        worker.ref, worker.job, worker.begin = ref, job, time.time()
        self._working[ref] = worker
        self._limit(worker, limit)

    def _limit(self, worker: Worker, seconds: float) -> None:
        """So long from now may what it works on take."""
        worker.deadline = time.monotonic() + seconds
        heapq.heappush(self._deadlines, (worker.deadline, next(self._numbers), worker.ref))

    def _rest(self, worker: Worker) -> None:
        del self._working[worker.ref]
        worker.ref = worker.job = None
        if worker.leaving:
            self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        self._leaving.remove(worker)
        self._runtime.kill(worker.handle)

    # -- machines that come and go -------------------------------------------------------------------------------------

    def _look(self, jobs: Sequence[Job]) -> None:
        """Every few seconds: who has a place now, and whose machine leaves. WorkersFailed where nobody had one for too long."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for worker in self._workers:
            if worker.ref is not None and not worker.placed and self._runtime.node(worker.handle) is not None:
                worker.placed = True
                self._limit(worker, self._start_timeout_s)
        gone = self._runtime.draining()
        for worker in list(self._workers) if gone else ():
            node = None if worker.lost else self._runtime.node(worker.handle)
            if node is not None and node in gone:
                self._leave(worker, gone[node])
        if self._leaving or any(worker.placed and not worker.lost for worker in self._workers):
            self._stranded = inf
            return
        self._stranded = min(self._stranded, now)
        if now - self._stranded >= self._start_timeout_s:
            raise WorkersFailed(self._no_place(next(job for job in jobs if not job.done), now - self._stranded))

    def _leave(self, worker: Worker, gone: float) -> None:
        """Another actor in its place, at once; it has until `gone` (unix seconds) to finish its call."""
        logger.warning("%s worker %d: its node leaves; another one starts elsewhere", self._name, worker.index)
        self._record.replacements += 1
        worker.leaving = True
        self._leaving.append(worker)
        if worker.job is not None:
            self._limit(worker, min(worker.deadline - time.monotonic(), gone - time.time()))
        elif worker.ref is not None:
            self._rest(worker)
        else:
            self._let_go(worker)
        self._workers[worker.index] = Worker(worker.index, last_fault="its node left")
        self._bring_up(self._workers[worker.index])

    def _ask_the_free(self) -> None:
        """A death may be that of a whole machine: a call handed to another of its workers would be lost for nothing."""
        for worker in self._workers:
            if worker.ref is None and not worker.lost:
                self._make_ready(worker, self._start_timeout_s)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _note(self, worker: Worker, timings: Mapping[str, float], fate: str = "") -> None:
        self._record.span(worker.index, (worker.job.call.method if worker.job else "load") + fate, worker.begin, timings)

    def _hand_out(self, waiting: deque[Job]) -> None:
        if not waiting:
            return
        free = [worker for worker in self._workers if worker.ref is None and not worker.lost]
        for worker in sorted(free, key=lambda worker: (worker.busy, worker.index)):
            if waiting:
                job = waiting.popleft()
                self._record.queue_wait.add(time.monotonic() - job.since)
                self._begin(worker, job, self._runtime.call(worker.handle, job.call.method, job.call.args), self._timeout_s)
        self._record.queue_peak = max(self._record.queue_peak, len(waiting))

    def _wait(self, waiting: deque[Job]) -> None:
        """Until workers answer, one is out of time, or it is time to look at the machines."""
        if not self._working:
            raise WorkersFailed(self._nobody(waiting[0]))
        while self._deadlines[0][2] not in self._working:
            heapq.heappop(self._deadlines)
        until = min(self._deadlines[0][0], self._next_look)
        answered = self._runtime.wait(list(self._working), max(until - time.monotonic(), 0.0))
        for ref in answered:
            self._settle(self._working[ref], waiting)
        if answered:
            return
        for worker in list(self._working.values()):
            if worker.deadline <= time.monotonic():
                name, seconds = ("timeout_s", self._timeout_s) if worker.job else ("start_timeout_s", self._start_timeout_s)
                late = "its node leaves before it is done" if worker.leaving else f"no answer within {seconds:g} s (workers.{name})"
                self._replace(worker, waiting, late)

    def _settle(self, worker: Worker, waiting: deque[Job]) -> None:
        job = worker.job
        try:
            result, timings = self._runtime.get(worker.ref, self._timeout_s)
        except GetTimeoutError:
            return self._replace(worker, waiting, f"its result did not arrive within {self._timeout_s:g} s (workers.timeout_s)")
        except RayTaskError as error:
            if isinstance(error, FAULTS_OF_A_MACHINE):
                return self._replace(worker, waiting, one_line(error.cause))
            self._rest(worker)
            if isinstance(error, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            self._ask_the_free()
            return self._replace(worker, waiting, one_line(error))
        self._note(worker, timings)
        self._rest(worker)
        worker.placed, worker.failed_starts = True, 0
        worker.busy += sum(timings.values())
        if job is not None and not job.done:
            job.result, job.done = result, True
            self._open -= 1
        return None

    def _replace(self, worker: Worker, waiting: deque[Job], reason: str) -> None:
        """A new actor instead of this one, if it has none yet, and its work again from the front of the queue."""
        self._note(worker, {}, fate=" (lost)")
        job = worker.job
        work = job.call.what if job else "loading its models"
        logger.warning("%s worker %d: %s: %s; replacing it", self._name, worker.index, work, reason)
        worker.last_fault = reason
        self._rest(worker)
        if not worker.leaving:
            self._runtime.kill(worker.handle)
            worker.failed_starts += job is None
            worker.lost = worker.failed_starts >= self._max_attempts
        if not worker.leaving and not worker.lost:
            self._record.replacements += 1
            self._bring_up(worker)
        if job is not None and not job.done:
            job.attempts += not worker.leaving  # that its node was to go is not the call's fault
            if job.attempts >= self._max_attempts:
                raise WorkersFailed(self._exhausted(job, reason))
            self._record.retries += 1
            waiting.appendleft(job)

    def _call_lost_workers_back(self) -> None:
        """One try a run: the machine they need may be there again."""
        for worker in self._workers:
            if worker.lost and not self._closed:
                worker.lost, worker.failed_starts = False, self._max_attempts - 1
                self._bring_up(worker)

    def _exhausted(self, job: Job, reason: str) -> str:
        return (
            f"{self._name}: {job.call.what}: {job.attempts} of {job.attempts} attempts failed (workers.max_attempts), "
            f"{time.monotonic() - job.since:.1f} s after it was asked for; the last: {reason}"
        )

    def _nobody(self, job: Job) -> str:
        return (
            f"{self._name}: {job.call.what}: waited {time.monotonic() - job.since:.1f} s, and none of {len(self._workers)} workers "
            f"could load its models in {self._max_attempts} attempts (workers.max_attempts); the last: {self._workers[0].last_fault}"
        )

    def _no_place(self, job: Job, seconds: float) -> str:
        faults = [worker.last_fault for worker in self._workers if worker.last_fault]
        return (
            f"{self._name}: {job.call.what}: waited {seconds:.1f} s for a place for any of {len(self._workers)} workers "
            f"(workers.start_timeout_s); each asks for {self._asked}, the cluster has {self._runtime.room()}"
            + (f"; the last fault: {faults[0]}" if faults else "")
        )
