"""Annotations as users write them: what can be read is read and said; the rest is refused before CLIP, by file and line."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.data.annotations import parse_jsonl
from costl.pipeline.annotations import compare_with_videos
from costl.pipeline.cache.index import Contents, Index, VideoRow
from costl.pipeline.errors import UsageError
from costl.pipeline.inputs import Inputs, read_inputs

ROW = {"qid": 1, "query": "a dog", "vid": "a", "duration": 20, "relevant_windows": [[2, 6]]}
RATED = {"relevant_clip_ids": [1, 2], "saliency_scores": [[3], [4]]}
CAFE = "café"


def line(**changes) -> str:
    return json.dumps({key: value for key, value in (ROW | changes).items() if value is not ...}, ensure_ascii=False) + "\n"


def inputs(
    folder: Path, names: tuple[str, ...] = ("a.mp4", "b.mkv"), *, annotations: Path | None = None, **files: str | bytes
) -> Inputs:
    """The input of an extraction of a folder with these videos and annotation files (`train_jsonl` is train.jsonl)."""
    for name in names:
        (folder / name).touch()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / ".".join(name.rsplit("_", 1))).write_bytes(data)
    return read_inputs(folder, annotations, {}, allow_missing=False)


def extract(folder: Path) -> tuple[int, str]:
    """The exit code and the messages of an extraction whose CLIP does not exist."""
    arguments = ["extract", "--videos", str(folder), "--weights", str(folder / "no-clip.pt"), "--out", str(folder / "f.h5")]
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stderr


# --- refused before CLIP is loaded, as training would ---------------------------------------------------------------

BAD_ROWS = {
    "empty window": (line(relevant_windows=[[6, 6]]), "window [6.0, 6.0] is not 0 <= start < end <= duration (20.0)"),
    "reversed window": (line(relevant_windows=[[2, 6], [9, 6]]), "window [9.0, 6.0] is not"),
    "flat window": (line(relevant_windows=[2, 6]), "'relevant_windows' holds the number 2, expected lists in a list, such as"),
    "window as an object": (line(relevant_windows=[{"start": 2}]), "holds the object {'start': 2}, expected lists in a list"),
    "window of three": (line(relevant_windows=[[2, 6, 1]]), "a list that is not 2 numbers long, such as [[2, 6]]"),
    "window as a text": (line(relevant_windows="2-6"), "'relevant_windows' holds the text '2-6', expected a list"),
    "false instead of windows": (line(relevant_windows=False), "'relevant_windows' holds the value False, expected a list"),
    "window far beyond the end": (line(relevant_windows=[[2, 22]]), "window [2.0, 22.0] is not"),
    "window after the end": (line(relevant_windows=[[20.5, 21]]), "window [20.5, 21.0] is not"),
    "window before the start": (line(relevant_windows=[[-4, 6]]), "window [-4.0, 6.0] is not"),
    "times in milliseconds": (line(relevant_windows=[[2000, 6000]]), "window [2000.0, 6000.0] is not"),
    "times as texts": (line(relevant_windows=[["0:02", "0:06"]]), "'relevant_windows' holds the text '0:02', expected a number"),
    "duration as a text": (line(duration="20"), "'duration' holds the text '20', expected a number"),
    "no duration": (line(duration=...), "'duration' is missing"),
    "null duration": (line(duration=None), "'duration' is missing"),
    "nothing but a query": ('{"query": "a dog"}\n', "'qid', 'vid', 'duration' are missing"),
    "vid as a number": (line(vid=7), "'vid' is the number 7, expected a text in double quotes"),
    "qid as a fraction": (line(qid=1.5), "'qid' is the number 1.5, expected a whole number or a text"),
    "misspelt field": (line(relevant_window=[[2, 6]]), "unknown field 'relevant_window', did you mean 'relevant_windows'?"),
    "plain ratings": (line(**RATED | {"saliency_scores": [3, 4]}), "'saliency_scores' holds the number 3, expected lists in a"),
    "a rating too few": (line(**RATED | {"saliency_scores": [[3]]}), "2 relevant_clip_ids but 1 rows of saliency_scores"),
    "clip beyond the end": (line(**RATED | {"relevant_clip_ids": [1, 10]}), "clip 10 is rated, but there are 10 clips of two"),
    "clip numbers in seconds": (line(**RATED | {"relevant_clip_ids": [2, 18]}), "clip 18 is rated"),
    "a clip twice": (line(**RATED | {"relevant_clip_ids": [1, 1]}), "relevant_clip_ids repeats a clip"),
    "NaN": (line(**RATED | {"saliency_scores": [[float("nan")], [4]]}), "is not JSON (NaN is not a number JSON knows)"),
    "layout of TVSum": (line(relevant_windows=..., label=[[5.0]]), "'label' is the layout of TVSum"),
    "duplicate qid": (line(qid=0, query="first"), "qid 0 is already on line 1"),
    "single quotes": ("{'qid': 1}\n", 'is not JSON (Expecting property name enclosed in double quotes at column 2)'),
    "empty query": (line(query=" "), "query is empty"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_training_refuses_is_refused_before_clip_is_loaded(tmp_path, name):
    text, part = BAD_ROWS[name]
    (tmp_path / "a.mp4").touch()
    (tmp_path / "train.jsonl").write_text(line(qid=0) + text, encoding="utf-8")
    code, message = extract(tmp_path)
    assert code == 2 and part in message and message.startswith(f"Error: {tmp_path / 'train.jsonl'}:2: ")
    with pytest.raises(UsageError) as of_training:
        parse_jsonl((tmp_path / "train.jsonl").read_text(encoding="utf-8"), str(tmp_path / "train.jsonl"))
    assert message == f"Error: {of_training.value}\n"


def test_the_first_bad_rows_of_all_files_are_listed_with_a_count(tmp_path):
    bad = "".join(line(qid=number, duration=0) for number in range(4))
    with pytest.raises(UsageError) as error:
        inputs(tmp_path, train_jsonl=line(vid=7) + bad, val_jsonl=line() + bad)
    found = [text.rpartition("/")[2].partition(": ")[0] for text in str(error.value).splitlines()]
    assert found == ["train.jsonl:1", "train.jsonl:2", "train.jsonl:3", "train.jsonl:4", "train.jsonl:5", "... and 4 more"]


# --- files that are nearly right ------------------------------------------------------------------------------------

CSV = "qid,query,vid,start,end\n1,a dog,a,2,6\n"
PRETTY = json.dumps(ROW, indent=1)
NOT_READ = {
    "a table": ({"train_csv": CSV}, "no annotations. Expected train.jsonl, .* Not read: train.csv"),
    "a table called train.jsonl": ({"train_jsonl": CSV}, r"train.jsonl: expected one JSON object a line, such as \{\"qid\""),
    "pretty-printed": ({"train_jsonl": PRETTY}, r"one JSON object a line, such as .*\n.*train.jsonl:1: '\{' is not JSON"),
    "keyed by video": ({"train_json": json.dumps({"a": ROW})}, "train.json:1: 'qid', 'query', 'vid', 'duration' are missing"),
    "Latin-1": ({"train_jsonl": line(query=CAFE).encode("latin-1")}, r"train.jsonl:1: not UTF-8 text \(byte 0xe9\). Save it"),
    "empty": ({"train_jsonl": "\n"}, "train.jsonl: no row in it"),
    "an empty list": ({"train_json": "[]"}, "train.json: no row in it"),
    "a bad row in a list": ({"train_json": json.dumps([ROW, ROW | {"qid": 2, "vid": 7}])}, "train.json, row:2: 'vid' is the"),
    "a list in a list": ({"train_json": "[[1]]"}, "train.json, row:1: a JSON list, expected an object"),
    "of a benchmark": ({"highlight_train_release_jsonl": line()}, r"Not read: highlight_train_release.jsonl \(costl prepare"),
    "of any name": ({"mine_jsonl": line()}, "Not read: mine.jsonl"),
    "with a second ending": ({"train.jsonl_txt": line()}, "Not read: train.jsonl.txt"),
    "validation": ({"train_jsonl": line(), "validation_jsonl": line()}, "validation.jsonl: not read. Call it val.jsonl"),
    "dev": ({"train_jsonl": line(), "dev_jsonl": line()}, "dev.jsonl: not read. Call it val.jsonl"),
    "valid": ({"test_jsonl": line(), "valid_json": line()}, "valid.json: not read. Call it val.jsonl"),
    "a table to validate on": ({"train_jsonl": line(), "val_csv": CSV}, "val.csv: not read. Call it val.jsonl"),
    "capitals": ({"train_jsonl": line(), "Val_jsonl": line()}, "Val.jsonl: not read. Call it val.jsonl"),
    "training": ({"val_jsonl": line(), "training_jsonl": line()}, "training.jsonl: not read. Call it train.jsonl"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_a_file_that_is_not_read_is_named_with_what_is_expected(tmp_path, name):
    files, part = NOT_READ[name]
    with pytest.raises(UsageError, match=f"(?s){part}"):
        inputs(tmp_path, annotations=tmp_path, **files)


def test_other_files_that_look_like_annotations_are_named_in_a_note(tmp_path):
    others = {"dev_jsonl": line(), "old_jsonl": line(), "labels_csv": CSV, "objects_jsonl": '{"vid": "a", "objects": []}\n'}
    others |= {"predictions_jsonl": '{"qid": 1, "query": "a", "pred_relevant_windows": []}\n', "requirements_txt": "numpy\n"}
    (note,) = inputs(tmp_path, train_jsonl=line(), val_jsonl=line(), **others).notes
    assert note.startswith("Not read: dev.jsonl, labels.csv, old.jsonl. ")


@pytest.mark.parametrize("file", ["labels.csv", "labels.txt", "captions.json"])
def test_a_bad_file_is_named_as_it_is_called(tmp_path, file):
    (tmp_path / "a.mp4").touch()
    (tmp_path / file).write_text(CSV)
    with pytest.raises(UsageError) as error:
        read_inputs(tmp_path, tmp_path / file, {}, allow_missing=False)
    assert f"/{file}: expected" in str(error.value) and f"/{file}:1: 'qid,query,vid" in str(error.value)
    assert "labels.jsonl" not in str(error.value)


def test_annotations_that_do_not_exist_are_refused_by_their_path(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UsageError, match="nowhere: no annotations, no such file or folder"):
        read_inputs(tmp_path, tmp_path / "nowhere", {}, allow_missing=False)


WRITTEN: dict[str, Callable[[str], tuple[str, bytes]]] = {
    "with a mark": lambda text: ("train_jsonl", text.encode("utf-8-sig")),
    "by PowerShell": lambda text: ("train_jsonl", text.replace("\n", "\r\n").encode("utf-16")),
    "in UTF-16, high byte first": lambda text: ("train_jsonl", b"\xfe\xff" + text.encode("utf-16-be")),
    "by Windows": lambda text: ("train_jsonl", text.replace("\n", "\r\n").encode("utf-8-sig")),
    "by an old Mac": lambda text: ("train_jsonl", text.replace("\n", "\r").encode()),
    "without the last line end": lambda text: ("train_jsonl", text.rstrip().encode()),
    "with blank lines": lambda text: ("train_jsonl", text.replace("\n", "\n\n \n").encode()),
    "as a list": lambda text: ("train_json", json.dumps([*map(json.loads, text.splitlines())]).encode()),
    "as a pretty list": lambda text: ("train_json", json.dumps([*map(json.loads, text.splitlines())], indent=4).encode()),
    "as a list called .jsonl": lambda text: ("train_jsonl", f"[{','.join(text.splitlines())}]".encode()),
    "as lines called .json": lambda text: ("train_json", text.encode()),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_the_same_rows_are_read_however_they_are_written(tmp_path, how):
    text = line(query=CAFE) + line(qid="two", vid="b", relevant_windows=None)
    name, data = WRITTEN[how](text)
    found = inputs(tmp_path, **{name: data})
    assert parse_jsonl(found.annotations["train"], "") == parse_jsonl(text, "") and found.notes == ()


# --- names of videos --------------------------------------------------------------------------------------------------

NFD = unicodedata.normalize("NFD", CAFE)
SAME_VIDEO = {
    "with its ending": ("a.mp4", "a.mp4", "a"),
    "with its ending in capitals": ("a.mp4", "a.MP4", "a"),
    "with the ending of another copy": ("a.mkv", "a.avi", "a"),
    "dots in the name": ("v_1.5_2.0.mp4", "v_1.5_2.0.mp4", "v_1.5_2.0"),
    "composed, the file decomposed": (f"{NFD}.mp4", CAFE, NFD),
    "decomposed, the file composed": (f"{CAFE}.mp4", NFD, CAFE),
    "composed with its ending": (f"{NFD}.mp4", f"{CAFE}.mp4", NFD),
    "without an ending of two": ("a.mp4.mp4", "a", "a.mp4"),
}


@pytest.mark.parametrize("name", SAME_VIDEO)
def test_a_video_in_another_spelling_is_read_and_noted(tmp_path, name):
    file, vid, known = SAME_VIDEO[name]
    found = inputs(tmp_path, (file, "other.mp4"), train_jsonl=line(vid="other") + line(qid=2, vid=vid, extra=[1.50]))
    assert [query.vid for query in parse_jsonl(found.annotations["train"], "")] == ["other", known]
    assert found.annotations["train"].startswith(line(vid="other")) and found.missing == []
    (note,) = found.notes
    assert f"name 1 videos in another way than their files, such as {vid!r}: read as {known!r}" in note


MISSING = {
    "capitals": ("A", "'A' (did you mean 'a'?)"),
    "a space": ("a ", "'a ' (did you mean 'a'?)"),
    "a folder": ("videos/a", "'videos/a' (did you mean 'a'?)"),
    "a folder of Windows": ("videos\\a.mp4", "(did you mean 'a'?)"),
    "a letter": ("kitchen-l", "'kitchen-l' (did you mean 'kitchen-1'?)"),
    "another video": ("garden", "that are not here: garden. Here are 3: a, kitchen-1, x.y"),
    "an ending that is not of a video": ("x.z", "x.z"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_video_is_named_with_the_one_that_was_probably_meant(tmp_path, name):
    vid, part = MISSING[name]
    with pytest.raises(UsageError) as error:
        inputs(tmp_path, ("a.mp4", "kitchen-1.mp4", "x.y.mp4"), train_jsonl=line(vid=vid))
    assert f"name 1 videos that are not here: {part}" in str(error.value) or part in str(error.value)


def test_a_name_that_two_files_could_have_is_not_guessed(tmp_path):
    with pytest.raises(UsageError, match=r"not here: .*did you mean"):
        inputs(tmp_path, (f"{NFD}.mp4", f"{CAFE}.mkv"), train_jsonl=line(vid=f"{CAFE}.mp4"))


# --- times against the decoded video ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "expected", "cut_s"),
    [
        ([2, 20.4], (2, 20), 0.4),
        ([18, 21.9], (18, 20), 1.9),
        ([-0.5, 6], (0, 6), 0.5),
        ([-1, 21], (0, 20), 1),
        ([0, 20], (0, 20), 0),
        ([19.99, 20.01], (19.99, 20), 0.01),
    ],
)
def test_a_window_that_reaches_a_little_outside_is_cut_and_noted(window, expected, cut_s):
    (query,) = parse_jsonl(line(relevant_windows=[[1, 2], window]), "train.jsonl")
    assert query.windows == ((1, 2), expected) and query.cut_s == pytest.approx(cut_s)
    late, notes = compare_with_videos(index(line(relevant_windows=[window])), ["train"])
    assert late == [] and len(notes) == (1 if cut_s else 0) and all("query 1 by" in note for note in notes)


def index(text: str, seconds: float = 20.0) -> Index:
    from costl.pipeline.encode.types import JointSpace

    rows = [VideoRow("a", "ok", "a", part="a.h5", clips=round(seconds / 2), duration_s=seconds), VideoRow("b", "failed", "b")]
    return Index(Contents({}, 0.5, (0, 0), JointSpace(4, 1.0), 4, annotations={"train": text}), rows, f"{'0' * 64}.h5")


@pytest.mark.parametrize(
    ("change", "late", "noted"),
    [
        ({}, False, False),
        ({"duration": 21.5, "relevant_windows": [[20.5, 21]]}, False, False),
        ({"duration": 200}, False, True),
        ({"duration": 12}, False, True),
        ({"duration": 30, "relevant_windows": [[2, 6], [24, 28]]}, True, True),
        ({"duration": 30, "relevant_windows": [[18, 28]]}, False, True),
        ({"vid": "b", "duration": 30, "relevant_windows": [[24, 28]]}, False, False),
    ],
)
def test_annotations_are_compared_with_the_decoded_durations(change, late, noted):
    found_late, notes = compare_with_videos(index(line(**change)), ["train"])
    assert [bool(found_late), bool(notes)] == [late, noted]
    message = "train.jsonl: 1 queries have a moment after the end of their video: query 1 [24.0, 28.0] in 'a' (20 s long, 30 by"
    assert all(message in text for text in found_late)
