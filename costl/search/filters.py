"""Which videos of a library a search looks at."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase

from costl.pipeline.errors import UsageError

# 2026-05-01, 2026_05_01 or 20260501, not inside a longer number.
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(\d\d)\2(\d\d)(?!\d)")


@dataclass(frozen=True)
class Filters:
    """Conditions that a video must meet, all of them.

    `within`: its path relative to the library begins with this text, or matches it as a pattern with `*`. `after` and `before`:
    its date is on or after, or before, this day. The date is the last one in its path, such as 2026-05-01 or 20260501, or else
    that of the last change of the file. `longer_than_s`: it lasts longer than this. Raises UsageError for another kind of value.
    """

    within: str = ""
    after: date | None = None
    before: date | None = None
    longer_than_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("after", "before"):
            day = getattr(self, name)
            if not (day is None or type(day) is date):
                raise UsageError(f"{name} is {day!r}, expected a date, such as datetime.date(2026, 5, 1).")
        if not isinstance(self.within, str):
            raise UsageError(f"within is {self.within!r}, expected the beginning of a path, such as '2026/'.")
        if not self.longer_than_s >= 0:
            raise UsageError(f"longer_than_s is {self.longer_than_s!r}, expected seconds, 0 or more.")

    def accepts(self, name: str, *, changed_s: float, duration_s: float) -> bool:
        """Whether a video passes: `name` is its path relative to the library, `changed_s` the file's time since 1970."""
        if self.within and not (name.startswith(self.within) or fnmatchcase(name, self.within)):
            return False
        if duration_s <= self.longer_than_s:
            return False
        if self.after is None and self.before is None:
            return True
        day = date_of(name, changed_s)
        return (self.after is None or day >= self.after) and (self.before is None or day < self.before)


def date_of(name: str, changed_s: float) -> date:
    """The last date in the path of a video, or else the local day of its last change."""
    for year, _, month, day in reversed(_DATE.findall(name)):
        with suppress(ValueError):  # a number that is no date
            return date(int(year), int(month), int(day))
    return datetime.fromtimestamp(changed_s).astimezone().date()
