"""Pictures by content: an address is the SHA-256 of pixels and latents. PNG beside safetensors, here or in a bucket."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, PngImagePlugin
from pydantic import ValidationError
from safetensors.numpy import load, save

from omr_ray.data.store import Folder
from omr_ray.dialogue.engine import Picture
from omr_ray.serving.schemas import ADDRESS, Recipe
from omr_ray.types import Unavailable, UserError

CHUNK = "omr_ray"  # of a PNG, holds its recipe
FORMATS = ("PNG", "JPEG", "WEBP")
Format: TypeAlias = Literal["png", "jpeg", "webp"]


class PictureStore:
    """As dialogue.engine.Pictures. Raises UserError for a place that cannot be one."""

    def __init__(self, path: str) -> None:
        self._folder = Folder(path)

    def put(self, picture: Picture) -> str:
        """Raises NoSpace and Unavailable; nothing of the picture is kept then."""
        address = address_of(picture)
        name = f"{address[:2]}/{address}"
        try:
            if not self._folder.exists(f"{name}.png"):
                files = {f"{name}.png": to_png(picture.image)}  # comes last: where it is, all is
                if picture.latents is not None:
                    files = {f"{name}.safetensors": save({"latents": np.ascontiguousarray(picture.latents)})} | files
                self._write(files)
        except Unavailable:
            raise
        except UserError as error:
            raise Unavailable(str(error)) from None
        return address

    def get(self, address: str) -> Picture:
        """Raises FileNotFoundError."""
        if not re.fullmatch(ADDRESS, address):
            raise FileNotFoundError(address)
        name = f"{address[:2]}/{address}"
        with Image.open(io.BytesIO(self._folder.read(f"{name}.png"))) as opened:
            image = np.array(opened.convert("RGB"))
        latents = f"{name}.safetensors"
        return Picture(image=image, latents=load(self._folder.read(latents))["latents"] if self._folder.exists(latents) else None)

    def _write(self, files: Mapping[str, bytes]) -> None:
        """All or none, in order. Two processes may write the same picture at once: each under names of its own, then they are moved."""
        parts = {name: f"{name}.{uuid.uuid4().hex}" for name in files}
        try:
            for name, content in files.items():
                self._folder.write(parts[name], content)
            for name, part in parts.items():
                self._folder.move(part, name)
        except UserError:
            for part in parts.values():
                with suppress(UserError):
                    self._folder.delete(part)
            raise


def address_of(picture: Picture) -> str:
    digest = hashlib.sha256(repr(picture.image.shape).encode() + np.ascontiguousarray(picture.image).tobytes())
    if picture.latents is not None:
        digest.update(np.ascontiguousarray(picture.latents).tobytes())
    return digest.hexdigest()


def to_png(image: np.ndarray, recipe: Recipe | None = None) -> bytes:
    """u8 [H W 3]."""
    chunks = PngImagePlugin.PngInfo()
    if recipe is not None:
        chunks.add_itxt(CHUNK, recipe.model_dump_json())
    written = io.BytesIO()
    Image.fromarray(image).save(written, "PNG", pnginfo=chunks)
    return written.getvalue()


def encoded(image: np.ndarray, format: Format, *, quality: int = 100, recipe: Recipe | None = None) -> bytes:
    """u8 [H W 3]. Only a PNG carries the recipe, and only the others look at `quality`, 0 to 100."""
    if format == "png":
        return to_png(image, recipe)
    written = io.BytesIO()
    Image.fromarray(image).save(written, format.upper(), quality=quality)
    return written.getvalue()


def to_base64(image: np.ndarray) -> str:
    return base64.b64encode(to_png(image)).decode()


def read_upload(content: bytes, *, most_pixels: int) -> tuple[np.ndarray, Recipe | None]:
    """An image that a user sent, u8 [H W 3], and its recipe. Raises UserError; its pixels are counted before it is opened."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > most_pixels:
                raise UserError(f"an image has at most {most_pixels} pixels, got {opened.width} x {opened.height}; make it smaller")
            image = np.array(opened.convert("RGB"))
            told = getattr(opened, "text", {}).get(CHUNK)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError("the file is no readable PNG, JPEG or WebP image; send another") from None
    try:
        return image, None if told is None else Recipe.model_validate_json(told)
    except ValidationError:
        return image, None
