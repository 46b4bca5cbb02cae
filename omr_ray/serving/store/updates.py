"""Updates of adapters as work: each learns from the votes since the one before it (TDRI section 3.2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session as Transaction

from omr_ray.serving.store.database import insert
from omr_ray.serving.store.sessions import NotFound
from omr_ray.serving.store.tables import AdapterUpdate, StoredRound, Vote
from omr_ray.serving.store.votes import with_rounds
from omr_ray.types import UserError

GENERAL = "shared/general"  # learns from everybody's votes
CHOSEN = ("left", "right")  # choices that say which of two is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An update that its holder has to make."""

    id: int
    adapter: str
    owner: str | None  # whose votes; None: everybody's
    after: int  # the last vote that the update before this one learned from
    up_to: int
    attempts: int  # this one included
    holder: str


def own_adapter(owner: str) -> str:
    """Id of the adapter that learns from an owner's votes."""
    return f"users/{owner}/taste"


def claim(transaction: Transaction, holder: str, lease_s: float, every: int) -> Due | None:
    """An update whose holder has died, or a new one where `every` votes have come since the last; None where there is none."""
    now = time.time()
    lost = select(AdapterUpdate.id).where(AdapterUpdate.status == "running", AdapterUpdate.lease_until < now).limit(1)
    taken = (
        update(AdapterUpdate)
        .where(AdapterUpdate.id == lost.with_for_update(skip_locked=True).scalar_subquery())
        .values(lease_holder=holder, lease_until=now + lease_s, attempts=AdapterUpdate.attempts + 1)
        .returning(AdapterUpdate)
    )
    found = transaction.scalar(taken)
    if found is None:
        found = _begin(transaction, holder, now + lease_s, every)
    if found is None:
        return None
    after = _learned_up_to(transaction, found.adapter, before=found.id)
    values = {name: getattr(found, name) for name in ("id", "adapter", "owner", "up_to", "attempts")}
    return Due(**values, after=after, holder=holder)


def prolong(transaction: Transaction, due: Due, lease_s: float) -> bool:
    """Whether the update is still the holder's; its lease runs from now."""
    return _changed(transaction, due, lease_until=time.time() + lease_s)


def finish(transaction: Transaction, due: Due, *, status: str, message: str, sha256: str | None, figures: dict[str, Any]) -> bool:
    """published, refused or failed. Whether the update was still the holder's; else nothing has changed."""
    ended = {"status": status, "message": message, "sha256": sha256, "figures": figures, "finished_at": time.time()}
    return _changed(transaction, due, **ended, lease_until=None)


def published(transaction: Transaction, adapter: str) -> Sequence[AdapterUpdate]:
    """The versions of an adapter that went into use and were not taken back, oldest first."""
    wanted = select(AdapterUpdate).where(AdapterUpdate.adapter == adapter, AdapterUpdate.status == "published")
    return transaction.scalars(wanted.order_by(AdapterUpdate.id)).all()


def roll_back(transaction: Transaction, adapter: str) -> str | None:
    """Take back the newest version; returns the hash of the one before it, None where that is the base. Raises UserError, NotFound."""
    versions = published(transaction, adapter)
    if not versions:
        raise NotFound(f"version of adapter {adapter!r:.140} that could be taken back")
    if transaction.scalar(select(AdapterUpdate.id).where(AdapterUpdate.adapter == adapter, AdapterUpdate.status == "running")) is not None:
        raise UserError(f"adapter {adapter} is being updated; wait until that has ended, then take it back")
    versions[-1].status = "rolled_back"
    return versions[-2].sha256 if len(versions) > 1 else None


def updates(transaction: Transaction, adapter: str) -> Sequence[AdapterUpdate]:
    """All, newest first."""
    return transaction.scalars(select(AdapterUpdate).where(AdapterUpdate.adapter == adapter).order_by(AdapterUpdate.id.desc())).all()


def votes_of(transaction: Transaction, due: Due, *, all_before: bool) -> list[tuple[Vote, StoredRound, StoredRound]]:
    """Votes that chose, with their rounds left and right: those since the last update, or all up to this one's last."""
    wanted = select(Vote).where(Vote.choice.in_(CHOSEN), Vote.id <= due.up_to).order_by(Vote.id)
    if not all_before:
        wanted = wanted.where(Vote.id > due.after)
    if due.owner is not None:
        wanted = wanted.where(Vote.owner == due.owner)
    return [with_rounds(transaction, vote) for vote in transaction.scalars(wanted)]


def _changed(transaction: Transaction, due: Due, **values: Any) -> bool:
    mine = AdapterUpdate.id == due.id, AdapterUpdate.lease_holder == due.holder, AdapterUpdate.status == "running"
    return transaction.scalar(update(AdapterUpdate).where(*mine).values(**values).returning(AdapterUpdate.id)) is not None


def _begin(transaction: Transaction, holder: str, lease_until: float, every: int) -> AdapterUpdate | None:
    owners = transaction.scalars(select(Vote.owner).where(Vote.choice.in_(CHOSEN)).distinct().order_by(Vote.owner)).all()
    for owner in (None, *owners):
        adapter = GENERAL if owner is None else own_adapter(owner)
        after = _learned_up_to(transaction, adapter)
        fresh = select(func.count(), func.max(Vote.id)).where(Vote.choice.in_(CHOSEN), Vote.id > after)
        count, last = transaction.execute(fresh if owner is None else fresh.where(Vote.owner == owner)).one()
        if count < every:
            continue
        values = {"adapter": adapter, "owner": owner, "up_to": last, "status": "running", "attempts": 1, "created_at": time.time()}
        added = insert(transaction, AdapterUpdate).values(**values, lease_holder=holder, lease_until=lease_until)
        # Two who see that an update is due at the same moment: one of them gets it.
        made = transaction.scalar(added.on_conflict_do_nothing(index_elements=["adapter", "up_to"]).returning(AdapterUpdate))
        if made is not None:
            return made
    return None


def _learned_up_to(transaction: Transaction, adapter: str, before: int | None = None) -> int:
    """The newest vote that an update of the adapter has taken, whatever came of it."""
    wanted = select(func.max(AdapterUpdate.up_to)).where(AdapterUpdate.adapter == adapter)
    return transaction.scalar(wanted if before is None else wanted.where(AdapterUpdate.id < before)) or 0
