"""Rounds as work: who takes one on holds a lease, and one whose holder has died is taken on by another."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session as Transaction

from omr_ray.dialogue.session import SessionRound, Status
from omr_ray.serving.store import sessions
from omr_ray.serving.store.sessions import Kept
from omr_ray.serving.store.tables import StoredEvent, StoredRound, StoredSession

OPEN = ("pending", "running")


class Lost(Exception):
    """The round is somebody else's now, or has been cancelled, or is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    row: int
    session: str
    round: int
    kind: str  # of the session
    adapter_sha256: str | None  # content of the adapter when the round was accepted
    attempts: int  # this one included
    holder: str


def claim(transaction: Transaction, holder: str, lease_s: float, besides: Collection[int] = ()) -> Claim | None:
    """The oldest round that nobody works on, which is the holder's from now on; None where there is none.

    besides: rows that the holder works on already: while the database is away their leases run out.
    """
    now = time.time()
    free = (StoredRound.lease_until.is_(None)) | (StoredRound.lease_until < now)
    open_ = StoredRound.status.in_(OPEN), StoredRound.row.not_in(besides)
    oldest = select(StoredRound.row).where(*open_, free).order_by(StoredRound.row).limit(1)
    taken = (
        update(StoredRound)
        .where(StoredRound.row == oldest.with_for_update(skip_locked=True).scalar_subquery())
        .values(lease_holder=holder, lease_until=now + lease_s, attempts=StoredRound.attempts + 1)
        .returning(StoredRound.row, StoredRound.session_id, StoredRound.id, StoredRound.attempts, StoredRound.adapter_sha256)
    )
    found = transaction.execute(taken).first()
    if found is None:
        return None
    kind = transaction.get_one(StoredSession, found.session_id).kind
    return Claim(
        row=found.row,
        session=found.session_id,
        round=found.id,
        kind=kind,
        adapter_sha256=found.adapter_sha256,
        attempts=found.attempts,
        holder=holder,
    )


def save(transaction: Transaction, claimed: Claim, round_: SessionRound) -> Kept:
    """What a turn has made of the claimed round. Raises Lost where it is the holder's no more."""
    check(transaction, claimed)
    return sessions.change(transaction, claimed.session, lambda session: session.updated(round_))


def check(transaction: Transaction, claimed: Claim) -> None:
    """Raises Lost where the round is the holder's no more."""
    # The order of locks is session, then round, as for everybody who changes a session.
    transaction.execute(select(StoredSession.id).where(StoredSession.id == claimed.session).with_for_update())
    row = transaction.scalar(select(StoredRound).where(StoredRound.row == claimed.row).with_for_update())
    if row is None or row.lease_holder != claimed.holder or row.status not in OPEN:
        raise Lost(f"round {claimed.round} of session {claimed.session}")


def prolong(transaction: Transaction, holder: str, rows: Collection[int], lease_s: float) -> set[int]:
    """Those of the rows that are still the holder's to work on; their leases run from now."""
    still = (
        update(StoredRound)
        .where(StoredRound.row.in_(rows), StoredRound.lease_holder == holder, StoredRound.status.in_(OPEN))
        .values(lease_until=time.time() + lease_s)
        .returning(StoredRound.row)
    )
    return set(transaction.scalars(still))


def give_back(transaction: Transaction, claimed: Claim) -> None:
    """Somebody else may go on at once; it does not count as an attempt."""
    mine = StoredRound.row == claimed.row, StoredRound.lease_holder == claimed.holder
    transaction.execute(update(StoredRound).where(*mine).values(lease_until=None, attempts=StoredRound.attempts - 1))


def open_rounds(transaction: Transaction, owner: str) -> int:
    """How many of an owner's rounds are pending or running."""
    wanted = select(func.count()).select_from(StoredRound).join(StoredSession)
    return transaction.scalar(wanted.where(StoredSession.owner == owner, StoredRound.status.in_(OPEN))) or 0


def by_status(transaction: Transaction) -> dict[str, int]:
    """How many rounds are stored, of every status."""
    found = dict.fromkeys(get_args(Status), 0)
    return found | {row[0]: row[1] for row in transaction.execute(select(StoredRound.status, func.count()).group_by(StoredRound.status))}


def waiting(transaction: Transaction, besides: Collection[int] = ()) -> int:
    """How many rounds nobody works on; besides: as for `claim`."""
    free = (StoredRound.lease_until.is_(None)) | (StoredRound.lease_until < time.time())
    open_ = StoredRound.status.in_(OPEN), StoredRound.row.not_in(besides)
    return transaction.scalar(select(func.count()).select_from(StoredRound).where(*open_, free)) or 0


def seconds_to_end(transaction: Transaction, since: float) -> list[float]:
    """How long the rounds took that were stored after `since` and have ended."""
    of_round = (StoredRound.session_id == StoredEvent.session_id) & (StoredRound.id == StoredEvent.round)
    told = select(StoredEvent.data).join(StoredRound, of_round).where(StoredRound.created_at > since, StoredEvent.kind == "done")
    return [data["seconds"] for data in transaction.scalars(told) if "seconds" in data]
