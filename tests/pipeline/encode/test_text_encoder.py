"""The text tower alone gives the words and sentences of the whole network, to the last bit, and has no image tower."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import write_clip_weights
from tiny_text import FAMILIES, write_family

from costl.pipeline import world
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.encode.text_encoder import TextEncoder, build_text_network
from costl.pipeline.encode.weights import find_source
from costl.pipeline.errors import UsageError

TINY = Path(world.__file__).parent / "costl-tiny"
TEXTS = ["a dog runs on the grass, again!", "ball"]
WEIGHTS = "open_clip_model.safetensors"


def assert_same_text(weights: str, model: str = "ViT-B-32") -> None:
    source = find_source(model, weights)
    expected = load_encoder(model, weights).encode_text(TEXTS)
    for one, two in zip(TextEncoder(source).encode(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.sentence, two.sentence)
        assert one.texts == two.texts


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_text_of_the_whole_network(tmp_path, name):
    kind = FAMILIES[name].tokenizer
    for package in ["transformers"] * (kind != "clip") + ["sentencepiece"] * (kind == "siglip_slow"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra `test`")
    assert_same_text(str(write_family(tmp_path / "family", name)))


def test_the_bundled_clip_gives_its_own_text():
    assert_same_text(str(TINY))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_torch_gives_the_text_of_the_whole_network(tmp_path, prefix):
    state = load_file(write_clip_weights(tmp_path / "clip") / WEIGHTS)
    name = tmp_path / "clip" / "open_clip_model.pt"
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}}, name)
    source = find_source("ViT-B-32", str(tmp_path / "clip"))
    expected = load_encoder("ViT-B-32", str(tmp_path / "clip")).encode_text(TEXTS)
    found = TextEncoder(replace(source, file=name)).encode(TEXTS)
    assert all(np.array_equal(one.sentence, two.sentence) for one, two in zip(found, expected, strict=True))


def test_the_image_tower_is_neither_built_nor_read(tmp_path):
    folder = write_clip_weights(tmp_path / "clip")
    network = build_text_network(find_source("ViT-B-32", str(folder)))
    assert not [name for name in network.state_dict() if name.startswith("visual")]
    state = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("visual.")}, folder / WEIGHTS)
    build_text_network(find_source("ViT-B-32", str(folder)))  # a file without image tower is enough


@pytest.mark.parametrize("change", ["missing", "another shape"])
def test_a_text_tower_that_does_not_fit_is_refused(tmp_path, change):
    folder = write_clip_weights(tmp_path / "clip")
    state = load_file(folder / WEIGHTS)
    projection = state.pop("text_projection")
    save_file(state if change == "missing" else state | {"text_projection": projection[:, :-1].contiguous()}, folder / WEIGHTS)
    with pytest.raises(UsageError, match=f"{WEIGHTS}: open_clip cannot load it"):
        build_text_network(find_source("ViT-B-32", str(folder)))
