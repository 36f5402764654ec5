"""Wrong labels are refused before anything is written, in a sentence that names the file, the row and the column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from numbered_videos import make_video, variable_frame_times
from test_layouts import DIDEMO, OWN, TVR, activitynet, label_studio, text_of, timeline

HEAD = "video,start,end,text"
RECTANGLE = {"id": "r", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["dog"]}}
IMAGE = json.dumps([{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [RECTANGLE]}]}])
BOXES = label_studio({"id": "r", "type": "videorectangle", "value": {"sequence": []}})
MIN = json.dumps([{"id": 1, "video": "a.mp4", "timelinelabels": [{"ranges": [{"start": 1, "end": 2}]}]}])
# The name and the content of a file, and the end of the first line of the refusal, without the folder.
FILES = {
    "no such column": ("a.csv", "file,from,to\nholiday,1,2\n", "a.csv:1: no column for text among 'file', 'from', 'to'. "
                       "Name the columns in the first line: video,start,end,text."),
    "no header": ("a.csv", "holiday.mp4,1,2,a dog\n", "a.csv:1: no column for video, start, end, text among "
                  "'holiday.mp4', '1', '2', 'a dog'. Name the columns in the first line: video,start,end,text."),
    "one column of frames": ("a.csv", "video,frame,text\nholiday,1,a\n", "a.csv:1: no column for end among 'video', 'frame', "
                             "'text'. Name the columns in the first line: video,start,end,text."),
    "an end before its start": ("a.csv", f"{HEAD}\nholiday,5,2,a\n", "a.csv:2: column 'end' is 2, before column 'start' (5)."),
    "no length": ("a.csv", f"{HEAD}\nholiday,5,5,a\n", "a.csv:2: column 'end' is 5, the same as column 'start' (5)."),
    "an empty text": ("a.csv", f"{HEAD}\nholiday,1,2,\" \"\n", "a.csv:2: column 'text' is empty."),
    "an empty start, and blank lines": ("a.csv", f"{HEAD}\n\n,,,\nholiday,,2,a\n", "a.csv:4: column 'start' is empty."),
    "a row that is too short": ("a.csv", f"{HEAD}\nholiday,1\n", "a.csv:2: column 'end' is empty."),
    "a comma without quotes": ("a.csv", f"{HEAD}\nholiday,1,2,a dog, a cat\n", "a.csv:2: 5 cells for 4 columns; a text with a "
                               "separator in it needs double quotes."),
    "a quote that stays open": ("a.csv", f"{HEAD}\nholiday,1,2,\"a\n", "a.csv:3: its double quotes do not close (unexpected "
                                "end of data). Write a quote in a cell twice."),
    "a decimal comma between commas": ("a.csv", f"{HEAD}\nholiday,\"1,5\",2,a\n", "a.csv:2: column 'start': '1,5' is not a "
                                       "time, expected seconds (75.5) or hh:mm:ss.mmm (0:01:15.5); write a decimal point."),
    "a time in words": ("a.csv", "Vid;von;to;from;text\nholiday;1;2;soon;a\n", "a.csv:2: column 'from': 'soon' is not a time, "
                        "expected seconds (75.5) or hh:mm:ss.mmm (0:01:15.5)."),
    "75 seconds after a minute": ("a.csv", f"{HEAD}\nholiday,0:75,2:00,a\n", "a.csv:2: column 'start': '0:75' is not a time: "
                                  "minutes and seconds go up to 59."),
    "half a frame": ("a.csv", "video,start_frame,end_frame,text\nholiday,1.5,2,a\n", "a.csv:2: column 'start_frame': '1.5' is "
                     "not the number of a frame."),
    "a timecode beyond the rate": ("a.csv", f"{HEAD}\nholiday,00:00:01:27,00:00:02:00,a\n", "a.csv:2: column 'start': "
                                   "'00:00:01:27' is not the timecode of a frame at 25 frames a second."),
    "an unknown split": ("a.csv", f"{HEAD},split\nholiday,1,2,a,all\n", "a.csv:2: column 'split' is 'all', expected train, val "
                         "or test."),
    "only some splits": ("a.csv", f"{HEAD},split\nholiday,1,2,a,train\nGarden,1,2,a,\n", "a.csv:3: column 'split' is '', "
                         "expected train, val or test."),
    "a rating of five": ("a.csv", f"{HEAD},rating\nholiday,1,2,a,5\n", "a.csv:2: column 'rating' is '5', expected a number "
                         "from 0 to 4."),
    "a rating of half of the moments": ("a.csv", f"{HEAD},rating\nholiday,1,2,a,4\nholiday,3,4,a,\n", "a.csv:2: 1 of the 2 "
                                        "moments of 'a' have a rating; give all one, or none."),
    "milliseconds": ("a.csv", f"{HEAD}\nholiday,41500,44000,a\nGarden,1,2,b\nGarden,50000,60000,b\n", "2 of 3 moments lie "
                     "outside their videos, such as one of 'a' in holiday (30 s). Times are seconds or hh:mm:ss; check their "
                     "unit, and the names of the videos."),
    "not text": ("a.csv", b"\xff\x00\x00", "a.csv:1: not UTF-8 text (byte 0xff). Save it as UTF-8."),
    "Latin-1": ("a.csv", f"{HEAD}\nholiday,1,2,caf\xe9\n".encode("latin-1"), "a.csv:2: not UTF-8 text (byte 0xe9). Save it as "
                "UTF-8."),
    "empty": ("a.csv", " \n", "a.csv: empty, expected labels."),
    "a header alone": ("a.csv", f"{HEAD}\n", "a.csv: no labels in it. a.csv: UTF-8, separated by commas; video = 'video', "
                       "start = 'start', end = 'end', text = 'text'."),
    "no known kind of file": ("a.xlsx", "PK", "a.xlsx: not labels that costl prepare reads. Expected a table (.csv, .tsv), "
                              "subtitles (.vtt, .srt), or JSON of Label Studio, ActivityNet Captions, DiDeMo, TVR, Ego4D or "
                              "QVHighlights."),
    "JSON of something else": ("a.json", '{"shapes": [], "imagePath": ""}', "a.json: JSON of an unknown layout (fields "
                               "'shapes', 'imagePath'). Expected a table (.csv, .tsv), subtitles (.vtt, .srt), or JSON of Label "
                               "Studio, ActivityNet Captions, DiDeMo, TVR, Ego4D or QVHighlights."),
    "half a JSON file": ("a.json", '[{"id": 1', "a.json: not JSON (Expecting ',' delimiter: line 1 column 10 (char 9))."),
    "Label Studio, images": ("a.json", IMAGE, "a.json: an export of Label Studio for images ('rectanglelabels'), expected "
                             "'timelinelabels' of videos."),
    "Label Studio, boxes in videos": ("a.json", BOXES, "a.json: an export of Label Studio for something else "
                                      "('videorectangle'), expected 'timelinelabels' of videos."),
    "Label Studio, JSON-MIN": ("a.json", MIN, "a.json: an export of Label Studio as JSON-MIN. Export it as JSON."),
    "Label Studio, frame 0": ("a.json", label_studio(timeline("r", 0, 5)), "a.json: task 5: region r has the frames 0 to 5, "
                              "expected whole numbers from 1, in order."),
    "Label Studio, a region without a label": ("a.json", label_studio(timeline("r", 1, 5, "")), "a.json: task 5: region r has "
                                               "neither a text nor a label."),
    "Label Studio, a rate in words": ("a.json", label_studio(timeline("r", 1, 5), fps="PAL"), "a.json: task 5: its data has "
                                      "the frame rate 'PAL', expected frames a second."),
    "Label Studio, no annotation": ("a.json", label_studio().replace('"annotations": [{"result": []}]', '"annotations": []'),
                                    "a.json: no labels in it. a.json: 1 of 1 tasks have no annotation, and are left out."),
    "Label Studio, no address": ("a.json", label_studio(timeline("r", 1, 5), text_of("r", "a"), video=""), "a.json: task 5: "
                                 "its data has no 'video', only 'video'."),
    "ActivityNet, a time too few": ("a.json", activitynet(k={"duration": 9, "timestamps": [], "sentences": ["a"]}),
                                    "a.json: k: 0 'timestamps' and 1 'sentences', expected a text for each."),
    "DiDeMo, half a segment": ("a.json", json.dumps([DIDEMO[0] | {"times": [[0.5, 1]]}]), "a.json: item 1: 'times' holds "
                               "[0.5, 1.0], expected the first and the last segment, counted from 0."),
    "TVR, three times": ("a.jsonl", json.dumps(TVR | {"ts": [1, 2, 3]}), "a.jsonl:1: 'ts' holds 3 times, expected start and "
                         "end."),
    "Ego4D without clips": ("a.json", '{"videos": [{"video_uid": "a"}]}', "a.json: a video without 'video_uid' or 'clips'."),
    "a cue that ends before it starts": ("holiday.srt", "1\n00:00:04,000 --> 00:00:01,500\na\n", "holiday.srt:2: the cue ends "
                                         "at 00:00:01,500, not after its start at 00:00:04,000."),
    "no cue": ("holiday.vtt", "WEBVTT\n", "holiday.vtt: no cue with a text, expected lines such as 00:00:12.000 --> "
               "00:00:20.000."),
    "a row without a video": ("a.jsonl", json.dumps(OWN | {"vid": None}), "a.jsonl:1: 'vid' is missing."),
    "videos under other names": ("a.csv", f"{HEAD}\nHoliday_1.MP4,1,2,a\nzzz,1,2,a\n", "2 of 2 videos of {path} are missing: "
                                 "'Holiday_1.MP4' (did you mean 'holiday'?), zzz. Rename or add their files, or pass "
                                 "--allow-missing-videos."),
    "one name in two folders": ("a.csv", f"{HEAD}\nx/holiday,1,2,a\ny/holiday,1,2,a\n", "x/holiday, y/holiday are videos of one "
                                "name: holiday.mp4. Rename their files."),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_refused_in_one_sentence(name, convert, write):
    file, content, refusal = FILES[name]
    path = write(**{file: content})
    converted = convert(path)
    refusal = refusal.replace("{path}", str(path))
    assert converted.messages in (f"Error: {path.parent}/{refusal}\n", f"Error: {refusal}\n"), converted.messages
    assert converted.code == 2 and converted.table == "" and not converted.out.exists()


def test_all_problems_of_the_first_rows_are_listed(convert, write):
    rows = "".join(f"holiday,{row},1,a\n" for row in range(2, 14))
    converted = convert(write(**{"a.csv": f"{HEAD}\nholiday,1,2,a\n{rows}"}))
    lines = converted.messages.splitlines()
    assert len(lines) == 6 and lines[-1] == "... and 7 more" and not converted.out.exists()
    assert [line.partition(": column")[0][-7:] for line in lines[:5]] == [f"a.csv:{line}" for line in range(3, 8)]


FOLDERS = {
    "an empty folder": ({}, "labels: no labels; the folder is empty. Expected a table"),
    "other files": ({"README.txt": "x", "b.md": "x"}, "labels: no labels; found README.txt, b.md. Expected a table"),
    "two layouts": (
        {"a.csv": f"{HEAD}\nholiday,1,2,a\n", "b.srt": "1\n00:01 --> 00:02\na\n"},
        "labels in several layouts: a.csv (table), b.srt (subtitles). Name one of these files instead of the folder.",
    ),
    "a name that is no split": (
        {"train.csv": f"{HEAD}\nholiday,1,2,a\n", "more.csv": f"{HEAD}\nholiday,1,2,a\n"},
        "train.csv names a split, and more.csv does not. Rename one of them, or give rows a split.",
    ),
    "a qid in two files": (
        {"a.jsonl": json.dumps(OWN), "b.jsonl": json.dumps(OWN)},
        "qid 7 is in two rows of one split. Give each row a qid of its own, or none.",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wrong_folder_is_refused(name, convert, write):
    files, refusal = FOLDERS[name]
    write(**files)
    converted = convert(write(**files) if len(files) != 1 else write(**files).parent)
    assert refusal in converted.messages and converted.code == 2 and not converted.out.exists()


ARGUMENTS = {
    "--val-share 0.5": "--val-share is 0.5, expected 0 or more and below 0.5: as many videos test the model.",
    "--val-share nan": "--val-share is nan",
    "--annotations x": "--annotations is for benchmarks, and ",
    "--frame-rate fast": "--frame-rate is 'fast', expected frames a second, such as 25, 29.97 or 30000/1001.",
    "--frame-rate 0": "--frame-rate is '0'",
    "--frame-rate 1/0": "--frame-rate is '1/0'",
    "--frame-rate 25": "--frame-rate: these labels count no frames, their times are in seconds. Leave it out.",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_wrong_arguments_are_refused(arguments, convert, write):
    converted = convert(write(**{"a.csv": f"{HEAD}\nholiday,1,2,a\n"}), *arguments.split())
    assert ARGUMENTS[arguments] in converted.messages and converted.code == 2 and not converted.out.exists()


@pytest.mark.parametrize("name", ["", "charade", "gone.csv"])
def test_an_unknown_name_says_that_a_path_may_be_given(name, convert):
    refusal = f"Error: {name!r} is not a known benchmark, and no such file or folder exists. Expected one of qvhighlights, "
    refusal += "charades, tacos, tvsum, youtube-highlights, or the path of your own labels, such as labels.csv.\n"
    assert convert(name).messages == refusal


ODD_PATHS = (" ", "x" * 300, "x" * 5000, "caf\udce9", "犬" * 90, "-", "a\nb", "/", ".", "~", "/dev/null", "a\0")


@pytest.mark.parametrize("name", ODD_PATHS)
def test_an_odd_path_is_refused_in_our_own_words(name, convert, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    converted = convert(name)
    assert converted.code == 2 and converted.messages.startswith("Error: ") and not converted.out.exists()


def test_a_benchmark_of_the_same_name_wins(convert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("charades").write_text(f"{HEAD}\nholiday,1,2,a\n")
    assert "--annotations is missing: the folder of the official files of Charades-STA." in convert("charades").messages
    assert "--frame-rate is for your own labels" in convert("charades", "--annotations", ".", "--frame-rate", "25").messages
    assert convert("./charades").code == 2  # a table needs its ending


def test_the_folder_of_the_labels_is_never_written(convert, write):
    path = write(**{"a.csv": f"{HEAD}\nholiday,1,2,a\n"})
    assert "the folder of the labels. Choose another --out." in convert(path, out="labels").messages
    assert path.parent.is_dir() and [*path.parent.iterdir()] == [path]


def test_another_file_of_labels_does_not_replace_an_earlier_output(convert, write):
    table = f"{HEAD}\nholiday,1,2,a\n"
    write(**{"a.csv": table, "b.csv": table})
    folder = write(**{"a.csv": table}).parent
    assert convert(folder / "a.csv").code == 0 and convert(folder / "a.csv").code == 0
    assert "out: holds a.csv. Choose another --out for b.csv." in convert(folder / "b.csv").messages


def test_two_videos_of_one_name_are_named(convert, write, tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("holiday.mp4", "holiday.mkv"):
        (tmp_path / "two" / name).touch()
    converted = convert(write(**{"a.csv": f"{HEAD}\nholiday,1,2,a\n"}), folder=tmp_path / "two")
    refusal = "holiday.mkv and holiday.mp4: two videos with one id, 'holiday'. Rename or remove one of them."
    assert converted.messages == f"Error: {refusal}\n"


def test_frames_of_a_video_without_a_constant_rate_are_refused(convert, write, tmp_path):
    (tmp_path / "V").mkdir()
    make_video(tmp_path / "V" / "v.mp4", variable_frame_times(60))
    table = write(**{"a.csv": "video,start_frame,end_frame,text\nv,1,20,a\n"})
    refusal = "a.csv:2: its times are frames, and v.mp4: its frame rate varies"
    hint = "; write its times in seconds, or pass --frame-rate with the rate at which its frames were counted.\n"
    messages = convert(table, folder=tmp_path / "V").messages
    assert refusal in messages and messages.endswith(hint)
    assert convert(table, "--frame-rate", "25", folder=tmp_path / "V").code == 0


def test_a_damaged_video_is_named_with_the_row(convert, write, tmp_path):
    (tmp_path / "V").mkdir()
    (tmp_path / "V" / "v.mp4").write_bytes(b"no video")
    converted = convert(write(**{"a.csv": f"{HEAD}\nv,1,2,a\n"}), folder=tmp_path / "V")
    assert "a.csv:2: the duration of its video is unknown: v.mp4" in converted.messages and converted.code == 2
