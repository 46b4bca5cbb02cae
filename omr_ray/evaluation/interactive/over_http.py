"""A running service as a system, over its documented routes: sessions, rounds, events that are gone on with, images."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import numpy as np
import tenacity
from PIL import Image

from omr_ray.evaluation.interactive.talking import Said, Shown, Variant
from omr_ray.serving.events import Done
from omr_ray.serving.schemas import RoundView
from omr_ray.types import UserError
from omr_ray.vlm.http import BACKOFF, retry_after_s

AT_ONCE = 4  # rounds; a service allows each owner so many by default
ROUND_S = 600.0  # limit of one round, and of asking for one thing again and again
SILENCE_S = 60.0  # a stream of events that says nothing for so long is opened again; a service pings more often
EVENT_BYTES = 64 * 2**20  # a preview is an image


class _Later(Exception):
    """Not now; `pause` is how many seconds the service asks for."""

    def __init__(self, said: str, pause: float) -> None:
        super().__init__(said)
        self.pause = pause


class HttpSystem:
    """As talking.System. Every request that makes something has an Idempotency-Key, so asking again never does it twice.

    Raises UserError for a service that cannot be reached, refuses, or does not finish a round within ROUND_S.
    """

    def __init__(self, url: str, key: str | None, variant: Variant) -> None:
        self._url, self._variant = url.rstrip("/"), variant
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._name = uuid.uuid4().hex  # of this run, in idempotency keys
        self._sessions: dict[int, str] = {}
        self._heads: dict[int, int] = {}  # the last done round
        self._events: dict[int, int] = {}  # the last one that was seen

    def turns(self, said: Sequence[Said]) -> list[Shown]:
        return asyncio.run(self._turns(said))

    async def _turns(self, said: Sequence[Said]) -> list[Shown]:
        limit = asyncio.Semaphore(AT_ONCE)
        async with httpx2.AsyncClient(base_url=self._url, headers=self._headers, timeout=SILENCE_S) as client:

            async def turn(one: Said) -> Shown:
                async with limit:
                    try:
                        async with asyncio.timeout(ROUND_S):
                            return await self._turn(client, one)
                    except TimeoutError:
                        raise UserError(f"{self._url}: a round took more than {ROUND_S:g} s; see what the service is doing") from None

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(turn(one)) for one in said]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _turn(self, client: httpx2.AsyncClient, said: Said) -> Shown:
        talk = said.talk
        if talk not in self._sessions:
            made = await self._json(client, "POST", "/v1/sessions", {"title": f"simulated {talk}"}, key=f"{self._name}-{talk}")
            self._sessions[talk], self._events[talk] = made["id"], made["last_event"]
        rounds = f"/v1/sessions/{self._sessions[talk]}/rounds"
        if said.skips:
            await self._skip(client, f"{rounds}/{self._heads[talk]}")
        body = {"utterance": said.utterance, "answer": said.answer, "seed": said.seed, "mode": self._variant.mode}
        started = await self._json(client, "POST", rounds, body, key=f"{self._name}-{talk}-{said.turn}")
        await self._followed(client, talk, started["id"])
        round_ = RoundView.model_validate(await self._json(client, "GET", f"{rounds}/{started['id']}"))
        if round_.status == "done":
            self._heads[talk] = round_.id
        return await self._shown(client, round_)

    async def _skip(self, client: httpx2.AsyncClient, round_: str) -> None:
        """It may be skipped already: the answer to an earlier attempt may have been lost."""
        if not (await self._json(client, "GET", round_))["skipped"]:
            await self._json(client, "POST", f"{round_}/skip")

    async def _followed(self, client: httpx2.AsyncClient, talk: int, id: int) -> None:
        """Until the events say that the round has ended. A stream that breaks off is gone on with behind its last event."""
        path = f"/v1/sessions/{self._sessions[talk]}/events"
        while True:
            after = {"Last-Event-ID": str(self._events[talk])}
            try:
                async with client.sse(path, headers=after, max_event_size=EVENT_BYTES) as source:
                    _check(source.response)
                    async for event in source:
                        self._events[talk] = int(event.id)
                        if event.event == "done" and Done.model_validate_json(event.data).round == id:
                            return
            except (httpx2.TransportError, _Later):
                pass
            await asyncio.sleep(1)

    async def _shown(self, client: httpx2.AsyncClient, round_: RoundView) -> Shown:
        image = None
        if round_.status == "done" and round_.image is not None:
            with Image.open(io.BytesIO(await self._asked(client, "GET", f"/v1/images/{round_.image}"))) as opened:
                image = np.asarray(opened.convert("RGB"))
        return Shown(
            status=round_.status,
            modality=round_.modality,
            prompt=round_.prompt,
            image=image,
            question=None if round_.question is None else round_.question.aspect,
            ambiguity=round_.ambiguity,
            error=round_.error,
        )

    async def _json(self, client: httpx2.AsyncClient, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        return json.loads(await self._asked(client, method, path, body, headers))

    async def _asked(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The body of the answer. What may be over soon is asked again, not before Retry-After."""
        tries = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(ROUND_S),
            wait=_pause,
            retry=tenacity.retry_if_exception_type((_Later, httpx2.TransportError)),
            reraise=True,
        )

        async def ask() -> bytes:
            response = await client.request(method, path, json=body, headers=headers)
            _check(response)
            return response.content

        try:
            return await tries(ask)
        except (_Later, httpx2.TransportError) as error:
            raise UserError(f"{self._url}: {error or type(error).__name__}; see that the service runs there") from None


def _check(response: httpx2.Response) -> None:
    """Raises _Later for what may be over soon, UserError for what will not."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise _Later(f"status {status}", retry_after_s(response.headers.get("retry-after")))
    if status >= 400:
        told = "" if not response.is_closed else f" ({_message(response)})"
        raise UserError(f"{response.request.method} {response.request.url}: status {status}{told}; mend the key or the command")


def _message(response: httpx2.Response) -> str:
    """What the one shape of errors says."""
    try:
        return str(response.json()["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no reason is given"


def _pause(state: tenacity.RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    return max(BACKOFF(state), fault.pause if isinstance(fault, _Later) else 0.0)
