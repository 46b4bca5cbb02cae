"""The routes of /v1: each asks the store in one transaction, and lets Session say what is allowed. See schemas.py."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import text
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from omr_ray import __version__
from omr_ray.config.serve import ServeConfig
from omr_ray.serving import schemas as s
from omr_ray.serving.adapters import listed
from omr_ray.serving.pages.pages import add_pages
from omr_ray.serving.pictures import PictureStore, read_upload, to_png
from omr_ray.serving.store import access, sessions, votes
from omr_ray.serving.store.database import Conflict, Database, Once
from omr_ray.serving.store.sessions import Kept, NotFound, round_of
from omr_ray.types import UserError

POLL_S = 0.1
LOCAL = "local"  # owner of everything where no keys are asked for


class Refused(Exception):
    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    config: ServeConfig
    database: Database
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


Owner = Annotated[str, Depends(owner)]
Here = Annotated[Service, Depends(service)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255, pattern=r"^[\x21-\x7e]+$")]


def create_api(config: ServeConfig, ready: Callable[[], Awaitable[bool]]) -> FastAPI:
    api = FastAPI(title="omr_ray", version=__version__, max_body_size=config.limits.body_bytes, docs_url=None, redoc_url=None)
    api.state.service = Service(config=config, database=Database(config.database), pictures=PictureStore(config.images))
    if not config.http.keys_required:  # else a page could reach us under a name of its own that leads here
        api.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    _add_errors(api)
    _add_health(api, ready)
    _add_sessions(api)
    _add_images(api, config)
    _add_judgements(api)
    add_pages(api)
    return api


# -- errors, health ------------------------------------------------------------------------------------------------------


def _error(status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    view = s.ErrorView(error=s.ErrorDetail(message=message, type=kind, param=param, code=code))
    return JSONResponse(view.model_dump(), status_code=status, headers=headers)


def _add_errors(api: FastAPI) -> None:
    api.add_exception_handler(NotFound, lambda _, error: _error(404, f"there is no {error}", code="not_found"))
    api.add_exception_handler(UserError, lambda _, error: _error(400, str(error), code="not_allowed"))
    api.add_exception_handler(
        Conflict, lambda _, error: _error(422, "this Idempotency-Key came with another request", code="idempotency_key_reused")
    )
    api.add_exception_handler(Exception, lambda _, error: _error(500, "internal error; try again", code="internal"))

    @api.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> Response:
        return _error(error.status, str(error), code=error.code, param=error.param, headers=error.headers)

    @api.exception_handler(access.TooMany)
    def too_many(_: Request, error: access.TooMany) -> Response:
        return _error(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": str(error.retry_after_s)})

    @api.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), code="http_error", headers=dict(error.headers or {}))

    @api.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, str(first["msg"]), code="invalid_value", param=".".join(map(str, first["loc"][1:])) or None)


def _add_health(api: FastAPI, ready: Callable[[], Awaitable[bool]]) -> None:
    @api.get("/health")
    @api.get("/v2/health/live")
    def live() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/v2/health/ready")
    async def is_ready(here: Here) -> Response:
        """The store answers, and a process that has painted an image does."""
        try:
            with here.database.read() as transaction:
                transaction.execute(text("SELECT 1"))
            await ready()
        except Exception:
            return _error(503, "not ready", code="not_ready")
        return JSONResponse({"status": "ok"})


# -- sessions ------------------------------------------------------------------------------------------------------------


def view(kept: Kept) -> s.SessionView:
    return s.SessionView.of(kept.session, title=kept.title, created_at=kept.created_at, last_event=kept.last_event)


def once(request: Request, owner: str, key: str | None, body: s.Schema) -> Once | None:
    if key is None:
        return None
    told = f"{request.method} {request.url.path}\0{body.model_dump_json(exclude_unset=True)}"
    return Once(owner=owner, key=key, fingerprint=hashlib.sha256(told.encode("utf-8", "replace")).hexdigest())


def _add_sessions(api: FastAPI) -> None:
    @api.post("/v1/sessions", status_code=201)
    def create(request: Request, body: s.NewSession, here: Here, owner: Owner, key: Key = None) -> s.SessionView:
        def work(transaction: Any) -> dict[str, Any]:
            access.count_request(transaction, owner, per_minute=here.config.limits.requests_per_minute)
            return view(sessions.create(transaction, owner, body.title)).model_dump(mode="json")

        return s.SessionView.model_validate(here.database.once(once(request, owner, key, body), work)[0])

    @api.get("/v1/sessions")
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

    @api.get("/v1/sessions/{id}")
    def get(id: str, here: Here, owner: Owner) -> s.SessionView:
        with here.database.read() as transaction:
            return view(sessions.load(transaction, owner, id))

    @api.delete("/v1/sessions/{id}")
    def delete(id: str, here: Here, owner: Owner) -> s.Deleted:
        with here.database.write() as transaction:
            sessions.remove(transaction, owner, id)
        return s.Deleted(id=id)

    @api.post("/v1/sessions/{id}/rounds", status_code=202)
    def start(id: str, request: Request, body: s.NewRound, here: Here, owner: Owner, key: Key = None) -> s.RoundView:
        digest = _adapter(here, owner, body.adapter)
        options = body.model_dump(include={"answer", "mode", "modality", "adapter"})
        strength = here.config.painting.strength if body.strength is None else body.strength
        seed = secrets.randbits(31) if body.seed is None else body.seed

        def work(transaction: Any) -> dict[str, Any]:
            limits = here.config.limits
            access.count_request(
                transaction, owner, per_minute=limits.requests_per_minute, rounds=1, concurrent_rounds=limits.concurrent_rounds
            )

            def grow(session: Any) -> Any:
                session = session.branch(body.parent) if "parent" in body.model_fields_set else session
                return session.start(body.utterance, seed=seed, strength=strength, **options)

            kept = sessions.change(transaction, id, grow, owner=owner, adapter_sha256=digest)
            return s.RoundView.of(kept.session.rounds[-1]).model_dump(mode="json")

        return s.RoundView.model_validate(here.database.once(once(request, owner, key, body), work)[0])

    @api.get("/v1/sessions/{id}/rounds/{n}")
    def round_(id: str, n: s.Number, here: Here, owner: Owner) -> s.RoundView:
        with here.database.read() as transaction:
            session = sessions.load(transaction, owner, id).session
        if n > len(session.rounds):
            raise NotFound(f"round {n}")
        return s.RoundView.of(session.round(n))

    def changed(here: Service, owner: str, id: str, rule: Any) -> Kept:
        with here.database.write() as transaction:
            return sessions.change(transaction, id, rule, owner=owner)

    @api.post("/v1/sessions/{id}/rounds/{n}/cancel")
    def cancel(id: str, n: s.Number, here: Here, owner: Owner) -> s.RoundView:
        return s.RoundView.of(changed(here, owner, id, lambda session: session.cancel(n)).session.round(n))

    @api.post("/v1/sessions/{id}/rounds/{n}/skip")
    def skip(id: str, n: s.Number, here: Here, owner: Owner) -> s.RoundView:
        return s.RoundView.of(changed(here, owner, id, lambda session: session.skip(n)).session.round(n))

    @api.post("/v1/sessions/{id}/undo")
    def undo(id: str, here: Here, owner: Owner) -> s.SessionView:
        return view(changed(here, owner, id, lambda session: session.undo()))

    @api.post("/v1/sessions/{id}/branch")
    def branch(id: str, body: s.Branch, here: Here, owner: Owner) -> s.SessionView:
        return view(changed(here, owner, id, lambda session: session.branch(body.round)))

    @api.get("/v1/sessions/{id}/compare")
    def compare(id: str, one: s.Number, other: s.Number, here: Here, owner: Owner) -> s.DifferenceView:
        with here.database.read() as transaction:
            session = sessions.load(transaction, owner, id).session
        return s.DifferenceView.of(session.round(one), session.round(other), session.compare(one, other))

    def seen(id: str, here: Here, owner: Owner) -> None:
        """Before the stream begins: later, a fault could not be told by a status."""
        with here.database.read() as transaction:
            sessions.load(transaction, owner, id)

    @api.get("/v1/sessions/{id}/events", response_class=EventSourceResponse, dependencies=[Depends(seen)])
    async def events(id: str, here: Here, last: Annotated[int, Header(alias="Last-Event-ID", ge=0)] = 0) -> AsyncIterator[ServerSentEvent]:
        def newer(last: int) -> tuple[bool, list[Any]]:
            with here.database.read() as transaction:
                found = sessions.events(transaction, id, last)
                return bool(found) or sessions.exists(transaction, id), found

        while True:
            there, found = await asyncio.to_thread(newer, last)
            for event in found:
                last = event.id
                yield ServerSentEvent(data=event.data, event=event.kind, id=str(event.id))
            if not there:
                return
            await asyncio.sleep(POLL_S)


def _adapter(here: Service, owner: str, id: str | None) -> str | None:
    """The hash of an adapter that the owner may use."""
    if id is None:
        return None
    known = {adapter.id: adapter.sha256 for adapter in listed(here.config.adapters, owner)}
    if id not in known:
        raise Refused(404, f"there is no adapter {id!r}; /v1/adapters lists yours", code="adapter_not_found", param="adapter")
    return known[id]


# -- images, votes -------------------------------------------------------------------------------------------------------


def _add_images(api: FastAPI, config: ServeConfig) -> None:
    @api.get("/v1/images/{address}")
    def image(address: str, here: Here, owner: Owner) -> Response:
        with here.database.read() as transaction:
            row, _ = sessions.shown_in(transaction, owner, address)
            recipe = None if row is None else _recipe(here.config, transaction, owner, row)
        try:
            content = to_png(here.pictures.get(address).image, recipe)
        except FileNotFoundError:
            raise NotFound(f"image {address!r:.80}") from None
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=31536000, immutable"})

    @api.post("/v1/restore", max_body_size=config.limits.image_bytes)
    def restore(image: UploadFile, here: Here, owner: Owner) -> s.Restored:
        _, recipe = read_upload(image.file.read(), most_pixels=here.config.limits.image_pixels)
        if recipe is None:
            raise UserError("the image carries no recipe; give a PNG that was downloaded here, unchanged")
        adapters = {adapter.id: adapter.sha256 for adapter in listed(here.config.adapters, owner)}
        same = recipe.adapter is None or adapters.get(recipe.adapter) == recipe.adapter_sha256
        with here.database.read() as transaction:
            try:
                round_ = sessions.load(transaction, owner, recipe.session).session.round(recipe.round)
            except (NotFound, UserError):
                return s.Restored(recipe=recipe, session=None, round=None, same_adapter=same)
        return s.Restored(recipe=recipe, session=recipe.session, round=s.RoundView.of(round_), same_adapter=same)

    @api.get("/v1/adapters")
    def adapters(here: Here, owner: Owner) -> s.AdapterList:
        return s.AdapterList(data=listed(here.config.adapters, owner))


def _recipe(config: ServeConfig, transaction: Any, owner: str, row: Any) -> s.Recipe:
    round_ = round_of(row)
    before = sessions.load(transaction, owner, row.session_id).session.images_before(row.id)
    return s.Recipe(
        session=row.session_id,
        round=row.id,
        utterance=round_.said[:4000],
        prompt=(round_.prompt or "")[:4000],
        seed=round_.seed,
        strength=round_.strength,
        mode=round_.mode,
        parent_image=before[-1] if before and round_.mode == "edit" else None,
        adapter=round_.adapter,
        adapter_sha256=row.adapter_sha256,
        model=config.model.path if config.model.kind == "diffusers" else "atelier",
    )


def _add_judgements(api: FastAPI) -> None:
    def vote_view(vote: Any) -> s.VoteView:
        return s.VoteView(id=vote.id, left=vote.left, right=vote.right, choice=vote.choice, created_at=int(vote.created_at))

    @api.post("/v1/sessions/{id}/votes", status_code=201)
    def vote(id: str, request: Request, body: s.NewVote, here: Here, owner: Owner, key: Key = None) -> s.VoteView:
        def work(transaction: Any) -> dict[str, Any]:
            return vote_view(votes.vote(transaction, owner, id, **body.model_dump())).model_dump(mode="json")

        return s.VoteView.model_validate(here.database.once(once(request, owner, key, body), work)[0])

    @api.get("/v1/sessions/{id}/votes")
    def list_votes(id: str, here: Here, owner: Owner) -> s.VoteList:
        with here.database.read() as transaction:
            return s.VoteList(data=tuple(map(vote_view, votes.votes(transaction, owner, id))))

    @api.get("/v1/annotations/next", responses={204: {"description": "all pairs are judged"}}, response_model=s.PairView)
    def next_(here: Here, owner: Owner) -> Any:
        with here.database.read() as transaction:
            pair, done, remaining = votes.next_pair(transaction, owner)
        if pair is None:
            return Response(status_code=204)
        return s.PairView(id=pair.id, prompt=pair.prompt, left=pair.left, right=pair.right, done=done, remaining=remaining)

    def annotation_view(found: Any, pair: Any) -> s.AnnotationView:
        shown = {"prompt": pair.prompt, "left": pair.left, "right": pair.right, "created_at": int(found.created_at)}
        return s.AnnotationView(pair=pair.id, choice=found.choice, seconds=found.seconds, **shown)

    @api.post("/v1/annotations", status_code=201)
    def annotate(body: s.NewAnnotation, here: Here, owner: Owner) -> s.AnnotationView:
        with here.database.write() as transaction:
            made = votes.annotate(transaction, owner, body.pair, choice=body.choice, seconds=body.seconds)
        return annotation_view(*made)

    @api.get("/v1/annotations/mine")
    def mine(here: Here, owner: Owner) -> s.AnnotationList:
        with here.database.read() as transaction:
            return s.AnnotationList(data=tuple(annotation_view(*found) for found in votes.annotated(transaction, owner)))
