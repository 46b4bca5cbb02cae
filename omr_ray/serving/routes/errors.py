"""Every fault has one shape, schemas.ErrorView."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from omr_ray.dialogue.session import UnknownRound
from omr_ray.serving.schemas import ErrorDetail, ErrorView
from omr_ray.serving.store import access
from omr_ray.serving.store.database import Conflict
from omr_ray.serving.store.sessions import NotFound
from omr_ray.types import UserError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """What a route does not do, with the status that says so."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers


def error_view(status: int, message: str, *, code: str, param: str | None = None) -> ErrorView:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorView(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def error_response(
    status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(error_view(status, message, code=code, param=param).model_dump(), status_code=status, headers=headers)


def add_errors(api: FastAPI) -> None:
    api.add_exception_handler(NotFound, lambda _, error: error_response(404, f"there is no {error}", code="not_found"))
    api.add_exception_handler(UnknownRound, lambda _, error: error_response(404, str(error), code="not_found"))
    api.add_exception_handler(UserError, lambda _, error: error_response(400, str(error), code="not_allowed"))
    api.add_exception_handler(
        Conflict, lambda _, error: error_response(422, "this Idempotency-Key came with another request", code="idempotency_key_reused")
    )
    api.add_exception_handler(Exception, lambda _, error: error_response(500, "internal error; try again", code="internal"))

    @api.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> Response:
        return error_response(error.status, str(error), code=error.code, param=error.param, headers=error.headers)

    @api.exception_handler(access.TooMany)
    def too_many(_: Request, error: access.TooMany) -> Response:
        return error_response(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": str(error.retry_after_s)})

    @api.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), code="http_error", headers=dict(error.headers or {}))

    @api.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return error_response(422, str(first["msg"]), code="invalid_value", param=".".join(map(str, first["loc"][1:])) or None)
