"""Hostile input that belongs to no single route: beside test_hostile_input.py, which goes through all of them."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from PIL import Image, PngImagePlugin

from tests.http_server import answer, server
from tests.web_service import asked, ended, say, shaped, web_service

pytestmark = pytest.mark.timeout(600)
AT_ONCE = 8


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with web_service(tmp_path_factory.mktemp("service"), limits={"requests_per_minute": 100_000, "concurrent_rounds": 50}) as made:
        yield made


@pytest.fixture
def ann(service):
    with service.client("ann") as client:
        yield client


@pytest.fixture
def session(ann):
    return ann.post("/v1/sessions", json={}).json()["id"]


def sent_at_once(ann, path, **options):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda _: ann.post(path, **options), range(AT_ONCE)))


def rounds(ann, session):
    return ann.get(f"/v1/sessions/{session}").json()["rounds"]


def test_a_request_that_is_sent_many_times_at_the_same_moment_is_carried_out_once(ann, session):
    options = {"json": {"utterance": "a red dress"}, "headers": {"Idempotency-Key": session}}  # the seed is drawn
    answers = sent_at_once(ann, f"/v1/sessions/{session}/rounds", **options)
    assert [found.status_code for found in answers] == [202] * AT_ONCE
    assert len({found.text for found in answers}) == len(rounds(ann, session)) == 1
    ended(ann, session, 1)
    images = sent_at_once(ann, "/v1/images/generations", json={"prompt": "a coat"}, headers={"Idempotency-Key": f"{session}-image"})
    made = [found.json()["data"][0] for found in images]
    assert len({(image["session_id"], image["round_id"], image["seed"], image["b64_json"]) for image in made}) == 1


def test_of_a_submit_that_is_doubled_without_a_key_one_is_taken(service, ann, session):
    service.models.go.clear()
    try:
        answers = sent_at_once(ann, f"/v1/sessions/{session}/rounds", json={"utterance": "a red dress"})
    finally:
        service.models.go.set()
    assert sorted(found.status_code for found in answers) == [202] + [400] * (AT_ONCE - 1)
    for found in answers:
        assert found.status_code == 202 or "round 1 is" in shaped(found, 400)["message"]
    assert len(rounds(ann, session)) == 1


def test_where_no_key_is_asked_for_another_name_of_this_machine_is_refused(tmp_path):
    """A page of another site may let its own name lead here: the browser then calls it the same site."""
    with web_service(tmp_path, http={"keys": "off"}) as service, service.client() as anybody:
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", ""):
            for path in ("/v1/sessions", "/", "/metrics"):
                shaped(anybody.get(path, headers={"host": host}), 400)
        assert anybody.get("/v1/sessions").status_code == 200


def test_no_url_is_fetched(ann):
    with server(answer(body="an image")) as (url, requests):
        for image in (f"{url}/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
            for name in ("image", "image[]", "mask"):
                shaped(ann.post("/v1/images/edits", data={"prompt": "a coat", name: image}), 400, 422)
            shaped(ann.post("/v1/images/edits", json={"prompt": "a coat", "image": image}), 400, 422)
            shaped(ann.post("/v1/restore", data={"image": image}), 422)
        assert requests == []


@pytest.mark.parametrize("last", ["-1", "x", "1e3", "1.5", "2147483648", "9" * 30, "9" * 5000, "0x10", "\u0663".encode()])
def test_an_event_that_cannot_be_is_refused_before_the_stream_begins(ann, session, last):
    shaped(ann.get(f"/v1/sessions/{session}/events", headers={"Last-Event-ID": last}), 422)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "2"])
def test_a_number_that_is_none_is_not_kept(ann, session, number):
    headers = {"content-type": "application/json"}
    for path, body in (
        (f"/v1/sessions/{session}/rounds", '{"utterance": "a coat", "strength": %s}'),
        ("/v1/annotations", '{"pair": "none", "choice": "tie", "seconds": %s}'),
        ("/v1/images/generations", '{"prompt": "a coat", "guidance_scale": %s}'),
        ("/v1/images/generations", '{"prompt": "a coat", "seed": %s, "n": 0}'),
    ):
        shaped(ann.post(path, content=body % number, headers=headers), 400, 404, 422)
    assert rounds(ann, session) == []


def test_a_body_that_does_not_say_its_length_is_cut_off_at_the_limit(ann, session):
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 2**16
            yield b" " * 2**16

    try:
        found = ann.post(f"/v1/sessions/{session}/rounds", content=endless(), headers={"content-type": "application/json"})
        shaped(found, 413)
    except httpx2.TransportError:  # the connection was closed while we were sending
        assert sent < 60 * 2**20
    assert rounds(ann, session) == []


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "OPTIONS"])
def test_a_method_that_no_route_has_is_told_so(ann, session, method):
    shaped(ann.request(method, f"/v1/sessions/{session}"), 405)


def test_a_recipe_that_lies_restores_nothing(ann, session):
    say(ann, session, "a red dress")
    right = {"session": session, "round": 1, "utterance": "u", "prompt": "p", "seed": 1, "strength": 0.5, "mode": "edit", "model": "m"}
    for lie, status in (
        ({"session": "\0"}, 200),
        ({"session": "../../etc/passwd"}, 200),
        ({"session": "ses_" + "0" * 24}, 200),
        ({"round": 2**31 - 1}, 200),
        ({"round": 10**30}, 400),
        ({"adapter": "shared/../../x"}, 400),
        ({"adapter": "users/bob/taste", "adapter_sha256": "ab" * 32}, 200),
        ({"prompt": "p" * 5000}, 400),
        ({"surprise": 1}, 400),
    ):
        chunks, held = PngImagePlugin.PngInfo(), io.BytesIO()
        chunks.add_itxt("omr_ray", json.dumps(right | lie))
        Image.new("RGB", (8, 8)).save(held, "PNG", pnginfo=chunks)
        found = ann.post("/v1/restore", files={"image": ("x.png", held.getvalue())})
        if status != 200:
            shaped(found, status)
        else:
            assert found.status_code == 200, found.text
            told = found.json()
            assert (told["round"] is None) == (set(lie) != {"adapter", "adapter_sha256"}) and told["same_adapter"] == ("adapter" not in lie)


def test_a_page_of_the_list_that_cannot_be_is_refused(ann):
    for query in (
        "limit=0",
        "limit=-1",
        "limit=101",
        "limit=" + "9" * 30,
        "limit=x",
        "after=%00",
        "after=" + "a" * 5000,
        "after=%ED%A0%80",
    ):
        shaped(ann.get(f"/v1/sessions?{query}"), 404, 422)


def test_who_is_refused_has_cost_nobody_a_round(ann, session):
    """After all of this the service does its work."""
    id = asked(ann, session, "a red dress")
    assert ended(ann, session, id)["status"] == "done"
