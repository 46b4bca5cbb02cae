"""Who waits for a commit is told of it: real SQLite and a real PostgreSQL, the commits by other connections."""

import asyncio
import threading
import time

import pytest

from omr_ray.serving.store import sessions
from omr_ray.serving.store.changes import Changes
from omr_ray.serving.store.database import Database
from tests.serving.test_store import database, postgres, start  # noqa: F401

LONG_S = 60.0  # a wait that has ended before this was told


@pytest.fixture
def changes(database):  # noqa: F811
    found = Changes(database)
    found.wait(0, LONG_S)  # it looks now
    yield found
    found.close()


def later(work):
    thread = threading.Timer(0.3, work)
    thread.start()
    return thread


def url_of(database):  # noqa: F811
    return database._engine.url.render_as_string(hide_password=False)


def test_a_thread_is_told_of_another_process_commit(database, changes):  # noqa: F811
    other, count, began = Database(url_of(database)), changes.count, time.monotonic()
    committing = later(lambda: start(other))
    changes.wait(count, LONG_S)
    assert changes.count > count and time.monotonic() - began < LONG_S
    committing.join()
    other.close()


def test_what_was_committed_before_the_wait_ends_it_at_once_and_reading_ends_none(database, changes):  # noqa: F811
    count = changes.count
    start(database)
    changes.wait(count, LONG_S)
    seen = changes.count
    with database.read() as transaction:
        assert sessions.last_events(transaction, {"none"}) == {}
    began = time.monotonic()
    changes.wait(seen, 1.5)
    assert changes.count == seen and time.monotonic() - began >= 1.5


def test_a_task_is_told_of_its_own_session_only_and_of_its_end(database, changes):  # noqa: F811
    mine, other = start(database), start(database)
    settled(changes)

    async def waited(work, limit_s):
        count, began = changes.count, time.monotonic()
        last = current(database, mine.session.id)
        committing = later(work)
        await changes.of_session(mine.session.id, last, count, limit_s)
        committing.join()
        return time.monotonic() - began

    def touch(kept):
        with database.write() as transaction:
            sessions.change(transaction, kept.session.id, lambda session: session.cancel(1), owner="ann")

    def remove():
        with database.write() as transaction:
            sessions.remove(transaction, "ann", mine.session.id)

    assert asyncio.run(waited(lambda: touch(other), 2.0)) >= 2.0
    assert asyncio.run(waited(lambda: touch(mine), LONG_S)) < LONG_S
    settled(changes)
    assert asyncio.run(waited(remove, LONG_S)) < LONG_S


def test_a_database_that_was_away_is_looked_at_again(request):
    server = request.getfixturevalue("postgres")
    found = Database(server.make(f"t{time.time_ns()}"))
    found.migrate()
    changes = Changes(found)
    changes.wait(0, LONG_S)
    seen = changes.count
    with found.read() as transaction:
        transaction.connection().exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN omr_ray' AND datname = current_database()"
        )
    changes.wait(seen, LONG_S)  # it listens again, and says so
    again = changes.count
    assert again > seen
    start(found)
    changes.wait(again, LONG_S)
    assert changes.count > again
    changes.close()
    found.close()


def current(database, id):  # noqa: F811
    with database.read() as transaction:
        return sessions.last_events(transaction, {id})[id]


def settled(changes):
    """Until no commit is seen for a while."""
    seen = -1
    while seen != changes.count:
        seen = changes.count
        changes.wait(seen, 1.5)
