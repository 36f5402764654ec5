"""Filters of a search: the beginning of a path, a date in the path or of the file, and the length of the video."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from costl.pipeline.errors import UsageError
from costl.search.filters import Filters, date_of

NOON = datetime(2025, 3, 4, 12).timestamp()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp4", date(2025, 3, 4)),
        ("2026-05-01/a.mp4", date(2026, 5, 1)),
        ("20260501_120000.mp4", date(2026, 5, 1)),
        ("PXL_20260501_2.mp4", date(2026, 5, 1)),
        ("2026_05_01.mp4", date(2026, 5, 1)),
        ("2026.05.01 party.mp4", date(2026, 5, 1)),
        ("2020-01-01/2026-05-01.mp4", date(2026, 5, 1)),
        ("2026-05-01/20261399.mp4", date(2026, 5, 1)),  # not a date
        ("2026-0501.mp4", date(2025, 3, 4)),
        ("120260501.mp4", date(2025, 3, 4)),  # inside a longer number
        ("18260501.mp4", date(2025, 3, 4)),
    ],
)
def test_the_date_of_a_video(name, expected):
    assert date_of(name, NOON) == expected


@pytest.mark.parametrize(
    ("filters", "accepted"),
    [
        ({}, True),
        ({"within": "2026/"}, True),
        ({"within": "2026/holiday/a.mp4"}, True),
        ({"within": "holiday"}, False),
        ({"within": "*/holiday/*"}, True),
        ({"within": "*.mkv"}, False),
        ({"after": date(2025, 3, 4)}, True),
        ({"after": date(2025, 3, 5)}, False),
        ({"before": date(2025, 3, 4)}, False),
        ({"before": date(2025, 3, 5)}, True),
        ({"after": date(2025, 1, 1), "before": date(2025, 2, 1)}, False),
        ({"longer_than_s": 59.9}, True),
        ({"longer_than_s": 60}, False),
    ],
)
def test_which_videos_pass(filters, accepted):
    assert Filters(**filters).accepts("2026/holiday/a.mp4", changed_s=NOON, duration_s=60.0) is accepted


@pytest.mark.parametrize(
    "values",
    [
        {"after": "2026-05-01"},
        {"before": datetime(2026, 5, 1)},
        {"longer_than_s": -1},
        {"longer_than_s": float("nan")},
        {"within": 3},
    ],
)
def test_values_of_another_kind_are_refused(values):
    (name,) = values
    with pytest.raises(UsageError, match=f"^{name} is .*, expected"):
        Filters(**values)
