"""The deployments: thin shells around what does the work.

    web (HTTP, the store) ──store──► rounds (Conductor) ──► diffusion (Painter), language (LanguageModel and CLIP)
                            store──► updates (UpdateKeeper) ──► a task for each update of an adapter (Updater)

The web and the rounds share nothing but the store: a round that is stored is taken on by whichever process is free.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from omr_ray.atelier import shipped
from omr_ray.config.run import Actors
from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Cancelled, Commission, Picture
from omr_ray.serving.conductor import Conductor
from omr_ray.serving.remote import RemoteModels
from omr_ray.serving.store.database import Database
from omr_ray.vlm.engine import Conversation

AT_ONCE = 64  # calls of one process of the language side, or of the rounds
HEALTH_PERIOD_S = 2  # a process that has died is replaced after this
HEALTH_TIMEOUT_S = 60
TELL_S = 0.25  # between two steps of an image that are told of: a preview is decoded, and passes three processes and the database
SHUTDOWN_S = 10  # that a process gets for what it has begun; a page that stays open never ends its stream of events


@serve.deployment(max_ongoing_requests=AT_ONCE)
class Language:
    """The language model, and CLIP's text side."""

    def __init__(self, config: ServeConfig) -> None:
        from omr_ray.loading import device_for, language_model_from
        from omr_ray.vlm.clip import Clip

        actors = config.replicas.language
        device = device_for(actors, "language")
        self._language = language_model_from(config.dialogue.language, device, actors.threads)
        self._clip = Clip.from_pretrained(shipped("clip") if config.clip == "atelier" else config.clip, device)
        self._speaking = ThreadPoolExecutor(AT_ONCE)  # most wait for a server, or for the model's lock
        self._embedding = ThreadPoolExecutor(1)  # a tokenizer must not be used by two threads at once

    async def complete(self, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._speaking, lambda: self._language.complete(conversations, max_tokens=max_tokens))

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        return (await asyncio.get_running_loop().run_in_executor(self._embedding, self._clip.embed_texts, texts)).numpy()


@serve.deployment(max_ongoing_requests=2)
class Diffusion:
    """Paints one commission at a time; ready once it has painted one."""

    def __init__(self, config: ServeConfig) -> None:
        from omr_ray.loading import device_for
        from omr_ray.serving.painter import Painter

        actors = config.replicas.diffusion
        self._painter = Painter(config, device_for(actors, "diffusion"), actors.threads)
        self._pool, self._longest_step_s = ThreadPoolExecutor(1), config.replicas.answer_timeout_s
        self._preview_every = config.painting.preview_every
        self._step_begun: float | None = None  # None while nothing is painted
        first = Commission(prompt="", seed=0, strength=1.0, parent=None, pose_from=None, context=np.zeros(1, np.float32), adapter=None)
        self._painter.paint(first, lambda step, steps, preview: None)

    async def paint(self, commission: Commission) -> AsyncIterator[Any]:
        """(step, steps, preview) of the first and the last step and of some between, then the Picture.

        Whoever closes the stream ends the loop at its next step.
        """
        loop, told, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()
        last, seen = -TELL_S, 0  # when a step was told of, and of which there was a preview

        def watch(step: int, steps: int, preview: Callable[[], np.ndarray]) -> None:
            nonlocal last, seen
            if stop.is_set():
                raise Cancelled
            self._step_begun = now = time.monotonic()
            if step < steps and now - last < TELL_S:
                return
            due = 0 < self._preview_every <= step - seen and step < steps
            last, seen = now, step if due else seen
            loop.call_soon_threadsafe(told.put_nowait, (step, steps, preview() if due else None))

        def work() -> Picture:
            self._step_begun = time.monotonic()
            try:
                return self._painter.paint(commission, watch)
            finally:
                self._step_begun = None

        painted = loop.run_in_executor(self._pool, work)
        painted.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (step := await told.get()) is not None:
                yield step
            yield painted.result()
        finally:
            stop.set()
            painted.cancel()  # one that has not begun never does

    def check_health(self) -> None:
        begun = self._step_begun
        if begun is not None and time.monotonic() - begun > self._longest_step_s:
            raise RuntimeError(f"a step of an image takes more than {self._longest_step_s:g} s")


@serve.deployment(max_ongoing_requests=AT_ONCE)
class Rounds:
    def __init__(self, config: ServeConfig, language: DeploymentHandle, diffusion: DeploymentHandle) -> None:
        self._conductor = Conductor(config, RemoteModels(language, diffusion, config.replicas.answer_timeout_s))

    def check_health(self) -> None:
        if not self._conductor.alive():
            raise RuntimeError("a thread of the conductor has ended")

    def __del__(self) -> None:
        if hasattr(self, "_conductor"):
            self._conductor.close()


@serve.deployment
class Updates:
    """Light itself: what it starts has the resources of `replicas.updates`."""

    def __init__(self, config: ServeConfig) -> None:
        from omr_ray.serving.update_keeper import UpdateKeeper

        self._keeper = UpdateKeeper(config)

    def check_health(self) -> None:
        if not self._keeper.alive():
            raise RuntimeError("the thread that keeps updates has ended")

    def __del__(self) -> None:
        if hasattr(self, "_keeper"):
            self._keeper.close()


@serve.deployment(max_ongoing_requests=512)
@serve.ingress()
class Web:
    """The routes. It asks nothing of `others`, which belong to the application because they are bound here."""

    def __init__(self, config: ServeConfig, *others: DeploymentHandle) -> None:
        self._config = config

    def __serve_build_asgi_app__(self) -> Any:
        from omr_ray.serving.api import create_api

        application = serve.get_replica_context().app_name

        async def ready() -> bool:
            return await asyncio.wait_for(asyncio.to_thread(_check_all_run, application), 10)

        return create_api(self._config, ready)


def _check_all_run(application: str) -> bool:
    """Raises RuntimeError where a deployment has no process that is ready: one that paints has painted an image by then.

    Serve's controller is asked: a process may be busy for longer than somebody who asks for readiness waits.
    """
    for name, deployment in serve.status().applications[application].deployments.items():
        if not any(count for state, count in deployment.replica_states.items() if state == "RUNNING"):
            raise RuntimeError(f"no process of {name} is ready")
    return True


def build(arguments: dict[str, Any]) -> Application:
    """The application of a config, as `serve run`, `serve deploy` and a RayService make it. Brings the tables up to date."""
    config = ServeConfig.model_validate(arguments).with_absolute_paths()
    database = Database(config.database)
    database.migrate()
    database.close()
    replicas = config.replicas
    language = _sized(Language, replicas.language).bind(config)
    diffusion = _sized(Diffusion, replicas.diffusion).bind(config)
    rounds = _sized(Rounds, replicas.rounds).bind(config, language, diffusion)
    others = [rounds] if config.updates is None else [rounds, _sized(Updates, replicas.rounds.model_copy(update={"count": 1})).bind(config)]
    return _sized(Web, replicas.web).bind(config, *others)


def _sized(deployment: Any, actors: Actors) -> Any:
    environment = {"OMP_NUM_THREADS": str(actors.threads)}
    return deployment.options(
        num_replicas=actors.count,
        ray_actor_options={"num_cpus": actors.num_cpus, "num_gpus": actors.num_gpus, "runtime_env": {"env_vars": environment}},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
    )
