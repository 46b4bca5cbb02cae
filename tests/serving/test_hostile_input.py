"""Hostile input on every route there is: the table below has to name each of them, or the first test fails."""

import io
import json
import struct
import time
import zlib
from dataclasses import dataclass, field

import pytest
from fastapi.routing import iter_route_contexts
from PIL import Image

from omr_ray.serving.api import create_api
from omr_ray.serving.store import votes
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.tables import Pair
from tests.web_service import configured, ended, say, shaped, web_service

pytestmark = pytest.mark.timeout(900)
UNSEEN = "\u202e\u0000\u200b\u2066\x1b[2J"  # control, bidirectional and other invisible characters


@dataclass(frozen=True, kw_only=True)
class Route:
    """A right request of Ann's. `{id}`, `{address}` and `{pair}` stand for what is hers."""

    method: str
    path: str
    query: str = ""
    body: dict | None = None
    form: dict | None = None  # beside its image
    ok: int = 200
    bob: int = 404  # what another user gets for hers; 200 or 201 where it is about what everybody may have
    once: bool = False  # takes an Idempotency-Key
    open: bool = False  # needs no key

    @property
    def name(self):
        return f"{self.method} {self.path}"


SAID = {"prompt": "a red dress", "session_id": "{id}"}
SESSION, ROUND = "/v1/sessions/{id}", "/v1/sessions/{id}/rounds/{n}"
ROUTES = [
    Route(method="GET", path="/health", bob=200, open=True),
    Route(method="GET", path="/v2/health/live", bob=200, open=True),
    Route(method="GET", path="/v2/health/ready", bob=200, open=True),
    Route(method="GET", path="/openapi.json", bob=200, open=True),
    Route(method="GET", path="/", bob=200, open=True),
    Route(method="GET", path="/annotate", bob=200, open=True),
    Route(method="GET", path="/metrics", bob=200),
    Route(method="POST", path="/v1/sessions", body={"title": "t"}, ok=201, bob=201, once=True),
    Route(method="GET", path="/v1/sessions", bob=200),
    Route(method="GET", path=SESSION),
    Route(method="POST", path=f"{SESSION}/rounds", body={"utterance": "a blue dress", "seed": 1}, ok=202, once=True),
    Route(method="GET", path=ROUND),
    Route(method="POST", path=f"{ROUND}/cancel", ok=400),  # it is done
    Route(method="POST", path=f"{ROUND}/skip", ok=400),  # it asks nothing
    Route(method="POST", path=f"{SESSION}/undo"),
    Route(method="POST", path=f"{SESSION}/branch", body={"round": 1}),
    Route(method="GET", path=f"{SESSION}/compare", query="?one=1&other=2"),
    Route(method="GET", path=f"{SESSION}/events"),
    Route(method="POST", path=f"{SESSION}/votes", body={"left": 1, "right": 2, "choice": "left"}, ok=201, once=True),
    Route(method="GET", path=f"{SESSION}/votes"),
    Route(method="GET", path="/v1/adapters", bob=200),
    Route(method="GET", path="/v1/updates", bob=200),
    Route(method="GET", path="/v1/updates/general", bob=200),
    Route(method="POST", path="/v1/updates/rollback", ok=404),  # nothing is learned yet
    Route(method="POST", path="/v1/updates/general/rollback", ok=404, bob=403),  # Ann is an operator
    Route(method="GET", path="/v1/annotations/next", bob=200),
    Route(method="POST", path="/v1/annotations", body={"pair": "{pair}", "choice": "left", "seconds": 1.0}, ok=201, bob=201),
    Route(method="GET", path="/v1/annotations/mine", bob=200),
    Route(method="GET", path="/v1/images/{address}"),
    Route(method="POST", path="/v1/restore", form={}, bob=200),
    Route(method="POST", path="/v1/images/generations", body=SAID | {"parent_round_id": 1}, once=True),
    Route(method="POST", path="/v1/images/edits", form=SAID | {"parent_round_id": "1"}, once=True),
    Route(method="GET", path="/v1/models", bob=200),
    Route(method="GET", path="/v1/models/omr", bob=200),
    Route(method="DELETE", path=SESSION),  # the last one: hers is gone then
]  # fmt: skip
TEMPLATES = {"/v1/models/omr": "/v1/models/{id}"}
PAGES = {"GET /", "GET /annotate", "ALL /pages"}  # files that are for everybody
each = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
each_body = pytest.mark.parametrize("route", [route for route in ROUTES if route.body], ids=lambda route: route.name)
each_form = pytest.mark.parametrize("route", [route for route in ROUTES if route.form is not None], ids=lambda route: route.name)
each_once = pytest.mark.parametrize("route", [route for route in ROUTES if route.once], ids=lambda route: route.name)
each_id = pytest.mark.parametrize("route", [route for route in ROUTES if "{" in route.path], ids=lambda route: route.name)


@dataclass(frozen=True, kw_only=True)
class Hers:
    """The clients, and what is Ann's."""

    ann: object
    bob: object
    nobody: object
    known: dict = field(default_factory=dict)
    png: bytes = b""

    def send(self, client, route, *, known=None, body=None, image=None, headers=None):
        known = self.known if known is None else known
        fill = lambda text: text if not isinstance(text, str) else _filled(text, known)  # noqa: E731
        options = {"headers": headers or {}}
        if route.form is not None:
            options["data"] = {key: fill(value) for key, value in route.form.items()}
            options["files"] = {"image": ("x.png", self.png if image is None else image)}
        elif route.body is not None:
            options["json"] = {key: fill(value) for key, value in (route.body if body is None else body).items()}
        url = _filled(route.path, known) + route.query
        with client.stream(route.method, url, **options) as answer:
            if answer.headers["content-type"].startswith("text/event-stream"):
                return answer, ""  # endless
            return answer, answer.read().decode("utf-8", "replace")


def _filled(text, known):
    for name, value in known.items():
        text = text.replace("{" + name + "}", value)
    return text


def refused(answer, text, *statuses):
    """It is told what is wrong in the one shape, and nothing of ours."""
    return shaped(answer, *statuses)


@pytest.fixture(scope="module")
def hers(tmp_path_factory):
    limits = {"requests_per_minute": 100_000, "concurrent_rounds": 50, "image_pixels": 4096 * 4096}
    http = {"keys": "required", "operators": ["ann"]}
    with web_service(tmp_path_factory.mktemp("service"), limits=limits, http=http) as service:
        ann, bob, nobody = (service.client(owner) for owner in ("ann", "bob", None))
        id = ann.post("/v1/sessions", json={}).json()["id"]
        address = say(ann, id, "a red dress")["image"]
        say(ann, id, "now blue")
        png = ann.get(f"/v1/images/{address}").content
        # A pair of other images: those that annotators judge are shown to all of them.
        database = Database(service.config.database)
        with database.write() as transaction:
            shown = {"prompt": "a coat", "left": "ab" * 32, "right": "cd" * 32, "source": "test", "created_at": 0.0}
            votes.put_up(transaction, [Pair(id=name, **shown) for name in ("p0", "p1", "p2")])
        database.close()
        yield Hers(ann=ann, bob=bob, nobody=nobody, known={"id": id, "n": "1", "address": address, "pair": "p0"}, png=png)


@pytest.fixture
def there(hers):
    """Ann's session as it was made; a new one where the last test has deleted it."""
    if hers.ann.get(f"/v1/sessions/{hers.known['id']}").status_code == 404:
        hers.known["id"] = hers.ann.post("/v1/sessions", json={}).json()["id"]
        hers.known["address"] = say(hers.ann, hers.known["id"], "a red dress")["image"]
        say(hers.ann, hers.known["id"], "now blue")
    for round_ in hers.ann.get(f"/v1/sessions/{hers.known['id']}").json()["rounds"]:
        ended(hers.ann, hers.known["id"], round_["id"])
    return hers


def test_every_route_is_in_the_table(tmp_path):
    async def ready():
        return True

    api = create_api(configured(tmp_path), ready)
    found = {f"{method} {route.path}" for route in iter_route_contexts(api.routes) for method in (route.methods or {"ALL"}) - {"HEAD"}}
    named = {f"{route.method} {TEMPLATES.get(route.path, route.path)}" for route in ROUTES}
    assert found == named | PAGES


@each
def test_without_a_key_or_from_another_site_nothing_is_told(there, route):
    if route.open:
        assert there.send(there.nobody, route)[0].status_code == route.ok
        return
    assert refused(*there.send(there.nobody, route), 401)["code"] == "invalid_api_key"
    for key in ("omr_x", "omr_" + "a" * 5000, "' OR 1=1 --"):
        refused(*there.send(there.nobody, route, headers={"authorization": f"Bearer {key}"}), 401)
    assert refused(*there.send(there.ann, route, headers={"origin": "http://evil.example"}), 403)["code"] == "foreign_origin"


@each
def test_what_is_anothers_is_not_there(there, route):
    answer, text = there.send(there.bob, route)
    if route.bob == 404:
        told = refused(answer, text, 404)
        unknown = refused(*there.send(there.bob, route, known=there.known | {"id": "ses_" + "0" * 24, "address": "0" * 64}), 404)
        same = told["message"].replace(there.known["id"], "").replace(there.known["address"], "")
        assert same == unknown["message"].replace("ses_" + "0" * 24, "").replace("0" * 64, "")  # nor does it tell that it is there
    else:
        assert answer.status_code == route.bob
        assert route.path == "/v1/restore" or there.known["id"] not in text  # there he told it himself, in the recipe
    assert len(there.ann.get(f"/v1/sessions/{there.known['id']}").json()["rounds"]) >= 2


@each_id
def test_an_id_is_no_path_and_no_query(there, route):
    for trick in (
        "..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "%0d%0aX-Y:z", "'%20OR%201=1--", "a" * 5000,
        "%E2%80%AE", "-1", "0", "1e9", "99999999999999999999", "%ED%A0%80", "C:%5Cx",
    ):  # fmt: skip
        for name in ("id", "n", "address"):
            if "{" + name + "}" in route.path:
                refused(*there.send(there.ann, route, known=there.known | {name: trick}), 404, 405, 422)


@each_body
def test_a_body_that_is_not_what_it_should_be_is_told_so(there, route):
    url = _filled(route.path, there.known)
    for content, statuses in [
        (b"", (422,)),
        (b"null", (422,)),
        (b"[]", (422,)),
        (b"{", (422,)),
        (b"\xff\xfe", (400, 422)),
        (b"[" * 100_000, (400, 422)),
        (json.dumps({"surprise": 1} | route.body).encode(), (422,)),
        (json.dumps({"\ud800\u202e\u0000" + "a" * 5000: 1} | route.body).encode(), (422,)),
        (json.dumps(dict.fromkeys(route.body, {"a": [1]})).encode(), (422,)),
        (json.dumps(dict.fromkeys(route.body, 10**400)).encode(), (400, 422)),
        (json.dumps(dict.fromkeys(route.body, "a" * 10_000_000)).encode(), (413,)),
    ]:
        answer = there.ann.request(route.method, url, content=content, headers={"content-type": "application/json"})
        refused(answer, answer.text, *statuses)


@each_body
def test_what_cannot_be_seen_is_not_kept(there, route):
    body = {key: f"{UNSEEN}{value}{UNSEEN}" if isinstance(value, str) else value for key, value in route.body.items()}
    answer, text = there.send(there.ann, route, body=body)
    assert answer.status_code in (route.ok, 404, 422), text[:300]
    kept = there.ann.get(f"/v1/sessions/{there.known['id']}").text + there.ann.get("/v1/sessions").text
    if answer.status_code == route.ok:
        kept += text
    for character in UNSEEN.replace("[2J", ""):
        assert json.dumps(character)[1:-1] not in kept and character not in kept
    content, headers = json.dumps(dict.fromkeys(route.body, "\ud800")).encode(), {"content-type": "application/json"}
    lone = there.ann.post(_filled(route.path, there.known), content=content, headers=headers)
    assert 400 <= lone.status_code < 500 or lone.status_code == route.ok


def huge_png():
    """A right PNG that says it has 10^10 pixels, and has none."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def small_file_of_many_pixels():
    held = io.BytesIO()
    Image.new("1", (5000, 5000)).save(held, "PNG")
    return held.getvalue()


def text_bomb(png):
    """A PNG whose text chunk is 4 MB when it is unpacked."""
    packed = zlib.compress(b"a" * 4_000_000, 9)
    content = b"omr_ray\0\0" + packed
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return png[:33] + chunk + png[33:]


@each_form
def test_a_bomb_is_no_image(there, route):
    gif = io.BytesIO()
    Image.new("L", (8, 8)).save(gif, "GIF")
    for image in (
        b"", b"no image", b"<svg onload=alert(1)>", huge_png(), small_file_of_many_pixels(), text_bomb(there.png), gif.getvalue(),
        there.png[: len(there.png) // 2],
    ):  # fmt: skip
        refused(*there.send(there.ann, route, image=image), 400, 422)
    refused(*there.send(there.ann, route, image=b"\x89PNG" + b"a" * 17 * 2**20), 413)
    url = _filled(route.path, there.known)
    named = there.ann.post(url, data=route.form, files={"image": ("../../etc/passwd\x00.png", b"no image")})
    refused(named, named.text, 400, 404, 422)
    torn = there.ann.post(url, content=b"--x\r\nno", headers={"content-type": "multipart/form-data; boundary=x"})
    refused(torn, torn.text, 400, 422)


@each_once
def test_a_replayed_key_makes_nothing_new(there, route):
    headers = {"Idempotency-Key": f"k{time.time_ns()}"}
    first, second = (there.send(there.ann, route, headers=headers) for _ in range(2))
    assert (first[0].status_code, second[0].status_code) == (route.ok, route.ok), first[1][:300]
    assert json.loads(first[1]) == json.loads(second[1])
    changed = dict.fromkeys(list(route.body)[:1], "other") if route.body and "left" not in route.body else {"left": 2}
    if route.form is None:
        told = refused(*there.send(there.ann, route, headers=headers, body=route.body | changed), 422)
    else:
        noise = io.BytesIO()
        Image.effect_noise((64, 64), 40).save(noise, "PNG")
        told = refused(*there.send(there.ann, route, headers=headers, image=noise.getvalue()), 422)
    assert told["code"] == "idempotency_key_reused"
    other = there.ann.post("/v1/sessions", json={"title": "other"}, headers=headers)  # on another route
    assert refused(other, other.text, 422)["code"] == "idempotency_key_reused"
    for key in ("", "a" * 300, "\u00e9".encode(), "a b"):
        refused(*there.send(there.ann, route, headers={"Idempotency-Key": key}), 422)


def test_a_key_of_one_is_no_key_of_another(there):
    headers = {"Idempotency-Key": f"k{time.time_ns()}"}
    made = [client.post("/v1/sessions", json={"title": "t"}, headers=headers).json()["id"] for client in (there.ann, there.bob)]
    assert made[0] != made[1] and there.bob.get(f"/v1/sessions/{made[0]}").status_code == 404


def test_figures_have_routes_and_never_paths(there):
    for path in ("/v1/sessions/ses_secret", "/nothing/secret", "/v1/images/secret"):
        there.ann.get(path)
    there.ann.request("SECRET", "/health")
    text = there.ann.get("/metrics").text
    assert "secret" not in text.lower() and 'route="none"' in text
    assert 'omr_serve_requests_total{method="GET",route="/v1/sessions/{id}",status="404"}' in text
    assert 'omr_serve_request_seconds_bucket{le="0.05",method="GET",route="/health"}' in text
    figures = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}
    assert figures['omr_serve_rounds{status="done"}'] >= 2 and figures["omr_serve_rounds_waiting"] == 0
    done = sum(figures[f'omr_serve_rounds{{status="{status}"}}'] for status in ("done", "failed", "cancelled"))
    assert 2 <= figures['omr_serve_round_seconds_bucket{le="+Inf"}'] <= done and figures["omr_serve_round_seconds_gsum"] > 0
