"""Checkpoints, exports and interrupted runs of earlier versions, whose submodules had other names, still load.

`earlier_version.json` was written by the version before the names changed: for each kind of model the keys and shapes of
its state dict, and the outputs for the weights and inputs that `waves` makes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_model import SMALL, VARIANTS, C, E, W, small_model, untrained, with_contrast
from torch import Tensor, nn

from costl.ask.export_model import export
from costl.ask.trained_model import read_trained_model
from costl.config import load_config
from costl.evaluate import evaluate
from costl.model.build import Model
from costl.model.inputs import ModelInputs
from costl.pipeline.encode.types import TokenProjection
from costl.pipeline.errors import CacheError
from costl.pipeline.progress import Progress
from costl.train import resume, train
from costl.training.checkpoint import (
    REMOVED_KEYS,
    load_checkpoint,
    load_matching_weights,
    save_checkpoint,
    with_current_keys,
)

EARLIER = json.loads(Path(__file__).with_name("earlier_version.json").read_text())
every_kind = pytest.mark.parametrize("kind", EARLIER)


def waves(*shape: int, phase: float = 0.0, scale: float = 1.0) -> Tensor:
    """Values that do not depend on a random generator."""
    count = int(torch.tensor(shape).prod())
    return scale * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) ** 1.1 + phase).reshape(shape).float()


def model_of(kind: str) -> Model:
    return untrained(load_config(SMALL, overrides=[f"model.kind={kind}"])).eval()


def train_earlier(world: Any, *, kind: str, epochs: int, out: Path, progress: Any = None) -> None:
    """Trains the model of the earlier version."""
    overrides = [f"model.kind={kind}", f"train.epochs={epochs}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("costl.model.build._position_reader", lambda *_: None)
        train(world.cache, overrides=overrides, out=out, device="cpu", progress=progress)


def earlier_weights(kind: str) -> dict[str, Tensor]:
    """Weights under their earlier keys."""
    weights = {
        key: waves(*shape, phase=float(i), scale=0.4) for i, (key, shape) in enumerate(EARLIER[kind]["shapes"].items())
    }
    return weights | {"joint_logit_scale": torch.tensor(10.0)}


def inputs() -> ModelInputs:
    """Three queries about two videos, with padded clips and words."""
    tokens = waves(2, 5, 7, C)
    projection = TokenProjection(
        norm_weight=(1 + waves(C, scale=0.1)).numpy(),
        norm_bias=waves(C, phase=1.0, scale=0.1).numpy(),
        norm_eps=1e-5,
        projection=waves(C, E, phase=2.0).numpy(),
    )
    return ModelInputs(
        tokens=tokens,
        joint=torch.from_numpy(projection.project(tokens[:, :, 0].numpy())),
        frame_mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        video=torch.tensor([0, 1, 0]),
        words=waves(3, 4, W, phase=1.0),
        word_mask=torch.tensor([[True] * 4, [True, True, False, False], [True] * 3 + [False]]),
        sentence=nn.functional.normalize(waves(3, E, phase=2.0), dim=-1),
    )


@every_kind
def test_every_earlier_key_has_a_current_key_and_none_is_missing(kind):
    model = model_of(kind)
    load_matching_weights(model, earlier_weights(kind), source="a run")
    renamed = with_current_keys(earlier_weights(kind))
    assert len(renamed) == len(EARLIER[kind]["shapes"]) - len(REMOVED_KEYS)
    assert renamed.keys() == model.state_dict().keys() | {"logit_scale"}  # which only CoSTL still reads


@every_kind
def test_earlier_weights_give_the_outputs_of_the_earlier_version(kind):
    model = model_of(kind)
    load_matching_weights(model, earlier_weights(kind), source="a run")
    with torch.no_grad():
        outputs = with_contrast(model, inputs())
    values = {name: getattr(outputs, name) for name in ("foreground", "spans", "saliency")}
    values |= {name: getattr(outputs.similarities, name) for name in ("positives", "negatives")}
    for name, value in values.items():
        expected = torch.tensor(EARLIER[kind]["outputs"][name])
        torch.testing.assert_close(value.flatten(), expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_the_keys_of_this_version_stay_as_they_are(overrides):
    weights = small_model(*overrides).state_dict()
    assert list(with_current_keys(weights)) == list(weights)


@every_kind
def test_the_keys_of_this_version_stay_as_they_are_for_every_kind(kind):
    weights = model_of(kind).state_dict()
    assert list(with_current_keys(weights)) == list(weights)


@every_kind
def test_weights_with_an_earlier_and_a_current_key_are_refused(kind):
    model = model_of(kind)
    weights = model.state_dict() | {"words.norms.0.weight": torch.ones(W // 2)}
    with pytest.raises(CacheError, match=r"unexpected words\.norms\.0\.weight"):
        load_matching_weights(model, weights, source="a run")


@every_kind
def test_load_checkpoint_returns_the_keys_of_this_version(tmp_path, kind):
    model = model_of(kind)
    earlier = earlier_weights(kind)
    save_checkpoint(tmp_path, "best", earlier, {})
    loaded, _ = load_checkpoint(tmp_path, "best")
    load_matching_weights(model, loaded, source="a run")
    assert loaded.keys() >= model.state_dict().keys()
    assert equal(loaded, with_current_keys(earlier))


# --- whole runs -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a training as a crash would."""


def stop_after_a_save(run: Path) -> Callable[[Progress], None]:
    """A progress callback that ends the training as soon as the run has something to resume from."""

    def stop(_: Progress) -> None:
        if (run / "last.safetensors").exists():
            raise Stop

    return stop


def with_earlier_keys(kind: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `with_current_keys`, from the stored list of earlier keys."""
    shapes = EARLIER[kind]["shapes"]
    earlier = {next(iter(with_current_keys({key: torch.zeros(1)}))): key for key in shapes.keys() - REMOVED_KEYS}
    removed = {key: torch.zeros(shapes[key]) for key in shapes if key in REMOVED_KEYS}
    return removed | {earlier[key]: tensor for key, tensor in weights.items()}


def rewrite(kind: str, folder: Path, name: str) -> None:
    """Gives a checkpoint the keys of the earlier version."""
    weights, meta = load_checkpoint(folder, name)
    stored: dict[str, Any] = dict(meta)
    if "average" in stored:
        stored["average"] = with_earlier_keys(kind, stored["average"])
    save_checkpoint(folder, name, with_earlier_keys(kind, weights), stored)


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@every_kind
def test_a_run_of_an_earlier_version_evaluates_and_exports_as_before(world, tmp_path, kind):
    run = tmp_path / "run"
    train_earlier(world, kind=kind, epochs=1, out=run)
    metrics = evaluate(run, device="cpu").metrics
    trained = read_trained_model(run)
    rewrite(kind, run, "best")
    assert evaluate(run, device="cpu", out=tmp_path / "again").metrics == metrics
    earlier = read_trained_model(run)
    assert equal(earlier.weights, trained.weights)
    assert equal(earlier.model().state_dict(), trained.model().state_dict())
    export(run, tmp_path / "exported", with_clip=False)
    assert equal(safetensors.torch.load_file(tmp_path / "exported" / "model.safetensors"), trained.weights)


@every_kind
def test_an_export_of_an_earlier_version_loads(world, tmp_path, kind):
    run, folder = tmp_path / "run", tmp_path / "exported"
    train_earlier(world, kind=kind, epochs=1, out=run)
    export(run, folder, with_clip=False)
    trained = read_trained_model(folder)
    content = safetensors.torch.save(with_earlier_keys(kind, trained.weights), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)
    about = json.loads((folder / "config.json").read_text())
    about["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(about))
    assert equal(read_trained_model(folder).model().state_dict(), trained.model().state_dict())


@every_kind
def test_an_interrupted_run_of_an_earlier_version_ends_with_the_same_bits(world, tmp_path, kind):
    train_earlier(world, kind=kind, epochs=3, out=tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(Stop):
        train_earlier(world, kind=kind, epochs=3, out=run, progress=stop_after_a_save(run))
    rewrite(kind, run, "last")
    rewrite(kind, run, "best")
    resume(run, device="cpu")
    for name in ("best", "last"):
        resumed = load_checkpoint(run, name)[0]
        assert equal(resumed, load_checkpoint(tmp_path / "whole", name)[0]), name
    averages = [load_checkpoint(tmp_path / folder, "last")[1]["average"] for folder in ("run", "whole")]
    assert equal(*averages)
