"""Sessions and their events. Every rule of growth is dialogue.session.Session's: here it is only read, changed and written back."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.orm import Session as Transaction

from omr_ray.dialogue.feedback_reflection import AspectScore, Question
from omr_ray.dialogue.session import Session, SessionRound
from omr_ray.serving.events import PASSING, Done, Kind
from omr_ray.serving.schemas import RoundView, Schema
from omr_ray.serving.store.tables import Pair, StoredEvent, StoredRound, StoredSession
from omr_ray.vlm.templates import clean

FIELDS = tuple(field.name for field in fields(SessionRound))
ENDED = ("done", "failed", "cancelled")


class NotFound(Exception):
    """There is no such thing, or it is not the caller's: nobody learns which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A session, and what is known of it besides its rounds."""

    session: Session
    owner: str
    title: str
    created_at: float
    last_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    id: str
    title: str
    created_at: float
    updated_at: float
    rounds: int
    image: str | None


def create(transaction: Transaction, owner: str, title: str = "", kind: str = "dialogue") -> Kept:
    now = time.time()
    stored = StoredSession(
        id=f"ses_{secrets.token_hex(12)}", owner=owner, kind=kind, title=clean(title), created_at=now, updated_at=now, last_event=0
    )
    transaction.add(stored)
    transaction.flush()
    return _kept(stored, ())


def storable(kind: str, id: str) -> str:
    """`id`, or NotFound for one that no row can have: a database may refuse to look for it (PostgreSQL: a NUL)."""
    if not re.fullmatch(r"[\x21-\x7e]{1,140}", id):
        raise NotFound(f"{kind} {id!r:.80}")
    return id


def load(transaction: Transaction, owner: str, id: str) -> Kept:
    """Raises NotFound."""
    stored = transaction.get(StoredSession, storable("session", id))
    if stored is None or stored.owner != owner:
        raise NotFound(f"session {id!r:.80}")
    return _kept(stored, transaction.scalars(_rounds_of(id)).all())


def find(transaction: Transaction, id: str) -> Session:
    """For who works on it, whoever owns it. Raises NotFound."""
    stored = transaction.get(StoredSession, id)
    if stored is None:
        raise NotFound(f"session {id!r:.80}")
    return _kept(stored, transaction.scalars(_rounds_of(id)).all()).session


def summaries(transaction: Transaction, owner: str, *, after: str | None, limit: int) -> list[Summary]:
    """The owner's dialogues, the newest first, `limit` and one more where there are more."""
    rows = select(StoredSession).where(StoredSession.owner == owner, StoredSession.kind == "dialogue")
    if after is not None:
        load(transaction, owner, after)
        last = transaction.get_one(StoredSession, after)
        rows = rows.where(tuple_(StoredSession.created_at, StoredSession.id) < tuple_(last.created_at, last.id))
    found = transaction.scalars(rows.order_by(StoredSession.created_at.desc(), StoredSession.id.desc()).limit(limit + 1)).all()
    return [_summary(transaction, stored) for stored in found]


def remove(transaction: Transaction, owner: str, id: str) -> None:
    """With its rounds, events and votes; who works on one of its rounds finds out and stops. Raises NotFound."""
    load(transaction, owner, id)
    transaction.execute(delete(StoredSession).where(StoredSession.id == id))


def change(
    transaction: Transaction,
    id: str,
    rule: Callable[[Session], Session],
    *,
    owner: str | None = None,
    adapter_sha256: str | None = None,
) -> Kept:
    """Apply a rule of Session and write what it changed, with an event for each round that changed.

    The session is locked meanwhile, so changes come one after the other. owner None: whoever works on it.
    Raises NotFound, and UserError where the rule does not hold.
    """
    stored = transaction.scalar(select(StoredSession).where(StoredSession.id == storable("session", id)).with_for_update())
    if stored is None or owner not in (None, stored.owner):
        raise NotFound(f"session {id!r:.80}")
    rows = {row.id: row for row in transaction.scalars(_rounds_of(id))}
    before = _kept(stored, list(rows.values())).session
    after = rule(before)
    stored.head, stored.updated_at = after.head, time.time()
    for round_ in after.rounds:
        row = rows.get(round_.id)
        if row is not None and before.round(round_.id) == round_:
            continue
        if row is None:
            row = rows[round_.id] = StoredRound(session_id=id, created_at=time.time(), attempts=0)
            row.adapter_sha256 = adapter_sha256 if round_.adapter else None
            transaction.add(row)
        for name, value in _columns(round_).items():
            setattr(row, name, value)
        _tell(transaction, stored, "round", round_.id, RoundView.of(round_))
        if round_.status in ENDED and (round_.id > len(before.rounds) or before.round(round_.id).status not in ENDED):
            passing = StoredEvent.session_id == id, StoredEvent.round == round_.id, StoredEvent.kind.in_(PASSING)
            transaction.execute(delete(StoredEvent).where(*passing))
            _tell(transaction, stored, "done", round_.id, Done(round=round_.id, status=round_.status, seconds=time.time() - row.created_at))
    transaction.flush()
    return _kept(stored, [rows[round_.id] for round_ in after.rounds])


def tell(transaction: Transaction, id: str, kind: Kind, round: int, data: Schema) -> None:
    """An event that changes nothing. Raises NotFound."""
    stored = transaction.scalar(select(StoredSession).where(StoredSession.id == id).with_for_update())
    if stored is None:
        raise NotFound(f"session {id!r:.80}")
    _tell(transaction, stored, kind, round, data)


def events(transaction: Transaction, id: str, after: int, limit: int = 200) -> list[StoredEvent]:
    wanted = select(StoredEvent).where(StoredEvent.session_id == id, StoredEvent.id > after)
    return list(transaction.scalars(wanted.order_by(StoredEvent.id).limit(limit)))


def last_events(transaction: Transaction, ids: Collection[str]) -> dict[str, int]:
    """The id of the newest event of each session that is there."""
    found = transaction.execute(select(StoredSession.id, StoredSession.last_event).where(StoredSession.id.in_(ids)))
    return {row.id: row.last_event for row in found}


def row(transaction: Transaction, id: str, round: int) -> StoredRound:
    """A round as it is stored, with what a SessionRound does not know of it."""
    return transaction.scalars(select(StoredRound).where(StoredRound.session_id == id, StoredRound.id == round)).one()


def exists(transaction: Transaction, id: str) -> bool:
    return transaction.get(StoredSession, id) is not None


def shown_in(transaction: Transaction, owner: str, address: str) -> tuple[StoredRound | None, bool]:
    """The newest of the owner's rounds with that image, and whether an annotator may see it. Raises NotFound where neither is."""
    address = storable("image", address)
    own = select(StoredRound).join(StoredSession).where(StoredRound.image == address, StoredSession.owner == owner)
    found = transaction.scalar(own.order_by(StoredRound.row.desc()).limit(1))
    judged = transaction.scalar(select(func.count()).select_from(Pair).where((Pair.left == address) | (Pair.right == address))) or 0
    if found is None and not judged:
        raise NotFound(f"image {address!r:.80}")
    return found, bool(judged)


def _tell(transaction: Transaction, stored: StoredSession, kind: Kind, round: int, data: Schema) -> None:
    stored.last_event += 1
    transaction.add(StoredEvent(session_id=stored.id, id=stored.last_event, kind=kind, round=round, data=data.model_dump(mode="json")))


def _summary(transaction: Transaction, stored: StoredSession) -> Summary:
    of_session = StoredRound.session_id == stored.id
    newest = select(StoredRound.image).where(of_session, StoredRound.image.is_not(None)).order_by(StoredRound.row.desc()).limit(1)
    return Summary(
        id=stored.id,
        title=stored.title,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        rounds=transaction.scalar(select(func.count()).select_from(StoredRound).where(of_session)) or 0,
        image=transaction.scalar(newest),
    )


def _rounds_of(id: str) -> Any:
    return select(StoredRound).where(StoredRound.session_id == id).order_by(StoredRound.id)


def _kept(stored: StoredSession, rows: Sequence[StoredRound]) -> Kept:
    session = Session(id=stored.id, rounds=tuple(map(round_of, rows)), head=stored.head)
    return Kept(session=session, owner=stored.owner, title=stored.title, created_at=stored.created_at, last_event=stored.last_event)


def round_of(row: StoredRound) -> SessionRound:
    values = {name: getattr(row, name) for name in FIELDS}
    if row.scores is not None:
        values["scores"] = tuple(AspectScore(**score) for score in row.scores)
    if row.question is not None:
        values["question"] = Question(**row.question | {"suggestions": tuple(row.question["suggestions"])})
    return SessionRound(**values)


def _columns(round_: SessionRound) -> dict[str, Any]:
    values = {name: getattr(round_, name) for name in FIELDS}
    values["scores"] = None if round_.scores is None else [asdict(score) for score in round_.scores]
    values["question"] = None if round_.question is None else asdict(round_.question)
    return values
