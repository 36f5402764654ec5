"""Whatever windows a file gives, what is written is usable, accounted for, and read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from costl.benchmarks.common import CLIPPED, DROPPED, LONG, NO_WINDOW, row_with_windows, to_row
from costl.data.annotations import Query, parse_jsonl

times = st.floats(-50, 400, allow_nan=False) | st.integers(-5, 400).map(float)
windows = st.lists(st.tuples(times, times), max_size=6)
queries = st.builds(
    Query,
    qid=st.integers(0, 9) | st.text(),
    query=st.text(min_size=1).filter(str.strip),
    vid=st.text(min_size=1).filter(str.strip),
    duration_s=st.floats(1e-3, 300) | st.integers(1, 300).map(float),
)


@given(queries, windows)
def test_every_window_is_kept_clipped_or_counted_as_dropped(query, given_windows):
    row = row_with_windows(query, given_windows)
    assert len(row.query.windows) == len(given_windows) - row.quirks.count(DROPPED)
    inside = [(max(start, 0), min(end, query.duration_s)) for start, end in given_windows]
    assert list(row.query.windows) == [(start, end) for start, end in inside if start < end]
    unchanged = sum(window in given_windows for window in row.query.windows)
    assert row.quirks.count(CLIPPED) >= len(row.query.windows) - unchanged
    assert row.quirks.count(LONG) == sum(end - start > 150 for start, end in row.query.windows)
    assert (NO_WINDOW in row.quirks) == (bool(given_windows) and not row.query.windows)


@given(queries, windows, st.lists(st.tuples(st.floats(0, 4), st.integers(0, 4)), max_size=4), st.text())
def test_a_written_row_is_read_back_unchanged(query, given_windows, ratings, domain):
    usable = row_with_windows(query, given_windows).query.windows
    rated = ((0.0, query.duration_s),) * len(ratings)
    whole = replace(
        query, windows=usable, saliency=tuple(ratings), clip_ids=tuple(range(len(ratings))), rated_s=rated, domain=domain
    )
    line = json.dumps(to_row(whole), ensure_ascii=False)
    assert parse_jsonl(line + "\n", "train.jsonl") == [whole]
