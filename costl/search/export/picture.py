"""Draws search results as a contact sheet: the frame in the middle of each hit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costl.pipeline.errors import VideoError
from costl.pipeline.preview.cut import frames_at
from costl.plots.contact_sheet import Tile, draw_contact_sheet
from costl.plots.terminal_text import clock
from costl.search.hits import Hit, SearchResult

_HEIGHT = 200  # pixels


def draw_results(results: Sequence[SearchResult]) -> bytes:
    """A PNG with the hits of each result. A hit whose video cannot be read has no picture."""
    return draw_contact_sheet([(result.query, [_tile(hit) for hit in result.hits]) for result in results])


def _tile(hit: Hit) -> Tile:
    times = f"{clock(hit.start_s)} – {clock(hit.end_s)}  ({hit.score:.2f})"
    return Tile(_frame(hit), hit.name, times)


def _frame(hit: Hit) -> np.ndarray | None:
    try:
        return frames_at(hit.video, [(hit.start_s + hit.end_s) / 2], height=_HEIGHT)[0]
    except VideoError:
        return None
