"""The connection: SQLite on one machine, PostgreSQL for several; transactions, and answers that are given once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import create_engine, delete, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import Session as Transaction

from omr_ray.serving.store.tables import Answered
from omr_ray.types import NoSpace, Unavailable, UserError

MIGRATIONS = Path(__file__).parents[1] / "migrations"
BUSY_S = 30  # that a writer waits for another one
ANSWERS_KEPT_S = 24 * 3600
CHANNEL = "omr_ray"  # of PostgreSQL's notifications
LISTEN_S = 1.0
LOOK_S = 0.01  # at SQLite's number of commits
MIGRATION_LOCK = 0x6F6D72  # of PostgreSQL's advisory locks
# libpq would wait for minutes for a server that is silent.
POSTGRES_WAITS = {"connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
FULL = ("SQLITE_FULL", "53100")  # SQLite's name and PostgreSQL's SQLSTATE
READ_ONLY = "25006"  # a standby, or a server that its operator has closed for writing


class Conflict(Exception):
    """An Idempotency-Key was used before for another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """Names a request, so that it is carried out once however often it is sent."""

    owner: str
    key: str
    fingerprint: str


class Database:
    """Raises UserError for a URL that cannot be used, and Unavailable whenever it is asked and cannot answer: NoSpace where it is full.

    Example: Database("sqlite:////srv/omr/service.db"), Database("postgresql+psycopg://user@host/omr")
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise UserError(f"database {parsed.get_backend_name()!r} is not served; give sqlite:///FILE or postgresql+psycopg://...")
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.shown = parsed.render_as_string(hide_password=True)
            if parsed.get_backend_name() == "postgresql":
                parsed = parsed.update_query_dict({**POSTGRES_WAITS, **parsed.query})
            self._engine = create_engine(parsed, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise UserError(f"database URL: {error}; give sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME") from None
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._reading = self._engine.execution_options(reads=True)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that is durable when the block is left, and never happened where it raises."""
        with self._opened(self._engine) as transaction:
            yield transaction
            if self._engine.dialect.name == "postgresql":
                transaction.execute(text(f"NOTIFY {CHANNEL}"))
            transaction.commit()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._opened(self._reading) as transaction:
            yield transaction

    @contextmanager
    def _opened(self, engine: Any) -> Iterator[Transaction]:
        try:
            with Transaction(engine, expire_on_commit=False) as transaction:
                yield transaction
        except (DBAPIError, NoConnectionFree) as error:
            if (kind := _outage(error)) is None:
                raise
            line = str(getattr(error, "orig", error)).strip().splitlines()[0]
            raise kind(f"{self.shown}: cannot be used ({line}); see that it can be reached, has space and is migrated") from error

    @contextmanager
    def commits(self) -> Iterator[Callable[[], bool]]:
        """What waits, for a second at most, until a process commits a `write`, and says whether one did.

        SQLite counts commits for every connection, and that number is looked at often; PostgreSQL tells who listens.
        Raises the driver's errors.
        """
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()  # it is not as the others any more
        try:
            yield _of_postgresql(connection) if self._engine.dialect.name == "postgresql" else _of_sqlite(connection)
        finally:
            connection.close()

    def once(self, once: Once | None, work: Callable[[Transaction], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """What `work` answers, and whether it was answered before, to the same request with the same key.

        The answer is stored with what the work does, or neither is. Raises Conflict where the key came with another request.
        """
        if once is None:
            with self.write() as transaction:
                return work(transaction), False
        for last_try in (False, True):
            try:
                with self.write() as transaction:
                    found = transaction.get(Answered, (once.owner, once.key))
                    if found is not None and found.created_at > time.time() - ANSWERS_KEPT_S:
                        if found.fingerprint != once.fingerprint:
                            raise Conflict(once.key)
                        return found.answer, True
                    transaction.execute(delete(Answered).where(Answered.created_at <= time.time() - ANSWERS_KEPT_S))
                    answer = work(transaction)
                    transaction.add(
                        Answered(owner=once.owner, key=once.key, fingerprint=once.fingerprint, answer=answer, created_at=time.time())
                    )
                    transaction.flush()
                    return answer, False
            except IntegrityError:  # the same request, at the same moment: now its answer is there
                if last_try:
                    raise
        raise AssertionError

    def migrate(self) -> None:
        """Bring the tables to this program's version. Several may try at once."""
        with self._opened(self._engine) as transaction:
            if self._engine.dialect.name == "postgresql":
                transaction.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            config = AlembicConfig()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = transaction.connection()
            command.upgrade(config, "head")
            transaction.commit()


def insert(transaction: Transaction, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT: both databases have it, each in its own dialect."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[transaction.get_bind().dialect.name](table)


def _outage(error: DBAPIError | NoConnectionFree) -> type[Unavailable] | None:
    """What to call an error that is no fault of the statement; None where it is one."""
    if isinstance(error, NoConnectionFree):
        return Unavailable
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", None)
    if code in FULL:
        return NoSpace
    away = isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated or code == READ_ONLY
    return Unavailable if away else None


def _of_postgresql(connection: Any) -> Callable[[], bool]:
    connection.rollback()
    connection.autocommit = True
    connection.execute(f"LISTEN {CHANNEL}")

    def next_commit() -> bool:
        return any(True for _ in connection.notifies(timeout=LISTEN_S, stop_after=1))

    return next_commit


def _of_sqlite(connection: Any) -> Callable[[], bool]:
    def version() -> int:
        return connection.execute("PRAGMA data_version").fetchone()[0]

    known = version()

    def next_commit() -> bool:
        nonlocal known
        end = time.monotonic() + LISTEN_S
        while time.monotonic() < end:
            if (found := version()) != known:
                known = found
                return True
            time.sleep(LOOK_S)
        return False

    return next_commit


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver would begin transactions late; we begin them ourselves. WAL: readers do not wait for the writer.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_S * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    # A writer takes its place at once: one that first reads and then writes would fail where another has written meanwhile.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")
