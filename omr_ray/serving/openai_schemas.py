"""What goes over the routes that have the form of OpenAI's Images API, and what of it this service does.

    POST /v1/images/generations (JSON)   POST /v1/images/edits (multipart)   ImagesAnswer, or with `stream` server-sent events:
    image_generation.partial_image, image_edit.partial_image    PartialEvent
    image_generation.completed, image_edit.completed            CompletedEvent
    error                                                       schemas.ErrorView
    GET /v1/models                                              ModelList      GET /v1/models/{id}   ModelView

A field of theirs that is not here, or a value that cannot be honoured, is refused by name: nothing is passed over in silence.
Ours beside theirs: seed (of the first image; the others count on from it), adapter_id, and session_id with parent_round_id,
which say the prompt in a dialogue: there it is understood with what was said before, and the last image is edited.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import Field

from omr_ray.dialogue.session import LONGEST_UTTERANCE
from omr_ray.serving.pictures import Format
from omr_ray.serving.schemas import ADAPTER, Number, Schema, Seed

MOST_IMAGES = 10  # of one request


class ImageSettings(Schema):
    prompt: str = Field(max_length=LONGEST_UTTERANCE)
    model: str | None = Field(None, max_length=200)
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    size: str | None = Field(None, max_length=40, description="auto, or the one size that is painted here")
    quality: str | None = Field(None, max_length=40, description="auto")
    background: str | None = Field(None, max_length=40, description="auto or opaque")
    output_format: Format | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(None, description="quality of jpeg and webp; 100 if left out")
    response_format: str | None = Field(None, max_length=40, description="b64_json; see /v1/images/{address} for what has an address")
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: str | None = Field(None, max_length=512, description="not looked at: a key has one owner")
    seed: Seed | None = None
    negative_prompt: str | None = Field(None, max_length=LONGEST_UTTERANCE, description="refused: nothing here reads one")
    num_inference_steps: int | None = Field(None, description="the number of steps that are taken here")
    guidance_scale: float | None = Field(None, description="the scale that is used here")
    session_id: str | None = Field(None, max_length=64)
    parent_round_id: Number | None = Field(None, description="a done round of that session; the last one if left out")
    adapter_id: str | None = Field(None, pattern=ADAPTER)

    @property
    def count(self) -> int:
        return self.n or 1

    @property
    def format(self) -> Format:
        return self.output_format or "png"


class NewImages(ImageSettings):
    """Example: {"prompt": "a red dress", "n": 2, "seed": 7}"""

    moderation: str | None = Field(None, max_length=40, description="auto")


class NewEdit(ImageSettings):
    """A form. `image` is edited; one image is, so `image[]` takes one as well."""

    image: UploadFile | None = None
    images: list[UploadFile] = Field(default=[], alias="image[]")
    mask: UploadFile | None = Field(None, description="refused: an edit starts from the whole image")


class Edit(ImageSettings):
    """What is the same when an edit is sent again."""

    image_sha256: str


class ImageView(Schema):
    b64_json: str
    revised_prompt: str | None
    seed: int
    session_id: str
    round_id: int


class Details(Schema):
    image_tokens: Literal[0] = 0
    text_tokens: Literal[0] = 0


class Usage(Schema):
    """Nothing is charged by the token here, so none are counted."""

    input_tokens: Literal[0] = 0
    input_tokens_details: Details = Details()
    output_tokens: Literal[0] = 0
    output_tokens_details: Details = Details()
    total_tokens: Literal[0] = 0


class ImagesAnswer(Schema):
    created: int
    background: Literal["opaque"] = "opaque"
    data: tuple[ImageView, ...]
    output_format: Format
    quality: Literal["auto"] = "auto"
    size: str
    usage: Usage = Usage()


class PartialEvent(Schema):
    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Format
    partial_image_index: int
    quality: Literal["auto"] = "auto"
    size: str


class CompletedEvent(Schema):
    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Format
    quality: Literal["auto"] = "auto"
    size: str
    usage: Usage = Usage()
    revised_prompt: str | None
    seed: int
    session_id: str
    round_id: int


class ModelView(Schema):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["omr_ray"] = "omr_ray"


class ModelList(Schema):
    object: Literal["list"] = "list"
    data: tuple[ModelView, ...]
