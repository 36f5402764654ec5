"""The zip for the QVHighlights server: complete, in its format, the same bytes every time."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.data.annotations import Prediction, Query, parse_jsonl, parse_predictions
from costl.metrics.checks import check_official
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.submission import check_queries, write_submission
from costl.train import train

NAMES = ["hl_val_submission.jsonl", "hl_test_submission.jsonl"]


def queries(*qids) -> list[Query]:
    return [Query(qid, "a cat", f"v{qid}", 10.0) for qid in qids]


def rows(*qids) -> list[Prediction]:
    return [Prediction(qid, "a cat", f"v{qid}", ((0, 2, 0.5),), (1.0,) * 5) for qid in qids]


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("submission") / "run"
    train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")
    return folder


def test_a_submission_has_what_the_evaluator_asserts(world, run, tmp_path):
    arguments = ["evaluate", "--run", str(run), "--device", "cpu", "--submission"]
    for name in ("a.zip", "b.zip"):
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / name)])
        assert result.exit_code == 0 and result.stdout == f"{tmp_path / name}\n"
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.namelist() == NAMES
        for name, split in zip(NAMES, ("val", "test"), strict=True):
            text = file.read(name).decode()
            for line in text.splitlines():
                row = json.loads(line)
                assert type(row["qid"]) is int and len(row["pred_saliency_scores"]) == 12
                assert list(row) == ["qid", "query", "vid", "pred_relevant_windows", "pred_saliency_scores"]
            truth = parse_jsonl(CacheReader(world.cache).annotations(split), split)
            predictions = parse_predictions(text, name)
            assert {p.qid for p in predictions} == {q.qid for q in truth}
            check_official({p.qid: p for p in predictions}, truth, ratings_only=False)
            assert compute_metrics(predictions, truth)["brief"]["MR-full-mAP"] >= 0


def test_the_bytes_do_not_depend_on_the_clock_or_the_folder(tmp_path, monkeypatch):
    write_submission(tmp_path / "a.zip", {"val": rows(1, 2), "test": rows(3)})
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_submission(tmp_path / "else" / "b.zip", {"test": rows(3), "val": rows(1, 2)})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "else" / "b.zip").read_bytes()


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (queries(1, "s1_0"), queries(2), "val: 's1_0' is not a whole number, which a submission to QVHighlights needs"),
        (queries(1), queries("a", "b"), "test: 'a', 'b' are not a whole number"),
        (queries(1), queries(2, 5, 6), "no features of 'v5', 'v6', but the evaluator needs a row for each of the 3 queries"),
    ],
)
def test_rows_that_the_evaluator_refuses_are_named(val, test, message):
    with pytest.raises(UsageError, match=message):
        check_queries({"val": val, "test": test}, {"v1", "v2"})


def test_a_missing_split_is_named_and_nothing_is_written(world, run, tmp_path):
    copy = world.copy(tmp_path, val=None)
    arguments = ["evaluate", "--run", str(run), "--cache", str(copy.cache), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--submission", str(tmp_path / "hl.zip")])
    assert result.exit_code == 2 and "no split 'val', only test, test_unseen, train" in result.stderr
    assert not (tmp_path / "hl.zip").exists()
    result = CliRunner().invoke(main, [*arguments, "--submission", "hl.zip", "--split", "val"])
    assert (
        result.exit_code == 2 and "--submission cannot be combined with --split. It can be used with" in result.stderr
    )
