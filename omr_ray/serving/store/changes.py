"""Who waits for something in the database is told soon after it was committed, whichever process did that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

from omr_ray.serving.store import sessions
from omr_ray.serving.store.database import Database

logger = logging.getLogger(__name__)

AWAY_S = 1.0  # until a database that is away is looked at again
JOIN_S = 5.0


class Changes:
    """One thread that sees commits, for all threads and tasks of this process that wait for one.

    Take `count`, look for what is wanted, and where it is not there wait for a commit after that count: so none is missed.
    While the database is away nothing is seen: waits have a limit, after which one looks again.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._over = database, threading.Event()
        self._changed = threading.Condition()
        self._count = 0
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}  # a session, and the last of its events that is known
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Of commits that were seen; several that are close count once."""
        return self._count

    def wait(self, count: int, limit_s: float) -> None:
        """For a thread: until there was a commit after `count`, or `limit_s` is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._count != count or self._over.is_set(), limit_s)

    async def of_session(self, id: str, last: int, count: int, limit_s: float) -> None:
        """For a task: until a session has events behind `last` or is gone, or `limit_s` is over."""
        told = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._count != count:
                return
            self._waiting[told] = (id, last)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told, limit_s)
        finally:
            with self._changed:
                self._waiting.pop(told, None)

    def close(self) -> None:
        self._over.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(JOIN_S)

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                with self._database.commits() as next_commit:
                    self._tell()  # of what was committed while nobody looked
                    while not self._over.is_set():
                        if next_commit():
                            self._tell()
            except Exception as error:
                logger.warning("commits are not seen for the moment: %s", error)
                self._over.wait(AWAY_S)

    def _tell(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()
            waiting = dict(self._waiting)
        if not waiting:
            return
        with self._database.read() as transaction:
            newest = sessions.last_events(transaction, {id for id, _ in waiting.values()})
        for told, (id, last) in waiting.items():
            if newest.get(id, last + 1) > last:
                _soon(told)


def _soon(told: asyncio.Future[None]) -> None:
    def tell() -> None:
        if not told.done():
            told.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waited
        told.get_loop().call_soon_threadsafe(tell)
