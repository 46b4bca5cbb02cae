"""The named dominant colors of a photograph's garment and background: k-means in CIELAB, and the nearest basic color."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.cluster.vq import kmeans2
from skimage.color import deltaE_ciede2000, rgb2lab

# The eleven basic color terms of English (Berlin and Kay, 1969), each with the sRGB values that span what it is said of.
BASIC = {
    "black": ("000000", "262626"),
    "white": ("ffffff", "ececec"),
    "gray": ("808080", "b4b4b4", "555555"),
    "red": ("d01f1f", "8b1a1a"),
    "orange": ("ff8c1a", "d9712b"),
    "yellow": ("ffe135", "d4b72e"),
    "green": ("2e8b3d", "6b8e23", "1f4f2b", "90d890"),
    "blue": ("1f4fbf", "6fa8dc", "1b2a56", "4a6a8a"),
    "purple": ("6a2c91", "9b72b0"),
    "pink": ("ffb6c8", "e75480"),
    "brown": ("6b4423", "a0785a", "d2b48c"),
}
SIDE = 32  # pixels a photograph is reduced to: colors, not edges
CLUSTERS = 5
RING = 3  # outer pixels of the 32, which show the background where anything does


def _lab(color: str) -> np.ndarray:
    return rgb2lab(np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)]]) / 255)[0]


_NAMES = [name for name, colors in BASIC.items() for _ in colors]
_LAB = np.stack([_lab(color) for colors in BASIC.values() for color in colors])  # [M 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Colors:
    """Example: Colors(garment="blue", background="white")"""

    garment: str
    background: str


def name_of(lab: np.ndarray) -> str:
    """The basic color term nearest to a CIELAB color [3], by CIEDE2000."""
    return _NAMES[int(np.argmin(deltaE_ciede2000(np.broadcast_to(lab, _LAB.shape), _LAB)))]


def dominant_colors(image: bytes) -> Colors:
    """Colors of an encoded photograph that shows a garment in its middle.

    The background is the cluster that holds most of the outer ring. The garment is the one that holds most of the middle,
    the background's left out unless it fills nine tenths of it: then both have one color.
    """
    with Image.open(io.BytesIO(image)) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
    lab = rgb2lab(pixels).reshape(-1, 3)
    # The start is spread over the lightness, so that the same image gives the same clusters.
    start = lab[np.argsort(lab[:, 0], kind="stable")[np.linspace(0, len(lab) - 1, CLUSTERS).astype(int)]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an image of fewer colors leaves clusters empty
        centers, labels = kmeans2(lab, start, iter=10, minit="matrix", missing="warn")
    labels = labels.reshape(SIDE, SIDE)
    ring = np.ones((SIDE, SIDE), bool)
    ring[RING:-RING, RING:-RING] = False
    middle = labels[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].ravel()
    background = int(np.bincount(labels[ring], minlength=CLUSTERS).argmax())
    shares = np.bincount(middle, minlength=CLUSTERS) / middle.size
    if shares[background] < 0.9:
        shares[background] = 0
    return Colors(garment=name_of(centers[shares.argmax()]), background=name_of(centers[background]))
