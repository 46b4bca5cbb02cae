"""Where the keypoints of each garment lie, in the garment's own frame (x to the right and y down, as in `render`).

Left and right are the viewer's. A coat's waist stands below its sleeves, which hide it above. A hat's shoulders are the
corners of its crown, and its waist is where the brim begins. Pairs of points carry the place, size and turn of every garment.
"""

from collections.abc import Mapping

KEYPOINTS = (
    "collar",
    "shoulder_left",
    "shoulder_right",
    "cuff_left",
    "cuff_right",
    "waist_left",
    "waist_right",
    "hem_left",
    "hem_right",
)

# A pair at (-x, y) and (x, y), by its right half; the collar stands in the middle.
_POINTS: dict[str, dict[str, tuple[float, float]]] = {
    "t-shirt": {"collar": (0.0, -0.78), "shoulder": (0.5, -0.72), "cuff": (0.86, -0.15), "waist": (0.5, 0.42), "hem": (0.5, 0.8)},
    "coat": {"collar": (0.0, -1.0), "shoulder": (0.48, -0.9), "cuff": (0.73, 0.37), "waist": (0.59, 0.5), "hem": (0.66, 1.0)},
    "dress": {"collar": (0.0, -0.74), "shoulder": (0.34, -1.0), "waist": (0.24, -0.1), "hem": (0.86, 1.0)},
    "skirt": {"waist": (0.4, -0.62), "hem": (0.95, 0.62)},
    "trousers": {"waist": (0.46, -1.0), "hem": (0.62, 1.0)},
    "shorts": {"waist": (0.62, -0.6), "hem": (0.86, 0.6)},
    "hat": {"shoulder": (0.46, -0.62), "waist": (0.54, 0.2), "hem": (1.02, 0.44)},
}


def garment_points(content: str) -> Mapping[str, tuple[float, float]]:
    """Name -> (x, y) of the keypoints that the garment `content` has; the names are among `KEYPOINTS`."""
    found = {}
    for name in KEYPOINTS:
        part, _, side = name.partition("_")
        if part in _POINTS[content]:
            x, y = _POINTS[content][part]
            found[name] = (-x if side == "left" else x, y)
    return found
