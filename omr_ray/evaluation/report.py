"""One self-contained page about a run: figures with intervals, curves, pictures. Reads nothing but the run directory."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image

from omr_ray import __version__
from omr_ray.evaluation import metrics, plots
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.protocols import compare, last_round, over_rounds
from omr_ray.evaluation.results import Comparison, Evaluation, load
from omr_ray.rewards.schedule import SCHEDULES
from omr_ray.tracking import METRICS, TIMINGS, read_metrics
from omr_ray.types import UserError

PACKAGES = ("torch", "ray", "diffusers", "transformers", "peft", "deepspeed", "numpy")
TERMS = {"diversity": "Diversity", "consistency": "Consistency", "mutual_information": "Mutual information", "total": "Total, weighted"}
DIAGNOSTICS = {
    "kl": "KL to the base",
    "ratio_mean": "Importance ratio, mean",
    "clip_fraction": "Clipped share",
    "grad_norm": "Gradient norm",
    "policy_loss": "Policy loss",
    "one_step_reward": "Preference of the one-step x0",
    "one_step_diversity": "Distance of the one-step x0 from its siblings",
    "noise_loss": "Multi-round loss",
    "first_ratio_deviation": "Ratio off 1 before the update",
    "dropped_rows": "Rows left out",
    "skipped_updates": "Updates left out",
}
NOT_A_PART = ("seconds/step", "seconds/collate")  # the whole, and what "controller" holds already
BESIDE = ("seconds/rollout", "seconds/reward", "seconds/weights")  # of a step that waits for its samples alone
SCHEDULE_ROUNDS = 8  # OMR fig. 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One card: the figure before and after, and what changed."""

    title: str
    before: str
    after: str
    change: str
    interval: str
    verdict: str  # "better", "worse" or "unclear" (the interval holds no change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    title: str
    svg: Markup
    note: str = ""


def write_report(run_dir: str | Path) -> Path:
    """Write `<run_dir>/report.html` from config.yaml, metrics.jsonl, timings.jsonl and evaluation/; returns its path.

    A part whose file is not there yet is left out. Raises UserError for a directory that is not a run's.
    """
    run_dir = Path(run_dir)
    config_file = run_dir / "config.yaml"
    if not config_file.exists():
        raise UserError(f"{run_dir}: not a run directory, config.yaml is missing; give the directory that `omr-ray train --out` wrote")
    config_text = config_file.read_text()
    config = yaml.safe_load(config_text)
    steps = _steps(run_dir / METRICS)
    phases = {
        phase: load(run_dir / "evaluation", phase) for phase in ("before", "after") if (run_dir / f"evaluation/{phase}.json").exists()
    }
    both = phases if len(phases) == 2 else {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        name=config["name"],
        summary=_summary(config, steps),
        weights={phase: result.weights for phase, result in phases.items()},
        seed=next((result.seed for result in phases.values()), None),
        dialogues=len(next(iter(phases.values())).held_out.dialogues) if phases else 0,
        headlines=headlines(both["before"], both["after"], compare(both["before"], both["after"])) if both else [],
        evaluation_plots=_evaluation_plots(phases),
        sheet=_sheet(phases),
        reward_plots=_reward_plots(steps),
        learning_plots=_learning_plots(steps),
        schedule=_schedule_plot(config["rewards"]["schedule"], config["rewards"].get("terms", ())),
        phase_times=_phase_times(_steps(run_dir / TIMINGS)),
        config=config_text,
        versions={"omr-ray": __version__, "python": platform.python_version(), **_versions()},
    )
    path = run_dir / "report.html"
    path.write_text(page)
    return path


def headlines(before: Evaluation, after: Evaluation, comparison: Comparison) -> list[Headline]:
    """The cards on top of the page; what was not measured has none."""
    cards = []
    old, new = before.held_out, after.held_out
    if comparison.last_round_gain:
        values = (np.nanmean(last_round(side.accuracy)) for side in (old, new))
        cards.append(
            _card("Aspects right in the last round", values, comparison.last_round_gain, "{:.1%}", "{:+.1f}", "{} points", scale=100)
        )
    if comparison.rounds_to_intent_change_percent and before.intent and after.intent:
        means = (side.intent.rounds.mean() for side in (before, after) if side.intent)
        cards.append(_card("Rounds to intent", means, comparison.rounds_to_intent_change_percent, "{:.2f}", "{:+.1f}", "{} %", up=False))
    if comparison.preference_gain:
        values = (np.nanmean(over_rounds(side.preference)) for side in (old, new))
        cards.append(_card("Preference score", values, comparison.preference_gain, "{:.3f}", "{:+.3f}"))
    if comparison.consistency_gain:
        values = (np.nanmean(over_rounds(side.consistency)) for side in (old, new))
        cards.append(_card("Consistency between rounds", values, comparison.consistency_gain, "{:.3f}", "{:+.3f}"))
    if comparison.diversity_ratio:
        values = (np.nanmean(over_rounds(side.diversity)) for side in (old, new))
        cards.append(_card("Diversity of siblings", values, comparison.diversity_ratio, "{:.3f}", "{:.2f}", "× {}", neutral=1.0))
    return cards


def _card(
    title: str,
    values: Any,
    change: Interval,
    form: str,
    number: str,
    unit: str = "{}",
    *,
    up: bool = True,
    neutral: float = 0.0,
    scale: float = 1.0,
) -> Headline:
    before, after = values
    clear = not change.low <= neutral <= change.high
    better = (change.value > neutral) == up
    low, middle, high = (number.format(scale * value).replace("-", "−") for value in (change.low, change.value, change.high))
    return Headline(
        title=title,
        before=form.format(before),
        after=form.format(after),
        change=unit.format(middle),
        interval=f"{low} … {high}",
        verdict="unclear" if not clear else "better" if better else "worse",
    )


def _summary(config: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    model, sampler = config["model"], config["sampler"]
    return [
        ("Model", model.get("path", model["kind"])),
        ("Adapter", f"LoRA rank {config['lora']['rank']}, alpha {config['lora']['alpha']:g}"),
        ("Algorithm", config["algorithm"]["type"].upper()),
        ("Steps", f"{steps[-1]['step'] if steps else 0} of {config['steps']}"),
        ("Samples a round", f"{config['dialogues_per_step']} dialogues × {sampler['siblings']} siblings"),
        ("Denoising", f"{sampler['steps']} steps, {sampler['train_steps_per_round']} trained in {sampler['window']}"),
        ("Seed", str(config["seed"])),
    ]


def _evaluation_plots(phases: Mapping[str, Evaluation]) -> list[Plot]:
    found = []
    for name, title in (
        ("accuracy", "Aspects right by round"),
        ("preference", "Preference by round"),
        ("diversity", "Diversity by round"),
        ("consistency", "Consistency by round"),
    ):
        series = {phase: _by_round(getattr(result.held_out, name)) for phase, result in phases.items()}
        if any(len(xs) for xs, _ in series.values()):
            found.append(Plot(title=title, svg=Markup(plots.lines(series, x="round", colors=plots.PHASE_COLORS))))
    intents = {phase: result.intent for phase, result in phases.items() if result.intent is not None}
    if intents:
        limit = max(intent.max_rounds for intent in intents.values())
        rounds = list(range(1, limit + 2))
        histogram = {phase: (rounds, [float((intent.rounds == r).mean()) for r in rounds]) for phase, intent in intents.items()}
        ticks = {float(r): str(r) if r <= limit else "never" for r in rounds}
        svg = plots.bars(histogram, x="rounds to intent", y="share of sessions", colors=plots.PHASE_COLORS, ticks=ticks)
        found.append(Plot(title="Rounds to intent", svg=Markup(svg)))
        satisfied = {phase: (rounds[:-1], list(metrics.satisfaction(intent.rounds, limit))) for phase, intent in intents.items()}
        svg = plots.lines(satisfied, x="round", y="share of sessions", colors=plots.PHASE_COLORS)
        found.append(Plot(title="Satisfied by round", svg=Markup(svg)))
    return found


def _by_round(figures: np.ndarray) -> tuple[list[int], list[float]]:
    known = [r for r in range(figures.shape[1]) if np.isfinite(figures[:, r]).any()]
    return [r + 1 for r in known], [float(np.nanmean(figures[:, r])) for r in known]


def _reward_plots(steps: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """One plot a reward term, those that users add behind ours; one line a dialogue round."""
    found, rounds = [], [match for name in _names(steps) if (match := re.fullmatch(r"reward/(\w+)/round_(\d+)", name))]
    added = {match[1]: match[1].replace("_", " ") for match in rounds if match[1] not in TERMS}
    for term, title in (TERMS | added).items():
        names = {int(match[2]): match[0] for match in rounds if match[1] == term}
        series = {f"round {index}": _series(steps, names[index]) for index in sorted(names)}
        colors = {f"round {index}": plots.ROUND_COLORS[(index - 1) % len(plots.ROUND_COLORS)] for index in names}
        if series:
            found.append(Plot(title=title, svg=Markup(plots.lines(series, x="step", colors=colors))))
    return found


def _learning_plots(steps: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """What the learner says about its updates: the usual diagnostics first, then whatever else changes."""
    names = [name.removeprefix("learner/") for name in _names(steps) if name.startswith("learner/")]
    known = [name for name in DIAGNOSTICS if name in names]
    found = []
    for name in known + [name for name in names if name not in known]:
        xs, ys = _series(steps, f"learner/{name}")
        if name in known or len(set(ys)) > 1:
            title = DIAGNOSTICS.get(name, name.replace("_", " "))
            found.append(Plot(title=title, svg=Markup(plots.lines({title: (xs, ys)}, x="step", size=(3.4, 2.0)))))
    return found


def _schedule_plot(schedule: Mapping[str, Any], terms: Sequence[Mapping[str, Any]]) -> Plot:
    settings = {key: value for key, value in schedule.items() if key != "type"}
    rounds = list(range(1, SCHEDULE_ROUNDS + 1))
    weights = [SCHEDULES[schedule["type"]](t, **settings) for t in rounds]
    series = {TERMS[name]: (rounds, [weight[name] for weight in weights]) for name in weights[0]}
    series |= {term["name"]: (rounds, [term["weight"]] * len(rounds)) for term in terms}
    colors = {TERMS[name]: color for name, color in plots.TERM_COLORS.items()}
    note = f"{schedule['type']}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
    return Plot(title="Reward weights by round", svg=Markup(plots.lines(series, x="round", y="weight", colors=colors)), note=note)


def _phase_times(timings: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Seconds by phase; together they are the whole step."""
    names = _names(timings)
    others = (*NOT_A_PART, *BESIDE) if "seconds/samples" in names else NOT_A_PART
    parts = [name for name in names if name.startswith("seconds/") and name not in others]
    if not parts:
        return None
    steps = [line["step"] for line in timings]
    values = {name.removeprefix("seconds/"): [_number(line.get(name)) for line in timings] for name in parts}
    whole = [_number(line.get("seconds/step")) for line in timings]
    note = f"mean {np.nanmean(whole):.1f} s a step" if np.isfinite(whole).any() else ""
    return Plot(title="Time by phase", svg=Markup(plots.stacked(steps, values, x="step", y="seconds")), note=note)


def _sheet(phases: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """The same dialogues under every phase: one block a dialogue, one column a round."""
    if not phases:
        return []
    blocks = []
    for rows in zip(*(result.sheet for result in phases.values()), strict=True):
        first = rows[0]
        columns = [
            {
                "round": index,
                "utterance": round_.utterance,
                "prompt": round_.prompt,
                "target": None if round_.target is None else _data_uri(round_.target),
                "made": {
                    phase: {"image": _data_uri(row.rounds[index - 1].image), "wrong": row.rounds[index - 1].wrong}
                    for phase, row in zip(phases, rows, strict=True)
                },
            }
            for index, round_ in enumerate(first.rounds, start=1)
        ]
        blocks.append(
            {"dialogue": first.dialogue, "intent": first.intent, "columns": columns, "targets": any(c["target"] for c in columns)}
        )
    return blocks


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _steps(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []


def _names(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for step in steps for name in step})


def _series(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    known = [(step["step"], step[name]) for step in steps if step.get(name) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
