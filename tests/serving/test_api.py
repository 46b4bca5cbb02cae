"""A dialogue over real HTTP."""

import io
import json
import time

import pytest
from PIL import Image

from tests.web_service import say, web_service

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Ann's and Bob's, and one without a key."""
    with web_service(tmp_path_factory.mktemp("service")) as service:
        yield [service.client(owner) for owner in ("ann", "bob", None)]


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


def test_an_unknown_round_is_not_found_on_every_route(clients):
    ann = clients[0]
    id = ann.post("/v1/sessions", json={}).json()["id"]
    assert say(ann, id, "a red dress")["status"] == "done"
    session = f"/v1/sessions/{id}"
    answers = [
        ann.get(f"{session}/rounds/9"),
        ann.post(f"{session}/rounds/9/cancel"),
        ann.post(f"{session}/rounds/9/skip"),
        ann.post(f"{session}/branch", json={"round": 9}),
        ann.get(f"{session}/compare", params={"one": 1, "other": 9}),
        ann.get(f"{session}/compare", params={"one": 9, "other": 1}),
        ann.post(f"{session}/votes", json={"left": 1, "right": 9, "choice": "left"}),
        ann.post(f"{session}/rounds", json={"utterance": "blue", "parent": 9}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), answer.request.url
    assert ann.post(f"{session}/rounds/1/cancel").status_code == 400  # there, but done
    assert len(ann.get(session).json()["rounds"]) == 1


def test_votes_and_annotations_are_limited_as_rounds_are(tmp_path):
    with web_service(tmp_path, limits={"requests_per_minute": 2}) as service:
        ann, minute = service.client("ann"), time.time() // 60
        asked = [ann.post("/v1/annotations", json={"pair": "none", "choice": "tie"}) for _ in range(2)]
        assert [answer.status_code for answer in asked] == [404, 404]  # what came to nothing is not counted
        id = ann.post("/v1/sessions", json={}).json()["id"]
        assert ann.post("/v1/sessions", json={}).status_code == 201
        refused = [
            ann.post("/v1/annotations", json={"pair": "none", "choice": "tie"}),
            ann.post(f"/v1/sessions/{id}/votes", json={"left": 1, "right": 2, "choice": "tie"}),
        ]
        if time.time() // 60 == minute:
            assert [(answer.status_code, answer.json()["error"]["type"]) for answer in refused] == [(429, "rate_limit_error")] * 2
            assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
