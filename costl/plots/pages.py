"""What the HTML pages have in common: their Jinja2 templates, which escape every text, and the points of their curves."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from costl.plots.terminal_text import clock, ticks


def load_templates(package: str) -> Environment:
    """The templates in the folder `templates` of a package."""
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["ticks"] = ticks
    environment.filters["clock"] = clock
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": True}
    return environment


def curve_points(xs: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The points (x, y) of a curve in an SVG of height 1. The values are scaled to their range: the largest is on top."""
    heights = np.array(values) - min(values)
    ys = 0.96 - 0.92 * heights / (heights.max() or 1.0)
    return [(round(x, 2), round(y, 4)) for x, y in zip(xs, ys.tolist(), strict=True)]
