"""`costl prepare PATH` from outside: its files, its report, missing videos, and a process that is killed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from table_cells import cells

import costl.benchmarks.output
from costl.commands import main
from costl.converters.prepare import prepare_labels
from costl.converters.video_folder import VideoFolder
from costl.pipeline.errors import UsageError
from costl.pipeline.inputs import read_inputs

TABLE = "video,start,end,text\nholiday,1,3,a dog\nholiday,2,5,a dog\nholiday,29,40,a cat\nGarden,2,4.5,a cat\nk.1,9,9.5,b\n"
MISSING = TABLE + "Holiday_1.MP4,1,2,a dog\n"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_report_counts_what_is_read_and_written(convert, write):
    converted = convert(write(**{"a.csv": TABLE}), "--val-share", "0")
    printed = [cells(line) for line in converted.table.splitlines() if not line.startswith("| --")]
    assert printed == [
        ["a.csv", "train"],
        ["labels", "5"],
        ["rows", "4"],
        ["sentences", "3"],
        ["videos", "3"],
        ["windows", "4"],
        ["seconds of a window (min / median / max)", "0.5 / 1.75 / 4"],
        ["rows of a video (min / median / max)", "1 / 1 / 2"],
        ["windows past the video's end or start, clipped", "1"],
    ]
    assert converted.report["splits"]["train"]["window_s"] == [0.5, 1.75, 4.0]
    assert converted.report["made_by"] == "costl prepare" and converted.report["benchmark"] == ""


def test_json_is_the_report_and_the_same_input_gives_the_same_bytes(convert, write):
    path = write(**{"a.csv": TABLE})
    converted = convert(path, "--json")
    assert json.loads(converted.table) == converted.report
    assert content(convert(path, out="other").out) == content(converted.out)


def test_a_process_that_is_killed_leaves_nothing_that_trains(convert, write, monkeypatch):
    path = write(**{"a.csv": TABLE})
    whole = content(convert(path, out="whole").out)
    real = costl.benchmarks.output.publish
    for after in range(len(whole)):
        written: list[str] = []

        def publish(path, text, *, written=written, after=after):
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(path.name)
            real(path, text)

        monkeypatch.setattr(costl.benchmarks.output, "publish", publish)
        assert convert(path).code == 130 and "train.jsonl" not in written
        monkeypatch.setattr(costl.benchmarks.output, "publish", real)
        assert content(convert(path).out) == whole


def test_missing_videos_are_named_and_their_rows_left_out_if_allowed(convert, write):
    path = write(**{"a.csv": MISSING})
    converted = convert(path)
    assert f"1 of 4 videos of {path} are missing: 'Holiday_1.MP4' (did you mean 'holiday'?)." in converted.messages
    converted = convert(path, "--allow-missing-videos", "--val-share", "0")
    assert "1 rows are dropped: their videos are missing, and with them their durations." in converted.messages
    assert "1 videos are missing: 'Holiday_1.MP4' (did you mean 'holiday'?)." in converted.messages
    assert (converted.out / "missing.txt").read_text() == "Holiday_1\n" and len(converted.splits["train"]) == 4
    assert converted.messages.endswith(" --allow-missing-videos\n")


def test_rows_of_missing_videos_stay_if_the_labels_have_durations(convert, write):
    captions = {"gone.mp4": {"duration": 9, "timestamps": [[1, 12]], "sentences": ["a"]}}
    path = write(**{"a.json": json.dumps(captions)})
    [row] = convert(path, "--allow-missing-videos", "--val-share", "0", folder=None).splits["train"]
    assert (row.vid, row.windows, row.duration_s) == ("gone", ((1, 9),), 9)
    assert "--videos is missing" in convert(path, folder=None, out="new").messages


def test_a_sentence_that_is_not_in_its_video_can_be_scored_by_no_split(convert, write):
    labelled = {"qid": 1, "query": "a dog", "vid": "holiday", "duration": 30, "relevant_windows": [[1, 3]]}
    absent = {"qid": 2, "query": "a cat", "vid": "holiday", "duration": 30, "relevant_windows": []}
    rows = "".join(json.dumps(row) + "\n" for row in (labelled, absent))
    converted = convert(write(**{"train.jsonl": rows, "val.jsonl": rows, "test.jsonl": json.dumps(absent)}))
    assert {split: counts["rows"] for split, counts in converted.report["splits"].items()} == {"train": 2, "val": 1, "test": 1}
    assert any(note.startswith("val and test: 1 rows without a moment are left out") for note in converted.report["notes"])


# Names in labels, and the video that each means in a folder with the videos of DEEP; "" for none.
DEEP = ("holiday.mp4", "old/holiday.mp4", "2026/Été.mp4", "2026/deep/k.1.mp4", "a/twin.mp4", "b/twin.mp4")
MEANT = {
    "holiday": "holiday", "old/holiday.mp4": "old/holiday", "old\\holiday": "old/holiday", "./old/holiday": "old/holiday",
    "/data/Videos/old/holiday.mp4": "old/holiday", "Videos/holiday.mp4": "holiday", "OLD/Holiday.MP4": "old/holiday",
    "2026/e\u0301te\u0301.mp4": "2026/Été", "Été": "2026/Été", "été.mov": "2026/Été", "k.1": "2026/deep/k.1",
    "deep/k.1": "2026/deep/k.1", "2026/k.1": "", "2026/holiday": "", "twin": "", "b/twin": "b/twin", "c/twin": "",
    "../holiday": "holiday",
}  # fmt: skip


def test_names_in_labels_mean_videos_in_deeper_folders(tmp_path):
    for name in DEEP:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folder = VideoFolder(tmp_path)
    found = {name: folder.find(name) for name in MEANT}
    assert {name: path and path.relative_to(tmp_path).with_suffix("").as_posix() for name, path in found.items()} == {
        name: vid or None for name, vid in MEANT.items()
    }
    assert {name: folder.vid_of(name) for name, vid in MEANT.items() if vid} == {name: vid for name, vid in MEANT.items() if vid}
    # The name of a missing file keeps its folders where the videos lie in folders.
    assert folder.vid_of("2026/gone.mp4") == "2026/gone" and folder.vid_of("/data/gone.mp4") == "gone"
    assert folder.with_similar("c/twin") == "'c/twin' (did you mean 'a/twin' or 'b/twin'?)"
    folder.refuse_shared_files(["holiday", "old/holiday", "old/holiday.mp4", "/data/old/holiday", "b/twin", "a/twin"])
    with pytest.raises(UsageError, match=r"/one/old/holiday, /two/old/holiday are videos of one name: holiday\.mp4"):
        folder.refuse_shared_files(["/one/old/holiday", "/two/old/holiday"])


def test_labels_of_nested_videos_are_extracted_by_the_printed_command(convert, write, videos, tmp_path):
    (tmp_path / "V" / "old").mkdir(parents=True)
    for name in ("holiday.mp4", "old/holiday.mp4"):
        shutil.copy(videos / "holiday.mp4", tmp_path / "V" / name)
    converted = convert(write(**{"a.csv": "video,start,end,text\nold/holiday.mp4,1,2,a\nholiday,1,2,b\n"}), folder=tmp_path / "V")
    assert {row.vid for rows in converted.splits.values() for row in rows} == {"old/holiday", "holiday"}
    assert read_inputs(tmp_path / "V", converted.out, {}, allow_missing=False).notes == ()


def test_every_field_of_a_row_is_kept(convert, write):
    """Rows of the project's own layout stay as they are, but for the ending of a video's name."""
    more = {"kind": "motion", "note": {"by": "Ann", "of": [1, 2]}, "relevant_clip_ids": [1], "saliency_scores": [[2, 3]]}
    rows = [
        {"qid": 1, "query": "a  dog", "vid": "holiday", "duration": 30, "relevant_windows": [[1, 3], [2.5, 4]]} | more,
        {"qid": "x", "query": "a cat", "vid": "holiday", "duration": 30, "relevant_windows": [], "who": "Bo"},
        {"qid": 2, "query": "open", "vid": "holiday", "duration": 30},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    converted = convert(write(**{"a.jsonl": lines}), "--val-share", "0")
    written = (converted.out / "train.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in written.splitlines()] == rows


def test_two_files_whose_names_differ_in_case_need_the_exact_name(convert, write, videos, tmp_path):
    (tmp_path / "V").mkdir()
    for name in ("a.mp4", "A.mp4"):
        (tmp_path / "V" / name).write_bytes((videos / "holiday.mp4").read_bytes())
    if len([*(tmp_path / "V").iterdir()]) < 2:
        pytest.skip("this file system ignores case")
    rows = "video,start,end,text\nA,1,2,x\na.mov,1,2,y\n"
    read = convert(write(**{"a.csv": rows}), "--val-share", "0", folder=tmp_path / "V").splits["train"]
    assert [(row.vid, row.query) for row in read] == [("A", "x"), ("a", "y")]
    for name in ("E\u0301.mp4", "\u00c9.mp4"):
        (tmp_path / "V" / name).write_bytes((videos / "holiday.mp4").read_bytes())
    refusal = "1 of 3 videos of .* are missing: '\u00e9' "
    converted = convert(write(**{"a.csv": f"{rows}\u00e9,1,2,z\n"}), folder=tmp_path / "V")
    assert re.search(refusal, converted.messages)


def test_python_does_the_same(videos, write, tmp_path):
    report = prepare_labels(write(**{"a.csv": TABLE}), videos=videos, out=tmp_path / "out", val_share=0.0)
    assert report.splits["train"]["rows"] == 4 and (tmp_path / "out" / "train.jsonl").is_file()


@pytest.mark.timeout(60)
def test_a_hundred_thousand_rows_take_seconds(convert, write):
    rows = "".join(f"holiday.mp4,{row % 20},{row % 20 + 5.5},sentence {row // 50}\n" for row in range(100_000))
    converted = convert(write(**{"a.csv": f"video,start,end,text\n{rows}"}), "--val-share", "0")
    assert converted.report["splits"]["train"]["labels"] == 100_000 and len(converted.splits["train"]) == 2_000


def test_from_a_table_to_a_trained_model(convert, write, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.videos, tmp_path / "My videos")
    for path in (tmp_path / "My videos").glob("*.jsonl"):
        path.unlink()
    names = [path.name for path in sorted((tmp_path / "My videos").glob("*.mp4"))][:6]
    rows = "".join(f"{name};0:0{i},5;0:10;a thing moves\n" for i, name in enumerate(names))
    converted = convert(write(**{"a.csv": f"file;from;to;caption\n{rows}"}), folder=Path("My videos"))
    assert {"train", "val", "test"} == set(converted.splits)
    command = shlex.split(converted.messages.splitlines()[-1].removeprefix("Next: costl "))
    tiny = ["--weights", "My videos/clip", "--device", "cpu", "--workers", "1"]
    extracted = CliRunner().invoke(main, [*command, *tiny])
    assert (extracted.exit_code, extracted.stdout) == (0, "a.h5\n"), extracted.stderr
    quick = ["--set", "model.width=32", "--set", "model.heads=2", "--set", "train.epochs=1", "--out", "run"]
    trained = CliRunner().invoke(main, ["train", "--cache", "a.h5", *quick])
    assert trained.exit_code == 0 and "MR-full-mAP" in trained.stderr
