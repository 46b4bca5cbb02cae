"""One self-contained page about a sweep: response surfaces, the Pareto front, the best schedule beside the published ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from omr_ray.config.reading import dump
from omr_ray.config.run import RunConfig
from omr_ray.config.sweep import OBJECTIVES, LogUniform, SweepConfig
from omr_ray.evaluation import objectives, plots
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.report import SCHEDULE_ROUNDS, TERMS, Plot
from omr_ray.evaluation.sweep_results import Row, VariantRow, best_row, points, read_rows, read_variants, write_parquet
from omr_ray.rewards.schedule import SCHEDULES
from omr_ray.trials import Trials
from omr_ray.weights import write_atomic

TITLES = {
    "preference": "Preference score",
    "consistency": "Consistency of the last round",
    "diversity": "Diversity of the last round",
    "rounds_to_intent": "Rounds to intent",
    "accuracy": "Aspects right in the last round",
}
# What every schedule is drawn beside (OMR eq. 9, section 4.1, and Ours_RC25 of table 1).
PUBLISHED = {
    "paper: 0.15, 0.10, 0.075": {"type": "exponential", "alpha": 0.15, "beta": 0.1, "gamma": 0.075},
    "RC25: 0.25 each": {"type": "constant", "diversity": 0.25, "consistency": 0.25, "mutual_information": 0.25},
}
MOST_SURFACES = 3  # pairs of parameters an objective


def write(trials: Trials, config: SweepConfig, base: RunConfig) -> dict[str, Any]:
    """results.parquet and report.html of a sweep's directory; returns where they are, how trials ended, and the best one."""
    rows = read_rows(trials, config, base)
    variants = read_variants(rows, trials, config, base)
    best = best_row(rows, config.objectives)
    results, report = trials.path / "results.parquet", trials.path / "report.html"
    write_parquet(rows, config, results)
    write_atomic(report, page(rows, variants, best, config, base).encode())
    return {
        "sweep": str(trials.path),
        "results": str(results),
        "report": str(report),
        "trials": dict(Counter(row.status for row in rows)),
        "best": best
        and {
            "trial": best.trial.number,
            "name": best.trial.name,
            "parameters": dict(best.trial.parameters),
            "objectives": {name: best.figures[name].value for name in config.objectives},
            "run": str(best.run),
        },
    }


def page(rows: Sequence[Row], variants: Sequence[VariantRow], best: Row | None, config: SweepConfig, base: RunConfig) -> str:
    """The HTML of the report."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    measured = [row for row in rows if row.status == "finished"]
    front = objectives.pareto(points(measured, config.objectives), config.objectives) if measured else np.zeros(0, bool)
    shown = [name for name in OBJECTIVES if any(name in row.figures for row in rows)]
    return environment.get_template("sweep.html.j2").render(
        name=config.name,
        summary=_summary(rows, config, base),
        best=best,
        titles=TITLES,
        objectives=config.objectives,
        shown=shown,
        keys=sorted({key for row in rows for key in row.trial.parameters}),
        front={row.trial.number for row, on in zip(measured, front, strict=True) if on},
        surfaces=_surfaces(measured, best, config) if best else [],
        fronts=_fronts(measured, front, config),
        schedules=_schedules(best.schedule if best else None),
        variants=variants,
        forests=_forests(variants, shown),
        rows=rows,
        interval=_interval,
        config=dump(config),
        run=dump(base),
    )


def _summary(rows: Sequence[Row], config: SweepConfig, base: RunConfig) -> list[tuple[str, str]]:
    counts = Counter(row.status for row in rows)
    return [
        ("Trials", ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"),
        ("Run", f"{config.run}, {base.steps} steps"),
        ("Search", config.search.type),
        ("Scheduler", config.scheduler.type if config.scheduler else "none: every trial runs to its end"),
        ("Objectives", ", ".join(f"{name} ({OBJECTIVES[name]})" for name in config.objectives)),
        ("Judged on", f"{base.evaluation.dialogues} held-out dialogues, seed {base.evaluation.seed}"),
        ("Training", f"{sum(row.seconds for row in rows) / 60:.1f} min, all trials together"),
    ]


def _surfaces(rows: Sequence[Row], best: Row, config: SweepConfig) -> list[Plot]:
    """Every objective over each pair of swept numbers; over one alone, points with intervals."""
    keys = [key for key in config.space if all(_number(row.trial.parameters.get(key)) for row in rows)]
    keys = [key for key in keys if len({row.trial.parameters[key] for row in rows}) > 1]
    found = []
    for name in config.objectives:
        if any(name not in row.figures for row in rows):
            continue
        if len(keys) == 1:
            x, y = _parameter(rows, keys[0], config), _objective(rows, name)
            svg = plots.scatter(x, y, marked=[row is best for row in rows])
            found.append(Plot(title=TITLES[name], svg=Markup(svg), note="Red: the best trial."))
        for pair in list(itertools.combinations(keys, 2))[:MOST_SURFACES]:
            x, y = (_parameter(rows, key, config) for key in pair)
            heights = [row.figures[name].value for row in rows]
            svg = plots.surface(x, y, heights, best=next(i for i, row in enumerate(rows) if row is best), label=name.replace("_", " "))
            found.append(Plot(title=f"{TITLES[name]}: {pair[0].split('.')[-1]} and {pair[1].split('.')[-1]}", svg=Markup(svg)))
    return found


def _fronts(rows: Sequence[Row], front: np.ndarray, config: SweepConfig) -> list[Plot]:
    """Each pair of objectives, the trials that no other one beats in red."""
    pairs = itertools.combinations(config.objectives, 2) if front.any() else []
    known = [all(name in row.figures for name in config.objectives) for row in rows]
    rows, marked = [row for row, full in zip(rows, known, strict=True) if full], front[np.array(known, dtype=bool)]
    return [
        Plot(
            title=f"{TITLES[one]} and {TITLES[other].lower()}",
            svg=Markup(plots.scatter(_objective(rows, one), _objective(rows, other), marked=marked, joined=len(config.objectives) == 2)),
        )
        for one, other in pairs
    ]


def _schedules(schedule: Mapping[str, Any] | None) -> list[Plot]:
    """The weight of each term by round: the best trial's beside the published ones."""
    drawn = ({"best trial": schedule} if schedule else {}) | PUBLISHED
    rounds = list(range(1, SCHEDULE_ROUNDS + 1))
    weights = {name: [_weights(values, t) for t in rounds] for name, values in drawn.items()}
    colors = {"best trial": plots.ROUND_COLORS[3], **dict(zip(PUBLISHED, plots.ROUND_COLORS, strict=False))}
    return [
        Plot(
            title=TERMS[term],
            svg=Markup(
                plots.lines(
                    {name: (rounds, [weight[term] for weight in by_round]) for name, by_round in weights.items()},
                    x="round",
                    y="weight",
                    colors=colors,
                )
            ),
        )
        for term in plots.TERM_COLORS
    ]


def _weights(schedule: Mapping[str, Any], t: int) -> dict[str, float]:
    return SCHEDULES[schedule["type"]](t, **{key: value for key, value in schedule.items() if key != "type"})


def _forests(variants: Sequence[VariantRow], shown: Sequence[str]) -> list[Plot]:
    found = []
    for name in shown:
        rows = {variant.name: variant.differences[name] for variant in variants if name in variant.differences}
        if rows:
            found.append(Plot(title=TITLES[name], svg=Markup(plots.forest(rows, x=f"difference to {variants[0].name}"))))
    return found


def _parameter(rows: Sequence[Row], key: str, config: SweepConfig) -> plots.Scale:
    values = np.array([row.trial.parameters[key] for row in rows], dtype=np.float64)
    return plots.Scale(name=key.split(".")[-1], values=values, log=isinstance(config.space.get(key), LogUniform))


def _objective(rows: Sequence[Row], name: str) -> plots.Scale:
    values, low, high = (np.array([getattr(row.figures[name], part) for row in rows]) for part in ("value", "low", "high"))
    return plots.Scale(name=TITLES[name], values=values, low=low, high=high)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _interval(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]".replace("-", "−")
