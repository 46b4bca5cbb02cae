"""The adapters that a caller may paint with."""

from __future__ import annotations

from fastapi import APIRouter

from omr_ray.serving.adapters import listed
from omr_ray.serving.routes.caller import Here, Owner, Service
from omr_ray.serving.routes.errors import Refused
from omr_ray.serving.schemas import AdapterList

router = APIRouter()


def permitted(here: Service, owner: str, id: str | None, param: str = "adapter") -> str | None:
    """The hash of an adapter that the owner may use. Raises Refused."""
    if id is None:
        return None
    known = {adapter.id: adapter.sha256 for adapter in listed(here.config.adapters, owner)}
    if id not in known:
        raise Refused(404, f"there is no adapter {id!r}; /v1/adapters lists yours", code="adapter_not_found", param=param)
    return known[id]


@router.get("/v1/adapters")
def adapters(here: Here, owner: Owner) -> AdapterList:
    return AdapterList(data=listed(here.config.adapters, owner))
