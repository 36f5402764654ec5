"""An exported model is complete, gives the same answers and the same bytes every time, and runs no code when loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest

import costl
from costl.ask import export_model
from costl.ask.export_model import export
from costl.ask.hub import fetch
from costl.ask.trained_model import read_trained_model
from costl.evaluate import evaluate
from costl.pipeline.errors import CacheError, UsageError
from costl.train import train


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A trained and evaluated run of the small world."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(world.cache, overrides=["train.epochs=1", "train.batch_size=30"], out=folder, device="cpu")
    evaluate(folder, split="test", device="cpu")
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "model"
    export(run, folder)
    return folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def change_config(folder: Path, **values) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | values))


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_export_gives_bit_identical_answers_without_run_and_cache(world, run, copy, tmp_path):
    video = world.videos / "test_0000.mp4"
    queries = ["the red ring", "the blue star is on the left"]
    of_run = costl.load(run, cache_dir=tmp_path / "a", device="cpu", workers=1).ask(video, queries)
    of_export = costl.load(copy, cache_dir=tmp_path / "b", device="cpu", workers=1).ask(video, queries)
    assert [(a.moments, a.saliency) for a in of_run] == [(a.moments, a.saliency) for a in of_export]
    assert str(world.videos) not in (copy / "config.json").read_text() + (copy / "README.md").read_text()


def test_the_same_run_gives_the_same_bytes(run, exported, tmp_path):
    export(run, tmp_path / "again")
    assert checksums(tmp_path / "again") == checksums(exported)
    assert set(checksums(exported)) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "clip/open_clip_config.json",
        "clip/open_clip_model.safetensors",
    }


def test_the_model_card_has_fingerprint_and_metrics(run, exported):
    card = (exported / "README.md").read_text()
    config = json.loads((exported / "config.json").read_text())
    score = json.loads((run / "eval-test" / "metrics.json").read_text())["brief"]["MR-full-R1@0.5"]
    assert f"| test  | {score:.1f}" in re.sub(r"\| +(\d)", r"| \1", card) and "costl.load(" in card and "licence" in card
    assert config["fingerprint"]["weights"] in card and "10 x 10 patches" in card and card.startswith("---\n")
    assert config["fps"] == 0.5 and config["patch_grid"] == [10, 10]


def test_the_model_card_shows_intervals_if_there_are_any(run, tmp_path):
    copied_run = Path(shutil.copytree(run, tmp_path / "run"))
    path = copied_run / "eval-test" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"intervals": {"MR-full-R1@0.5": [1.25, 9.75]}}))
    export(copied_run, tmp_path / "model")
    assert "[1.2, 9.8]" in (tmp_path / "model" / "README.md").read_text()


def test_an_export_without_clip_needs_weights_to_load(world, run, tmp_path):
    (note,) = export(run, tmp_path / "model", with_clip=False)
    assert "does not contain the CLIP weights" in note and not (tmp_path / "model" / "clip").exists()
    with pytest.raises(CacheError, match="does not say where its CLIP weights are"):
        costl.load(tmp_path / "model", device="cpu")
    assert costl.load(tmp_path / "model", weights=str(world.videos / "clip"), cache_dir=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("there", "copied"),
    [
        (["config.json", "model.safetensors", "spiece.model", "vocab.txt", "a.py", "pytorch_model.bin"], 4),
        (["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"], 4),
        (["open_clip_config.json", "open_clip_model.safetensors", "config.json", "model.safetensors", "merges.txt"], 4),
        (["config.json", "pytorch_model.bin"], 0),
        ([], 0),
    ],
)
def test_settings_tokenizer_and_one_copy_of_the_weights_are_exported(there, copied, tmp_path):
    for name in there:
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in export_model._clip_files(tmp_path)]
    assert len(names) == copied and set(names) <= set(there)
    assert not {"a.py", "pytorch_model.bin"} & set(names)
    assert "model.safetensors" not in names or "open_clip_model.safetensors" not in names


def test_weights_named_by_an_open_clip_tag_are_not_copied(run, tmp_path):
    copied_run = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((copied_run / "run.json").read_text())
    (copied_run / "run.json").write_text(json.dumps(about | {"source": {"model": "ViT-B-32", "weights": "openai"}}))
    assert export(copied_run, tmp_path / "model") == []
    assert json.loads((tmp_path / "model" / "config.json").read_text())["clip"] == {
        "model": "ViT-B-32",
        "weights": "openai",
    }
    assert not (tmp_path / "model" / "clip").exists()


def test_an_export_is_complete_or_absent_and_overwrites_nothing(run, exported, tmp_path, monkeypatch):
    before = checksums(exported)
    with pytest.raises(UsageError, match="exists already and is not empty"):
        export(run, exported)
    assert checksums(exported) == before
    monkeypatch.setattr("costl.ask.export_model.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "not the weights that config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "damaged"),
        (lambda folder: change_config(folder, format=99), "format 99"),
        (lambda folder: change_config(folder, model_type="bert"), "'bert'"),
        (lambda folder: change_config(folder, config={"train": {"epoch": 1}}), "settings of another version"),
        (lambda folder: change_config(folder, config={"model": {"width": 64}}), "do not fit its settings"),
        (lambda folder: change_config(folder, patch_grid=[3]), "patch grid"),
        (lambda folder: change_config(folder, fingerprint={}), "not made here"),
    ],
)
def test_a_damaged_export_is_refused_in_one_sentence(copy, damage, part, tmp_path):
    damage(copy)
    with pytest.raises(CacheError, match=part):
        costl.load(copy, cache_dir=tmp_path / "features", device="cpu")


def test_a_pickle_is_never_opened(copy, tmp_path):
    class RunsCode:
        def __reduce__(self):
            return Path(tmp_path / "ran").touch, ()

    content = pickle.dumps(RunsCode())
    (copy / "model.safetensors").write_bytes(content)
    change_config(copy, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(CacheError, match="cannot be read"):
        read_trained_model(copy)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"neither run\.json nor config\.json"):
        costl.load(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        costl.load(tmp_path / "gone")


def test_nothing_that_is_unpickled_or_run_is_downloaded(exported, tmp_path, monkeypatch):
    downloads = []

    def download(name, *, revision, allow_patterns):
        downloads.append((name, revision, tuple(allow_patterns)))
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert costl.load("hf://some/model@v1", cache_dir=tmp_path, device="cpu").name == str(exported)
    ((name, revision, patterns),) = downloads
    assert (name, revision) == ("some/model", "v1")
    assert all(pattern.endswith((".json", ".md", ".safetensors", ".txt", ".model")) for pattern in patterns)


def test_a_failed_download_is_one_error_message(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host\nTraceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match=r"hf://a/b: cannot be fetched \(no route to host\)"):
        fetch("hf://a/b")
    with pytest.raises(UsageError, match="expected hf://user/name"):
        fetch("hf://no-user")
