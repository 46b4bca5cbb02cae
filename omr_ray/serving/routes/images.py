"""Images, each with its recipe, and a dropped image's recipe read back."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response, UploadFile

from omr_ray.config.serve import ServeConfig
from omr_ray.serving import schemas as s
from omr_ray.serving.adapters import listed
from omr_ray.serving.pictures import read_upload, to_png
from omr_ray.serving.routes.caller import Here, Owner
from omr_ray.serving.store import sessions
from omr_ray.serving.store.sessions import NotFound, round_of
from omr_ray.types import UserError


def images_router(config: ServeConfig) -> APIRouter:
    router = APIRouter(prefix="/v1")
    router.get("/images/{address}")(image)
    router.post("/restore", max_body_size=config.limits.image_bytes)(restore)
    return router


def image(address: str, here: Here, owner: Owner) -> Response:
    with here.database.read() as transaction:
        row, _ = sessions.shown_in(transaction, owner, address)
        recipe = None if row is None else recipe_of(here.config, transaction, owner, row)
    try:
        content = to_png(here.pictures.get(address).image, recipe)
    except FileNotFoundError:
        raise NotFound(f"image {address!r:.80}") from None
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=31536000, immutable"})


def restore(image: UploadFile, here: Here, owner: Owner) -> s.Restored:
    _, recipe = read_upload(image.file.read(), most_pixels=here.config.limits.image_pixels)
    if recipe is None:
        raise UserError("the image carries no recipe; give a PNG that was downloaded here, unchanged")
    adapters = {adapter.id: adapter.sha256 for adapter in listed(here.config.adapters, owner)}
    same = recipe.adapter is None or adapters.get(recipe.adapter) == recipe.adapter_sha256
    with here.database.read() as transaction:
        try:
            round_ = sessions.load(transaction, owner, recipe.session).session.round(recipe.round)
        except (NotFound, UserError):
            return s.Restored(recipe=recipe, session=None, round=None, same_adapter=same)
    return s.Restored(recipe=recipe, session=recipe.session, round=s.RoundView.of(round_), same_adapter=same)


def recipe_of(config: ServeConfig, transaction: Any, owner: str, row: Any) -> s.Recipe:
    """Of a stored round with an image."""
    round_ = round_of(row)
    before = sessions.load(transaction, owner, row.session_id).session.images_before(row.id)
    return s.Recipe(
        session=row.session_id,
        round=row.id,
        utterance=round_.said[:4000],
        prompt=(round_.prompt or "")[:4000],
        seed=round_.seed,
        strength=round_.strength,
        mode=round_.mode,
        parent_image=before[-1] if before and round_.mode == "edit" else None,
        adapter=round_.adapter,
        adapter_sha256=row.adapter_sha256,
        model=config.model.path if config.model.kind == "diffusers" else "atelier",
    )
