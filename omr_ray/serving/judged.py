"""Votes and annotations as one: two images of one prompt, and which of them somebody preferred.

A vote compares two rounds of a dialogue, which may have been painted from different prompts. It has the prompt of the
later round: what the user wanted when they voted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from omr_ray.serving.store import votes
from omr_ray.serving.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Two images of one prompt, and which one somebody preferred.

    Example: Judged(id="vote-7", source="votes", pair="vote-7", prompt="a red dress", left="ab12...", right="cd34...", choice="left", ...)
    """

    id: str
    source: Literal["votes", "annotations"]
    pair: str  # that was judged; of a vote: itself
    prompt: str
    left: str  # address
    right: str
    choice: str  # schemas.Choice
    annotator: str
    seconds: float
    created_at: float


def judged(database: Database) -> list[Judged]:
    """All votes, then all annotations, in the order they were made."""
    with database.read() as transaction:
        found = [_of_vote(*row) for row in votes.judged(transaction)]
        found += [_of_annotation(*row) for row in votes.annotated(transaction)]
    return found


def _of_vote(vote: Any, left: Any, right: Any) -> Judged:
    later = max(left, right, key=lambda round_: round_.id)
    said = {"choice": vote.choice, "annotator": vote.owner, "seconds": 0.0, "created_at": vote.created_at}
    id = f"vote-{vote.id}"
    return Judged(id=id, source="votes", pair=id, prompt=later.prompt or "", left=left.image, right=right.image, **said)


def _of_annotation(found: Any, pair: Any) -> Judged:
    said = {"choice": found.choice, "annotator": found.annotator, "seconds": found.seconds, "created_at": found.created_at}
    shown = {"prompt": pair.prompt, "left": pair.left, "right": pair.right}
    return Judged(id=f"annotation-{pair.id}-{found.annotator}", source="annotations", pair=pair.id, **shown, **said)
