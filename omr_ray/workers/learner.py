"""The learner as Ray sees it: one actor a rank, and the group that starts, calls and, after a death, rebuilds them."""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from omr_ray.config.run import RunConfig
from omr_ray.tracking import Span
from omr_ray.types import Batch, LearnerState, RoundPairs, Update, UserError
from omr_ray.workers.call import WorkersFailed
from omr_ray.workers.nodes import room
from omr_ray.workers.placement import amounts, in_trial, learner_group, resources
from omr_ray.workers.supervisor import FAULTS_OF_A_MACHINE

log = logging.getLogger(__name__)
Result = TypeVar("Result")

AGAIN_S = 1.0  # before a rank is asked for again that died before it had a place


class LearnerWorker:
    """One rank. It never restarts alone: a rank that died leaves the others in a collective that cannot finish."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._rank = config, 0

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def address(self) -> tuple[str, int]:
        """Where the ranks meet: this node, a port that is free now."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), listener.getsockname()[1]

    def start(self, rank: int, ranks: int, address: tuple[str, int], local_rank: int, state: LearnerState | None) -> LearnerState | None:
        """Join the group of `ranks` as `rank` and load everything; returns the state to begin with (rank 0)."""
        from omr_ray.loading import device_for
        from omr_ray.workers.learner_engine import join_group  # torch and DeepSpeed stay out of the driver
        from omr_ray.workers.learner_step import LearnerRank

        workers, self._rank = self._config.workers, rank
        device = device_for(workers.learner, "learner")
        join_group(
            rank=rank,
            world_size=ranks,
            local_rank=local_rank,
            address=address[0],
            port=address[1],
            device=device,
            timeout_s=workers.timeout_s,
        )
        self._learner = LearnerRank(self._config, state, device)
        return self._on_rank_0(self._learner.state())

    def step(self, batch: Batch, pairs: RoundPairs | None, step: int) -> tuple[dict[str, float], LearnerState | None, float]:
        """One training step: metrics, the state after it (rank 0), and the seconds that it took."""
        start = time.perf_counter()
        metrics = self._learner.step(batch, pairs, step)
        state = self._on_rank_0(self._learner.state())
        return metrics, state, time.perf_counter() - start

    def _on_rank_0(self, state: LearnerState) -> LearnerState | None:
        return state if self._rank == 0 else None


LearnerActor: Any = ray.remote(max_restarts=0, max_task_retries=0)(LearnerWorker)


class LearnerGroup:
    """`config.learner.ranks` actors in one placement group, driven as one learner.

    The state after each finished step is kept here (an adapter and its two moments: megabytes). When a rank dies or a
    call passes its limit, the whole group is torn down, rebuilt from that state, and the step is done again: a step is
    a function of state, batch and step number, so nothing shows. `workers.max_attempts` limits the tries of one call.

    Where the machines for all ranks are gone, a rebuilt group waits `workers.start_timeout_s` for others and then goes on
    with the ranks that have a place, `learner.min_ranks` at least. The batch stays what it was: each rank takes more rows
    of it, and the update is the same but for rounding. The placement group goes on asking for the rest, and the next
    rebuilt group is whole if it got it.

    Starts from `state`, or a fresh adapter. Raises UserError where the cluster has no room for it.
    """

    def __init__(self, config: RunConfig, state: LearnerState | None = None) -> None:
        self.config = config
        self.restarts = 0
        self._measured: tuple[float, int] = (time.monotonic(), 0)  # when metrics() was asked for last, and the restarts by then
        self._spans: list[Span] = []
        self._state = state
        self._ranks: list[Any] = []
        self._placement = learner_group(config)
        self._attempts("the learner's start", lambda: None)

    def step(self, batch: Batch, pairs: RoundPairs | None, step: int) -> Update:
        """One training step (numbered from 1) on all ranks: new weights, and metrics."""
        shared = (ray.put(batch), ray.put(pairs), step)
        limit = self.config.workers.timeout_s
        results = self._attempts(f"learner step {step}", lambda: self._call("step", [shared] * len(self._ranks), limit))
        end = time.time()
        self._spans += [
            Span(track=f"learner {rank}", name="step", begin=end - seconds, seconds=seconds) for rank, (*_, seconds) in enumerate(results)
        ]
        metrics, state, _ = results[0]
        self._state = state
        return Update(policy_version=state.policy_version, weights=state.weights, metrics=metrics)

    def state(self) -> LearnerState:
        """The state after the last finished step, or the one the group started with."""
        assert self._state is not None
        return self._state

    def metrics(self) -> dict[str, float]:
        """Since the last call of `spans`: rebuilt groups, and the share of time in which each rank did nothing. The ranks now."""
        (since, restarts), now = self._measured, time.monotonic()
        self._measured = (now, self.restarts)
        figures: dict[str, float] = {"learner/restarts": self.restarts - restarts, "learner/ranks": len(self._ranks)}
        for rank in range(len(self._ranks)):
            busy = sum(span.seconds for span in self._spans if span.track == f"learner {rank}")
            figures[f"learner/idle_share/{rank}"] = min(max(1 - busy / max(now - since, 1e-9), 0.0), 1.0)
        return figures

    def spans(self) -> list[Span]:
        """What each rank did, since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def close(self) -> None:
        """End the actors and give their resources back."""
        self._tear_down()
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Start every rank that has a place on the state that is held."""
        limit = self.config.workers.start_timeout_s
        self._ranks = [self._rank(bundle) for bundle in range(self.config.learner.ranks)]
        nodes = self._placed(limit)
        address = _gather([self._ranks[0].address.remote()], limit)[0]
        # Ray shows an actor its own GPU only, which then is device 0; without GPUs it is the rank's place on its node.
        places = [0] * len(nodes) if self.config.workers.learner.num_gpus else _places(nodes)
        state = ray.put(self._state)
        starts = [(rank, len(places), address, place, state) for rank, place in enumerate(places)]
        self._state = self._call("start", starts, limit)[0]

    def _placed(self, limit: float) -> list[str]:
        """The nodes of the ranks: of all, or, after `limit`, of those that have a place. The others are given up.

        Raises WorkersFailed where these are too few.
        """
        deadline, wanted, nodes = time.monotonic() + limit, len(self._ranks), dict[int, str]()
        asked = {rank.node.remote(): bundle for bundle, rank in enumerate(self._ranks)}
        while asked and (ready := ray.wait(list(asked), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))[0]):
            bundle = asked.pop(ready[0])
            try:
                nodes[bundle] = ray.get(ready[0], timeout=limit)
            except RayActorError:  # Ray gives an actor up whose bundle's machine dies: the bundle may find another
                time.sleep(AGAIN_S)
                self._ranks[bundle] = self._rank(bundle)
                asked[self._ranks[bundle].node.remote()] = bundle
        for bundle in asked.values():
            ray.kill(self._ranks[bundle])
        self._ranks = [self._ranks[bundle] for bundle in sorted(nodes)]
        fewest = self.config.learner.min_ranks
        if len(nodes) < wanted:
            log.warning("learner: a place for %d of %d ranks within %g s", len(nodes), wanted, limit)
        if len(nodes) < fewest:
            self.close()
            raise WorkersFailed(
                f"learner: a place for {len(nodes)} of {wanted} ranks within {limit:g} s (workers.start_timeout_s), and learner.min_ranks "
                f"is {fewest}; each asks for {amounts(resources(self.config.workers.learner))}, the cluster has {room()}"
            )
        return [nodes[bundle] for bundle in sorted(nodes)]

    def _rank(self, bundle: int) -> Any:
        wanted = resources(self.config.workers.learner)
        options: dict[str, Any] = {"num_cpus": wanted.get("CPU", 0), "num_gpus": wanted.get("GPU", 0)}
        if self._placement is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=bundle)
        else:
            options |= in_trial(self.config, "learner", bundle)
        return LearnerActor.options(**options).remote(self.config)

    def _tear_down(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    # -- calling -------------------------------------------------------------------------------------------------------

    def _call(self, method: str, arguments: Sequence[tuple], limit: float) -> list[Any]:
        return _gather([getattr(rank, method).remote(*args) for rank, args in zip(self._ranks, arguments, strict=True)], limit)

    def _attempts(self, what: str, call: Callable[[], Result]) -> Result:
        """`call` on a group that stands; after a fault of a machine on one that was rebuilt.

        Raises UserError as a rank raised it, WorkersFailed after `max_attempts`, and a programming error at once.
        """
        limit = self.config.workers.max_attempts
        for attempt in range(1, limit + 1):
            try:
                if not self._ranks:
                    self._build()
                return call()
            except RayError as error:
                self._tear_down()
                if isinstance(error, RayTaskError) and not isinstance(error.cause, FAULTS_OF_A_MACHINE):
                    self.close()
                    raise (error.cause if isinstance(error.cause, UserError) else error) from None
                fault = error
                self.restarts += 1
                log.warning("%s: attempt %d of %d failed, the group is rebuilt: %s", what, attempt, limit, _summary(error))
        self.close()
        raise WorkersFailed(f"{what} failed {limit} times (workers.max_attempts), the last time with {_summary(fault)}") from fault


def _gather(references: Sequence[Any], limit: float) -> list[Any]:
    """All results within `limit` seconds. The first error is raised as it comes: other ranks may wait for the dead one."""
    deadline, pending = time.monotonic() + limit, list(references)
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise GetTimeoutError(f"no answer within {limit:.0f} s")
        ray.get(ready)
    return ray.get(list(references))


def _places(nodes: Sequence[str]) -> list[int]:
    """For each rank, how many ranks before it are on the same node."""
    seen: Counter[str] = Counter()
    places = []
    for node in nodes:
        places.append(seen[node])
        seen[node] += 1
    return places


def _summary(error: Exception) -> str:
    """The last line of an error: Ray's messages carry a whole traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
