"""OMR table 2 on the dialogue engine of this machine: a picture or words, and whether it is the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from omr_ray.evaluation import comparing
from omr_ray.evaluation.papers.people import uri
from omr_ray.evaluation.papers.published import OMR_TABLE2_OURS
from omr_ray.evaluation.papers.result import Cell, Context, Drawing, Missing, Result, Table
from omr_ray.evaluation.stored import SwitchedTurn
from omr_ray.evaluation.switching import KINDS, ROUNDS

PICTURES, WORDS = ("T->I", "I+T->I"), ("T->T", "I+T->T")
Says = Callable[[SwitchedTurn], float | None]


def modality_switching(context: Context) -> Result:
    """Table 2: which modality is answered with, by round and kind, beside the paper's; and whether what comes is right."""
    found = {name: turns for name in context.models if (turns := context.results.turns(name))}
    if not found:
        why = "no model that is sampled here has talked; the embedded world is needed, where the oracle reads pictures exactly"
        return Result(missing=(Missing(what="Modality switching", why=why, remedy="run this protocol by its name, with {type: base}"),))
    chosen = _by_kind(found, "modality", lambda turn: float(turn.modality == _asked(turn)), papers=True)
    right = _by_kind(found, "right", lambda turn: float(turn.right), papers=False)
    language = getattr(context.config.language, "model", None) or getattr(context.config.language, "path", "")
    note = (
        f"The dialogue engine with the language model {language}: does a turn want a picture or words? T is a turn in words, I a picture. "
        "Every kind of turn is asked in every round of the same held-out dialogues; in round 1, I+T has a picture that the user brings. "
        "The paper's numbers are of its own model, per cent."
    )
    said = (
        "A picture is right where the oracle reads off it every aspect that was asked for so far (of a brought picture: the latest wish); "
        "words are right where they say what is true of the dialogue, or of the picture as the oracle reads it. "
        "The wrong modality is never right."
    )
    tables = (
        Table(title="A picture or words, as it was asked for", columns=tuple(_columns(papers=True)), rows=chosen),
        Table(title="And the right one", columns=tuple(_columns(papers=False)), rows=right),
        _aspects(found),
    )
    name, turns = next(iter(found.items()))
    return Result(note=f"{note} {said}", tables=tables, drawings=(_example(name, turns),))


def _by_kind(found: dict[str, list[SwitchedTurn]], what: str, says: Says, *, papers: bool) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    rows = []
    for model, turns in found.items():
        for r in range(1, ROUNDS + 1):
            cells = []
            for kind in KINDS:
                cells.append(Cell.of(comparing.interval(_cube(turns, r, kind, says)), "{:.1%}"))
                if papers:
                    cells.append(Cell.paper(OMR_TABLE2_OURS[f"round {r}"].get(kind), "{:g}%"))
            rows.append((f"{model}, round {r}", tuple(cells)))
    return tuple(rows)


def _aspects(found: dict[str, list[SwitchedTurn]]) -> Table:
    """How much of what was asked for the pictures show."""
    rows = tuple(
        (
            f"{model}, round {r}",
            tuple(Cell.of(comparing.interval(_cube(turns, r, kind, lambda turn: turn.share)), "{:.1%}") for kind in PICTURES),
        )
        for model, turns in found.items()
        for r in range(1, ROUNDS + 1)
    )
    return Table(title="Aspects right of the pictures that came (oracle)", columns=tuple(map(_arrow, PICTURES)), rows=rows)


def _columns(*, papers: bool) -> list[str]:
    return [name for kind in KINDS for name in ((_arrow(kind), f"paper: {_arrow(kind)}") if papers else (_arrow(kind),))]


def _cube(turns: Sequence[SwitchedTurn], r: int, kind: str, says: Says) -> np.ndarray:
    """f64 [D 1], NaN where a dialogue has no such turn, or nothing can be said of it."""
    rows = dict.fromkeys(sorted({turn.dialogue for turn in turns}), np.nan)
    for turn in turns:
        if (turn.round, turn.kind) == (r, kind) and (value := says(turn)) is not None:
            rows[turn.dialogue] = value
    return np.array(list(rows.values()))[:, None]


def _asked(turn: SwitchedTurn) -> str:
    return "picture" if turn.kind in PICTURES else "words"


def _arrow(kind: str) -> str:
    return kind.replace("->", "\N{RIGHTWARDS ARROW}")


def _example(model: str, turns: Sequence[SwitchedTurn]) -> Drawing:
    """The turns of the first dialogue as they were said."""
    first = min(turn.dialogue for turn in turns)
    lines = Markup("").join(
        Markup("<tr><th>{}</th><td>{}</td><td>“{}”</td><td>{}</td><td>{}</td><td>{}</td></tr>").format(
            turn.round, _arrow(turn.kind), turn.utterance, _answer(turn), turn.wanted, "right" if turn.right else "wrong"
        )
        for turn in sorted((turn for turn in turns if turn.dialogue == first), key=lambda turn: (turn.round, KINDS.index(turn.kind)))
    )
    head = Markup("<tr><th>round</th><th>kind</th><th>the user</th><th>the engine</th><th>wanted</th><th></th></tr>")
    table = Markup('<div class="scroll"><table class="talk">{}{}</table></div>').format(head, lines)
    return Drawing(title=f"One dialogue, {model}", svg=table, wide=True)


def _answer(turn: SwitchedTurn) -> Markup | str:
    if turn.image is None:
        return f"“{turn.reply}”" if turn.reply else "no valid answer"
    return Markup('<img src="{}" alt="{}"><br>{}').format(uri(turn.image), turn.prompt, turn.prompt)
