"""TensorBoard is optional: it shows every number of metrics.jsonl; if it is missing, the error says how to install it."""

from __future__ import annotations

import json
import sys

import pytest

from costl.pipeline.errors import UsageError
from costl.train import resume, train
from costl.training.logging import flat_numbers, open_tensorboard

ROW = {"epoch": 3, "losses": {"focal": 0.5, "l1": 2}, "learning_rate": 1e-4, "val": {"MR-full-mAP": 12.5}}


def test_every_number_of_a_row_is_shown_under_its_path():
    assert dict(flat_numbers(ROW)) == {
        "losses/focal": 0.5,
        "losses/l1": 2.0,
        "learning_rate": 1e-4,
        "val/MR-full-mAP": 12.5,
    }


def test_tensorboard_is_not_imported_unless_it_is_enabled(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with open_tensorboard(tmp_path, after_epoch=0, enabled=False) as write_row:
        write_row(ROW)
    assert list(tmp_path.iterdir()) == []


def test_missing_tensorboard_is_refused_before_the_run_is_created(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # importing it then fails
    with pytest.raises(UsageError, match=r"not installed\. Install it with pip install 'costl\[tensorboard\]'"):
        train(world.cache, overrides=["train.tensorboard=true"], out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own
def test_a_resumed_run_shows_each_number_of_metrics_once(world, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed; install costl[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stop(progress) -> None:
        if "epoch 1:" in progress.detail and not progress.speed:
            raise KeyboardInterrupt

    settings = ["train.epochs=2", "train.tensorboard=true"]
    with pytest.raises(KeyboardInterrupt):
        train(world.cache, overrides=settings, out=tmp_path / "run", device="cpu", progress=stop)
    resume(tmp_path / "run", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in flat_numbers(row):
            expected.setdefault(name, []).append((row["epoch"], value))
    assert set(shown.Tags()["scalars"]) == set(expected)
    for name, values in expected.items():
        events = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in events] == [1, 2]
        assert [value for _, value in events] == pytest.approx([value for _, value in values], rel=1e-6)
