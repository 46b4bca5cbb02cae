"""The report's plots as inline SVG. Text and lines take the page's own colors, so one file is legible in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from scipy.interpolate import RBFInterpolator

from omr_ray.evaluation.metrics import Interval

ROUND_COLORS = ("#3b82f6", "#14b8a6", "#f59e0b", "#ef4444", "#a855f7", "#65a30d", "#ec4899", "#64748b")
TERM_COLORS = {"diversity": "#3b82f6", "consistency": "#14b8a6", "mutual_information": "#f59e0b"}
PHASE_COLORS = {"before": "#94a3b8", "after": "#3b82f6"}
# Colors that no series uses: they are replaced by what the page's style sheet says.
_INK, _RULE = "#010203", "#040506"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
}

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> x, y


def lines(series: Series, *, x: str, y: str = "", colors: Mapping[str, str] | None = None, size: tuple[float, float] = (4.4, 2.6)) -> str:
    """One line a series. A long one is drawn faint, with its running mean over a twentieth of it on top."""

    def draw(axes: Axes) -> None:
        for index, (name, (xs, ys)) in enumerate(series.items()):
            color = (colors or {}).get(name, ROUND_COLORS[index % len(ROUND_COLORS)])
            window = max(1, len(ys) // 20)
            if window > 2:
                axes.plot(xs, ys, color=color, alpha=0.25, linewidth=1)
            axes.plot(
                xs,
                running_mean(ys, window if window > 2 else 1),
                color=color,
                label=name,
                marker="o" if len(xs) <= 12 else "",
                markersize=3.5,
            )
        finish(axes, x, y, len(series))

    return inline_svg(draw, size)


def bars(series: Series, *, x: str, y: str = "", colors: Mapping[str, str] | None = None, ticks: Mapping[float, str] | None = None) -> str:
    """Groups of bars side by side, one color a series."""

    def draw(axes: Axes) -> None:
        width = 0.8 / len(series)
        for index, (name, (xs, ys)) in enumerate(series.items()):
            offset = (index - (len(series) - 1) / 2) * width
            axes.bar(np.asarray(xs) + offset, ys, width * 0.94, color=(colors or {}).get(name), label=name)
        if ticks:
            axes.set_xticks(list(ticks), list(ticks.values()))
        finish(axes, x, y, len(series))

    return inline_svg(draw, (4.4, 2.6))


def histogram(values: Sequence[float], *, x: str, y: str, bins: int = 24) -> str:
    """How often values fall into each of `bins` equal ranges."""

    def draw(axes: Axes) -> None:
        axes.hist(values, bins, color=ROUND_COLORS[0], rwidth=0.92)
        finish(axes, x, y, 1)

    return inline_svg(draw, (4.4, 2.6))


def stacked(steps: Sequence[float], parts: Mapping[str, Sequence[float]], *, x: str, y: str, most_bars: int = 60) -> str:
    """Bars of parts on top of one another; many steps are averaged into at most `most_bars` bars."""

    def draw(axes: Axes) -> None:
        groups = np.array_split(np.arange(len(steps)), min(len(steps), most_bars))
        places = [float(np.mean(np.asarray(steps)[group])) for group in groups]
        width = 0.85 * (places[1] - places[0] if len(places) > 1 else 1)
        floor = np.zeros(len(groups))
        for index, (name, values) in enumerate(parts.items()):
            heights = np.array([np.mean(np.nan_to_num(np.asarray(values, dtype=float))[group]) for group in groups])
            axes.bar(places, heights, width, bottom=floor, color=ROUND_COLORS[index % len(ROUND_COLORS)], label=name)
            floor += heights
        finish(axes, x, y, len(parts))

    return inline_svg(draw, (9.2, 2.8))


def outcomes(shares: Mapping[str, tuple[int, int, int]]) -> str:
    """A bar for each contest, from the top down: how many were won, tied and lost (OMR fig. 6)."""

    def draw(axes: Axes) -> None:
        names, counts = list(shares), np.array(list(shares.values()), dtype=float)
        counts /= counts.sum(axis=1, keepdims=True)
        floor = np.zeros(len(names))
        for name, values, color in zip(
            ("win", "tie", "lose"), counts.T, (ROUND_COLORS[0], PHASE_COLORS["before"], ROUND_COLORS[2]), strict=True
        ):
            axes.barh(names, values, 0.7, left=floor, color=color, label=name)
            floor += values
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_locator(FixedLocator((0, 0.25, 0.5, 0.75, 1)))
        finish(axes, "share of prompts", "", 3)

    return inline_svg(draw, (4.4, 0.9 + 0.28 * len(shares)))


def surface(x: Scale, y: Scale, heights: Sequence[float], *, best: int, label: str) -> str:
    """What was found at N points of a plane, as dots, on a smooth surface through them; `best` is the place of the marked one.

    The surface is a linear radial basis with smoothing (SciPy), over the range of the points, on the axes' own scales.
    """

    def draw(axes: Axes) -> None:
        places = np.stack([axis.unit() for axis in (x, y)], axis=1)
        grid = np.stack(np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 48)), axis=-1)
        smooth = RBFInterpolator(places, np.asarray(heights, float), kernel="linear", degree=0, smoothing=0.05)
        filled = axes.contourf(*(axis.at(grid[..., i]) for i, axis in enumerate((x, y))), smooth(grid.reshape(-1, 2)).reshape(48, 48), 12)
        axes.figure.colorbar(filled, ax=axes, label=label)
        axes.scatter(x.values, y.values, 14, color="white", edgecolors="black", linewidths=0.6)
        axes.scatter(x.values[best], y.values[best], 70, marker="*", color=ROUND_COLORS[3], edgecolors="white", linewidths=0.6)
        _scales(axes, x, y)
        finish(axes, x.name, y.name, 1)

    return inline_svg(draw, (4.4, 3.2))


def scatter(x: Scale, y: Scale, *, marked: Sequence[bool], joined: bool = False) -> str:
    """Points with their intervals; the marked ones in color and, where `joined`, with a line through them (a front)."""

    def draw(axes: Axes) -> None:
        chosen = np.asarray(marked, dtype=bool)
        for rows, color in ((~chosen, PHASE_COLORS["before"]), (chosen, ROUND_COLORS[3])):
            across, along = x.bars(rows), y.bars(rows)
            axes.errorbar(x.values[rows], y.values[rows], along, across, fmt="o", color=color, markersize=4.5, elinewidth=0.7)
        if joined:
            order = np.flatnonzero(chosen)[np.argsort(x.values[chosen])]
            axes.plot(x.values[order], y.values[order], color=ROUND_COLORS[3], linewidth=1, linestyle="--")
        _scales(axes, x, y)
        finish(axes, x.name, y.name, 1)

    return inline_svg(draw, (4.4, 2.8))


def forest(rows: Mapping[str, Interval], *, x: str) -> str:
    """A line with its 95% interval a row, from the top down, beside the line of no change."""

    def draw(axes: Axes) -> None:
        names, values = list(rows), np.array([[row.value, row.value - row.low, row.high - row.value] for row in rows.values()])
        axes.axvline(0.0, color=PHASE_COLORS["before"], linewidth=1)
        axes.errorbar(values[:, 0], range(len(names)), xerr=values[:, 1:].T, fmt="o", color=ROUND_COLORS[0], markersize=4.5, elinewidth=1.2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        finish(axes, x, "", 1)

    return inline_svg(draw, (4.4, 0.9 + 0.26 * len(rows)))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """N values of one axis, their intervals where they have some, and its scale."""

    name: str
    values: np.ndarray  # f64 [N]
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    log: bool = False

    def unit(self) -> np.ndarray:
        """The values on 0..1 of this axis' own scale."""
        scaled = np.log(self.values) if self.log else self.values
        span = float(np.ptp(scaled))
        return (scaled - scaled.min()) / (span or 1.0)

    def at(self, shares: np.ndarray) -> np.ndarray:
        """The way back: values at 0..1."""
        low, high = float(self.values.min()), float(self.values.max())
        return low * (high / low) ** shares if self.log else low + shares * (high - low)

    def bars(self, rows: np.ndarray) -> np.ndarray | None:
        """Distances to the ends of the intervals, f64 [2 n], as matplotlib wants them."""
        if self.low is None or self.high is None:
            return None
        return np.stack([self.values - self.low, self.high - self.values])[:, rows].clip(min=0.0)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and the `window` - 1 before it; missing values are left out. f64 [N]."""
    known = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(known)
    totals = np.cumsum(np.where(finite, known, 0.0))
    counts = np.cumsum(finite)
    totals[window:], counts[window:] = totals[window:] - totals[:-window], counts[window:] - counts[:-window]
    return np.divide(totals, counts, out=np.full(len(known), np.nan), where=counts > 0)


def finish(axes: Axes, x: str, y: str, series: int) -> None:
    """Labels, and a legend above the axes where there are several series."""
    axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if series > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, borderaxespad=0, handlelength=1.2, columnspacing=1.2)


def _scales(axes: Axes, x: Scale, y: Scale) -> None:
    for letter, scale in (("x", x), ("y", y)):
        if scale.log:
            axes.set(**{f"{letter}scale": "log"})
        else:
            getattr(axes, f"{letter}axis").set_major_locator(MaxNLocator(nbins=5))


def inline_svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """What `draw` puts on axes of `size` inches, as one <svg> element."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)
