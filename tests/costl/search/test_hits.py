"""Search results as tables and as plain values."""

from __future__ import annotations

import json

from random_hits import hit

from costl.search.hits import SearchResult

HITS = (hit(62.0, 68.4, name="2026/ä.mp4", score=0.934), hit(3725.0, 3730.0, name="b\x1b[2J.mp4", score=0.5))
RESULT = SearchResult("a cat", HITS, (hit(0.0, 2.0, score=0.1),), 1412, "zero-shot ViT-B-32", ("a note",))


def test_the_table_has_a_line_for_each_hit():
    assert repr(RESULT).splitlines() == [
        "a cat · 1,412 videos · zero-shot ViT-B-32",
        "   1  1:02 – 1:08        0.93  ██████████████████▋   2026/ä.mp4",
        "   2  1:02:05 – 1:02:10  0.50  ██████████            b [2J.mp4",
        "      note: a note",
    ]


def test_moments_below_the_threshold_are_shown_on_request_only():
    grey = RESULT.table(show_below=True, grey=lambda line: f"<{line}>").splitlines()
    assert grey[:3] == repr(RESULT).splitlines()[:3]
    assert grey[3:] == [
        "<      below the threshold:>",
        "<   3  0:00 – 0:02        0.10  ██                    a.mp4>",
        "      note: a note",
    ]
    assert SearchResult("x", HITS).table(show_below=True) == repr(SearchResult("x", HITS))


def test_a_search_that_finds_nothing_says_so():
    assert repr(SearchResult("a\ncat", (), videos=1)).splitlines() == ["a cat · 1 video", "      no match in 1 video"]


def test_a_row_is_plain_values():
    row = json.loads(json.dumps(RESULT.to_row()))
    assert list(row) == ["query", "videos", "answered_by", "hits", "below", "notes"]
    assert row["hits"][0] == {
        "query": "a cat",
        "name": "2026/ä.mp4",
        "video": "/videos/2026/ä.mp4",
        "duration_s": 43200.0,
        "start_s": 62.0,
        "end_s": 68.4,
        "score": 0.934,
    }
    assert (row["videos"], row["notes"], len(row["below"])) == (1412, ["a note"], 1)
