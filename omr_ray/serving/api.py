"""The HTTP service: the routes of `routes/`, put together. What goes over them is in schemas.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from omr_ray import __version__
from omr_ray.config.serve import ServeConfig
from omr_ray.serving.metrics import Measured, Metrics
from omr_ray.serving.pages.pages import add_pages
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.routes import adapters, events, judgements, models, rounds, sessions, updates
from omr_ray.serving.routes.caller import Service
from omr_ray.serving.routes.errors import OneShape, add_errors
from omr_ray.serving.routes.health import health_router
from omr_ray.serving.routes.images import images_router
from omr_ray.serving.routes.metrics import metrics_router
from omr_ray.serving.routes.openai_images import openai_images_router
from omr_ray.serving.store.changes import Changes
from omr_ray.serving.store.database import Database


class Api(FastAPI):
    def __init__(self, metrics: Metrics, **options: Any) -> None:
        super().__init__(**options)
        self._metrics = metrics

    def build_middleware_stack(self) -> ASGIApp:
        """Around all of the framework's own: so what it refuses itself counts too, and has the shape of an error."""
        return Measured(OneShape(super().build_middleware_stack()), self._metrics)


def create_api(config: ServeConfig, ready: Callable[[], Awaitable[bool]]) -> FastAPI:
    database = Database(config.database)
    metrics = Metrics(database)
    api = Api(metrics, title="omr_ray", version=__version__, max_body_size=config.limits.body_bytes, docs_url=None, redoc_url=None)
    api.state.service = Service(config=config, database=database, changes=Changes(database), pictures=PictureStore(config.images))
    if not config.http.keys_required:  # else a page could reach us under a name of its own that leads here
        api.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    add_errors(api)
    api.include_router(health_router(ready))
    api.include_router(metrics_router(metrics))
    for subject in (sessions, rounds, events, adapters, judgements, updates, models):
        api.include_router(subject.router)
    api.include_router(images_router(config))
    api.include_router(openai_images_router(config))
    add_pages(api)
    return api
