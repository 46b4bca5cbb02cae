"""What the controller itself costs, over simulated workers: no Ray, no models, no waiting.

The loop, the pools and their supervisors, the judge's arithmetic, collate, metrics and the files of a run are the real
ones. What the workers would do is drawn: an answer has the real shapes, and comes after a time of the worker's own, so in
any order. Time is virtual. Messages are pickled as Ray does it, arrays beside the pickle, and what is sent is copied; what
the simulated workers themselves take is not counted. Ray's own share (submission, scheduling, the way of the bytes) is not
in the figures.
"""

from __future__ import annotations

import heapq
import itertools
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from omr_ray import controller, overlapped
from omr_ray.config.run import RunConfig
from omr_ray.plan import shapes_of
from omr_ray.plan.work import executed_steps, longest_dialogue
from omr_ray.tracking import Span, Tracker
from omr_ray.types import Batch, Dialogue, LearnerState, Rollout, Round, RoundPairs, Trajectory, Update
from omr_ray.workers.runtime import PoolName

WORKERS = (8, 64, 256, 1024)
ROLLOUTS_PER_REWARD_WORKER = 8
SPREAD = 0.3  # of the logarithm of a call's time: a straggler takes twice the median
MEMORY_STEPS = 1000  # on the fewest workers; the first tenth is not counted
DRAWN = 64  # trajectories whose arrays differ


def measure(config: RunConfig, repeats: int, workers: Sequence[int] = WORKERS, memory_steps: int = MEMORY_STEPS) -> dict[str, Any]:
    """Milliseconds of the controller a trajectory by number of rollout workers, and the driver's memory over many steps."""
    costs = {}
    for count in workers:
        print(f"omr-ray: {count} simulated rollout workers, {repeats} steps", file=sys.stderr, flush=True)
        costs[str(count)] = _cost(_scaled(config, count), repeats)
    first, last = (costs[str(count)]["ms_per_trajectory"] for count in (workers[0], workers[-1]))
    print(f"omr-ray: memory over {memory_steps} steps", file=sys.stderr, flush=True)
    memory = _memory(_scaled(config, workers[0]), memory_steps)
    return {"workers": costs, "most_to_fewest": last / first, "memory": memory}


def _scaled(config: RunConfig, count: int) -> RunConfig:
    """A dialogue a step and rollout worker: the controller's work grows with the workers."""
    reward = max(1, count // ROLLOUTS_PER_REWARD_WORKER)
    pools = {"rollout": {"count": count}, "reward": {"count": reward}}
    workers = {name: getattr(config.workers, name).model_copy(update=changes) for name, changes in pools.items()}
    return config.model_copy(update={"dialogues_per_step": count, "workers": config.workers.model_copy(update=workers)})


def _cost(config: RunConfig, repeats: int) -> dict[str, Any]:
    """The first step starts the workers and is not counted."""
    marks = _run(config, repeats + 1, lambda simulation: time.process_time() - simulation.seconds)
    trajectories = config.samples_per_step * longest_dialogue(config, [])
    return {
        "reward_workers": config.workers.reward.count,
        "trajectories_per_step": trajectories,
        "ms_per_trajectory": 1e3 * statistics.median(np.diff(marks)) / trajectories,
    }


def _memory(config: RunConfig, steps: int) -> dict[str, Any]:
    """Resident memory of this process after every step, MiB, and the slope of a straight line through it."""
    process = psutil.Process()
    sizes = np.array(_run(config, steps, lambda _: process.memory_info().rss)) / 2**20
    counted = sizes[steps // 10 :]
    slope = np.polyfit(np.arange(len(counted)), counted, 1)[0] if len(counted) > 1 else 0.0
    return {
        "rollout_workers": config.workers.rollout.count,
        "steps": steps,
        "first_mib": counted[0],
        "last_mib": counted[-1],
        "kib_per_step": 1024 * slope,
    }


def _run(config: RunConfig, steps: int, mark: Callable[[Simulation], float]) -> list[float]:
    """A run of `steps` steps; what `mark` says after each."""
    from omr_ray.workers.launch import Judge
    from omr_ray.workers.pool import RewardPool, RolloutPool

    config = config.model_copy(update={"steps": steps})
    simulation = Simulation(config)
    rollout, reward = SimulatedRuntime(simulation), SimulatedRuntime(simulation)
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(Tracker(Path(directory), tensorboard=config.tracking.tensorboard)) as tracker,
        closing(RolloutPool(config, rollout)) as rollout_pool,
        closing(RewardPool(config, reward)) as reward_pool,
    ):
        marks = _Marks(lambda: mark(simulation))
        loop = controller.train if config.overlap is None else overlapped.train
        loop(
            config,
            source=simulation,
            sampler=rollout_pool,
            judge=Judge(config, reward_pool),
            learner=simulation,
            tracker=tracker,
            checkpoints=marks,
            progress=marks,
        )
    return marks.values


class _Marks:
    """Progress that asks for a figure after every step; and checkpoints that are not written."""

    def __init__(self, mark: Callable[[], float]) -> None:
        self._mark = mark
        self.values: list[float] = []

    def phase(self, name: str) -> None:
        pass

    def advance(self, metrics: Mapping[str, float]) -> None:
        self.values.append(self._mark())

    def save(self, step: int, learner: LearnerState, judge: Mapping[str, Any], older: Sequence[Update] = ()) -> None:
        pass


# -- simulated workers -------------------------------------------------------------------------------------------------


class Simulation:
    """What the workers make, in the real shapes of `config`; also a source of dialogues, and a learner.

    `seconds` is the processor time that this took: it is not the controller's.
    """

    def __init__(self, config: RunConfig) -> None:
        shape, sampler = shapes_of(config)[0], config.sampler
        pixels = (sampler.height or shape.pixels[0], sampler.width or shape.pixels[1])
        latent = (shape.latent_channels, *(side // shape.vae_factor for side in pixels))
        self.seconds = 0.0
        self._siblings, rounds = sampler.siblings, range(1, longest_dialogue(config, []) + 1)
        self._rng = np.random.default_rng(config.seed)
        self._store = Store()
        self._weights = {"adapter": np.zeros(shape.lora_parameters(config.lora.rank), np.float32)}
        low, high = sampler.window
        stored = [min(sampler.train_steps_per_round, min(high, executed_steps(config, round_)) - low + 1) for round_ in rounds]
        normal = lambda *shape: self._rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
        self._arrays = [
            [
                {
                    "prompt_ids": np.zeros((shape.encoders, shape.tokens), np.int64),
                    "latents": normal(count, *latent),
                    "next_latents": normal(count, *latent),
                    "timesteps": np.arange(count) + 1,
                    "previous_timesteps": np.arange(count),
                    "log_probs": normal(count),
                    "features": normal(shape.features),
                    "image": np.zeros((*pixels, 3), np.uint8),
                }
                for _ in range(DRAWN)
            ]
            for count in stored
        ]
        target = np.zeros((*pixels, 3), np.uint8)
        self._turns = tuple(
            Round(index=r, utterance="make it blue", prompt="a blue dress with a belt in a studio", target=target) for r in rounds
        )
        self._version = 0

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.seconds += time.thread_time() - start

    # what a worker does

    def ready(self) -> tuple[None, dict[str, float]]:
        return None, {"load": 1.0}

    def sample(self, dialogues: Sequence[Dialogue], seed: int, version: int, weights: Any) -> tuple[list[Rollout], dict[str, float]]:
        return [self._rollout(dialogue, version) for dialogue in dialogues], {"weights": 0.01, "sample": 1.0}

    def score(self, images: np.ndarray, rows: Sequence[int], prompts: Sequence[str], term: str) -> tuple[list[float], dict[str, float]]:
        return self._rng.standard_normal(len(rows)).tolist(), {"score": 1.0}

    def _rollout(self, dialogue: Dialogue, version: int) -> Rollout:
        def trajectory(round_: Round, sibling: int) -> Trajectory:
            drawn: list[dict[str, Any]] = self._arrays[round_.index - 1]
            arrays = drawn[int(self._rng.integers(len(drawn)))]
            name: dict[str, Any] = {"dialogue_id": dialogue.id, "round": round_.index, "sibling": sibling, "prompt": round_.prompt}
            return Trajectory(**name, seed=0, policy_version=version, **arrays)

        return Rollout(
            dialogue=dialogue,
            trajectories=tuple(tuple(trajectory(round_, g) for g in range(self._siblings)) for round_ in dialogue.rounds),
        )

    # the source and the learner of the loop

    def next(self, step: int, count: int) -> list[Dialogue]:
        with self.not_counted():
            return [Dialogue(id=f"{step}-{index}", intent="a blue dress", rounds=self._turns) for index in range(count)]

    def step(self, batch: Batch, pairs: RoundPairs | None, step: int) -> Update:
        self._store.send((batch, pairs))
        self._version = step
        return Update(policy_version=step, weights=self._weights, metrics={"trained_steps": float(len(batch))})

    def state(self) -> LearnerState:
        return LearnerState(policy_version=self._version, weights=self._weights)

    def metrics(self) -> Mapping[str, float]:
        return {}

    def spans(self) -> Sequence[Span]:
        return ()


class SimulatedRuntime:
    """A `Runtime` in virtual time: a call is answered when its worker's drawn time is over, and nobody waits for that."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._numbers = itertools.count()
        self._now = 0.0
        self._coming: list[tuple[float, int]] = []  # when, and which
        self._answers: dict[int, Message] = {}
        self._rng = np.random.default_rng(0)
        self._store = Store()

    def starter(self, pool: PoolName, worker: type, config: RunConfig, *first: Any) -> Callable[[int], Any]:
        return lambda index: (pool, index)

    def call(self, handle: Any, method: str, args: Sequence[Any]) -> int:
        message = self._store.send(args)
        with self._simulation.not_counted():
            answer, timings = getattr(self._simulation, method)(*message.read())
            taken = {name: seconds * float(self._rng.lognormal(0.0, SPREAD)) for name, seconds in timings.items()}
            number = next(self._numbers)
            heapq.heappush(self._coming, (self._now + sum(taken.values()), number))
            self._answers[number] = Message.of((answer, taken))
        return number

    def put(self, value: Any) -> int:
        self._store.send(value)
        return next(self._numbers)

    def wait(self, references: Sequence[int], timeout: float) -> Sequence[int]:
        with self._simulation.not_counted():
            self._now, number = heapq.heappop(self._coming)
        return [number]

    def get(self, reference: int, timeout: float) -> Any:
        return self._answers.pop(reference).read()

    def kill(self, handle: Any) -> None:
        pass

    def node(self, handle: Any) -> str:
        return "simulated"

    def draining(self) -> Mapping[str, float]:
        return {}

    def room(self) -> str:
        return "room for every simulated worker"


@dataclass(frozen=True, slots=True)
class Message:
    """A value as Ray sends it: a pickle, and the arrays beside it (PEP 574)."""

    head: bytes
    arrays: tuple[Any, ...]

    @classmethod
    def of(cls, value: Any) -> Message:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return cls(head, tuple(buffer.raw() for buffer in buffers))

    def read(self) -> Any:
        """The value; its arrays are views, as those of the object store."""
        return pickle.loads(self.head, buffers=self.arrays)


class Store:
    """The sender's way into an object store: arrays are copied, into memory that is mapped already."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def send(self, value: Any) -> Message:
        """`value` as it arrives; to be read before the next one is sent."""
        message = Message.of(value)
        sizes = [array.nbytes for array in message.arrays]
        if sum(sizes) > len(self._memory):
            self._memory = np.zeros(2 * sum(sizes), np.uint8)
        places = []
        for array, end, size in zip(message.arrays, np.cumsum(sizes).tolist(), sizes, strict=True):
            places.append(self._memory[end - size : end])
            places[-1][:] = np.frombuffer(array, np.uint8)
        return Message(message.head, tuple(places))
