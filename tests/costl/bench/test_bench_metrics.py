"""The bench of metrics is fair: both implementations do the same work and give the same numbers."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from costl.bench import metrics as bench
from costl.bench.metrics import MetricsBench, bench_metrics, plain_metrics, synthetic
from costl.commands import main
from costl.metrics.compute import compute_metrics
from costl.pipeline.errors import CostlError, UsageError


@pytest.mark.parametrize("seed", range(4))
def test_the_plain_loop_agrees_to_the_last_digit(seed):
    predictions, queries = synthetic(seed, count=60)
    metrics = compute_metrics(predictions, queries, official=True)
    assert plain_metrics(predictions, queries) == {name: metrics[name] for name in metrics if name != "brief"}


def test_synthetic_predictions_have_the_size_of_qvhighlights_val():
    predictions, queries = synthetic()
    assert len(queries) == 1550
    assert {len(row.windows) for row in predictions} == {10} and {len(row.saliency) for row in predictions} == {75}
    assert 5 < compute_metrics(predictions, queries)["brief"]["MR-full-mAP"] < 80
    assert synthetic(1, count=5) == synthetic(1, count=5) != synthetic(2, count=5)


def test_a_disagreement_is_an_error(monkeypatch):
    monkeypatch.setattr(bench, "synthetic", lambda seed: synthetic(seed, count=20))
    monkeypatch.setattr(bench, "plain_metrics", lambda *rows: plain_metrics(*rows) | {"full": {}})
    with pytest.raises(CostlError, match="disagree with the plain loop in full"):
        bench_metrics()


def test_one_file_without_the_other_is_refused(tmp_path):
    with pytest.raises(UsageError, match="belong together"):
        bench_metrics(predictions=tmp_path / "p.jsonl")


def test_the_command_prints_seconds_of_both_and_their_ratio(monkeypatch):
    monkeypatch.setattr(bench, "synthetic", lambda seed: synthetic(seed, count=40))
    table = CliRunner().invoke(main, ["bench", "metrics"])
    assert table.exit_code == 0 and "40 queries" in table.stdout and "times as long" in table.stdout
    data = json.loads(CliRunner().invoke(main, ["bench", "metrics", "--json"]).stdout)
    assert data["ratio"] == pytest.approx(data["loop_s"] / data["ours_s"])
    assert "costl bench metrics" in CliRunner().invoke(main, ["bench", "metrics", "--help"]).stdout


def test_the_ratio_is_how_many_times_as_long_the_loop_takes():
    assert "(4.0 times as long)" in "\n".join(MetricsBench(10, 0.5, 2.0).lines())
