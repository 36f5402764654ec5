"""The settings and annotations of a data folder are read strictly, and errors are reported at once."""

from __future__ import annotations

import json

import pytest

from costl.pipeline.data_folder import (
    ExtractSettings,
    FolderSettings,
    check_annotations,
    data_folder,
    missing_videos,
    queries_in,
    read_annotations,
    read_settings,
    settings_folder,
)
from costl.pipeline.errors import UsageError


def line(**changes) -> str:
    row = {"qid": 1, "query": "a dog", "vid": "v_a", "duration": 10.0} | changes
    return json.dumps({key: value for key, value in row.items() if value is not ...})


def test_a_folder_without_a_settings_file_has_empty_settings(tmp_path):
    assert read_settings(tmp_path) == FolderSettings()


def test_both_sections_are_read_and_weights_are_relative_to_the_folder(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "costl.yaml").write_text("extract: {weights: clip, fps: 1}\ntrain: {any: {thing: 3}}\n")
    settings = read_settings(tmp_path)
    assert settings.extract == {"weights": str(tmp_path / "clip"), "fps": 1}
    assert settings.train == {"any": {"thing": 3}}


def test_a_tag_stays_a_tag_and_a_tagged_file_is_found(tmp_path):
    (tmp_path / "w.pt").touch()
    for text, expected in (("openai", "openai"), ("openai=w.pt", f"openai={tmp_path / 'w.pt'}")):
        (tmp_path / "costl.yaml").write_text(f"extract: {{weights: {text}}}\n")
        assert read_settings(tmp_path).extract["weights"] == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("extrakt: {}\n", r"unknown key 'extrakt'\. Did you mean extract"),
        ("extract: {weigths: clip, fsp: 1}\n", r"Did you mean weights\?.* unknown key 'fsp'\. Did you mean fps"),
        ("extract: {layers: 2}\n", r"unknown key 'layers'\. A cache stores .* CLIP's last block only: remove this line\."),
        ("extract: 3\n", "extract is int, expected `key: value` lines"),
        ("- a\n", "the file is list"),
        ("extract: {weights: [\n", "cannot be read"),
        ("extract: !!python/object/apply:os.getcwd []\n", "cannot be read"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, text, answer):
    (tmp_path / "costl.yaml").write_text(text)
    with pytest.raises(UsageError, match=answer):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "values",
    [{"fps": 0}, {"fps": -1.0}, {"fps": float("nan")}, {"fps": "1"}, {"fps": True}, {"model": 3}, {"weights": ""}],
)
def test_impossible_values_are_refused_by_name(values):
    with pytest.raises(UsageError, match=f"{next(iter(values))} is"):
        ExtractSettings(**values)


def test_a_decoder_on_the_gpu_that_should_resize_is_refused():
    assert ExtractSettings(decoder="torchcodec:cuda").resize == "device"
    with pytest.raises(UsageError, match=r"'torchcodec:cuda', which cannot resize frames, and resize is 'decoder'"):
        ExtractSettings(decoder="torchcodec:cuda", resize="decoder")


def test_annotations_are_found_next_to_the_videos_or_above_them(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (tmp_path / "train.jsonl").write_text(line())
    assert data_folder(tmp_path) == tmp_path
    assert data_folder(videos) == tmp_path
    (videos / "val.jsonl").write_text(line())
    assert data_folder(videos) == videos


def test_settings_of_the_annotations_replace_those_of_the_videos(tmp_path):
    videos = tmp_path / "videos"
    annotations = tmp_path / "annotations"
    videos.mkdir()
    annotations.mkdir()
    (videos / "costl.yaml").write_text("extract: {fps: 2}\n")
    assert settings_folder(videos, annotations) == settings_folder(videos) == videos
    assert settings_folder(videos, {"train": line()}) == settings_folder(videos, tmp_path / "mine.jsonl") == videos
    (annotations / "costl.yaml").write_text("extract: {fps: 1}\n")
    assert settings_folder(videos, annotations) == annotations


def test_all_split_files_are_read_and_no_other_files(tmp_path):
    for name in ("train", "val", "test", "test_unseen", "objects", "training"):
        (tmp_path / f"{name}.jsonl").write_text(line(query=name))
    texts = read_annotations(tmp_path)
    assert list(texts) == ["train", "val", "test", "test_unseen"]
    assert queries_in(texts) == ["train", "val", "test", "test_unseen"]


def test_one_file_may_have_any_name(tmp_path):
    (tmp_path / "mine.jsonl").write_text(line() + "\n\n" + line(qid=2, query="a cat") + "\n" + line(qid=3))
    texts = read_annotations(tmp_path / "mine.jsonl")
    assert queries_in(texts) == ["a dog", "a cat"]


def test_a_folder_without_annotations_is_refused(tmp_path):
    (tmp_path / "objects.jsonl").write_text(line())
    with pytest.raises(UsageError, match=r"no annotations\. Expected train\.jsonl"):
        read_annotations(tmp_path)


def test_missing_videos_are_listed_in_the_order_of_their_rows():
    text = "\n".join(line(vid=vid) for vid in ("v_b", "v_a", "v_c", "v_b"))
    assert missing_videos({"train": text}, ["v_a"]) == ["v_b", "v_c"]


@pytest.mark.parametrize(
    ("bad", "answer"),
    [
        ("{", "'{' is not JSON"),
        ("[" * 100_000, ".* is not JSON .nested too deeply"),
        ("[]", "a JSON list, expected an object"),
        ('""', "a JSON text, expected an object"),
        ('"a text"', "a JSON text, expected an object"),
        (line(qid=...), "'qid' is missing"),
        (line(query=..., duration=...), "'query', 'duration' are missing"),
        (line(query=" "), "query is empty"),
        (line(vid=3), "'vid' is the number 3, expected a text in double quotes"),
        (line(duration="10"), "'duration' holds the text '10', expected a number"),
        (line(duration=0), "duration is 0.0, expected seconds above zero"),
        (line(duration=float("nan")), ".* is not JSON .NaN is not a number"),
    ],
    ids=range(12),
)
def test_an_invalid_annotation_is_named_by_file_and_line(bad, answer):
    with pytest.raises(UsageError, match=rf"val\.jsonl:2: {answer}"):
        check_annotations({"train": line(), "val": f"{line()}\n{bad}\n"})
