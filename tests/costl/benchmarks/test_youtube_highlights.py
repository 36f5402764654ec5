"""YouTube Highlights: frames become seconds, matches become ratings, and every rated window keeps its path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costl.benchmarks.common import CLIPPED, DROPPED

ABOUT = {"fps": 20.0, "frames": "180", "domain": "dog", "clip": [[0, 100], [50, 150], [100, 181]], "match": [-1, 0, 1]}
INFO = ["dog", None, [], 9, "channel", "My two Dogs", "", None]


def write_videos(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    videos = {"a": ABOUT | {"info": INFO} | changes, "b": ABOUT | {"info": INFO[:5]}, "c": ABOUT | {"info": INFO}}
    (folder / "youtube_anno.json").write_text(json.dumps(videos))
    (folder / "splits_umt.json").write_text(json.dumps({"dog": {"train": ["a", "gone"], "val": ["b"]}}))
    return folder


def write_rows(folder: Path, jsonl, **changes) -> Path:
    for split, vid in (("train", "a"), ("valid", "b")):
        row = ABOUT | {
            "qid": vid,
            "query": "dog",
            "duration": 9.0,
            "vid": vid,
            "label": [[0], [0], [1]],
            "frames": 180.0,
        }
        jsonl(folder / f"youtube_{split}.jsonl", row | changes)
    return folder


def test_every_official_window_has_its_seconds_and_rating(prepare, official):
    folder = official("youtube_highlights")
    truth = json.loads((folder / "youtube_anno.json").read_text(encoding="utf-8"))
    prepared = prepare("youtube-highlights", folder)
    counts = {split: len(rows) for split, rows in prepared.splits.items()}
    assert counts["train"] + counts["val"] == 233 and counts["test"] == 152
    clipped = 0
    for query in (query for rows in prepared.splits.values() for query in rows):
        fields = truth[query.vid]
        assert query.duration_s == pytest.approx(int(fields["frames"]) / fields["fps"])
        assert query.query == (fields["info"][5].strip() or fields["domain"]) and query.domain == fields["domain"]
        assert [rating > 2 for (rating,) in query.saliency] == [match > 0 for match in fields["match"]]
        assert query.saliency == tuple((2.0 * (match + 1),) for match in fields["match"])
        for (start, end), (first, last) in zip(query.rated_s, fields["clip"], strict=True):
            assert start == pytest.approx(first / fields["fps"])
            assert end == pytest.approx(min(last / fields["fps"], query.duration_s))
        clipped += sum(last > int(fields["frames"]) for _, last in fields["clip"])
    assert sum(prepared.quirks(split).get(CLIPPED, 0) for split in counts) == clipped == 80


def test_all_annotated_videos_are_split_as_umt_splits_them(prepare, official):
    folder = official("youtube_highlights")
    prepared = prepare("youtube-highlights", folder / "splits_umt.json", "--val-share", "0")
    split = json.loads((folder / "splits_umt.json").read_text(encoding="utf-8"))
    annotated = json.loads((folder / "youtube_anno.json").read_text(encoding="utf-8"))
    for name, part in (("train", "train"), ("test", "val")):
        expected = {vid for parts in split.values() for vid in parts[part] if vid in annotated}
        assert {query.vid for query in prepared.splits[name]} == expected
    assert len(prepared.splits["train"]) == 235 and len(prepared.splits["test"]) == 157
    assert "27 videos of splits_umt.json have no annotation, 30 annotated ones are in no split" in prepared.messages


def test_small_files_of_both_layouts(prepare, jsonl, tmp_path):
    whole = prepare("youtube-highlights", write_videos(tmp_path / "whole"), "--val-share", "0", out="one")
    rows = prepare("youtube-highlights", write_rows(tmp_path / "rows", jsonl), "--val-share", "0", out="two")
    (a,), (b,) = whole.splits["train"], whole.splits["test"]
    assert (a.vid, a.query, b.vid, b.query) == ("a", "My two Dogs", "b", "dog")  # b has no title
    assert a.rated_s == ((0, 5), (2.5, 7.5), (5, 9)) and a.saliency == ((0,), (2,), (4,)) and a.clip_ids == (0, 1, 2)
    assert whole.quirks("train") == {CLIPPED: 1}
    assert "1 videos of splits_umt.json have no annotation, 1 annotated ones are in no split" in whole.messages
    assert [query.query for query in rows.splits["train"]] == ["dog"] and "the query is the name of the domain" in rows.messages
    assert rows.splits["train"][0].rated_s == a.rated_s


def test_a_reversed_window_is_dropped_and_the_others_keep_their_ratings(prepare, tmp_path):
    clips = {"clip": [[0, 100], [150, 50], [100, 180]], "match": [-1, 0, 1]}
    prepared = prepare("youtube-highlights", write_videos(tmp_path / "whole", **clips), "--val-share", "0")
    (query,) = prepared.splits["train"]
    assert (query.rated_s, query.saliency, query.clip_ids) == (((0, 5), (5, 9)), ((0,), (4,)), (0, 1))
    assert prepared.quirks("train") == {DROPPED: 1}


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"match": [1, 2, 0]}, "'match' is not a list of -1, 0 and 1"),
        ({"match": [1]}, "3 windows in 'clip' but 1 in 'match'"),
        ({"match": None}, "'match' is not a list"),
        ({"fps": "fast"}, "'fps' is 'fast', expected a number"),
        ({"domain": 3}, "'domain' is the number 3, expected a text"),
        ({"clip": [[1, 1]], "match": [1]}, "no window is rated"),
    ],
)
def test_a_bad_video_is_named_in_both_layouts(prepare, jsonl, tmp_path, changes, answer):
    whole = prepare("youtube-highlights", write_videos(tmp_path / "whole", **changes))
    assert whole.code == 2 and "youtube_anno.json: a: " in whole.messages and answer in whole.messages
    rows = prepare("youtube-highlights", write_rows(tmp_path / "rows", jsonl, **changes))
    assert rows.code == 2 and "youtube_train.jsonl:1: " in rows.messages and answer in rows.messages


@pytest.mark.parametrize("splits", [{"dog": {"train": ["a"]}}, {"dog": 3}, {"dog": {"train": [1], "val": []}}])
def test_an_invalid_split_is_refused(prepare, tmp_path, splits):
    folder = write_videos(tmp_path / "whole")
    (folder / "splits_umt.json").write_text(json.dumps(splits))
    prepared = prepare("youtube-highlights", folder)
    assert prepared.code == 2 and "splits_umt.json: dog." in prepared.messages
    assert "is not a list of video ids" in prepared.messages
