"""The bench of metrics is fair: both implementations do the same work and give the same numbers."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from costl.bench import metrics as bench
from costl.bench.metrics import bench_metrics, plain_metrics, synthetic
from costl.commands import main
from costl.metrics.compute import compute_metrics
from costl.pipeline.errors import CostlError


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
    monkeypatch.setattr(bench, "plain_metrics", lambda *rows: plain_metrics(*rows) | {"full": {}})
    with pytest.raises(CostlError, match="disagree with the plain loop in full"):
        bench_metrics(count=20)


def test_the_table_has_the_seconds_of_both_and_their_ratio():
    _, _, ours, loop, note = bench_metrics(count=40)
    ours_s, one = map(float, ours.split("|")[2:4])
    loop_s, ratio = map(float, loop.split("|")[2:4])
    assert one == 1.0 and ratio == pytest.approx(loop_s / ours_s, rel=0.3) and "same numbers" in note
    assert "costl bench metrics" in CliRunner().invoke(main, ["bench", "metrics", "--help"]).stdout
