"""The commands that ask a trained model: predict, export and demo, and one error message for every mistake."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import av
import pytest
from test_commands import costl, error_message

from costl.train import train


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """A folder with a run in runs/ and two videos."""
    home = tmp_path_factory.mktemp("home")
    train(world.cache, overrides=["train.epochs=1"], out=home / "runs" / "small", device="cpu")
    for name in ("one.mp4", "two.mp4"):
        shutil.copy(world.videos / f"test_000{['one', 'two'].index(name[:3])}.mp4", home / name)
    return home


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of `trained` to work in."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))  # shared by all tests, so features are extracted once
    return tmp_path / "home"


def test_predict_prints_a_table(here):
    result = costl("predict", "one.mp4", "the red ring", "the blue star", "--top", "2", "--device", "cpu")
    assert result.exit_code == 0
    first, second = result.stdout.rstrip("\n").split("\n\n")
    assert first.startswith("one.mp4 · 0:24 · the red ring\n   1  0:") and second.startswith(
        "one.mp4 · 0:24 · the blue star"
    )
    assert "  saliency" in first and "   3  " not in first


def test_videos_are_answered_in_order_and_bad_ones_are_skipped(here):
    (here / "bad.mp4").write_text("not a video")
    (here / "empty.mkv").touch()
    result = costl("predict", "two.mp4", "bad.mp4", "one.mp4", "empty.mkv", "a cat", "--json")
    assert result.exit_code == 1
    assert [row["video"] for row in json.loads(result.stdout)] == ["two.mp4", "one.mp4"]
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and "bad.mp4" in failed[0] and "empty.mkv" in failed[1]


def test_subtitles_cut_moments_and_a_picture_are_written(here):
    outputs = ["--out", "answers/a.srt", "--cut", "moments", "--picture", "answers/a.png"]
    result = costl("predict", "one.mp4", "the red ring", "--top", "2", "--format", "srt", *outputs)
    assert result.exit_code == 0 and result.stdout == ""
    with av.open("answers/a.srt") as container:
        cues = [packet for packet in container.demux(subtitles=0) if packet.size]
    rows = list(
        csv.DictReader(costl("predict", "one.mp4", "the red ring", "--top", "2", "--format", "csv").stdout.splitlines())
    )
    starts_s = sorted(float(row["start_s"]) for row in rows)
    assert starts_s == pytest.approx([float(cue.pts * cue.time_base) for cue in cues], abs=0.0011)
    files = sorted((here / "moments").iterdir())
    assert [file.name.split(".")[:3] for file in files] == [["one", "the-red-ring", "1"], ["one", "the-red-ring", "2"]]
    for file, row in zip(files, rows, strict=True):
        with av.open(str(file)) as container:
            pictures = sum(1 for _ in container.decode(video=0))
            duration_s = pictures / container.streams.video[0].average_rate
        assert duration_s == pytest.approx(float(row["end_s"]) - float(row["start_s"]), abs=0.45)
    assert (here / "answers" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"Written: {Path(name)}" in result.stderr for name in ("answers/a.srt", "answers/a.png"))


def flat(content: object) -> dict[str, object]:
    """Every value of nested JSON by its path."""
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content)
    else:
        return {"": content}
    return {f"{key}/{path}": value for key, inner in pairs for path, value in flat(inner).items()}


def test_an_exported_model_gives_the_same_answers_without_the_run(here):
    command = ["predict", "one.mp4", "the red ring", "--json"]
    expected = flat(json.loads(costl(*command).stdout))
    exported = costl("data", "export", "runs/small", "model")
    assert (exported.exit_code, exported.stdout) == (0, "model\n") and "Check its licence" in exported.stderr
    shutil.rmtree(here / "runs")
    answers = flat(json.loads(costl(*command, "--model", "model").stdout))
    # The last bits may differ, because the weights may have another alignment in memory.
    assert answers == {
        path: pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
        for path, value in expected.items()
    }
    again = costl("data", "export", "runs/small", "model")
    assert again.exit_code == 2 and "runs/small: not a run" in error_message(again)


def test_without_a_run_clip_answers_alone(here, world):
    shutil.rmtree(here / "runs")
    command = ["predict", "one.mp4", "a cat", "--weights", str(world.videos / "clip")]
    result = costl(*command, "--all")
    assert result.exit_code == 0 and "note: answered by CLIP alone (ViT-B-32, clip)" in result.stdout
    (row,) = json.loads(costl(*command, "--json").stdout)
    assert 0 <= row["confidence"] <= 1 and bool(row["moments"]) == (row["confidence"] >= 0.9)
    assert row["moments"] or row["below"]


def test_demo_without_gradio_says_how_to_install_it(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = costl("demo")
    assert result.exit_code == 2 and "pip install 'costl[demo]'" in error_message(result)


def missing_clip_weights(here: Path) -> list:
    about = json.loads((here / "runs" / "small" / "run.json").read_text())
    about["source"]["weights"] = str(here / "gone")
    (here / "runs" / "small" / "run.json").write_text(json.dumps(about))
    return ["predict", "one.mp4", "a cat"]


ERRORS = {
    "no arguments": (["predict"], 2, "no video. Name a file"),
    "no query": (["predict", "one.mp4"], 2, "no query. Describe what to look for"),
    "a query without letters": (["predict", "one.mp4", "?!"], 2, "no letter or digit in it"),
    "a video that is missing": (["predict", "oen.mp4", "a cat"], 2, "oen.mp4: no such file"),
    "a folder": (["predict", "runs/", "a cat"], 2, "runs/: a folder. Name the videos in it"),
    "subtitles of two videos": (["predict", "one.mp4", "two.mp4", "a cat", "--format", "vtt"], 2, "is for one video"),
    "no such run": (["predict", "one.mp4", "a cat", "--run", "elsewhere"], 2, "elsewhere: no such folder"),
    "missing CLIP weights": (missing_clip_weights, 3, "gone: the CLIP weights that runs/small was trained with"),
    "no such weights file": (
        ["predict", "one.mp4", "a cat 2", "--weights", "nowhere/"],
        2,
        "nowhere/: no such weights file",
    ),
    "an export of a missing run": (["data", "export", "elsewhere", "model"], 2, "elsewhere: not a run"),
    "an export into a used folder": (
        ["data", "export", "runs/small", "runs"],
        2,
        "runs: exists already and is not empty",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_message_without_output(here, name):
    arguments, code, part = ERRORS[name]
    result = costl(*(arguments if isinstance(arguments, list) else arguments(here)))
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == code and part in message and result.stdout == ""
