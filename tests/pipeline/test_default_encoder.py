"""Which encoder an extraction uses if none is chosen: that of the cache, of the benchmark, or the default for own videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from numbered_videos import frame_times, make_video
from open_clip import pretrained as tags
from tiny_clip import write_clip_weights

from costl.commands.extract import extract as command
from costl.config_files import benchmark_settings
from costl.pipeline.data_folder import ExtractSettings, read_settings
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.inputs import read_inputs

BENCHMARKS = ["qvhighlights", "charades", "tacos", "tvsum", "youtube-highlights"]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "dir").mkdir()
    make_video(tmp_path / "dir" / "v.mp4", frame_times(50))
    row = {"qid": 0, "query": "a dog", "vid": "v", "duration": 2.0}
    (tmp_path / "dir" / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path / "dir"


def settings_of(folder: Path, **chosen) -> tuple[str, str]:
    settings = read_inputs(folder, None, chosen, cache=folder.parent / "feats.h5", allow_missing=False).settings
    return settings.model, settings.weights


def test_the_default_for_own_videos_is_a_tag_that_open_clip_downloads(folder):
    assert settings_of(folder) == ("ViT-B-32", "laion2b_s34b_b79k") == (ExtractSettings.model, ExtractSettings.weights)
    about = tags.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    assert about["hf_hub"] and not about.get("quick_gelu", False)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"model": "ViT-B-32"}, ("ViT-B-32", "laion2b_s34b_b79k")),
        ({"model": "ViT-L-14"}, ("ViT-L-14", "openai")),
        ({"model": "ViT-B-32-SigLIP2-256"}, ("ViT-B-32-SigLIP2-256", "webli")),
        ({"weights": "openai"}, ("ViT-B-32", "openai")),
        ({"model": "ViT-B-16", "weights": "datacomp_xl_s13b_b90k"}, ("ViT-B-16", "datacomp_xl_s13b_b90k")),
    ],
)
def test_what_is_chosen_wins(folder, chosen, expected):
    assert settings_of(folder, **chosen) == expected
    (folder / "costl.yaml").write_text(json.dumps({"extract": chosen}))
    assert settings_of(folder) == expected


def test_a_model_without_a_default_gets_the_names_of_its_weights(folder):
    with pytest.raises(UsageError, match=r"convnext_base_w has no weights called 'openai'\. Known: laion2b_s13b_b82k"):
        settings_of(folder, model="convnext_base_w")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_keep_the_encoder_of_the_papers(folder, name):
    (folder / "costl.yaml").write_bytes(benchmark_settings(name).read_bytes())
    assert settings_of(folder) == ("ViT-B-32", "openai")
    assert settings_of(folder, model="ViT-L-14") == ("ViT-L-14", "openai")
    assert read_settings(folder).extract.keys() == {"fps", "weights"}, "a model would refuse a folder of weights"


def test_a_cache_keeps_its_encoder_until_another_one_is_chosen(folder):
    clip, cache = write_clip_weights(folder.parent / "clip"), folder.parent / "feats.h5"
    options = {"out": cache, "fps": 1, "device": "cpu", "workers": 1}
    assert extract(folder, weights=str(clip), **options).done == ("v",)
    for shard in (None, "1/1"):
        inputs = read_inputs(folder, None, {}, cache=cache, keep_annotations=shard is None, allow_missing=False)
        assert inputs.settings.weights == str(clip.resolve())
    assert extract(folder, **options).skipped == ("v",)
    other = write_clip_weights(folder.parent / "other", seed=1)
    with pytest.raises(CacheError, match="weights"):
        extract(folder, weights=str(other), **options)
    with pytest.raises(UsageError, match="bring their own architecture"):
        extract(folder, model="ViT-B-32", weights=str(clip), **options)


def test_the_help_names_the_default():
    help_of = {option.name: getattr(option, "help", "") for option in command.params}
    assert f"[default: {ExtractSettings.model}]" in help_of["model"]
    assert f"[default: {ExtractSettings.weights}]" in help_of["weights"]
