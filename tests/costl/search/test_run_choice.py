"""Which run a search uses when none is named: the newest that fits the library and beat CLIP alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

import costl
from costl.commands import main
from costl.label.proposals import Proposals
from costl.pipeline.errors import VideoError
from costl.predict.zero_shot_comparison import ZeroShotComparison
from costl.search import run_choice
from costl.search.second_tier import SecondTier

QUERIES = ["the blue ring", "a large red circle"]
WON = ZeroShotComparison("MR-full-mAP", trained=60.0, zero_shot=40.0, interval=(1.5, 38.0), queries=6, videos=2)
AddRun = Callable[..., Path]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The folder of runs, empty at first. The user's cache folder is empty as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(run_choice, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def add_run(run, runs) -> AddRun:
    """Copies the trained run into the folder of runs, as if it were started on this day, with this end and fingerprint."""

    def add(name: str, day: int, comparison: ZeroShotComparison | None = WON, **fields: object) -> Path:
        folder = shutil.copytree(run, runs / name)
        about = json.loads((folder / "run.json").read_text())
        about |= {"started": f"2026-05-{day:02}T12:00:00+00:00", "fingerprint": about["fingerprint"] | fields}
        (folder / "run.json").write_text(json.dumps(about))
        summary = json.loads((folder / "summary.json").read_text())
        summary["zero_shot"] = asdict(comparison) if comparison else None
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return add


@pytest.fixture
def opened(world, runs) -> Callable[..., costl.Library]:
    return lambda run=None: costl.library(world.cache, run=run, device="cpu")


def compared(low: float | None, high: float = 20.0) -> ZeroShotComparison:
    return ZeroShotComparison("MR-full-mAP", 50.0, 40.0, None if low is None else (low, high), queries=6, videos=2)


def test_a_run_that_beats_clip_answers_as_if_it_were_named(add_run, opened):
    won = add_run("won", day=1)
    library = opened()
    results = library.search_all(QUERIES, min_score=0.0)
    assert results == opened(won).search_all(QUERIES, min_score=0.0)
    assert results != opened("none").search_all(QUERIES, min_score=0.0)
    answered_by = f"{won}"
    assert {result.answered_by for result in results} == {answered_by} and results[0].to_row()["answered_by"] == answered_by
    assert repr(library).endswith(f"; {answered_by}") and library.passed_over == "" and library.messages() == []


def test_without_runs_it_is_zero_shot(opened, runs):
    expected = opened("none").search(QUERIES[0], min_score=0.0)
    assert opened().search(QUERIES[0], min_score=0.0) == expected and expected.answered_by.startswith("zero-shot")
    runs.rmdir()
    assert opened().messages() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"comparison": compared(-3.0)}, "it is not clearly better than CLIP alone"),
        ({"comparison": compared(-9.0, -3.0)}, "it is not clearly better than CLIP alone"),
        ({"comparison": compared(0.0)}, "it is not clearly better than CLIP alone"),
        ({"comparison": compared(None)}, "it is not clearly better than CLIP alone"),
        ({"comparison": None}, "it was not compared with CLIP alone"),
        ({"weights": "0" * 64}, "it was trained with another encoder"),
        ({"model": "ViT-B-16"}, "it was trained with another encoder"),
        ({"preprocess": "{}"}, "it was trained with another encoder"),
    ],
)
def test_a_run_that_does_not_qualify_is_passed_over_in_one_line(add_run, opened, change, reason):
    folder = add_run("other", day=2, **change)
    library = opened()
    assert library.messages() == [f"{folder} is not used: {reason}."] and repr(library) == repr(opened("none"))
    assert opened("none").messages() == []
    won = add_run("won", day=1)
    assert f"; {won}" in repr(opened()) and opened().messages() == library.messages()


def test_a_run_that_lost_to_clip_changes_no_answer(add_run, opened):
    add_run("lost", day=1, comparison=compared(-1.0))
    assert opened().search(QUERIES[0], min_score=0.0) == opened("none").search(QUERIES[0], min_score=0.0)


@pytest.mark.parametrize("low", [-1.0, 0.0, 1e-9, 5.0, None])
def test_a_run_is_used_where_its_training_called_it_better(add_run, opened, low):
    add_run("mine", day=1, comparison=compared(low))
    assert (opened().passed_over == "") == compared(low).is_better


def test_an_unfinished_run_is_passed_over(add_run, opened):
    (add_run("running", day=2) / "summary.json").unlink()
    assert opened().messages() == [f"{run_choice.RUNS / 'running'} is not used: its training has not finished."]


def test_frames_and_precision_may_differ_from_those_of_the_library(add_run, opened):
    """The features of a run are made with its own settings."""
    folder = add_run("mine", day=1, fps=1.0, precision="fp16", open_clip="2.0.0", decoder="pyav", sampling="start")
    assert opened().messages() == [] and str(folder) in repr(opened())


def test_the_run_that_was_started_last_is_the_newest(add_run, opened):
    for name, day in (("c", 1), ("a", 3), ("b", 2)):
        os.utime(add_run(name, day=day) / "run.json", (10 * day, -10 * day + 1000))
    assert f"; {run_choice.RUNS / 'a'}" in repr(opened())


def test_of_many_old_runs_only_the_newest_is_named(add_run, opened):
    for day in range(1, 29):
        add_run(f"run-{day}", day=day, comparison=compared(-1.0) if day % 2 else None)
    assert opened().messages() == [f"{run_choice.RUNS / 'run-28'} is not used: it was not compared with CLIP alone."]


def make_fifo(folder: Path) -> None:
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")


def make_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def make_folder(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def set_fields(name: str, **fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))

    return change


def damage_fps(folder: Path) -> None:
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"fingerprint": about["fingerprint"] | {"fps": "many"}}))


def rewrite_settings(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    assert "width: 32" in text
    (folder / "config.yaml").write_text(text.replace("width: 32", "width: 64"))


FOREIGN = {
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("mine")),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a link to itself": make_loop,
    "run.json is a pipe": make_fifo,
    "run.json is a folder": make_folder,
    "run.json is empty": write("run.json", ""),
    "run.json is binary": write("run.json", bytes(range(256))),
    "run.json is a list": write("run.json", "[1]"),
    "run.json is a number": write("run.json", "7"),
    "run.json is nested deeply": write("run.json", "[" * 100_000),
    "no start": set_fields("run.json", started=None),
    "a start that is no date": set_fields("run.json", started="yesterday"),
    "a start before all time": set_fields("run.json", started="0001-01-01T00:00:00"),
}
DAMAGED = {
    "run.json without a fingerprint": write("run.json", '{"started": "2026-05-09T12:00:00+00:00"}'),
    "a fingerprint that is a text": set_fields("run.json", fingerprint="ViT-B-32"),
    "a cache that is a number": set_fields("run.json", cache=3),
    "a patch grid that is a text": set_fields("run.json", patch_grid="wide"),
    "config.yaml is missing": lambda folder: (folder / "config.yaml").unlink(),
    "config.yaml is binary": write("config.yaml", b"\xff\xfe\x00"),
    "config.yaml of another version": write("config.yaml", "train: {no_such_setting: 1}"),
    "config.yaml runs code": write("config.yaml", "train: !!python/object/apply:os.getcwd []"),
    "summary.json is empty": write("summary.json", ""),
    "summary.json is a list": write("summary.json", "[]"),
    "summary.json is binary": write("summary.json", b"\xff"),
    "a comparison that is a number": set_fields("summary.json", zero_shot=7),
    "a comparison that is a list": set_fields("summary.json", zero_shot=[1.0]),
    "a comparison without an interval": set_fields("summary.json", zero_shot={"trained": 60.0}),
    "an empty interval": set_fields("summary.json", zero_shot={"interval": []}),
    "an interval of texts": set_fields("summary.json", zero_shot={"interval": ["1", "2"]}),
    "an interval that is a mapping": set_fields("summary.json", zero_shot={"interval": {"low": 1.0}}),
    "an interval of NaN": set_fields("summary.json", zero_shot={"interval": [float("nan"), 1.0]}),
}
NOT_LOADED = {
    "a patch grid of one number": set_fields("run.json", patch_grid=[3]),
    "weights are missing": lambda folder: (folder / "best.safetensors").unlink(),
    "weights are cut off": lambda folder: os.truncate(folder / "best.safetensors", 1000),
    "weights are a text": write("best.safetensors", "not weights"),
    "weights of another model": rewrite_settings,
    "a rate of frames that is a text": damage_fps,
}
BAD = [
    pytest.param(change, reason, id=name)
    for table, reason in ((FOREIGN, ""), (DAMAGED, "its files are damaged"), (NOT_LOADED, "it cannot be loaded"))
    for name, change in table.items()
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_folder_in_runs_never_breaks_a_search(add_run, opened, change, reason):
    bad = add_run("bad", day=9)
    change(bad)
    messages = [f"{bad} is not used: {reason}."] if reason else []
    assert opened().messages() == messages and repr(opened()).endswith("; zero-shot ViT-B-32, clip")
    won = add_run("won", day=1)
    assert opened().messages() == messages and f"; {won}" in repr(opened())


def test_a_file_called_runs_holds_no_runs(opened, runs):
    runs.rmdir()
    runs.write_text("mine")
    assert repr(opened()).endswith("; zero-shot ViT-B-32, clip") and opened().messages() == []


def test_where_a_run_fails_that_nobody_named_clip_answers_alone(add_run, opened, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise VideoError("a.mp4: no such file")

    won = add_run("won", day=1)
    monkeypatch.setattr(SecondTier, "hits", fail)
    monkeypatch.setattr("costl.search.library.SECOND_TIER_VIDEOS", 2)
    results, expected = (opened(run).search_all(QUERIES, top=100, min_score=0.0) for run in (None, "none"))
    assert [(one.hits, one.answered_by) for one in results] == [(one.hits, one.answered_by) for one in expected]
    assert {one.notes for one in results} == {(f"{won} is not used: a.mp4: no such file",)}
    with pytest.raises(VideoError, match=r"a\.mp4"):
        opened(won).search(QUERIES[0])


def test_a_library_that_is_opened_again_chooses_again(add_run, indexed):
    library = costl.library(indexed, device="cpu", update=False)
    assert repr(library).endswith("; zero-shot ViT-B-32, clip")
    won = add_run("won", day=1)
    assert str(won) in repr(library.reopen())
    library.use_run("none")
    assert repr(library.reopen()).endswith("; zero-shot ViT-B-32, clip")


def test_the_labelling_page_proposes_by_clip_alone(add_run, indexed):
    add_run("won", day=1)
    proposals = Proposals(indexed, device="cpu")
    note = proposals.find("test_0000.mp4", QUERIES[0]).result().note
    proposals.close()
    assert note.endswith(" by zero-shot ViT-B-32, clip.")


@pytest.fixture
def indexed(world, runs, tmp_path) -> Path:
    """A folder of one video, with its index."""
    (tmp_path / "videos").mkdir()
    shutil.copy(world.videos / "test_0000.mp4", tmp_path / "videos")
    costl.library(tmp_path / "videos", weights=str(world.videos / "clip"), device="cpu", workers=1)
    return tmp_path / "videos"


def search(*arguments: object) -> tuple[str, str]:
    """The standard output and the messages of `costl search`."""
    command = ["search", QUERIES[0], *map(str, arguments), "--device", "cpu", "--min-score", "0"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_the_command_takes_the_run_of_the_working_folder(add_run, indexed, tmp_path, monkeypatch):
    add_run("won", day=1)
    monkeypatch.setattr(run_choice, "RUNS", Path("runs"))
    monkeypatch.chdir(tmp_path)
    text, messages = search("--videos", "videos")
    named, _ = search("--videos", "videos", "--run", "runs/won")
    assert text == named and "runs/won" in text.splitlines()[0] and "not used" not in messages
    add_run("lost", day=2, comparison=compared(-1.0))
    line = "runs/lost is not used: it is not clearly better than CLIP alone.\n"
    rows, messages = search("--videos", "videos", "--format", "jsonl")
    assert json.loads(rows)["answered_by"] == "runs/won"
    assert messages.count(line) == messages.count("not used") == 1
    rows, messages = search("--videos", "videos", "--format", "jsonl", "--run", "none")
    assert json.loads(rows)["answered_by"] == "zero-shot ViT-B-32, clip" and "not used" not in messages
