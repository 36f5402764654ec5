"""The training loop: it learns, stops early, keeps the best epoch, and resumes as if it had never been interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from costl import train as module
from costl.commands import main
from costl.config import load_config
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.progress import Progress
from costl.train import Report, resume, train
from costl.training import objective
from costl.training.checkpoint import load_checkpoint
from costl.training.optimizer import set_learning_rate
from costl.training.run_folder import read_run
from costl.training.setup import Training
from costl.training.state import fresh_state
from costl.training.step import update_ema


class Stop(Exception):
    """Raised where a person would press Ctrl-C."""


def run(world, folder: Path, *settings: str, **options) -> Report:
    """A training with two steps an epoch."""
    return train(world.cache, overrides=["train.batch_size=15", *settings], out=folder, device="cpu", **options)


def stop_after(epochs: int, *, of: int):
    """A progress callback that raises Stop when `epochs` of them are done and saved."""

    def stop(progress: Progress) -> None:
        if progress.done / progress.total >= epochs / of and f"epoch {epochs}:" in progress.detail:
            raise Stop

    return stop


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor and number in the checkpoints of a run except for the times."""
    weights, meta = load_checkpoint(folder, "last")
    best, _ = load_checkpoint(folder, "best")
    moments = {f"adam {i} {k}": v for i, s in meta["optimizer"]["state"].items() for k, v in s.items()}
    counts = {k: torch.tensor(v) for k, v in meta["counts"].items() if k != "seconds"}
    averages = {f"average {k}": v for k, v in meta["average"].items()}
    random = {"shuffle": meta["shuffle"], "random": meta["random"]["torch"]}
    return weights | {f"best {k}": v for k, v in best.items()} | moments | counts | averages | random


def without_clock(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("seconds", "waiting")}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """A run of three epochs without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(world, folder)
    return folder


def test_a_run_folder_has_settings_provenance_rows_and_checkpoints(world, whole):
    names = {path.name for path in whole.iterdir()}
    weights = {"best.safetensors", "last.safetensors"}
    assert names == {"config.yaml", "run.json", "metrics.jsonl", "curves.png", "summary.json", "eval-val"} | weights
    about = json.loads((whole / "run.json").read_text())
    assert Path(about["cache"]) == world.cache.resolve()
    assert about["fingerprint"] == CacheReader(world.cache).fingerprint
    assert about["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    row = rows(whole)[-1]
    assert row["epoch"] == 3 and 0 <= row["waiting"] <= 1 and row["seconds"] > 0
    assert {"focal", "iou", "saliency"} <= row["losses"].keys()
    assert "MR-full-mAP" in row["val"]


def test_moments_fit_better_after_three_epochs(whole):
    """The sum of all losses need not fall: the target of the focal loss grows with the IoU of the moments."""
    first, *_, last = (row["losses"] for row in rows(whole))
    assert last["iou"] < 0.95 * first["iou"]


def test_the_command_line_overrides_the_file_the_cache_and_the_defaults(world, tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 1, patience: 9}\nmodel: {dropout: 0.2}\n")
    run(world, tmp_path / "run", "model.dropout=0.0", config=[tmp_path / "mine.yaml"])
    settings = load_config(tmp_path / "run" / "config.yaml")
    assert settings.model.width == 32  # the cache
    assert (settings.train.epochs, settings.train.patience) == (1, 9)  # the file over the cache and the defaults
    assert settings.model.dropout == 0.0  # the command line over the file
    assert settings.train.weight_decay == load_config().train.weight_decay
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == settings.to_dict()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(world, whole, tmp_path):
    run(world, tmp_path / "again")
    run(world, tmp_path / "other", "train.seed=1")
    same, again, other = (final_state(folder) for folder in (whole, tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert any(not torch.equal(same[name], other[name]) for name in same)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.promise(11)
def test_a_training_resumed_after_some_epochs_ends_with_the_same_bits(world, whole, tmp_path, epochs):
    with pytest.raises(Stop):
        run(world, tmp_path / "run", progress=stop_after(epochs, of=3))
    assert not read_run(tmp_path / "run").finished
    torch.manual_seed(99)  # resuming must not depend on it
    resume(tmp_path / "run", device="cpu")
    expected = final_state(whole)
    resumed = final_state(tmp_path / "run")
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    assert [without_clock(row) for row in rows(tmp_path / "run")] == [without_clock(row) for row in rows(whole)]


def test_a_run_stopped_in_its_first_epoch_ends_with_the_same_bits(world, whole, tmp_path):
    def at_once(progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(world, tmp_path / "run", progress=at_once)
    resume(tmp_path / "run", device="cpu")
    expected = final_state(whole)
    resumed = final_state(tmp_path / "run")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_row_written_by_an_epoch_that_was_not_saved_is_written_once(world, whole, tmp_path, monkeypatch):
    save, calls = module.save_state, []

    def fail_on_the_second(state, folder):
        calls.append(state.epoch)
        if state.epoch == 2:
            raise Stop
        save(state, folder)

    monkeypatch.setattr(module, "save_state", fail_on_the_second)
    with pytest.raises(Stop):
        run(world, tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2
    monkeypatch.setattr(module, "save_state", save)
    resume(tmp_path / "run", device="cpu")
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    assert all(
        torch.equal(a, b)
        for a, b in zip(final_state(whole).values(), final_state(tmp_path / "run").values(), strict=True)
    )


def test_a_finished_run_is_not_resumed(whole):
    with pytest.raises(UsageError, match="finished already"):
        resume(whole)


def test_a_missing_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: not a run, run\.json is missing"):
        resume(tmp_path / "nowhere")


def test_a_folder_with_files_is_never_overwritten(world, whole):
    before = (whole / "best.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds files already"):
        run(world, whole)
    assert (whole / "best.safetensors").read_bytes() == before


def test_training_stops_when_validation_stops_improving(world, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 25.0, 99.0])
    monkeypatch.setattr(Training, "validate", lambda _: {"MR-full-mAP": next(scores)})
    report = run(world, tmp_path / "run", "train.epochs=5", "train.patience=2")
    assert (report.epochs, report.best_epoch, report.score, report.stopped_early) == (4, 2, 30.0, True)
    _, meta = load_checkpoint(tmp_path / "run", "best")
    assert meta == {"epoch": 2, "score": 30.0}


def test_without_a_validation_split_the_last_epoch_is_kept(world, tmp_path):
    copy = world.copy(tmp_path, val=None)
    report = run(copy, tmp_path / "run", "train.epochs=2", "train.patience=1")
    assert (report.epochs, report.best_epoch, report.score) == (2, 2, None)
    assert any("no split 'val'" in note for note in report.notes)


def test_training_does_not_depend_on_the_test_split(world, whole, tmp_path):
    copy = world.copy(tmp_path, test="no JSON at all", test_unseen="{")
    run(copy, tmp_path / "run")
    expected = final_state(whole)
    resumed = final_state(tmp_path / "run")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_choosing_on_test_is_labelled_wherever_a_number_is_printed(world, tmp_path):
    copy = world.copy(tmp_path, val="not read")
    details = []
    settings = ["--set", "train.select_on=test", "--set", "train.epochs=2", "--out", str(tmp_path / "run")]
    command = CliRunner().invoke(main, ["train", "--cache", str(copy.cache), *settings, "--device", "cpu"])
    assert command.exit_code == 0 and " on test (legacy: chosen on test)." in command.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["select_on"] == "test" and summary["legacy"].startswith("legacy: chosen on test")
    assert any("legacy: chosen on test" in note for note in summary["notes"])
    assert all("test" in row and "val" not in row for row in rows(tmp_path / "run"))
    assert summary["score"] == max(row["test"]["MR-full-mAP"] for row in rows(tmp_path / "run"))
    run(copy, tmp_path / "again", "train.select_on=test", "train.epochs=1", progress=lambda p: details.append(p.detail))
    assert "MR-full-mAP" in details[-1] and details[-1].endswith("(legacy: chosen on test)")
    evaluated = CliRunner().invoke(main, ["evaluate", "--run", str(tmp_path / "run"), "--device", "cpu"])
    assert evaluated.stdout.startswith("legacy: chosen on test")
    metrics = json.loads((tmp_path / "run" / "eval-test" / "metrics.json").read_text())
    assert metrics["legacy"].startswith("legacy: chosen on test")
    with pytest.raises(UsageError, match="cannot be computed from the labels of 'test'"):
        run(copy, tmp_path / "third", "train.select_on=test", "train.select=HL-mAP")


def test_a_run_selected_on_val_has_no_legacy_label(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["select_on"] == "val" and summary["legacy"] == "" and "legacy" not in str(summary["notes"])


def test_a_cache_without_a_training_split_is_refused(world, tmp_path):
    copy = world.copy(tmp_path, train=None)
    with pytest.raises(UsageError, match="no split 'train', only test, test_unseen, val"):
        run(copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_val_cannot_give_is_refused_before_training(world, tmp_path):
    only_saliency = "".join(
        json.dumps({name: value for name, value in json.loads(line).items() if name != "relevant_windows"}) + "\n"
        for line in CacheReader(world.cache).annotations("val").splitlines()
    )
    copy = world.copy(tmp_path, val=only_saliency)
    with pytest.raises(UsageError, match=r"train\.select is 'MR-full-mAP'.*Choose one of HL-min-Fair-mAP"):
        run(copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrong_setting_is_refused_before_the_run_is_created(world, tmp_path):
    with pytest.raises(UsageError, match=r"Did you mean learning_rate\?"):
        run(world, tmp_path / "run", "train.lerning_rate=1")
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_stops_training_and_names_the_queries(world, tmp_path, monkeypatch):
    whole_loss = objective.total_loss

    def broken(outputs, batch, weights):
        total, parts = whole_loss(outputs, batch, weights)
        return total * float("nan"), parts | {"focal": parts["focal"] * float("nan")}

    monkeypatch.setattr(objective, "total_loss", broken)
    with pytest.raises(CostlError, match=r"Epoch 1, step 1: focal is not a finite number.* queries 10\d+"):
        run(world, tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_a_full_gpu_stops_training_with_the_size_of_the_batch(world, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(objective, "total_loss", full)
    with pytest.raises(CostlError, match=r"step 1: the memory of cpu is full, .* queries about \d+ videos.*train\.batch_size"):
        run(world, tmp_path / "run")


def test_resuming_with_other_annotations_is_refused(world, tmp_path):
    copy = world.copy(tmp_path)
    with pytest.raises(Stop):
        run(copy, tmp_path / "run", progress=stop_after(1, of=3))
    world.annotate(copy.cache, train=CacheReader(world.cache).annotations("train").splitlines()[0])
    with pytest.raises(CacheError, match="annotations of 'train' have changed"):
        resume(tmp_path / "run")


def test_training_without_the_spatial_encoder_reads_only_frame_tokens(world, tmp_path, monkeypatch):
    token_counts = []
    step = module.train_step

    def count_tokens(state, objective, batch, config, **options):
        token_counts.append(batch.inputs.tokens.shape[2])
        step(state, objective, batch, config, **options)

    monkeypatch.setattr(module, "train_step", count_tokens)
    run(world, tmp_path / "run", "spatial.steps=0", "train.epochs=1")
    assert set(token_counts) == {1}


def test_biases_and_norms_do_not_decay(world):
    features = CacheReader(world.cache)
    state = fresh_state(load_config(features.settings), features, torch.device("cpu"))
    decayed, free = state.optimizer.param_groups
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in free["params"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(list(state.model.parameters()))


def test_the_learning_rate_rises_then_falls_to_zero(world):
    features = CacheReader(world.cache)
    config = load_config(features.settings, overrides=["train.warmup_steps=10", "train.learning_rate=1.0"])
    state = fresh_state(config, features, torch.device("cpu"))

    def rate(step: int, progress: float) -> float:
        state.step = step
        set_learning_rate(state.optimizer, config.train, step=state.step, progress=progress)
        return state.optimizer.param_groups[1]["lr"]

    assert rate(0, 0.0) == pytest.approx(0.1)
    assert rate(9, 0.0) == pytest.approx(1.0)
    assert rate(500, 0.5) == pytest.approx(0.5)
    assert rate(999, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_ema_weights_follow_the_model_with_the_given_decay(world):
    features = CacheReader(world.cache)
    state = fresh_state(load_config(features.settings), features, torch.device("cpu"))
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.fill_(1.0)
        for parameter in state.ema_model.parameters():
            parameter.fill_(0.0)
    update_ema(state.ema_model, state.model, decay=0.75)
    assert all(torch.allclose(p, torch.tensor(0.25)) for p in state.ema_model.parameters())
