"""The part of the OpenAI Images API that is served, with `seed`, `strength` and `adapter` beside it (extra_body of their client).

POST /v1/images/generations   ImageRequest (JSON) -> Images, or a stream of image_generation.* events
POST /v1/images/edits         EditRequest (multipart) -> the same, image_edit.* events
GET  /v1/models               Models
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omr_ray.serving.schemas import ADAPTER, Schema, Seed

MOST_IMAGES = 4
EventType = Literal["image_generation.partial_image", "image_generation.completed", "image_edit.partial_image", "image_edit.completed"]


class ImageRequest(Schema):
    """Keys of the API that mean nothing here are accepted where they ask for what is done anyway."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int = Field(1, ge=1, le=MOST_IMAGES)
    size: str = "auto"
    quality: Literal["auto"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    output_format: Literal["png"] = "png"
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    user: str | None = Field(None, max_length=256)
    seed: Seed | None = None
    adapter: str | None = Field(None, pattern=ADAPTER)


class EditRequest(ImageRequest):
    """The fields beside the file `image`."""

    strength: float | None = Field(None, gt=0, le=1)


class ImageData(Schema):
    b64_json: str
    revised_prompt: str
    seed: int


class TokenDetails(Schema):
    text_tokens: int = 0
    image_tokens: int = 0


class Usage(Schema):
    """Nothing is billed by tokens here: they are zero, because clients read them."""

    total_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()


class Images(Schema):
    created: int
    data: tuple[ImageData, ...]
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    usage: Usage = Usage()


class PartialImage(Schema):
    type: EventType
    b64_json: str
    partial_image_index: int
    created_at: int
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"


class CompletedImage(Schema):
    type: EventType
    b64_json: str
    created_at: int
    size: str
    seed: int
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    usage: Usage = Usage()


class ModelView(Schema):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class Models(Schema):
    object: Literal["list"] = "list"
    data: tuple[ModelView, ...]
