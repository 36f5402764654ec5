"""The errors of both stages. Each message names the thing, what was found, what was expected and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_SHOWN = 5


class CostlError(Exception):
    """Base of all errors meant for the user; `exit_code` is the exit code of the command.

    `reported`: another process of the same training prints it already.
    """

    exit_code = 1
    reported = False


class UsageError(CostlError):
    """A wrong argument, setting or annotation file. Nothing was started and nothing was written."""

    exit_code = 2


class CacheError(CostlError):
    """A cache, run or checkpoint that is damaged, not ours, or made with other settings."""

    exit_code = 3


class VideoError(CostlError):
    """A video that cannot be used; in a batch it becomes a row with its `status` and reason."""

    def __init__(self, reason: str, *, status: str = "failed"):
        super().__init__(reason)
        self.status = status


def first_few(items: Iterable[str], *, between: str = ", ", last: str = " and ") -> str:
    """The first few of many names for an error message, and how many more there are."""
    names = list(items)
    shown = between.join(names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown}{last}{more} more" if more > 0 else shown


def suggest(name: str, candidates: Sequence[str]) -> str:
    """A sentence for an error message about an unknown name: the names most like it, otherwise the first of all names."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(by_lower[candidate] for candidate in close)}?"
    return f"Known: {first_few(candidates)}."
