"""The list of models says what open_clip's networks are, without building them."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from click.testing import CliRunner

from costl.commands import main
from costl.pipeline.encode import catalog
from costl.pipeline.encode.catalog import build_size, list_models
from costl.pipeline.errors import UsageError

ALL = [name for name in open_clip.list_models() if not name.startswith("ViT-tiny")]  # which other tests add
KINDS = ["ViT-B-32", "ViT-B-32-SigLIP2-256", "RN50", "convnext_base", "coca_ViT-B-32", "PE-Core-B-16", "roberta-ViT-B-32"]


def size_of(name: str) -> catalog.ModelSize:
    (model,) = list_models(name).models
    return model.size


def test_every_model_is_listed():
    assert json.loads(catalog._SIZES.read_text()).keys() == set(ALL)
    assert {model.name for model in list_models().models} >= set(ALL)


@pytest.mark.parametrize("name", KINDS)
def test_the_sizes_are_those_of_the_network(name):
    assert size_of(name) == build_size(name)


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_the_sizes_of_every_model_are_those_of_its_network(name):
    assert size_of(name) == build_size(name)


def test_a_model_of_another_release_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_SIZES", tmp_path / "models.json")
    (tmp_path / "models.json").write_text("{}")
    assert size_of("ViT-S-32-alt") == build_size("ViT-S-32-alt")


def test_the_numbers_of_the_default_model():
    size = size_of("ViT-B-32")
    assert (size.image_size, size.grid, size.width, size.image_millions) == ((224, 224), (7, 7), 768, 87.8)
    assert size.megabytes_an_hour == pytest.approx(50 * 768 * 2 * 1800 / 1e6)


def test_a_pattern_names_models_and_a_whole_name_only_one():
    siglip2 = [model.name for model in list_models("SIGLIP2").models]
    assert len(siglip2) == 15 and all("SigLIP2" in name for name in siglip2)
    assert [model.name for model in list_models("ViT-B-32").models] == ["ViT-B-32"]
    (one,) = list_models("ViT-B-32").models
    assert {"openai", "laion2b_s34b_b79k"} <= set(one.weights)
    assert list_models("ViT-S-32-alt").models[0].weights == ()


def test_the_tags_of_a_single_model_are_listed():
    lines = list_models("ViT-B-32").lines()
    assert lines[2].endswith(" tags |") and lines[3].startswith("weights: openai, ") and max(map(len, lines)) <= 100
    assert "laion2b_s34b_b79k" in " ".join(lines[3:]) and len(list_models("siglip2").lines()) == 17


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match=r"no model of open_clip has 'ViT-B-23' in its name\. Did you mean ViT-B-32"):
        list_models("ViT-B-23")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(catalog, "_MEASURE_S", 0.0)
    monkeypatch.setitem(catalog._BATCH, "cpu", 1)


def test_a_measured_model_has_the_time_of_a_frame(short):
    threads = torch.get_num_threads()
    listed = list_models("ViT-S-32-alt", measure=True, device="cpu")
    (model,) = listed.models
    assert model.milliseconds is not None and 0 < model.milliseconds < 10_000
    assert "ms/frame" in listed.lines()[0] and f" {model.milliseconds:.1f} " in listed.lines()[2]
    assert torch.get_num_threads() == threads


def test_many_models_to_measure_give_a_warning(monkeypatch):
    monkeypatch.setattr(catalog, "_milliseconds", lambda model, device: 50.0)
    messages = []
    listed = list_models("siglip2", measure=True, progress=lambda progress: messages.append(progress.message))
    assert messages[0].startswith("15 models are measured") and not any(messages[1:])
    assert {model.milliseconds for model in listed.models} == {50.0}
    list_models("ViT-B-32", measure=True, progress=lambda progress: messages.append(progress.message))
    assert not any(messages[1:])
    assert " |     90 | " in listed.lines()[2], "50 ms for each of 1800 frames"


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="expected cpu"):
        list_models("ViT-B-32", measure=True, device="abacus")


def test_the_command_prints_a_table_or_json():
    lines = CliRunner().invoke(main, ["data", "models", "ViT-B-32-SigLIP2-256"]).stdout.splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split(" | ")]
    assert cells == ["ViT-B-32-SigLIP2-256", "256 x 256", "8 x 8", "768", "95", "282", "180", "webli"]
    (row,) = json.loads(CliRunner().invoke(main, ["data", "models", "ViT-B-32-SigLIP2-256", "--json"]).stdout)
    assert row["weights"] == ["webli"] and row["grid"] == [8, 8] and row["megabytes_an_hour"] == 179.7
    assert row["milliseconds_a_frame"] is None
