"""What simulated dialogues say of a system, as tables: plain functions of stored turns. Axis letters: I intents, S seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omr_ray.evaluation import comparing
from omr_ray.evaluation.interactive.talking import FULL, SCRATCH, TalkedTurn
from omr_ray.evaluation.interactive.thresholds import THRESHOLDS, ExcitedImage
from omr_ray.evaluation.metrics import Interval
from omr_ray.evaluation.papers import drawing
from omr_ray.evaluation.papers.published import TDRI_FIG11, TDRI_TABLE3, TDRI_TABLE6, TDRI_TURNS
from omr_ray.evaluation.papers.result import Cell, Drawing, Missing, Result, Table

Talks = Mapping[int, Sequence[TalkedTurn]]  # seed -> all turns of one variant
TURNS = tuple(TDRI_TURNS)
ASKED = "asked"


def turns_used(talks: Talks, max_turns: int) -> np.ndarray:
    """The turn in which each user saw the whole intent, or max_turns + 1: f64 [I S], intents in the order of their ids."""
    return _by_talk(talks, lambda turns: next((float(one.turn) for one in turns if one.satisfied), max_turns + 1.0))


def overview(found: Mapping[str, Talks], max_turns: int) -> Result:
    """Rounds to intent (TDRI fig. 10, 11), variants against the full system, paired by intent."""
    used = {name: turns_used(talks, max_turns) for name, talks in found.items()}
    rows = []
    for name, turns in used.items():
        more = Cell(text="–") if name == FULL.name or FULL.name not in used else _change(used[FULL.name], turns, "{:+.2f}")
        less = (
            Cell(text="–")
            if name == FULL.name or FULL.name not in used
            else _change(_within(used[FULL.name], max_turns), _within(turns, max_turns), "{:+.1%}")
        )
        failed = _by_talk(found[name], lambda told: float(sum(one.status != "done" or one.modality == "words" for one in told)))
        seconds = _by_talk(found[name], lambda told: sum(one.seconds for one in told))
        cells = (
            Cell.of(comparing.interval(turns), "{:.2f}"),
            more,
            Cell.of(comparing.interval(_within(turns, max_turns)), "{:.1%}"),
            less,
            Cell(value=float(turns.size), form="{:.0f}"),
            Cell(value=float(failed.sum()), form="{:.0f}"),
            Cell.of(comparing.interval(seconds), "{:.2f}"),
        )
        rows.append((name, cells))
    columns = (
        "rounds to intent ↓",
        "rounds, change against full",
        f"success within {max_turns} ↑",
        "success, change against full",
        "dialogues",
        "turns without an image",
        "seconds a dialogue",
    )
    distribution = {
        name: {
            str(turn) if turn <= max_turns else "never": one
            for turn in range(1, max_turns + 2)
            if (one := comparing.interval((turns == turn).astype(float)))
        }
        for name, turns in used.items()
    }
    ended = tuple((name, tuple(Cell.of(one, "{:.1%}") for one in shares.values())) for name, shares in distribution.items())
    paper = ("the paper", tuple(Cell.paper(TDRI_FIG11.get(turn), "{:g}%") for turn in range(1, max_turns + 2)))
    tables = (
        Table(title="Rounds to intent", columns=columns, rows=tuple(rows)),
        Table(title="Rounds used, share of dialogues", columns=tuple(next(iter(distribution.values()))), rows=(*ended, paper)),
    )
    note = (
        f"A dialogue ends when the oracle reads every aspect of the intent off the image; "
        f"one that never gets there counts as {max_turns + 1}. "
        "Intervals are over intents, whose seeds are averaged; changes are paired by intent. "
        "Seconds: of this machine, its share of each batch."
    )
    drawn = Drawing(title="Rounds used", svg=drawing.interval_bars(distribution, y="share of dialogues"))
    return Result(
        name="rounds-to-intent", source="TDRI, figures 10 and 11", title="Rounds to intent", note=note, tables=tables, drawings=(drawn,)
    )


def success_by_turns(found: Mapping[str, Talks], max_turns: int) -> Result:
    """Who is satisfied after 2, 4, 6 and 8 turns (TDRI section 4.3.5)."""
    used = {name: turns_used(talks, max_turns) for name, talks in found.items()}
    marks = [turn for turn in TURNS if turn <= max_turns]
    rows = [(name, tuple(Cell.of(comparing.interval(_within(turns, mark)), "{:.1%}") for mark in marks)) for name, turns in used.items()]
    rows.append(("the paper", tuple(Cell.paper(TDRI_TURNS[mark]["satisfaction"], "{:g}%") for mark in marks)))
    tables = [Table(title="Success by turns", columns=tuple(f"{mark} turns" for mark in marks), rows=tuple(rows))]
    if FULL.name in used and len(used) > 1:
        full = used[FULL.name]
        changes = tuple(
            (name, tuple(_change(_within(full, mark), _within(turns, mark), "{:+.1%}") for mark in marks))
            for name, turns in used.items()
            if name != FULL.name
        )
        tables.append(
            Table(title="Change against the full system, paired by intent", columns=tuple(f"{mark} turns" for mark in marks), rows=changes)
        )
    series = {
        name: {float(turn): one for turn in range(1, max_turns + 1) if (one := comparing.interval(_within(turns, turn)))}
        for name, turns in used.items()
    }
    drawn = Drawing(title="Success by turn", svg=drawing.bands(series, x="turns", y="share of dialogues"))
    note = "In the paper people said whether they were satisfied, with other models and other images."
    return Result(
        name="success-by-turns", source="TDRI, section 4.3.5", title="Turns: 2, 4, 6, 8", note=note, tables=tuple(tables), drawings=(drawn,)
    )


def questions(found: Mapping[str, Talks]) -> Result:
    """What was asked, and what became of it (TDRI eq. 6)."""
    rows, aspects = [], dict[str, dict[str, int]]()
    for name, talks in found.items():
        told = [one for turns in talks.values() for one in turns]
        asked = [one for one in told if one.question is not None]
        if not asked:
            continue
        share = _by_talk(talks, lambda turns: float(np.mean([one.question is not None for one in turns])))
        answered, skipped = (sum(one.answered is known for one in asked) for known in (True, False))
        counts = (len(asked), answered, skipped, len(asked) - answered - skipped)
        known = [one.ambiguity for one in told if one.ambiguity is not None]
        ambiguity = Cell(value=float(np.mean(known))) if known else Cell()
        rows.append(
            (
                name,
                (*(Cell(value=float(count), form="{:.0f}") for count in counts), Cell.of(comparing.interval(share), "{:.1%}"), ambiguity),
            )
        )
        for one in asked:
            by_variant = aspects.setdefault(str(one.question), {})
            by_variant[name] = by_variant.get(name, 0) + 1
    if not rows:
        return Result(
            name="questions", source="TDRI, equation 6", title="Questions", missing=(Missing(what="Questions", why="none was asked"),)
        )
    columns = (ASKED, "answered", "skipped", "not needed", "of a dialogue's turns", "mean ambiguity")
    by_aspect = tuple(
        (aspect, tuple(Cell(value=float(counts.get(name, 0)), form="{:.0f}") for name, _ in rows)) for aspect, counts in aspects.items()
    )
    tables = (
        Table(title="Questions", columns=columns, rows=tuple(rows)),
        Table(title="By aspect", columns=tuple(name for name, _ in rows), rows=by_aspect),
    )
    note = "Not needed: the user was satisfied, or it was the last turn."
    return Result(name="questions", source="TDRI, equation 6", title="Questions", note=note, tables=tables)


def edit_or_scratch(found: Mapping[str, Talks], max_turns: int) -> Result:
    """Editing the last image against painting anew (TDRI table 3)."""
    head: dict[str, Any] = {"name": "edit-or-scratch", "source": "TDRI, table 3", "title": "Editing and from scratch"}
    ways = {"edit": FULL.name, "scratch": SCRATCH.name}
    missing = [name for name in ways.values() if name not in found]
    if missing:
        return Result(
            **head, missing=tuple(Missing(what=name, why="it was not simulated", remedy=f"add {name} to --variants") for name in missing)
        )
    consistency = {way: _by_talk(found[name], _consistency) for way, name in ways.items()}
    used = {way: turns_used(found[name], max_turns) for way, name in ways.items()}
    rows = tuple(
        (
            "editing" if way == "edit" else "from scratch",
            (
                Cell.of(comparing.interval(consistency[way])),
                Cell.of(comparing.interval(_within(used[way], max_turns)), "{:.1%}"),
                Cell.of(comparing.interval(used[way]), "{:.2f}"),
                Cell.paper(TDRI_TABLE3[way]["consistency"]),
                Cell.paper(TDRI_TABLE3[way]["satisfaction"], "{:g}%"),
            ),
        )
        for way in ways
    )
    change = (
        "editing, change",
        (
            _change(consistency["scratch"], consistency["edit"], "{:+.3f}"),
            _change(_within(used["scratch"], max_turns), _within(used["edit"], max_turns), "{:+.1%}"),
            _change(used["scratch"], used["edit"], "{:+.2f}"),
            Cell(),
            Cell(),
        ),
    )
    columns = ("consistency, f(z) ↑", "success ↑", "rounds to intent ↓", "paper: consistency", "paper: satisfaction")
    note = (
        "Consistency: cosine of f(z) of consecutive images of a dialogue (OMR eq. 7); a dialogue of one image has none. "
        "The paper's is another measure."
    )
    unknown = not np.isfinite(consistency["edit"]).any()
    gap = (Missing(what="Consistency", why="f(z) is known in this process alone, not over HTTP"),) if unknown else ()
    return Result(**head, note=note, tables=(Table(title="Editing and from scratch", columns=columns, rows=(*rows, change)),), missing=gap)


def attend_and_excite(found: Mapping[int, Sequence[ExcitedImage]]) -> Result:
    """Share of use and gain at each threshold (TDRI table 6). found: seed -> images."""
    head: dict[str, Any] = {"name": "attend-and-excite", "source": "TDRI, table 6", "title": "Attend-and-Excite thresholds"}
    if not found:
        return Result(
            **head,
            missing=(
                Missing(what="Thresholds", why="no images were made for them: a service has one threshold, and does not tell of its use"),
            ),
        )
    cubes = {
        (threshold, name): _matrix(
            {
                seed: {one.dialogue: float(getattr(one, name)) for one in images if one.threshold == threshold}
                for seed, images in found.items()
            }
        )
        for threshold in (None, *THRESHOLDS)
        for name in ("used", "accuracy", "similarity")
    }
    rows, gains = [], {}
    for threshold in THRESHOLDS:
        accuracy = comparing.difference(cubes[None, "accuracy"], cubes[threshold, "accuracy"])
        similarity = _relative(cubes[None, "similarity"], cubes[threshold, "similarity"])
        theirs = TDRI_TABLE6[threshold]
        cells = (
            Cell.of(comparing.interval(cubes[threshold, "used"]), "{:.1%}"),
            Cell.of(similarity, "{:+.2f}%"),
            Cell.of(accuracy, "{:+.2%}"),
            Cell.paper(theirs[0], "{:g}%"),
            Cell.paper(theirs[1], "{:g}%"),
        )
        rows.append((f"{threshold:g}", cells))
        if similarity:
            gains[threshold] = similarity
    base = {name: comparing.interval(cubes[None, name]) for name in ("similarity", "accuracy")}
    rows.append(("without", (Cell(), Cell.of(base["similarity"]), Cell.of(base["accuracy"], "{:.1%}"), Cell(), Cell())))
    columns = ("used", "T2I similarity (CLIP), change", "aspects right (oracle), change", "paper: used", "paper: T2I similarity")
    note = (
        "Every intent once, from noise of the first seed. Used: L_AE of TDRI eq. 8 exceeded the threshold in an early step. "
        "Changes are paired, from the same noise without it; that of similarity is relative. The last row has the values without it."
    )
    if all(np.nanmin(cubes[threshold, "used"]) == 1 for threshold in THRESHOLDS):
        note += " Here every image exceeded even the highest threshold, so the thresholds cannot differ: this model's L_AE lies above them."
    drawn = (Drawing(title="T2I similarity: change, %", svg=drawing.bands({"change": gains}, x="threshold", y="")),) if gains else ()
    return Result(**head, note=note, tables=(Table(title="Thresholds", columns=columns, rows=tuple(rows)),), drawings=drawn)


# -- arrays of turns ---------------------------------------------------------------------------------------------------


def _by_talk(talks: Talks, figure: Callable[[Sequence[TalkedTurn]], float]) -> np.ndarray:
    """A figure of each dialogue's turns, f64 [I S]."""
    by_seed: dict[int, dict[str, float]] = {}
    for seed, turns in talks.items():
        grouped: dict[str, list[TalkedTurn]] = {}
        for one in sorted(turns, key=lambda one: one.turn):
            grouped.setdefault(one.dialogue, []).append(one)
        by_seed[seed] = {dialogue: figure(own) for dialogue, own in grouped.items()}
    return _matrix(by_seed)


def _matrix(by_seed: Mapping[int, Mapping[str, float]]) -> np.ndarray:
    """f64 [I S], NaN where a seed lacks an intent."""
    names = sorted({name for values in by_seed.values() for name in values})
    return np.array([[by_seed[seed].get(name, np.nan) for seed in sorted(by_seed)] for name in names])


def _within(used: np.ndarray, turns: int) -> np.ndarray:
    """1 where a dialogue came to its end within so many turns, f64 [I S]."""
    return np.where(np.isfinite(used), used <= turns, np.nan)


def _consistency(turns: Sequence[TalkedTurn]) -> float:
    known = [one.consistency for one in turns if one.consistency is not None]
    return float(np.mean(known)) if known else float("nan")


def _change(before: np.ndarray, after: np.ndarray, form: str) -> Cell:
    return Cell.of(comparing.difference(before, after), form)


def _relative(before: np.ndarray, after: np.ndarray) -> Interval | None:
    """Change in per cent of the mean before, paired."""
    found = comparing.difference(before, after)
    if found is None:
        return None
    scale = 100 / abs(float(np.nanmean(before)))
    return Interval(value=found.value * scale, low=found.low * scale, high=found.high * scale)
