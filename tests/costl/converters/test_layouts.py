"""Every layout of own labels, with the rows that it should give, written by hand."""

from __future__ import annotations

import json

import pytest

TABLE = "video,start,end,text\nholiday.mp4,1.5,4,a dog\nGarden,0:00:10.25,0:12,a cat\n"
TABLE_ROWS = {("holiday", "a dog", ((1.5, 4),)), ("Garden", "a cat", ((10.25, 12),))}


def label_studio(*results: dict, video: str = "/data/upload/3/0a1b2c3d-holiday.mp4", **data: object) -> str:
    return json.dumps([{"id": 5, "data": {"video": video, **data}, "annotations": [{"result": list(results)}]}])


def timeline(region: str, start: int, end: int, label: str = "dog") -> dict:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}
    return {"id": region, "type": "timelinelabels", "from_name": "t", "to_name": "v", "value": value}


def text_of(region: str, text: str, kind: str = "textarea") -> dict:
    return {"id": region, "type": kind, "value": {{"textarea": "text"}.get(kind, kind): [text]}}


def activitynet(**videos: dict) -> str:
    return json.dumps(videos)


DIDEMO = [
    {"video": "holiday.mov", "description": "a dog", "times": [[0, 0], [1, 2], [1, 1], [1, 1]], "annotation_id": 70},
    {"video": "Garden.avi", "description": "a cat", "times": [[5, 5]], "annotation_id": 71, "num_segments": 6},
]
TVR = {"vid_name": "holiday", "duration": 30.0, "ts": [1.5, 4], "desc": "a dog", "desc_id": 900, "type": "v"}
OWN = {"qid": 7, "query": "a dog", "vid": "holiday", "duration": 30, "relevant_windows": [[1.5, 4]]}
RATED = OWN | {"relevant_clip_ids": [1], "saliency_scores": [[2, 3, 4]]}
EGO4D = {
    "videos": [
        {
            "video_uid": "Garden",
            "clips": [
                {
                    "clip_uid": clip,
                    "video_start_sec": 8.0,
                    "video_end_sec": 20.0,
                    "annotations": [
                        {
                            "language_queries": [
                                {
                                    "query": "where is the cat?",
                                    "clip_start_sec": 2.0,
                                    "clip_end_sec": 5.5,
                                    "video_start_sec": 10.0,
                                    "video_end_sec": 13.5,
                                },
                                {"query": None, "clip_start_sec": 0.0, "clip_end_sec": 1.0},
                            ]
                        }
                    ],
                }
            ],
        }
        for clip in ("{clip}",)
    ]
}
# Files, arguments, the rows (video, sentence, windows), and a part of the messages.
LAYOUTS = {
    "commas": ({"a.csv": TABLE}, (), TABLE_ROWS, "a.csv: UTF-8, separated by commas; video = 'video', start = 'start'"),
    "semicolons, decimal commas, a byte order mark, other names, quotes": (
        {"a.csv": '\ufeffFile name;Begin (s);offset;Caption;who\n"holiday";1,5;4;"a ""big""; dog";x\n'},
        (),
        {("holiday", 'a "big"; dog', ((1.5, 4),))},
        "separated by semicolons; video = 'File name', start = 'Begin (s)', end = 'offset', text = 'Caption'. Not used: 'who'.",
    ),
    "tabs in UTF-16": (
        {"a.tsv": "vid\tstart_time\tend_time\tsentence\r\nholiday\t1,5\t4\tüber dem Hund\r\n".encode("utf-16")},
        (),
        {("holiday", "über dem Hund", ((1.5, 4),))},
        "a.tsv: UTF-16, separated by tabs",
    ),
    "the separator named by Excel": (
        {"a.csv": "sep=;\nvideo;from;to;label\nholiday;1:02:03.5;1:02:04;late\nholiday;1;2;a dog\n"},
        (),
        {("holiday", "a dog", ((1, 2),))},
        "1 rows are dropped: their moments lie outside their videos.",
    ),
    "paths, cases and endings of videos": (
        {"a.csv": "video,start,end,text\nVideos\\HOLIDAY.MP4,1,2,a\n./k.1,1,2,b\ngarden.avi,1,2,c\nk.1.mov,3,4,b\n"},
        (),
        {("holiday", "a", ((1, 2),)), ("k.1", "b", ((1, 2), (3, 4))), ("Garden", "c", ((1, 2),))},
        "",
    ),
    "windows are sorted, merged and clipped": (
        {"a.csv": "video,start,end,text\nholiday,9,12,a\nholiday,28,31,a\nholiday,1,3,a\nholiday,3,4.5,a\nholiday,2,2.5,a  \n"},
        (),
        {("holiday", "a", ((1, 4.5), (9, 12), (28, 30)))},
        "",
    ),
    "numbers of frames": (
        {"a.csv": "video,start_frame,end_frame,text\nholiday,50,99,a\n"},
        (),
        {("holiday", "a", ((2, 4),))},
        "a.csv: 'start_frame' and 'end_frame' count frames from 0.\nFrames are counted at 25 a second, the rate of the video.",
    ),
    "numbers of frames at another rate": (
        {"a.csv": "video,start_frame,end_frame,text\nholiday,40,79,a\n"},
        ("--frame-rate", "20"),
        {("holiday", "a", ((2, 4),))},
        "Frames are counted at 20 a second, as --frame-rate says.",
    ),
    "timecodes": (
        {"a.csv": "video,in,out,text\nholiday,00:00:02:00,00:00:04:00,a\n"},
        (),
        {("holiday", "a", ((2, 4),))},
        "Frames are counted at 25 a second",
    ),
    "Label Studio, labels": (
        {"a.json": label_studio(timeline("r", 51, 100))},
        (),
        {("holiday", "dog", ((2, 4),))},
        "a.json: the sentence of 1 regions is the label.\na.json does not say at which rate frames were counted. Label Studio "
        "counts 24 a second, unless the Video tag of its configuration has a framerate; if yours has none, pass --frame-rate 24."
        "\nFrames are counted at 25 a second, the rate of the video.",
    ),
    "Label Studio, 24 frames a second, and boxes": (
        {"a.json": label_studio(timeline("r", 49, 96), {"id": "b", "type": "videorectangle", "value": {}})},
        ("--frame-rate", "24"),
        {("holiday", "dog", ((2, 4),))},
        "a.json: 1 results of type 'videorectangle' are not used.\nFrames are counted at 24 a second, as --frame-rate says.",
    ),
    "Label Studio, a text and a choice of the region": (
        {
            "a.json": label_studio(
                *(timeline("r", 51, 100), text_of("r", "a dog"), text_of("r", "x", "choices")),
                *(timeline("s", 1, 1), text_of("s", "a cat", "choices"), text_of("", "all of it")),
                video="/data/local-files/?d=films%2Fholiday.mp4",
            )
        },
        (),
        {("holiday", "a dog", ((2, 4),)), ("holiday", "a cat", ((0, 0.04),))},
        "the sentence of 1 regions is the text field.\na.json: the sentence of 1 regions is the choice.",
    ),
    "Label Studio at the rate of its configuration": (
        {"a.json": label_studio(timeline("r", 49, 96), fps=24)},
        (),
        {("holiday", "dog", ((2, 4),))},
        "Frames are counted at 24 a second, as the labels say.",
    ),
    "ActivityNet Captions": (
        {"a.json": activitynet(holiday={"duration": 30, "timestamps": [[1.5, 4], [28, 30.4]], "sentences": [" a dog", "b"]})},
        (),
        {("holiday", "a dog", ((1.5, 4),)), ("holiday", "b", ((28, 30),))},
        "",
    ),
    "DiDeMo": (
        {"a.json": json.dumps(DIDEMO)},
        (),
        {("holiday", "a dog", ((5, 10),)), ("Garden", "a cat", ((25, 30),))},
        "the one that overlaps most with the others",
    ),
    "TVR": ({"a.jsonl": json.dumps(TVR)}, (), {("holiday", "a dog", ((1.5, 4),))}, ""),
    "Ego4D, a clip": (
        {"a.json": json.dumps(EGO4D).replace("{clip}", "holiday")},
        (),
        {("holiday", "where is the cat?", ((2, 5.5),))},
        "Ego4D: 1 queries count seconds in their clip (clip_uid).\nEgo4D: 1 queries without a text are left out.",
    ),
    "Ego4D, the whole video": (
        {"a.json": json.dumps(EGO4D)},
        (),
        {("Garden", "where is the cat?", ((10, 13.5),))},
        "Ego4D: 1 queries count seconds in the whole video (video_uid)",
    ),
    "WebVTT": (
        {
            "holiday.vtt": "WEBVTT\n\nNOTE x\n\n1\n00:01.500 --> 00:00:04.000 align:left\n<v Ann>a <i>dog</i>\n&amp; a cat\n\n"
            "00:05.000 --> 00:06.000\n\n",
        },
        (),
        {("holiday", "a dog & a cat", ((1.5, 4),))},
        "",
    ),
    "SubRip, with a language": (
        {
            "Garden.en.srt": "1\r\n00:00:01,500 --> 00:00:04,000\r\n{\\an8}a dog\r\n\r\n"
            "2\r\n00:00:05,000 --> 00:00:06,000\r\na cat\r\n"
        },
        (),
        {("Garden", "a dog", ((1.5, 4),)), ("Garden", "a cat", ((5, 6),))},
        "",
    ),
    "rows of CoSTL": ({"a.jsonl": json.dumps(RATED) + "\n"}, (), {("holiday", "a dog", ((1.5, 4),))}, ""),
    "rows of CoSTL in a JSON list": ({"a.json": json.dumps([OWN])}, (), {("holiday", "a dog", ((1.5, 4),))}, ""),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_rows_written_by_hand(name, convert, write):
    files, arguments, rows, message = LAYOUTS[name]
    converted = convert(write(**files), *arguments, "--val-share", "0")
    assert converted.code == 0, converted.messages
    assert {(row.vid, row.query, row.windows) for row in converted.splits["train"]} == rows
    assert message in converted.messages and converted.splits.keys() == {"train"}


def test_ids_and_ratings_of_the_labels_stay(convert, write):
    [rated] = convert(write(**{"a.jsonl": json.dumps(RATED)}), "--val-share", "0").splits["train"]
    assert (rated.qid, rated.clip_ids, rated.saliency) == (7, (1,), ((2, 3, 4),))
    [tvr] = convert(write(**{"b.jsonl": json.dumps(TVR)}), "--val-share", "0", out="b").splits["train"]
    assert tvr.qid == 900


def test_a_rating_is_that_of_the_clips_inside_the_window(convert, write):
    table = "video,start,end,text,rating\nholiday,2,8,a,3\nholiday,6,10,a,1.5\nholiday,20.1,20.3,a,4\nGarden,1,2,b,\n"
    a, b = convert(write(**{"a.csv": table}), "--val-share", "0").splits["train"]
    # Clips 1 to 3 have their centres 3, 5 and 7 in [2, 8), clips 3 and 4 in [6, 10), and 20.2 is in clip 10.
    assert dict(zip(a.clip_ids, a.saliency, strict=True)) == {1: (3,), 2: (3,), 3: (3,), 4: (1.5,), 10: (4,)}
    assert b.clip_ids == () and a.windows == ((2, 10), (20.1, 20.3))


FILE_SPLITS = {
    "a column": ({"a.csv": "video,start,end,text,split\nholiday,1,2,a,Train\nGarden,1,2,b,validation\nk.1,1,2,c,test\n"}, "abc"),
    "names of files": (
        {
            f"x_{split}.csv": f"video,start,end,text\n{vid},1,2,{vid}\n"
            for split, vid in (("train", "Garden"), ("dev", "holiday"))
        },
        ("Garden", "holiday"),
    ),
    "ActivityNet": (
        {
            f"{split}.json": activitynet(**{vid: {"duration": 30, "timestamps": [[1, 2]], "sentences": [vid]}})
            for split, vid in (("train", "Garden"), ("val_1", "holiday"), ("val_2", "k.1"))
        },
        ("Garden", "holiday", "k.1"),
    ),
    "QVHighlights, all": (
        {
            f"highlight_{name}.jsonl": json.dumps(OWN | {"query": name})
            for name in ("train_release", "val_release", "test_release")
        },
        ("train_release", "val_release", "test_release"),
    ),
}


@pytest.mark.parametrize("name", FILE_SPLITS)
def test_splits_of_the_labels_are_used(name, convert, write):
    files, sentences = FILE_SPLITS[name]
    converted = convert(write(**files))
    splits = {split: [row.query for row in rows] for split, rows in converted.splits.items()}
    assert splits == {split: [sentence] for split, sentence in zip(("train", "val", "test"), sentences, strict=False)}
    assert "Splits: as the labels give them." in converted.messages


def test_one_release_file_of_qvhighlights_is_its_split(convert, write):
    converted = convert(write(**{"highlight_val_release.jsonl": json.dumps(OWN)}))
    assert converted.splits.keys() == {"val"} and converted.code == 0


def test_videos_in_two_splits_are_named(convert, write):
    table = "video,start,end,text,split\nholiday,1,2,a,train\nholiday,1,2,b,test\nGarden,1,2,b,val\n"
    assert "train and test share 1 videos: holiday." in convert(write(**{"a.csv": table})).messages
