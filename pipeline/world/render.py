"""The sample world: small coloured things on a drifting texture, drawn into frames. It knows nothing of time or words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIZES = {"small": (0.085, 0.105), "large": (0.130, 0.150)}  # diameter, as a share of the frame's side
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 50),
    "purple": (150, 60, 190),
    "cyan": (60, 210, 220),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("ball", "box", "triangle", "star", "cross", "ring", "heart", "cup")


@dataclass(frozen=True)
class Thing:
    """What an object is, in the words of captions and queries."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Placed:
    """A thing in a frame: centre (x right, y down) and diameter, as shares of the frame's side."""

    thing: Thing
    x: float
    y: float
    diameter: float


def is_unseen(thing: Thing) -> bool:
    """True for the 13 pairs of colour and shape that are kept for the test of unseen objects."""
    colour, shape = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
    return (colour + 3 * shape) % 5 == 2


def random_thing(rng: np.random.Generator, *, unseen: bool | None = None) -> Thing:
    """A thing at random; `unseen` True or False draws from the one or the other set of pairs, None from both."""
    while True:
        thing = Thing(str(rng.choice(list(SIZES))), str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
        if unseen is None or is_unseen(thing) == unseen:
            return thing


def random_diameter(rng: np.random.Generator, thing: Thing) -> float:
    """A diameter within the range that the thing's size word allows."""
    return float(rng.uniform(*SIZES[thing.size]))


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A muted texture, uint8 [3*side 3*side 3] with period 2*side; frames look at it through a drifting window."""
    hue = rng.uniform(60, 170, 3)
    hue = hue.mean() + 0.35 * (hue - hue.mean())  # muted: nothing in it has a thing's saturation
    layers = ((4, 22), (12, 16), (40, 10))
    field = np.sum([strength * _smooth_noise(rng, 2 * side, cells) for cells, strength in layers], axis=0)
    tint = _smooth_noise(rng, 2 * side, 6)[..., None] * rng.uniform(-14, 14, 3)
    period = np.clip(hue + field[..., None] + tint, 0, 255).astype(np.uint8)
    return np.pad(period, ((0, side), (0, side), (0, 0)), mode="wrap")


def draw(background: np.ndarray, things: Sequence[Placed], *, offset: tuple[float, float] = (0, 0)) -> np.ndarray:
    """One frame, uint8 [side side 3]: the window of `background` at `offset` (pixels) with the things upon it, last on top."""
    side = background.shape[0] // 3
    top, left = (int(o) % (2 * side) for o in offset)
    frame = background[top : top + side, left : left + side].copy()
    for placed in things:
        _stamp(frame, placed, side)
    return frame


def _stamp(frame: np.ndarray, placed: Placed, side: int) -> None:
    pixels = max(5, round(placed.diameter * side))
    body, rim = _sprite(placed.thing.shape, pixels)
    top, left = round(placed.y * side - body.shape[0] / 2), round(placed.x * side - body.shape[1] / 2)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + body.shape[0], side), min(left + body.shape[1], side)
    if y0 >= y1 or x0 >= x1:
        return
    window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    region = frame[y0:y1, x0:x1].astype(np.float32)
    colour = np.asarray(COLOURS[placed.thing.colour], np.float32)
    region += rim[window][..., None] * (0.25 * colour + 15 - region)
    region += body[window][..., None] * (colour - region)
    frame[y0:y1, x0:x1] = region.astype(np.uint8)


@lru_cache(maxsize=512)
def _sprite(shape: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the shape's body and of body with rim, float32 [pixels+2 pixels+2], antialiased by 4 x 4 samples."""
    grid, fine = pixels + 2, 4
    axis = ((np.arange(grid * fine) + 0.5) / fine - grid / 2) / (pixels / 2)
    x, y = np.meshgrid(axis, axis)
    rim = 2.4 / pixels

    def coverage(inside: np.ndarray) -> np.ndarray:
        return inside.reshape(grid, fine, grid, fine).mean((1, 3)).astype(np.float32)

    grown = np.zeros_like(x, dtype=bool)
    for angle in np.arange(8) * np.pi / 4:
        grown |= _inside(shape, x + rim * np.cos(angle), y + rim * np.sin(angle))
    return coverage(_inside(shape, x, y)), coverage(grown)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius = np.hypot(x, y)
    if shape == "ball":
        return radius < 0.95
    if shape == "box":
        return np.maximum(abs(x), abs(y)) < 0.82
    if shape == "triangle":
        return (y < 0.8) & (y > -0.9 + 1.9 * abs(x))
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95)
    if shape == "ring":
        return (radius < 0.97) & (radius > 0.52)
    if shape == "heart":
        u, v = x * 1.2, -y * 1.15 + 0.1
        return (u**2 + v**2 - 0.75) ** 3 < 1.6 * u**2 * v**3
    if shape == "cup":
        body = (abs(x + 0.2) < 0.68 - 0.18 * (y + 0.8) / 1.6) & (abs(y) < 0.8)
        handle = np.hypot((x - 0.5) / 0.45, (y + 0.1) / 0.48)
        return body | ((handle < 1) & (handle > 0.5))
    angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)  # star: five points, the radius linear between tip and notch
    share = abs(angle - np.pi / 5) / (np.pi / 5)
    return radius < 0.42 + (1.0 - 0.42) * share**1.6


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Noise in [-1, 1], float32 [side side], smooth between `cells` x `cells` random values, and periodic."""
    values = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    position = np.arange(side) * cells / side
    low, share = position.astype(int), position - position.astype(int)
    share = (share * share * (3 - 2 * share)).astype(np.float32)
    rows = values[low] * (1 - share)[:, None] + values[(low + 1) % cells] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, (low + 1) % cells] * share
