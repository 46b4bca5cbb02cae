"""`omr-ray serve` as a process of its own, with a tiny Stable Diffusion, and a scripted language model behind a real server."""

import base64
import hashlib
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import psutil
import yaml
from PIL import Image

from omr_ray.atelier import world
from omr_ray.serving.store.access import make_key
from omr_ray.serving.store.database import Database
from omr_ray.vlm.engine import Message
from tests.http_server import answer, server
from tests.scripted_language import Album, ScriptedLanguage
from tests.web_service import shaped

ROOT = Path(__file__).parents[1]
STEPS = 100
PATIENCE_S = 1200


def served(place, config="config.yaml", *options):
    """Started in the directory `place`, which holds the config, and is its home: Ray keeps its token there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")}
    # As in tests/ray/conftest.py: Ray's agents start slowly on a busy machine.
    environment |= {"HOME": str(place), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_agent_register_timeout_ms": "300000"}
    environment |= {"RAY_raylet_start_wait_time_s": "300", "RAY_worker_niceness": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "omr_ray.cli", "serve", config, *options],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it
    )


class AnyScene(Album):
    """Sees in every image a scene that follows from its pixels."""

    def scene(self, image):
        return world.random_scene(np.random.default_rng(list(hashlib.sha256(image.tobytes()).digest())))


def speak(language):
    """The language model as a server of the OpenAI chat API."""

    def send(handler):
        conversation = [heard(message) for message in handler.body["messages"]]
        said = {"role": "assistant", "content": language.answer(conversation)}
        answer(body=json.dumps({"choices": [{"index": 0, "message": said}]}))(handler)

    return send


def heard(message):
    content = message["content"]
    if isinstance(content, str):
        return Message(role=message["role"], text=content)
    pictures = [part["image_url"]["url"].partition(",")[2] for part in content if part["type"] == "image_url"]
    images = tuple(np.array(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in pictures)
    return Message(role=message["role"], text=content[-1]["text"], images=images)


@dataclass
class Service:
    process: subprocess.Popen
    name: str
    place: Path
    client: httpx2.Client
    lines: queue.Queue = field(default_factory=queue.Queue)  # of its standard error

    def replica(self, deployment):
        """The process of a deployment that has one."""
        return self.process_of(f"ray::ServeReplica:{self.name}:{deployment}")

    def process_of(self, title):
        """The process of Ray's whose title begins so."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if process.cmdline()[0].startswith(title):
                        return process
                except (psutil.Error, IndexError):
                    continue
            time.sleep(0.2)
        raise AssertionError(f"no process {title}")

    def patiently(self, method, path, **options):
        """The answer to a request that is sent again while nobody answers, or who does says that something is away."""
        deadline, answer = time.monotonic() + PATIENCE_S, None
        while time.monotonic() < deadline:
            try:
                answer = self.client.request(method, path, **options)
                if answer.status_code != 503:
                    return answer
                shaped(answer, 503)
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{method} {path} is not answered: {answer and answer.text}")

    def session(self):
        made = self.client.post("/v1/sessions", json={})
        assert made.status_code == 201, made.text
        return made.json()["id"]

    def ask(self, session, utterance="", **options):
        asked = self.client.post(f"/v1/sessions/{session}/rounds", json={"utterance": utterance, "seed": 3, **options})
        assert asked.status_code == 202, asked.text
        return asked.json()["id"]

    def say(self, session, utterance="", **options):
        """A round to its end."""
        return self.ended(session, self.ask(session, utterance, **options))

    def ended(self, session, id):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            round_ = self.patiently("GET", f"/v1/sessions/{session}/rounds/{id}").json()
            if round_["status"] not in ("pending", "running"):
                return round_
            time.sleep(0.1)
        raise AssertionError(f"round {id} does not end: {round_}")

    def updated(self):
        """The newest update, when it has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = self.client.get("/v1/updates").json()["data"]
            if found and found[0]["status"] != "running":
                return found[0]
            time.sleep(0.2)
        raise AssertionError(f"no update ends: {found}")

    def events(self, session, after=0):
        """(id, kind, data), as they come."""
        path, headers = f"/v1/sessions/{session}/events", {"Last-Event-ID": str(after)}
        with self.client.stream("GET", path, headers=headers, timeout=PATIENCE_S) as stream:
            assert stream.status_code == 200
            event = {}
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    event[name] = value
                elif "data" in event:
                    yield int(event["id"]), event["event"], json.loads(event["data"])
                    event = {}

    def wait_for_step(self, session, id, step=5):
        return next(data for _, kind, data in self.events(session) if kind == "progress" and data["round"] == id and data["step"] >= step)


@contextmanager
def serving(place, models, **changes):
    """Serves from the directory `place` with the (diffusion, CLIP) models; `changes` are of its config. Ann has a key."""
    name = f"omr{os.getpid()}"
    with socket.socket() as found, server(speak(ScriptedLanguage(AnyScene()))) as (language, _):
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        config = configured(name, models, language, port) | changes
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        database = Database(config["database"].replace("///state", f"///{place}/state"))
        database.migrate()
        with database.write() as transaction:
            key = make_key(transaction, "ann")
        database.close()
        process = served(place, "config.yaml", "--json")
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}, timeout=120)
        made = Service(process=process, name=name, place=place, client=client)
        threading.Thread(target=lambda: [made.lines.put(line) for line in process.stderr], daemon=True).start()
        try:
            yield made
        finally:
            client.close()
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(PATIENCE_S)


def configured(name, models, language, port):
    few = {"num_cpus": 0.25, "threads": 1}
    return {
        "name": name,
        "model": {"kind": "diffusers", "path": str(models[0]), "dtype": "float32", "channels_last": False},
        "painting": {"steps": STEPS, "preview_every": 20},
        "clip": str(models[1]),
        "dialogue": {
            "language": {"type": "openai", "url": f"{language}/v1", "model": "scripted"},
            "reflection": {"threshold": 0.0},  # always asks
        },
        "database": "sqlite:///state/service.db",
        "images": "images",
        "adapters": "adapters",
        "http": {"port": port, "keys": "required"},
        "limits": {"requests_per_minute": 1000, "concurrent_rounds": 3},
        "replicas": {"web": few, "rounds": few, "diffusion": few, "language": few, "updates": few, "lease_s": 3},
        "updates": {"votes": 6, "held_out": 0.5, "learning_rate": 1e-3, "beta": 100, "batch": 16, "passes": 8},
    }
