"""Server-sent events of a session, which a client that was cut off goes on with (../events.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from omr_ray.serving.routes.caller import Here, Owner, Service
from omr_ray.serving.store import sessions
from omr_ray.serving.store.tables import StoredEvent
from omr_ray.types import Unavailable

LOOK_S = 1.0  # at the latest
MOST_EVENTS = 2**31 - 1  # of a session: the largest number that both databases can compare with

router = APIRouter()


def newer(here: Service, id: str, last: int) -> tuple[bool, list[StoredEvent]]:
    """Whether the session is there, and its events behind `last`. While the database is away nothing new is known."""
    try:
        with here.database.read() as transaction:
            found = sessions.events(transaction, id, last)
            return bool(found) or sessions.exists(transaction, id), found
    except Unavailable:
        return True, []


def seen(id: str, here: Here, owner: Owner) -> None:
    """Before the stream begins: later, a fault could not be told by a status."""
    with here.database.read() as transaction:
        sessions.load(transaction, owner, id)


@router.get("/v1/sessions/{id}/events", response_class=EventSourceResponse, dependencies=[Depends(seen)])
async def events(
    id: str, here: Here, last: Annotated[int, Header(alias="Last-Event-ID", ge=0, le=MOST_EVENTS)] = 0
) -> AsyncIterator[ServerSentEvent]:
    while True:
        count = here.changes.count
        there, found = await asyncio.to_thread(newer, here, id, last)
        for event in found:
            last = event.id
            yield ServerSentEvent(data=event.data, event=event.kind, id=str(event.id))
        if not there:
            return
        await here.changes.of_session(id, last, count, LOOK_S)
