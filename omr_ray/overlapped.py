"""The loop in which nobody waits for the step before: the next steps are sampled and scored while the learner works.

    sampling     | 1 | 2 | 3 | 4 | 5 |              a thread: weights, then rollouts, one step after the other
    scoring          | 1 | 2 | 3 | 4 | 5 |          a thread: rewards, in the order of the steps
    controller           | 1 | 2 | 3 | 4 | 5 |      collate, learner, log, checkpoint

Step s is sampled with the weights of update s - 1 - max_staleness (before there is one: those that the run starts with),
whoever happens to be fast. So it begins when that update is there, no more than max_staleness + 1 steps are in flight, and
what is logged is a function of (config, step), as in `omr_ray.controller.train`, which max_staleness 0 repeats bit for bit.
The importance ratio covers the lag: its denominator is the log-probability under the weights that sampled.

A checkpoint after step c holds the older weights that steps c + 1, c + 2, ... are sampled with, and the judge as it was
after scoring c. What was in flight is not stored: a resumed run samples it again, with the same weights and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from omr_ray.config.run import Overlap, RunConfig
from omr_ray.controller import (
    Checkpointer,
    Judge,
    Learner,
    PhaseClock,
    Progress,
    Sampler,
    Source,
    Tracker,
    Watch,
    learner_inputs,
    step_metrics,
)
from omr_ray.tracking import Span
from omr_ray.types import Rollout, ScoredRollout, Update

Result = TypeVar("Result")


class Stale(RuntimeError):
    """Samples are older than the bound: a sampler that does not do what it was told. They are not trained."""


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
    held: Sequence[Update] = (),
) -> None:
    """Overlapped training, steps `start` + 1 to `config.steps`; `config.overlap` must be set.

    `held`: where a run goes on, the updates up to `start` that its next steps are sampled with. Raises TimeoutError where
    a step's samples do not come within `overlap.wait_s`, Stale, and whatever sampler, judge and learner raise.
    """
    assert config.overlap is not None
    lag = config.overlap.max_staleness
    updates = {update.policy_version: update for update in held}  # none is version 0: the run's first weights
    with Pipeline(config, config.overlap, source, sampler, judge) as pipeline:
        for step in range(start + 1, min(start + 1 + lag, config.steps) + 1):
            pipeline.begin(step, _update_for(step, lag, updates))
        for step in range(start + 1, config.steps + 1):
            clock = PhaseClock(progress.phase)
            with clock("samples"):
                made = pipeline.take(step)
            with clock("collate"):
                batch, pairs = learner_inputs(config, made.scored, step)
            if batch.oldest_version < step - 1 - lag:
                raise Stale(
                    f"step {step}: samples of version {batch.oldest_version}; {step - 1 - lag} is the oldest (overlap.max_staleness)"
                )
            with clock("learner"):
                update = learner.step(batch, pairs, step)
            updates[step] = update
            if step + 1 + lag <= config.steps:
                pipeline.begin(step + 1 + lag, _update_for(step + 1 + lag, lag, updates))
            metrics = step_metrics(made.scored, made.rollouts, update)
            tracker.log(step, metrics)  # before the checkpoint: a run that resumes after this step must find its line
            updates = {version: kept for version, kept in updates.items() if version >= step - lag}
            if step % config.checkpoint.every == 0 or step == config.steps:
                with clock("checkpoint"):
                    older = [kept for version, kept in sorted(updates.items()) if version < step]
                    checkpoints.save(step, learner.state(), made.judge, older)
            tracker.time(step, {**made.figures, **clock.seconds(), **learner.metrics()})
            tracker.spans(step, [*clock.spans, *made.spans, *learner.spans()])
            progress.advance(metrics)
            if watch is not None and watch.due(step):
                pipeline.settle()
                watch.look(step)


def _update_for(step: int, lag: int, updates: Mapping[int, Update]) -> Update | None:
    """What step `step` is sampled with; None: the weights that the run starts with."""
    version = step - 1 - lag
    return updates[version] if version > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A step's scored samples; the judge after them; what the machine determines, and what each worker did."""

    rollouts: list[Rollout]
    scored: list[ScoredRollout]
    judge: Mapping
    figures: dict[str, float]
    spans: list[Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled:
    rollouts: list[Rollout]
    figures: dict[str, float]
    spans: list[Span]


class Pipeline:
    """Samples and scores steps in the order in which they are begun, each with the weights it is begun with.

    Of a sampler and of a judge only one thread makes use, also of their figures. Use as a context manager: an error
    leaves what is in flight behind, and what has not begun does not begin.
    """

    def __init__(self, config: RunConfig, overlap: Overlap, source: Source, sampler: Sampler, judge: Judge) -> None:
        self._dialogues, self._limit = config.dialogues_per_step, overlap.wait_s
        self._source, self._sampler, self._judge = source, sampler, judge
        self._threads = [ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) for name in ("sampling", "scoring")]
        self._in_flight: dict[int, Future[Made]] = {}

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, step: int, update: Update | None) -> None:
        sampling, scoring = self._threads
        sampled = sampling.submit(self._sample, step, update)
        self._in_flight[step] = scoring.submit(self._score, step, sampled)

    def take(self, step: int) -> Made:
        """The scored samples of `step`, as soon as they are there. Errors: those of sampler and judge, and TimeoutError."""
        return _result(self._in_flight.pop(step), f"the scored samples of step {step}", self._limit)

    def settle(self) -> None:
        """Wait until the workers do nothing; what has been made is kept."""
        if wait(self._in_flight.values(), timeout=self._limit).not_done:
            steps = ", ".join(map(str, self._in_flight))
            raise TimeoutError(f"waited {self._limit:g} s for the scored samples of steps {steps} (overlap.wait_s)")

    def _sample(self, step: int, update: Update | None) -> _Sampled:
        clock = PhaseClock(track="sampling")
        with clock("weights"):
            self._sampler.load(update)
        with clock("rollout"):
            rollouts = self._sampler.sample(self._source.next(step, self._dialogues), step)
        return _Sampled(
            rollouts=rollouts,
            figures={**clock.phases(), **self._sampler.metrics()},
            spans=[*clock.spans, *self._sampler.spans()],
        )

    def _score(self, step: int, sampled: Future[_Sampled]) -> Made:
        found = _result(sampled, f"the rollouts of step {step}", self._limit)
        clock = PhaseClock(track="scoring")
        with clock("reward"):
            scored = self._judge.score(found.rollouts)
        return Made(
            rollouts=found.rollouts,
            scored=scored,
            judge=self._judge.state(),
            figures={**found.figures, **clock.phases(), **self._judge.metrics()},
            spans=[*found.spans, *clock.spans, *self._judge.spans()],
        )


def _result(future: Future[Result], what: str, limit: float) -> Result:
    try:
        return future.result(timeout=limit)
    except TimeoutError:
        if future.done():  # it is an error of the work itself
            raise
        raise TimeoutError(f"waited {limit:g} s for {what} (overlap.wait_s)") from None
