"""Draws a contact sheet: rows of pictures with two lines of text below each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from costl.plots.headless import load_matplotlib
from costl.plots.style import GREY, STYLE, WIDTH, printable, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DRAWN = 100
COLUMNS = 4
# In inches.
MARGIN, HEADER, GAP, TEXT = 0.3, 0.5, 0.15, 0.45
TILE = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
PICTURE = TILE * 9 / 16
_LETTERS = 34  # that fit below a picture


@dataclass(frozen=True)
class Tile:
    """A picture, uint8 RGB [h w 3] or None where it cannot be read, with a line of text and a smaller one."""

    picture: np.ndarray | None
    title: str
    caption: str


def draw_contact_sheet(groups: Sequence[tuple[str, Sequence[Tile]]]) -> bytes:
    """A PNG with a heading for each group and its tiles in rows of four, at most a hundred tiles in all."""
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height = MARGIN + sum(_height(tiles) for _, tiles in groups)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        top, drawn = MARGIN / 2, 0
        for heading, tiles in groups:
            figure.text(MARGIN / WIDTH, 1 - (top + HEADER * 0.7) / height, _shortened(heading, 100), size=12, weight="bold")
            for number, tile in enumerate(tiles[: MOST_DRAWN - drawn]):
                row, column = divmod(number, COLUMNS)
                _draw_tile(figure, tile, MARGIN + column * (TILE + GAP), top + HEADER + row * (PICTURE + TEXT))
            drawn += len(tiles)
            top += _height(tiles)
        return to_png(figure)


def _height(tiles: Sequence[Tile]) -> float:
    return HEADER + max(1, math.ceil(min(len(tiles), MOST_DRAWN) / COLUMNS)) * (PICTURE + TEXT)


def _draw_tile(figure: Figure, tile: Tile, left: float, top: float) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, 1 - (top + PICTURE) / height, TILE / width, PICTURE / height))
    axes.set_facecolor("#111827")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    if tile.picture is None:
        axes.text(0.5, 0.5, "no picture", color="white", size=8, ha="center", va="center", transform=axes.transAxes)
    else:
        rows, columns = tile.picture.shape[:2]
        axes.imshow(tile.picture)
        # The whole picture in a tile of 16:9, with bars at two sides.
        wide, tall = max(columns, rows * TILE / PICTURE), max(rows, columns * PICTURE / TILE)
        axes.set_xlim((columns - wide) / 2, (columns + wide) / 2)
        axes.set_ylim((rows + tall) / 2, (rows - tall) / 2)
    for offset, text, colour in ((0.16, tile.title, "black"), (0.31, tile.caption, GREY)):
        figure.text(left / width, 1 - (top + PICTURE + offset) / height, _shortened(text, _LETTERS), size=8, color=colour)


def _shortened(text: str, letters: int) -> str:
    """The end of a text that is too long: file names differ there."""
    line = printable(text)
    return line if len(line) <= letters else f"...{line[3 - letters:]}"
