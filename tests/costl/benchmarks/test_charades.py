"""Charades-STA: both layouts give the same rows, training videos are held out, and windows are put right by name."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from costl.benchmarks.common import CLIPPED, DROPPED, NO_WINDOW
from costl.data.annotations import parse_jsonl

TRAIN = ["AO8RW 0.0 6.9##a person is putting a book on a shelf.", "Y6R7T 20.8 30.0##person begins to play on a phone."]
TEST = ["3MSZA 24.3 30.4##person turn a light on."]
LENGTHS = {"AO8RW": "33.67", "Y6R7T": "29.42", "3MSZA": "30.96"}


def write_texts(folder, train=TRAIN, test=TEST, lengths=LENGTHS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "charades_sta_train.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
    (folder / "charades_sta_test.txt").write_text("\n".join(test) + "\n", encoding="utf-8")
    if lengths:
        with (folder / "Charades_v1_train.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "subject", "script", "length"])
            rows.writerows([vid, "HR43", "A person, over\ntwo lines.", length] for vid, length in lengths.items())
    return folder


def test_every_official_row_is_written_and_training_videos_are_held_out(prepare, official):
    folder = official("charades_sta")
    prepared = prepare("charades", folder)
    splits = prepared.splits
    train, test = (
        parse_jsonl((folder / f"charades_sta_{split}_tvr_format.jsonl").read_text(encoding="utf-8"), split)
        for split in ("train", "test")
    )
    assert splits["test"] == test and len(test) == 3720
    assert sorted([*splits["train"], *splits["val"]], key=lambda query: query.qid) == train and len(train) == 12404
    videos = {split: {query.vid for query in rows} for split, rows in splits.items()}
    assert not videos["train"] & videos["val"] and 0.08 < len(videos["val"]) / 5336 < 0.12
    assert f"val: {len(videos['val'])} training videos held out (share 0.1, seed 0)" in prepared.messages


def test_the_texts_of_the_dataset_give_the_same_bytes_as_the_jsonl(prepare, official, tmp_path):
    rows, lengths = {}, {}
    for split in ("train", "test"):
        text = (official("charades_sta") / f"charades_sta_{split}_tvr_format.jsonl").read_text(encoding="utf-8")
        rows[split] = [json.loads(line) for line in text.splitlines()]
        lengths |= {row["vid"]: str(row["duration"]) for row in rows[split]}
    train, test = (
        ["{} {} {}##{}".format(row["vid"], *row["relevant_windows"][0], row["query"]) for row in rows[split]]
        for split in ("train", "test")
    )
    texts = prepare("charades", write_texts(tmp_path / "sta", train, test, lengths), out="texts")
    jsonl = prepare("charades", official("charades_sta"), out="jsonl")
    for split in ("train", "val", "test"):
        assert (texts.out / f"{split}.jsonl").read_bytes() == (jsonl.out / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("charades_sta_train_tvr_format", "charades_sta_val_tvr_format"),
        ("charades_train_release", "charades_test_release"),
    ],
)
def test_file_names_of_other_projects_are_found(prepare, jsonl, tmp_path, train, test):
    row = {"query": "a", "duration": 9, "relevant_windows": [[0, 4]]}
    jsonl(tmp_path / "sta" / f"{train}.jsonl", row | {"qid": 0, "vid": "A"})
    jsonl(tmp_path / "sta" / f"{test}.jsonl", row | {"qid": 1, "vid": "B"})
    prepared = prepare("charades", tmp_path / "sta", "--val-share", "0")
    assert {split: [q.vid for q in rows] for split, rows in prepared.splits.items()} == {"train": ["A"], "test": ["B"]}
    assert "val: none, Charades-STA has no validation split" in prepared.messages


def test_windows_are_clipped_or_dropped_and_rows_without_any_dropped(prepare, tmp_path):
    train = [*TRAIN, "AO8RW 9.0 3.0##reversed", "AO8RW 3.0 3.0##empty", "AO8RW 34.0 36.0##outside"]
    prepared = prepare("charades", write_texts(tmp_path / "sta", train, [*TEST, "3MSZA 9 3##x"]), "--val-share", "0")
    assert prepared.quirks("train") == {CLIPPED: 1, DROPPED: 3, NO_WINDOW: 3}
    assert [query.windows for query in prepared.splits["train"]] == [((0.0, 6.9),), ((20.8, 29.42),)]
    assert CLIPPED in prepared.table and DROPPED in prepared.table
    assert "test: 1 rows without a usable window are dropped, so this is not the published test split." in prepared.messages
    # Numbers go through both files, dropped rows included, as the JSONL has them.
    assert [query.qid for query in prepared.splits["test"]] == [5]


def test_without_a_table_durations_come_from_the_videos(prepare, world, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for source, vid in zip(sorted(world.videos.glob("*.mp4")), LENGTHS, strict=False):
        shutil.copy(source, videos / f"{vid}.mp4")
    folder = write_texts(tmp_path / "sta", TRAIN[:1], ["3MSZA 20.0 30.4##person turn a light on."], None)
    prepared = prepare("charades", folder, "--videos", videos, "--val-share", "0")
    assert prepared.code == 0 and "Durations come from the video files." in prepared.messages
    assert [query.duration_s for query in prepared.splits["train"]] == [pytest.approx(24.0, abs=0.1)]
    assert prepared.quirks("test") == {CLIPPED: 1}


def test_an_unknown_duration_is_refused(prepare, tmp_path):
    prepared = prepare("charades", write_texts(tmp_path / "sta", lengths=None))
    assert prepared.code == 2
    assert "the duration of AO8RW is unknown: AO8RW: its video is missing, and no Charades_v1" in prepared.messages
    prepared = prepare("charades", write_texts(tmp_path / "sta", lengths={"AO8RW": "30"}))
    assert prepared.code == 2 and "charades_sta_train.txt:2: the duration of Y6R7T is unknown" in prepared.messages


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("AO8RW 0.0 6.9 a person", "is not `VIDEO START END##SENTENCE`"),
        ("AO8RW 0.0##a person", "is not `VIDEO START END##SENTENCE`"),
        ("AO8RW zero 6.9##a person", "'zero' is not a time in seconds"),
        ("AO8RW nan 6.9##a person", "'nan' is not a time in seconds"),
        ("AO8RW 0.0 6.9##", "query is empty"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(prepare, tmp_path, line, answer):
    prepared = prepare("charades", write_texts(tmp_path / "sta", [*TRAIN, "", line]))
    assert prepared.code == 2 and "charades_sta_train.txt:4: " in prepared.messages and answer in prepared.messages
    assert not prepared.out.exists()


def test_a_table_without_lengths_is_refused(prepare, tmp_path):
    folder = write_texts(tmp_path / "sta")
    (folder / "Charades_v1_test.csv").write_text("a,b\n1,2\n")
    prepared = prepare("charades", folder)
    assert prepared.code == 2 and "Charades_v1_test.csv:1: columns a, b, expected id, length." in prepared.messages
