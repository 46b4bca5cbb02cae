"""A database that cuts connections, is away or cannot write, in mid-round: a real PostgreSQL server, real HTTP."""

import threading
import time
from dataclasses import dataclass

import pytest

from tests.postgres_server import PostgresServer, postgres_server
from tests.web_service import WebService, asked, ended, say, shaped, web_service

pytestmark = pytest.mark.timeout(900)
LEASE_S = 3


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """A service whose database can be harmed; Ann is the client."""

    service: WebService
    ann: object
    server: PostgresServer
    database: str

    def session(self):
        return self.ann.post("/v1/sessions", json={}).json()["id"]

    def painted(self):
        return len(self.service.models.painter.commissions)

    def held(self, session):
        """Ask for a round; when it returns, its painter has begun and waits."""
        before = self.painted()
        self.service.models.go.clear()
        id = asked(self.ann, session, "a red dress")
        deadline = time.monotonic() + 240
        while self.painted() == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return id

    def attempts(self, session):
        return self.server.run(f"SELECT attempts FROM rounds WHERE session_id = '{session}'", self.database)

    def writable(self, mode):
        self.server.run(f"ALTER DATABASE {self.database} SET default_transaction_read_only = {mode}")
        self.server.cut_off(self.database)


@pytest.fixture
def faulty(postgres, tmp_path):
    name = f"t{time.time_ns()}"
    with web_service(tmp_path, database=postgres.make(name), replicas={"lease_s": LEASE_S}) as service, service.client("ann") as ann:
        yield Faulty(service=service, ann=ann, server=postgres, database=name)


def away(answer):
    told = shaped(answer, 503)
    assert told["code"] == "unavailable" and int(answer.headers["retry-after"]) >= 1
    assert "postgres" not in answer.text and "127.0.0.1" not in answer.text  # where our database is, is nobody's business


def same(round_, wanted):
    names = ("status", "error", "prompt", "image", "scores", "ambiguity", "question")
    assert [round_[name] for name in names] == [wanted[name] for name in names] and wanted["status"] == "done"


def test_connections_that_are_cut_in_mid_round_cost_nothing(faulty):
    wanted, session = say(faulty.ann, faulty.session(), "a red dress"), faulty.session()
    id, before = faulty.held(session), faulty.painted()
    assert faulty.server.cut_off(faulty.database) > 0
    faulty.service.models.go.set()
    same(ended(faulty.ann, session, id), wanted)
    assert faulty.painted() == before and faulty.attempts(session) == [(1,)]


def test_connections_that_are_cut_over_and_over_lose_nothing(faulty):
    """At any moment of three rounds, in the middle of transactions too."""
    wanted, over, cut = say(faulty.ann, faulty.session(), "a red dress"), threading.Event(), []

    def harm():
        while not over.wait(0.1):
            cut.append(faulty.server.cut_off(faulty.database))

    sessions = [faulty.session() for _ in range(3)]
    thread = threading.Thread(target=harm)
    thread.start()
    try:
        ids = [asked(faulty.ann, session, "a red dress", headers={"Idempotency-Key": session}) for session in sessions]
        for session, id in zip(sessions, ids, strict=True):
            same(ended(faulty.ann, session, id), wanted)
            assert id == 1
    finally:
        over.set()
        thread.join()
    assert sum(cut) > 10


def test_a_server_that_is_away_in_mid_round_is_waited_for(faulty):
    wanted, session, other = say(faulty.ann, faulty.session(), "a red dress"), faulty.session(), faulty.session()
    id, before, seen = faulty.held(session), faulty.painted(), []

    def listen():
        with faulty.ann.stream("GET", f"/v1/sessions/{session}/events") as stream:
            for line in stream.iter_lines():
                seen.append(line)
                if line == "event: done":
                    return

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    while not seen:
        time.sleep(0.05)
    faulty.server.stop()
    try:
        for path in (f"/v1/sessions/{session}", "/metrics"):
            away(faulty.ann.get(path))
        assert shaped(faulty.ann.get("/v2/health/ready"), 503)["code"] == "not_ready"
        assert faulty.ann.get("/health").status_code == 200
        again = {"headers": {"Idempotency-Key": "k"}, "json": {"utterance": "a blue coat", "seed": 1}}
        away(faulty.ann.post(f"/v1/sessions/{other}/rounds", **again))
        faulty.service.models.go.set()  # the image gets done while nobody can be told
        time.sleep(LEASE_S + 2)
    finally:
        faulty.server.start()
    same(ended(faulty.ann, session, id), wanted)
    assert faulty.painted() == before and faulty.attempts(session) == [(1,)]  # nobody has painted it again
    listening.join(60)
    assert seen[-1] == "event: done"  # the page that was open has lost nothing
    made = [faulty.ann.post(f"/v1/sessions/{other}/rounds", **again).json()["id"] for _ in range(2)]
    assert made == [1, 1] and ended(faulty.ann, other, 1)["status"] == "done"


def test_a_database_that_can_only_be_read_is_waited_for(faulty):
    wanted, session = say(faulty.ann, faulty.session(), "a red dress"), faulty.session()
    id, before = faulty.held(session), faulty.painted()
    faulty.writable("on")
    faulty.service.models.go.set()
    away(faulty.ann.post("/v1/sessions", json={}))
    assert faulty.ann.get(f"/v1/sessions/{session}/rounds/{id}").json()["status"] == "running"
    faulty.writable("off")
    same(ended(faulty.ann, session, id), wanted)
    assert faulty.painted() == before
