"""The config of a sweep (`omr-ray sweep`): many training runs whose configs differ in a few dotted keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from omr_ray.config.reading import Config, with_overrides
from omr_ray.config.run import AtelierModel, RunConfig
from omr_ray.types import UserError

# What can be wanted of a trial, and which way is better. All of it is measured on held-out dialogues, none of it holds a swept weight.
OBJECTIVES: dict[str, Literal["min", "max"]] = {
    "preference": "max",
    "consistency": "max",
    "diversity": "max",
    "rounds_to_intent": "min",
    "accuracy": "max",
}
READ_EXACTLY = ("rounds_to_intent", "accuracy")  # by the oracle of the embedded world
# Keys that every trial of a sweep shares: what it is judged on, and what it asks the cluster for.
SHARED = (
    *("name", "dialogues", "evaluation", "rewards.preference"),
    *("workers", "learner.ranks", "learner.min_ranks", "cluster", "checkpoint", "tracking"),
)


class Range(Config):
    low: float
    high: float

    @model_validator(mode="after")
    def range_is_not_empty(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        return self

    def examples(self) -> list[Any]:
        return [self.low, self.high]


class Uniform(Range):
    """Any number between `low` and `high`."""

    type: Literal["uniform"] = "uniform"


class LogUniform(Range):
    """The same on a logarithmic scale: for what is searched over powers of ten."""

    type: Literal["log_uniform"] = "log_uniform"
    low: PositiveFloat


class Choice(Config):
    """One of `values`, which may be numbers, words, or whole parts of a config."""

    type: Literal["choice"] = "choice"
    values: tuple[JsonValue, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def values_differ(cls, values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
        written = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(written)) < len(written):
            raise ValueError(f"the same value stands twice: {', '.join(written)}")
        return values

    def examples(self) -> list[Any]:
        return list(self.values)


Domain = Annotated[Uniform | LogUniform | Choice, Field(discriminator="type")]


class RandomSearch(Config):
    """`trials` points, each drawn by itself."""

    type: Literal["random"] = "random"
    trials: PositiveInt = 16
    seed: NonNegativeInt = 0


class GridSearch(Config):
    """Every combination of the space's values: choices only."""

    type: Literal["grid"] = "grid"


class OptunaSearch(Config):
    """Tree-structured Parzen estimator (Optuna): the next point follows from those that are finished. Takes several objectives."""

    type: Literal["optuna"] = "optuna"
    trials: PositiveInt = 16
    startup: PositiveInt = Field(8, description="points that are drawn at random before the estimator says anything")
    seed: NonNegativeInt = 0


class VariantSearch(Config):
    """Configs with names, each run with every seed: an ablation. The first is what the others are compared with."""

    type: Literal["variants"] = "variants"
    variants: dict[str, tuple[str, ...]] = Field(min_length=2, description="name -> overrides, as on the command line")
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)


Search = Annotated[RandomSearch | GridSearch | OptunaSearch | VariantSearch, Field(discriminator="type")]


class Asha(Config):
    """Asynchronous successive halving (arXiv:1810.05934): of the trials that reach a rung, one of `reduction` goes on."""

    type: Literal["asha"] = "asha"
    grace: PositiveInt = Field(10, description="steps before a trial may be stopped; the first rung")
    reduction: int = Field(3, ge=2)


class PopulationBased(Config):
    """Population-based training (arXiv:1711.09846): the worst take over a better one's weights, and its point, changed a little."""

    type: Literal["population"] = "population"
    every: PositiveInt = Field(20, description="steps between two exchanges")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the population that is replaced, and that is copied from")
    resample: float = Field(0.25, ge=0, le=1, description="chance that a value is drawn anew; else a number is taken times 0.8 or 1.2")


Scheduler = Annotated[Asha | PopulationBased, Field(discriminator="type")]


class Intermediate(Config):
    """A cheap look at a policy while it is trained: what schedulers decide on, and what is left of a trial that they stop."""

    every: PositiveInt = Field(10, description="steps")
    dialogues: PositiveInt = Field(16, description="the first ones of the held-out dialogues")


class SweepConfig(Config):
    """One sweep. Trials are runs of `run` with `overrides`, and with what the search says on top."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    run: str = Field(description="config of one training run, see configs/")
    overrides: tuple[str, ...] = Field((), description="of every trial, as on the command line")
    space: dict[str, Domain] = Field({}, description="dotted key of the run's config -> where its value may lie")
    search: Search = RandomSearch()
    scheduler: Scheduler | None = None
    objectives: tuple[str, ...] = Field(
        ("preference",), min_length=1, description="schedulers, and searches that take one, follow the first"
    )
    intermediate: Intermediate = Intermediate()
    concurrency: PositiveInt | None = Field(None, description="most trials at a time; None, and at most, what the cluster has room for")
    retries: NonNegativeInt = Field(2, description="of one trial, each from its own last checkpoint; then it is reported as failed")

    @field_validator("objectives")
    @classmethod
    def objectives_hold_no_swept_weight(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name == "total" or name.split("/")[0] == "reward":
                raise ValueError(
                    f"{name!r} cannot be an objective: the total reward is made with the weights that are swept, so it differs between "
                    f"schedules that bring the same images; choose among {', '.join(OBJECTIVES)}"
                )
            if name not in OBJECTIVES:
                raise ValueError(f"unknown objective {name!r}; choose among {', '.join(OBJECTIVES)}")
        if len(set(names)) < len(names):
            raise ValueError(f"an objective stands twice in {', '.join(names)}")
        return names

    @field_validator("space")
    @classmethod
    def keys_are_a_trials_own(cls, space: dict[str, Domain]) -> dict[str, Domain]:
        for key in space:
            _refuse_shared(key)
        return space

    @model_validator(mode="after")
    def search_fits_its_space(self) -> SweepConfig:
        kind = self.search.type
        if isinstance(self.search, VariantSearch):
            if self.space:
                raise ValueError("a search of variants takes no space; give each variant's values as its overrides")
            for overrides in self.search.variants.values():
                for override in overrides:
                    _refuse_shared(override.partition("=")[0])
                    if override.startswith("seed="):
                        raise ValueError(f"{override!r} in a variant: seeds are listed once for all, in search.seeds")
        elif not self.space:
            raise ValueError(f"search {kind} needs a space: dotted keys and where their values may lie")
        if isinstance(self.search, GridSearch) and (ranges := [key for key, value in self.space.items() if not isinstance(value, Choice)]):
            raise ValueError(f"a grid takes choices only, {', '.join(ranges)} is a range; list its values, or take another search")
        if isinstance(self.search, OptunaSearch) and (parts := [key for key, value in self.space.items() if not _plain(value)]):
            raise ValueError(f"search optuna takes plain values only, not those of {', '.join(parts)}; take grid, random or variants")
        return self

    @model_validator(mode="after")
    def scheduler_fits_the_search(self) -> SweepConfig:
        every = self.intermediate.every
        match self.scheduler:
            case PopulationBased(every=exchange):
                if not isinstance(self.search, RandomSearch):
                    raise ValueError(
                        f"scheduler population draws and changes points itself: it takes search random, not {self.search.type}"
                    )
                if self.concurrency is not None:
                    raise ValueError("scheduler population lets its members take turns where room is short; leave concurrency out")
                if fixed := [key for key in self.space if key.split(".")[0] in ("lora", "model")]:
                    raise ValueError(f"scheduler population hands weights on: {', '.join(fixed)} must be the same in all trials")
                if exchange % every:
                    raise ValueError(f"scheduler.every ({exchange}) must be a multiple of intermediate.every ({every})")
            case Asha(grace=grace) if grace < every:
                raise ValueError(f"scheduler.grace ({grace}) must be at least intermediate.every ({every}): nothing is known before")
        return self

    def base(self) -> RunConfig:
        """The config that trials differ from. Raises UserError where it, or a trial at a limit of the space, is not valid."""
        base = RunConfig.load(self.run, self.overrides)
        if not isinstance(base.model, AtelierModel) and (asked := [name for name in self.objectives if name in READ_EXACTLY]):
            raise UserError(
                f"objectives: {', '.join(asked)} can be read from images of the embedded world only, model.kind is {base.model.kind}; "
                "take preference, consistency or diversity"
            )
        for overrides in self._corners():
            with_overrides(base, overrides)
        if isinstance(self.scheduler, PopulationBased) and self.intermediate.every % base.checkpoint.every:
            raise UserError(
                f"intermediate.every ({self.intermediate.every}) must be a multiple of the run's checkpoint.every "
                f"({base.checkpoint.every}) under scheduler population: weights are taken over from checkpoints"
            )
        return base

    def _corners(self) -> Iterator[Sequence[str]]:
        """Overrides at every limit and choice of the space, one key at a time, and those of all variants."""
        for key, domain in self.space.items():
            for value in domain.examples():
                yield as_overrides({key: value})
        if isinstance(self.search, VariantSearch):
            yield from self.search.variants.values()


def as_overrides(parameters: Mapping[str, Any]) -> list[str]:
    """{"sampler.steps": 20} as ["sampler.steps=20"]: a trial's parameters in the form of the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in parameters.items()]


def _refuse_shared(key: str) -> None:
    for shared in SHARED:
        if key == shared or key.startswith(f"{shared}.") or shared.startswith(f"{key}."):
            raise ValueError(f"{key!r} cannot be swept: {shared} is the same in all trials, or they could not be compared or placed")


def _plain(domain: Any) -> bool:
    return not isinstance(domain, Choice) or all(not isinstance(value, dict | list) for value in domain.values)
