"""What all pictures of a run share: their width, their colours, and text that the font can draw."""

from __future__ import annotations

WIDTH = 10.0  # inches
TRUTH = "#2a9d8f"
PREDICTION = "#e76f51"
GREY = "#6b7280"


def printable(text: str) -> str:
    """The text with a box for every character that the font lacks. matplotlib would warn about each of them."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(letter if font.get_char_index(ord(letter)) else "\u25a1" for letter in " ".join(text.split()))
