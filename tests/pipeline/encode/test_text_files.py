"""Where tokenizers and the settings of text towers come from; what is missing or damaged is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from open_clip import factory
from tiny_clip import VISION
from tiny_text import write_family, write_tokenizer, write_tower_config

from costl.pipeline.encode import tokenizer, weights
from costl.pipeline.encode.clip import load_encoder, load_encoders
from costl.pipeline.encode.weights import Source
from costl.pipeline.errors import CostlError, UsageError

TRANSFORMERS = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed; it comes with the extra `test`"
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders of families, each written once."""
    ready: dict[str, Path] = {}

    def store(name: str) -> Path:
        if name not in ready:
            ready[name] = write_family(tmp_path_factory.mktemp("family"), name)
        return ready[name]

    return store


@pytest.fixture
def copied(stored, tmp_path):
    """A copy of a family's folder that a test may damage."""
    return lambda name: Path(shutil.copytree(stored(name), tmp_path / "copy"))


@pytest.fixture
def no_network(monkeypatch):
    for module in (tokenizer, weights):
        monkeypatch.setattr(module, "hub_is_reachable", lambda: False)
        monkeypatch.setattr(module.huggingface_hub, "try_to_load_from_cache", lambda *key: None)


def test_a_tokenizer_without_transformers_names_the_extra(monkeypatch):
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"SigLIP: its tokenizer needs transformers.* pip install 'costl\[transformers\]'"):
        tokenizer.load_tokenizer(Source("SigLIP", "ViT-B-16-SigLIP", Path()))


def test_a_text_tower_without_transformers_names_the_extra(monkeypatch, tmp_path):
    torch.save({}, tmp_path / "w.pt")
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"roberta-ViT-B-32: its text tower needs transformers"):
        load_encoder("roberta-ViT-B-32", str(tmp_path / "w.pt"))


@TRANSFORMERS
@pytest.mark.parametrize("architecture", ["ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "ViT-H-14-CLIPA", "nllb-clip-base"])
def test_a_tokenizer_without_network_is_refused_at_once(no_network, architecture):
    start_s = time.monotonic()
    with pytest.raises(UsageError, match=r"is not on this disk and cannot be downloaded\. .* tokenizer_config\.json and"):
        tokenizer.load_tokenizer(Source(architecture, architecture, Path()))
    assert time.monotonic() - start_s < 2


@TRANSFORMERS
def test_a_text_tower_without_network_is_refused_at_once(no_network, tmp_path):
    torch.save({}, tmp_path / "w.pt")
    start_s = time.monotonic()
    with pytest.raises(UsageError, match=r"text tower google/mt5-base are not on this disk .* of google/mt5-base, config\.json"):
        load_encoder("mt5-base-ViT-B-32", str(tmp_path / "w.pt"))
    assert time.monotonic() - start_s < 2


@TRANSFORMERS
def test_text_files_on_this_disk_need_no_network(monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    write_tower_config(cache, "roberta", write_tokenizer(cache, "roberta"))
    on_disk = {("roberta-base", path.name): str(path) for path in cache.iterdir()}
    for module in (tokenizer, weights):
        monkeypatch.setattr(module, "hub_is_reachable", lambda: pytest.fail("used the network"))
        monkeypatch.setattr(module.huggingface_hub, "try_to_load_from_cache", lambda *key: on_disk.get(key))
    small = factory.get_model_config("roberta-ViT-B-32") | {"embed_dim": 32, "vision_cfg": VISION}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "roberta-ViT-B-32", small)
    source = Source("roberta", "roberta-ViT-B-32", Path())
    network = factory.create_model("roberta-ViT-B-32", load_weights=False, **weights._text_tower(source))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    [words] = load_encoder("roberta-ViT-B-32", str(tmp_path / "w.pt")).encode_text(["a dog runs"])
    assert "".join(words.texts) == "a dog runs "


@TRANSFORMERS
@pytest.mark.parametrize("name", ["SigLIP", "CLIPA", "NLLB", "RoBERTa"])
def test_a_folder_without_a_vocabulary_is_refused(copied, name):
    """transformers would make a tokenizer without a word of it."""
    folder = copied(name)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"copy: the tokenizer is missing\. Put there, of unknown/tokenizer, tokenizer_config"):
        load_encoder(weights=str(folder))


@TRANSFORMERS
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01", '{"model": 3}'])
def test_a_damaged_tokenizer_is_refused(copied, file, content):
    folder = copied("SigLIP")
    (folder / file).write_text(content)
    with pytest.raises(UsageError, match=r"copy: the tokenizer cannot be read \(.*\)\. Get its files again"):
        load_encoder(weights=str(folder))


@TRANSFORMERS
def test_a_tokenizer_without_its_settings_is_refused(copied):
    folder = copied("SigLIP")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UsageError, match=r"copy: the tokenizer cannot be read \(.*\)\. .* tokenizer_config\.json and"):
        load_encoder(weights=str(folder))


@TRANSFORMERS
def test_the_tokenizer_of_a_larger_model_is_refused(copied):
    folder = copied("SigLIP")
    write_tokenizer(folder, "roberta")
    with pytest.raises(UsageError, match=r"the tokenizer gives the id \d+, and the text tower has \d+ embeddings"):
        load_encoder(weights=str(folder)).encode_text(["zebra quiz 😀"])


@TRANSFORMERS
@pytest.mark.parametrize("content", ["{", '{"model_type": "clip"}', '{"model_type": "none"}'])
def test_a_text_tower_with_damaged_settings_is_refused(copied, content):
    folder = copied("RoBERTa")
    (folder / "config.json").write_text(content)
    with pytest.raises(UsageError, match="open_clip cannot load it as config"):
        load_encoder(weights=str(folder))


@TRANSFORMERS
def test_a_folder_without_the_text_towers_settings_is_refused(copied, monkeypatch):
    folder = copied("RoBERTa")
    (folder / "config.json").unlink()
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: pytest.fail("used the network"))
    with pytest.raises(UsageError, match=r"text tower are missing\. Put there, of unknown/text-tower, config\.json"):
        load_encoder(weights=str(folder))


@TRANSFORMERS
def test_word_tokens_that_do_not_fit_into_float16_are_refused(stored):
    encoder = load_encoder(weights=str(stored("mT5")))
    encoder._network.text.transformer.get_input_embeddings().weight.mul_(1e6)
    with pytest.raises(CostlError, match=r"word tokens do not fit into float16: the text tower gives .*65504"):
        encoder.encode_text(["a dog"])


@TRANSFORMERS
@pytest.mark.parametrize("name", ["XLM-RoBERTa", "SigLIP"])
def test_a_copy_on_another_device_gives_the_same_words(stored, name):
    first, second = (encoder.encode_text(["a red dog"])[0] for encoder in load_encoders("", str(stored(name)), devices="cpu,cpu"))
    assert first.texts == second.texts and (first.tokens == second.tokens).all()


@TRANSFORMERS
def test_the_settings_of_a_source_may_name_a_folder(stored):
    """As for a folder in the layout of transformers."""
    folder = stored("SigLIP")
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    config = {"text_cfg": text | {"hf_tokenizer_name": str(folder)}}
    ours = tokenizer.load_tokenizer(Source("SigLIP", "", folder, config=config))
    theirs = tokenizer.load_tokenizer(Source("SigLIP", f"local-dir:{folder}", folder))
    assert torch.equal(ours.ids_and_words(["A dog!"])[0], theirs.ids_and_words(["A dog!"])[0])
