"""What the caller's votes have taught their adapter, and a way back."""

from __future__ import annotations

from fastapi import APIRouter

from omr_ray.serving.adapters import listed
from omr_ray.serving.routes.caller import Here, Owner
from omr_ray.serving.schemas import AdapterList, UpdateList, UpdateView
from omr_ray.serving.store import access
from omr_ray.serving.store import updates as store
from omr_ray.serving.versions import Versions

router = APIRouter(prefix="/v1/updates")


@router.get("")
def updates(here: Here, owner: Owner) -> UpdateList:
    """Newest first."""
    with here.database.read() as transaction:
        found = store.updates(transaction, store.own_adapter(owner))
    names = ("id", "adapter", "status", "message", "sha256", "figures")
    return UpdateList(data=tuple(UpdateView(**{n: getattr(one, n) for n in names}, created_at=int(one.created_at)) for one in found))


@router.post("/rollback")
def rollback(here: Here, owner: Owner) -> AdapterList:
    """Take the newest version out of use: the one before it, or the base, is in use again. The adapters that are left."""
    adapter = store.own_adapter(owner)
    with here.database.write() as transaction:
        access.count_request(transaction, owner, per_minute=here.config.limits.requests_per_minute)
        Versions(here.config.adapters).use(adapter, store.roll_back(transaction, adapter))
    return AdapterList(data=listed(here.config.adapters, owner))
