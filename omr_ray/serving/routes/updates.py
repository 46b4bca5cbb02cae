"""What votes have taught the caller's adapter and the general one, and a way back for each."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from omr_ray.serving.adapters import listed
from omr_ray.serving.routes.caller import Here, Operator, Owner, Service
from omr_ray.serving.schemas import AdapterList, ErrorView, UpdateList, UpdateView
from omr_ray.serving.store import access
from omr_ray.serving.store import updates as store
from omr_ray.serving.versions import Versions

router = APIRouter(prefix="/v1/updates")
NOT_NOW: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorView, "description": "The adapter is being updated: wait until that has ended"},
    404: {"model": ErrorView, "description": "The base is in use: there is nothing to take back"},
}
NO_OPERATOR: dict[int | str, dict[str, Any]] = {403: {"model": ErrorView, "description": "The caller is no operator (`http.operators`)"}}


@router.get("")
def updates(here: Here, owner: Owner) -> UpdateList:
    """Those of the caller's own adapter, newest first."""
    return _updates(here, store.own_adapter(owner))


@router.get("/general")
def general_updates(here: Here, owner: Owner) -> UpdateList:
    """Those of the adapter that learns from everybody's votes, newest first."""
    return _updates(here, store.GENERAL)


@router.post("/rollback", responses=NOT_NOW)
def rollback(here: Here, owner: Owner) -> AdapterList:
    """Take the newest version of the caller's own adapter out of use: the one before it, or the base, is in use again.

    The adapters that the caller has then.
    """
    return _rolled_back(here, owner, store.own_adapter(owner))


@router.post("/general/rollback", responses=NOT_NOW | NO_OPERATOR)
def roll_back_general(here: Here, operator: Operator) -> AdapterList:
    """Take the newest version of the general adapter, which everybody may use, out of use: for operators.

    The one before it, or the base, is in use again from the next round on; a round that was asked for with the newest is still
    painted with it. The adapters that the caller has then.
    """
    return _rolled_back(here, operator, store.GENERAL)


def _updates(here: Service, adapter: str) -> UpdateList:
    with here.database.read() as transaction:
        found = store.updates(transaction, adapter)
    names = ("id", "adapter", "status", "message", "sha256", "figures")
    return UpdateList(data=tuple(UpdateView(**{n: getattr(one, n) for n in names}, created_at=int(one.created_at)) for one in found))


def _rolled_back(here: Service, owner: str, adapter: str) -> AdapterList:
    with here.database.write() as transaction:
        access.count_request(transaction, owner, per_minute=here.config.limits.requests_per_minute)
        Versions(here.config.adapters).use(adapter, store.roll_back(transaction, adapter))
    return AdapterList(data=listed(here.config.adapters, owner))
