"""Tables and figures of OMR-Diffusion on our models, one function each. Each reads stored values and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from omr_ray.config.rewards import ConstantSchedule, ExponentialSchedule
from omr_ray.evaluation import comparing, metrics, plots
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.papers import drawing
from omr_ray.evaluation.papers.published import MEASURED, OMR_FIG7, OMR_TABLE1
from omr_ray.evaluation.papers.result import (
    DIALOGUES,
    MEASURES,
    SELECTION,
    SESSIONS,
    Cell,
    Context,
    Drawing,
    Measure,
    Missing,
    Result,
    Table,
    arrow,
    compared,
)
from omr_ray.evaluation.selection import KEEP, SIZES, contests
from omr_ray.rewards.schedule import SCHEDULES

SCORES = (("preference", "prompt"), ("clip", "prompt"), ("oracle", "prompt"))
SCHEDULE_ROUNDS = 8
TERMS = {"diversity": "Diversity", "consistency": "Consistency", "mutual_information": "Mutual information"}


def weights_by_round(context: Context) -> Result:
    """Fig. 3: the weights of eq. 9 by round, of the published schedule, RC25 and this run's."""
    ours = context.run.rewards.schedule
    schedules = {"this run": ours, "published": ExponentialSchedule(), "RC25": ConstantSchedule()}
    if ours in (ExponentialSchedule(), ConstantSchedule()):
        del schedules["this run"]
    rounds = range(1, SCHEDULE_ROUNDS + 1)
    weights = {
        name: [SCHEDULES[schedule.type](t, **schedule.model_dump(exclude={"type"})) for t in rounds] for name, schedule in schedules.items()
    }
    drawings = tuple(
        Drawing(
            title=title,
            svg=Markup(
                plots.lines({name: (list(rounds), [w[term] for w in rows]) for name, rows in weights.items()}, x="round", y="weight")
            ),
        )
        for term, title in TERMS.items()
    )
    rows = tuple(
        (f"{name}, {title.lower()}", tuple(Cell(value=w[term]) for w in rows))
        for name, rows in weights.items()
        for term, title in TERMS.items()
    )
    table = Table(title="Weights by round", columns=tuple(f"round {t}" for t in rounds), rows=rows)
    return Result(note="Computed from eq. 9; nothing is measured here.", tables=(table,), drawings=drawings)


def score_distributions(context: Context) -> Result:
    """Fig. 5: how scores of single images are distributed, by model; box plots, the mean as a red dot."""
    known = context.known(DIALOGUES, SCORES)
    tables, drawings = [], []
    for measure in known:
        found = {name: comparing.box(cube) for name, cube in context.cubes(DIALOGUES, measure).items()}
        drawings.append(Drawing(title=measure.title, svg=drawing.boxes(found, y="")))
        names = ("mean", "med", "q1", "q3", "whislo", "whishi")
        rows = tuple((model, tuple(Cell(value=float(box[name]), form=measure.form) for name in names)) for model, box in found.items())
        tables.append(
            Table(title=measure.title, columns=("mean", "median", "quartile 1", "quartile 3", "whisker low", "whisker high"), rows=rows)
        )
    note = (
        "All images of all rounds of the held-out dialogues. Whiskers reach the last value within 1.5 times the box. "
        "The paper prints no numbers for this figure."
    )
    return Result(note=note, tables=tuple(tables), drawings=tuple(drawings), missing=context.gaps(SCORES))


def selection(context: Context) -> Result:
    """Fig. 6: top 3 of 9, 25 and 64 images as the preference model picks them, beside what others pick."""
    painter = (context.sampled or context.models)[0]
    worth, ours = (context.results.cube(painter, SELECTION, metric, "prompt") for metric in ("oracle", "preference"))
    rivals = {
        context.clip if name == "clip" else name: cube[:, 0]
        for name in ("clip", "aesthetic", "blip")
        if (cube := context.results.cube(painter, SELECTION, name, "prompt")) is not None
    }
    gaps = context.gaps((("clip", "prompt"), ("aesthetic", "prompt"), ("blip", "prompt")))
    if worth is None or ours is None:
        why = "needs a judge that is none of the scorers: the oracle of the embedded world, or people"
        return Result(missing=(Missing(what="Top 3 of 9, 25, 64", why=why), *gaps))
    found = contests(worth[:, 0], ours[:, 0], rivals)
    shares = {f"{KEEP} of {one.size}, {one.rival}": (one.win, one.tie, one.lose) for one in found}
    rows = tuple(
        (
            f"{KEEP} of {one.size}, against {one.rival}",
            (
                *(Cell(value=count / max(1, one.win + one.tie + one.lose), form="{:.0%}") for count in (one.win, one.tie, one.lose)),
                Cell.of(one.gain, "{:+.3f}"),
                Cell(value=0.5, form="> {:.0%}", published=True),
            ),
        )
        for one in found
    )
    table = Table(title="Our picks beside a rival's", columns=("win", "tie", "lose", "gain in aspects right", "paper: win rate"), rows=rows)
    note = (
        f"Images of {painter}, {SIZES[-1]} for each of {worth.shape[0]} prompts. Judge: the share of the prompt's aspects "
        "that the kept images show, read by the oracle; people judged in the paper, which says that all win rates exceed 50%."
    )
    return Result(note=note, tables=(table,), drawings=(Drawing(title="Win, tie, lose", svg=Markup(plots.outcomes(shares))),), missing=gaps)


def win_matrix(context: Context) -> Result:
    """Fig. 7: win rates of every model against every other over the rounds of a dialogue, by preference score."""
    cubes = context.cubes(DIALOGUES, MEASURES["preference", "prompt"])
    if len(cubes) < 2:
        return Result(missing=(Missing(what="Win rates", why="one model alone wins against nobody", remedy="add models to the config"),))
    names = list(cubes)
    heat = Drawing(title="All rounds", svg=drawing.heat_map(comparing.win_rates(cubes), names, names, x="against", middle=0.5))
    pairs = {f"{one} against {other}": (cubes[one], cubes[other]) for one, other in itertools.permutations(names, 2)}
    rates = {
        pair: [comparing.interval(comparing.won(ours, theirs)[:, r : r + 1]) for r in range(min(ours.shape[1], theirs.shape[1]))]
        for pair, (ours, theirs) in pairs.items()
    }
    rounds = max(len(found) for found in rates.values())
    forward = {pair: found for pair, found in rates.items() if _first(pair, names)}
    by_round = np.array(
        [[np.nan if one is None else one.value for one in found] + [np.nan] * (rounds - len(found)) for found in forward.values()]
    )
    columns = [str(r) for r in range(1, rounds + 1)]
    drawn = Drawing(title="By round", svg=drawing.heat_map(by_round, list(forward), columns, x="round", middle=0.5, wide=True), wide=True)
    rows = []
    for pair, (ours, theirs) in pairs.items():
        cells = [Cell.of(comparing.interval(comparing.won(ours, theirs)), "{:.2f}"), *(Cell.of(one, "{:.2f}") for one in rates[pair])]
        rows.append((pair, tuple(cells) + (Cell(),) * (rounds + 1 - len(cells)) + (_fig7(context, pair),)))
    table = Table(title="Win rates", columns=("all rounds", *(f"round {r}" for r in columns), "paper"), rows=tuple(rows))
    note = (
        f"{rounds} rounds (the paper: 8). A win: the higher preference score for the same dialogue, round and seed; a tie is half a win. "
        f"The paper's {', '.join(f'{rate} against {name}' for name, rate in OMR_FIG7.items())}: {MEASURED}. "
        "The preference model is also what adapters are trained on: the oracle's view of the same images is in table 1."
    )
    return Result(note=note, tables=(table,), drawings=(heat, drawn))


def table1(context: Context) -> Result:
    """Table 1: every metric with ranks, rounds to intent, and the paper's row beside ours."""
    consistency, quality = (
        (("lpips", "previous"), ("features", "previous")),
        (("aesthetic", "prompt"), ("clip", "prompt"), ("blip", "prompt")),
    )
    wanted = (*consistency, *quality, ("oracle", "prompt"), ("preference", "prompt"))
    measured = compared(context, "", DIALOGUES, context.known(DIALOGUES, wanted))
    rounds = {name: rounds_to_intent(context, name) for name in context.models}
    known = {name: comparing.interval(found) for name, found in rounds.items() if found is not None}
    means = [None if (found := known.get(name)) is None else found.value for name in context.models]
    order = comparing.ranks(means, "down")
    rows = tuple(
        (name, (*cells, Cell.of(known.get(name), "{:.2f}", rank))) for (name, cells), rank in zip(measured.rows, order, strict=True)
    )
    ours = Table(title="Our models", columns=(*measured.columns, "Rounds to intent ↓"), rows=rows)
    columns = ("human", "lpips", "aesthetic", "clip", "blip", "rounds")
    beside = {name: row for name in context.models if (row := context.published(name)) in OMR_TABLE1}
    published = Table(
        title="The paper's table 1",
        columns=("Human wins ↑", "LPIPS ↓", "Aesthetic ↑", "CLIP ↑", "BLIP ↑", "Round ↓", "stands beside"),
        rows=tuple(
            (
                name,
                (
                    *(Cell.paper(values[column]) for column in columns),
                    Cell(text=", ".join(ours for ours, row in beside.items() if row == name) or "–"),
                ),
            )
            for name, values in OMR_TABLE1.items()
        ),
    )
    gains = _gains(context, rounds, wanted)
    missing = list(context.gaps(wanted))
    if not known:
        missing.append(Missing(what="Rounds to intent", why="only images of the embedded world can be read exactly"))
    if context.config.votes is None:
        missing.append(
            Missing(what="Human wins", why="no votes are given", remedy="have votes/assignments.json judged, then set votes=FILE")
        )
    note = (
        f"Held-out dialogues, all rounds; rounds to intent with a simulated user, {context.run.evaluation.max_rounds + 1} "
        "stands for never. A feature distance is one minus the cosine of f(z), the frozen UNet's features of the encoded image "
        "(OMR section 3.2); it is not LPIPS."
    )
    return Result(note=note, tables=(ours, *gains, published), missing=tuple(missing))


def rounds_to_intent(context: Context, model: str) -> np.ndarray | None:
    """f64 [D 1 G] of table 1's "Round": sessions of the simulated user; max_rounds + 1 where it was never satisfied."""
    return rounds_used(context.results.cube(model, SESSIONS, "oracle", "satisfied"), context.run.evaluation.max_rounds)


def rounds_used(satisfied: np.ndarray | None, max_rounds: int) -> np.ndarray | None:
    """f64 [D R G] of 0, 1 and NaN (behind the last round) to f64 [D 1 G]."""
    if satisfied is None:
        return None
    matches = np.zeros((satisfied.shape[0], max_rounds, satisfied.shape[2]), bool)
    matches[:, : satisfied.shape[1]] = satisfied[:, :max_rounds] == 1
    dialogues, _, siblings = matches.shape
    rounds = metrics.rounds_to_intent(matches.transpose(0, 2, 1).reshape(dialogues * siblings, max_rounds))
    return rounds.reshape(dialogues, 1, siblings).astype(np.float64)


def share_within(used: np.ndarray | None, within: int) -> Interval | None:
    """Share of sessions, f64 [D 1 G] of `rounds_used`, whose intent was met within so many rounds."""
    return None if used is None else comparing.interval((used <= within).astype(np.float64))


def _gains(context: Context, rounds: Mapping[str, np.ndarray | None], wanted: tuple) -> tuple[Table, ...]:
    """Each model less the first, paired by dialogue."""
    first, *others = context.models
    if not others:
        return ()
    known: list[Measure] = context.known(DIALOGUES, wanted)
    rows = []
    for name in others:
        pairs = [(context.cubes(DIALOGUES, measure, (first, name)), measure) for measure in known]
        cells = [Cell.of(_difference(cubes.get(first), cubes.get(name)), measure.form.replace(":", ":+")) for cubes, measure in pairs]
        rows.append((name, (*cells, Cell.of(_difference(rounds.get(first), rounds.get(name)), "{:+.2f}"))))
    return (
        Table(
            title=f"Difference to {first}, paired", columns=(*(arrow(measure) for measure in known), "Rounds to intent ↓"), rows=tuple(rows)
        ),
    )


def _difference(before: np.ndarray | None, after: np.ndarray | None) -> Interval | None:
    return None if before is None or after is None or len(before) != len(after) else comparing.difference(before, after)


def _first(pair: str, names: list[str]) -> bool:
    """Whether this is the one order of a pair that is drawn: later models against earlier ones."""
    one, other = pair.split(" against ")
    return names.index(one) > names.index(other)


def _fig7(context: Context, pair: str) -> Cell:
    one, other = (context.published(name) for name in pair.split(" against "))
    return Cell.paper(OMR_FIG7.get(other or "") if one == "Ours" else None)
