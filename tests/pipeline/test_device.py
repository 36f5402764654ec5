"""The names of devices, and what the program does on an Apple GPU as far as a machine without one can tell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from costl.data.batch import Batch
from costl.model.inputs import ModelInputs
from costl.pipeline.device import check_device, default_precision, pick_device
from costl.pipeline.errors import UsageError
from costl.pipeline.run.encoder_thread import EncoderThread, usual_batch
from costl.training.checkpoint import rng_state, set_rng_state
from costl.training.precision import autocast, choose_precision, full_precision, make_scaler

MPS = torch.device("mps")


@pytest.fixture
def apple(monkeypatch):
    """Torch believes that it has an Apple GPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    made = lambda *sizes, device: SimpleNamespace(device=torch.device(device))  # noqa: E731
    monkeypatch.setattr(torch, "empty", made)


def test_an_apple_gpu_is_used_when_it_is_named(apple):
    assert pick_device("mps").type == "mps"
    assert pick_device("auto").type != "mps", "nobody has tried it"


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_a_missing_apple_gpu_is_refused_as_a_missing_gpu_is(name):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match=rf"^device '{name}' cannot be used here \(.*\)\. Try cpu or auto\.$"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "xpu"])
def test_other_missing_devices_are_refused(name):
    with pytest.raises(UsageError, match=rf"^device '{name}' cannot be used here \(.*\)\. Try cpu or auto\.$"):
        pick_device(name)


@pytest.mark.parametrize("name", ["abacus", "mps:x", "cuda:", "", None])
def test_other_texts_are_refused_without_torch(name):
    with pytest.raises(UsageError, match="expected cpu, cuda, cuda:1 and so on, mps, or auto"):
        check_device(name)


def test_an_apple_gpu_computes_in_float32():
    assert default_precision("mps") == "fp32"
    assert choose_precision("auto", MPS) == torch.float32
    assert not make_scaler(MPS, torch.float32).is_enabled()
    with autocast(MPS, torch.float32), full_precision(MPS):
        pass
    assert usual_batch(SimpleNamespace(device=MPS)) == 64


@pytest.mark.parametrize("kind", [Batch, ModelInputs])
@pytest.mark.parametrize(("device", "waits"), [("mps", True), ("cpu", True), ("cuda", False)])
def test_only_pinned_memory_is_copied_in_the_background(monkeypatch, kind, device, waits):
    seen = []
    tensor = SimpleNamespace(to=lambda target, *, non_blocking: seen.append(non_blocking))
    monkeypatch.setattr(f"{kind.__module__}.map_tensors", lambda value, change: change(tensor))
    kind.to(None, torch.device(device))
    assert seen == [not waits]


def test_training_continues_with_the_random_numbers_of_the_apple_gpu(apple, monkeypatch):
    state, restored = torch.arange(3), []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    set_rng_state(rng_state())
    assert restored == [state]
    set_rng_state({name: value for name, value in rng_state().items() if name != "mps"})  # of another machine
    assert len(restored) == 1


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 17 GB)",
        "[enforce fail] DefaultCPUAllocator: 9",
        "CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_full_memory_is_recognised(message):
    thread = SimpleNamespace(_encoder=SimpleNamespace(device=MPS))
    with pytest.raises(Exception) as caught, EncoderThread._translated_errors(thread):
        raise RuntimeError(message)
    assert type(caught.value).__name__ == "_OutOfMemory"
