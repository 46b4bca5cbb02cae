"""Rounds of a session: started, looked at, cancelled, their question skipped."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request

from omr_ray.serving import schemas as s
from omr_ray.serving.routes.adapters import permitted
from omr_ray.serving.routes.caller import Here, Key, Owner, once
from omr_ray.serving.routes.sessions import changed
from omr_ray.serving.store import access, sessions

router = APIRouter(prefix="/v1/sessions/{id}/rounds")


@router.post("", status_code=202)
def start(id: str, request: Request, body: s.NewRound, here: Here, owner: Owner, key: Key = None) -> s.RoundView:
    digest = permitted(here, owner, body.adapter)
    options = body.model_dump(include={"answer", "mode", "modality", "adapter"})
    strength = here.config.painting.strength if body.strength is None else body.strength
    seed = secrets.randbits(31) if body.seed is None else body.seed

    def grow(session: Any) -> Any:
        session = session.branch(body.parent) if "parent" in body.model_fields_set else session
        return session.start(body.utterance, seed=seed, strength=strength, **options)

    def work(transaction: Any) -> dict[str, Any]:
        limits = here.config.limits
        access.count_request(
            transaction, owner, per_minute=limits.requests_per_minute, rounds=1, concurrent_rounds=limits.concurrent_rounds
        )
        kept = sessions.change(transaction, id, grow, owner=owner, adapter_sha256=digest)
        return s.RoundView.of(kept.session.rounds[-1]).model_dump(mode="json")

    return s.RoundView.model_validate(here.database.once(once(request, owner, key, body), work)[0])


@router.get("/{n}")
def get(id: str, n: s.Number, here: Here, owner: Owner) -> s.RoundView:
    with here.database.read() as transaction:
        return s.RoundView.of(sessions.load(transaction, owner, id).session.round(n))


@router.post("/{n}/cancel")
def cancel(id: str, n: s.Number, here: Here, owner: Owner) -> s.RoundView:
    return s.RoundView.of(changed(here, owner, id, lambda session: session.cancel(n)).session.round(n))


@router.post("/{n}/skip")
def skip(id: str, n: s.Number, here: Here, owner: Owner) -> s.RoundView:
    return s.RoundView.of(changed(here, owner, id, lambda session: session.skip(n)).session.round(n))
