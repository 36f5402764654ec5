"""What others read: submission files, Parquet, JSON and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from costl import files
from costl.annotations import Prediction, Query, parse_predictions
from costl.export import metrics_table, write_metrics, write_parquet, write_predictions
from costl.metrics import compute_metrics
from pipeline.errors import CostlError

QUERY = Query(1, "a cat", "v", 10.0, ((0, 4), (6, 10)), (0, 1), ((4, 4, 4), (2, 1, 0)))
ANSWER = Prediction(1, "a cat", "v", ((0, 5, 0.9), (6, 9, 0.25)), (0.5, 1.0, -1.0, 0.0, 0.25))


def test_predictions_written_are_the_predictions_read_back(tmp_path):
    answers = [ANSWER, Prediction("two", "caf\u00e9 \u2028 \u732b", "w")]
    write_predictions(tmp_path / "new" / "predictions.jsonl", answers)
    text = (tmp_path / "new" / "predictions.jsonl").read_text()
    assert parse_predictions(text, "predictions.jsonl") == answers
    assert list(json.loads(text.splitlines()[0])) == [
        "qid",
        "query",
        "vid",
        "pred_relevant_windows",
        "pred_saliency_scores",
    ]


def test_parquet_holds_a_row_per_query_with_named_moments(tmp_path):
    write_parquet(tmp_path / "p.parquet", [ANSWER, Prediction(2, "a dog", "w")])
    first, second = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert first == {
        "qid": 1,
        "query": "a cat",
        "vid": "v",
        "moments": [
            {"start_s": 0.0, "end_s": 5.0, "score": 0.9},
            {"start_s": 6.0, "end_s": 9.0, "score": 0.25},
        ],
        "saliency": [0.5, 1.0, -1.0, 0.0, 0.25],
    }
    assert second["moments"] == second["saliency"] == []


def test_parquet_keeps_text_qids_as_text(tmp_path):
    write_parquet(tmp_path / "p.parquet", [ANSWER, Prediction("s1_0", "a dog", "w")])
    assert pq.read_table(tmp_path / "p.parquet").column("qid").to_pylist() == ["1", "s1_0"]


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_predictions(tmp_path / folder / "p.jsonl", [ANSWER])
        write_parquet(tmp_path / folder / "p.parquet", [ANSWER])
        write_metrics(tmp_path / folder / "m.json", compute_metrics([ANSWER], [QUERY]))
    for name in ("p.jsonl", "p.parquet", "m.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_metrics_json_is_what_was_computed(tmp_path):
    metrics = compute_metrics([ANSWER], [QUERY])
    write_metrics(tmp_path / "metrics.json", metrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


@pytest.mark.parametrize("stops", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch, stops):
    write_predictions(tmp_path / "p.jsonl", [ANSWER])
    before = (tmp_path / "p.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((files.os, "fsync", full) if stops == "fsync" else (Path, "replace", full)))
    with pytest.raises(CostlError, match=r"p\.jsonl: cannot be written \(No space left on device\)"):
        write_predictions(tmp_path / "p.jsonl", [])
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_the_table_shows_every_headline_number_and_the_notes():
    swapped = Prediction(1, "a cat", "v", ANSWER.windows[::-1])
    text = metrics_table(compute_metrics([swapped], [QUERY]))
    assert text.splitlines()[0].split() == [
        "moments",
        "R1@0.3",
        "R1@0.5",
        "R1@0.7",
        "mAP@0.5",
        "mAP@0.75",
        "mAP",
        "mIoU",
    ]
    assert "  full            100.00    100.00    100.00" in text
    assert ">= VeryGood" in text and "note: 1 predictions are not sorted" in text
    assert len({len(line) for line in text.splitlines()[:3]}) == 1


def test_the_official_table_has_no_column_for_what_is_not_published():
    assert "mIoU" not in metrics_table(compute_metrics([ANSWER], [QUERY], official=True))
