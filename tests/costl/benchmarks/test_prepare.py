"""costl prepare from outside: the same bytes each time, a folder that is never overwritten, videos that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from table_cells import cells

from costl.benchmarks.layouts import BENCHMARKS
from costl.benchmarks.prepare import prepare as costl_prepare
from costl.commands import main
from costl.config_files import BENCHMARKS as NAMES
from costl.config_files import benchmark_settings
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError

ROW = {"query": "a person reads", "duration": 24.0, "relevant_windows": [[2.0, 9.0]]}
FILES = ("charades_sta_train_tvr_format.jsonl", "charades_sta_test_tvr_format.jsonl")


def write_charades(folder: Path, jsonl, *, train=("A", "B", "C", "D"), test=("Y", "Z")) -> Path:
    for first, file, vids in zip((0, 100), FILES, (train, test), strict=True):
        jsonl(folder / file, *(ROW | {"qid": first + number, "vid": vid} for number, vid in enumerate(vids)))
    return folder


@pytest.fixture
def charades(tmp_path, jsonl) -> Path:
    return write_charades(tmp_path / "sta", jsonl)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def costl(*arguments: object):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_every_benchmark_has_settings():
    assert tuple(BENCHMARKS) == NAMES
    assert all(benchmark_settings(name).is_file() for name in NAMES)


def test_all_files_are_written_and_the_next_command_is_printed(prepare, charades):
    prepared = prepare("charades", charades, "--val-share", "0.5", "--seed", "1")
    assert prepared.code == 0
    assert set(content(prepared.out)) == {
        *("train.jsonl", "val.jsonl", "test.jsonl", "costl.yaml", "report.json", "missing.txt"),
    }
    assert (prepared.out / "costl.yaml").read_bytes() == benchmark_settings("charades").read_bytes()
    assert (prepared.out / "missing.txt").read_text().split() == ["A", "B", "C", "D", "Y", "Z"]
    header, _, rows, *_ = prepared.table.splitlines()
    assert cells(header) == ["Charades-STA", "train", "val", "test"] and cells(rows) == ["rows", "2", "2", "2"]
    assert f"Next: costl extract --videos DIR --annotations {prepared.out} --out charades.h5 --allow" in prepared.messages
    assert f"Read {FILES[0]}, {FILES[1]}." in prepared.messages


def test_the_same_input_gives_the_same_bytes_and_replaces_old_output(prepare, charades):
    first = content(prepare("charades", charades, "--val-share", "0.5", "--seed", "1").out)
    assert content(prepare("charades", charades, "--val-share", "0.5", "--seed", "1", out="other").out) == first
    assert content(prepare("charades", charades, "--val-share", "0.5", "--seed", "1").out) == first
    assert "val.jsonl" not in content(prepare("charades", charades, "--val-share", "0").out)


def test_the_split_of_a_video_depends_on_its_name_and_the_seed(prepare, tmp_path, jsonl):
    vids = [f"V{number:03}" for number in range(200)]
    few = prepare("charades", write_charades(tmp_path / "few", jsonl, train=vids[:-20]), out="1").splits
    many = prepare("charades", write_charades(tmp_path / "many", jsonl, train=vids), out="2").splits
    other = prepare("charades", tmp_path / "many", "--seed", "1", out="3").splits
    held_out = {name: {query.vid for query in splits["val"]} for name, splits in (("few", few), ("many", many))}
    assert held_out["few"] == {vid for vid in held_out["many"] if vid in vids[:-20]}
    assert 8 <= len(held_out["many"]) <= 32
    assert {query.vid for query in other["val"]} != held_out["many"]


def test_a_killed_run_is_completed_by_the_next(prepare, charades, monkeypatch):
    import costl.benchmarks.output

    whole = content(prepare("charades", charades, "--val-share", "0.5", "--seed", "1", out="whole").out)
    real = costl.benchmarks.output.publish
    for after in range(len(whole)):
        written = []

        def publish(path, text, *, written=written, after=after):
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(path.name)
            real(path, text)

        monkeypatch.setattr(costl.benchmarks.output, "publish", publish)
        assert prepare("charades", charades, "--val-share", "0.5", "--seed", "1").code == 130
        assert "train.jsonl" not in written
        monkeypatch.setattr(costl.benchmarks.output, "publish", real)
        assert content(prepare("charades", charades, "--val-share", "0.5", "--seed", "1").out) == whole


def test_missing_videos_are_counted_and_named_unless_allowed(prepare, charades, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for vid in "ABY":
        (videos / f"{vid}.mp4").touch()
    prepared = prepare("charades", charades, "--videos", videos)
    assert prepared.code == 2 and not prepared.out.exists()
    assert "3 of 6 videos of Charades-STA are missing: C, D, Z. Add them, or pass --allow" in prepared.messages
    prepared = prepare("charades", charades, "--videos", videos, "--allow-missing-videos", "--val-share", "0")
    assert prepared.code == 0 and (prepared.out / "missing.txt").read_text() == "C\nD\nZ\n"
    assert len(prepared.splits["train"]) == 4 and prepared.report["splits"]["train"]["missing"] == 2
    for vid in "CDZ":
        (videos / f"{vid}.mp4").touch()
    prepared = prepare("charades", charades, "--videos", videos, "--val-share", "0")
    assert prepared.code == 0 and not (prepared.out / "missing.txt").exists() and "--allow-missing" not in prepared.messages
    assert "missing videos" not in prepared.table


def test_videos_in_two_splits_are_reported_and_repeated_rows_kept(prepare, tmp_path, jsonl):
    prepared = prepare("charades", write_charades(tmp_path / "sta", jsonl, train="AAB", test="BZ"), "--val-share", "0")
    assert "train and test share 1 videos: B." in prepared.messages and len(prepared.splits["train"]) == 3


def test_json_is_the_report(prepare, charades):
    prepared = prepare("charades", charades, "--json", "--val-share", "0")
    assert json.loads(prepared.table) == prepared.report and prepared.report["options"]["val_share"] == 0
    assert set(prepared.report["sources"]) == set(FILES)


def another_benchmark(folder: Path, jsonl) -> None:
    for split in ("train", "val", "test"):
        jsonl(folder / f"{split}.jsonl", ROW | {"qid": 1, "vid": "s1-d1"})


def nothing_we_know(folder: Path, jsonl) -> None:
    folder.mkdir()
    (folder / "notes.txt").touch()
    (folder / "data").mkdir()


def an_empty_folder(folder: Path, jsonl) -> None:
    folder.mkdir()


def one_file_of_two(folder: Path, jsonl) -> None:
    write_charades(folder, jsonl)
    (folder / FILES[1]).unlink()


def a_qid_twice(folder: Path, jsonl) -> None:
    write_charades(folder, jsonl)
    jsonl(folder / FILES[0], *(ROW | {"qid": qid, "vid": "A"} for qid in (1, 2, 1)))


def no_json(folder: Path, jsonl) -> None:
    write_charades(folder, jsonl)
    (folder / FILES[1]).write_text(json.dumps(ROW | {"qid": 1, "vid": "A"}) + "\n{qid: 2}\n")


def a_text_for_a_time(folder: Path, jsonl) -> None:
    write_charades(folder, jsonl)
    jsonl(folder / FILES[0], ROW | {"qid": 1, "vid": "A", "relevant_windows": [["0:02", 9]]})


def no_rows(folder: Path, jsonl) -> None:
    write_charades(folder, jsonl)
    (folder / FILES[1]).write_text("\n")


def binary(folder: Path, jsonl) -> None:
    write_charades(folder, jsonl)
    (folder / FILES[0]).write_bytes(b"\xff\xfe\x00")


WRONG = {
    "another benchmark": (another_benchmark, "found test.jsonl, train.jsonl, val.jsonl."),
    "nothing we know": (nothing_we_know, f"looked for ({FILES[0]} or charades_train_release.jsonl) with ("),
    "folders are shown": (nothing_we_know, "found data/, notes.txt."),
    "an empty folder": (an_empty_folder, "the folder is empty"),
    "one file of two": (one_file_of_two, f"found {FILES[0]}."),
    "no folder": (
        lambda folder, jsonl: None,
        "sta: no such folder. Pass the folder that holds the annotations of Char",
    ),
    "a qid twice": (a_qid_twice, f"{FILES[0]}:3: qid 1 is already on line 1."),
    "no JSON": (no_json, f"{FILES[1]}:2: '{{qid: 2}}' is not JSON"),
    "a text for a time": (a_text_for_a_time, f"{FILES[0]}:1: 'relevant_windows' holds the text '0:02', expected a number."),
    "no rows": (no_rows, "Charades-STA: no row for test."),
    "binary": (binary, f"{FILES[0]}:1: not UTF-8 text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_annotations_are_refused_in_one_sentence(prepare, tmp_path, jsonl, name):
    write, part = WRONG[name]
    write(tmp_path / "sta", jsonl)
    prepared = prepare("charades", tmp_path / "sta")
    assert prepared.code == 2 and part in prepared.messages and prepared.table == "" and not prepared.out.exists()
    assert prepared.messages.startswith("Error: ") and len(prepared.messages.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["charade"], "'charade' is not a known benchmark, and no such file or folder exists. Expected"),
        (["imagenet"], "Expected one of qvhighlights, charades, tacos, tvsum, youtube-highlights, or the path of"),
        (["charades", "--val-share", "1"], "--val-share is 1.0, expected 0 or more and below 1."),
        (["charades", "--val-share", "nan"], "--val-share is nan"),
        (["charades", "--videos", "nowhere"], "nowhere: no such folder"),
        (["charades", "--val-share", "0.99999"], "no row for train"),
    ],
)
def test_wrong_arguments_are_refused(prepare, charades, arguments, part):
    prepared = prepare(arguments[0], charades, *arguments[1:])
    assert prepared.code == 2 and part in prepared.messages and not prepared.out.exists()


def test_videos_may_be_left_out_only_where_missing_ones_are_allowed(charades, tmp_path):
    result = costl("prepare", "charades", "--annotations", charades, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "--videos is missing" in result.stderr and not (tmp_path / "out").exists()


def an_empty_videos_folder(path: Path) -> None:
    path.mkdir()


def other_files(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()
    (path / "A.mp4").mkdir()  # a folder by the name of a video


def a_videos_folder_within(path: Path) -> None:
    (path / "videos").mkdir(parents=True)


def a_file(path: Path) -> None:
    path.touch()


def nothing_there(path: Path) -> None:
    """The folder does not exist."""


# What --videos names, and what the refusal without --allow-missing-videos says.
NO_VIDEOS = {
    "an empty folder": (an_empty_videos_folder, "no videos (it is empty), expected"),
    "other files": (other_files, "no videos ("),
    "an empty folder called videos": (a_videos_folder_within, "no videos (1 folder), expected"),
}
NO_FOLDER = {
    "no such folder": (nothing_there, "no such folder. Pass the folder that holds the videos."),
    "a file": (a_file, "is a file."),
}


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_a_folder_may_hold_no_videos_where_missing_ones_are_allowed(prepare, charades, tmp_path, name):
    make, refusal = NO_VIDEOS[name]
    make(tmp_path / "videos")
    refused = prepare("charades", charades, "--videos", tmp_path / "videos", out="refused")
    assert refused.code == 2 and f"{tmp_path / 'videos'}: {refusal}" in refused.messages and not refused.out.exists()
    allowed = prepare("charades", charades, "--videos", tmp_path / "videos", "--allow-missing-videos")
    assert allowed.code == 0 and (allowed.out / "missing.txt").read_text().split() == ["A", "B", "C", "D", "Y", "Z"]
    assert content(allowed.out) == content(prepare("charades", charades, out="without the option").out)
    assert f"Next: costl extract --videos {tmp_path / 'videos'} --annotations {allowed.out}" in allowed.messages


@pytest.mark.parametrize("allowed", [[], ["--allow-missing-videos"]])
@pytest.mark.parametrize("name", NO_FOLDER)
def test_a_folder_of_videos_that_does_not_exist_is_refused(prepare, charades, tmp_path, name, allowed):
    make, part = NO_FOLDER[name]
    make(tmp_path / "videos")
    prepared = prepare("charades", charades, "--videos", tmp_path / "videos", *allowed)
    assert prepared.code == 2 and part in prepared.messages and not prepared.out.exists()


def test_missing_durations_are_refused_with_the_next_step(prepare, tmp_path):
    (tmp_path / "sta").mkdir()
    for split in ("train", "test"):
        (tmp_path / "sta" / f"charades_sta_{split}.txt").write_text("AO8RW 0.0 6.9##a person reads.\n")
    (tmp_path / "videos").mkdir()
    prepared = prepare("charades", tmp_path / "sta", "--videos", tmp_path / "videos", "--allow-missing-videos")
    assert prepared.code == 2 and not prepared.out.exists()
    assert "the duration of AO8RW is unknown: AO8RW: its video is missing" in prepared.messages
    assert "Pass --videos with a folder that holds the video, or add these two files." in prepared.messages


def test_a_folder_with_other_files_is_never_overwritten(prepare, charades, tmp_path, jsonl):
    cases = {
        "mine": ("train.jsonl", "{}", "holds files that costl prepare did not write (train.jsonl)"),
        "report": ("report.json", "[]", "holds files that costl prepare did not write (report.json)"),
        "file": (None, "text", "is a file"),
    }
    for out, (name, text, part) in cases.items():
        path = tmp_path / out / name if name else tmp_path / out
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        prepared = prepare("charades", charades, out=out)
        assert prepared.code == 2 and part in prepared.messages and path.read_text() == text
    with pytest.raises(CostlError, match=r"cannot be written \(Not a directory\)"):
        costl_prepare("charades", annotations=charades, out=tmp_path / "file", allow_missing_videos=True)
    assert prepare("charades", charades, out="ours").code == 0
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    prepared = prepare("charades", charades, out="ours")
    assert prepared.code == 2 and "did not write (notes.txt)" in prepared.messages
    another_benchmark(tmp_path / "tacos", jsonl)
    assert prepare("tacos", tmp_path / "tacos", out="t").code == 0
    prepared = prepare("charades", charades, out="t")
    assert prepared.code == 2 and "holds TACoS. Choose another --out for Charades-STA." in prepared.messages


def test_a_folder_that_cannot_be_written_is_named(prepare, charades, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    assert prepare("charades", charades).code == 0
    monkeypatch.setattr(Path, "unlink", refuse)
    prepared = prepare("charades", charades)
    assert prepared.code == 1 and "cannot be written (Permission denied)" in prepared.messages


def test_help_names_every_benchmark_and_an_example():
    text = costl("prepare", "--help").stdout
    assert all(name in text for name in NAMES) and "costl prepare charades --annotations" in text
    assert "--allow-missing-videos" in costl("extract", "--help").stdout


def tvsum_rows(vids: list[str]) -> dict[str, list[dict]]:
    fields = {"query": "a title", "duration": 12, "domain": "VU"}
    rows = [fields | {"qid": vid, "vid": vid, "label": [[1 + n % 5] * 20 for n in range(12)]} for vid in vids]
    return {"tvsum_train": rows[:-1], "tvsum_val": rows[-1:]}


def youtube_rows(vids: list[str]) -> dict[str, list[dict]]:
    fields = {"domain": "dog", "fps": 10.0, "frames": 240.0, "match": [-1, 0, 1] * 3}
    fields["clip"] = [[20 * n, 20 * n + 40] for n in range(9)]
    rows = [fields | {"qid": vid, "vid": vid} for vid in vids]
    return {"youtube_train": rows[:-1], "youtube_valid": rows[-1:]}


@pytest.mark.parametrize(("name", "rows"), [("tvsum", tvsum_rows), ("youtube-highlights", youtube_rows)])
def test_the_settings_of_a_benchmark_without_moments_train(prepare, world, jsonl, tmp_path, monkeypatch, name, rows):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.videos, tmp_path / "dir")
    vids = [path.stem for path in sorted(world.videos.glob("train_0*.mp4"))]
    for file, its in rows(vids).items():
        jsonl(tmp_path / "official" / f"{file}.jsonl", *its)
    prepared = prepare(name, Path("official"), "--videos", "dir", "--val-share", "0")
    assert prepared.code == 0 and prepared.splits["train"][0].duration_s == pytest.approx(24, abs=0.1)
    flags = ["--weights", "dir/clip", "--device", "cpu", "--workers", "1", "--out", "feats.h5"]
    assert costl("extract", "--videos", "dir", "--annotations", prepared.out, *flags).exit_code == 0
    quick = ["--set", "model.width=32", "--set", "model.heads=2", "--set", "train.epochs=2", "--out", "run"]
    assert costl("train", "--cache", "feats.h5", *quick).exit_code == 0
    losses = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["losses"]
    assert set(losses) == {"saliency", "wrong_query"} and losses["saliency"] > 0


def test_from_official_files_to_numbers(prepare, world, jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.videos, tmp_path / "dir")
    names = {split: [path.stem for path in sorted(world.videos.glob(f"{split}_0*.mp4"))] for split in ("train", "test")}
    write_charades(tmp_path / "sta", jsonl, train=names["train"], test=[*names["test"], "GONE1"])
    prepared = prepare("charades", Path("sta"), "--videos", "dir", "--allow-missing-videos", "--val-share", "0.3")
    assert prepared.code == 0 and {"train", "val", "test"} == set(prepared.splits)
    command = prepared.messages.splitlines()[-1].removeprefix("Next: costl ").split()
    extracted = costl(*command, "--weights", "dir/clip", "--device", "cpu", "--workers", "1")
    assert (extracted.exit_code, extracted.stdout) == (1, "charades.h5\n")
    assert "1 missing: annotated, but its video is not there. (GONE1)" in extracted.stderr
    features = CacheReader(Path("charades.h5"))
    assert features.fps == 1 and {row.name: row.status for row in features.rows}["GONE1"] == "missing"
    quick = ["--cache", "charades.h5", "--set", "model.width=32", "--set", "model.heads=2", "--set", "train.epochs=1"]
    trained = costl("train", *quick, "--config", "charades", "--out", "run")
    assert trained.exit_code == 0 and "MR-full-mIoU" in trained.stderr
    refused = costl("train", *quick, "--config", "qvhighlights", "--out", "other")
    assert refused.exit_code == 3 and not Path("other").exists()
    assert "charades.h5 has 1 clips a second, the settings qvhighlights are made for 0.5." in refused.stderr
    evaluated = costl("evaluate", "--run", "run", "--json")
    assert evaluated.exit_code == 0 and "1 of 3 queries ask about videos without features (GONE1)" in evaluated.stderr
    metrics = json.loads(evaluated.stdout)
    assert metrics["brief"]["MR-full-R1@0.3"] <= 100 * 2 / 3 + 0.01
