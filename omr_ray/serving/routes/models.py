"""The one model that paints here, in the form of OpenAI's API."""

from __future__ import annotations

import time

from fastapi import APIRouter

from omr_ray.serving.openai_schemas import ModelList, ModelView
from omr_ray.serving.routes.caller import Here, Owner
from omr_ray.serving.store.sessions import NotFound

router = APIRouter(prefix="/v1/models")
STARTED = int(time.time())


@router.get("")
def list_(here: Here, owner: Owner) -> ModelList:
    return ModelList(data=(ModelView(id=here.config.name, created=STARTED),))


@router.get("/{id}")
def get(id: str, here: Here, owner: Owner) -> ModelView:
    if id != here.config.name:
        raise NotFound(f"model {id!r:.80}")
    return ModelView(id=id, created=STARTED)
