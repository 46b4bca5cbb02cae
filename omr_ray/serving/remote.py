"""The models behind Serve's handles, as the Conductor asks for them, from threads of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RequestCancelledError
from ray.serve.handle import DeploymentHandle

from omr_ray.dialogue.engine import Cancelled, Commission, Picture
from omr_ray.vlm.engine import Conversation

ATTEMPTS = 4  # of a call whose process died; each gives the same answer
LOOK_S = 0.1

Answer = TypeVar("Answer")


class RemoteModels:
    """As conductor.Models. A call whose process dies is made again, by another one or by its successor.

    timeout_s: limit of a call of the language side, and of the time between two steps of an image. Raises TimeoutError.
    """

    def __init__(self, language: DeploymentHandle, diffusion: DeploymentHandle, timeout_s: float) -> None:
        self._language, self._diffusion, self._timeout_s = language, diffusion, timeout_s

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        return _asked(lambda: self._answer(self._language.complete.remote(conversations, max_tokens)))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return _asked(lambda: self._answer(self._language.embed.remote(texts)))

    def paint(self, commission: Commission, watch: Callable[..., None], stop: threading.Event) -> Picture:
        return _asked(lambda: self._painted(commission, watch, stop), stop)

    def _answer(self, response: Any) -> Any:
        try:
            return response.result(timeout_s=self._timeout_s)
        except TimeoutError:
            response.cancel()
            raise

    def _painted(self, commission: Commission, watch: Callable[..., None], stop: threading.Event) -> Picture:
        stream: Any = self._diffusion.options(stream=True).paint.remote(commission)
        try:
            with _ended_when(stream, stop, self._timeout_s) as heard:
                for told in stream:
                    heard()
                    if isinstance(told, Picture):
                        return told
                    watch(*told)
                raise RequestCancelledError(stream.request_id)
        except RayActorError:
            raise
        except BaseException:
            stream.cancel()  # also where `watch` has raised: nobody waits for this image any more
            raise


@contextmanager
def _ended_when(stream: Any, stop: threading.Event, timeout_s: float) -> Iterator[Callable[[], None]]:
    """Cancels the stream soon after `stop` is set, or when nothing was heard of it for `timeout_s`. Raises Cancelled, TimeoutError.

    Whoever waits for the next item of a stream cannot look at anything else: a thread does.
    """
    over, silent, last = threading.Event(), threading.Event(), time.monotonic()

    def heard() -> None:
        nonlocal last
        last = time.monotonic()

    def look() -> None:
        while not over.wait(LOOK_S):
            if time.monotonic() - last > timeout_s:
                silent.set()
            if stop.is_set() or silent.is_set():
                stream.cancel()
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield heard
    except RequestCancelledError as error:
        if stop.is_set():
            raise Cancelled from error
        if silent.is_set():
            raise TimeoutError(f"no step of an image within {timeout_s:g} s") from error
        raise
    finally:
        over.set()


def _asked(call: Callable[[], Answer], stop: threading.Event | None = None) -> Answer:
    """What a remote call gives, or what it raised itself, so that the engine can tell a user's fault from ours.

    A request that is cancelled though nobody here wants that was with a process that is being shut down.
    """
    stop = stop or threading.Event()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except RayTaskError as error:  # it is of its cause's class too, and its text is the whole traceback
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (RayActorError, RequestCancelledError):
            if attempt == ATTEMPTS:
                raise
        if stop.wait(attempt):
            raise Cancelled
    raise AssertionError
