"""The errors of both stages: each names the thing, what was found, what was expected and the next step."""

from collections.abc import Iterable

_SHOWN = 5


class CostlError(Exception):
    """Base of every error meant for the person at the keyboard; `exit_code` is what the command returns.

    `told`: another process of the same training says it already.
    """

    exit_code = 1
    told = False


class UsageError(CostlError):
    """A wrong argument, setting or annotation file: nothing was started, nothing was written."""

    exit_code = 2


class CacheError(CostlError):
    """A cache, run or checkpoint that is damaged, foreign or made with other settings."""

    exit_code = 3


class VideoError(CostlError):
    """One video that cannot be used; in a batch it becomes a row with its `status` and reason."""

    def __init__(self, reason: str, *, status: str = "failed"):
        super().__init__(reason)
        self.status = status


def some(items: Iterable[str], *, between: str = ", ", last: str = " and ") -> str:
    """The first few of many names for an error's sentence, and how many more there are."""
    items = list(items)
    more = len(items) - _SHOWN
    return between.join(items[:_SHOWN]) + (f"{last}{more} more" if more > 0 else "")
