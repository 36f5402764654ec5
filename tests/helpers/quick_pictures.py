"""Pictures without their content, for tests and the processes that they start: painting takes longer than small models train."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

WANTED = "COSTL_TEST_QUICK_PICTURES"


def blank_png(figure: Any) -> bytes:
    """A picture of the size of the figure, without its content."""
    image = io.BytesIO()
    software = PngInfo()
    software.add_text("Software", "CoSTL")
    Image.new("L", tuple(map(int, figure.bbox.size))).save(image, format="png", pnginfo=software)
    return image.getvalue()


def make_quick(set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """One query at most in each picture, laid out but not painted."""
    from costl.plots import predictions, training_curves

    set_attribute(predictions, "MOST_DRAWN", 1)
    set_attribute(predictions, "to_png", blank_png)
    set_attribute(training_curves, "to_png", blank_png)


def make_quick_if_wanted() -> None:
    """For a process that a test starts with `WANTED` in its environment."""
    if os.environ.get(WANTED):
        make_quick()
