"""Puts a run together: Ray, pools, judge, learner, run directory; then the controller's loop; then the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omr_ray import controller, overlapped
from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.oracle import Oracle
from omr_ray.config.run import AtelierDialogues, AtelierModel, JsonDialogues, ParquetDialogues, RunConfig
from omr_ray.data.json_dialogues import read_dialogues
from omr_ray.data.sources import AtelierSource, FileSource, Source, TableSource
from omr_ray.diffusion.adapters import Adapter, export_adapter, load_adapter, model_card
from omr_ray.evaluation import protocols, report
from omr_ray.evaluation.results import step_phase
from omr_ray.loading import model_path
from omr_ray.progress import ProgressBar
from omr_ray.ray_session import connected
from omr_ray.rewards.schedule import SCHEDULES
from omr_ray.rewards.total import TotalReward
from omr_ray.runs import Checkpoint, RunDirectory, write_text_atomic
from omr_ray.tracking import Span, Tracker
from omr_ray.types import LearnerState, Rollout, ScoredRollout, Update
from omr_ray.workers.learner import LearnerGroup
from omr_ray.workers.metrics import RayMetrics
from omr_ray.workers.placement import total_cpus
from omr_ray.workers.pool import RewardPool, RolloutPool


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Held-out figures while a run trains: every `every` steps but the last, on the first `dialogues` of the held-out dialogues."""

    every: int
    dialogues: int
    intent: bool  # whether what an oracle reads is asked for, too
    report: Callable[[int, protocols.Evaluation], None]


def train(config: RunConfig, directory: Path, *, resume: bool, looking: Looking | None = None) -> dict[str, Any]:
    """Train, evaluate before and after on the same held-out dialogues, export the adapter, write the report."""
    source = source_from(config)
    with ExitStack() as stack:
        run = stack.enter_context(closing(RunDirectory(directory, config, resume=resume)))
        found = run.checkpoints.latest() if resume else None
        start = found.step if found else 0
        bar = stack.enter_context(ProgressBar(start, config.steps))
        for damage in run.checkpoints.skipped:
            bar.say(f"passed over a damaged checkpoint, {damage}")
        bar.say(f"run directory {directory}, starting Ray")
        stack.enter_context(connected(total_cpus(config)))
        # The learner first: where GPUs are shared, the small actors would otherwise take the room of its larger share.
        learner = stack.enter_context(closing(LearnerGroup(config, found.learner if found else None)))
        rollout_pool = stack.enter_context(closing(RolloutPool(config)))
        reward_pool = stack.enter_context(closing(RewardPool(config)))
        reward_pool.ready()  # what it cannot load is reported before anything is sampled
        judge = Judge(config, reward_pool)
        tracker = stack.enter_context(closing(Tracker(directory, **config.tracking.model_dump(), sinks=[RayMetrics(config.name)])))
        tracker.truncate_after(start)
        examine = partial(_evaluate, source, rollout_pool, reward_pool, directory / "evaluation")
        if not (directory / "evaluation/before.json").exists():
            bar.phase("evaluate")
            bar.say("evaluating the base on held-out dialogues")
            rollout_pool.load(None)
            examine(config, phase="before", weights=f"{_model_name(config)}, {_start_name(config)}")
        if found:
            judge.total.load(found.judge)
            rollout_pool.load(_last_update(found))
        loop = controller.train if config.overlap is None else partial(overlapped.train, held=_held(found))
        loop(
            config,
            source=source,
            sampler=rollout_pool,
            judge=judge,
            learner=learner,
            tracker=tracker,
            checkpoints=run.checkpoints,
            progress=bar,
            watch=Watch(config, looking, learner, rollout_pool, examine) if looking else None,
            start=start,
        )
        bar.phase("evaluate")
        bar.say("evaluating the trained policy on the same dialogues and seeds")
        state = learner.state()
        rollout_pool.load(Update(policy_version=state.policy_version, weights=state.ema or state.weights, metrics={}))
        examine(config, phase="after", weights=_trained_name(config, config.steps, state))
        result = _finish(config, directory, state)
        bar.say(f"report: {result['report']}")
        return result


def evaluate(config: RunConfig, out: Path, *, adapter: Path | None) -> dict[str, Any]:
    """Judge the base, or the base with an exported adapter, on held-out dialogues; writes `out`/after.json."""
    # The protocols know the preference score alone, so what scores other terms need not be there.
    config = config.model_copy(update={"rewards": config.rewards.model_copy(update={"terms": ()})})
    update, name = None, _start_name(config)
    if adapter is not None:
        weights = load_adapter(adapter).weights_for(config.lora.rank, config.lora.alpha)
        update, name = Update(policy_version=1, weights=weights, metrics={}), f"adapter {adapter}"
    source = source_from(config)
    with (
        connected(total_cpus(config)),
        closing(RolloutPool(config)) as rollout_pool,
        closing(RewardPool(config)) as reward_pool,
    ):
        rollout_pool.load(update)
        result = _evaluate(source, rollout_pool, reward_pool, out, config, phase="after", weights=f"{_model_name(config)}, {name}")
    held_out = {name: np.nanmean(getattr(result.held_out, name), axis=0).tolist() for name in ("accuracy", "preference", "diversity")}
    return {"result": str(out / "after.json"), "by_round": held_out, "rounds_to_intent": result.intent and result.intent.rounds.mean()}


class Watch:
    """Evaluates the policy of some steps, as its run is judged in the end: the averaged weights, where there are some."""

    def __init__(
        self, config: RunConfig, looking: Looking, learner: LearnerGroup, rollout_pool: RolloutPool, examine: Callable[..., Any]
    ) -> None:
        settings = config.evaluation.model_copy(update={"dialogues": looking.dialogues, "contact_sheet": 0})
        self._config = config.model_copy(update={"evaluation": settings})
        self._looking, self._learner, self._pool, self._examine = looking, learner, rollout_pool, examine

    def due(self, step: int) -> bool:
        return step % self._looking.every == 0 and step < self._config.steps

    def look(self, step: int) -> None:
        state = self._learner.state()
        held = Update(policy_version=state.policy_version, weights=state.weights, metrics={})
        self._pool.load(replace(held, weights=state.ema or state.weights))
        weights = _trained_name(self._config, step, state)
        found = self._examine(self._config, phase=step_phase(step), weights=weights, intent=self._looking.intent)
        self._pool.load(held)
        self._looking.report(step, found)


class Judge:
    """RewardWorkers for the preference and the terms that users add, then the total reward of eq. 9."""

    def __init__(self, config: RunConfig, pool: RewardPool) -> None:
        schedule = config.rewards.schedule
        published = partial(SCHEDULES[schedule.type], **schedule.model_dump(exclude={"type"}))
        added = {term.name: term.weight for term in config.rewards.terms}
        self.total = TotalReward(
            lambda t: published(t) | added, standardize=config.rewards.standardize, diversity_scope=config.rewards.diversity_scope
        )
        self._pool = pool

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return self.total.score(rollouts, self._pool.terms(rollouts))

    def state(self) -> Mapping[str, Any]:
        return self.total.state()

    def metrics(self) -> Mapping[str, float]:
        return self._pool.metrics()

    def spans(self) -> Sequence[Span]:
        return self._pool.spans()


def _last_update(found: Checkpoint) -> Update:
    return Update(policy_version=found.learner.policy_version, weights=found.learner.weights, metrics={})


def _held(found: Checkpoint | None) -> list[Update]:
    return [*found.older, _last_update(found)] if found else []


def source_from(config: RunConfig) -> Source:
    """Raises UserError where a dialogue file is missing or malformed: before anything is started."""
    match config.dialogues:
        case AtelierDialogues(rounds=rounds):
            return AtelierSource(rounds, config.seed)
        case JsonDialogues(path=path):
            return FileSource(read_dialogues(Path(path)), config.seed)
        case ParquetDialogues(path=path):
            return TableSource(path, config.seed)


def _evaluate(
    source: Source,
    rollout_pool: RolloutPool,
    reward_pool: RewardPool,
    directory: Path,
    config: RunConfig,
    *,
    phase: str,
    weights: str,
    intent: bool = True,
) -> protocols.Evaluation:
    """Both protocols with the policy that `rollout_pool` holds; saved to `directory`. Without `intent`, what needs no oracle."""
    settings = config.evaluation
    result = protocols.evaluate(
        source.held_out(settings.dialogues),
        phase=phase,
        weights=weights,
        sample=partial(rollout_pool.sample, step=0, seed=settings.seed),
        preferences=reward_pool.preferences,
        generate=rollout_pool.generate,
        # Only pictures of the embedded world can be read exactly.
        oracle=Oracle.from_pretrained(WEIGHTS / "oracle") if intent and isinstance(config.model, AtelierModel) else None,
        strength=config.sampler.strength,
        siblings=settings.siblings,
        max_rounds=settings.max_rounds,
        seed=settings.seed,
        contact_sheet=settings.contact_sheet,
    )
    protocols.save(result, directory)
    return result


def _finish(config: RunConfig, directory: Path, state: LearnerState) -> dict[str, Any]:
    """Comparison, exported adapter and report of a finished run."""
    before, after = (protocols.load(directory / "evaluation", phase) for phase in ("before", "after"))
    comparison = asdict(protocols.compare(before, after))
    write_text_atomic(directory / "evaluation/comparison.json", json.dumps(comparison, indent=1))
    figures = {name: value for name, value in comparison.items() if isinstance(value, dict)}
    adapter = Adapter(
        weights=state.ema or state.weights,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        base_model=model_path(config.model),
        metadata={"run": config.name, "steps": str(config.steps), "seed": str(config.seed)},
    )
    card = model_card(_model_name(config), f"{config.name}, {config.steps} steps", {k: _interval(v) for k, v in figures.items()})
    export_adapter(adapter, directory / "adapter", card, name=config.name)
    return {
        "run": str(directory),
        "report": str(report.write_report(directory)),
        "adapter": str(directory / "adapter"),
        "comparison": comparison,
    }


def _interval(values: Mapping[str, float]) -> str:
    return f"{values['value']:.4f} [{values['low']:.4f}, {values['high']:.4f}]"


def _model_name(config: RunConfig) -> str:
    return "atelier" if isinstance(config.model, AtelierModel) else config.model.path


def _trained_name(config: RunConfig, step: int, state: LearnerState) -> str:
    return f"{_model_name(config)} with the adapter of step {step}{' (EMA)' if state.ema else ''}"


def _start_name(config: RunConfig) -> str:
    return "no adapter" if config.lora.start is None else f"adapter {config.lora.start}"
