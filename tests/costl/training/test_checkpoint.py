"""Checkpoints: loaded as they were saved, refused when damaged or pickled, never half-written."""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn

from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.formats import files
from costl.training.checkpoint import checkpoint_path, load_checkpoint, rng_state, save_checkpoint, set_rng_state


def refusal(folder, name="best") -> str:
    with pytest.raises(CacheError) as caught:
        load_checkpoint(folder, name)
    return str(caught.value)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_tensors_and_meta_come_back_exactly(tmp_path):
    tied = torch.randn(3, 4)
    tensors = {
        "a": tied,
        "b": tied.T,
        "half": torch.randn(2).bfloat16(),
        "yes": torch.tensor(True),
        "no": torch.empty(0),
    }
    meta = {
        "epoch": 3,
        "best": 0.1 + 0.2,
        "worst": -math.inf,
        "none": None,
        "groups": [{"betas": (0.9, 0.999), "on": True}, (), {}],
        "state": {0: {"step": torch.tensor(2.0)}, 1: {"~odd": torch.arange(3)}},
    }
    save_checkpoint(tmp_path / "run", "best", tensors, meta)
    loaded, loaded_meta = load_checkpoint(tmp_path / "run", "best")
    assert same({key: loaded[key] for key in tensors}, tensors) and set(loaded) == set(tensors)
    assert same({key: loaded_meta[key] for key in meta}, meta) and set(loaded_meta) == set(meta)


def train(model, optimizer, steps) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(4, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def new_training() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.promise(11)
def test_a_resumed_training_goes_on_bit_for_bit(tmp_path):
    model, optimizer = new_training()
    train(model, optimizer, 3)
    save_checkpoint(tmp_path, "last", model.state_dict(), {"optimizer": optimizer.state_dict(), "rng": rng_state()})
    expected = train(model, optimizer, 3)
    torch.manual_seed(99)
    resumed, fresh_optimizer = new_training()
    tensors, meta = load_checkpoint(tmp_path, "last")
    resumed.load_state_dict(tensors)
    fresh_optimizer.load_state_dict(meta["optimizer"])
    set_rng_state(meta["rng"])
    assert train(resumed, fresh_optimizer, 3) == expected
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))


def test_equal_checkpoints_are_equal_bytes_and_plain_safetensors(tmp_path):
    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    first = save_checkpoint(tmp_path, "x", tensors, {"one": 1, "two": [torch.ones(1)]})
    second = save_checkpoint(tmp_path, "y", dict(reversed(tensors.items())), {"two": [torch.ones(1)], "one": 1})
    assert first.read_bytes() == second.read_bytes()
    assert torch.equal(safetensors.torch.load_file(first)["b"], torch.ones(2))


def test_a_missing_checkpoint_is_refused_with_the_existing_ones(tmp_path):
    save_checkpoint(tmp_path, "last", {}, {})
    assert "no such checkpoint. This run has: last." in refusal(tmp_path)
    assert "This run has: none." in refusal(tmp_path / "nowhere")


@pytest.mark.promise(9)
def test_a_pickle_is_never_opened(tmp_path):
    for zipped in (True, False):
        path = checkpoint_path(tmp_path, "best")
        torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=zipped)
        assert "a pickle, which could run code" in refusal(tmp_path)


@pytest.mark.parametrize(("start", "length"), [(b"\x80", 0x1080), (b"PK", 0x4B50)])
def test_a_header_length_that_looks_like_a_pickle_is_accepted(tmp_path, start, length):
    """A safetensors file begins with the length of its header."""
    bare = save_checkpoint(tmp_path, "best", {"a": torch.ones(1)}, {"filler": ""}).read_bytes()
    filler = "x" * (length - int.from_bytes(bare[:8], "little"))
    path = save_checkpoint(tmp_path, "best", {"a": torch.ones(1)}, {"filler": filler})
    assert path.read_bytes().startswith(start)
    assert load_checkpoint(tmp_path, "best")[1] == {"filler": filler}


def test_every_cut_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, "best", {"a": torch.ones(5)}, {"epoch": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(tmp_path)


@pytest.mark.promise(9)
def test_every_flipped_byte_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, "best", {"a": torch.ones(5)}, {"epoch": 1, "state": {0: torch.ones(2)}})
    whole = path.read_bytes()
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x01
        path.write_bytes(bytes(damaged))
        refusal(tmp_path)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, "not a checkpoint of CoSTL"),
        ({"costl": json.dumps({"format": 2, "meta": {}})}, "not in format 1"),
        ({"costl": "[]"}, "not in format 1"),
        ({"costl": "{"}, "damaged"),
        ({"costl": json.dumps({"format": 1, "meta": {}})}, "not what was written"),
    ],
)
def test_a_foreign_safetensors_file_is_refused(tmp_path, header, part):
    safetensors.torch.save_file({"a": torch.ones(1)}, checkpoint_path(tmp_path, "best"), metadata=header)
    assert part in refusal(tmp_path)


@pytest.mark.promise(12)
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, "best", {"a": torch.ones(1)}, {"epoch": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CostlError, match="No space left on device"):
        save_checkpoint(tmp_path, "best", {"a": torch.zeros(1)}, {"epoch": 2})
    assert load_checkpoint(tmp_path, "best")[1] == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
