"""Every fault has one shape, schemas.ErrorView."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omr_ray.dialogue.session import UnknownRound
from omr_ray.serving.schemas import ErrorDetail, ErrorView
from omr_ray.serving.store.access import TooMany
from omr_ray.serving.store.database import Conflict
from omr_ray.serving.store.sessions import NotFound
from omr_ray.types import FULL, NoSpace, Unavailable, UserError
from omr_ray.vlm.templates import clean

logger = logging.getLogger(__name__)

AWAY_S = 2  # after which it is worth asking again
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """What a route does not do, with the status that says so."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers

    def view(self) -> ErrorView:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorView(error=ErrorDetail(message=str(self), type=kind, param=self.param, code=self.code))

    def response(self) -> JSONResponse:
        return JSONResponse(self.view().model_dump(), status_code=self.status, headers=self.headers)


def refusal_of(error: Exception) -> Refused:
    """What a client is told of a fault. Of one that is ours, it is told nothing, and the log everything."""
    match error:
        case Refused():
            return error
        case NotFound():
            return Refused(404, f"there is no {error}", code="not_found")
        case UnknownRound():
            return Refused(404, str(error), code="not_found")
        case NoSpace():
            return _no_space(error)
        case Unavailable():
            logger.error("a request could not be carried out", exc_info=error)
            message = "a part of the service is away for the moment; send the request again, with the same Idempotency-Key if it had one"
            return Refused(503, message, code="unavailable", headers={"Retry-After": str(AWAY_S)})
        case UserError():
            return Refused(400, str(error), code="not_allowed")
        case Conflict():
            return Refused(422, "this Idempotency-Key came with another request", code="idempotency_key_reused")
        case TooMany():
            return Refused(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": str(error.retry_after_s)})
        case OSError() if error.errno in FULL:
            return _no_space(error)
        case HTTPException() if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:  # an upload that is parsed
            return _no_space(error)
        case HTTPException():
            return Refused(error.status_code, str(error.detail), code="http_error", headers=dict(error.headers or {}))
        case RequestValidationError():
            first = error.errors()[0]
            param = clean(".".join(map(str, first["loc"][1:])))[:200]  # the name of an unknown field is the client's own
            return Refused(422, clean(str(first["msg"]))[:500], code="invalid_value", param=param or None)
    logger.error("a request failed", exc_info=error)
    return Refused(500, "internal error; try again", code="internal")


def _no_space(error: Exception) -> Refused:
    logger.error("there is no space left", exc_info=error)
    message = "the service has no space left to keep this; nothing of it was kept: send it again when its operator has made room"
    return Refused(507, message, code="no_space")


def add_errors(api: FastAPI) -> None:
    def answer(_: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).response()

    for kind in (Refused, NotFound, UserError, Conflict, TooMany, OSError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, answer)


class OneShape:
    """Gives the refusals of the framework itself (a body that is too large, a foreign host) the shape: it writes them as plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain: list[int] = []  # the status of an answer that is replaced
        said = b""

        async def shaped(message: Message) -> None:
            nonlocal said
            begins = message["type"] == "http.response.start" and message["status"] >= 400
            if begins and Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain"):
                plain.append(message["status"])
                return
            if not plain:
                await send(message)
                return
            said += message.get("body", b"")
            if not message.get("more_body"):
                await Refused(plain[0], said.decode(), code="http_error").response()(scope, receive, send)

        await self._app(scope, receive, shaped if scope["type"] == "http" else send)
