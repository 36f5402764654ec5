"""With what effort an extraction is done: how many processes, how many frames at once, how long to wait."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UsageError

FAILURES_IN_A_ROW = 20  # from so many on it is the machine, not the videos


@dataclass(frozen=True)
class Effort:
    """How the work is done, which decides no feature: decode processes (`workers`, default: one a core), frames encoded at
    once (`batch`, default: what suits the device), `compiled` after a minute of compiling, and how long a video may take
    to get on (`time_limit_s`, see `workers.decode_videos`). Raises UsageError for counts below one.
    """

    workers: int | None = None
    batch: int | None = None
    compiled: bool = False
    time_limit_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}, expected at least 1.")
