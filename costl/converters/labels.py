"""What a reader of labels returns: sentences about videos, with their moments in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from costl.benchmarks.common import Row
from costl.data.annotations import Window
from costl.pipeline.errors import UsageError


@dataclass(frozen=True)
class Label:
    """One label of a file: a sentence about a video, and the windows [start, end] in seconds in which it is true.

    `where` is its file and row, for errors. `video` is the name or path in the file. `duration_s`, `split`, `rating` (0 to
    4, of all windows) and `qid` are those of the file, if it has them. `row` is a row that needs no conversion. Windows may
    reach outside the video. Raises UsageError for an empty name or sentence.
    """

    where: str
    video: str
    sentence: str
    windows: tuple[Window, ...] = ()
    duration_s: float | None = None
    split: str = ""
    rating: float | None = None
    qid: int | str | None = None
    row: Row | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentence", " ".join(self.sentence.split()))
        for name in ("video", "sentence"):
            if not getattr(self, name).strip():
                raise UsageError(f"the {name} is empty")


@dataclass(frozen=True)
class Labels:
    """The labels of a file, in its order, and notes for the user about how they were read."""

    labels: Sequence[Label]
    notes: tuple[str, ...] = ()
