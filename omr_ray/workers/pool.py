"""The controller's sampler and scorer: work split over workers, results back in order.

What a sample is depends on its seed, its dialogue and the weights, never on how many workers there are or which of
them did it: a share is contiguous, its size follows from the amount of work, and the noise of every sample has a
generator of its own. Batches of different sizes differ by float rounding; equal batches give equal bits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from omr_ray.config.comparison import ComparisonConfig
from omr_ray.config.generation import AttendAndExcite
from omr_ray.config.rewards import InfoNce
from omr_ray.config.run import RunConfig
from omr_ray.evaluation.asked import Asked
from omr_ray.evaluation.stored import Value
from omr_ray.rewards.mutual_information import rival_credits, rival_pairs
from omr_ray.rewards.total import Scores
from omr_ray.tracking import Span
from omr_ray.types import Dialogue, Rollout, Trajectory, Update
from omr_ray.workers.call import Call
from omr_ray.workers.measure import MeasureWorker
from omr_ray.workers.placement import amounts, resources
from omr_ray.workers.reward import RewardWorker
from omr_ray.workers.rollout import RolloutWorker
from omr_ray.workers.runtime import PoolName, RayRuntime, Runtime
from omr_ray.workers.supervisor import Supervisor

T = TypeVar("T")
Pair = tuple[Trajectory, str]  # an image, and the prompt that it is judged under
PREFERENCE = "mutual_information"  # the term that the preference model makes


class RolloutPool:
    """Samples dialogues on `workers.rollout.count` actors. Starts them at once, and waits for them at the first call.

    Errors of `sample` and `generate`: those of `Supervisor.run`.
    """

    def __init__(self, config: RunConfig, runtime: Runtime | None = None) -> None:
        self._config, self._runtime = config, runtime or RayRuntime()
        self._supervisor = _supervisor("rollout", RolloutWorker, config, self._runtime)
        self._policy: tuple[int, Any] = (0, None)  # version, weights; one tuple, so that both change together
        self._images = 0
        self._seconds = 0.0

    def load(self, update: Update | None) -> None:
        """The policy of every later call: one put, whatever the number of workers. None is the untrained one.

        Nothing is sent now. Calls carry the reference, so a worker that was replaced cannot miss an update.
        """
        self._policy = (0, None) if update is None else (update.policy_version, self._runtime.put(dict(update.weights)))

    def sample(self, dialogues: Sequence[Dialogue], step: int, seed: int | None = None) -> list[Rollout]:
        """One rollout a dialogue, in their order. Equal arguments and weights give equal samples; `seed` defaults to the run's."""
        sampler, (version, weights) = self._config.sampler, self._policy
        seed = step_seed(self._config.seed if seed is None else seed, step)
        calls = [
            Call(method="sample", args=(share, seed, version, weights), what=f"step {step}: {_span([d.id for d in share])}")
            for share in shares(dialogues, self._config.workers.rollout.count, sampler.batch_size // sampler.siblings)
        ]
        rollouts = [rollout for part in self._timed(calls) for rollout in part]
        self._images += len(_samples(rollouts))
        return rollouts

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], from_latents: np.ndarray | None = None, strength: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """One round for N samples: images u8 [N H W 3] and final latents f32 [N C H W].

        From noise, or from `from_latents` f32 [N C H W] noised to `strength`.
        """
        rows = shares(range(len(prompts)), self._config.workers.rollout.count, self._config.sampler.batch_size)
        weights = self._policy[1]
        calls = [
            Call(
                method="generate",
                args=(
                    [prompts[i] for i in share],
                    [int(seeds[i]) for i in share],
                    None if from_latents is None else np.asarray(from_latents)[share],
                    strength,
                    weights,
                ),
                what=f"images of {_span([prompts[i] for i in share])}",
            )
            for share in rows
        ]
        images, latents = zip(*self._timed(calls), strict=True)
        self._images += len(prompts)
        return np.concatenate(images), np.concatenate(latents)

    def excite(self, prompts: Sequence[str], *, seeds: Sequence[int], attention: AttendAndExcite) -> tuple[np.ndarray, np.ndarray]:
        """A first round of N samples under Attend-and-Excite: images u8 [N H W 3], and whether it acted, bool [N]."""
        rows = shares(range(len(prompts)), self._config.workers.rollout.count, self._config.sampler.batch_size)
        calls = [
            Call(
                method="excite",
                args=([prompts[i] for i in share], [int(seeds[i]) for i in share], attention, self._policy[1]),
                what=f"images of {_span([prompts[i] for i in share])}",
            )
            for share in rows
        ]
        images, excited = zip(*self._timed(calls), strict=True)
        self._images += len(prompts)
        return np.concatenate(images), np.concatenate(excited)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents f32 [N C H W] of images u8 [N H W 3] that were made elsewhere."""
        parts = shares(range(len(images)), self._config.workers.rollout.count, self._config.sampler.batch_size)
        calls = [Call(method="encode", args=(images[share],), what=f"latents of {len(share)} images") for share in parts]
        return np.concatenate(self._timed(calls))

    def metrics(self) -> dict[str, float]:
        """Since the last call: images/s while sampling, retries, replacements, idle share of each worker."""
        figures = self._supervisor.metrics()
        if self._images:
            figures["rollout/images_per_s"] = self._images / self._seconds
        self._images = 0
        self._seconds = 0.0
        return figures

    def spans(self) -> list[Span]:
        """What each worker did, since the last call."""
        return self._supervisor.spans()

    def close(self) -> None:
        self._supervisor.close()

    def _timed(self, calls: Sequence[Call]) -> list[Any]:
        start = time.perf_counter()
        results = self._supervisor.run(calls)
        self._seconds += time.perf_counter() - start
        return results


class MeasurePool:
    """Metrics of a comparison on `workers.reward.count` actors, in the place of reward workers. Errors as in RolloutPool."""

    def __init__(self, config: ComparisonConfig, run: RunConfig) -> None:
        self._run = run
        self._supervisor = _supervisor("reward", MeasureWorker, run, RayRuntime(), config)

    def load(self, metric: str) -> None:
        """Raises UserError where the metric's weights are not there."""
        self._supervisor.run([Call(method="load", args=(metric,), what=f"loading {metric}")])

    def measure(self, metric: str, asked: Sequence[Asked]) -> list[Value]:
        """What `metric` says of every image."""
        parts = shares(asked, self._run.workers.reward.count, self._run.rewards.preference.batch_size)
        calls = [
            Call(method="measure", args=(metric, share), what=f"{metric} of {_span([one.dialogue for one in share])}") for share in parts
        ]
        return [value for part in self._supervisor.run(calls) for value in part]

    def close(self) -> None:
        self._supervisor.close()


class RewardPool:
    """Scores on `workers.reward.count` actors. Errors as in RolloutPool."""

    def __init__(self, config: RunConfig, runtime: Runtime | None = None) -> None:
        self._config = config
        self._supervisor = _supervisor("reward", RewardWorker, config, runtime or RayRuntime())

    def ready(self) -> None:
        """Wait for the first worker. Raises UserError where a model or a term's scorer cannot be loaded."""
        self._supervisor.run([Call(method="ready", args=(), what="loading its models")])

    def preferences(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        """Preference scores (OMR eq. 8) of all samples, [R][G] a rollout; None where a score is missing."""
        (scores,) = self._run([(PREFERENCE, _own_pairs(rollouts), self._config.rewards.preference.batch_size)])
        return _by_sample(rollouts, scores)

    def terms(self, rollouts: Sequence[Rollout]) -> list[dict[str, Scores]]:
        """Every term of the total reward that a scorer makes: the mutual information and `rewards.terms`.

        One mapping a rollout, from the term's name to [R][G]; None or NaN where a score is missing.
        """
        rewards, own = self._config.rewards, _own_pairs(rollouts)
        compared = isinstance(rewards.mutual_information, InfoNce)
        asked = [(PREFERENCE, rival_pairs(rollouts) if compared else own, rewards.preference.batch_size)]
        asked += [(term.name, own, term.scorer.batch_size) for term in rewards.terms]
        first, *others = self._run(asked)
        made = {PREFERENCE: rival_credits(rollouts, first) if compared else _by_sample(rollouts, first)}
        made |= {term.name: _by_sample(rollouts, scores) for term, scores in zip(rewards.terms, others, strict=True)}
        return [{name: scores[d] for name, scores in made.items()} for d in range(len(rollouts))]

    def _run(self, asked: Sequence[tuple[str, Sequence[Pair], int]]) -> list[list[float | None]]:
        """One score a pair for each (term, pairs, batch size); all terms are worked on at the same time."""
        workers = self._config.workers.reward.count
        calls = [[_score(term, share) for share in shares(pairs, workers, batch_size)] for term, pairs, batch_size in asked]
        answers = iter(self._supervisor.run([call for part in calls for call in part]))
        return [[score for _ in part for score in next(answers)] for part in calls]

    def metrics(self) -> dict[str, float]:
        """Since the last call: retries, replacements, idle share of each worker."""
        return self._supervisor.metrics()

    def spans(self) -> list[Span]:
        """What each worker did, since the last call."""
        return self._supervisor.spans()

    def close(self) -> None:
        self._supervisor.close()


def shares(items: Sequence[T], workers: int, largest: int) -> list[list[T]]:
    """Contiguous shares of nearly equal size: one a worker, and more where a share would exceed `largest`.

    So one share is one batch, it is all that dies with a worker, and a fast worker takes more of them.
    """
    count = min(len(items), max(workers, -(-len(items) // max(largest, 1))))
    return [[items[i] for i in rows] for rows in np.array_split(np.arange(len(items)), count)] if count else []


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed of one step; neighbouring runs and steps share no noise, as they would with seed + step."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _supervisor(pool: PoolName, worker: type, config: RunConfig, runtime: Runtime, *first: Any) -> Supervisor:
    """Actors `worker(*first, config)`."""
    limits = config.workers
    return Supervisor(
        pool,
        runtime.starter(pool, worker, config, *first),
        count=getattr(limits, pool).count,
        max_attempts=limits.max_attempts,
        timeout_s=limits.timeout_s,
        start_timeout_s=limits.start_timeout_s,
        asked=amounts(resources(getattr(limits, pool))),
        runtime=runtime,
    )


def _score(term: str, pairs: Sequence[Pair]) -> Call:
    """The call that scores `pairs`; an image that occurs in several of them is sent once."""
    images = {id(image): image for image, _ in pairs}
    row = {key: index for index, key in enumerate(images)}
    names = [f"{image.dialogue_id} round {image.round}" for image, _ in pairs]
    return Call(
        method="score",
        args=(np.stack([t.image for t in images.values()]), [row[id(image)] for image, _ in pairs], [prompt for _, prompt in pairs], term),
        what=f"{term} scores of {_span(names)}",
    )


def _own_pairs(rollouts: Sequence[Rollout]) -> list[Pair]:
    return [(t, t.prompt) for t in _samples(rollouts)]


def _by_sample(rollouts: Sequence[Rollout], values: Sequence[float | None]) -> list[Scores]:
    """One value a sample, in the order of `_samples`, as [R][G] a rollout."""
    following = iter(values)
    return [[[next(following) for _ in siblings] for siblings in rollout.trajectories] for rollout in rollouts]


def _samples(rollouts: Sequence[Rollout]) -> list[Trajectory]:
    return [t for rollout in rollouts for siblings in rollout.trajectories for t in siblings]


def _span(names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{len(names)} from {names[0]!r} to {names[-1]!r}"
