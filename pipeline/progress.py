"""Where a long call stands: what it tells the callback it was given, for the command line or anyone else to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` in a `stage`, `total` 0 where nobody knows yet; `detail` is what it is at, in words.

    Stages of extraction: load, words, check, videos, and frames where there is but one video; of training: train; of
    evaluation: predict; of asking: ask, cut and those of extraction and evaluation; of the sample world: render; of
    preparing a benchmark: durations. A call made of several puts a word of its own before them.
    """

    stage: str
    done: int
    total: int
    detail: str = ""


Tell = Callable[[Progress], None]
