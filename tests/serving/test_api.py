"""The routes over real HTTP, with the conductor beside them; the embedded world's grammar and renderer speak and paint."""

import io
import json
import threading
import time

import httpx2
import pytest
import uvicorn
from PIL import Image

from omr_ray.config.serve import ServeConfig
from omr_ray.serving.api import create_api
from omr_ray.serving.conductor import Conductor
from omr_ray.serving.store.access import make_key
from omr_ray.serving.store.database import Database
from tests.scripted_language import Album, ScenePainter, ScriptedLanguage, embed

pytestmark = pytest.mark.timeout(600)


class ScriptedModels:
    def __init__(self):
        album = Album()
        self.complete, self.embed, self.painter = ScriptedLanguage(album).complete, embed, ScenePainter(album)

    def paint(self, commission, watch, stop):
        for step in (1, 2):
            watch(step, 2, None)
        return self.painter(commission)


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Ann's and Bob's, and one without a key."""
    place = tmp_path_factory.mktemp("service")
    where = {"database": f"sqlite:///{place}/service.db", "images": str(place / "images"), "adapters": str(place / "adapters")}
    config = ServeConfig.model_validate({**where, "http": {"keys": "required"}, "limits": {"requests_per_minute": 1000}})
    database = Database(config.database)
    database.migrate()
    with database.write() as transaction:
        keys = [make_key(transaction, owner) for owner in ("ann", "bob")]

    async def ready():
        return True

    conductor = Conductor(config, ScriptedModels())
    server = uvicorn.Server(uvicorn.Config(create_api(config, ready), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    heads = [{"authorization": f"Bearer {key}"} for key in keys] + [{}]
    found = [httpx2.Client(base_url=url, headers=headers, timeout=60) for headers in heads]
    yield found
    for client in found:
        client.close()
    server.should_exit = True
    conductor.close()
    thread.join(30)


def say(client, id, utterance, headers=None, **options):
    """A round to its end."""
    answer = client.post(f"/v1/sessions/{id}/rounds", json={"utterance": utterance, "seed": 3, **options}, headers=headers)
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 120
    while (round_ := client.get(f"/v1/sessions/{id}/rounds/{answer.json()['id']}").json())["status"] in ("pending", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return round_


def test_a_dialogue_over_http_its_events_and_its_image(clients):
    ann, bob, nobody = clients
    id = ann.post("/v1/sessions", json={"title": "t"}).json()["id"]
    round_ = say(ann, id, "a red\u202e dress")
    assert (round_["status"], round_["prompt"], round_["mode"], round_["utterance"]) == ("done", "a red dress", "scratch", "a red dress")
    edited = say(ann, id, "now blue")
    assert (edited["mode"], edited["parent"]) == ("edit", 1)

    kinds, ids = [], []
    with ann.stream("GET", f"/v1/sessions/{id}/events", headers={"Last-Event-ID": "2"}) as stream:
        for line in stream.iter_lines():
            kinds += [line[7:]] if line.startswith("event: ") else []
            ids += [int(line[4:])] if line.startswith("id: ") else []
            if kinds.count("done") == 2 and len(ids) == len(kinds):
                break
    assert ids[0] > 2 and ids == sorted(set(ids)) and set(kinds) == {"round", "done"}

    png = ann.get(f"/v1/images/{round_['image']}").content
    recipe = json.loads(Image.open(io.BytesIO(png)).text["omr_ray"])
    assert (recipe["session"], recipe["round"], recipe["seed"], recipe["prompt"]) == (id, 1, 3, "a red dress")
    restored = ann.post("/v1/restore", files={"image": ("x.png", png)}).json()
    assert restored["round"]["id"] == 1 and restored["same_adapter"]
    assert bob.post("/v1/restore", files={"image": ("x.png", png)}).json()["round"] is None
    for path in (f"/v1/sessions/{id}", f"/v1/sessions/{id}/rounds/1", f"/v1/images/{round_['image']}", f"/v1/sessions/{id}/events"):
        assert bob.get(path).status_code == 404 and nobody.get(path).status_code == 401
        assert set(bob.get(path).json()["error"]) == {"message", "type", "param", "code"}
    for path in ("/../../etc/passwd", "/%2e%2e%2f%2e%2e", "/" + "0" * 63):
        assert ann.get(f"/v1/images{path}").status_code == 404


def test_a_key_makes_a_round_once_and_what_is_too_large_is_refused(clients):
    ann = clients[0]
    id = ann.post("/v1/sessions", json={}).json()["id"]
    first = say(ann, id, "a dress", headers={"Idempotency-Key": "k1"})
    again = ann.post(f"/v1/sessions/{id}/rounds", json={"utterance": "a dress", "seed": 3}, headers={"Idempotency-Key": "k1"})
    assert again.json()["id"] == first["id"] == 1 and len(ann.get(f"/v1/sessions/{id}").json()["rounds"]) == 1
    other = ann.post(f"/v1/sessions/{id}/rounds", json={"utterance": "a coat"}, headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert ann.post(f"/v1/sessions/{id}/rounds", json={"utterance": "a" * 10_000_000}).status_code == 413
    assert ann.post(f"/v1/sessions/{id}/rounds", json={"utterance": "a" * 3000}).status_code == 400
    assert ann.post("/v1/sessions", json={}, headers={"origin": "http://evil.example"}).status_code == 403
