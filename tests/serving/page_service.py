"""The service over real HTTP for the pages: scripted words, and the embedded world's renderer as a painter that one can watch."""

import hashlib
import threading
import time
from contextlib import contextmanager

import numpy as np
import uvicorn

from omr_ray.atelier import world
from omr_ray.atelier.render import render
from omr_ray.atelier.world import VALUES
from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Cancelled, Picture
from omr_ray.serving.api import create_api
from omr_ray.serving.conductor import Conductor
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.store.access import make_key
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.tables import Pair
from omr_ray.serving.store.votes import put_up
from omr_ray.types import UserError
from tests.scripted_language import Album, ScriptedLanguage

STEPS = 4
BROKEN = "hat"  # what this painter cannot draw
SLOW = "coat"  # what it takes its time for, until it is told to stop
_PLACES = [(aspect, value) for aspect, values in VALUES.items() for value in values]


class Models:
    """Each step is seen as a preview that gets clearer. The first picture of a path misses the style that was wanted."""

    def __init__(self, size, step_s):
        self.album, self.size, self.step_s = Album(), size, step_s
        self.complete = ScriptedLanguage(self.album).complete

    def embed(self, texts):
        """Unit vectors: texts that name another value of the same aspect have a cosine of 0.4."""
        vectors = np.full((len(texts), len(VALUES) + len(_PLACES)), 1e-6, np.float32)
        for row, text in enumerate(texts):
            for aspect, value in world.parse(text).items():
                vectors[row, list(VALUES).index(aspect)] = 0.4**0.5
                vectors[row, len(VALUES) + _PLACES.index((aspect, value))] = 0.6**0.5
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def paint(self, commission, watch, stop):
        named = world.parse(commission.prompt)
        if named.get("content") == BROKEN:
            raise UserError("this painter has no hats; ask for another garment")
        rng = np.random.default_rng(commission.seed)
        scene = self.album.scene(commission.parent.image) if commission.parent else world.random_scene(rng)
        if not commission.parent and "style" in named:
            named["style"] = "dotted" if named["style"] != "dotted" else "plain"
        scene = scene.with_aspects(named)
        picture = render(scene, rng, self.size)
        noise = rng.integers(0, 255, picture.shape)
        steps = STEPS * 100 if named.get("content") == SLOW else STEPS
        for step in range(1, steps + 1):
            clear = min(1, step / STEPS) ** 0.5
            watch(step, steps, (clear * picture + (1 - clear) * noise).astype(np.uint8) if step < STEPS else None)
            time.sleep(self.step_s)
            if stop.is_set():
                raise Cancelled
        self.album.scenes[hashlib.sha256(picture.tobytes()).hexdigest()] = scene
        return Picture(image=picture)


def put_up_pairs(config, count, size):
    """Pairs of one prompt; the right picture misses two of its aspects."""
    pictures, pairs = PictureStore(config.images), []
    for index in range(count):
        rng = np.random.default_rng(index)
        scene = world.random_scene(rng)
        other = scene.with_aspects(
            {"style": "striped" if scene.style != "striped" else "plain", "color": "blue" if scene.color != "blue" else "pink"}
        )
        shown = [pictures.put(Picture(image=render(one, np.random.default_rng(index), size))) for one in (scene, other)]
        prompt = world.prompt_of({name: getattr(scene, name) for name in VALUES})
        pairs.append(Pair(id=f"pair_{index}", prompt=prompt, left=shown[0], right=shown[1], source="test", created_at=time.time()))
    with Database(config.database).write() as transaction:
        put_up(transaction, pairs)


@contextmanager
def served(place, *, keys="required", size=128, step_s=0.05):
    """(url, a key of ann, config) of a service in a directory of its own."""
    where = {"database": f"sqlite:///{place}/service.db", "images": str(place / "images"), "adapters": str(place / "adapters")}
    limits = {"requests_per_minute": 10_000, "concurrent_rounds": 4}
    always_asks = {"reflection": {"threshold": 0.01}}
    config = ServeConfig.model_validate({**where, "http": {"keys": keys}, "limits": limits, "dialogue": always_asks})
    database = Database(config.database)
    database.migrate()
    with database.write() as transaction:
        key = make_key(transaction, "ann")

    async def ready():
        return True

    conductor = Conductor(config, Models(size, step_s))
    server = uvicorn.Server(
        uvicorn.Config(create_api(config, ready), host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", key, config
    finally:
        server.should_exit = True
        conductor.close()
        thread.join(30)
