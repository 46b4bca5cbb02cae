"""One page for all protocols, and one page, JSON and CSV for each. Self-contained."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from omr_ray import __version__
from omr_ray.config.reading import dump
from omr_ray.evaluation.papers.published import MEASURED
from omr_ray.evaluation.papers.result import Context, Result

TITLES = {"blip": "BLIP", "lpips": "LPIPS", "aesthetic": "Aesthetic score"}


def write(results: Sequence[Result], context: Context, *, made_by: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """NAME.html, NAME.json and NAME.csv a protocol, and report.html over all. `made_by`: each model and which weights it is."""
    folder = context.results.folder
    common: dict[str, Any] = {
        "summary": _summary(context),
        "made_by": made_by,
        "metrics": _metrics(context),
        "skipped": sorted(context.skipped.items()),
        "documents": [("Comparison", dump(context.config)), ("Run", dump(context.run))],
    }
    files = {}
    for result in results:
        folder.write(f"{result.name}.html", page([result], name=f"{result.title} · {context.config.name}", **common).encode())
        folder.write(f"{result.name}.json", json.dumps(result.as_json(), indent=1, allow_nan=False).encode())
        folder.write(f"{result.name}.csv", result.as_csv().encode())
        files[result.name] = folder.shown(f"{result.name}.html")
    shown = sorted(results, key=lambda result: not (result.drawings or _measured(result)))  # what is missing altogether goes last
    folder.write("report.html", page(shown, name=context.config.name, headlines=headlines(results, context), **common).encode())
    return {"report": folder.shown("report.html"), "protocols": files}


def page(
    results: Sequence[Result],
    *,
    name: str,
    summary: Sequence[tuple[str, str]],
    made_by: Sequence[tuple[str, str]],
    documents: Sequence[tuple[str, str]],
    metrics: Sequence[tuple[str, str]] = (),
    skipped: Sequence[tuple[str, str]] = (),
    headlines: Sequence[Mapping[str, str]] = (),
) -> str:
    """Results as one page. made_by: what is compared, and what made it; documents: configs and the like, with their titles."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("omr_ray.evaluation", "."), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("papers.html.j2").render(
        results=results,
        name=name,
        summary=summary,
        made_by=made_by,
        documents=documents,
        metrics=metrics,
        skipped=skipped,
        headlines=headlines,
        measured=MEASURED,
        measured_here=_measured,
        versions={"omr-ray": __version__, "python": platform.python_version()},
    )


def headlines(results: Sequence[Result], context: Context) -> list[dict[str, str]]:
    """The figures that the papers put in front, of the last model that stands for theirs beside the first one."""
    ours = [name for name in context.models if context.published(name) == "Ours"]
    table = next((table for result in results if result.name == "omr-table1" for table in result.tables), None)
    if not ours or table is None:
        return []
    rows, (first, *_) = dict(table.rows), context.models
    cards = []
    for place, column in enumerate(table.columns):
        before, after = rows[first][place], rows[ours[-1]][place]
        if before.value is not None and after.value is not None and first != ours[-1]:
            cards.append({"title": column, "value": after.shown, "before": before.shown, "interval": after.shown_interval})
    return cards


def _metrics(context: Context) -> list[tuple[str, str]]:
    """Each metric, and which weights it is, or why it was skipped."""
    run = context.run
    made_by = {
        "Preference score": ("preference", run.rewards.preference.path),
        "Oracle": ("oracle", "the embedded world's judge, trained on renders alone"),
        "Feature distance": ("features", f"f(z) of {getattr(run.model, 'path', run.model.kind)} without an adapter; not LPIPS"),
    }
    for metric in context.config.metrics:
        name = context.clip if metric.type == "clip" else TITLES[metric.type]
        made_by[name] = (metric.type, "the embedded one (atelier)" if metric.path == "atelier" else str(metric.path))
    return [(title, f"skipped: {context.skipped[name]}" if name in context.skipped else which) for title, (name, which) in made_by.items()]


def _summary(context: Context) -> list[tuple[str, str]]:
    run, judged = context.run, context.run.evaluation
    return [
        ("Diffusion model", getattr(run.model, "path", run.model.kind)),
        ("Dialogues", f"{judged.dialogues} held out, {judged.siblings} siblings, seed {judged.seed}"),
        ("Denoising", f"{run.sampler.steps} steps, guidance {run.sampler.guidance_scale:g}, edits at {run.sampler.strength[0]:g}"),
        ("Sessions", f"at most {judged.max_rounds} rounds"),
        ("Preference model", run.rewards.preference.path),
    ]


def _measured(result: Result) -> bool:
    return any(cell.value is not None and not cell.published for table in result.tables for _, cells in table.rows for cell in cells)
