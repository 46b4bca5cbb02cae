"""How well a reward model tells the better of two images: by source, by kind of negative, and how sure it may be (OMR section 3.2).

Everything is computed from the margins of held-out pairs, chosen minus rejected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from scipy.stats import binomtest

from omr_ray.evaluation import plots
from omr_ray.evaluation.selection import KEEP, Contest
from omr_ray.types import UserError
from omr_ray.weights import write_atomic

BINS = 5  # of confidence, 0.5 to 1

Score = Callable[[Sequence[bytes], Sequence[str]], np.ndarray]  # encoded images and prompts to f64 [N]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """`right` of `pairs`, with the Wilson 95% interval. Example: Share(right=95, pairs=100, value=0.95, low=0.888, high=0.978)"""

    right: int
    pairs: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: np.ndarray) -> Share:
        """From a bool [N], N >= 1."""
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return cls(right=int(right.sum()), pairs=len(right), value=float(right.mean()), low=float(interval.low), high=float(interval.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a reward model says of held-out pairs. A tie is counted as wrong; a score that is not finite is left out, and counted."""

    weights: str
    accuracy: Share
    by_source: Mapping[str, Share]
    by_negative: Mapping[str, Share]
    missing: int
    margins: tuple[float, ...]
    calibration: tuple[tuple[float, float, int], ...]  # mean confidence, share right and pairs of each bin that holds some
    calibration_error: float  # their mean difference, weighted by pairs (ECE, arXiv:1706.04599)


def judge(pairs: Iterable[Mapping[str, Any]], score: Score, *, weights: str, beta: float, limit: int, batch: int = 64) -> Judged:
    """Score up to `limit` rows of a preferences table. `weights` says what made the figures. Raises UserError without pairs."""
    margins: list[float] = []
    sources: list[str] = []
    negatives: list[str] = []
    held: list[Mapping[str, Any]] = []

    def flush() -> None:
        images = [pair[side]["bytes"] for side in ("chosen", "rejected") for pair in held]
        scores = score(images, [pair["prompt"] for pair in held] * 2)
        margins.extend((scores[: len(held)] - scores[len(held) :]).tolist())
        held.clear()

    for pair in pairs:
        if len(sources) == limit:
            break
        if pair["chosen"] is None or pair["rejected"] is None:
            continue
        held.append(pair)
        sources.append(pair["source"])
        negatives.append(pair["negative"])
        if len(held) == batch:
            flush()
    if held:
        flush()
    if not margins:
        raise UserError("the test split holds no pair with both images; build the data with images, or take another path")
    known = np.isfinite(margins)
    margin, source, negative = (np.array(values)[known] for values in (margins, sources, negatives))
    right = margin > 0
    return Judged(
        weights=weights,
        accuracy=Share.of(right),
        by_source={name: Share.of(right[source == name]) for name in sorted(set(source))},
        by_negative={name: Share.of(right[negative == name]) for name in sorted(set(negative))},
        missing=int((~known).sum()),
        margins=tuple(margin.tolist()),
        **calibrated(margin, beta),
    )


def calibrated(margins: np.ndarray, beta: float) -> dict[str, Any]:
    """Whether sigmoid(beta |margin|), the chance that the preferred image is the better one, is the share that is (f64 [N])."""
    confidence, right = 1 / (1 + np.exp(-beta * np.abs(margins))), margins > 0
    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [
        (confidence[places == b].mean(), right[places == b].mean(), int((places == b).sum())) for b in range(BINS) if (places == b).any()
    ]
    error = sum(count * abs(sure - share) for sure, share, count in bins) / len(margins)
    return {"calibration": tuple((float(sure), float(share), count) for sure, share, count in bins), "calibration_error": float(error)}


def write(judged: Judged, out: Path, selection: Sequence[Contest] = ()) -> dict[str, str]:
    """reward.json and reward.html below `out`, and what the model selects where that was tried."""
    result = asdict(judged) | ({"selection": [asdict(contest) for contest in selection]} if selection else {})
    write_atomic(out / "reward.json", json.dumps(result, indent=1).encode())
    perfect = [0.5, 1.0]
    figures = {
        "Margins, chosen minus rejected": plots.histogram(judged.margins, x="margin", y="pairs"),
        "Calibration": plots.lines(
            {
                "this model": ([sure for sure, _, _ in judged.calibration], [share for _, share, _ in judged.calibration]),
                "perfect": (perfect, perfect),
            },
            x="confidence",
            y="share right",
        ),
    }
    if selection:
        shares = {f"{KEEP} of {contest.size}, {contest.rival}": (contest.win, contest.tie, contest.lose) for contest in selection}
        figures["Selection: this model's picks beside a rival's"] = plots.outcomes(shares)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("omr_ray.evaluation", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("reward.html.j2").render(
        judged=judged, selection=selection, keep=KEEP, figures={name: Markup(svg) for name, svg in figures.items()}
    )
    write_atomic(out / "reward.html", page.encode())
    return {"result": str(out / "reward.json"), "report": str(out / "reward.html")}
