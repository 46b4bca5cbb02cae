"""What a protocol gives back: tables whose cells know their interval and rank, drawings, and what is missing and why."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from omr_ray.config.comparison import Adapted, Augmented, Clip, ComparisonConfig, ImageEndpoint, ImageFolder
from omr_ray.config.run import RunConfig
from omr_ray.evaluation import comparing
from omr_ray.evaluation.comparing import Better
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.stored import Results

DIALOGUES, SESSIONS, SCRATCH, PROMPTS, SELECTION = "dialogues", "sessions", "scratch-sessions", "prompts", "selection"
SWITCHING = "switching"  # turns that are answered with a picture or with words


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of an image: what it is called, and which way is better."""

    metric: str
    measure: str
    title: str
    better: Better
    form: str = "{:.3f}"


# What each is, by name: a feature distance is not LPIPS, and what the oracle reads is no CLIP score.
MEASURES = {
    (m.metric, m.measure): m
    for m in (
        Measure(metric="preference", measure="prompt", title="Preference score", better="up"),
        Measure(metric="oracle", measure="prompt", title="Aspects right (oracle)", better="up", form="{:.1%}"),
        Measure(metric="oracle", measure="intent", title="Intent shown (oracle)", better="up", form="{:.1%}"),
        Measure(metric="clip", measure="prompt", title="CLIP, prompt to image", better="up"),
        Measure(metric="clip", measure="intent", title="CLIP, intent to image", better="up"),
        Measure(metric="clip", measure="target", title="CLIP, image to target", better="up"),
        Measure(metric="blip", measure="prompt", title="BLIP, prompt to image", better="up"),
        Measure(metric="blip", measure="intent", title="BLIP, intent to image", better="up"),
        Measure(metric="blip", measure="target", title="BLIP, image to target", better="up"),
        Measure(metric="lpips", measure="previous", title="LPIPS between rounds", better="down"),
        Measure(metric="features", measure="previous", title="Feature distance between rounds", better="down"),
        Measure(metric="features", measure="target", title="Feature distance to target", better="down"),
        Measure(metric="aesthetic", measure="prompt", title="Aesthetic score", better="up"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number with what is known about it, or a word. `published`: it is the paper's, measured on other models."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    rank: int | None = None
    text: str = ""
    form: str = "{:.3f}"
    published: bool = False

    @classmethod
    def of(cls, found: Interval | None, form: str = "{:.3f}", rank: int | None = None) -> Cell:
        return cls(form=form) if found is None else cls(value=found.value, low=found.low, high=found.high, form=form, rank=rank)

    @classmethod
    def paper(cls, value: float | None, form: str = "{:g}") -> Cell:
        return cls(value=value, form=form, published=True)

    @property
    def shown(self) -> str:
        if self.text:
            return self.text
        return "–" if self.value is None or not math.isfinite(self.value) else self.form.format(self.value).replace("-", "−")

    @property
    def shown_interval(self) -> str:
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return ""
        return f"{self.form.format(self.low)} … {self.form.format(self.high)}".replace("-", "−")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]  # a row's name and a cell a column


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    title: str
    svg: Markup
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What could not be computed, why, and what would make it."""

    what: str
    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One table or figure of a paper on our models."""

    name: str = ""
    source: str = ""  # "OMR-Diffusion, figure 5"
    title: str = ""
    note: str = ""
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    missing: tuple[Missing, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row a number: what JSON and CSV hold."""
        return [
            {"protocol": self.name, "table": table.title, "row": name, "column": column, **_plain(cell)}
            for table in self.tables
            for name, cells in table.rows
            for column, cell in zip(table.columns, cells, strict=True)
            if cell.value is not None or cell.text
        ]

    def as_json(self) -> dict[str, Any]:
        head = {name: getattr(self, name) for name in ("name", "source", "title", "note")}
        return head | {"figures": self.rows(), "missing": [asdict(gap) for gap in self.missing]}

    def as_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["protocol", "table", "row", "column", "value", "low", "high", "rank", "text", "published"])
        writer.writeheader()
        writer.writerows(self.rows())
        return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The adapters of a sweep of variants, one model a trial."""

    variants: Mapping[str, tuple[Adapted, ...]] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()  # trials that have not made one

    @property
    def models(self) -> tuple[Adapted, ...]:
        return tuple(model for models in self.variants.values() for model in models)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every protocol reads: stored images and values, the configs, and which metrics were skipped and why."""

    config: ComparisonConfig
    run: RunConfig
    results: Results
    skipped: Mapping[str, str]  # metric -> why
    absent: Mapping[str, str] = field(default_factory=dict)  # model -> why it could not be had
    trials: Trained = field(default_factory=Trained)  # models of a sweep: for OMR fig. 8 alone

    @property
    def models(self) -> list[str]:
        return [model.name for model in self.config.models if model.name not in self.absent]

    @property
    def sampled(self) -> list[str]:
        """Models that are painted by the run's own diffusion model."""
        kinds = (Augmented, ImageEndpoint, ImageFolder)
        return [model.name for model in self.config.models if not isinstance(model, kinds) and model.name not in self.absent]

    def published(self, model: str) -> str | None:
        return next(known.published for known in self.config.models if known.name == model)

    def cubes(self, task: str, measure: Measure, models: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """f64 [D R G] of every model that has values."""
        found = {name: self.results.cube(name, task, measure.metric, measure.measure) for name in models or self.models}
        return {name: cube for name, cube in found.items() if cube is not None}

    def known(self, task: str, wanted: Sequence[tuple[str, str]]) -> list[Measure]:
        """Those of the wanted measures that some model has values of."""
        return [self._named(MEASURES[key]) for key in wanted if self.cubes(task, MEASURES[key])]

    def wanted(self, keys: Sequence[tuple[str, str]]) -> list[Measure]:
        return [self._named(MEASURES[key]) for key in keys if key[0] not in self.skipped]

    @property
    def clip(self) -> str:
        """What CLIP is called: the embedded one is no CLIP that a reader may know."""
        own = any(isinstance(metric, Clip) and metric.path == "atelier" for metric in self.config.metrics)
        return "Embedded CLIP" if own else "CLIP"

    def _named(self, measure: Measure) -> Measure:
        return replace(measure, title=measure.title.replace("CLIP", self.clip)) if measure.metric == "clip" else measure

    def gaps(self, wanted: Sequence[tuple[str, str]]) -> tuple[Missing, ...]:
        """Wanted metrics that were skipped."""
        names = dict.fromkeys(metric for metric, _ in wanted if metric in self.skipped)
        titles = {metric: ", ".join(MEASURES[key].title for key in wanted if key[0] == metric) for metric in names}
        return tuple(Missing(what=titles[name], why=self.skipped[name]) for name in names)


Protocol = Callable[[Context], Result]


def compared(context: Context, title: str, task: str, measures: Sequence[Measure], *, rounds: slice = slice(None)) -> Table:
    """A row a model and a column a measure, with intervals and ranks."""
    cells = []
    for measure in measures:
        cubes = context.cubes(task, measure)
        found = {name: comparing.interval(cube[:, rounds]) for name, cube in cubes.items()}
        order = comparing.ranks([_value(found.get(name)) for name in context.models], measure.better)
        cells.append([Cell.of(found.get(name), measure.form, rank) for name, rank in zip(context.models, order, strict=True)])
    rows = tuple((name, tuple(column[place] for column in cells)) for place, name in enumerate(context.models))
    return Table(title=title, columns=tuple(arrow(measure) for measure in measures), rows=rows)


def arrow(measure: Measure) -> str:
    return f"{measure.title}\N{NO-BREAK SPACE}{'↑' if measure.better == 'up' else '↓'}"


def _value(found: Interval | None) -> float | None:
    return None if found is None else found.value


def _plain(cell: Cell) -> dict[str, Any]:
    numbers = {name: getattr(cell, name) for name in ("value", "low", "high")}
    known = {name: None if number is None or not math.isfinite(number) else number for name, number in numbers.items()}
    return known | {"rank": cell.rank, "text": cell.text, "published": cell.published}
