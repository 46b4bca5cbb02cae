"""Votes between rounds of a session (TDRI section 3.2.3), and annotations of pairs (TDRI section 4.1)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from omr_ray.serving import schemas as s
from omr_ray.serving.routes.caller import Here, Key, Owner, once
from omr_ray.serving.store import access, votes

router = APIRouter(prefix="/v1")


@router.post("/sessions/{id}/votes", status_code=201)
def vote(id: str, request: Request, body: s.NewVote, here: Here, owner: Owner, key: Key = None) -> s.VoteView:
    def work(transaction: Any) -> dict[str, Any]:
        access.count_request(transaction, owner, per_minute=here.config.limits.requests_per_minute)
        return _vote_view(votes.vote(transaction, owner, id, **body.model_dump())).model_dump(mode="json")

    return s.VoteView.model_validate(here.database.once(once(request, owner, key, body), work)[0])


@router.get("/sessions/{id}/votes")
def list_votes(id: str, here: Here, owner: Owner) -> s.VoteList:
    with here.database.read() as transaction:
        return s.VoteList(data=tuple(map(_vote_view, votes.votes(transaction, owner, id))))


@router.get("/annotations/next", responses={204: {"description": "all pairs are judged"}}, response_model=s.PairView)
def next_(here: Here, owner: Owner) -> Any:
    with here.database.read() as transaction:
        pair, done, remaining = votes.next_pair(transaction, owner)
    if pair is None:
        return Response(status_code=204)
    return s.PairView(id=pair.id, prompt=pair.prompt, left=pair.left, right=pair.right, done=done, remaining=remaining)


@router.post("/annotations", status_code=201)
def annotate(body: s.NewAnnotation, here: Here, owner: Owner) -> s.AnnotationView:
    with here.database.write() as transaction:
        access.count_request(transaction, owner, per_minute=here.config.limits.requests_per_minute)
        made = votes.annotate(transaction, owner, body.pair, choice=body.choice, seconds=body.seconds, notes=body.notes)
    return _annotation_view(*made)


@router.get("/annotations/mine")
def mine(here: Here, owner: Owner) -> s.AnnotationList:
    with here.database.read() as transaction:
        return s.AnnotationList(data=tuple(_annotation_view(*found) for found in votes.annotated(transaction, owner)))


def _vote_view(vote: Any) -> s.VoteView:
    return s.VoteView(id=vote.id, left=vote.left, right=vote.right, choice=vote.choice, created_at=int(vote.created_at))


def _annotation_view(found: Any, pair: Any) -> s.AnnotationView:
    shown = {"prompt": pair.prompt, "left": pair.left, "right": pair.right, "created_at": int(found.created_at)}
    return s.AnnotationView(pair=pair.id, choice=found.choice, seconds=found.seconds, notes=s.Notes.model_validate(found.notes), **shown)
