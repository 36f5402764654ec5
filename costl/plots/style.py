"""The common look of all plots: width, colours, axes without ticks, and only characters that the font has."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from costl.plots.terminal_text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0  # inches
TRUTH = "#2a9d8f"
PREDICTION = "#e76f51"
GREY = "#6b7280"
# For `matplotlib.rc_context`.
STYLE: Any = {
    "figure.dpi": 130,
    "axes.edgecolor": "#d1d5db",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
}
TICKS: dict[str, Any] = {"length": 0, "labelsize": 8, "labelcolor": GREY}  # for `Axes.tick_params`


def printable(text: str) -> str:
    """The text in one line, with a box for every character that the font lacks. matplotlib would warn about each of them."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(letter if font.get_char_index(ord(letter)) else "\u25a1" for letter in one_line(text))


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG, which names CoSTL in its header."""
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": "CoSTL"})
    return image.getvalue()
