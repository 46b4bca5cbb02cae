"""The routes on a real HTTP server, with the conductor beside it; the embedded world's grammar and renderer speak and paint."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import uvicorn

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Cancelled
from omr_ray.serving.api import create_api
from omr_ray.serving.conductor import Conductor
from omr_ray.serving.store.access import make_key
from omr_ray.serving.store.database import Database
from tests.scripted_language import Album, ScenePainter, ScriptedLanguage, embed

STEPS = 4


class ScriptedModels:
    """Shows a preview after every step but the last; while `go` is cleared, stays after the first one until it is told to stop."""

    def __init__(self):
        self.album = Album()
        self.complete, self.embed = ScriptedLanguage(self.album).complete, embed
        self.painter, self.go, self.stopped = ScenePainter(self.album), threading.Event(), threading.Event()
        self.go.set()

    def paint(self, commission, watch, stop):
        if "fault" in commission.prompt:
            raise RuntimeError("/secret/place")
        picture = self.painter(commission)
        for step in range(1, STEPS + 1):
            watch(step, STEPS, picture.image if step < STEPS else None)
            while not self.go.wait(0.05):
                if stop.is_set():
                    self.stopped.set()
                    raise Cancelled
        return picture


@dataclass(frozen=True, kw_only=True)
class WebService:
    config: ServeConfig
    url: str
    keys: dict[str, str]  # owner -> key
    models: ScriptedModels

    def client(self, owner=None):
        headers = {} if owner is None else {"authorization": f"Bearer {self.keys[owner]}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=120)


def configured(place, **changes):
    where = {"database": f"sqlite:///{place}/service.db", "images": f"{place}/images", "adapters": f"{place}/adapters"}
    limits = {"requests_per_minute": 100_000}
    return ServeConfig.model_validate({**where, "http": {"keys": "required"}, "limits": limits, **changes})


@contextmanager
def web_service(place, owners=("ann", "bob"), models=None, **changes):
    """Serves from the directory `place`; `changes` are of its config."""
    config, models = configured(place, **changes), models or ScriptedModels()
    database = Database(config.database)
    database.migrate()
    with database.write() as transaction:
        keys = {owner: make_key(transaction, owner) for owner in owners}
    database.close()

    async def ready():
        return True

    conductor = Conductor(config, models)
    server = uvicorn.Server(uvicorn.Config(create_api(config, ready), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield WebService(config=config, url=url, keys=keys, models=models)
    finally:
        models.go.set()
        server.should_exit = True
        conductor.close()
        thread.join(60)


def asked(client, session, utterance, headers=None, **options):
    """The number of a new round; asked for again while the service says that something is away."""
    deadline = time.monotonic() + 240
    while True:
        answer = client.post(f"/v1/sessions/{session}/rounds", json={"utterance": utterance, "seed": 3, **options}, headers=headers)
        if answer.status_code == 202:
            return answer.json()["id"]
        shaped(answer, 503)
        assert headers and time.monotonic() < deadline, answer.text
        time.sleep(0.2)


def shaped(answer, *statuses):
    """What an error tells in the one shape."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"} and told["message"] and len(told["message"]) < 1000
    assert "Traceback" not in answer.text and "/omr_ray/" not in answer.text
    return told


def ended(client, session, round_id):
    """The round when it has ended."""
    deadline = time.monotonic() + 240
    while True:
        answer = client.get(f"/v1/sessions/{session}/rounds/{round_id}")
        if answer.status_code != 503 and answer.json()["status"] not in ("pending", "running"):
            return answer.json()
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)


def say(client, session, utterance, headers=None, **options):
    """A round to its end."""
    return ended(client, session, asked(client, session, utterance, headers, **options))
