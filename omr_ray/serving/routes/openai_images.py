"""Images in the form of OpenAI's API (../openai_schemas.py): every request becomes rounds, as those of a dialogue are.

A client that goes away before its images are done cancels them, unless its request has an Idempotency-Key.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from omr_ray.config.serve import ServeConfig
from omr_ray.serving import openai_schemas as o
from omr_ray.serving.pictures import encoded, read_upload
from omr_ray.serving.routes.caller import Here, Key, Owner, Service, once
from omr_ray.serving.routes.errors import Refused, refusal_of
from omr_ray.serving.routes.images import recipe_of
from omr_ray.serving.routes.openai_checks import check
from omr_ray.serving.routes.orders import Order, followed, place
from omr_ray.serving.schemas import Recipe
from omr_ray.serving.store import sessions

PING_S = 10.0  # between signs of life in a stream where nothing happens


def openai_images_router(config: ServeConfig) -> APIRouter:
    router = APIRouter(prefix="/v1/images")
    router.post("/generations", response_model=o.ImagesAnswer)(generate)
    router.post("/edits", response_model=o.ImagesAnswer, max_body_size=config.limits.image_bytes)(edit)
    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A client that waits for its images."""

    here: Service
    owner: str
    request: Request
    asked: o.ImageSettings
    order: Order
    kind: Literal["image_generation", "image_edit"]
    kept: bool

    async def response(self) -> Response:
        if self.asked.stream:
            return StreamingResponse(self._stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        async with aclosing(followed(self.here, self.order, self.request.is_disconnected, kept=self.kept)) as looks:
            async for _ in looks:
                pass
        size, images = await asyncio.to_thread(self._images)
        answer = o.ImagesAnswer(created=self.order.created, data=images, output_format=self.asked.format, size=size)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._partial_images()) as partial_images:
                async for told in partial_images:
                    yield told
            size, [image] = await asyncio.to_thread(self._images)
            known = image.model_dump() | {"created_at": self.order.created, "output_format": self.asked.format, "size": size}
            yield _event(o.CompletedEvent(type=f"{self.kind}.completed", **known))  # type: ignore[arg-type]
        except Exception as error:
            yield format_sse_event(event="error", data_str=refusal_of(error).view().model_dump_json())

    async def _partial_images(self) -> AsyncGenerator[bytes, None]:
        """As many as were asked for, evenly spread over the steps; fewer where the image is done before they are."""
        wanted, sent, steps, pinged = self.asked.partial_images or 0, 0, 1, time.monotonic()
        async with aclosing(followed(self.here, self.order, self.request.is_disconnected, kept=self.kept)) as looks:
            async for events in looks:
                for event in events:
                    if event.kind == "progress":
                        steps = event.data["steps"]
                    elif event.kind == "preview" and event.data["step"] * (wanted + 1) // steps > sent and sent < wanted:
                        yield await asyncio.to_thread(self._partial_image, event.data["b64_json"], sent)
                        sent, pinged = sent + 1, time.monotonic()
                if time.monotonic() > pinged + PING_S:
                    pinged = time.monotonic()
                    yield KEEPALIVE_COMMENT

    def _partial_image(self, b64_json: str, index: int) -> bytes:
        content = base64.b64decode(b64_json)
        image, _ = read_upload(content, most_pixels=self.here.config.limits.image_pixels)
        shown = {"b64_json": self._encoded(image), "created_at": self.order.created, "output_format": self.asked.format}
        return _event(o.PartialEvent(type=f"{self.kind}.partial_image", partial_image_index=index, size=_size(image), **shown))  # type: ignore[arg-type]

    def _images(self) -> tuple[str, tuple[o.ImageView, ...]]:
        """Their size and themselves, in the order of their seeds."""
        config, id, found = self.here.config, self.order.session, []
        with self.here.database.read() as transaction:
            session = sessions.load(transaction, self.owner, id).session
            rounds = [session.round(number) for number in self.order.rounds]
            recipes = [recipe_of(config, transaction, self.owner, sessions.row(transaction, id, round_.id)) for round_ in rounds]
        for round_, recipe in zip(rounds, recipes, strict=True):
            image = self.here.pictures.get(round_.image or "").image
            known = {"revised_prompt": round_.prompt, "seed": round_.seed, "session_id": id, "round_id": round_.id}
            found.append(o.ImageView(b64_json=self._encoded(image, recipe), **known))
        return _size(image), tuple(found)

    def _encoded(self, image: np.ndarray, recipe: Recipe | None = None) -> str:
        quality = 100 if self.asked.output_compression is None else self.asked.output_compression
        return base64.b64encode(encoded(image, self.asked.format, quality=quality, recipe=recipe)).decode()


async def generate(request: Request, body: o.NewImages, here: Here, owner: Owner, key: Key = None) -> Response:
    check(body, here.config)
    order = await asyncio.to_thread(place, here, owner, body, None, once(request, owner, key, body))
    waiting = Waiting(here=here, owner=owner, request=request, asked=body, order=order, kind="image_generation", kept=key is not None)
    return await waiting.response()


async def edit(
    request: Request, body: Annotated[o.NewEdit, Form(media_type="multipart/form-data")], here: Here, owner: Owner, key: Key = None
) -> Response:
    check(body, here.config)
    given = [*([] if body.image is None else [body.image]), *body.images]
    if body.mask is not None:
        raise Refused(
            400, "an edit changes the whole image, a mask cannot be kept to; leave it out", code="unsupported_value", param="mask"
        )
    if len(given) != 1:
        raise Refused(400, f"one image is edited at a time, got {len(given)}; send one", code="invalid_value", param="image")
    content = await given[0].read()
    upload, _ = await asyncio.to_thread(read_upload, content, most_pixels=here.config.limits.image_pixels)
    said = body.model_dump(exclude={"image", "images", "mask"}, exclude_unset=True)
    asked = o.Edit(**said, image_sha256=hashlib.sha256(content).hexdigest())
    order = await asyncio.to_thread(place, here, owner, asked, upload, once(request, owner, key, asked))
    waiting = Waiting(here=here, owner=owner, request=request, asked=asked, order=order, kind="image_edit", kept=key is not None)
    return await waiting.response()


def _event(told: o.PartialEvent | o.CompletedEvent) -> bytes:
    return format_sse_event(event=told.type, data_str=told.model_dump_json())


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
