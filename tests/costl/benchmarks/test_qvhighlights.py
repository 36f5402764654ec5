"""QVHighlights: what is written is what is official, and the report says whether the test split has labels."""

from __future__ import annotations

import pytest

from costl.data.annotations import parse_jsonl

ROW = {"query": "a cat", "duration": 150, "relevant_windows": [[0, 4]]}
RATED = ROW | {"relevant_clip_ids": [0, 1], "saliency_scores": [[4, 3, 2], [0, 1, 2]]}
BARE = {"query": "a cat", "duration": 150}


@pytest.fixture
def folder(tmp_path, jsonl):
    jsonl(tmp_path / "qv" / "highlight_train_release.jsonl", RATED | {"qid": 1, "vid": "a_0.0_150.0"})
    jsonl(tmp_path / "qv" / "highlight_val_release.jsonl", RATED | {"qid": 2, "vid": "b_0.0_150.0"})
    jsonl(tmp_path / "qv" / "highlight_test_release.jsonl", BARE | {"qid": 3, "vid": "c_0.0_150.0"})
    jsonl(tmp_path / "qv" / "highlight_test_with_gt.jsonl", RATED | {"qid": 3, "vid": "c_0.0_150.0"})
    return tmp_path / "qv"


def test_every_official_row_is_written_as_it_is(prepare, official):
    folder = official("qvhighlights")
    prepared = prepare("qvhighlights", folder)
    assert prepared.code == 0 and {split: len(rows) for split, rows in prepared.splits.items()} == {
        **{"train": 7218, "val": 1550},
        "test": 1542,
    }
    for split, file in (("train", "train_release"), ("val", "val_release"), ("test", "test_with_gt")):
        name = f"highlight_{file}.jsonl"
        assert prepared.splits[split] == parse_jsonl((folder / name).read_text(encoding="utf-8"), name)
        assert prepared.quirks(split) == {}


def test_the_labelled_test_file_is_preferred(prepare, folder):
    prepared = prepare("qvhighlights", folder)
    assert "test: with labels, from highlight_test_with_gt.jsonl." in prepared.messages
    assert prepared.splits["test"][0].saliency == ((4, 3, 2), (0, 1, 2))
    (folder / "highlight_test_with_gt.jsonl").unlink()
    prepared = prepare("qvhighlights", folder)
    assert "test: without labels, from highlight_test_release.jsonl" in prepared.messages
    assert (prepared.splits["test"][0].windows, prepared.report["splits"]["test"]["rows"]) == ((), 1)


def test_without_any_test_file_the_error_names_both(prepare, folder):
    for file in folder.glob("highlight_test_*"):
        file.unlink()
    prepared = prepare("qvhighlights", folder)
    assert prepared.code == 2 and "highlight_test_with_gt.jsonl or highlight_test_release.jsonl" in prepared.messages


def test_nothing_is_held_out_where_there_is_a_validation_split(prepare, folder):
    prepared = prepare("qvhighlights", folder, "--val-share", "0.5")
    assert prepared.code == 2 and "QVHighlights has a validation split of its own" in prepared.messages
