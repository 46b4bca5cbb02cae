"""Sessions: made, listed, looked at, deleted; and the head of their tree moved."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from omr_ray.serving import schemas as s
from omr_ray.serving.routes.caller import Here, Key, Owner, Service, once
from omr_ray.serving.store import access, sessions
from omr_ray.serving.store.sessions import Kept

router = APIRouter(prefix="/v1/sessions")


def view(kept: Kept) -> s.SessionView:
    return s.SessionView.of(kept.session, title=kept.title, created_at=kept.created_at, last_event=kept.last_event)


def changed(here: Service, owner: str, id: str, rule: Any) -> Kept:
    with here.database.write() as transaction:
        return sessions.change(transaction, id, rule, owner=owner)


@router.post("", status_code=201)
def create(request: Request, body: s.NewSession, here: Here, owner: Owner, key: Key = None) -> s.SessionView:
    def work(transaction: Any) -> dict[str, Any]:
        access.count_request(transaction, owner, per_minute=here.config.limits.requests_per_minute)
        return view(sessions.create(transaction, owner, body.title)).model_dump(mode="json")

    return s.SessionView.model_validate(here.database.once(once(request, owner, key, body), work)[0])


@router.get("")
def list_(here: Here, owner: Owner, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> s.SessionList:
    with here.database.read() as transaction:
        found = sessions.summaries(transaction, owner, after=after, limit=limit)
    data = [
        s.SessionSummary(
            id=summary.id,
            title=summary.title,
            created_at=int(summary.created_at),
            updated_at=int(summary.updated_at),
            rounds=summary.rounds,
            image=summary.image,
        )
        for summary in found[:limit]
    ]
    return s.SessionList(data=tuple(data), has_more=len(found) > limit)


@router.get("/{id}")
def get(id: str, here: Here, owner: Owner) -> s.SessionView:
    with here.database.read() as transaction:
        return view(sessions.load(transaction, owner, id))


@router.delete("/{id}")
def delete(id: str, here: Here, owner: Owner) -> s.Deleted:
    with here.database.write() as transaction:
        sessions.remove(transaction, owner, id)
    return s.Deleted(id=id)


@router.post("/{id}/undo")
def undo(id: str, here: Here, owner: Owner) -> s.SessionView:
    return view(changed(here, owner, id, lambda session: session.undo()))


@router.post("/{id}/branch")
def branch(id: str, body: s.Branch, here: Here, owner: Owner) -> s.SessionView:
    return view(changed(here, owner, id, lambda session: session.branch(body.round)))


@router.get("/{id}/compare")
def compare(id: str, one: s.Number, other: s.Number, here: Here, owner: Owner) -> s.DifferenceView:
    with here.database.read() as transaction:
        session = sessions.load(transaction, owner, id).session
    return s.DifferenceView.of(session.round(one), session.round(other), session.compare(one, other))
