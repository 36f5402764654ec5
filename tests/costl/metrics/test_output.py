"""The formats of the output: submission files, Parquet, JSON and tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from table_cells import cells

from costl.data.annotations import Prediction, Query, parse_predictions
from costl.metrics.compute import compute_metrics
from costl.metrics.output import metrics_tables, write_metrics, write_parquet, write_predictions
from costl.pipeline.errors import CostlError
from costl.pipeline.formats import files

QUERY = Query(1, "a cat", "v", 10.0, ((0, 4), (6, 10)), (0, 1), ((4, 4, 4), (2, 1, 0)))
TVSUM = Query(1, "a title", "v", 8.0, (), (0, 1, 2, 3), tuple((float(i == 2),) * 20 for i in range(4)), domain="BK")
RANKED = Prediction(1, "a title", "v", (), (0.0, 0.1, 0.9, 0.2))
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
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, stops):
    write_predictions(tmp_path / "p.jsonl", [ANSWER])
    before = (tmp_path / "p.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, stops, full)
    with pytest.raises(CostlError, match=r"p\.jsonl: cannot be written \(No space left on device\)"):
        write_predictions(tmp_path / "p.jsonl", [])
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_the_table_shows_every_headline_number_and_the_notes():
    swapped = Prediction(1, "a cat", "v", ANSWER.windows[::-1])
    metrics = compute_metrics([swapped], [QUERY])
    lines = metrics_tables(metrics | {"intervals": {"MR-full-R1@0.5": [80.04, 100.0]}})
    head, _, *rows = lines[: lines.index("")]
    assert cells(head) == ["moments", "full", "95 %", "short"]
    names = ["R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7", "mAP@0.5", "mAP@0.75", "mAP", "mIoU"]
    assert [cells(row)[0] for row in rows] == names and len({len(line) for line in (head, *rows)}) == 1
    assert cells(rows[1]) == ["R1@0.5", "100.00", "80.0 - 100.0", "100.00"]
    assert ">= VeryGood" in "".join(lines) and lines[-1].startswith("note: 1 predictions are not sorted")
    shown = {float(cell) for line in lines for cell in cells(line) if cell.replace(".", "").isdecimal()}
    assert {round(value, 2) for value in metrics["brief"].values()} <= shown


def test_the_official_table_has_no_row_for_what_is_not_published():
    text = "".join(metrics_tables(compute_metrics([ANSWER], [QUERY], official=True)))
    assert "mIoU" not in text and "R5" not in text and "R1@0.7" in text


def test_numbers_selected_on_test_are_labelled_legacy():
    lines = metrics_tables({"legacy": "legacy: chosen on test"} | compute_metrics([ANSWER], [QUERY]))
    assert lines[0] == "legacy: chosen on test"


def test_rankings_have_a_row_for_each_domain_and_their_mean():
    metrics = compute_metrics([RANKED], [TVSUM], benchmark="tvsum") | {"intervals": {"HL-top5-mAP": [1, 2]}}
    head, _, domain, mean = metrics_tables(metrics)
    assert cells(head) == ["highlights", "top5-mAP", "95 %", "videos"]
    assert cells(domain) == ["BK", "100.00", "", "1"] and cells(mean) == ["mean", "100.00", "1.0 - 2.0", ""]
    nameless = compute_metrics([RANKED], [replace(TVSUM, domain="")], benchmark="tvsum")
    head, _, row = metrics_tables(nameless)
    assert [cells(line)[0] for line in (head, row)] == ["highlights", "all"]
