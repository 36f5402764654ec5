"""An exported model: complete, the same to the last bit, the same bytes every time, and nothing in it is run."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest

import costl
from costl.ask.export import export, fetch
from costl.ask.trained_model import read_trained
from costl.evaluate import evaluate
from costl.pipeline.errors import CacheError, UsageError
from costl.train import train


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A trained and evaluated run of the small world."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")
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


def change(folder: Path, **values) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | values))


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_export_answers_as_the_run_does_to_the_last_bit_without_run_or_cache(world, run, copy, tmp_path):
    video, queries = world.videos / "test_0000.mp4", ["the red ring", "the blue star is on the left"]
    ours = costl.load(run, cache_dir=tmp_path / "a", device="cpu", workers=1).ask(video, queries)
    theirs = costl.load(copy, cache_dir=tmp_path / "b", device="cpu", workers=1).ask(video, queries)
    assert [(a.moments, a.saliency) for a in ours] == [(a.moments, a.saliency) for a in theirs]
    assert str(world.videos) not in (copy / "config.json").read_text() + (copy / "README.md").read_text()


def test_the_same_run_gives_the_same_bytes(run, exported, tmp_path):
    export(run, tmp_path / "again")
    assert files(tmp_path / "again") == files(exported)
    assert set(files(exported)) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "clip/open_clip_config.json",
        "clip/open_clip_model.safetensors",
    }


def test_the_card_says_what_it_is_made_of_and_how_good(run, exported):
    card, about = (exported / "README.md").read_text(), json.loads((exported / "config.json").read_text())
    score = json.loads((run / "eval-test" / "metrics.json").read_text())["brief"]["MR-full-R1@0.5"]
    assert f"| test | {score:.1f}" in card and "costl.load(" in card and "licence" in card
    assert about["fingerprint"]["weights"] in card and "10 x 10 patches" in card and card.startswith("---\n")
    assert about["fps"] == 0.5 and about["patch_grid"] == [10, 10] and about["word_width"] > 0


def test_intervals_are_told_where_the_evaluation_has_them(run, tmp_path):
    mine = Path(shutil.copytree(run, tmp_path / "run"))
    path = mine / "eval-test" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"intervals": {"MR-full-R1@0.5": [1.25, 9.75]}}))
    export(mine, tmp_path / "model")
    assert "[1.2, 9.8]" in (tmp_path / "model" / "README.md").read_text()


def test_without_its_clip_an_export_has_to_be_given_one(world, run, tmp_path):
    (note,) = export(run, tmp_path / "model", with_clip=False)
    assert "whoever loads it has to give them" in note and not (tmp_path / "model" / "clip").exists()
    with pytest.raises(CacheError, match="does not say where its CLIP weights are"):
        costl.load(tmp_path / "model", device="cpu")
    assert costl.load(tmp_path / "model", weights=str(world.videos / "clip"), cache_dir=tmp_path, device="cpu")


def test_a_tag_of_open_clip_is_named_and_not_copied(run, tmp_path):
    mine = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((mine / "run.json").read_text())
    (mine / "run.json").write_text(json.dumps(about | {"source": {"model": "ViT-B-32", "weights": "openai"}}))
    assert export(mine, tmp_path / "model") == []
    assert json.loads((tmp_path / "model" / "config.json").read_text())["clip"] == {
        "model": "ViT-B-32",
        "weights": "openai",
    }
    assert not (tmp_path / "model" / "clip").exists()


def test_an_export_appears_whole_or_not_at_all_and_overwrites_nothing(run, exported, tmp_path, monkeypatch):
    before = files(exported)
    with pytest.raises(UsageError, match="holds something already"):
        export(run, exported)
    assert files(exported) == before
    monkeypatch.setattr("costl.ask.export.model_card", lambda *_: 1 / 0)
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
        (lambda folder: change(folder, format=99), "format 99"),
        (lambda folder: change(folder, model_type="bert"), "'bert'"),
        (lambda folder: change(folder, config={"train": {"epoch": 1}}), "settings of another version"),
        (lambda folder: change(folder, config={"model": {"width": 64}}), "do not fit its settings"),
        (lambda folder: change(folder, patch_grid=[3]), "patch grid"),
        (lambda folder: change(folder, fingerprint={}), "not made here"),
    ],
)
def test_a_damaged_export_is_refused_in_one_sentence(copy, damage, part, tmp_path):
    damage(copy)
    with pytest.raises(CacheError, match=part):
        costl.load(copy, cache_dir=tmp_path / "kept", device="cpu")


def test_a_pickle_is_never_opened(copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path(tmp_path / "ran").touch, ()

    bomb = pickle.dumps(Bomb())
    (copy / "model.safetensors").write_bytes(bomb)
    change(copy, sha256=hashlib.sha256(bomb).hexdigest())
    with pytest.raises(CacheError, match="cannot be read"):
        read_trained(copy)
    assert not (tmp_path / "ran").exists()


def test_what_is_neither_a_run_nor_an_export_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"neither run\.json nor config\.json"):
        costl.load(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        costl.load(tmp_path / "gone")


def test_the_hub_is_asked_only_when_told_and_only_for_what_cannot_harm(exported, tmp_path, monkeypatch):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert costl.load("hf://some/model@v1", cache_dir=tmp_path, device="cpu").name == str(exported)
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("some/model", "v1")
    assert all(pattern.endswith((".json", ".md", ".safetensors")) for pattern in patterns)


def test_a_hub_that_does_not_answer_is_a_sentence(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host\nTraceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match=r"hf://a/b: cannot be fetched \(no route to host\)"):
        fetch("hf://a/b")
    with pytest.raises(UsageError, match="expected hf://user/name"):
        fetch("hf://alone")
