"""The deployments: thin shells around what does the work.

    web (HTTP, the store) ──store──► rounds (Conductor) ──► diffusion (Painter), language (LanguageModel and CLIP)

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
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from omr_ray.atelier import shipped
from omr_ray.config.run import Actors
from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Cancelled, Commission, Picture
from omr_ray.serving.conductor import Conductor
from omr_ray.serving.store.database import Database
from omr_ray.vlm.engine import Conversation

PAINT_ATTEMPTS = 4  # of a commission whose process died; the same seed gives the same image


@serve.deployment(max_ongoing_requests=64)
class Language:
    """The language model, and CLIP's text side."""

    def __init__(self, config: ServeConfig) -> None:
        from omr_ray.loading import device_for, language_model_from
        from omr_ray.vlm.clip import Clip

        actors = config.replicas.language
        device = device_for(actors, "language")
        self._language = language_model_from(config.dialogue.language, device, actors.threads)
        self._clip = Clip.from_pretrained(shipped("clip") if config.clip == "atelier" else config.clip, device)

    async def complete(self, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
        return await asyncio.to_thread(self._language.complete, conversations, max_tokens=max_tokens)

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        return (await asyncio.to_thread(self._clip.embed_texts, texts)).numpy()


@serve.deployment(max_ongoing_requests=2)
class Diffusion:
    """Paints one commission at a time; ready once it has painted one."""

    def __init__(self, config: ServeConfig) -> None:
        from omr_ray.loading import device_for
        from omr_ray.serving.painter import Painter

        actors = config.replicas.diffusion
        self._painter = Painter(config, device_for(actors, "diffusion"), actors.threads)
        self._pool = ThreadPoolExecutor(1)
        first = Commission(prompt="", seed=0, strength=1.0, parent=None, pose_from=None, context=np.zeros(1, np.float32), adapter=None)
        self._painter.paint(first, lambda step, steps, preview: None)

    async def paint(self, commission: Commission) -> AsyncIterator[Any]:
        """(step, steps, preview) after each step, then the Picture. Whoever closes the stream ends the loop at its next step."""
        loop, told, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

        def watch(*step: Any) -> None:
            if stop.is_set():
                raise Cancelled
            loop.call_soon_threadsafe(told.put_nowait, step)

        painted = loop.run_in_executor(self._pool, self._painter.paint, commission, watch)
        painted.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (step := await told.get()) is not None:
                yield step
            yield painted.result()
        finally:
            stop.set()

    async def ready(self) -> bool:
        return True


class RemoteModels:
    """The models behind their handles, as the Conductor asks for them, from threads of its own."""

    def __init__(self, language: DeploymentHandle, diffusion: DeploymentHandle, timeout_s: float) -> None:
        self._language, self._diffusion, self._timeout_s = language, diffusion, timeout_s

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        return _cause(lambda: self._language.complete.remote(conversations, max_tokens).result(timeout_s=self._timeout_s))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._language.embed.remote(texts).result(timeout_s=self._timeout_s)

    def paint(self, commission: Commission, watch: Callable[..., None], stop: threading.Event) -> Picture:
        for attempt in range(1, PAINT_ATTEMPTS + 1):
            try:
                return _cause(lambda: self._paint_once(commission, watch, stop))
            except RayActorError:
                if attempt == PAINT_ATTEMPTS:
                    raise
                time.sleep(attempt)
        raise AssertionError

    def _paint_once(self, commission: Commission, watch: Callable[..., None], stop: threading.Event) -> Picture:
        stream: Any = self._diffusion.options(stream=True).paint.remote(commission)
        over = threading.Event()

        def cancel_when_told() -> None:
            while not over.wait(0.1):
                if stop.is_set():
                    stream.cancel()
                    return

        threading.Thread(target=cancel_when_told, daemon=True).start()
        try:
            for told in stream:
                if isinstance(told, Picture):
                    return told
                watch(*told)
        except RayActorError:
            raise
        except BaseException as error:
            stream.cancel()
            if stop.is_set():
                raise Cancelled from error
            raise
        finally:
            over.set()
        raise Cancelled


@serve.deployment(max_ongoing_requests=64)
class Rounds:
    def __init__(self, config: ServeConfig, language: DeploymentHandle, diffusion: DeploymentHandle) -> None:
        self._conductor = Conductor(config, RemoteModels(language, diffusion, config.replicas.answer_timeout_s))
        self._diffusion = diffusion

    def check_health(self) -> None:
        if not self._conductor.alive():
            raise RuntimeError("a thread of the conductor has ended")

    async def ready(self) -> bool:
        return bool(await self._diffusion.ready.remote())

    def __del__(self) -> None:
        if hasattr(self, "_conductor"):
            self._conductor.close()


@serve.deployment(max_ongoing_requests=512)
@serve.ingress()
class Web:
    def __init__(self, config: ServeConfig, rounds: DeploymentHandle) -> None:
        self._config, self._rounds = config, rounds

    def __serve_build_asgi_app__(self) -> Any:
        from omr_ray.serving.api import create_api

        async def ready() -> bool:
            return bool(await asyncio.wait_for(self._rounds.ready.remote(), 10))

        return create_api(self._config, ready)


def build(arguments: dict[str, Any]) -> Application:
    """The application of a config, as `serve run`, `serve deploy` and a RayService make it. Brings the tables up to date."""
    config = ServeConfig.model_validate(arguments)
    database = Database(config.database)
    database.migrate()
    database.close()
    replicas = config.replicas
    language = _sized(Language, replicas.language).bind(config)
    diffusion = _sized(Diffusion, replicas.diffusion).bind(config)
    rounds = _sized(Rounds, replicas.rounds).bind(config, language, diffusion)
    return _sized(Web, replicas.web).bind(config, rounds)


def _sized(deployment: Any, actors: Actors) -> Any:
    environment = {"OMP_NUM_THREADS": str(actors.threads)}
    options = {"num_cpus": actors.num_cpus, "num_gpus": actors.num_gpus, "runtime_env": {"env_vars": environment}}
    return deployment.options(num_replicas=actors.count, ray_actor_options=options)


def _cause(call: Callable[[], Any]) -> Any:
    """What a remote call raised itself, so that the engine can tell a user's fault from ours."""
    try:
        return call()
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
