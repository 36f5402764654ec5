"""Half precision: it learns, a step that overflows is skipped, no loss overflows, and resuming is exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import NEGATIVE_PAIRS, SMALL, Sprites, longer, untrained, with_contrast

from costl.config import KINDS, Loss, load_config
from costl.data.annotations import Query
from costl.data.batch import Batch, collate
from costl.model.contrast import NEGATIVE_CLIP_STEP, Similarities
from costl.model.costl import Outputs
from costl.model.heads import anchors
from costl.model.inputs import ModelInputs
from costl.pipeline.errors import CostlError, UsageError
from costl.train import resume, train
from costl.training import objective
from costl.training.checkpoint import load_checkpoint
from costl.training.objective import total_loss
from costl.training.precision import autocast, choose_precision, make_scaler, may_overflow
from costl.training.run_folder import read_rows, read_run

pytestmark = pytest.mark.usefixtures("no_final_report")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALVES = ("bfloat16", "float16")


def run(world, folder: Path, *changes: str, **options):
    return train(world.cache, overrides=changes, out=folder, device="cpu", **options)


def rows(folder: Path) -> list[dict]:
    return read_rows(read_run(folder), up_to=load_checkpoint(folder, "last")[1]["counts"]["epoch"])


# --- which precision ---------------------------------------------------------------------------------------------


def test_auto_is_half_precision_on_a_gpu_and_float32_elsewhere(monkeypatch):
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, value=capability: value)
        assert choose_precision("auto", CUDA) == expected
    assert choose_precision("auto", CPU) == choose_precision("float32", CUDA) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


def test_an_unknown_precision_is_refused_with_the_valid_ones():
    with pytest.raises(
        UsageError, match=r"train\.precision is 'fp8', expected one of auto, float32, bfloat16, float16"
    ):
        load_config(overrides=["train.precision=fp8"])


def test_only_float16_is_scaled():
    assert [make_scaler(CPU, dtype).is_enabled() for dtype in (torch.float32, torch.bfloat16, torch.float16)] == [
        False,
        False,
        True,
    ]


# --- training in it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(world, tmp_path_factory) -> list[dict]:
    """The rows of two epochs in float32."""
    folder = tmp_path_factory.mktemp("full") / "run"
    run(world, folder, "train.epochs=2", "train.precision=float32")
    return rows(folder)


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_learns_what_float32_does_and_weights_stay_float32(world, full, tmp_path, precision):
    run(world, tmp_path / "run", "train.epochs=2", f"train.precision={precision}")
    exact = [sum(row["losses"].values()) for row in full]
    half = [sum(row["losses"].values()) for row in rows(tmp_path / "run")]
    assert half == pytest.approx(exact, rel=0.1) and half != exact
    weights, meta = load_checkpoint(tmp_path / "run", "last")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    assert bool(meta["scaler"]) == (precision == "float16")


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_resumes_within_an_epoch_to_the_last_bit(world, tmp_path, monkeypatch, precision):
    changes = ["train.epochs=1", "train.batch_size=6", f"train.precision={precision}"]
    run(world, tmp_path / "whole", *changes)
    real, calls = objective.total_loss, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(objective, "total_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path / "run", *changes)
    resume(tmp_path / "run", device="cpu")
    weights, meta = load_checkpoint(tmp_path / "whole", "last")
    resumed_weights, resumed_meta = load_checkpoint(tmp_path / "run", "last")
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    assert meta["scaler"] == resumed_meta["scaler"]
    assert meta["counts"]["step"] == resumed_meta["counts"]["step"] > 0


def test_a_step_that_overflows_float16_is_skipped_and_reduces_the_scale(world, tmp_path, monkeypatch):
    real, calls = objective.total_loss, []

    def steep(outputs, batch, weights):
        calls.append(1)
        total, parts = real(outputs, batch, weights)
        # A finite loss whose gradient, times the scale, is beyond float16.
        return total + outputs.saliency.float().sum() * 1e30 * (len(calls) == 2), parts

    monkeypatch.setattr(objective, "total_loss", steep)
    run(world, tmp_path / "run", "train.epochs=1", "train.precision=float16")
    weights, meta = load_checkpoint(tmp_path / "run", "last")
    skipped = len(calls) - meta["counts"]["step"]
    assert skipped >= 1 and meta["scaler"]["scale"] == 2.0 ** (16 - skipped)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_non_finite_gradient_at_any_loss_scale_stops_the_training():
    scaler = make_scaler(CPU, torch.float16)
    scaler.scale(torch.ones(1))  # the scale exists from the first loss on
    assert may_overflow(scaler)
    scaler.update(0.5)
    assert not may_overflow(scaler) and not may_overflow(make_scaler(CPU, torch.bfloat16))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_non_finite_gradient_names_the_queries(world, tmp_path, monkeypatch, precision):
    real = objective.total_loss

    def broken(outputs, batch, weights):
        total, parts = real(outputs, batch, weights)
        # Zero and finite, with an infinite gradient.
        return total + (outputs.saliency.float()[0, 0].detach() - outputs.saliency.float()[0, 0]).abs().sqrt(), parts

    monkeypatch.setattr(objective, "total_loss", broken)
    with pytest.raises(CostlError, match=r"step 1: the gradient is not a finite number, .* queries 10\d+") as caught:
        run(world, tmp_path / "run", f"train.precision={precision}", "train.batch_size=2")  # enough steps to halve the scale to 1
    assert ("train.precision=float32" in str(caught.value)) == (precision == "float16")


# --- the model and both baselines ---------------------------------------------------------------------------------


ERRORS = {"bfloat16": (0.08, 0.15), "float16": (0.01, 0.02)}  # of outputs and of gradients, as parts of the largest
LEAST_SCALE = 2**12  # a scale of float16 that is still far above the small gradients that it protects


@dataclass(frozen=True)
class Step:
    """The results of one batch: the loss, the outputs without padding, and the gradient of all weights."""

    loss: float
    outputs: dict[str, torch.Tensor]
    gradient: torch.Tensor


def step_in(precision: torch.dtype, kind: str, *, joint_space: bool) -> Step:
    """Forward, losses and backward as training computes them, on a batch with negative pairs and much padding."""
    world = Sprites()
    config = load_config(SMALL, overrides=[f"model.kind={kind}", "model.width=32"])
    torch.manual_seed(0)
    model = untrained(config, world.patch_grid)
    batch = longer(collate(world.queries, world, patches=config.patches, negative_pairs=NEGATIVE_PAIRS))
    if not joint_space:  # the joint vectors of an unknown joint space are zeros
        batch = replace(batch, inputs=replace(batch.inputs, joint=torch.zeros_like(batch.inputs.joint)))
    with autocast(CPU, precision):
        outputs = with_contrast(model, batch.inputs)
    total, _ = total_loss(outputs, batch, config.loss)
    scale = LEAST_SCALE if make_scaler(CPU, precision).is_enabled() else 1
    (total * scale).backward()
    gradients = [weight.grad.flatten() / scale for weight in model.parameters() if weight.grad is not None]
    frames = batch.frame_mask[batch.video]
    real = {
        "foreground": outputs.foreground[outputs.position_mask],
        "spans": outputs.spans[outputs.position_mask],
        "saliency": outputs.saliency[frames],
        "positives": outputs.similarities.positives[:, frames],
        "negatives": outputs.similarities.negatives[:, :, batch.frame_mask[:, ::NEGATIVE_CLIP_STEP]],
    }
    return Step(total.item(), {name: x.detach().float() for name, x in real.items()}, torch.cat(gradients))


@pytest.mark.parametrize("joint_space", [True, False], ids=["joint space", "no joint space"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", HALVES)
def test_every_model_in_half_precision_stays_near_float32(precision, kind, joint_space):
    exact = step_in(torch.float32, kind, joint_space=joint_space)
    half = step_in(getattr(torch, precision), kind, joint_space=joint_space)
    output_error, gradient_error = ERRORS[precision]
    assert half.loss == pytest.approx(exact.loss, rel=output_error)
    for name, value in exact.outputs.items():
        assert half.outputs[name].isfinite().all(), name
        assert (half.outputs[name] - value).abs().max() <= output_error * value.abs().max(), name
    assert half.gradient.isfinite().all()
    assert (half.gradient - exact.gradient).norm() <= gradient_error * exact.gradient.norm()
    assert not torch.equal(half.gradient, exact.gradient)


# --- losses ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), clips=st.integers(1, 9), moments=st.integers(0, 2))
def test_no_loss_overflows_at_the_ends_of_float16(seed, clips, moments):
    batch, outputs, leaves = extreme(seed, clips, moments)
    total, parts = total_loss(outputs, batch, Loss())
    assert total.dtype == torch.float32 and {value.dtype for value in parts.values()} == {torch.float32}
    assert all(value.isfinite() for value in parts.values()), parts
    total.backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


def extreme(seed: int, clips: int, moments: int) -> tuple[Batch, Outputs, list[torch.Tensor]]:
    """Two queries about two videos and a negative pair; the outputs are float16, most of them the largest or smallest."""
    draw = torch.Generator().manual_seed(seed)
    strides = (1, 2, 4, 8)
    centres, widths = anchors(clips, strides, CPU)

    leaves: list[torch.Tensor] = []

    def draw_extremes(*shape: int) -> torch.Tensor:
        ends = torch.tensor([-65504.0, 65504.0, 0.0, 6e-8, 1.0])
        leaves.append(ends[torch.randint(len(ends), shape, generator=draw)].half().requires_grad_())
        return leaves[-1]

    start = torch.rand(3, moments, generator=draw) * clips / 2
    mask = torch.tensor([[True], [True], [False]]).expand(3, moments)
    inputs = ModelInputs(
        tokens=torch.zeros(2, clips, 1, 1),
        joint=torch.zeros(2, clips, 1),
        frame_mask=torch.ones(2, clips, dtype=torch.bool),
        video=torch.tensor([0, 1, 1]),
        words=torch.zeros(3, 1, 1),
        word_mask=torch.ones(3, 1, dtype=torch.bool),
        sentence=torch.zeros(3, 1),
    )
    batch = Batch(
        queries=tuple(Query(i, "what", f"v{i}", 2.0 * clips) for i in range(2)),
        inputs=inputs,
        video=inputs.video,
        frame_mask=inputs.frame_mask,
        moments=torch.stack([start, start + clips / 2], -1),
        moment_mask=mask,
        ratings=torch.rand(3, clips, generator=draw),
        relevant=torch.rand(3, clips, generator=draw) > 0.5,
    )
    count = len(centres)
    before = draw_extremes(3, count).abs()
    after = draw_extremes(3, count).abs()
    outputs = Outputs(
        foreground=draw_extremes(3, count),
        spans=torch.stack([centres.half() - before, centres.half() + after], -1),
        position_mask=torch.ones(3, count, dtype=torch.bool),
        centres=centres,
        strides=widths,
        saliency=draw_extremes(3, clips),
        similarities=Similarities(draw_extremes(2, 3, clips), draw_extremes(2, 3, 2, -(-clips // NEGATIVE_CLIP_STEP))),
    )
    return batch, outputs, leaves
