"""Training starts from the weights of another trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from costl.ask.export_model import export
from costl.pipeline.errors import CacheError, UsageError
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import read_run
from costl.training.setup import Training

pytestmark = pytest.mark.usefixtures("no_final_report")
SETTINGS = ["train.epochs=1", "train.batch_size=30"]


@pytest.fixture(scope="module")
def earlier(world, tmp_path_factory) -> Path:
    """A run of another size than the settings of the cache say."""
    folder = tmp_path_factory.mktemp("runs") / "earlier"
    train(world.cache, overrides=[*SETTINGS, "model.width=24"], out=folder, device="cpu")
    return folder


def weights(run: Path, name: str = "best") -> dict[str, torch.Tensor]:
    return load_checkpoint(run, name)[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_first_step_starts_from_the_weights_of_the_model(world, earlier, tmp_path):
    still = ["train.learning_rate=1e-30", "train.weight_decay=0"]
    train(world.cache, overrides=[*SETTINGS, *still], out=tmp_path / "run", device="cpu", start_from=earlier)
    for name, tensor in weights(tmp_path / "run", "last").items():
        torch.testing.assert_close(tensor, weights(earlier)[name], rtol=0, atol=1e-20)
    run = read_run(tmp_path / "run")
    assert run.config.model.width == 24 and run.start["model"] == str(earlier.resolve())


def test_weights_that_no_epoch_improves_on_are_kept(world, earlier, tmp_path, monkeypatch):
    scores = iter([50.0, 40.0])  # of the start, then of the first epoch
    monkeypatch.setattr(Training, "validate", lambda _: {"MR-full-mAP": next(scores)})
    report = train(world.cache, overrides=SETTINGS, out=tmp_path / "run", device="cpu", start_from=str(earlier))
    assert (report.best_epoch, report.score) == (0, 50.0) and same(weights(tmp_path / "run"), weights(earlier))
    assert not same(weights(tmp_path / "run", "last"), weights(earlier))
    assert "the weights of the start are kept with MR-full-mAP 50.0" in "\n".join(report.messages())


def test_an_export_starts_like_the_run_it_was_made_of(world, earlier, tmp_path):
    export(earlier, tmp_path / "model", with_clip=False)
    for name, start in (("a", earlier), ("b", tmp_path / "model")):
        train(world.cache, overrides=SETTINGS, out=tmp_path / name, device="cpu", start_from=start)
    assert same(weights(tmp_path / "a", "last"), weights(tmp_path / "b", "last"))


def before_the_first_checkpoint(run: Path, copy: Path) -> Path:
    """The run as a kill before its first checkpoint leaves it."""
    copy.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(run / name, copy)
    return copy


def test_a_kill_before_the_first_checkpoint_starts_from_the_model_again(world, earlier, tmp_path):
    train(world.cache, overrides=SETTINGS, out=tmp_path / "whole", device="cpu", start_from=earlier)
    killed = before_the_first_checkpoint(tmp_path / "whole", tmp_path / "killed")
    resume(killed, device="cpu")
    assert same(weights(killed, "last"), weights(tmp_path / "whole", "last"))


def test_a_model_that_changed_meanwhile_is_refused(world, earlier, tmp_path):
    start = Path(shutil.copytree(earlier, tmp_path / "start"))
    train(world.cache, overrides=SETTINGS, out=tmp_path / "whole", device="cpu", start_from=start)
    killed = before_the_first_checkpoint(tmp_path / "whole", tmp_path / "killed")
    shutil.copy(tmp_path / "whole" / "last.safetensors", start / "best.safetensors")
    with pytest.raises(UsageError, match=r"start has other weights than when this run started\. Train a new run\."):
        resume(killed, device="cpu")


def with_another_encoder(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    about["fingerprint"]["weights"] = "0" * 64
    (run / "run.json").write_text(json.dumps(about))


REFUSED = {
    "another encoder": (with_another_encoder, [], CacheError, r"trained with another encoder than .*weights: the model has 0000"),
    "another width": (lambda run: None, ["model.width=32"], UsageError, r"other settings than --set asks for\. Leave out"),
    "no run": (lambda run: (run / "run.json").unlink(), [], UsageError, r"neither run\.json nor config\.json in it"),
    "damaged weights": (lambda run: (run / "best.safetensors").write_bytes(b"{"), [], CacheError, r"best\.safetensors: damaged"),
    "no weights": (lambda run: (run / "best.safetensors").unlink(), [], CacheError, "no such checkpoint"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(world, earlier, tmp_path, name):
    change, settings, error, message = REFUSED[name]
    start = Path(shutil.copytree(earlier, tmp_path / "start"))
    change(start)
    with pytest.raises(error, match=message):
        train(world.cache, overrides=[*SETTINGS, *settings], out=tmp_path / "run", device="cpu", start_from=start)
    assert not (tmp_path / "run").exists()


def test_frames_sampled_at_another_rate_are_no_other_encoder(world, earlier, tmp_path):
    start = Path(shutil.copytree(earlier, tmp_path / "start"))
    about = json.loads((start / "run.json").read_text())
    about["fingerprint"] |= {"fps": 2.0, "decoder": "torchcodec", "dtype": "int8"}
    (start / "run.json").write_text(json.dumps(about))
    train(world.cache, overrides=SETTINGS, out=tmp_path / "run", device="cpu", start_from=start)
