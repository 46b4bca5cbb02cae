"""A request for images as rounds: stored, followed until they have ended, given up where nobody waits for them any more."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from omr_ray.dialogue.engine import NO_SPACE, Picture
from omr_ray.dialogue.session import Session
from omr_ray.serving.openai_schemas import ImageSettings
from omr_ray.serving.routes.adapters import permitted
from omr_ray.serving.routes.caller import Service
from omr_ray.serving.routes.errors import Refused
from omr_ray.serving.routes.events import LOOK_S, newer
from omr_ray.serving.schemas import LARGEST_SEED
from omr_ray.serving.store import access, sessions
from omr_ray.serving.store.database import Once
from omr_ray.serving.store.queue import OPEN
from omr_ray.serving.store.sessions import NotFound
from omr_ray.serving.store.tables import StoredEvent
from omr_ray.types import NoSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The rounds that a request became."""

    session: str
    rounds: tuple[int, ...]
    after: int  # the last event that was told before any of them ended
    created: int  # seconds since 1970


def place(here: Service, owner: str, asked: ImageSettings, upload: np.ndarray | None, once: Once | None) -> Order:
    """Durable when it returns. `upload` u8 [H W 3] is edited. Raises as the store does, and Refused."""
    digest = permitted(here, owner, asked.adapter_id, "adapter_id")
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    limits, strength = here.config.limits, here.config.painting.strength

    def work(transaction: Any) -> dict[str, Any]:
        access.count_request(
            transaction, owner, per_minute=limits.requests_per_minute, rounds=asked.count, concurrent_rounds=limits.concurrent_rounds
        )
        id = asked.session_id or sessions.create(transaction, owner, kind="image").session.id
        # Stored only now: a request over the limit leaves nothing behind.
        address = None if upload is None else here.pictures.put(Picture(image=upload))

        def grow(session: Session) -> Session:
            session = session if asked.parent_round_id is None else session.branch(asked.parent_round_id)
            session = session if address is None else session.uploaded(address)
            parent = session.head
            for number in range(asked.count):
                at = (seed + number) % (LARGEST_SEED + 1)
                session = session.branch(parent)
                session = session.start(asked.prompt, seed=at, strength=strength, modality="picture", adapter=asked.adapter_id)
            return session

        kept = sessions.change(transaction, id, grow, owner=owner, adapter_sha256=digest)
        rounds = tuple(round_.id for round_ in kept.session.rounds[-asked.count :])
        return asdict(Order(session=id, rounds=rounds, after=kept.last_event, created=int(time.time())))

    answer = here.database.once(once, work)[0]
    return Order(**answer | {"rounds": tuple(answer["rounds"])})


async def followed(
    here: Service, order: Order, gone: Callable[[], Awaitable[bool]], *, kept: bool
) -> AsyncGenerator[list[StoredEvent], None]:
    """New events of the order's rounds, look by look, until all are done. Close it with `contextlib.aclosing`.

    gone: whether the client has gone away. Then, and where one round fails, the others are cancelled, unless they are `kept`:
    a request with an Idempotency-Key may come again for them. Raises Refused and NotFound.
    """
    left, last, limit = set(order.rounds), order.after, time.monotonic() + here.config.limits.images_wait_s
    try:
        while True:
            count = here.changes.count
            there, found = await asyncio.to_thread(newer, here, order.session, last)
            own = [event for event in found if event.round in order.rounds]
            for event in own:
                _check_failed(event)
            left -= {event.round for event in own if event.kind == "done"}
            yield own
            if not left:
                return
            if await gone():
                raise Refused(499, "the client has gone away", code="client_gone")
            if time.monotonic() > limit:
                raise Refused(504, "the images were not done in time; try again later", code="timeout")
            if not there:
                raise NotFound(f"session {order.session!r}")
            last = found[-1].id if found else last
            await here.changes.of_session(order.session, last, count, LOOK_S)
    finally:
        if left and not kept:
            # Not waited for: this task may be cancelled itself.
            asyncio.get_running_loop().run_in_executor(None, _give_up, here, order)


def _check_failed(event: StoredEvent) -> None:
    if event.kind == "round" and event.data["status"] == "failed":
        if event.data["error"] == NO_SPACE:
            raise NoSpace(f"round {event.round} found no space")
        raise Refused(500, event.data["error"], code="generation_failed")
    if event.kind == "round" and event.data["status"] == "cancelled":
        raise Refused(400, f"round {event.round} was cancelled", code="cancelled")


def _give_up(here: Service, order: Order) -> None:
    def cancelled(session: Session) -> Session:
        for id in order.rounds:
            session = session.cancel(id) if session.round(id).status in OPEN else session
        return session

    try:
        with here.database.write() as transaction:
            sessions.change(transaction, order.session, cancelled)
    except NotFound:
        pass
    except Exception:
        logger.exception("rounds of session %s could not be cancelled", order.session)
