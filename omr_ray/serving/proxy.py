"""Around Serve's HTTP server: what it has to say itself, because no process of ours has answered, has the one shape too.

Serve calls `middlewares` where the environment of the node says so: VARIABLE=VALUE.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omr_ray.serving.routes.errors import OneShape, Refused

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
VALUE = f"{__name__}:middlewares"
DIED = "the process that had this request has died; send the request again, with the same Idempotency-Key if it had one"


def middlewares() -> list[Middleware]:
    return [Middleware(OneShape), Middleware(Answered)]


class Answered:
    """Answers a request whose process died before it began to answer: Serve's server says nothing then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        await self._app(scope, receive, noted)
        if scope["type"] == "http" and not begun:
            await Refused(503, DIED, code="process_died", headers={"Retry-After": "2"}).response()(scope, receive, send)
