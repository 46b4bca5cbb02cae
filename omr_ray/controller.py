"""The loop: who waits on whom in one training step.

    source ──dialogues──► sampler ──rollouts──► judge ──scored──► collate ──batch──► learner ──update──► sampler
                                                                                        └──metrics──► tracker

The controller knows Protocols, never Ray: tests drive it with plain objects. Everything here is a function of
(config, step), so a run that is resumed from a checkpoint logs the same metrics as one that was never stopped.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from omr_ray.algorithm.collate import collate, round_pairs
from omr_ray.config.rewards import ImmediateCredit
from omr_ray.config.run import Ppo, RunConfig
from omr_ray.tracking import Span
from omr_ray.types import Batch, Dialogue, LearnerState, Rollout, RoundPairs, ScoredRollout, Update


class Source(Protocol):
    def next(self, step: int, count: int) -> list[Dialogue]:
        """The dialogues of a step; the same for the same step."""


class Sampler(Protocol):
    def sample(self, dialogues: Sequence[Dialogue], step: int) -> list[Rollout]: ...
    def load(self, update: Update | None) -> None:
        """The policy of later calls; None is the one that a run starts with."""

    def metrics(self) -> Mapping[str, float]:
        """What the machine determines, since the last call: images/s, retries, idle shares."""

    def spans(self) -> Sequence[Span]:
        """What each worker did, since the last call."""


class Judge(Protocol):
    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]: ...
    def state(self) -> Mapping:
        """What later scores depend on, as it is now: it does not change with them."""

    def metrics(self) -> Mapping[str, float]: ...
    def spans(self) -> Sequence[Span]:
        """Both as the sampler's."""


class Learner(Protocol):
    def step(self, batch: Batch, pairs: RoundPairs | None, step: int) -> Update: ...
    def state(self) -> LearnerState: ...
    def metrics(self) -> Mapping[str, float]: ...
    def spans(self) -> Sequence[Span]:
        """Both as the sampler's."""


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def time(self, step: int, seconds: Mapping[str, float]) -> None: ...
    def spans(self, step: int, spans: Sequence[Span]) -> None: ...


class Checkpointer(Protocol):
    def save(self, step: int, learner: LearnerState, judge: Mapping, older: Sequence[Update] = ()) -> None:
        """All that a run needs to go on after `step`; `older` are updates before the learner's last that it will sample with."""


class Progress(Protocol):
    def phase(self, name: str) -> None: ...
    def advance(self, metrics: Mapping[str, float]) -> None: ...


class Watch(Protocol):
    def due(self, step: int) -> bool: ...
    def look(self, step: int) -> None:
        """Called after a step that is due, its checkpoint included, and outside of its time.

        It may use the workers, which do nothing else meanwhile. What it does must leave the run as it is.
        """


class NothingToLearn(RuntimeError):
    """No sample of a step has a score."""


def train(
    config: RunConfig,
    *,
    source: Source,
    sampler: Sampler,
    judge: Judge,
    learner: Learner,
    tracker: Tracker,
    checkpoints: Checkpointer,
    progress: Progress,
    watch: Watch | None = None,
    start: int = 0,
) -> None:
    """Synchronous training, steps `start` + 1 to `config.steps` (OMR Algorithm 1)."""
    for step in range(start + 1, config.steps + 1):
        clock = PhaseClock(progress.phase)
        with clock("rollout"):
            dialogues = source.next(step, config.dialogues_per_step)
            rollouts = sampler.sample(dialogues, step)
        with clock("reward"):
            scored = judge.score(rollouts)
        with clock("collate"):
            batch, pairs = learner_inputs(config, scored, step)
        with clock("learner"):
            update = learner.step(batch, pairs, step)
        with clock("weights"):
            sampler.load(update)
        metrics = step_metrics(scored, rollouts, update)
        tracker.log(step, metrics)  # before the checkpoint: a run that resumes after this step must find its line
        if step % config.checkpoint.every == 0 or step == config.steps:
            with clock("checkpoint"):
                checkpoints.save(step, learner.state(), judge.state())
        tracker.time(step, {**clock.seconds(), **sampler.metrics(), **judge.metrics(), **learner.metrics()})
        tracker.spans(step, [*clock.spans, *sampler.spans(), *judge.spans(), *learner.spans()])
        progress.advance(metrics)
        if watch is not None and watch.due(step):
            watch.look(step)


def learner_inputs(config: RunConfig, scored: Sequence[ScoredRollout], step: int) -> tuple[Batch, RoundPairs | None]:
    """The batch of the reward estimator and the data pairs of the noise loss. Raises NothingToLearn if no score is known."""
    credit = config.rewards.credit
    baseline = config.algorithm.baseline if isinstance(config.algorithm, Ppo) else "group"
    batch = collate(scored, baseline=baseline, discount=None if isinstance(credit, ImmediateCredit) else credit.discount)
    if batch is None:
        counts = reward_metrics(scored)
        names = [name for name in scored[0].rewards[-1][0].terms if f"reward/{name}" not in counts]
        never = f" (never scored: {', '.join(names)})" if names else ""
        raise NothingToLearn(
            f"step {step}: no sample has a finite reward{never}; look at the reward workers' log, then continue with --resume"
        )
    pairs = None
    if config.noise_loss.weight > 0:
        pairs = round_pairs(scored, count=config.noise_loss.pairs_per_step, seed=(config.seed, step))
    return batch, pairs


def step_metrics(scored: Sequence[ScoredRollout], rollouts: Sequence[Rollout], update: Update) -> dict[str, float]:
    """What the seed determines about a step."""
    return {**reward_metrics(scored), **rollout_metrics(rollouts), **{f"learner/{k}": v for k, v in update.metrics.items()}}


def reward_metrics(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """Mean of every reward term, its weight and the total, by round; missing scores are counted, not averaged."""
    values: dict[str, list[float]] = defaultdict(list)
    missing: Counter[str] = Counter()
    for rollout in scored:
        for index, siblings in enumerate(rollout.rewards, start=1):
            for reward in siblings:
                for name, value in {**reward.terms, "total": reward.total}.items():
                    missing["reward/missing" if name == "total" else f"reward/{name}/missing"] += value is None
                    if value is not None:
                        values[f"reward/{name}/round_{index}"].append(value)
                        values[f"reward/{name}"].append(value)
                for name, weight in reward.weights.items():
                    values[f"weight/{name}/round_{index}"].append(weight)
    return {name: sum(v) / len(v) for name, v in values.items()} | {name: float(count) for name, count in missing.items()}


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How many samples a step made, what one costs to send, and how old the oldest policy among them is."""
    trajectories = [t for rollout in rollouts for siblings in rollout.trajectories for t in siblings]
    return {
        "rollout/samples": float(len(trajectories)),
        "rollout/bytes_per_trajectory": sum(t.nbytes for t in trajectories) / len(trajectories),
        "rollout/oldest_version": float(min(t.policy_version for t in trajectories)),
    }


class PhaseClock:
    """Seconds by phase, and their spans on `track`; `say` hears of every phase as it begins."""

    WAITING = ("rollout", "reward", "samples", "learner", "weights", "checkpoint")

    def __init__(self, say: Callable[[str], None] = lambda name: None, track: str = "controller") -> None:
        self._say, self._track = say, track
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}
        self.spans: list[Span] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._say(name)
        begin, start = time.time(), time.perf_counter()
        yield
        self._phases[name] = seconds = time.perf_counter() - start
        self.spans.append(Span(track=self._track, name=name, begin=begin, seconds=seconds))

    def phases(self) -> dict[str, float]:
        return {f"seconds/{name}": seconds for name, seconds in self._phases.items()}

    def seconds(self) -> dict[str, float]:
        """With the whole step. What is in no phase of an actor is the controller's own share."""
        total = time.perf_counter() - self._start
        waiting = sum(self._phases.get(name, 0.0) for name in self.WAITING)
        return self.phases() | {"seconds/step": total, "seconds/controller": total - waiting}
