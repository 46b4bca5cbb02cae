"""What keeps a row out of the data, by name (OMR section 4.2: too many style words, unclear images), and how an image is looked at."""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

# Words that ask for a rendering and not for a thing. Matched as whole words, case ignored.
STYLE_WORDS = (
    "4k", "8k", "16k", "artstation", "award winning", "bokeh", "breathtaking", "cgsociety", "cinematic", "concept art", "deviantart",
    "digital painting", "dramatic lighting", "elegant", "fine details", "hd", "hdr", "high definition", "high detail", "highly detailed",
    "hyperrealistic", "illustration", "insanely detailed", "intricate", "intricate details", "masterpiece", "matte", "octane",
    "octane render", "photorealistic", "professional", "ray tracing", "realistic", "render", "sharp focus", "smooth",
    "studio lighting", "trending", "trending on artstation", "uhd", "ultra detailed", "unreal engine", "volumetric lighting",
)  # fmt: skip
_STYLE = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(word) for word in sorted(STYLE_WORDS, key=len, reverse=True)) + r")(?!\w)")


class Rejected(Exception):
    """A row that does not enter the data. `reason` is the name it is counted under, the text says the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a row may be. Lengths in characters, sizes in pixels; sharpness as in `sharpness`.

    Example: Limits(max_prompt=2000, max_style_words=8, min_side=64, max_pixels=50_000_000, min_sharpness=0.0)
    """

    max_prompt: int
    max_style_words: int
    min_side: int
    max_pixels: int
    min_sharpness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image whose bytes were decoded once: it is whole, and this is its size and sharpness."""

    bytes: bytes
    width: int
    height: int
    sharpness: float


def clean_text(text: object, limits: Limits) -> str:
    """`text` in Unicode's composed form with single spaces. Raises Rejected."""
    if not isinstance(text, str):
        raise Rejected("text_missing", f"a text was expected, got {text!r:.60}")
    if len(text) > limits.max_prompt:
        raise Rejected("text_too_long", f"{len(text)} characters, at most {limits.max_prompt}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected("text_not_unicode", f"{text!r:.60}") from None
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if not text:
        raise Rejected("text_missing", "an empty text")
    return text


def clean_prompt(text: object, limits: Limits) -> str:
    """A text that is to be drawn: as `clean_text`, with few style words. Raises Rejected."""
    text = clean_text(text, limits)
    found = _STYLE.findall(text.lower())
    if len(found) > limits.max_style_words:
        raise Rejected("too_many_style_words", f"{len(found)}, at most {limits.max_style_words}: {', '.join(found)[:200]}")
    return text


def look(content: bytes, limits: Limits) -> Picture:
    """Decode an image, whole, and measure it. Raises Rejected; its size is read, and judged, before any pixel is."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise Rejected("image_too_large", f"{width} x {height} pixels, at most {limits.max_pixels} in all")
            if min(width, height) < limits.min_side:
                raise Rejected("image_too_small", f"{width} x {height} pixels, at least {limits.min_side} a side")
            gray = np.asarray(image.convert("L"), dtype=np.float32)
    except Image.DecompressionBombError:  # the library has a limit of its own
        raise Rejected("image_too_large", f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise Rejected("image_corrupt", " ".join(str(error).split())[:200]) from None
    sharp = sharpness(gray)
    if sharp < limits.min_sharpness:
        raise Rejected("image_blurred", f"sharpness {sharp:.2f}, at least {limits.min_sharpness}")
    return Picture(bytes=content, width=width, height=height, sharpness=sharp)


def sharpness(gray: np.ndarray) -> float:
    """Standard deviation of the Laplacian of an image f32 [H W] in 0..255: small where nothing has an edge.

    (Pech-Pacheco et al., ICPR 2000: the variance of the Laplacian.) The five-point stencil, borders left out.
    """
    inner = gray[1:-1, 1:-1]
    return float((gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner).std()) if inner.size else 0.0
