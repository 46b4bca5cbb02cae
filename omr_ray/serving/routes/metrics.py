"""The figures of ../metrics.py, for whoever may use the service: where keys are required, Prometheus needs one too."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from omr_ray.serving.metrics import Metrics
from omr_ray.serving.routes.caller import Owner


def metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    def figures(owner: Owner) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
