"""Whether the service lives, and whether it can paint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from sqlalchemy import text

from omr_ray.serving.routes.caller import Here
from omr_ray.serving.routes.errors import Refused


def health_router(ready: Callable[[], Awaitable[bool]]) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    @router.get("/v2/health/live")
    def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/v2/health/ready")
    async def is_ready(here: Here) -> Response:
        """The store answers, and a process that has painted an image does."""
        try:
            with here.database.read() as transaction:
                transaction.execute(text("SELECT 1"))
            await ready()
        except Exception:
            return Refused(503, "not ready", code="not_ready").response()
        return JSONResponse({"status": "ok"})

    return router
