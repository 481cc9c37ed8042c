"""Pictures whose truth is known: one textured object on a textured ground, its mask, its features, gaze on it.

A class fixes the object's shape, its texture and, up to a jitter, its hue; place, size, tilt, light and the whole
ground are drawn without regard to class. Everything follows from (seed, label, index). Lengths are shares of the
picture's side, so that a scene can be drawn, and its mask redrawn, at any size.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from eegvision.vocab import InputError

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.95, short - 0.34)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane into one half point, where the edge is a line from the tip (1, 0) to the notch at 36 degrees.
    angle = np.abs((np.arctan2(x, y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    notch_x, notch_y = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    along_x, along_y = (1 - notch_x), -notch_y
    beside = along_x * radius * np.sin(angle) - along_y * (radius * np.cos(angle) - 1)
    return beside / np.hypot(along_x, along_y)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.25 * x, 1.25 * y + 0.1
    return x**2 + y**2 - 1 - np.cbrt(x**2) * y


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shaft = np.maximum(np.abs(y) - 0.3, np.abs(x + 0.4) - 0.52)
    head = np.maximum(np.abs(y) + x - 0.96, -x)
    return np.minimum(shaft, head)


# Signed fields of the plane, negative inside an object of radius about 1; x to the right, y up.
SHAPES: dict[str, Field] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "star": _star,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.28,
    "triangle": lambda x, y: np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.52,
    "flower": lambda x, y: np.hypot(x, y) - 0.7 - 0.26 * np.cos(6 * np.arctan2(y, x)),
    "cross": _cross,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.98, 0.74 - np.hypot(x - 0.46, y)),
    "heart": _heart,
    "arrow": _arrow,
}

# Patterns of the same plane, from dark (negative) to bright (positive); f is the detail in cycles per radius.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "striped": lambda x, _, f: np.sin(2 * np.pi * f * x),
    "checked": lambda x, y, f: 2 * np.sin(np.pi * f * x) * np.sin(np.pi * f * y),
    "dotted": lambda x, y, f: np.cos(2 * np.pi * f * x) + np.cos(2 * np.pi * f * y) - 0.6,
    "ringed": lambda x, y, f: np.cos(2 * np.pi * f * np.hypot(x, y)),
    "rayed": lambda x, y, f: np.sin(np.round(5 * f) * np.arctan2(y, x)),
    "waved": lambda x, y, f: np.sin(2 * np.pi * f * (y + 0.17 * np.sin(2 * np.pi * x))),
    "latticed": lambda x, y, f: np.maximum(np.cos(2 * np.pi * f * x), np.cos(2 * np.pi * f * y)) - 0.6,
    "plain": lambda x, _, __: np.full_like(x, 0.7),
}

MAX_CLASSES = len(SHAPES) * len(TEXTURES)

FEATURES = ("contrast", "size", "red_green", "blue_yellow", "upright", "oblique")
"""Low-level features of the object, see `low_level`."""

_FEATURE_PX = 64  # features are measured on a drawing of this side, whatever the side shown
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # Rec. 709
_GOLDEN = 0.618034  # multiples of it, modulo 1, spread hues evenly for any number of classes
_SCENE = 0  # first word after the seed, which `simulate` gives other numbers for other streams
_OCTAVES = (3, 6, 12, 24, 48)  # cells per side of the noise that makes the ground


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is in one picture. Lengths are shares of the side, colours are (hue, saturation, value) in 0..1."""

    label: int
    shape: str
    texture: str
    row: float
    """Centre of the object from the top."""
    column: float
    """Centre of the object from the left."""
    size: float
    """Radius of the circle that the object just fills."""
    tilt_rad: float
    """Turn of the object and its texture, anticlockwise."""
    object_hsv: tuple[float, float, float]
    detail: float
    """Cycles of the texture per radius."""
    light: float
    """Brightness of the whole picture, about 1."""
    light_rad: float
    """Direction the light comes from."""
    ground_hsv: tuple[tuple[float, float, float], tuple[float, float, float]]
    """The two colours the ground is mixed from."""
    ground_seed: int

    def truth(self) -> dict[str, Any]:
        """Return what `object_mask` needs to redraw the object, JSON-able."""
        return {name: getattr(self, name) for name in ("shape", "row", "column", "size", "tilt_rad")}


def class_name(label: int) -> str:
    """Return the texture and shape of a class, for example `striped-disc`; unique up to `MAX_CLASSES`."""
    shape, texture = _look(label)
    return f"{texture}-{shape}"


def make_scene(seed: int, label: int, index: int) -> Scene:
    """Return picture `index` of class `label`; the same arguments always give the same scene."""
    shape, texture = _look(label)
    rng = np.random.default_rng([seed, _SCENE, label, index])
    size = rng.uniform(0.14, 0.27)
    margin = size + 0.02
    ground_hue = rng.uniform()
    ground_value = rng.uniform(0.3, 0.75)

    def ground_colour() -> tuple[float, float, float]:
        hue = (ground_hue + rng.uniform(-0.12, 0.12)) % 1
        return hue, rng.uniform(0.05, 0.4), ground_value * rng.uniform(0.7, 1.3)

    ground = ground_colour(), ground_colour()
    return Scene(
        label=label,
        shape=shape,
        texture=texture,
        # Rounded where it goes into the truth, which then stays short and still redraws the mask to the pixel.
        row=round(rng.uniform(margin, 1 - margin), 5),
        column=round(rng.uniform(margin, 1 - margin), 5),
        size=round(size, 5),
        tilt_rad=round(rng.uniform(0, 2 * np.pi), 5),
        object_hsv=((label * _GOLDEN + 0.02 * rng.standard_normal()) % 1, rng.uniform(0.6, 0.95), rng.uniform(0.55, 1)),
        detail=rng.uniform(1.3, 1.8),
        light=rng.uniform(0.8, 1.15),
        light_rad=rng.uniform(0, 2 * np.pi),
        ground_hsv=ground,
        ground_seed=int(rng.integers(2**32)),
    )


def object_mask(truth: Mapping[str, Any], px: int) -> np.ndarray:
    """Return the pixels whose centre lies in the object, bool of shape (px, px).

    Args:
        truth: `shape`, `row`, `column`, `size`, `tilt_rad` as in `Scene.truth` and the header of a simulated set.
        px: side of the square picture.
    Raises:
        InputError: the truth lacks an entry or names an unknown shape.
    """
    missing = {"shape", "row", "column", "size", "tilt_rad"} - set(truth)
    if missing or truth["shape"] not in SHAPES:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"names the unknown shape {truth['shape']!r}"
        raise InputError(f"the truth of a picture {what}; take it from a simulated data set (`truth.images`)")
    mask = np.zeros((px, px), dtype=bool)
    box, x, y = _object_plane(truth, px)
    mask[box] = SHAPES[truth["shape"]](x, y) < 0
    return mask


def draw(scene: Scene, px: int) -> np.ndarray:
    """Return the picture of a scene, uint8 of shape (px, px, 3)."""
    picture_3HW = _ground(scene, px)
    box, x, y = _object_plane(scene.truth(), px)
    under_3HW = picture_3HW[:, *box]
    field = SHAPES[scene.shape]
    # The object's plane is turned by its tilt; light and shadow are not, so their direction is turned back.
    light_x, light_y = math.cos(scene.light_rad - scene.tilt_rad), math.sin(scene.light_rad - scene.tilt_rad)
    shadow = _soft_step(field(x + 0.14 * light_x, y + 0.14 * light_y), 0.12 * scene.size * px)
    under_3HW *= 1 - 0.55 * shadow

    hue, saturation, value = scene.object_hsv
    bright_311 = _rgb(hue, saturation, value)
    dark_311 = _rgb((hue + 0.04) % 1, min(1, saturation * 1.1), value * 0.35)
    pattern = 0.5 + 0.5 * np.tanh(2.5 * TEXTURES[scene.texture](x, y, scene.detail))
    shade = scene.light * (1 + 0.28 * (light_x * x + light_y * y))
    body_3HW = (dark_311 + (bright_311 - dark_311) * pattern) * shade
    under_3HW += (body_3HW - under_3HW) * _soft_step(field(x, y), 1.0)
    levels_3HW = np.clip(picture_3HW * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels_3HW.transpose(1, 2, 0))


def encode(picture_HW3: np.ndarray) -> bytes:
    """Return a picture as the content of a JPEG file with full colour resolution."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def low_level(scene: Scene) -> np.ndarray:
    """Return the object's low-level features in the order of `FEATURES`, float64, not yet standardised.

    Measured on the drawing, with l the luminance (Rec. 709), and g its gradient:
        contrast      mean l in the object - mean l outside
        size          log of the share of the picture that the object covers
        red_green     mean R - G in the object
        blue_yellow   mean B - (R + G) / 2 in the object
        upright       sum(gx^2 - gy^2) / sum(gx^2 + gy^2) in the object: 1 for upright stripes, -1 for level ones
        oblique       sum(2 gx gy) / sum(gx^2 + gy^2) in the object, y up: 1 for stripes falling to the right
    """
    mask = object_mask(scene.truth(), _FEATURE_PX)
    picture = draw(scene, _FEATURE_PX).astype(np.float32) / 255
    luminance = picture @ _LUMINANCE
    down, right = (slope[mask].astype(float) for slope in np.gradient(luminance))
    energy = (right**2 + down**2).sum() + 1e-9
    red, green, blue = picture[mask].mean(axis=0, dtype=float)
    return np.array(
        [
            luminance[mask].mean(dtype=float) - luminance[~mask].mean(dtype=float),
            np.log(mask.mean()),
            red - green,
            blue - (red + green) / 2,
            (right**2 - down**2).sum() / energy,
            (-2 * right * down).sum() / energy,
        ]
    )


def gaze(scene: Scene, viewer: int, px: int, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Yield one viewer's fixations (row, column) in pixels: the centre first, then mostly the object.

    Four to seven fixations. After the first, 70 % fall on the object (normal, 0.4 of its radius), 20 % about the
    picture's centre (0.18 of the side) and 10 % anywhere: the centre bias and scatter of free viewing.
    """
    skew = 0.015 * np.random.default_rng([scene.ground_seed, viewer]).standard_normal(2)  # calibration of the tracker
    for number in range(rng.integers(4, 8)):
        kind = rng.uniform() if number else 1.0
        scatter = rng.standard_normal(2)
        if number == 0:
            point = 0.5 + 0.05 * scatter
        elif kind < 0.7:
            point = np.array([scene.row, scene.column]) + 0.4 * scene.size * scatter
        elif kind < 0.9:
            point = 0.5 + 0.18 * scatter
        else:
            point = rng.uniform(size=2)
        row, column = np.clip((point + skew) * px, 0, px - 1)
        yield float(row), float(column)


def _look(label: int) -> tuple[str, str]:
    """Return the shape and texture of a class; no two of `MAX_CLASSES` share both."""
    assert 0 <= label < MAX_CLASSES, label
    shapes, textures = list(SHAPES), list(TEXTURES)
    return shapes[label % len(shapes)], textures[(3 * label + label // len(shapes)) % len(textures)]


def _object_plane(truth: Mapping[str, Any], px: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Return the rows and columns around the object, and the object's own coordinates (x, y) of their centres."""
    reach = 1.35 * truth["size"]  # the object and its shadow
    spans = []
    for centre in (truth["row"], truth["column"]):
        first, last = math.floor((centre - reach) * px) - 1, math.ceil((centre + reach) * px) + 1
        spans.append(slice(max(0, first), min(px, last)))
    rows, columns = (np.arange(span.start, span.stop, dtype=np.float32) + 0.5 for span in spans)
    up = -((rows / px - truth["row"]) / truth["size"])[:, None]
    right = ((columns / px - truth["column"]) / truth["size"])[None, :]
    cos, sin = math.cos(truth["tilt_rad"]), math.sin(truth["tilt_rad"])
    return (spans[0], spans[1]), cos * right + sin * up, cos * up - sin * right


def _soft_step(field: np.ndarray, width_px: float) -> np.ndarray:
    """Return 1 inside, 0 outside and a ramp of `width_px` across the edge, where the field is 0."""
    slope = np.hypot(*np.gradient(field)) + np.float32(1e-6)
    return np.clip(0.5 - field / (slope * max(width_px, 1.0)), 0, 1)


def _ground(scene: Scene, px: int) -> np.ndarray:
    """Return the ground, float32 of shape (3, px, px): two colours mixed by smooth noise, a second noise as light."""
    rng = np.random.default_rng(scene.ground_seed)
    stretch = 2 ** rng.uniform(-1, 1)  # coarser one way than the other: grain, grass, ripples
    roughness = rng.uniform(0.45, 0.85)  # share of each octave's amplitude that the next has
    mix = 0.5 + 0.5 * np.tanh(_noise(rng, px, _OCTAVES[:3], 0.6, stretch))
    grain = _noise(rng, px, _OCTAVES, roughness, stretch)
    across = np.linspace(-0.5, 0.5, px, dtype=np.float32)
    slope = math.cos(scene.light_rad) * across[None, :] - math.sin(scene.light_rad) * across[:, None]
    light = scene.light * (1 + 0.22 * grain + 0.35 * slope)
    first_311, second_311 = (_rgb(*colour) for colour in scene.ground_hsv)
    return (first_311 + (second_311 - first_311) * mix) * light


def _noise(rng: np.random.Generator, px: int, cells: tuple[int, ...], roughness: float, stretch: float) -> np.ndarray:
    """Return smooth noise of unit variance or so, float32 of shape (px, px), as a sum of enlarged random grids."""
    total = np.zeros((px, px), dtype=np.float32)
    for octave, n in enumerate(cells):
        grid = rng.standard_normal((round(n * stretch) + 1, round(n / stretch) + 1), dtype=np.float32)
        total += roughness**octave * np.asarray(Image.fromarray(grid).resize((px, px), Image.Resampling.BICUBIC))
    return total / math.sqrt(sum(roughness ** (2 * octave) for octave in range(len(cells))))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return a colour as float32 of shape (3, 1, 1)."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(1.0, value)), dtype=np.float32)[:, None, None]
