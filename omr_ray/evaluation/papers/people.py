"""What people say, and what people would look at: votes (OMR table 1, TDRI table 1) and pictures side by side (TDRI fig. 4, 5)."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from omr_ray.data.store import read_json
from omr_ray.evaluation import comparing, votes
from omr_ray.evaluation.papers import drawing
from omr_ray.evaluation.papers.published import OMR_TABLE1, TDRI_TABLE1
from omr_ray.evaluation.papers.result import DIALOGUES, PROMPTS, Cell, Context, Drawing, Missing, Result, Table
from omr_ray.types import UserError

KEY, ASSIGNMENTS = "votes/key.json", "votes/assignments.json"
SHOWN_ROWS = 5


def human_votes(context: Context) -> Result:
    """Win rates and Bradley-Terry ranks of judged pairs, beside the papers' votes."""
    papers = _published(context)
    if context.config.votes is None:
        remedy = f"let annotators judge the pairs of {context.results.folder.shown(ASSIGNMENTS)}, then set votes=FILE"
        return Result(tables=papers, missing=(Missing(what="Human votes", why="no votes are given", remedy=remedy),))
    path = Path(context.config.votes)
    try:
        lines = path.read_text().splitlines()
    except OSError:
        raise UserError(f"{path}: no such file of votes; give one line of JSON for each judged pair") from None
    found = votes.read_votes(lines, read_json(context.results.folder, KEY), str(path))
    if not found:
        return Result(tables=papers, missing=(Missing(what="Human votes", why=f"{path} holds none"),))
    models = [name for name in context.models if any(name in (vote.left, vote.right) for vote in found)]
    rates, strengths = votes.bootstrapped(found, models, context.config.seed)
    wins = votes.counts(found, models)
    order = comparing.ranks([one.value for one in strengths], "up")
    rows = tuple(
        (
            name,
            (
                Cell(value=float(wins[place].sum()), form="{:g}"),
                Cell.of(rates[place], "{:.1%}"),
                Cell.of(strengths[place], "{:+.2f}", order[place]),
                Cell.paper(OMR_TABLE1.get(context.published(name) or "", {}).get("human")),
            ),
        )
        for place, name in enumerate(models)
    )
    said = Counter(vote.choice for vote in found)
    annotators = len({vote.annotator for vote in found})
    table = Table(title="Votes", columns=("wins ↑", "win rate ↑", "Bradley-Terry, log strength ↑", "paper: wins of 2706"), rows=rows)
    played = wins + wins.T
    shares = wins / played.clip(min=1e-9)
    shares[played == 0] = float("nan")
    heat = Drawing(title="Win rate of row against column", svg=drawing.heat_map(shares, models, models, x="against", middle=0.5))
    note = (
        f"{len(found)} votes of {annotators} annotators, blind and crossed over: each pair in both orders. "
        f"Left {said['left']}, right {said['right']}, tie {said['tie']} (half a win each), both bad {said['both_bad']} "
        "(no win). Intervals: 95%, resampling items with all their votes."
    )
    return Result(note=note, tables=(table, *papers), drawings=(heat,))


def pictures(context: Context) -> Result:
    """The same dialogues and seeds under every model, by round."""
    rows: dict[str, list[tuple[str, list[Any]]]] = {}
    for model in context.models:
        for made in _first_rows(context, model, DIALOGUES):
            rows.setdefault(made[0].dialogue, []).append((model, made))
    if not rows:
        return Result(missing=(Missing(what="Pictures", why="no images are stored"),))
    drawings = tuple(
        Drawing(title=made[0][1][0].intent, svg=grid(made, [f"{one.round}. “{one.utterance}”" for one in made[0][1]]), wide=True)
        for made in rows.values()
    )
    return Result(note="Sibling 0 of each dialogue, the same seeds in every row.", drawings=drawings)


def user_outputs(context: Context) -> Result:
    """Fig. 4 and 5: the same prompts and seeds under each user's adapter."""
    if not context.config.users:
        remedy = "name one adapter a user under models and users; `omr-ray serve` keeps them apart by user"
        return Result(missing=(Missing(what="Outputs by user", why="no users' adapters are given", remedy=remedy),))
    remedy = "name an adapter that is there, of the service for example: runs/serve/adapters/users/OWNER/NAME"
    missing = tuple(
        Missing(what=f"Outputs of {name}", why=context.absent[name], remedy=remedy)
        for name in context.config.users
        if name in context.absent
    )
    made = [(model, rows[0]) for model in context.config.users if (rows := _first_rows(context, model, PROMPTS))]
    if not made:
        return Result(missing=missing)
    drawn = Drawing(title="One seed, each user's adapter", svg=grid(made, [one.prompt for one in made[0][1]]), wide=True)
    return Result(drawings=(drawn,), missing=missing)


def _published(context: Context) -> tuple[Table, ...]:
    total = sum(row["human"] for row in OMR_TABLE1.values())
    omr = tuple((name, (Cell.paper(row["human"]), Cell.paper(row["human"] / total, "{:.1%}"))) for name, row in OMR_TABLE1.items())
    tdri = tuple((name, (Cell.paper(row["human"], "{:g}%"),)) for name, row in TDRI_TABLE1.items())
    return (
        Table(title="OMR-Diffusion, table 1", columns=("wins", "share of the wins listed"), rows=omr),
        Table(title="TDRI, table 1", columns=("share of votes",), rows=tdri),
    )


def _first_rows(context: Context, model: str, task: str) -> list[list[Any]]:
    """Images of sibling 0 of the first dialogues, by dialogue and round."""
    found: dict[str, list[Any]] = {}
    for part in context.results.parts(model, task)[:1]:
        for made in context.results.images(model, task, part):
            if made.sibling == 0:
                found.setdefault(made.dialogue, []).append(made)
    return [sorted(rows, key=lambda made: made.round) for _, rows in sorted(found.items())[:SHOWN_ROWS]]


def grid(rows: Sequence[tuple[str, list[Any]]], heads: Sequence[str]) -> Markup:
    """A table of pictures: a row a model, a column a round."""
    top = Markup("").join(Markup('<td><div class="said">{}</div></td>').format(head) for head in heads)
    lines = [
        Markup("<tr><th>{}</th>{}</tr>").format(
            name, Markup("").join(Markup('<td><img src="{}" alt="{}"></td>').format(uri(one.image), one.prompt) for one in made)
        )
        for name, made in rows
    ]
    return Markup('<div class="scroll"><table class="sheet"><tr><th></th>{}</tr>{}</table></div>').format(top, Markup("").join(lines))


def uri(png: bytes) -> str:
    """An image that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
