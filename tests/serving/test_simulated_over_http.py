"""Simulated users over real HTTP: the same dialogues as with the engine in this process."""

import threading

import pytest

from omr_ray.atelier.dialogues import make_dialogues
from omr_ray.evaluation.interactive import over_http
from omr_ray.evaluation.interactive.in_process import EngineSystem
from omr_ray.evaluation.interactive.over_http import HttpSystem
from omr_ray.evaluation.interactive.talking import FULL, SCRATCH, Said, talk
from omr_ray.types import UserError
from tests.scripted_models import ScriptedModels, embed
from tests.web_service import web_service

pytestmark = pytest.mark.timeout(900)
DIALOGUES = make_dialogues("heldout", 3, rounds=1)
MISS = 0.4


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with web_service(tmp_path_factory.mktemp("service")) as found:
        found.models.painter.miss, found.models.embed = MISS, embed
        yield found


def told(system, read, variant):
    """What does not depend on the back end."""
    rows = talk(system, read, DIALOGUES, variant=variant, seed=0, max_turns=3, skip_probability=0.5)
    names = ("dialogue", "turn", "seed", "utterance", "answer", "prompt", "wrong", "satisfied", "question", "answered", "ambiguity")
    return [tuple(getattr(row, name) for name in names) for row in rows]


def events_asked_for(client):
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("omr_serve_requests_total{") and "/events" in line)


@pytest.mark.parametrize("variant", [FULL, SCRATCH])
def test_a_service_and_the_engine_have_the_same_dialogues(service, variant):
    album = service.models.album
    over_wire = told(
        HttpSystem(service.url, service.keys["ann"], variant), lambda images: [album.scene(i).aspects() for i in images], variant
    )
    models = ScriptedModels(miss=MISS)
    assert over_wire == told(EngineSystem(models, service.config, variant), models.read, variant)
    assert {row[9] for row in over_wire} == {None, True, False}  # questions were answered, and skipped


def test_a_stream_of_events_that_falls_silent_is_gone_on_with(service, monkeypatch):
    monkeypatch.setattr(over_http, "SILENCE_S", 1.0)
    service.models.go.clear()
    threading.Timer(6, service.models.go.set).start()
    with service.client("bob") as client:
        before = events_asked_for(client)
        (shown,) = HttpSystem(service.url, service.keys["bob"], FULL).turns([Said(talk=0, turn=1, seed=3, utterance="a red dress")])
        assert (shown.status, shown.prompt, shown.image.shape) == ("done", "a red dress", (64, 64, 3))
        assert events_asked_for(client) - before > 1
        (session,) = client.get("/v1/sessions").json()["data"]
        assert session["rounds"] == 1


def test_a_wrong_key_and_no_service_are_told_in_one_line(service, monkeypatch):
    said = [Said(talk=0, turn=1, seed=3, utterance="a red dress")]
    with pytest.raises(UserError, match=r"POST http://127\.0\.0\.1:\d+/v1/sessions: status 401 \(give a valid key"):
        HttpSystem(service.url, "omr_wrong", FULL).turns(said)
    monkeypatch.setattr(over_http, "ROUND_S", 2.0)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9: "):
        HttpSystem("http://127.0.0.1:9", None, FULL).turns(said)
