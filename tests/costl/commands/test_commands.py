"""The command line: the three commands, quickstart, and one error message for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from preloaded import Preloaded
from published_world import publish_world

from costl.commands import main
from costl.pipeline.cache.reader import CacheReader
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import read_run

TINY = ["--videos", "train=2", "--videos", "val=1", "--videos", "test=1", "--videos", "test_unseen=1"]
TINY += ["--queries", "3"]
QUICK = ["--set", "model.width=32", "--set", "model.heads=2", "--set", "train.epochs=1"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def costl(*arguments: str | Path) -> Result:
    """Runs the command in this process. Unexpected exceptions are raised."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments: str | Path) -> subprocess.Popen:
    """Starts the command in its own process, as a shell does."""
    command = ["-m", "costl", *arguments]
    return Preloaded(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def error_message(result: Result) -> str:
    """The error message. Checks that it is one line without a traceback, and that standard output is empty."""
    (line,) = (line for line in result.stderr.splitlines() if not line.endswith(" ..."))
    assert line.startswith("Error: ") and line.endswith((".", "?")) and result.stdout == ""
    return line


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A working folder with the videos in `dir/` and their cache `feats.h5`."""
    shutil.copytree(world.copy(tmp_path / "other").videos, tmp_path / "dir")
    shutil.copy(tmp_path / "other" / "feats.h5", tmp_path / "feats.h5")
    shutil.copytree(tmp_path / "other" / "feats.h5.parts", tmp_path / "feats.h5.parts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_loads_no_heavy_library():
    code = (
        "import sys\nfrom costl.commands import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'open_clip', 'decord', 'h5py', 'pyarrow', 'matplotlib', 'av', 'joblib', 'numpy'}\n"
        "sys.exit(f'loaded: {sorted(heavy & set(sys.modules))}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_three_commands_run_from_videos_to_metrics(here):
    for path in (here / "feats.h5", here / "feats.h5.parts"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    first = costl("extract", "--videos", "dir/")
    assert (first.exit_code, first.stdout) == (0, "feats.h5\n")
    assert "10 videos extracted, 0 were there already, 0 failed." in first.stderr
    trained = costl("train", "--cache", "feats.h5")
    assert trained.exit_code == 0 and Path(trained.stdout.strip()).parent == Path("runs")
    assert "3 epochs; epoch" in trained.stderr
    evaluated = costl("evaluate", "--split", "test")
    assert evaluated.exit_code == 0 and "R1@0.5" in evaluated.stdout and "HIT@1" in evaluated.stdout
    folder = Path(trained.stdout.strip()) / "eval-test"
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "predictions.jsonl",
        "predictions.parquet",
        "predictions.png",
    }


def test_a_second_extraction_decodes_nothing(here):
    again = costl("extract", "--videos", "dir/", "--json")
    *events, report = map(json.loads, again.stdout.splitlines())
    assert report.pop("event") == "done" and {event["event"] for event in events} == {"progress"}
    assert again.exit_code == 0 and report["done"] == [] and len(report["skipped"]) == 10 and report["failed"] == []


def test_json_output_matches_the_written_files(here):
    trained = json.loads(costl("train", "--cache", "feats.h5", "--json", "--set", "train.epochs=1").stdout)
    assert trained["epochs"] == 1 and trained["select"] == "MR-full-mAP"
    metrics = json.loads(costl("evaluate", "--run", trained["run"], "--official", "--json").stdout)
    assert metrics == json.loads((Path(trained["run"]) / "eval-test" / "metrics.json").read_text())
    rows = json.loads(costl("cache", "status", "feats.h5", "--json").stdout)
    assert len(rows) == 10 and {row["status"] for row in rows} == {"ok"}


def test_an_unreadable_video_is_a_failed_row_and_exit_code_1(here):
    (here / "dir" / "test_0000.mp4").write_bytes(b"this is not a video, but it is long enough" * 100)
    result = costl("extract", "--videos", "dir/")
    assert (result.exit_code, result.stdout) == (1, "feats.h5\n")
    assert "    1 failed: " in result.stderr and "(test_0000)\n" in result.stderr
    assert "9 were there already, 1 failed." in result.stderr
    status = costl("cache", "status", "feats.h5").stdout
    assert status.startswith("test_0000  ") and "test_0001" not in status and "9 of 10 videos have features." in status
    assert len(costl("cache", "status", "feats.h5", "--all").stdout.splitlines()) == 12
    (row,) = (
        row for row in json.loads(costl("cache", "status", "feats.h5", "--json").stdout) if row["name"] == "test_0000"
    )
    assert row["status"] != "ok" and row["reason"]
    assert costl("train", "--cache", "feats.h5", "--set", "train.epochs=1").exit_code == 0
    evaluated = costl("evaluate")
    assert evaluated.exit_code == 0 and "3 of 6 queries ask about videos without features" in evaluated.stderr
    (written,) = (here / "runs").glob("*/eval-test/predictions.jsonl")
    (here / "truth.jsonl").write_text(CacheReader("feats.h5").annotations("test"))
    again = costl("evaluate", "--predictions", written, "--truth", "truth.jsonl", "--json")
    numbers = json.loads((written.parent / "metrics.json").read_text())["brief"]
    assert json.loads(again.stdout)["brief"] == numbers and numbers["MR-full-R1@0.3"] <= 50
    assert "unanswered" in Path(costl("report").stdout.strip()).read_text()


def test_a_query_longer_than_clip_reads_is_cut_with_a_message(here):
    rows = (here / "dir" / "test.jsonl").read_text().splitlines()
    long = "the red star " * 60
    (here / "dir" / "test.jsonl").write_text("\n".join([json.dumps(json.loads(rows[0]) | {"query": long}), *rows[1:]]))
    result = costl("extract", "--videos", "dir/")
    assert result.exit_code == 0 and "cut: longer than CLIP reads" in result.stderr and long in result.stderr


def test_a_damaged_part_gives_exit_code_3_and_can_be_extracted_again(here):
    whole = costl("cache", "verify", "feats.h5")
    assert (whole.exit_code, whole.stdout) == (0, "11 of 11 files are whole.\n")
    part = here / "feats.h5.parts" / "val_0001.h5"
    part.write_bytes(part.read_bytes()[:-1])
    for option in ([], ["--quick"]):
        result = costl("cache", "verify", "feats.h5", *option)
        assert result.exit_code == 3 and result.stdout.startswith("val_0001  feats.h5.parts/val_0001.h5: ")
        assert result.stdout.endswith("\n10 of 11 files are whole.\n")
    (damage,) = json.loads(costl("cache", "verify", "feats.h5", "--json").stdout)["damaged"]
    assert damage["name"] == "val_0001" and damage["path"] == "feats.h5.parts/val_0001.h5"
    Path(damage["path"]).unlink()
    assert costl("extract", "--videos", "dir/").exit_code == 0
    assert costl("cache", "verify", "feats.h5").exit_code == 0


def test_published_features_are_imported_trained_on_and_evaluated(tmp_path, monkeypatch):
    published = publish_world(tmp_path, counts={"train": 8, "val": 2, "test": 4})
    monkeypatch.chdir(tmp_path)
    (published.frames("slow", "test_0")).unlink()
    command = ["data", "import", "--annotations", "annotations/", "--features", "slow=slow", "--features", "clip=clip"]
    command += ["--text", "text", "--joint", "clip"]
    assert "test_0 (slow)" in error_message(costl(*command)) and not Path("feats.h5").exists()
    done = costl(*command, "--allow-missing")
    assert (done.exit_code, done.stdout) == (1, "feats.h5\n")
    assert "missing: test_0: no file of slow." in done.stderr and "13 videos imported, 0 were there" in done.stderr
    again = json.loads(costl(*command, "--allow-missing", "--json").stdout)
    assert len(again["skipped"]) == 13 and again["done"] == [] and again["failed"][0]["status"] == "missing"
    assert costl("cache", "verify", "feats.h5").stdout == "14 of 14 files are whole.\n"
    assert costl("train", "--cache", "feats.h5", *QUICK).exit_code == 0
    evaluated = costl("evaluate")
    assert evaluated.exit_code == 0 and "R1@0.5" in evaluated.stdout
    refused = costl("train", "--cache", "feats.h5", "--set", "spatial.steps=1")
    assert refused.exit_code == 2 and "have no patches" in error_message(refused)


def no_videos(here: Path) -> list:
    for video in (here / "dir").glob("*.mp4"):
        video.unlink()
    return ["extract", "--videos", "dir/"]


def no_videos_and_missing_ones_allowed(here: Path) -> list:
    return [*no_videos(here), "--allow-missing-videos"]


def no_features_and_missing_ones_allowed(here: Path) -> list:
    (here / "empty").mkdir()
    return ["data", "import", "--annotations", "dir", "--features", "clip=empty", "--text", "dir", "--allow-missing"]


def no_annotations(here: Path) -> list:
    for file in (here / "dir").glob("*.jsonl"):
        file.unlink()
    return ["extract", "--videos", "dir/", "--annotations", "dir/"]


def no_queries(here: Path) -> list:
    no_annotations(here)
    for video in sorted((here / "dir").glob("*.mp4"))[1:]:
        video.unlink()
    done = costl("extract", "--videos", "dir/", "--out", "bare.h5")
    assert (done.exit_code, done.stdout) == (0, "bare.h5\n") and "bare.h5 has no queries yet" in done.stderr
    status = costl("cache", "status", "bare.h5")
    assert status.exit_code == 0 and "costl cache add-queries bare.h5" in status.stderr
    assert costl("cache", "inspect", "bare.h5").exit_code == 0
    return ["train", "--cache", "bare.h5"]


def an_unknown_video(here: Path) -> list:
    row = json.loads((here / "dir" / "val.jsonl").read_text().splitlines()[0]) | {"vid": "elsewhere"}
    (here / "dir" / "val.jsonl").write_text(json.dumps(row))
    return ["extract", "--videos", "dir/"]


def a_typo_in_costl_yaml(here: Path) -> list:
    (here / "dir" / "costl.yaml").write_text("extract:\n  wieghts: clip\n")
    return ["extract", "--videos", "dir/"]


def a_file_that_is_not_a_cache(here: Path) -> list:
    (here / "feats.h5").write_text("not HDF5")
    return ["train", "--cache", "feats.h5"]


ERRORS = {
    "no videos": (no_videos, 2, "dir"),
    # The folder of an unmounted disk is empty. The features in the cache must not be lost then.
    "no videos, and missing ones are allowed": (no_videos_and_missing_ones_allowed, 2, "dir: no videos ("),
    "no folder": (["extract", "--videos", "nowhere/"], 2, "nowhere"),
    "no annotations": (no_annotations, 2, "no annotations. Expected train.jsonl"),
    "no queries": (no_queries, 2, "bare.h5 has no queries yet. costl cache add-queries bare.h5"),
    "annotations of an unknown video": (an_unknown_video, 2, "elsewhere"),
    "a typo in costl.yaml": (a_typo_in_costl_yaml, 2, "unknown key 'wieghts'. Did you mean weights"),
    "an unknown model": (["extract", "--videos", "dir/", "--model", "ViT-B-23", "--weights", "openai"], 2, "ViT-B-32"),
    "a model in addition to a folder of weights": (
        ["extract", "--videos", "dir/", "--model", "ViT-B-16"],
        2,
        "bring their own architecture",
    ),
    "a cache of other settings": (
        ["extract", "--videos", "dir/", "--fps", "1"],
        3,
        "fps: cache has 0.5, asked for 1.0",
    ),
    "a typo in a setting": (["train", "--cache", "feats.h5", "--set", "train.epoch=3"], 2, "Did you mean epochs?"),
    "an impossible setting": (["train", "--cache", "feats.h5", "--set", "train.epochs=0"], 2, "above zero"),
    "no such settings file": (["train", "--cache", "feats.h5", "--config", "my.yaml"], 2, "my.yaml: cannot be read"),
    "no cache": (["train", "--cache", "nothing.h5"], 3, "nothing.h5"),
    "a file that is not a cache": (a_file_that_is_not_a_cache, 3, "feats.h5"),
    "no run": (["evaluate", "--split", "test"], 2, "no trained run. Train one with costl train --cache feats.h5"),
    "a folder that is not a run": (["evaluate", "--run", "dir"], 2, "dir: not a run"),
    "nothing to resume": (["train", "--resume", "dir"], 2, "dir: not a run"),
    "no device of that name": (["train", "--cache", "feats.h5", "--device", "abacus"], 2, "device 'abacus'"),
    "no cache for its status": (["cache", "status", "nothing.h5"], 3, "nothing.h5"),
    "no cache to verify": (["cache", "verify", "nothing.h5"], 3, "nothing.h5"),
    "no features": (
        ["data", "import", "--annotations", "dir", "--features", "clip=dir", "--text", "dir"],
        2,
        "10 of 10 annotated videos have no features",
    ),
    "no features, and missing ones are allowed": (
        no_features_and_missing_ones_allowed,
        2,
        "Check the folders (clip: empty, which is empty)",
    ),
    "no folder of features": (
        ["data", "import", "--annotations", "dir", "--features", "clip=nowhere", "--text", "dir"],
        2,
        "nowhere is not a folder",
    ),
    "a folder with other files": (["data", "sample", "dir/../other"], 2, "holds files that are not a sample world"),
    "a split of fine worlds": (["data", "sample", "new", "--videos", "test_unseen_relation=1"], 2, "Add --fine"),
    "impossible world settings": (["data", "sample", "new", "--queries", "0"], 2, "one query per video"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.promise(16)
def test_an_error_is_one_message_and_changes_no_file(here, name):
    arguments, code, part = ERRORS[name]
    arguments = arguments if isinstance(arguments, list) else arguments(here)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    result = costl(*arguments)
    assert result.exit_code == code and part in error_message(result)
    after = {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == {path: content for path, content in before.items() if path.name != ".lock"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract"],
        ["train"],
        ["trian"],
        ["evaluate", "--spilt", "test"],
        ["data", "sample", "new", "--videos", "train"],
        ["train", "--resume", "x", "--set", "train.epochs=3"],
        ["data", "import", "--annotations", "x", "--features", "clip", "--text", "x"],
        ["data", "import", "--annotations", "x", "--features", "a=x", "--features", "a=y", "--text", "x"],
        ["bench", "indx"],
    ],
)
def test_a_mistyped_command_is_refused_with_exit_code_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = costl(*arguments)
    assert result.exit_code == 2 and "Error: " in result.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("advice", ["", "Every step is kept."])
def test_ctrl_c_says_how_to_go_on(here, monkeypatch, advice):
    def extract(*_: object, **options: object) -> None:
        raise KeyboardInterrupt(*filter(None, [advice]))

    monkeypatch.setattr("costl.pipeline.extract.extract", extract)
    result = costl("extract", "--videos", "dir")
    expected = advice or "Finished work is saved. Run the same command again to continue."
    assert (result.exit_code, result.stderr) == (130, f"Interrupted. {expected}\n")


@pytest.mark.promise(16)
def test_an_interrupted_training_exits_with_130_and_can_be_resumed(here):
    """By SIGTERM; tests/crash/test_from_outside.py does the same with Ctrl-C."""

    def train_until_stopped(after: int, *arguments: str) -> None:
        with start("train", *arguments) as process:
            try:
                rows = here / "run" / "metrics.jsonl"
                deadline = time.monotonic() + 150
                while not (rows.exists() and rows.read_text().count("\n") > after + 1):  # the last may not be saved yet
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                stdout, stderr = process.communicate(timeout=30)
            finally:
                process.kill()
        assert (process.returncode, stdout) == (130, "") and "Interrupted." in stderr and "Traceback" not in stderr

    train_until_stopped(
        0, "--cache", "feats.h5", "--out", "run", "--set", "train.epochs=5000", "--set", "train.patience=5000"
    )
    first = load_checkpoint(here / "run", "last")[1]["counts"]["epoch"]
    train_until_stopped(first, "--resume", "run")
    assert load_checkpoint(here / "run", "last")[1]["counts"]["epoch"] > first
    assert not read_run(here / "run").finished


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "--videos", "dir/", "--out", "new.h5", "--workers", "1"],
        ["train", "--cache", "feats.h5", "--set", "train.workers=1"],
    ],
    ids=["extract", "train"],
)
def test_a_command_that_a_shell_started_with_ctrl_c_ignored_goes_on(here, arguments):
    default = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(*arguments, "--device", "cpu")
    finally:
        signal.signal(signal.SIGINT, default)
    with process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0 and len(lines) > 1 and "Interrupted." not in "".join(lines), lines


def test_data_sample_writes_into_the_given_folder(tmp_path):
    result = costl("data", "sample", tmp_path / "new", *TINY)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'new'}\n")
    assert len(list((tmp_path / "new").glob("*.mp4"))) == 5
    assert {"train.jsonl", "val.jsonl", "test.jsonl", "test_unseen.jsonl", "costl.yaml"} <= {
        path.name for path in (tmp_path / "new").iterdir()
    }


def test_fine_adds_a_split_and_videos_change_its_size(tmp_path, monkeypatch):
    worlds = []
    monkeypatch.setattr("costl.pipeline.world.write_world.write_sample", lambda _, settings, **__: worlds.append(settings))
    for options in ([], ["--fine"], ["--fine", "--videos", "test_unseen_relation=3", "--hard"]):
        assert costl("data", "sample", tmp_path, *options).exit_code == 0
    assert [(world.fine, world.hard, world.videos.get("test_unseen_relation")) for world in worlds] == [
        (False, False, None),
        (True, False, 50),
        (True, True, 3),
    ]


def test_quickstart_prints_a_table_and_repeats_no_finished_work(tmp_path):
    first = costl("quickstart", "--out", tmp_path / "q", *TINY, *QUICK)
    assert first.exit_code == 0
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in first.stdout.splitlines() if line]
    methods = ["chance", "zero-shot CLIP", "CoSTL without spatial encoder", "CoSTL"]
    assert [row[0] for row in rows if "---" not in row[0]] == ["test", *methods, "test_unseen", *methods]
    assert rows[0] == ["test", "R1@0.5", "R1@0.7", "mAP", "HIT@1", ""]
    pictures = [
        tmp_path / "q" / "runs" / "costl" / f"eval-{split}" / "predictions.png" for split in ("test", "test_unseen")
    ]
    assert all(picture.is_file() and str(picture) in first.stderr for picture in pictures)
    assert read_run(tmp_path / "q" / "runs" / "costl-without-spatial-encoder").config.spatial.steps == 0
    written_ns = {p: p.stat().st_mtime_ns for p in (tmp_path / "q").rglob("*") if p.suffix in (".mp4", ".safetensors")}
    again = costl("quickstart", "--out", tmp_path / "q", *TINY, *QUICK)
    assert again.stdout == first.stdout and "render" not in again.stderr and "train ..." not in again.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in written_ns.items())
    other = costl("quickstart", "--out", tmp_path / "q", *TINY, *QUICK, "--set", "train.seed=1")
    assert other.exit_code == 2 and "was trained with other settings" in error_message(other)
    other = costl("quickstart", "--out", tmp_path / "q", *TINY, *QUICK, "--seed", "1")
    assert other.exit_code == 2 and "holds another sample world" in error_message(other)
