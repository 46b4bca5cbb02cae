"""The store, on SQLite and on a real PostgreSQL server."""

import threading
import time

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from omr_ray.dialogue.feedback_reflection import AspectScore, Question
from omr_ray.serving.events import Progress
from omr_ray.serving.schemas import Note, Notes
from omr_ray.serving.store import access, queue, sessions, votes
from omr_ray.serving.store.database import Conflict, Database, Once
from omr_ray.serving.store.sessions import NotFound
from omr_ray.serving.store.tables import Pair, Table
from omr_ray.types import UserError
from tests.postgres_server import postgres_server

pytestmark = pytest.mark.timeout(600)
ADDRESS = "ab" * 32


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/deep/er/service.db"
    else:
        url = request.getfixturevalue("postgres").make(f"t{time.time_ns()}")
    found = Database(url)
    found.migrate()
    yield found
    found.close()


def start(database, owner="ann", utterance="a red dress", **options):
    with database.write() as transaction:
        kept = sessions.create(transaction, owner, "t")
        grow = lambda session: session.start(utterance, seed=7, strength=0.6, **options)  # noqa: E731
        return sessions.change(transaction, kept.session.id, grow, owner=owner)


def run(database, claimed, **found):
    """Take a claimed round to its end, or as far as `found` goes."""
    with database.write() as transaction:
        session = sessions.change(transaction, claimed.session, lambda session: session.begin(claimed.round)).session
        for name, value in found.items():
            session = session.record(claimed.round, **{name: value})
            queue.save(transaction, claimed, session.round(claimed.round))
        if "image" in found or "reply" in found:
            queue.save(transaction, claimed, session.finish(claimed.round).round(claimed.round))
    return session


def claim(database, holder="w", lease_s=60.0):
    with database.write() as transaction:
        return queue.claim(transaction, holder, lease_s)


def test_the_migrations_make_the_tables_that_the_program_has(database):
    database.migrate()  # nothing is left to do
    with database.write() as transaction:
        context = MigrationContext.configure(transaction.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_a_round_comes_back_as_it_was_stored_step_by_step(database):
    id = start(database, answer=None).session.id
    claimed = claim(database)
    assert (claimed.session, claimed.round, claimed.kind, claimed.attempts) == (id, 1, "dialogue", 1)
    scores = (AspectScore(aspect="color", wanted="red", shown="blue", similarity=0.25),)
    question = Question(aspect="color", text="Which “color”? 🎨", suggestions=("red", "blue"))
    run(database, claimed, modality="picture", prompt="a red dress", image=ADDRESS, scores=scores, ambiguity=0.5, question=question)
    with database.read() as transaction:
        kept = sessions.load(transaction, "ann", id)
        told = sessions.events(transaction, id, 0)
    round_ = kept.session.round(1)
    assert (round_.status, round_.scores, round_.question, round_.seed, round_.strength) == ("done", scores, question, 7, 0.6)
    assert [event.id for event in told] == list(range(1, 11)) and kept.last_event == 10
    assert [event.kind for event in told] == ["round"] * 9 + ["done"]
    assert (
        told[0].data["status"] == "pending"
        and told[1].data["status"] == "running"
        and told[-1].data | {"seconds": 0} == {"round": 1, "status": "done", "seconds": 0}
    )
    assert claim(database) is None


def test_nothing_of_another_owner_is_there(database):
    id = start(database).session.id
    with database.write() as transaction:
        for attempt in (
            lambda: sessions.load(transaction, "bob", id),
            lambda: sessions.remove(transaction, "bob", id),
            lambda: sessions.change(transaction, id, lambda session: session, owner="bob"),
            lambda: sessions.load(transaction, "ann", "ses_none"),
            lambda: votes.vote(transaction, "bob", id, left=1, right=1, choice="tie"),
            lambda: sessions.shown_in(transaction, "bob", ADDRESS),
            lambda: sessions.load(transaction, "ann", "\0"),
            lambda: sessions.change(transaction, "\ud800", lambda session: session, owner="ann"),
            lambda: sessions.shown_in(transaction, "ann", "\0"),
            lambda: sessions.summaries(transaction, "ann", after="\0", limit=5),
            lambda: votes.annotate(transaction, "ann", "\0", choice="tie", seconds=0.0),
        ):
            with pytest.raises(NotFound):
                attempt()
        assert sessions.summaries(transaction, "bob", after=None, limit=5) == []


def test_what_breaks_a_rule_leaves_no_trace(database):
    id = start(database).session.id
    with pytest.raises(UserError, match="round 1 is pending"), database.write() as transaction:
        sessions.change(transaction, id, lambda session: session.start("blue", seed=1, strength=0.5), owner="ann")
    with database.read() as transaction:
        assert len(sessions.load(transaction, "ann", id).session.rounds) == 1
        assert len(sessions.events(transaction, id, 0)) == 1


def test_sessions_are_listed_newest_first_page_by_page(database):
    ids = [start(database).session.id for _ in range(3)]
    with database.read() as transaction:
        first = sessions.summaries(transaction, "ann", after=None, limit=2)
        assert [summary.id for summary in first] == ids[::-1]  # one more than asked for: there is another page
        assert [summary.id for summary in sessions.summaries(transaction, "ann", after=ids[1], limit=2)] == [ids[0]]
    with database.write() as transaction:
        sessions.remove(transaction, "ann", ids[0])
    with database.read() as transaction:
        assert len(sessions.summaries(transaction, "ann", after=None, limit=9)) == 2
        assert sessions.events(transaction, ids[0], 0) == []


def test_two_workers_never_have_the_same_round(database):
    rounds = {start(database).session.id for _ in range(12)}
    found, lock = [], threading.Lock()

    def work(holder):
        while (claimed := claim(database, holder)) is not None:
            with lock:
                found.append(claimed.session)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(found) == sorted(rounds)


def test_a_round_whose_worker_died_goes_to_another_who_has_it_alone(database):
    id = start(database).session.id
    dead = claim(database, "dead", lease_s=-1.0)  # it has run out already
    run(database, dead, modality="picture")
    heir = claim(database, "heir")
    assert (heir.row, heir.attempts) == (dead.row, 2)
    with database.read() as transaction:
        session = sessions.load(transaction, "ann", id).session
    round_ = session.record(1, prompt="a red dress").round(1)
    with pytest.raises(queue.Lost), database.write() as transaction:
        queue.save(transaction, dead, round_)
    with database.write() as transaction:
        assert queue.save(transaction, heir, round_).session.round(1).prompt == "a red dress"
        assert queue.prolong(transaction, "dead", [dead.row], 60) == set()
        assert queue.prolong(transaction, "heir", [heir.row], 60) == {heir.row}
        queue.give_back(transaction, heir)
    assert claim(database, "third").attempts == 2


def test_a_cancelled_round_is_lost_to_its_worker(database):
    id = start(database).session.id
    claimed = claim(database)
    with database.write() as transaction:
        sessions.tell(transaction, id, "progress", 1, Progress(round=1, step=1, steps=5))
        assert [event.kind for event in sessions.events(transaction, id, 0)] == ["round", "progress"]
        kept = sessions.change(transaction, id, lambda session: session.cancel(1), owner="ann")
        assert kept.session.head is None
    with database.write() as transaction:
        assert [event.kind for event in sessions.events(transaction, id, 1)] == ["round", "done"]  # passing ones are forgotten
        assert queue.prolong(transaction, "w", [claimed.row], 60) == set()
        with pytest.raises(queue.Lost):
            queue.check(transaction, claimed)


def test_a_request_with_a_key_is_carried_out_once(database):
    once, made = Once(owner="ann", key="k", fingerprint="f"), []

    def work(transaction):
        made.append(sessions.create(transaction, "ann").session.id)
        return {"id": made[-1]}

    answers, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: answers.append(database.once(once, work))))
        threads[-1].start()
    for thread in threads:
        thread.join(120)
    assert len({answer["id"] for answer, _ in answers}) == 1 and sorted(replayed for _, replayed in answers) == [False, True, True, True]
    with database.read() as transaction:
        assert len(sessions.summaries(transaction, "ann", after=None, limit=9)) == 1
    with pytest.raises(Conflict):
        database.once(Once(owner="ann", key="k", fingerprint="other"), work)
    assert database.once(Once(owner="bob", key="k", fingerprint="f"), work)[1] is False  # keys are the owner's own


def test_keys_are_hashed_and_can_be_revoked(database):
    with database.write() as transaction:
        key, other = access.make_key(transaction, "ann"), access.make_key(transaction, "bob")
        assert access.owner_of(transaction, key) == "ann"
        stored = transaction.execute(text("SELECT * FROM keys")).all()
        assert key not in str(stored)
        assert access.revoke_keys(transaction, "ann") == 1
        assert (access.owner_of(transaction, key), access.owner_of(transaction, other)) == (None, "bob")
        assert access.owner_of(transaction, "\ud800") is None
        with pytest.raises(UserError, match="rename it"):
            access.make_key(transaction, "../ann")


def test_requests_are_counted_and_a_refused_one_is_not(database):
    for _ in range(3):
        with database.write() as transaction:
            access.count_request(transaction, "ann", per_minute=3)
    minute = time.time() // 60
    with pytest.raises(access.TooMany) as refused, database.write() as transaction:
        access.count_request(transaction, "ann", per_minute=3)
    if time.time() // 60 == minute:
        assert 1 <= refused.value.retry_after_s <= 60
    start(database, owner="bob")
    with database.write() as transaction:
        access.count_request(transaction, "bob", per_minute=3, rounds=1, concurrent_rounds=2)
        with pytest.raises(access.TooMany, match="1 are running"):
            access.count_request(transaction, "bob", per_minute=3, rounds=2, concurrent_rounds=2)


def test_pairs_are_judged_by_those_who_have_not_and_the_rarest_first(database):
    pairs = [Pair(id=f"p{i}", prompt="a dress", left=ADDRESS, right="cd" * 32, source="test", created_at=0.0) for i in range(2)]
    with database.write() as transaction:
        assert votes.put_up(transaction, pairs) == 2
    with database.write() as transaction:
        assert votes.next_pair(transaction, "ann")[0].id == "p0"
        votes.annotate(transaction, "ann", "p0", choice="left", seconds=1.5, notes=Notes())
        pair, done, remaining = votes.next_pair(transaction, "bob")
        assert (pair.id, done, remaining) == ("p1", 0, 2)
        pair, done, remaining = votes.next_pair(transaction, "ann")
        assert (pair.id, done, remaining) == ("p1", 1, 1)
        notes = Notes(left=Note(description="no belt", tags=("color", "size")))
        votes.annotate(transaction, "ann", "p0", choice="tie", seconds=2.0, notes=notes)
        found = votes.annotated(transaction, "ann")
        assert [(said.choice, Notes.model_validate(said.notes), pair.id) for said, pair in found] == [("tie", notes, "p0")]
        with pytest.raises(NotFound):
            votes.annotate(transaction, "ann", "p9", choice="tie", seconds=0.0, notes=Notes())
        assert sessions.shown_in(transaction, "ann", ADDRESS) == (None, True)


def test_a_vote_needs_two_images(database):
    id = start(database).session.id
    run(database, claim(database), modality="picture", prompt="a red dress", image=ADDRESS)
    with database.write() as transaction:
        again = lambda session: session.branch(None).start("a dress", seed=1, strength=0.5)  # noqa: E731
        sessions.change(transaction, id, again, owner="ann")
        with pytest.raises(UserError, match="round 2 has no image"):
            votes.vote(transaction, "ann", id, left=1, right=2, choice="left")
        with pytest.raises(UserError, match="both round 1"):
            votes.vote(transaction, "ann", id, left=1, right=1, choice="left")
    run(database, claim(database), modality="picture", prompt="a dress", image="cd" * 32)
    with database.write() as transaction:
        assert votes.vote(transaction, "ann", id, left=1, right=2, choice="both_bad").id == 1
    with database.read() as transaction:
        [(vote, left, right)] = votes.judged(transaction)
        assert (vote.choice, left.prompt, right.image) == ("both_bad", "a red dress", "cd" * 32)


def test_a_database_that_cannot_be_used_is_one_line(tmp_path):
    for url in ("mysql://x/y", "no url", "oracle://x"):
        with pytest.raises(UserError, match="sqlite:///FILE"):
            Database(url)
    unmigrated = Database(f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(UserError, match="migrated"), unmigrated.read() as transaction:
        sessions.load(transaction, "ann", "x")
    closed = Database("postgresql+psycopg://user:secret@127.0.0.1:1/none")
    with pytest.raises(UserError) as refused, closed.read() as transaction:
        transaction.execute(text("SELECT 1"))
    assert "secret" not in str(refused.value)
