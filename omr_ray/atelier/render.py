"""Draws a scene: 64x64 pixels, antialiased, with jitter of place, hue and light.

Garments are polygons in their own frame (x to the right and y down, both about -1..1). One affine
map per picture places them; it carries size, place and perspective (a compressed, sheared side view).
All jitter is drawn before anything depends on the scene, so one seed gives one arrangement: two
scenes drawn from equal generators differ only in what the scenes differ in, a consistent edit.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from omr_ray.atelier.keypoints import KEYPOINTS, garment_points
from omr_ray.atelier.world import Scene

_OVERSAMPLING = 4
_HUES = {  # hue in degrees, saturation, value
    "red": (357, 0.85, 0.85),
    "orange": (24, 0.95, 0.98),
    "yellow": (52, 0.85, 0.97),
    "green": (130, 0.75, 0.60),
    "blue": (216, 0.85, 0.85),
    "purple": (276, 0.68, 0.62),
    "pink": (330, 0.45, 0.98),
    "black": (220, 0.10, 0.13),
}
_LIGHT_COLORS = ("yellow", "pink", "orange")
_SCALE = {"small": 14.5, "medium": 20.5, "large": 27.5}  # half height in pixels of a 64-pixel image
_CREAM, _INK, _LEATHER, _GOLD = (252, 247, 232), (28, 26, 34), (122, 72, 34), (246, 200, 66)

_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "t-shirt": (
        (-0.22, -0.78),
        (0.22, -0.78),
        (0.5, -0.72),
        (0.98, -0.28),
        (0.74, -0.02),
        (0.5, -0.22),
        (0.5, 0.8),
        (-0.5, 0.8),
        (-0.5, -0.22),
        (-0.74, -0.02),
        (-0.98, -0.28),
        (-0.5, -0.72),
    ),
    "coat": (
        (-0.2, -1.0),
        (0.2, -1.0),
        (0.48, -0.9),
        (0.74, -0.5),
        (0.86, 0.34),
        (0.6, 0.4),
        (0.5, -0.2),
        (0.66, 1.0),
        (-0.66, 1.0),
        (-0.5, -0.2),
        (-0.6, 0.4),
        (-0.86, 0.34),
        (-0.74, -0.5),
        (-0.48, -0.9),
    ),
    "dress": (
        (-0.34, -1.0),
        (-0.2, -1.0),
        (-0.12, -0.74),
        (0.12, -0.74),
        (0.2, -1.0),
        (0.34, -1.0),
        (0.38, -0.5),
        (0.24, -0.1),
        (0.86, 1.0),
        (-0.86, 1.0),
        (-0.24, -0.1),
        (-0.38, -0.5),
    ),
    "skirt": ((-0.4, -0.62), (0.4, -0.62), (0.95, 0.62), (0.5, 0.72), (0.0, 0.76), (-0.5, 0.72), (-0.95, 0.62)),
    "trousers": ((-0.46, -1.0), (0.46, -1.0), (0.62, 1.0), (0.16, 1.0), (0.0, -0.3), (-0.16, 1.0), (-0.62, 1.0)),
    "shorts": ((-0.62, -0.6), (0.62, -0.6), (0.86, 0.6), (0.12, 0.64), (0.0, 0.08), (-0.12, 0.64), (-0.86, 0.6)),
    "hat": (
        (-0.46, -0.62),
        (-0.2, -0.72),
        (0.2, -0.72),
        (0.46, -0.62),
        (0.54, 0.2),
        (1.02, 0.36),
        (1.02, 0.52),
        (0.5, 0.66),
        (-0.5, 0.66),
        (-1.02, 0.52),
        (-1.02, 0.36),
        (-0.54, 0.2),
    ),
}


@dataclass(frozen=True, slots=True)
class _Trim:
    """Where accessories sit on a garment, in the garment's frame."""

    belt_y: float
    belt_half_width: float
    buttons_x: float
    buttons_y: tuple[float, float, float]
    pocket: tuple[float, float]


_TRIM = {
    "t-shirt": _Trim(0.42, 0.5, 0.0, (-0.45, 0.0, 0.45), (0.25, -0.2)),
    "coat": _Trim(0.08, 0.52, 0.0, (-0.55, 0.05, 0.65), (0.3, 0.5)),
    "dress": _Trim(-0.12, 0.26, 0.0, (-0.5, 0.05, 0.6), (0.32, 0.5)),
    "skirt": _Trim(-0.48, 0.48, 0.0, (-0.36, 0.06, 0.48), (0.36, 0.24)),
    "trousers": _Trim(-0.84, 0.48, -0.28, (-0.76, -0.26, 0.24), (0.27, -0.36)),
    "shorts": _Trim(-0.44, 0.66, -0.36, (-0.42, -0.04, 0.34), (0.4, 0.02)),
    "hat": _Trim(0.1, 0.53, 0.0, (-0.5, -0.1, 0.3), (0.22, -0.28)),
}


@dataclass(frozen=True, slots=True)
class _Jitter:
    """Everything random about one picture, drawn in a fixed order whatever the scene is."""

    dx: float  # pixels of a 64-pixel image
    dy: float
    scale: float
    hue: float  # degrees
    light: float  # factor
    backdrop: np.ndarray  # f64 [16] in 0..1, for the background's own details
    grain: np.ndarray  # f32 [64, 64, 1], gray levels

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "_Jitter":
        u = rng.uniform(-1, 1, 5)
        return cls(
            dx=2.5 * u[0],
            dy=2.0 * u[1],
            scale=1 + 0.04 * u[2],
            hue=5.0 * u[3],
            light=1 + 0.10 * u[4],
            backdrop=rng.random(16),
            grain=rng.normal(0, 1.0, (size, size, 1)).astype(np.float32),
        )


class _Frame:
    """The affine map from a garment's frame to the pixels of the oversampled canvas."""

    def __init__(self, scene: Scene, jitter: _Jitter, size: int) -> None:
        turn = {"front": 0, "left": -1, "right": 1}[scene.perspective]
        self.unit = size * _OVERSAMPLING / 64  # canvas pixels per pixel of a 64-pixel image
        self.scale = _SCALE[scene.size] * jitter.scale * self.unit
        self.x0, self.y0 = (32 + jitter.dx) * self.unit, (32.5 + jitter.dy) * self.unit
        self.squeeze, self.shear = (1.0, 0.0) if turn == 0 else (0.72, 0.26 * turn)

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self.x0 + self.scale * self.squeeze * x, self.y0 + self.scale * (y + self.shear * x)

    def polygon(self, points) -> list[tuple[float, float]]:
        return [self(x, y) for x, y in points]


def render(scene: Scene, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """The scene as uint8 [size, size, 3] RGB. Equal generators give equal pixels."""
    return render_with_keypoints(scene, rng, size)[0]


def render_with_keypoints(scene: Scene, rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The picture of `render`, and its garment's keypoints f32 [K 3] in the order of `KEYPOINTS`: x and y in pixels, and 1.

    The centre of the picture's first pixel is (0, 0). A keypoint that the garment lacks or that lies outside is (0, 0, 0).
    """
    jitter = _Jitter.draw(rng, size)
    frame = _Frame(scene, jitter, size)
    return _picture(scene, jitter, frame, size), _keypoints(scene, frame, size)


def _keypoints(scene: Scene, frame: _Frame, size: int) -> np.ndarray:
    keypoints = np.zeros((len(KEYPOINTS), 3), np.float32)
    for name, point in garment_points(scene.content).items():
        x, y = (place / _OVERSAMPLING - 0.5 for place in frame(*point))
        if min(x, y) >= -0.5 and max(x, y) <= size - 0.5:
            keypoints[KEYPOINTS.index(name)] = x, y, 1
    return keypoints


def _picture(scene: Scene, jitter: _Jitter, frame: _Frame, size: int) -> np.ndarray:
    canvas_size = (size * _OVERSAMPLING,) * 2
    mask = Image.new("L", canvas_size, 0)
    outline = frame.polygon(_OUTLINES[scene.content])
    ImageDraw.Draw(mask).polygon(outline, fill=255)

    picture = _backdrop(scene.background, jitter, canvas_size, frame.unit)
    draw = ImageDraw.Draw(picture)
    # A pale edge keeps every garment apart from every background.
    draw.line([*outline, outline[0], outline[1]], fill=_CREAM, width=round(2.2 * frame.unit), joint="curve")
    box = mask.getbbox()
    if box is not None:
        picture.paste(_cloth(scene, frame, jitter, canvas_size, box).crop(box), box, mask.crop(box))
    _trim(draw, scene, frame)

    pixels = np.asarray(picture.reduce(_OVERSAMPLING), np.float32) * jitter.light + jitter.grain
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _garment_color(color: str, hue_jitter: float) -> tuple[int, int, int]:
    hue, saturation, value = _HUES[color]
    red, green, blue = colorsys.hsv_to_rgb(((hue + hue_jitter) % 360) / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _cloth(scene: Scene, frame: _Frame, jitter: _Jitter, canvas_size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Color, pattern and the shade of a side view, whole within `box` of the canvas; the garment's mask cuts it out."""
    color = _garment_color(scene.color, jitter.hue)
    cloth = Image.new("RGB", canvas_size, color)
    draw = ImageDraw.Draw(cloth)
    mark = _INK if scene.color in _LIGHT_COLORS else _CREAM
    unit, reach = frame.unit, 34
    slope = frame.shear / frame.squeeze

    def place(x: float, y: float) -> tuple[float, float]:
        # The pattern's pitch is in pixels, not in garment lengths: small garments stay readable.
        return frame.x0 + x * unit * (0.85 if frame.shear else 1), frame.y0 + (y + slope * x) * unit

    def seen(x: float, y: float, margin: float) -> bool:
        return box[0] - margin <= x <= box[2] + margin and box[1] - margin <= y <= box[3] + margin

    if scene.style == "striped":
        for y in np.arange(-41.5, 46, 8):
            draw.polygon([place(-reach, y), place(reach, y), place(reach, y + 3.0), place(-reach, y + 3.0)], fill=mark)
    elif scene.style == "dotted":
        for row, y in enumerate(np.arange(-45.5, 46, 6.5)):
            for x in np.arange(-36.0, 37, 8) + 4.0 * (row % 2):
                cx, cy = place(x, y)
                if seen(cx, cy, 3 * unit):
                    draw.ellipse([cx - 1.8 * unit, cy - 1.8 * unit, cx + 1.8 * unit, cy + 1.8 * unit], fill=mark)
    elif scene.style == "checked":
        for row, y in enumerate(np.arange(-45.0, 46, 5)):
            for x in np.arange(-40.0, 41, 10) + 5 * (row % 2):
                if seen(*place(x, y), 8 * unit):
                    draw.polygon([place(x, y), place(x + 5, y), place(x + 5, y + 5), place(x, y + 5)], fill=mark)
    if frame.shear:
        # The half that turns away lies in shade.
        ramp = np.clip(0.5 + (np.arange(canvas_size[0]) - frame.x0) / (1.5 * frame.scale), 0, 1)
        ramp = ramp if frame.shear > 0 else 1 - ramp
        shade = np.broadcast_to(255 * (1 - 0.5 * ramp), canvas_size).astype(np.uint8)
        cloth.paste(ImageChops.multiply(cloth.crop(box), Image.fromarray(shade).crop(box).convert("RGB")), box)
    return cloth


def _trim(draw: ImageDraw.ImageDraw, scene: Scene, frame: _Frame) -> None:
    """The accessory on top of the garment; its thickness is in pixels so that it survives small sizes."""
    trim, unit = _TRIM[scene.content], frame.unit
    if scene.others == "belt":
        w, y, half = trim.belt_half_width, trim.belt_y, 2.4 * unit / frame.scale
        edge = 0.8 * unit / frame.scale
        for color, h in ((_CREAM, half + edge), (_LEATHER, half)):
            draw.polygon(frame.polygon([(-w, y - h), (w, y - h), (w, y + h), (-w, y + h)]), fill=color)
        draw.polygon(frame.polygon([(-half, y - half), (half, y - half), (half, y + half), (-half, y + half)]), fill=_GOLD)
    elif scene.others == "buttons":
        for y in trim.buttons_y:
            x, y = frame(trim.buttons_x, y)
            for color, radius in ((_INK, 2.7 * unit), (_GOLD, 1.9 * unit)):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
    elif scene.others == "pocket":
        x, y = trim.pocket
        for color, pixels in ((_INK, 4.0), (_CREAM, 3.0)):
            h = pixels * unit / frame.scale
            draw.polygon(frame.polygon([(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]), fill=color)


def _backdrop(name: str, jitter: _Jitter, canvas_size: tuple[int, int], unit: float) -> Image.Image:
    u = jitter.backdrop
    side = canvas_size[0]
    sky, ground = {
        "studio": ((214, 208, 202), (176, 168, 162)),
        "beach": ((120, 200, 236), (238, 214, 150)),
        "forest": ((86, 138, 84), (52, 84, 44)),
        "city": ((176, 186, 206), (92, 94, 104)),
        "snow": ((214, 232, 248), (250, 252, 255)),
        "night": ((34, 32, 84), (20, 18, 48)),
    }[name]
    picture = Image.new("RGB", canvas_size, sky)
    draw = ImageDraw.Draw(picture)
    horizon = (44 + 4 * u[0]) * unit
    draw.rectangle([0, horizon, side, side], fill=ground)
    if name == "beach":
        draw.rectangle([0, horizon - 9 * unit, side, horizon], fill=(30, 124, 178))
        x = (8 + 48 * u[1]) * unit
        draw.ellipse([x - 5 * unit, 4 * unit, x + 5 * unit, 14 * unit], fill=(255, 238, 140))
    elif name == "forest":
        for i in range(5):
            x = (3 + 13 * i + 5 * u[1 + i]) * unit
            draw.rectangle([x, 0, x + 3.5 * unit, horizon + 3 * unit], fill=(84, 58, 36))
    elif name == "city":
        for i in range(5):
            x, top = (13 * i - 1 + 3 * u[1 + i]) * unit, (8 + 22 * u[6 + i]) * unit
            draw.rectangle([x, top, x + 10.5 * unit, horizon], fill=(118, 124, 142))
    elif name == "snow":
        for i, x in enumerate((4, 60)):
            r = (20 + 6 * u[1 + i]) * unit
            draw.ellipse([x * unit - r, horizon - 0.6 * r, x * unit + r, horizon + r], fill=(236, 244, 252))
    elif name == "night":
        for i in range(7):
            x, y = (3 + 58 * u[1 + i]) * unit, (3 + 36 * u[8 + i]) * unit
            draw.ellipse([x - unit, y - unit, x + unit, y + unit], fill=(250, 246, 214))
    return picture
