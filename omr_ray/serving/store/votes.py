"""Votes on the rounds of a session, and annotations of pairs that were put up for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from omr_ray.serving.schemas import Notes
from omr_ray.serving.store import sessions
from omr_ray.serving.store.database import insert
from omr_ray.serving.store.sessions import NotFound
from omr_ray.serving.store.tables import Annotation, Pair, StoredRound, Vote
from omr_ray.types import UserError


def vote(transaction: Transaction, owner: str, session: str, *, left: int, right: int, choice: str) -> Vote:
    """Raises NotFound, and UserError where one of the rounds has no image."""
    kept = sessions.load(transaction, owner, session)
    if left == right:
        raise UserError(f"left and right are both round {left}; compare two rounds")
    for id in (left, right):
        if kept.session.round(id).image is None:
            raise UserError(f"round {id} has no image to vote on; take one that has")
    made = Vote(session_id=session, owner=owner, left=left, right=right, choice=choice, created_at=time.time())
    transaction.add(made)
    transaction.flush()
    return made


def votes(transaction: Transaction, owner: str, session: str) -> Sequence[Vote]:
    sessions.load(transaction, owner, session)
    return transaction.scalars(select(Vote).where(Vote.session_id == session).order_by(Vote.id)).all()


def judged(transaction: Transaction, owner: str | None = None) -> list[tuple[Vote, StoredRound, StoredRound]]:
    """All votes, or those of one owner, with their rounds left and right, in order."""
    wanted = select(Vote).order_by(Vote.id)
    found = transaction.scalars(wanted if owner is None else wanted.where(Vote.owner == owner)).all()
    return [with_rounds(transaction, vote) for vote in found]


def with_rounds(transaction: Transaction, vote: Vote) -> tuple[Vote, StoredRound, StoredRound]:
    """A vote beside its rounds left and right."""
    return vote, sessions.row(transaction, vote.session_id, vote.left), sessions.row(transaction, vote.session_id, vote.right)


def put_up(transaction: Transaction, pairs: Sequence[Pair]) -> int:
    """Pairs that annotators shall judge; those that are there already stay. How many are new."""
    fresh = [pair for pair in pairs if transaction.get(Pair, pair.id) is None]
    transaction.add_all(fresh)
    return len(fresh)


def next_pair(transaction: Transaction, annotator: str) -> tuple[Pair | None, int, int]:
    """The pair that the fewest have judged, and this annotator has not; how many they have, and how many remain."""
    mine = select(Annotation.pair_id).where(Annotation.annotator == annotator)
    done = transaction.scalar(select(func.count()).select_from(mine.subquery())) or 0
    remaining = transaction.scalar(select(func.count()).select_from(Pair).where(Pair.id.not_in(mine))) or 0
    times = select(func.count()).select_from(Annotation).where(Annotation.pair_id == Pair.id).scalar_subquery()
    return transaction.scalar(select(Pair).where(Pair.id.not_in(mine)).order_by(times, Pair.id).limit(1)), done, remaining


def pair(transaction: Transaction, id: str) -> Pair | None:
    return transaction.get(Pair, id)


def pairs(transaction: Transaction) -> Sequence[Pair]:
    """All that were put up, oldest first."""
    return transaction.scalars(select(Pair).order_by(Pair.created_at, Pair.id)).all()


def annotate(
    transaction: Transaction,
    annotator: str,
    pair: str,
    *,
    choice: str,
    seconds: float,
    notes: Notes | None = None,
    at: float | None = None,
) -> tuple[Annotation, Pair]:
    """Judge a pair, now or `at` seconds since 1970; who judges it again has changed their mind. notes None: those that are there stay.

    Raises NotFound.
    """
    found = transaction.get(Pair, sessions.storable("pair", pair))
    if found is None:
        raise NotFound(f"pair {pair!r:.80}")
    said: dict[str, Any] = {"choice": choice, "seconds": seconds, "created_at": time.time() if at is None else at}
    changed = said if notes is None else said | {"notes": notes.model_dump(mode="json")}
    new = {"notes": Notes().model_dump(mode="json")} | changed
    added = insert(transaction, Annotation).values(pair_id=pair, annotator=annotator, **new)
    transaction.execute(added.on_conflict_do_update(index_elements=["pair_id", "annotator"], set_=changed))
    transaction.flush()
    return transaction.get_one(Annotation, (pair, annotator), populate_existing=True), found


def annotated(transaction: Transaction, annotator: str | None = None) -> list[tuple[Annotation, Pair]]:
    wanted = select(Annotation, Pair).join(Pair).order_by(Annotation.created_at, Annotation.pair_id)
    if annotator is not None:
        wanted = wanted.where(Annotation.annotator == annotator)
    return [(row[0], row[1]) for row in transaction.execute(wanted)]
