"""`omr-ray serve` as a process, on a real PostgreSQL server: what is left of it is harmed in mid-round, one after the other."""

import threading
import time

import httpx2
import pytest

from tests.postgres_server import postgres_server
from tests.serve_process import PATIENCE_S, serving
from tests.tiny import make_tiny_clip, make_tiny_sd
from tests.web_service import shaped

pytestmark = [pytest.mark.timeout(3600), pytest.mark.slow]
DATABASE = "service"


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(postgres, tmp_path_factory):
    place = tmp_path_factory.mktemp("faults")
    models = make_tiny_sd(place / "sd"), make_tiny_clip(place / "clip")
    with serving(place, models, database=postgres.make(DATABASE)) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(service):
    """The round of "a red dress" from seed 3."""
    assert service.lines.get(timeout=1500).startswith("omr-ray: serving at")
    round_ = service.say(service.session(), "a red dress")
    assert round_["status"] == "done", round_
    return round_


def same(round_, wanted):
    names = ("status", "error", "prompt", "image", "scores", "question")
    assert [round_[name] for name in names] == [wanted[name] for name in names]


def heard(service, session, after, until="done"):
    """Events up to the first of a kind, gone on with wherever the stream is cut off: (id, kind) of each."""
    found = []
    while not found or found[-1][1] != until:
        try:
            for id, kind, _ in service.events(session, after):
                after = id
                found.append((id, kind))
                if kind == until:
                    break
        except (httpx2.TransportError, AssertionError):  # AssertionError: nobody is there to begin the stream
            time.sleep(0.2)
    return found


@pytest.mark.parametrize("title", ["ray::ServeReplica:{name}:Web", "ray::ProxyActor", "ray::ServeController"])
def test_what_is_killed_around_a_round_costs_it_nothing(service, undisturbed, title):
    session = service.session()
    id = service.ask(session, "a red dress")
    service.wait_for_step(session, id)
    told = []
    listening = threading.Thread(target=lambda: told.extend(heard(service, session, 0)), daemon=True)
    listening.start()
    victim = service.process_of(title.format(name=service.name))
    victim.kill()
    same(service.ended(session, id), undisturbed)
    listening.join(600)
    ids = [number for number, _ in told]
    assert ids == sorted(set(ids)) and told[-1][1] == "done"  # what was cut off went on where it was
    assert service.process_of(title.format(name=service.name)).pid != victim.pid
    assert service.patiently("GET", "/v2/health/ready").json() == {"status": "ok"}


def test_after_its_controller_was_killed_the_service_still_replaces_what_dies(service, undisturbed):
    service.process_of("ray::ServeController").kill()
    session = service.session()
    id = service.ask(session, "a red dress")
    service.wait_for_step(session, id)
    painter = service.replica("Diffusion")
    painter.kill()
    same(service.ended(session, id), undisturbed)
    assert service.replica("Diffusion").pid != painter.pid


def test_a_request_whose_process_dies_is_told_so_and_its_key_brings_the_image(service, undisturbed):
    answers, body = [], {"prompt": "a red dress", "seed": 3}
    ask = lambda: service.client.post("/v1/images/generations", json=body, headers={"Idempotency-Key": "died"}, timeout=600)  # noqa: E731
    waiting = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    before = rounds_running(service)
    waiting.start()
    while rounds_running(service) == before:
        time.sleep(0.1)
    service.replica("Web").kill()
    waiting.join(600)
    assert shaped(answers[0], 503)["code"] == "process_died" and int(answers[0].headers["retry-after"]) >= 1
    again = service.patiently("POST", "/v1/images/generations", json=body, headers={"Idempotency-Key": "died"}, timeout=600)
    assert again.status_code == 200, again.text
    (image,) = again.json()["data"]
    round_ = service.client.get(f"/v1/sessions/{image['session_id']}/rounds/{image['round_id']}").json()
    assert (round_["image"], round_["id"]) == (undisturbed["image"], 1)
    assert len(service.client.get(f"/v1/sessions/{image['session_id']}").json()["rounds"]) == 1  # the key made it once


def rounds_running(service):
    text = service.patiently("GET", "/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith('omr_serve_rounds{status="running"}')).split()[-1])


def test_the_database_is_cut_off_and_away_in_mid_round(service, undisturbed, postgres):
    session = service.session()
    id = service.ask(session, "a red dress")
    service.wait_for_step(session, id)
    assert postgres.cut_off(DATABASE) > 0
    time.sleep(0.5)
    postgres.stop()
    try:
        refused = service.client.get(f"/v1/sessions/{session}")
        assert shaped(refused, 503)["code"] == "unavailable" and "127.0.0.1" not in refused.text
        time.sleep(4)  # longer than a lease
    finally:
        postgres.start()
    same(service.ended(session, id), undisturbed)


def test_an_update_that_is_killed_with_who_keeps_it_is_made_again(service, undisturbed, postgres):
    session = service.session()
    service.say(session, "a red dress", strength=0.05)
    left, right = (service.say(session, said, seed=seed, strength=0.05)["id"] for said, seed in (("make it blue", 5), ("green", 6)))
    keeper = service.replica("Updates")  # to look for it takes longer than a quick machine takes for an update
    for _ in range(6):
        vote = service.client.post(f"/v1/sessions/{session}/votes", json={"left": left, "right": right, "choice": "left"})
        assert vote.status_code == 201
    maker = service.process_of("ray::make_update")
    keeper.kill()
    maker.kill()
    # The votes teach the user's adapter and the general one; whichever was killed is made again when its lease has run out.
    deadline, found = time.monotonic() + PATIENCE_S, []
    while [row[0] for row in found] != ["published"] * 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
        found = postgres.run("SELECT status, attempts FROM updates", DATABASE)
    assert max(attempts for _, attempts in found) > 1
    assert service.replica("Updates").pid != keeper.pid
