"""The papers' kinds of figures that `plots` has not: box plots, heat maps, bars with intervals, points of an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.plots import PHASE_COLORS, ROUND_COLORS, finish, inline_svg

MEAN = "#ef4444"  # the red dot of OMR fig. 5


def boxes(statistics: Mapping[str, dict[str, Any]], *, y: str) -> Markup:
    """A box a model from quartile to quartile, whiskers after Tukey, outliers faint, the mean as a red dot (OMR fig. 5)."""

    def draw(axes: Axes) -> None:
        for place, (name, found) in enumerate(statistics.items(), start=1):
            color = ROUND_COLORS[(place - 1) % len(ROUND_COLORS)]
            axes.bxp(
                [{**found, "label": name}],
                positions=[place],
                widths=0.55,
                patch_artist=True,
                showmeans=True,
                boxprops={"facecolor": color, "alpha": 0.55, "edgecolor": color},
                medianprops={"color": color, "linewidth": 1.8},
                whiskerprops={"color": color},
                capprops={"color": color},
                meanprops={"marker": "o", "markerfacecolor": MEAN, "markeredgecolor": MEAN, "markersize": 4.5},
                flierprops={"marker": ".", "markersize": 2.5, "markerfacecolor": color, "markeredgecolor": "none", "alpha": 0.35},
            )
        axes.set_xticks(range(1, 1 + len(statistics)), list(statistics))
        axes.set_xlim(0.4, len(statistics) + 0.6)
        finish(axes, "", y, 1)

    return Markup(inline_svg(draw, (max(3.4, 1.1 + 0.9 * len(statistics)), 2.8)))


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x: str = "",
    form: str = "{:.2f}",
    middle: float | None = None,
    wide: bool = False,
) -> Markup:
    """f64 [rows columns] as colored cells with their numbers; around `middle` from blue over white to red (OMR fig. 7), else one hue."""

    def draw(axes: Axes) -> None:
        known = values[np.isfinite(values)]
        if middle is None:
            low, high, colors = 0.0, float(known.max(initial=1e-9)), "Blues"
        else:
            reach = max(0.1, float(np.abs(known - middle).max(initial=0.0)))
            low, high, colors = middle - reach, middle + reach, "RdBu_r"
        axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                share = (value - low) / (high - low)
                dark = share > 0.65 if middle is None else abs(share - 0.5) > 0.32
                axes.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color="#ffffff" if dark else "#1b2230")
        axes.xaxis.set_major_locator(FixedLocator(range(len(columns))))
        axes.set_xticks(range(len(columns)), list(columns))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        finish(axes, x, "", 1)

    return Markup(inline_svg(draw, (8.6 if wide else max(3.6, 1.5 + 0.62 * len(columns)), max(1.3, 0.75 + 0.38 * len(rows)))))


def interval_bars(groups: Mapping[str, Mapping[str, Interval]], *, y: str) -> Markup:
    """Bars with 95% intervals: a color a series, a group a category (OMR fig. 8, 9)."""

    def draw(axes: Axes) -> None:
        categories = list(dict.fromkeys(name for series in groups.values() for name in series))
        width = 0.8 / len(groups)
        for index, (name, series) in enumerate(groups.items()):
            offset = (index - (len(groups) - 1) / 2) * width
            places = [categories.index(category) + offset for category in series]
            heights = np.array([found.value for found in series.values()])
            reach = np.array([[found.value - found.low, found.high - found.value] for found in series.values()]).T.clip(min=0)
            axes.bar(places, heights, width * 0.92, color=ROUND_COLORS[index % len(ROUND_COLORS)], label=name, alpha=0.85)
            axes.errorbar(places, heights, reach, fmt="none", ecolor=PHASE_COLORS["before"], elinewidth=1.1, capsize=2)
        axes.set_xticks(range(len(categories)), categories)
        finish(axes, "", y, len(groups))

    return Markup(inline_svg(draw, (4.4, 2.7)))


def bands(series: Mapping[str, Mapping[float, Interval]], *, x: str, y: str) -> Markup:
    """A line a series with its 95% interval as a band."""

    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(series.items()):
            color, places = ROUND_COLORS[index % len(ROUND_COLORS)], list(points)
            value, low, high = (np.array([getattr(found, part) for found in points.values()]) for part in ("value", "low", "high"))
            axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(places, value, color=color, marker="o", markersize=3.5, label=name)
        if all(float(place).is_integer() for points in series.values() for place in points):
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        finish(axes, x, y, len(series))

    return Markup(inline_svg(draw, (4.4, 2.7)))


def points(places: np.ndarray, labels: Sequence[str]) -> Markup:
    """f64 [N 2] as points, a color a label; axes of an embedding mean nothing, so they have no numbers (TDRI fig. 9)."""

    def draw(axes: Axes) -> None:
        known = np.array(labels)
        for index, label in enumerate(dict.fromkeys(labels)):
            chosen = places[known == label]
            axes.scatter(
                chosen[:, 0], chosen[:, 1], 12, color=ROUND_COLORS[index % len(ROUND_COLORS)], alpha=0.75, linewidths=0, label=label
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        finish(axes, "", "", len(set(labels)))

    return Markup(inline_svg(draw, (4.4, 3.4)))
