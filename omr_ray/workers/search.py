"""Which points a sweep tries, and who of the running ones goes on: our config in Ray Tune's and Optuna's terms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch as TuneOptuna

from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import (
    OBJECTIVES,
    Asha,
    Choice,
    Domain,
    LogUniform,
    OptunaSearch,
    PopulationBased,
    RandomSearch,
    Range,
    SweepConfig,
    VariantSearch,
)
from omr_ray.evaluation import objectives
from omr_ray.trials import Outcome, Trial, Trials


def plan(config: SweepConfig, base: RunConfig) -> list[Trial]:
    """Every trial that is known in advance: none where Optuna will ask for them. Raises UserError for a config that is not valid."""
    found: list[Trial] = []
    match config.search:
        case VariantSearch(variants=variants, seeds=seeds):
            for number, ((name, overrides), seed) in enumerate(itertools.product(variants.items(), seeds), start=1):
                found.append(Trial(number=number, name=name, overrides=overrides, parameters={"seed": seed}))
        case RandomSearch(trials=trials, seed=seed):
            rng = np.random.RandomState(seed)
            for number in range(1, trials + 1):
                found.append(Trial(number=number, parameters={key: _drawn(domain, rng) for key, domain in config.space.items()}))
        case _ if config.search.type == "grid":
            values = itertools.product(*(domain.examples() for domain in config.space.values()))
            for number, point in enumerate(values, start=1):
                found.append(Trial(number=number, parameters=dict(zip(config.space, point, strict=True))))
    for trial in found:
        trial.config(base, config.name)
    return found


def point(trial: Trial) -> dict[str, Any]:
    """A trial as Ray Tune's config."""
    return {"point": {"number": trial.number, "parameters": dict(trial.parameters)}}


def scheduler(config: SweepConfig, base: RunConfig) -> TrialScheduler | None:
    """Follows the first objective. Steps are its time."""
    first: dict[str, Any] = {"metric": config.objectives[0], "mode": OBJECTIVES[config.objectives[0]], "time_attr": "step"}
    match config.scheduler:
        case None:
            return None
        case Asha(grace=grace, reduction=reduction):
            return ASHAScheduler(**first, grace_period=grace, reduction_factor=reduction, max_t=max(base.steps, grace))
        case PopulationBased(every=every, quantile=quantile, resample=resample):
            return PopulationBasedTraining(
                **first,
                perturbation_interval=every,
                hyperparam_mutations={"point": {"parameters": {key: _mutation(domain) for key, domain in config.space.items()}}},
                quantile_fraction=quantile,
                resample_probability=resample,
                custom_explore_fn=lambda found: _inside(found, config.space),
                log_config=False,
            )


class OptunaTrials(Searcher):
    """Optuna's points as numbered trials that are written down before they start.

    Set up from what the sweep's directory holds: ended trials are what the estimator has seen, open ones are the first
    points that it gives again. Nothing of Ray Tune's or Optuna's own state is kept.
    """

    def __init__(self, config: SweepConfig, trials: Trials) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        modes = [OBJECTIVES[name] for name in config.objectives]
        super().__init__()
        assert isinstance(config.search, OptunaSearch)
        known = trials.known()
        ended = [(trial, outcome) for trial in known if (outcome := trials.outcome(trial.number)) is not None]
        self._trials = trials
        self._open = [trial for trial in known if trials.outcome(trial.number) is None]
        self._next = 1 + max((trial.number for trial in known), default=0)
        space = TuneOptuna.convert_search_space({key: as_tune(domain) for key, domain in config.space.items()})
        storage = optuna.storages.InMemoryStorage()
        directions: list[Any] = ["minimize" if mode == "min" else "maximize" for mode in modes]
        study = optuna.create_study(storage=storage, study_name="sweep", directions=directions)
        study.add_trials(seen for trial, outcome in ended if (seen := _seen(trial, outcome, trials, config, space)) is not None)
        one = len(modes) == 1
        # Another seed after a resume: with the same one, the points of the start would be drawn again.
        seed = int(np.random.SeedSequence((config.search.seed, len(ended))).generate_state(1)[0])
        self._optuna = TuneOptuna(
            space,
            metric=config.objectives[0] if one else list(config.objectives),
            mode=modes[0] if one else list(modes),
            points_to_evaluate=[dict(trial.parameters) for trial in self._open],
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.search.startup),
            storage=storage,
            study_name="sweep",
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        parameters = self._optuna.suggest(trial_id)
        if parameters is None:
            return None
        for trial in self._open:
            if dict(trial.parameters) == parameters:
                self._open.remove(trial)
                return point(trial)
        trial = Trial(number=self._next, parameters=parameters)
        self._trials.add(trial)
        self._next += 1
        return point(trial)

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._optuna.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials are written down as they come."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


def as_tune(domain: Domain) -> Any:
    """The same in Ray Tune's terms."""
    if isinstance(domain, Choice):
        return tune.choice(list(domain.values))
    return (tune.loguniform if isinstance(domain, LogUniform) else tune.uniform)(domain.low, domain.high)


def _drawn(domain: Domain, rng: np.random.RandomState) -> Any:
    if isinstance(domain, Choice):
        return domain.values[rng.randint(len(domain.values))]
    if isinstance(domain, LogUniform):
        return math.exp(rng.uniform(math.log(domain.low), math.log(domain.high)))
    return float(rng.uniform(domain.low, domain.high))


def _mutation(domain: Domain) -> Any:
    """What population-based training draws from; of a list it also takes neighbours."""
    return list(domain.values) if isinstance(domain, Choice) else as_tune(domain)


def _inside(found: dict[str, Any], space: Mapping[str, Domain]) -> dict[str, Any]:
    """A point that was multiplied out of its range, at the nearest end of it."""
    parameters = found["point"]["parameters"]
    for key, domain in space.items():
        if isinstance(domain, Range):
            parameters[key] = min(max(parameters[key], domain.low), domain.high)
    return found


def _seen(trial: Trial, outcome: Outcome, trials: Trials, config: SweepConfig, space: Mapping[str, Any]) -> Any:
    """An ended trial as Optuna's; None where there is nothing to learn from it."""
    found = trials.evaluation(trial, outcome)
    figures = objectives.intervals(found) if found else {}
    if not all(name in figures for name in config.objectives):
        return None
    values = [figures[name].value for name in config.objectives]
    return optuna.trial.create_trial(params=dict(trial.parameters), distributions=dict(space), values=values)
