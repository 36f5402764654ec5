"""Draws frames of the sample world: small coloured things on a drifting texture."""

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
    """An object, by the words that captions and queries use for it. `size` is empty if it changes its size."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return " ".join(filter(None, [self.size, self.colour, self.shape]))


@dataclass(frozen=True)
class PlacedThing:
    """A thing in a frame: its centre (x right, y down) and diameter, as shares of the frame's side."""

    thing: Thing
    x: float
    y: float
    diameter: float


def is_unseen(thing: Thing) -> bool:
    """Whether its colour and shape are one of the 13 pairs that are reserved for the test of unseen objects."""
    colour = list(COLOURS).index(thing.colour)
    shape = SHAPES.index(thing.shape)
    return (colour + 3 * shape) % 5 == 2


def random_thing(rng: np.random.Generator, *, unseen: bool | None = None) -> Thing:
    """A random thing. `unseen`: True draws from the reserved pairs, False from the others, None from all."""
    while True:
        thing = Thing(*(str(rng.choice(list(words))) for words in (SIZES, COLOURS, SHAPES)))
        if unseen is None or is_unseen(thing) == unseen:
            return thing


def random_diameter(rng: np.random.Generator, thing: Thing) -> float:
    """A random diameter in the range of the thing's size."""
    return float(rng.uniform(*SIZES[thing.size]))


def size_word(diameter: float) -> str:
    """What a thing of this diameter is called: "small", "large", or "" between the two ranges."""
    if diameter <= SIZES["small"][1]:
        return "small"
    return "large" if diameter >= SIZES["large"][0] else ""


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A muted texture, uint8 [3*side 3*side 3] with period 2*side; a frame shows a window of it."""
    hue = rng.uniform(60, 170, 3)
    hue = hue.mean() + 0.35 * (hue - hue.mean())  # muted: less saturated than any thing
    layers = ((4, 22), (12, 16), (40, 10))
    field = np.sum([strength * _smooth_noise(rng, 2 * side, cells) for cells, strength in layers], axis=0)
    tint = _smooth_noise(rng, 2 * side, 6)[..., None] * rng.uniform(-14, 14, 3)
    period = np.clip(hue + field[..., None] + tint, 0, 255).astype(np.uint8)
    return np.pad(period, ((0, side), (0, side), (0, 0)), mode="wrap")


def draw(background: np.ndarray, things: Sequence[PlacedThing], *, offset: Sequence[float] = (0, 0)) -> np.ndarray:
    """One frame, uint8 [side side 3]: the window of `background` at `offset` (pixels) and the things on it, the last on top."""
    side = background.shape[0] // 3
    top, left = (int(pixels) % (2 * side) for pixels in offset)
    # The margin takes what sticks out of the frame.
    canvas = np.pad(background[top : top + side, left : left + side], ((side, side), (side, side), (0, 0)))
    for placed in things:
        body, rim = _sprite(placed.thing.shape, max(5, round(placed.diameter * side)))
        height, width = body.shape[:2]
        top = side + round(placed.y * side - height / 2)
        left = side + round(placed.x * side - width / 2)
        window = canvas[top : top + height, left : left + width]
        region = window.astype(np.float32)
        colour = np.asarray(COLOURS[placed.thing.colour], np.float32)
        region += rim * (0.25 * colour + 15 - region)
        region += body * (colour - region)
        window[:] = region.astype(np.uint8)
    return canvas[side : 2 * side, side : 2 * side].copy()


@lru_cache(maxsize=512)
def _sprite(shape: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """(coverage of the body, of body and rim) of a shape, float32 [pixels+2 pixels+2 1], antialiased by 4 x 4 samples."""
    grid, fine = pixels + 2, 4
    axis = ((np.arange(grid * fine) + 0.5) / fine - grid / 2) / (pixels / 2)
    x, y = np.meshgrid(axis, axis)
    rim = 2.4 / pixels
    angles = np.arange(8)[:, None, None] * np.pi / 4
    with_rim = _inside(shape, x + rim * np.cos(angles), y + rim * np.sin(angles)).any(axis=0)
    samples = np.stack([_inside(shape, x, y), with_rim]).reshape(2, grid, fine, grid, fine)
    body, body_and_rim = samples.mean((2, 4))[..., None].astype(np.float32)
    return body, body_and_rim


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie inside a shape of radius 1 around the origin."""
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
    low = position.astype(int)
    share = position - low
    share = (share * share * (3 - 2 * share)).astype(np.float32)
    rows = values[low] * (1 - share)[:, None] + values[(low + 1) % cells] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, (low + 1) % cells] * share
