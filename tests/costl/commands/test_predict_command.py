"""The command line of asking, from outside: predict, export and demo as typed, and one sentence for whatever is wrong."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import av
import pytest
from test_commands import costl, sentence

from costl.train import train


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """A folder with a run in runs/, two videos and features kept from an earlier question."""
    home = tmp_path_factory.mktemp("home")
    train(world.cache, overrides=["train.epochs=1"], out=home / "runs" / "small", device="cpu")
    for name in ("one.mp4", "two.mp4"):
        shutil.copy(world.videos / f"test_000{['one', 'two'].index(name[:3])}.mp4", home / name)
    return home


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy to work in."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))  # shared: the features are made once
    return tmp_path / "home"


def test_a_question_is_answered_with_a_table(here):
    result = costl("predict", "one.mp4", "the red ring", "the blue star", "--top", "2", "--device", "cpu")
    assert result.exit_code == 0
    first, second = result.stdout.rstrip("\n").split("\n\n")
    assert first.startswith("one.mp4 · 0:24 · the red ring\n   1  0:") and second.startswith(
        "one.mp4 · 0:24 · the blue star"
    )
    assert "  saliency" in first and "   3  " not in first


def test_several_videos_answer_in_order_and_a_bad_one_costs_only_itself(here):
    (here / "bad.mp4").write_text("not a video")
    (here / "empty.mkv").touch()
    result = costl("predict", "two.mp4", "bad.mp4", "one.mp4", "empty.mkv", "a cat", "--json")
    assert result.exit_code == 1
    assert [row["video"] for row in json.loads(result.stdout)] == ["two.mp4", "one.mp4"]
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and "bad.mp4" in failed[0] and "empty.mkv" in failed[1]


def test_options_say_outright_what_is_a_video_and_what_a_query(here):
    shutil.copy(here / "one.mp4", here / "a cat")
    result = costl("predict", "--video", "a cat", "--query", "one.mp4", "--query", "a cat", "--format", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["video"], row["query"]) for row in rows] == [("a cat", "one.mp4"), ("a cat", "a cat")]


def test_subtitles_clips_and_a_picture_are_written_where_asked(here):
    written = ["--out", "found/a.srt", "--cut", "clips", "--picture", "found/a.png"]
    result = costl("predict", "one.mp4", "the red ring", "--top", "2", "--format", "srt", *written)
    assert result.exit_code == 0 and result.stdout == ""
    with av.open("found/a.srt") as container:
        cues = [packet for packet in container.demux(subtitles=0) if packet.size]
    rows = list(
        csv.DictReader(costl("predict", "one.mp4", "the red ring", "--top", "2", "--format", "csv").stdout.splitlines())
    )
    assert sorted(float(row["start_s"]) for row in rows) == [float(cue.pts * cue.time_base) for cue in cues]
    clips = sorted((here / "clips").iterdir())
    assert [clip.name.split(".")[:3] for clip in clips] == [["one", "the-red-ring", "1"], ["one", "the-red-ring", "2"]]
    for clip, row in zip(clips, rows, strict=True):
        with av.open(str(clip)) as container:
            lasts = sum(1 for _ in container.decode(video=0)) / 5  # the sample world shows five pictures a second
        assert lasts == pytest.approx(float(row["end_s"]) - float(row["start_s"]), abs=0.45)
    assert (here / "found" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"Written: {Path(name)}" in result.stderr for name in ("found/a.srt", "found/a.png"))


def flat(found: object) -> dict[str, object]:
    """Every value of nested JSON by the way to it."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else None
    if pairs is None:
        return {"": found}
    return {f"{key}/{path}": value for key, inner in pairs for path, value in flat(inner).items()}


def test_an_exported_model_answers_the_same_without_the_run(here):
    asked = ["predict", "one.mp4", "the red ring", "--json"]
    before = costl(*asked).stdout
    exported = costl("data", "export", "runs/small", "model")
    assert (exported.exit_code, exported.stdout) == (0, "model\n") and "mind its licence" in exported.stderr
    shutil.rmtree(here / "runs")
    found = json.loads(costl(*asked, "--model", "model").stdout)
    expected = flat(json.loads(before))
    near = {
        way: pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
        for way, value in expected.items()
    }
    assert flat(found) == near  # but for the last bits: weights may lie otherwise in memory
    again = costl("data", "export", "runs/small", "model")
    assert again.exit_code == 2 and "runs/small: not a run" in sentence(again)


def test_the_demo_says_how_to_install_what_it_needs(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = costl("demo")
    assert result.exit_code == 2 and "pip install 'costl[demo]'" in sentence(result)


def no_run(here: Path) -> list:
    shutil.rmtree(here / "runs")
    return ["predict", "one.mp4", "a cat"]


def clip_is_gone(here: Path) -> list:
    about = json.loads((here / "runs" / "small" / "run.json").read_text())
    about["source"]["weights"] = str(here / "gone")
    (here / "runs" / "small" / "run.json").write_text(json.dumps(about))
    return ["predict", "one.mp4", "a cat"]


WRONG = {
    "nothing": (["predict"], 2, "no video. Name a file"),
    "no query": (["predict", "one.mp4"], 2, "no query. Say what to look for"),
    "a query without letters": (["predict", "one.mp4", "?!"], 2, "no letter in it"),
    "a video that is missing": (["predict", "oen.mp4", "a cat"], 2, "oen.mp4: no such file"),
    "a folder": (["predict", "runs/", "a cat"], 2, "runs/: a folder"),
    "two models": (["predict", "one.mp4", "a cat", "--run", "a", "--model", "b"], 2, "Pass one of them"),
    "subtitles of two videos": (["predict", "one.mp4", "two.mp4", "a cat", "--format", "vtt"], 2, "is for one video"),
    "no run": (no_run, 2, "no trained run. Train one with costl train"),
    "no such run": (["predict", "one.mp4", "a cat", "--run", "elsewhere"], 2, "elsewhere: no such folder"),
    "its CLIP is gone": (clip_is_gone, 3, "gone: the CLIP weights that runs/small was trained with"),
    "no such weights": (["predict", "one.mp4", "a cat 2", "--weights", "nowhere/"], 2, "nowhere: no such weights file"),
    "an export of nothing": (["data", "export", "elsewhere", "model"], 2, "elsewhere: not a run"),
    "a place that is taken": (["data", "export", "runs/small", "runs"], 2, "runs: holds something already"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(here, name):
    arguments, code, part = WRONG[name]
    result = costl(*(arguments if isinstance(arguments, list) else arguments(here)))
    last = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == code and len(last) == 1 and part in last[0] and result.stdout == ""
