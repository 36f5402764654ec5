"""TACoS: both layouts give the same rows, and its videos are found under either of their names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from costl.benchmarks.common import DROPPED, LONG, NO_WINDOW
from costl.data.annotations import parse_jsonl

SPLITS = ("train", "val", "test")
VIDEO = {
    "timestamps": [[294, 588], [0, 5880]],
    "sentences": ["He took out a pan", "She"],
    "fps": 29.4,
    "num_frames": 5880,
}


def write_videos(folder, **changes):
    folder.mkdir(exist_ok=True)
    for number, split in enumerate(SPLITS):
        fields = VIDEO | (changes if split == "train" else {})
        (folder / f"{split}.json").write_text(json.dumps({f"s{number}-d1.avi": fields}, indent=1))
    return folder


def test_every_official_row_is_written_as_it_is(prepare, official):
    prepared = prepare("tacos", official("tacos"))
    assert [len(prepared.splits[split]) for split in SPLITS] == [9790, 4436, 4001]
    for split in SPLITS:
        text = (official("tacos") / f"{split}.jsonl").read_text(encoding="utf-8")
        queries = parse_jsonl(text, split)
        assert prepared.splits[split] == queries
        assert prepared.quirks(split) == {
            LONG: sum(end - start > 150 for query in queries for start, end in query.windows),
        }


def test_frames_become_seconds_and_give_the_same_rows_as_the_jsonl(prepare, official, tmp_path):
    fps = 29.4
    for split in SPLITS:
        videos: dict = {}
        for row in map(json.loads, (official("tacos") / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()):
            frames = [round(second * fps) for second in row["relevant_windows"][0]]
            fields = {"timestamps": [], "sentences": [], "fps": fps, "num_frames": round(row["duration"] * fps)}
            video = videos.setdefault(row["vid"] + ".avi", fields)
            video["timestamps"].append(frames)
            video["sentences"].append(row["query"])
        (tmp_path / f"{split}.json").write_text(json.dumps(videos))
    frames, seconds = prepare("tacos", tmp_path, out="frames"), prepare("tacos", official("tacos"), out="seconds")
    for split in SPLITS:
        one, other = ({query.qid: query for query in prepared.splits[split]} for prepared in (frames, seconds))
        assert one.keys() == other.keys()
        for qid, query in one.items():
            assert (query.query, query.vid) == (other[qid].query.strip(), other[qid].vid)
        found, expected = ([(*rows[qid].windows[0], rows[qid].duration_s) for qid in one] for rows in (one, other))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_small_files_in_frames(prepare, tmp_path):
    prepared = prepare("tacos", write_videos(tmp_path / "tacos", timestamps=[[294, 588], [29, 29]]))
    (query,) = prepared.splits["train"]
    assert (query.qid, query.vid, query.windows, query.duration_s) == ("s0-d1_0", "s0-d1", ((10, 20),), 200)
    assert prepared.quirks("train") == {DROPPED: 1, NO_WINDOW: 1} and prepared.quirks("val") == {LONG: 1}


def test_a_video_is_found_with_and_without_the_camera_in_its_name(prepare, tmp_path):
    for name in ("s0-d1.avi", "s1-d1-cam-002.mp4", "s2-d1-cam-002.avi"):
        (tmp_path / name).touch()
    prepared = prepare("tacos", write_videos(tmp_path / "tacos"), "--videos", tmp_path)
    assert prepared.code == 0 and prepared.report["splits"]["val"]["missing"] == 0
    assert [prepared.splits[split][0].vid for split in SPLITS] == ["s0-d1", "s1-d1-cam-002", "s2-d1-cam-002"]


def test_files_of_other_videos_are_not_read_as_tacos(prepare, jsonl, tmp_path):
    for split in SPLITS:
        jsonl(tmp_path / f"{split}.jsonl", {"qid": 1, "query": "a", "vid": "holiday", "duration": 9})
    prepared = prepare("tacos", tmp_path)
    assert prepared.code == 2 and "has a video 'holiday', expected names like 's17-d69'" in prepared.messages


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"fps": 0}, "'fps' is 0, expected a number above zero"),
        ({"num_frames": "many"}, "'num_frames' is 'many', expected a number"),
        ({"fps": None}, "'fps' is missing"),
        ({"sentences": ["one"]}, "1 sentences but 2 timestamps"),
        ({"sentences": [1, 2]}, "'sentences' is not a list of texts"),
        ({"timestamps": [[1], [2]]}, "not 2 numbers long"),
    ],
)
def test_a_bad_video_is_named(prepare, tmp_path, changes, answer):
    prepared = prepare("tacos", write_videos(tmp_path / "tacos", **changes))
    assert prepared.code == 2 and "train.json: s0-d1.avi: " in prepared.messages and answer in prepared.messages


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{\n"a": {,\n', "train.json: not JSON (Expecting property name enclosed in double quotes: line 2"),
        ("[]", "a JSON list, expected an object with one entry for each video"),
        ('{"a": {"fps": NaN}}', "NaN is not a number JSON knows"),
        ('{"a": {}, "a": {}}', "'a' is given twice"),
    ],
)
def test_invalid_json_is_refused_with_its_line(prepare, tmp_path, text, answer):
    folder = write_videos(tmp_path / "tacos")
    (folder / "train.json").write_text(text)
    prepared = prepare("tacos", folder)
    assert prepared.code == 2 and answer in prepared.messages
