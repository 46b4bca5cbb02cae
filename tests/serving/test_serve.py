"""`omr-ray serve` as a process: real Ray Serve, real HTTP, real kills. One start serves all tests here; the last one ends it."""

import base64
import io
import json
import signal
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from omr_ray.diffusion.adapters import Adapter, export_adapter
from omr_ray.diffusion.policy import Policy
from tests.serve_process import PATIENCE_S, STEPS, serving
from tests.tiny import make_tiny_clip, make_tiny_sd

pytestmark = pytest.mark.timeout(1500)
QUICK = {"strength": 0.05}  # an edit that runs 5 steps


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return make_tiny_sd(place / "sd"), make_tiny_clip(place / "clip")


@pytest.fixture(scope="module")
def service(models, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("service"), models) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(service):
    """The image of "a red dress" from seed 3."""
    round_ = service.say(service.session(), "a red dress")
    assert round_["status"] == "done", round_
    return round_["image"]


def test_it_says_where_it_listens_and_is_ready_then(service):
    line = service.lines.get(timeout=PATIENCE_S)
    assert line == f"omr-ray: serving at {service.client.base_url}; Ctrl-C ends it\n".replace("/;", ";")
    assert service.client.get("/v2/health/ready").json() == {"status": "ok"}
    assert service.client.get("/v1/sessions", headers={"authorization": ""}).status_code == 401
    # Relative paths of a config are those of the directory that the command is given in.
    assert (service.place / "state/service.db").exists()


def test_a_round_is_followed_by_events_which_go_on_where_they_were_cut_off(service, undisturbed):
    session = service.session()
    id, seen = service.ask(session, "a red dress"), []
    for event in service.events(session):
        seen.append(event)
        if event[1] == "preview":
            break
    for event in service.events(session, after=seen[-1][0]):
        seen.append(event)
        if event[1] == "done":
            break
    ids, kinds = [event[0] for event in seen], [event[1] for event in seen]
    assert ids == sorted(set(ids)) and kinds.count("preview") > 1 and kinds[-1] == "done"
    steps = [data["step"] for _, kind, data in seen if kind == "progress"]
    assert steps == sorted(set(steps)) and steps[-1] > 20
    previews = [data for _, kind, data in seen if kind == "preview"]
    assert Image.open(io.BytesIO(base64.b64decode(previews[-1]["b64_json"]))).size == (16, 16)
    assert (seen[-1][2]["round"], seen[-1][2]["status"]) == (id, "done")
    round_ = service.ended(session, id)
    assert round_["prompt"] == "a red dress" and len(round_["scores"]) == 7
    assert round_["image"] == undisturbed  # the address follows from pixels and latents
    shown = service.client.get(f"/v1/images/{undisturbed}")
    assert Image.open(io.BytesIO(shown.content)).size == (16, 16)


def test_a_question_is_answered_or_skipped_and_rounds_branch_and_are_voted_on(service):
    session = service.session()
    first = service.say(session, "a red dress")
    answered = service.say(session, answer=first["question"]["suggestions"][0], **QUICK)
    assert (answered["status"], answered["mode"], answered["parent"]) == ("done", "edit", 1)
    skipped = service.client.post(f"/v1/sessions/{session}/rounds/2/skip")
    assert skipped.json()["skipped"]
    refused = service.client.post(f"/v1/sessions/{session}/rounds", json={"answer": "blue"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert service.client.post(f"/v1/sessions/{session}/branch", json={"round": 1}).json()["head"] == 1
    other = service.say(session, "make it blue", **QUICK)
    assert (other["parent"], other["prompt"]) == (1, "a blue dress") and other["image"] != answered["image"]
    voted = service.client.post(f"/v1/sessions/{session}/votes", json={"left": 2, "right": 3, "choice": "right"})
    assert voted.status_code == 201 and voted.json()["choice"] == "right"
    # A question about the image is answered in words.
    told = service.say(session, "what color is it?")
    assert (told["status"], told["modality"], told["image"]) == ("done", "words", None) and told["reply"].startswith("it is ")


@pytest.mark.parametrize("deployment", ["Diffusion", "Rounds", "Language"])
def test_a_process_that_is_killed_in_mid_round_costs_nothing_but_time(service, undisturbed, deployment):
    session = service.session()
    id = service.ask(session, "a red dress")
    service.wait_for_step(session, id)
    victim = service.replica(deployment)
    victim.kill()
    assert service.client.get(f"/v1/sessions/{session}/rounds/{id}").json()["image"] is None
    round_ = service.ended(session, id)
    assert (round_["status"], round_["error"], round_["image"]) == ("done", None, undisturbed)
    assert len(round_["scores"]) == 7 and round_["question"]
    assert service.replica(deployment).pid != victim.pid


def test_a_cancelled_round_frees_the_painter(service):
    given_up, next_ = service.session(), service.session()
    id = service.ask(given_up, "a red dress")
    service.wait_for_step(given_up, id)
    waiting = service.ask(next_, "a green coat")
    time.sleep(0.5)  # it has its prompt now, and waits for the painter
    cancelled = service.client.post(f"/v1/sessions/{given_up}/rounds/{id}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    at, steps = time.monotonic(), []
    for _, kind, data in service.events(next_):
        if kind == "progress":
            steps.append((time.monotonic(), data["step"]))
        if kind == "done":
            break
    (begun, first), (last_seen, last) = steps[0], steps[-1]
    # The cancelled one had nearly all of its steps before it.
    assert begun - at < STEPS * (last_seen - begun) / (last - first) / 2
    assert service.ended(next_, waiting)["status"] == "done"
    after = service.ended(given_up, id)
    assert (after["status"], after["image"]) == ("cancelled", None)


def test_more_rounds_at_once_than_allowed_are_refused(service):
    sessions = [service.session() for _ in range(4)]
    ids = [service.ask(session, "a red dress") for session in sessions[:3]]
    refused = service.client.post(f"/v1/sessions/{sessions[3]}/rounds", json={"utterance": "a red dress"})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "rate_limit_error"
    for session, id in zip(sessions, ids, strict=False):
        assert service.client.post(f"/v1/sessions/{session}/rounds/{id}/cancel").json()["status"] == "cancelled"
    assert service.say(sessions[3], "what color is it?")["status"] == "done"


def put_adapter(service, policy, name, seed, rank=4):
    rng = np.random.default_rng(seed)
    weights = {}
    for key, value in policy.lora_weights().items():
        shape = tuple(rank if side == 4 and place == (0 if "lora_A" in key else 1) else side for place, side in enumerate(value.shape))
        weights[key] = rng.normal(size=shape).astype(np.float32)
    export_adapter(Adapter(weights=weights, rank=rank, alpha=float(rank)), service.place / "adapters" / name, "a card")


def test_an_adapter_is_its_content(service, models, undisturbed):
    policy, warm = Policy.from_pretrained(str(models[0]), rank=4), "users/ann/warm"
    put_adapter(service, policy, warm, seed=1)
    (listed,) = service.client.get("/v1/adapters").json()["data"]
    assert listed["id"] == warm
    first = service.say(service.session(), "a red dress", adapter=warm)
    put_adapter(service, policy, warm, seed=2)
    second = service.say(service.session(), "a red dress", adapter=warm)
    assert len({undisturbed, first["image"], second["image"]}) == 3
    without = service.say(service.session(), "a red dress")
    assert without["image"] == undisturbed

    # Replaced between the request and the painting: no image that nobody asked for.
    put_adapter(service, policy, warm, seed=3)
    before, session = service.session(), service.session()
    busy = service.ask(before, "a red dress")
    service.wait_for_step(before, busy)
    waiting = service.ask(session, "a red dress", adapter=warm)
    put_adapter(service, policy, warm, seed=4)
    service.client.post(f"/v1/sessions/{before}/rounds/{busy}/cancel")
    failed = service.ended(session, waiting)
    assert (failed["status"], failed["image"]) == ("failed", None)
    assert failed["error"] == f"adapter {warm} has changed since this round was asked for; ask again to use the new one"


def test_what_goes_wrong_in_the_painter_ends_the_round_with_one_line(service, models):
    put_adapter(service, Policy.from_pretrained(str(models[0]), rank=4), "shared/large", seed=1, rank=8)
    failed = service.say(service.session(), "a red dress", adapter="shared/large")
    assert (failed["status"], failed["error"]) == ("failed", "the adapter has rank 8, the policy 4; set lora.rank to 8")
    config = service.place / "adapters/shared/large/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": "much"}))
    failed = service.say(service.session(), "a red dress", adapter="shared/large")
    assert (failed["status"], failed["error"]) == ("failed", "internal error; try again")
    missing = service.client.post(f"/v1/sessions/{service.session()}/rounds", json={"utterance": "a", "adapter": "users/bob/warm"})
    assert missing.status_code == 404


def test_votes_teach_an_adapter_which_is_used_and_taken_back(service):
    session = service.session()
    service.say(session, "a red dress", strength=0.05)
    left, right = (service.say(session, said, seed=seed, **QUICK)["id"] for said, seed in (("make it blue", 5), ("make it green", 6)))
    for _ in range(6):  # over and over: what is held out was learned from too
        vote = service.client.post(f"/v1/sessions/{session}/votes", json={"left": left, "right": right, "choice": "left"})
        assert vote.status_code == 201
    update = service.updated()
    assert update["status"] == "published", update
    assert update["figures"]["wins"] > update["figures"]["wins_before"] == 0.5
    adapters = {adapter["id"]: adapter["sha256"] for adapter in service.client.get("/v1/adapters").json()["data"]}
    assert adapters["users/ann/taste"] == update["sha256"]
    used = service.say(session, "make it large", adapter="users/ann/taste", **QUICK)
    assert used["status"] == "done", used
    left_over = service.client.post("/v1/updates/rollback").json()["data"]
    assert "users/ann/taste" not in [adapter["id"] for adapter in left_over]
    assert service.client.get("/v1/updates").json()["data"][0]["status"] == "rolled_back"
    again = service.client.post("/v1/updates/rollback")
    assert again.status_code == 404 and again.json()["error"]["code"] == "not_found"


def test_an_interrupt_ends_it_and_leaves_no_process(service):
    session = service.session()
    events = service.events(session)
    service.wait_for_step(session, service.ask(session, "a red dress"))
    next(events)  # somebody listens, and a round is being made
    processes = psutil.Process(service.process.pid).children(recursive=True)
    assert len(processes) > 6
    service.process.send_signal(signal.SIGINT)
    out, _ = service.process.communicate(timeout=PATIENCE_S)
    assert service.process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == {"served": str(service.client.base_url).rstrip("/")}
    assert not psutil.wait_procs(processes, timeout=120)[1]
