"""What came of a sweep, read from its directory: a row a trial, and a row a variant. `write_parquet` makes the table of it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import OBJECTIVES, SweepConfig, VariantSearch
from omr_ray.evaluation import objectives, protocols
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.results import Evaluation, load
from omr_ray.trials import Trial, Trials
from omr_ray.weights import write_atomic

OPEN = "open"  # has not ended: the sweep was cut off


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial. A stopped one has the figures of its last look, on fewer dialogues, and no gains."""

    trial: Trial
    status: str
    step: int
    error: str | None
    run: Path
    seconds: float
    schedule: Mapping[str, Any]  # of the rewards, as in its config
    figures: Mapping[str, Interval]  # by objective
    gains: Mapping[str, Interval]  # over the untrained policy, paired by dialogue
    evaluation: Evaluation | None


@dataclass(frozen=True, kw_only=True)
class VariantRow:
    """One variant: the mean over the seeds that have finished, dialogue by dialogue."""

    name: str
    seeds: int
    figures: Mapping[str, Interval]
    gains: Mapping[str, Interval]  # over the untrained policy
    differences: Mapping[str, Interval]  # to the first variant; empty for itself


def read_rows(trials: Trials, config: SweepConfig, base: RunConfig) -> list[Row]:
    """All trials, by number."""
    return [_row(trial, trials, config, base) for trial in trials.known()]


def best_row(rows: Sequence[Row], names: Sequence[str]) -> Row | None:
    """The best of the finished trials (`objectives.best`); None where none has finished."""
    finished = [row for row in rows if row.status == "finished"]
    place = objectives.best(points(finished, names), names) if finished else None
    return None if place is None else finished[place]


def points(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """The objectives of rows: f64 [N M], NaN where one was not measured."""
    missing = Interval(value=np.nan, low=np.nan, high=np.nan)
    return np.array([[row.figures.get(name, missing).value for name in names] for row in rows], dtype=np.float64).reshape(-1, len(names))


def read_variants(rows: Sequence[Row], trials: Trials, config: SweepConfig, base: RunConfig) -> list[VariantRow]:
    """A row for every variant of which a seed has finished, in the order of the config; empty for other searches."""
    if not isinstance(config.search, VariantSearch):
        return []
    found: list[VariantRow] = []
    reference: Evaluation | None = None
    for name in config.search.variants:
        mine = [row for row in rows if row.trial.name == name and row.status == "finished" and row.evaluation]
        if not mine:
            continue
        whole = protocols.averaged([row.evaluation for row in mine if row.evaluation])
        untrained = load(trials.base(mine[0].trial.config(base, config.name)), "before")
        first = reference is None and name == next(iter(config.search.variants))
        reference = whole if first else reference
        found.append(
            VariantRow(
                name=name,
                seeds=len(mine),
                figures=objectives.intervals(whole),
                gains=objectives.gains(untrained, whole),
                differences={} if first or reference is None else objectives.gains(reference, whole),
            )
        )
    return found


def write_parquet(rows: Sequence[Row], config: SweepConfig, path: Path) -> None:
    """One row a trial: parameters by dotted key, every objective with its interval and its gain, status, run directory, seconds."""
    columns: dict[str, Any] = {
        "trial": pa.array([row.trial.number for row in rows], pa.int64()),
        "variant": pa.array([row.trial.name for row in rows], pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
        "step": pa.array([row.step for row in rows], pa.int64()),
        "seconds": pa.array([row.seconds for row in rows], pa.float64()),
        "run": pa.array([str(row.run) for row in rows], pa.string()),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    for key in sorted({key for row in rows for key in row.trial.parameters}):
        columns[key] = _column([row.trial.parameters.get(key) for row in rows])
    for name in OBJECTIVES:
        for prefix, values in (("", [row.figures.get(name) for row in rows]), ("gain_", [row.gains.get(name) for row in rows])):
            for part in ("value", "low", "high"):
                known = [None if value is None else getattr(value, part) for value in values]
                columns[f"objective/{prefix}{name}{'' if part == 'value' else f'_{part}'}"] = pa.array(known, pa.float64())
    buffer = io.BytesIO()
    metadata = {"sweep": config.name, "objectives": json.dumps(config.objectives)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer)
    write_atomic(path, buffer.getvalue())


def _row(trial: Trial, trials: Trials, config: SweepConfig, base: RunConfig) -> Row:
    outcome, own = trials.outcome(trial.number), trial.config(base, config.name)
    found = trials.evaluation(trial, outcome) if outcome else None
    untrained = load(trials.base(own), "before") if outcome and outcome.status == "finished" else None
    return Row(
        trial=trial,
        status=outcome.status if outcome else OPEN,
        step=outcome.step if outcome else 0,
        error=outcome.error if outcome else None,
        run=trials.run(trial),
        seconds=trials.seconds(trial),
        schedule=own.rewards.schedule.model_dump(),
        figures=objectives.intervals(found) if found else {},
        gains=objectives.gains(untrained, found) if found and untrained else {},
        evaluation=found,
    )


def _column(values: Sequence[Any]) -> pa.Array:
    """Numbers as numbers, words as words, and what is mixed or has parts as JSON."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        kind = pa.int64() if all(isinstance(value, int) for value in known) else pa.float64()
        return pa.array([value if value is None or kind == pa.int64() else float(value) for value in values], kind)
    if all(isinstance(value, str) for value in known):
        return pa.array(values, pa.string())
    return pa.array([None if value is None else json.dumps(value, sort_keys=True) for value in values], pa.string())
