"""The errors of both stages. Each message names the thing, what was found, what was expected and the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN = 5  # names of a long list in a message
_PERMISSIONS = "Change its permissions, or choose another folder."
_DISK_FAILS = "The disk, or the network to it, fails: repair it, then give the same command again."
_NEXT_STEPS = {
    errno.ENOSPC: "Free space there, or choose another folder.",
    errno.EDQUOT: "Your quota there is used up: free space, or choose another folder.",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "The disk cannot be written to: choose another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.ENOTDIR: "A file stands where a folder is needed: choose another name.",
    errno.EEXIST: "A file stands where a folder is needed: choose another name.",
    errno.EFBIG: "The disk takes no file of this size: choose another folder.",
    errno.EMFILE: "This process has too many open files: raise the limit (ulimit -n).",
    errno.EIO: _DISK_FAILS,
    errno.ESTALE: _DISK_FAILS,
}


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


class BusyError(CacheError):
    """A file or folder that another process is writing."""


class VideoError(CostlError):
    """A video that cannot be used; in a batch it becomes a row with its `status` and reason."""

    def __init__(self, reason: str, *, status: str = "failed"):
        super().__init__(reason)
        self.status = status


def next_step(error: Exception) -> str:
    """What to do about an error of the operating system, as far as its number says."""
    return _NEXT_STEPS.get(getattr(error, "errno", None) or 0, "Choose another name or folder.")


def first_few(items: Iterable[str], *, between: str = ", ", last: str = " and ") -> str:
    """The first few of many names for an error message, and how many more there are."""
    names = list(items)
    shown = between.join(names[:SHOWN])
    more = len(names) - SHOWN
    return f"{shown}{last}{more} more" if more > 0 else shown


def suggest(name: str, candidates: Sequence[str]) -> str:
    """A sentence for an error message about an unknown name: the names most like it, otherwise the first of all names.

    A name that is only the last part of a path, as that of a video in a deeper folder, means that path.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    same = [candidate for candidate in candidates if candidate.lower().endswith(f"/{name.lower()}")]
    close = same[:3] or [by_lower[text] for text in get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {first_few(candidates)}."
