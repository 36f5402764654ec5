"""What became of the videos of a cache, for the terminal: those without features and why, then the counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.index import VideoRow

SHOWN = 20
_NAMED = 3


def status_table(rows: Sequence[VideoRow], *, everything: bool = False) -> str:
    """A line for each of the first videos without features (with `everything`, for every video), then the summary."""
    lost = [row for row in rows if not row.ok]
    told = rows if everything else lost[:SHOWN]
    width = max((len(row.name) for row in told), default=0)
    more = [] if everything or len(lost) <= SHOWN else [f"... and {len(lost) - SHOWN} more; --all lists every video."]
    alike = by_reason(lost)
    groups = alike if len(alike) < len(lost) else []  # where every reason is another one, all has been said
    return "\n".join([*(_line(row, width) for row in told), *more, *groups, *_summary(rows, lost)])


def by_reason(lost: Sequence[VideoRow]) -> list[str]:
    """A line for each reason, the most frequent first: how many videos, their status, why, and the first few names.

    Reasons are the same when they differ in a file's name or in numbers alone.
    """
    groups: dict[tuple[str, str], list[VideoRow]] = {}
    for row in lost:
        groups.setdefault((row.status, re.sub(r"\d+(\.\d+)?", "#", _reason(row))), []).append(row)
    return [_group(rows) for rows in sorted(groups.values(), key=len, reverse=True)]


def _group(rows: Sequence[VideoRow]) -> str:
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{len(rows):5} {rows[0].status}: {_reason(rows[0])} ({', '.join(row.name for row in rows[:_NAMED])}{more})"


def _reason(row: VideoRow) -> str:
    """Without the name of the file that it may begin with."""
    return re.sub(rf"^{re.escape(row.name)}(\.\w+)?: ", "", row.reason)


def _line(row: VideoRow, width: int) -> str:
    return f"{row.name:{width}}  {row.status:8}  {row.reason or f'{row.clips} clips, {row.duration_s:.1f} s'}"


def _summary(rows: Sequence[VideoRow], lost: Sequence[VideoRow]) -> list[str]:
    there = [row for row in rows if row.ok]
    hours, clips = sum(row.duration_s for row in there) / 3600, sum(row.clips for row in there)
    counts = Counter(row.status for row in lost).most_common()
    without = [f"Without: {', '.join(f'{count} {status}' for status, count in counts)}."] if lost else []
    return [f"{len(there)} of {len(rows)} videos have features. {clips} clips, {hours:.1f} hours.", *without]
