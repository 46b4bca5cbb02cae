"""API keys, and how much each owner has asked for."""

from __future__ import annotations

import hashlib
import re
import secrets
import time

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session as Transaction

from omr_ray.serving.schemas import NAME
from omr_ray.serving.store import queue
from omr_ray.serving.store.database import insert
from omr_ray.serving.store.tables import Key, Used
from omr_ray.types import UserError

PREFIX = "omr_"


class TooMany(Exception):
    """A limit is reached. `retry_after_s`: when it is worth trying again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def make_key(transaction: Transaction, owner: str) -> str:
    """A new key of an owner, which is shown once and never stored. Raises UserError for a name that cannot be one."""
    if not re.fullmatch(NAME, owner):
        raise UserError(f"owner {owner!r:.80} must be up to 64 letters, digits, dots, dashes, starting with a letter or digit; rename it")
    key = PREFIX + secrets.token_urlsafe(32)
    transaction.add(Key(owner=owner, sha256=_sha256(key), created_at=time.time()))
    return key


def owner_of(transaction: Transaction, key: str) -> str | None:
    """Whose key it is; None for one that is unknown or revoked. A key is random, so a plain hash of it cannot be guessed from."""
    return transaction.scalar(select(Key.owner).where(Key.sha256 == _sha256(key), Key.revoked_at.is_(None)))


def revoke_keys(transaction: Transaction, owner: str) -> int:
    """Make all keys of an owner worthless; how many there were."""
    revoked = update(Key).where(Key.owner == owner, Key.revoked_at.is_(None)).values(revoked_at=time.time()).returning(Key.id)
    return len(transaction.scalars(revoked).all())


def count_request(transaction: Transaction, owner: str, *, per_minute: int, rounds: int = 0, concurrent_rounds: int = 0) -> None:
    """Count one request that makes `rounds` new rounds. Raises TooMany, and then nothing is counted.

    The row of the minute stays locked until the transaction ends: requests of one owner are counted one after the other.
    """
    now = time.time()
    minute = int(now // 60)
    counted = (
        insert(transaction, Used)
        .values(owner=owner, minute=minute, requests=1)
        .on_conflict_do_update(index_elements=["owner", "minute"], set_={"requests": Used.requests + 1})
        .returning(Used.requests)
    )
    found = transaction.scalar(counted) or 0
    if found > per_minute:
        raise TooMany(f"at most {per_minute} requests a minute that make something; wait for the next minute", 60 - int(now % 60))
    if found == 1:
        transaction.execute(delete(Used).where(Used.owner == owner, Used.minute < minute))
    if rounds and (running := queue.open_rounds(transaction, owner)) + rounds > concurrent_rounds:
        raise TooMany(f"at most {concurrent_rounds} rounds at a time, {running} are running; wait for one or cancel it", 2)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
