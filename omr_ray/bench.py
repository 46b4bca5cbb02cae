"""How fast a config runs on this machine, measured with the real actors: rollout, learner, or the whole loop.

Every figure is the median over `repeats` calls after one that is not counted (it loads models and warms caches).
Weights are the config's model without an adapter; the learner's rewards are drawn at random, which costs the same.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import psutil

from omr_ray import controller, overlapped
from omr_ray.config.run import RunConfig
from omr_ray.tracking import Span
from omr_ray.types import LearnerState, RewardBreakdown, Rollout, ScoredRollout, Update, UserError

Result = TypeVar("Result")
SAMPLE_EVERY_S = 1.0  # reading it costs milliseconds a process


def bench(config: RunConfig, *, what: str, repeats: int) -> dict[str, Any]:
    """Measure "rollout", "learner", "end-to-end" or "all"; returns plain values. Raises UserError for no repeats."""
    if repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {repeats}; raise it")
    from omr_ray.ray_session import connected
    from omr_ray.workers.placement import total_cpus

    measures = {"rollout": _rollout, "learner": _learner, "end-to-end": _end_to_end}
    results: dict[str, Any] = {}
    with connected(total_cpus(config)):
        for name, measure in measures.items():
            if what in (name, "all"):
                print(f"omr-ray: measuring {name}, {repeats} times", file=sys.stderr, flush=True)
                with PeakMemory() as memory:
                    results[name] = measure(config, repeats)
                results[name] |= {"peak_memory_gib": memory.peak / 2**30, "processes": memory.processes}
    return {"config": config.name, "weights": f"{_model(config)}, no adapter", "repeats": repeats, "machine": _machine(), **results}


def _rollout(config: RunConfig, repeats: int) -> dict[str, Any]:
    """One step's dialogues on the rollout workers."""
    from omr_ray.workers.launch import source_from
    from omr_ray.workers.pool import RolloutPool

    source = source_from(config)
    with closing(RolloutPool(config)) as pool:
        seconds, rollouts = _timed(lambda step: pool.sample(source.next(step, config.dialogues_per_step), step), repeats)
    images = len(_trajectories(rollouts))
    return _seconds(seconds) | {
        "images": images,
        "images_per_s": images / statistics.median(seconds),
        "bytes_per_trajectory": controller.rollout_metrics(rollouts)["rollout/bytes_per_trajectory"],
    }


def _learner(config: RunConfig, repeats: int) -> dict[str, Any]:
    """One step's batch, sampled once, through the learner group: all passes and minibatches."""
    from omr_ray.workers.launch import source_from
    from omr_ray.workers.learner import LearnerGroup
    from omr_ray.workers.pool import RolloutPool

    dialogues = source_from(config).next(1, config.dialogues_per_step)
    with closing(LearnerGroup(config)) as learner:
        with closing(RolloutPool(config)) as pool:
            scored = randomly_scored(pool.sample(dialogues, 1), config.seed)
        batch, pairs = controller.learner_inputs(config, scored, 1)
        seconds, _ = _timed(lambda step: learner.step(batch, pairs, step), repeats)
    trained = len(batch) * config.algorithm.passes
    return _seconds(seconds) | {"trained_steps": trained, "trained_steps_per_s": trained / statistics.median(seconds)}


def _end_to_end(config: RunConfig, repeats: int) -> dict[str, Any]:
    """The training loop itself, without evaluation and checkpoints on disk."""
    from omr_ray.workers.launch import Judge, source_from
    from omr_ray.workers.learner import LearnerGroup
    from omr_ray.workers.pool import RewardPool, RolloutPool

    notes = _Notes()
    # The learner reserves first: it needs a whole place for every rank, the other pools take what is left.
    with (
        closing(LearnerGroup(config)) as learner,
        closing(RolloutPool(config)) as rollout_pool,
        closing(RewardPool(config)) as reward_pool,
    ):
        loop = controller.train if config.overlap is None else overlapped.train
        loop(
            config.model_copy(update={"steps": repeats + 1}),
            source=source_from(config),
            sampler=rollout_pool,
            judge=Judge(config, reward_pool),
            learner=learner,
            tracker=notes,
            checkpoints=notes,
            progress=notes,
        )
    counted = notes.timings[1:]
    prefix = "seconds/"
    names = [name for name in counted[0] if name.startswith(prefix)]
    phases = {name.removeprefix(prefix): statistics.median(step[name] for step in counted) for name in names}
    phases.pop("checkpoint", None)
    images, trained = notes.metrics[-1]["rollout/samples"], notes.metrics[-1]["learner/trained_steps"]
    return {
        "seconds_by_phase": phases,
        "images_per_s": images / phases["step"],
        "trained_steps_per_s": trained / phases["step"],
        "controller_share": phases["controller"] / phases["step"],
    }


def randomly_scored(rollouts: Sequence[Rollout], seed: int) -> list[ScoredRollout]:
    """Rewards drawn from a normal distribution: a learner's time does not depend on them."""
    rng = np.random.default_rng(seed)
    return [
        ScoredRollout(
            rollout=rollout,
            rewards=tuple(
                tuple(RewardBreakdown(terms={}, weights={}, total=float(rng.standard_normal())) for _ in siblings)
                for siblings in rollout.trajectories
            ),
        )
        for rollout in rollouts
    ]


class PeakMemory:
    """Largest memory of this process and all that it started, on this machine only: proportional set size, sampled."""

    def __init__(self) -> None:
        self.peak = self.processes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        sizes = [size for process in (this, *this.children(recursive=True)) if (size := _memory(process))]
        if sum(sizes) > self.peak:
            self.peak, self.processes = sum(sizes), len(sizes)


def _memory(process: psutil.Process) -> int:
    """Bytes of one process; pages that several share count for each by its part, where the system knows it."""
    try:
        full = process.memory_full_info()
        return getattr(full, "pss", full.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


class _Notes:
    """Tracker, checkpointer and progress of a run that nobody resumes."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []
        self.timings: list[Mapping[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append(metrics)

    def time(self, step: int, seconds: Mapping[str, float]) -> None:
        self.timings.append(seconds)

    def spans(self, step: int, spans: Sequence[Span]) -> None:
        pass

    def save(self, step: int, learner: LearnerState, judge: Mapping[str, Any], older: Sequence[Update] = ()) -> None:
        pass

    def phase(self, name: str) -> None:
        pass

    def advance(self, metrics: Mapping[str, float]) -> None:
        pass


def _timed(call: Callable[[int], Result], repeats: int) -> tuple[list[float], Result]:
    """Seconds of `repeats` calls, numbered from 2, and what the last one returned; call 1 is not counted."""
    result = call(1)
    seconds = []
    for step in range(2, repeats + 2):
        start = time.perf_counter()
        result = call(step)
        seconds.append(time.perf_counter() - start)
    return seconds, result


def _seconds(values: Sequence[float]) -> dict[str, Any]:
    return {"seconds": {"median": statistics.median(values), "min": min(values), "max": max(values)}}


def _trajectories(rollouts: Sequence[Rollout]) -> list[Any]:
    return [t for rollout in rollouts for siblings in rollout.trajectories for t in siblings]


def _model(config: RunConfig) -> str:
    return getattr(config.model, "path", config.model.kind)


def _machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "ray", "diffusers")}
    memory = psutil.virtual_memory().total / 2**30
    return {
        "cpus": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **packages,
    }
