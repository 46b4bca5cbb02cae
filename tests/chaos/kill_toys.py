"""Actors that do next to nothing, on nodes that come and go: `python -m tests.chaos.kill_toys DIRECTORY`; the last line is JSON.

The supervisor and the learner group are the real ones, and so are the nodes. Only what the actors do is not: it costs nothing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing
from typing import Any

import ray
from ray import cloudpickle

from omr_ray.config.run import RunConfig
from omr_ray.types import LearnerState
from omr_ray.workers import learner
from omr_ray.workers.call import Call
from omr_ray.workers.nodes import node_of
from omr_ray.workers.supervisor import Supervisor
from tests.chaos.machines import LIMIT, Machines, machines

cloudpickle.register_pickle_by_value(sys.modules[__name__])
SECONDS = 3.0  # of a call that is to be hit


class Toy:
    def ready(self) -> tuple[None, dict[str, float]]:
        return None, {}

    def work(self, value: int, seconds: float) -> tuple[tuple[int, str], dict[str, float]]:
        time.sleep(seconds)
        return (value, ray.get_runtime_context().get_node_id()), {"work": seconds}


class ToyRank:
    """What a rank of the learner tells and is told."""

    def __init__(self, config: RunConfig) -> None:
        self.told: Any = None

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def address(self) -> tuple[str, int]:
        return "here", 1

    def start(self, rank: int, ranks: int, address: Any, place: int, state: LearnerState | None) -> LearnerState | None:
        self.told = (rank, ranks)
        return LearnerState(policy_version=0, weights={}) if rank == 0 else None

    def step(self, batch: Any, pairs: Any, step: int) -> tuple[dict[str, float], LearnerState | None, float]:
        rank, ranks = self.told
        return {"ranks": float(ranks)}, LearnerState(policy_version=step, weights={}) if rank == 0 else None, 0.0


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {LIMIT:g} s"
        time.sleep(0.2)


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def workers(cluster: Machines) -> dict[str, Any]:
    """Two workers, one a node: a node dies in mid-call, another joins later; then one gives notice, and another is there."""
    nodes = [cluster.add(), cluster.add()]
    start = lambda _: ray.remote(Toy).options(num_cpus=1, max_restarts=-1, max_task_retries=0).remote()  # noqa: E731
    limits = {"max_attempts": 3, "timeout_s": LIMIT, "start_timeout_s": LIMIT, "asked": "1 CPU"}
    found: list[tuple[list[int], set[str], dict[str, float]]] = []
    with closing(Supervisor("toy", start, count=2, **limits)) as toys:

        def run(seconds: float) -> tuple[list[int], set[str], dict[str, float]]:
            results = toys.run([Call(method="work", args=(value, seconds), what=str(value)) for value in range(4)])
            say(f"{results}")
            return [value for value, _ in results], {node for _, node in results}, toys.metrics()

        wait_for(lambda: run(0.2)[2]["toy/up"] == 2, "second worker")
        killer = threading.Timer(1.0, cluster.kill, [nodes[0]])
        killer.start()
        found.append(run(SECONDS))
        killer.join(LIMIT)
        found.append(run(0.2))
        nodes.append(cluster.add())
        wait_for(lambda: run(0.2)[2]["toy/up"] == 2, "worker on the new node")
        found.append(run(0.5))
        nodes.append(cluster.add())  # room for the one that must move
        old = next(worker.handle for worker in toys._workers if node_of(worker.handle) == nodes[1].node_id)
        drain = threading.Timer(1.0, cluster.drain, [nodes[1], LIMIT])
        drain.start()
        found.append(run(2 * SECONDS))
        drain.join(LIMIT)
        wait_for(lambda: run(0.2)[2]["toy/up"] == 2, "worker that moved")
        found.append(run(0.5))
        gone = node_of(old) is None
    cluster.kill(nodes[1])
    return {
        "values": [values for values, *_ in found],
        "figures": [{name.removeprefix("toy/"): figures[name] for name in figures} for *_, figures in found],
        "left": gone and nodes[1].node_id not in found[-1][1],
    }


def ranks(cluster: Machines) -> dict[str, Any]:
    """Two ranks on the two nodes that are there: one dies for good; then another joins."""
    learner.LearnerActor = ray.remote(max_restarts=0, max_task_retries=0)(ToyRank)
    limits = {"timeout_s": LIMIT, "start_timeout_s": 60, "learner": {"num_cpus": 1}}
    config = RunConfig.model_validate({"name": "toy", "learner": {"ranks": 2}, "workers": limits})
    found: list[float] = []
    with closing(learner.LearnerGroup(config)) as group:

        def step(number: int) -> None:
            found.append(group.step(None, None, number).metrics["ranks"])
            say(f"step {number}: {found[-1]} ranks")

        step(1)
        victim = ray.get(group._ranks[0].node.remote(), timeout=LIMIT)
        cluster.kill(next(node for node in cluster.nodes() if node.node_id == victim))
        step(2)
        cluster.add()
        wait_for(lambda: ray.available_resources().get("CPU", 0.0) == 0.0, "bundle on the new node")
        ray.kill(group._ranks[0])
        step(3)
    return {"ranks": found, "restarts": group.restarts}


if __name__ == "__main__":
    with machines(cpus=1) as cluster:
        say("connected")
        result = workers(cluster)
        say(json.dumps(result))
        print(json.dumps(result | ranks(cluster)))
