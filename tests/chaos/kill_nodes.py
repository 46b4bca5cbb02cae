"""Work on a real cluster whose nodes are killed: `python -m tests.chaos.kill_nodes pool|learner|run DIRECTORY`.

A process of its own, because a process can be connected to one cluster only. The last line is JSON, for the test to judge.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private.state import state as ray_state

from omr_ray import controller
from omr_ray.config.run import RunConfig
from omr_ray.runs import RunDirectory
from omr_ray.tracking import Tracker
from omr_ray.types import Dialogue, Rollout
from omr_ray.workers.launch import Judge, source_from
from omr_ray.workers.learner import LearnerGroup
from omr_ray.workers.pool import RewardPool, RolloutPool
from tests.chaos.machines import LIMIT, Machines, machines

KILLS = 20
PHASES = ("rollout", "reward", "learner", "checkpoint")
STEPS = 2 * KILLS + 1  # a kill in every other one: what a kill in a checkpoint costs is paid by the next step
CONFIG = Path(__file__).parents[2] / "configs/atelier.yaml"
SMALL = (
    "dialogues_per_step=2",
    "dialogues.rounds=2",
    "sampler.siblings=2",
    "sampler.steps=4",
    "sampler.window=[1,4]",
    "checkpoint.every=1",
)


def same(one: list[Rollout], other: list[Rollout]) -> bool:
    """Equal bits of every image and log-probability."""
    pairs = [
        (a, b)
        for x, y in zip(one, other, strict=True)
        for m, n in zip(x.trajectories, y.trajectories, strict=True)
        for a, b in zip(m, n, strict=True)
    ]
    return all(np.array_equal(a.image, b.image) and np.array_equal(a.log_probs, b.log_probs) for a, b in pairs)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {LIMIT:g} s"
        time.sleep(0.2)


def nodes_of(kind: str) -> set[str]:
    """Nodes on which actors of class `kind` live."""
    actors = ray_state.actor_table(None, actor_state_name="ALIVE").values()
    return {actor["Address"]["NodeID"] for actor in actors if actor["ActorClassName"] == kind}


# -- a pool of two workers, one a node ---------------------------------------------------------------------------------


def pool(directory: Path) -> dict[str, Any]:
    """A node dies in mid-rollout, another joins later; then one gives notice, and another is there."""
    workers = ("workers.rollout={count: 2, num_cpus: 1}", f"workers.timeout_s={LIMIT}", f"workers.start_timeout_s={LIMIT}")
    config = RunConfig.load(CONFIG, [*SMALL, "sampler.steps=10", "sampler.window=[1,10]", *workers])
    dialogues = source_from(config).next(1, 6)
    with machines(cpus=1) as cluster, closing(RolloutPool(config)) as rollout_pool:
        nodes = [cluster.add(), cluster.add()]

        def sampled() -> tuple[list[Rollout], dict[str, float]]:
            return rollout_pool.sample(dialogues, step=1), rollout_pool.metrics()

        wait_for(lambda: sampled()[1]["rollout/up"] == 2, "second worker")
        start = time.monotonic()
        calm, _ = sampled()
        killer = threading.Timer(0.4 * (time.monotonic() - start), cluster.kill, [nodes.pop(0)])
        killer.start()
        killed = sampled()
        killer.join(LIMIT)
        alone = sampled()
        nodes.append(cluster.add())
        wait_for(lambda: sampled()[1]["rollout/up"] == 2, "worker on the new node")
        whole = sampled()
        nodes.append(cluster.add())  # room for the one that must move
        cluster.drain(nodes[0], seconds=LIMIT)
        drained = [sampled() for _ in range(3)]
        wait_for(lambda: sampled()[1]["rollout/up"] == 2, "worker that moved")
        left = nodes[0].node_id not in nodes_of("RolloutWorker")
    runs = [killed, alone, whole, *drained]
    return {
        "same": [same(calm, rollouts) for rollouts, _ in runs],
        "retries": [figures["rollout/retries"] for _, figures in runs],
        "pending": [figures["rollout/pending"] for _, figures in runs],
        "replacements": [figures["rollout/replacements"] for _, figures in runs],
        "left": left,
    }


# -- a learner of two ranks, one a node --------------------------------------------------------------------------------


def learner(directory: Path) -> dict[str, Any]:
    """A node dies for good, and a group of one goes on; another node joins, and the next group is whole again."""
    from tests.ray.test_learner import batch_for, config, difference, make_tiny_sd

    model = str(make_tiny_sd(directory))
    workers = {"learner": {"num_cpus": 1}, "timeout_s": 300, "start_timeout_s": 90}
    settings = config(model, workers=workers, learner={"ranks": 2, "zero_stage": 2, "micro_batch": 2})
    batch, ranks = batch_for(model, 8), []
    with machines(cpus=1) as cluster:
        nodes = [cluster.add(), cluster.add()]
        with closing(LearnerGroup(settings)) as group:
            for step in (1, 2, 3):
                group.step(batch, None, step)
            calm = group.state()
        with closing(LearnerGroup(settings)) as group:

            def stepped(step: int) -> None:
                group.step(batch, None, step)
                ranks.append(group.metrics()["learner/ranks"])

            stepped(1)
            cluster.kill(nodes[0])
            start = time.monotonic()
            stepped(2)
            seconds = time.monotonic() - start
            cluster.add()
            wait_for(lambda: ray.available_resources().get("CPU", 0.0) == 0.0, "bundle on the new node")
            ray.kill(group._ranks[0])
            stepped(3)
            return {"ranks": ranks, "difference": difference(group.state(), calm), "restarts": group.restarts, "seconds": seconds}


# -- a whole run -------------------------------------------------------------------------------------------------------


@dataclass
class Killer:
    """The progress of a run: kills a node in the phase that the plan has for a step, and starts another one after the step.

    Ray starts nodes from the main thread only, which the loop is in; the node that is left has room for all actors.
    """

    cluster: Machines
    nodes: list[Any]
    plan: dict[int, str] = field(default_factory=dict)  # phase by step
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    step: int = 1
    killed: list[tuple[int, str]] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def phase(self, name: str) -> None:
        if self.plan.get(self.step) == name and self._thread is None:
            self._thread = threading.Thread(target=self._kill, args=(name,), daemon=True)
            self._thread.start()

    def _kill(self, phase: str) -> None:
        if phase != "checkpoint":
            time.sleep(self.rng.uniform(0.05, 0.3))
        kind = {"rollout": "RolloutWorker", "reward": "RewardWorker", "learner": "LearnerWorker"}.get(phase)
        hosts = nodes_of(kind) if kind else {node.node_id for node in self.nodes}
        candidates = [node for node in self.nodes if node.node_id in hosts] or self.nodes
        victim = self.rng.choice(candidates)
        self.nodes.remove(victim)
        self.cluster.kill(victim)
        self.killed.append((self.step, phase))

    def advance(self, metrics: Any) -> None:
        """The next step waits for the new node."""
        if self._thread is not None:
            self._thread.join(LIMIT)
            assert not self._thread.is_alive(), "a node outlives its kill"
            self._thread = None
            self.nodes.append(self.cluster.add())
        self.step += 1
        print(f"step {self.step - 1}: killed so far {len(self.killed)}", file=sys.stderr, flush=True)


class Counting:
    """A rollout pool; which samples each step was given, by (dialogue, round, sibling)."""

    def __init__(self, inner: RolloutPool) -> None:
        self._inner = inner
        self.samples: dict[int, list[list[Any]]] = {}
        self.load, self.metrics, self.spans = inner.load, inner.metrics, inner.spans

    def sample(self, dialogues: list[Dialogue], step: int) -> list[Rollout]:
        rollouts = self._inner.sample(dialogues, step)
        made = [t for rollout in rollouts for siblings in rollout.trajectories for t in siblings]
        self.samples.setdefault(step, []).append([[t.dialogue_id, t.round, t.sibling] for t in made])
        return rollouts


def trained(config: RunConfig, directory: Path, killer: Killer) -> dict[int, list[list[Any]]]:
    """A run without evaluations, whose progress `killer` is; the samples of each step."""
    with ExitStack() as stack:
        run = stack.enter_context(closing(RunDirectory(directory, config, resume=False)))
        group = stack.enter_context(closing(LearnerGroup(config)))
        rollout_pool = stack.enter_context(closing(RolloutPool(config)))
        reward_pool = stack.enter_context(closing(RewardPool(config)))
        reward_pool.ready()
        tracker = stack.enter_context(closing(Tracker(directory, **config.tracking.model_dump(), sinks=[])))
        counting = Counting(rollout_pool)
        controller.train(
            config,
            source=source_from(config),
            sampler=counting,
            judge=Judge(config, reward_pool),
            learner=group,
            tracker=tracker,
            checkpoints=run.checkpoints,
            progress=killer,
        )
    return counting.samples


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(directory: Path) -> dict[str, Any]:
    """The same run twice: undisturbed, and with a kill in every other step."""
    workers = (f"workers.timeout_s={LIMIT}", f"workers.start_timeout_s={LIMIT}", "workers.max_attempts=5")
    tracking = ("tracking.tensorboard=false", "learner.ranks=2", "workers.learner={num_cpus: 0.5}")
    config = RunConfig.load(CONFIG, [*SMALL, f"steps={STEPS}", *workers, *tracking])
    order = [phase for phase in PHASES for _ in range(KILLS // len(PHASES))]
    random.Random(3).shuffle(order)
    plan = {2 * index + 2: phase for index, phase in enumerate(order)}  # from step 2 on, in every other one
    with machines(cpus=3) as cluster:
        nodes = [cluster.add(), cluster.add()]
        calm = trained(config, directory / "calm", Killer(cluster, nodes))
        killer = Killer(cluster, nodes, plan)
        disturbed = trained(config, directory / "disturbed", killer)
    seconds = {name: [line["seconds/step"] for line in lines(directory / name / "timings.jsonl")] for name in ("calm", "disturbed")}
    usual = statistics.median(seconds["calm"])
    recovery: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for step, phase in killer.killed:
        recovery[phase].append(sum(seconds["disturbed"][step - 1 : step + 1]) - 2 * usual)
    metrics = {name: lines(directory / name / "metrics.jsonl") for name in ("calm", "disturbed")}
    return {
        "killed": killer.killed,
        "steps": [line["step"] for line in metrics["disturbed"]],
        "same_samples": calm == disturbed,
        "samples": [[len(tries), len(tries[0]), len({tuple(key) for key in tries[0]})] for tries in disturbed.values()],
        "same_metrics": metrics["calm"] == metrics["disturbed"],
        "last": {name: {key: rows[-1][key] for key in ("reward/total", "learner/adapter_norm")} for name, rows in metrics.items()},
        "usual_step_s": usual,
        "recovery_s": recovery,
    }


if __name__ == "__main__":
    scenario, place = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"pool": pool, "learner": learner, "run": run}[scenario](place)))
