"""Aspect-ratio buckets: a few sizes of about one area, so that images of one batch agree and little of each is cut off.

After SDXL (arXiv:2307.01952, section 2.3); the model is told what was done to an image (its section 2.2).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]  # height, width, in pixels


def bucket_sizes(side: int, multiple: int, max_ratio: float) -> list[Size]:
    """All (height, width) with sides that divide by `multiple`, the longer at most `max_ratio` times the shorter, and an
    area of at most side * side and at least nine tenths of it; by height.

    Example: bucket_sizes(512, 128, 2.0) == [(384, 640), (512, 512), (640, 384)]
    """
    found = set()
    for short in range(multiple, side + 1, multiple):
        long = min(side * side // short, int(short * max_ratio)) // multiple * multiple
        if long >= short and short * long >= 0.9 * side * side:
            found |= {(short, long), (long, short)}
    return sorted(found)


def nearest_bucket(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The bucket whose ratio of sides is nearest to the image's, in logarithm."""
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - math.log(height / width)), size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """An image brought to a bucket, and what SDXL is told of it."""

    pixels: np.ndarray  # u8 [H W 3]
    conditioning: tuple[int, int, int, int, int, int]  # original height and width, crop from the top and left, target height and width


def fit(content: bytes, size: Size) -> Fitted:
    """Decode, scale until the bucket is covered, and cut the middle out."""
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    factor = max(size[0] / image.height, size[1] / image.width)
    height, width = max(size[0], round(image.height * factor)), max(size[1], round(image.width * factor))
    scaled = image if (height, width) == (image.height, image.width) else image.resize((width, height), Image.Resampling.LANCZOS)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    pixels = np.asarray(scaled)[top : top + size[0], left : left + size[1]]
    return Fitted(pixels=pixels, conditioning=(image.height, image.width, top, left, *size))
