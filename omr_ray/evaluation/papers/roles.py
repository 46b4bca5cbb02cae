"""Tables and figures whose models play a part: ablations and training sizes (OMR fig. 8, 9), D3PO and language models (TDRI table 5, 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from omr_ray.evaluation import comparing
from omr_ray.evaluation.papers import drawing
from omr_ray.evaluation.papers.omr import rounds_to_intent, share_within
from omr_ray.evaluation.papers.published import TDRI_TABLE5, TDRI_TABLE7
from omr_ray.evaluation.papers.result import DIALOGUES, Cell, Context, Drawing, Measure, Missing, Result, Table, arrow
from omr_ray.evaluation.papers.tdri import AGREEMENT

Roles = Mapping[str, Sequence[str]]  # a part, and the models that play it: their mean
BARS = (
    ("preference", "prompt"),
    ("oracle", "prompt"),
    ("clip", "prompt"),
    ("blip", "prompt"),
    ("lpips", "previous"),
    ("features", "previous"),
)


def ablation(context: Context) -> Result:
    """Fig. 8: what leaving out each reward does; bars."""
    remedy = "omr-ray sweep configs/sweep_ablations.yaml --out DIR, then set ablation_sweep=DIR"
    trained = {name: tuple(model.name for model in models) for name, models in context.trials.variants.items()}
    return _bars(context, trained | dict(context.config.ablations), "Reward ablations", remedy, context.trials.missing)


def training_size(context: Context) -> Result:
    """Fig. 9: what more training dialogues do."""
    roles = {f"{size:,}": names for size, names in sorted(context.config.training_sizes.items())}
    remedy = (
        "omr-ray train CONFIG dialogues={kind: json, path: DIR} on 5k, 10k and 15k dialogues, "
        "then name the adapters under models and training_sizes"
    )
    return _bars(context, roles, "Training sizes", remedy)


def personal(context: Context) -> Result:
    """Table 5: one D3PO adapter for all users against one for each."""
    remedy = "let users vote in `omr-ray serve` with updates={}, then name its adapters (runs/serve/adapters) under models and personal"
    names = context.config.personal
    roles: dict[str, Sequence[str]] = {str(role): found for role, found in names.items()}
    users = names.get("per user", ())
    roles |= {f"per user: {name}": (name,) for name in users if len(users) > 1}
    return _satisfaction(context, roles, TDRI_TABLE5, "General and per-user D3PO", remedy)


def language_sizes(context: Context) -> Result:
    """Table 7: language models of several sizes that write the prompts."""
    remedy = "add an augmentation for each size to models, and name them under language_sizes"
    return _satisfaction(context, dict(context.config.language_sizes), TDRI_TABLE7, "Sizes of the language model", remedy)


def _bars(context: Context, roles: Roles, what: str, remedy: str, gaps: tuple[Missing, ...] = ()) -> Result:
    """Bars of every measure, as fig. 8 and 9 draw them."""
    present, missing = _present(context, roles, what, "no adapters for it are given", remedy)
    missing += gaps
    if not present:
        return Result(missing=missing)
    known = [measure for measure in context.wanted(BARS) if any(_pooled(context, measure, names) is not None for names in present.values())]
    found = {
        measure: {
            role: comparing.interval(cube) for role, names in present.items() if (cube := _pooled(context, measure, names)) is not None
        }
        for measure in known
    }
    drawings = tuple(
        Drawing(title=arrow(measure), svg=drawing.interval_bars({measure.title: {role: one for role, one in bars.items() if one}}, y=""))
        for measure, bars in found.items()
    )
    rows = tuple((role, tuple(Cell.of(found[measure].get(role), measure.form) for measure in known)) for role in present)
    table = Table(title=what, columns=tuple(arrow(measure) for measure in known), rows=rows)
    note = "The paper shows this without numbers. A bar of several adapters, seeds for example, is their mean."
    return Result(tables=(table,), drawings=drawings, missing=missing + context.gaps(BARS), note=note)


def _satisfaction(context: Context, roles: Roles, published: Mapping[str, Mapping[str, float]], what: str, remedy: str) -> Result:
    """Satisfaction and fit, beside the paper's rows."""
    names = list(next(iter(published.values())))
    theirs = tuple((row, tuple(Cell.paper(values[name]) for name in names)) for row, values in published.items())
    tables = [Table(title="The paper's", columns=tuple(names), rows=theirs)]
    present, missing = _present(context, roles, what, "no models for it are given", remedy)
    if not present:
        return Result(tables=tuple(tables), missing=missing)
    known = context.known(DIALOGUES, AGREEMENT)
    rows = []
    for role, models in present.items():
        used = [found for name in models if (found := rounds_to_intent(context, name)) is not None]
        rounds = np.concatenate(used, axis=2) if used else None
        cubes = [_pooled(context, measure, models) for measure in known]
        cells = (
            Cell.of(share_within(rounds, context.run.evaluation.max_rounds), "{:.1%}"),
            Cell.of(None if rounds is None else comparing.interval(rounds), "{:.2f}"),
            *(Cell.of(None if cube is None else comparing.interval(cube), one.form) for cube, one in zip(cubes, known, strict=True)),
            Cell.paper(published.get(role, {}).get("satisfaction"), "{:g}%"),
            Cell.paper(published.get(role, {}).get("clip")),
        )
        rows.append((role, cells))
    columns = ("satisfied ↑", "rounds to intent ↓", *(measure.title for measure in known), "paper: satisfaction", "paper: CLIP")
    ours = Table(title=what, columns=columns, rows=tuple(rows))
    return Result(tables=(ours, *tables), missing=missing + context.gaps(AGREEMENT))


def _present(context: Context, roles: Roles, what: str, why: str, remedy: str) -> tuple[dict[str, list[str]], tuple[Missing, ...]]:
    """The models that there are, by part, and what is missing by name."""
    if not roles:
        return {}, (Missing(what=what, why=why, remedy=remedy),)
    absent = {name: role for role, names in roles.items() for name in names if name in context.absent}
    missing = tuple(Missing(what=f"{what}, {role}: {name}", why=context.absent[name], remedy=remedy) for name, role in absent.items())
    present = {role: [name for name in names if name not in absent] for role, names in roles.items()}
    return {role: names for role, names in present.items() if names}, missing


def _pooled(context: Context, measure: Measure, names: Sequence[str]) -> np.ndarray | None:
    """f64 [D R G] of several models as siblings of one; None where nothing is known."""
    cubes = list(context.cubes(DIALOGUES, measure, names).values())
    return np.concatenate(cubes, axis=2) if cubes else None
