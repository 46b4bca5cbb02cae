"""What every route depends on: the service, whose key came with the request, and the request's name if it may be sent again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from omr_ray.config.serve import ServeConfig
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.routes.errors import Refused
from omr_ray.serving.schemas import Schema
from omr_ray.serving.store import access
from omr_ray.serving.store.changes import Changes
from omr_ray.serving.store.database import Database, Once

LOCAL = "local"  # owner of everything where no keys are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    config: ServeConfig
    database: Database
    changes: Changes
    pictures: PictureStore


def service(request: Request) -> Service:
    return request.app.state.service


def owner(request: Request, authorization: Annotated[str, Header()] = "") -> str:
    """Whose key came with the request. A page of another site, which a browser says the Origin of, is nobody's client."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Refused(403, "requests from pages of other sites are refused", code="foreign_origin")
    found = service(request)
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "bearer" and key:
        with found.database.read() as transaction:
            known = access.owner_of(transaction, key.strip())
        if known is not None:
            return known
    if found.config.http.keys_required:
        raise Refused(401, "give a valid key: Authorization: Bearer omr_...", code="invalid_api_key")
    return LOCAL


def operator(request: Request, owner: Annotated[str, Depends(owner)]) -> str:
    """An owner who may change what all use."""
    http = service(request).config.http
    if http.keys_required and owner not in http.operators:
        raise Refused(403, "this changes what all use: only those may whom http.operators of the config names", code="no_operator")
    return owner


Owner = Annotated[str, Depends(owner)]
Operator = Annotated[str, Depends(operator)]
Here = Annotated[Service, Depends(service)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255, pattern=r"^[\x21-\x7e]+$")]


def once(request: Request, owner: str, key: str | None, body: Schema) -> Once | None:
    if key is None:
        return None
    told = f"{request.method} {request.url.path}\0{body.model_dump_json(exclude_unset=True)}"
    return Once(owner=owner, key=key, fingerprint=hashlib.sha256(told.encode("utf-8", "replace")).hexdigest())
