"""Pictures without their content, for tests and the processes that they start: painting takes longer than small models train.

The environment variable `LEVEL` says how quick they are: laid out but not painted, or blank.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

LEVEL = "COSTL_TEST_QUICK_PICTURES"
LAID_OUT, BLANK = "laid out", "blank"


def blank_png(width: int = 1, height: int = 1) -> bytes:
    """A picture of this size without content."""
    image = io.BytesIO()
    software = PngInfo()
    software.add_text("Software", "CoSTL")
    Image.new("L", (width, height)).save(image, format="png", pnginfo=software)
    return image.getvalue()


def make_quick(set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """One query at most in each picture. Nothing is painted, and nothing laid out where `LEVEL` is `BLANK`."""
    from costl.plots import predictions, training_curves

    set_attribute(predictions, "MOST_DRAWN", 1)
    for module, name in ((predictions, "draw_panels"), (training_curves, "_to_png")):
        set_attribute(module, "to_png", lambda figure: blank_png(*map(int, figure.bbox.size)))
        set_attribute(module, name, _unless_blank(getattr(module, name)))


def _unless_blank(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    def draw_or_not(*arguments: Any, **options: Any) -> bytes:
        return blank_png() if os.environ.get(LEVEL) == BLANK else draw(*arguments, **options)

    return draw_or_not


def make_quick_if_wanted() -> None:
    """For a process that a test starts with `LEVEL` in its environment."""
    if os.environ.get(LEVEL):
        make_quick()
