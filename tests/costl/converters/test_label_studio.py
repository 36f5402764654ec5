"""Label Studio and back: every frame at every rate, rows without loss, and its own schema."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction

import pytest

from costl.benchmarks.common import to_row
from costl.converters.find_layout import find_labels
from costl.converters.label_studio_export import CONFIG, to_label_studio
from costl.converters.rows import make_rows
from costl.converters.times import frames_to_window, parse_rate, window_to_frames
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import Query

RATES = {"23.976": Fraction(24000, 1001), "25": Fraction(25), "29.97": Fraction(30000, 1001), "59.94": Fraction(60000, 1001)}
MINUTES = 3
ROWS = (
    Query(qid=7, query="a dog", vid="holiday", duration_s=29.7, windows=((0.1234567, 4.2), (9.0, 29.7)), clip_ids=(1,),
          saliency=((3.0, 2.5),)),
    Query(qid="x", query="nothing of it", vid="holiday", duration_s=29.7),
    Query(qid=8, query="a  cat", vid="Garden", duration_s=30.0, windows=((2.0, 2.001),)),
    Query(qid=9, query="a  cat", vid="Garden", duration_s=30.0, windows=((12.0, 13.7), (14.0, 15.0))),
)


def export(*rows: Query, rate: Fraction = RATES["29.97"], **options) -> list[dict]:
    return to_label_studio(rows, rate_of=lambda vid: rate, address_of=lambda vid: f"/data/upload/1/0a1b2c3d-{vid}.mp4", **options)


@pytest.fixture
def read(tmp_path, videos):
    """The rows of tasks, as `costl prepare` makes them."""

    def read_tasks(tasks: list[dict], frame_rate: Fraction | None = None) -> list[Query]:
        path = tmp_path / "tasks.json"
        path.write_text(json.dumps(tasks), encoding="utf-8")
        [file] = find_labels(path)
        folder = VideoFolder(videos, frame_rate=frame_rate)
        return [row.query for row in make_rows(file.read(folder).labels, folder)]

    return read_tasks


@pytest.mark.parametrize("name", RATES)
def test_every_frame_of_some_minutes_is_itself_after_seconds(name):
    rate = RATES[name]
    frames = int(MINUTES * 60 * rate)
    for frame in range(frames):
        assert window_to_frames(frames_to_window(frame, frame, rate), rate) == (frame, frame)
        last = min(frames, frame + frame % 97)
        start_s, end_s = frames_to_window(frame, last, rate)
        assert window_to_frames((start_s, end_s), rate) == (frame, last)
        # Six decimals, as other programs write seconds.
        assert window_to_frames((round(start_s, 6), round(end_s, 6)), rate) == (frame, last)
        assert start_s == pytest.approx(frame * rate.denominator / rate.numerator, abs=1e-12)


@pytest.mark.parametrize("name", RATES)
def test_rows_on_frames_come_back_exactly_from_frames_alone(name, read):
    rate = RATES[name]
    windows = tuple(frames_to_window(first, first + length, rate) for first, length in ((0, 0), (17, 3), (101, 299), (640, 1)))
    row = Query(qid=1, query="a dog", vid="holiday", duration_s=30.0, windows=windows)
    tasks = export(row, rate=rate)
    del tasks[0]["data"]["costl"]
    assert read(tasks) == [row]
    del tasks[0]["data"]["fps"]  # then the rate is an option, or that of the video
    assert read(tasks, frame_rate=rate) == [row]


def test_the_rate_of_the_video_counts_where_none_is_stated(read):
    row = Query(qid=1, query="a dog", vid="holiday", duration_s=30.0, windows=((2.0, 4.0),))
    tasks = export(row, rate=Fraction(25))
    del tasks[0]["data"]["costl"], tasks[0]["data"]["fps"]
    assert read(tasks) == [row]


@pytest.mark.parametrize("name", RATES)
def test_a_stated_rate_is_exact(name):
    assert parse_rate(str(float(RATES[name]))) == parse_rate(name) == RATES[name]


def test_rows_of_any_times_come_back_without_loss(read):
    assert read(export(*ROWS)) == list(ROWS)


ADDRESSES = ("/data/local-files/?d=all%20videos/{}.mp4", "s3://bucket/{}.mp4", "/data/upload/1/0a1b2c3d-{}.mp4")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("has_rows", [True, False])
def test_videos_of_one_name_in_two_folders_are_not_confused(videos, tmp_path, address, has_rows):
    vids = ("a/x", "b/x")
    for vid in vids:
        (tmp_path / "V" / vid).parent.mkdir(parents=True)
        shutil.copy(videos / "holiday.mp4", tmp_path / "V" / f"{vid}.mp4")
    rows = [Query(qid=n, query="a dog", vid=vid, duration_s=30.0, windows=((n + 1, n + 4),)) for n, vid in enumerate(vids)]
    is_upload = "upload" in address  # which has no folders
    tasks = to_label_studio(
        rows, rate_of=lambda _: Fraction(25), address_of=lambda vid: address.format(vid.rpartition("/")[2] if is_upload else vid)
    )
    for task in [] if has_rows else tasks:
        del task["data"]["costl"]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    folder = VideoFolder(tmp_path / "V")
    labels = find_labels(tmp_path / "tasks.json")[0].read(folder).labels
    found = [(folder.vid_of(label.video), label.windows or label.row.query.windows) for label in labels]
    expected = ["x", "x"] if is_upload and not has_rows else vids
    assert found == [(vid, row.windows) for vid, row in zip(expected, rows, strict=True)]


def test_what_was_changed_in_label_studio_is_read_and_the_rest_stays_exact(read):
    tasks = export(*ROWS)
    holiday = tasks[0]["annotations"][0]["result"]
    holiday[0]["value"]["ranges"][0]["start"] += 30  # the first moment of the dog
    garden = tasks[1]["annotations"][0]["result"]
    for result in garden[4:]:
        result["id"] = "new"  # which Label Studio gives to a copy
    garden[4]["value"]["ranges"] = [{"start": 1, "end": 30}]
    by_sentence = {row.query: row for row in read(tasks)}
    dog, nothing, cat = (by_sentence[sentence] for sentence in ("a dog", "nothing of it", "a cat"))
    changed_s = float((int(0.1234567 * RATES["29.97"]) + 30) / RATES["29.97"])
    assert nothing == ROWS[1]
    assert dog.windows == ((changed_s, dog.windows[0][1]), (9.0, 29.7)) and dog.clip_ids == ()
    assert cat.windows == ((0.0, 1.001), (2.0, 2.001), (12.0, 13.7))


def test_a_deleted_sentence_is_gone_and_a_new_one_is_there(read):
    tasks = export(*ROWS[:2])
    results = tasks[0]["annotations"][0]["result"]
    for result in results:
        result["value"]["text"] = ["a bird"]
    [bird, nothing] = sorted(read(tasks), key=lambda row: row.query)
    assert bird.query == "a bird" and len(bird.windows) == 2 and nothing == ROWS[1]


def test_proposals_are_no_labels(read):
    [task] = export(ROWS[0], kind="predictions")
    assert task["predictions"][0]["model_version"] == "costl" and "annotations" not in task
    assert read([task]) == []


def test_annotations_of_all_annotators_count_and_cancelled_ones_do_not(read):
    row = Query(qid=1, query="a dog", vid="holiday", duration_s=30.0, windows=((2.0, 4.0),))
    other = replace(row, windows=((10.0, 12.0),))
    [task], [second] = export(row, rate=Fraction(25)), export(other, rate=Fraction(25))
    del task["data"]["costl"]
    task["annotations"] += [second["annotations"][0], {"was_cancelled": True, **export(ROWS[2])[0]["annotations"][0]}]
    [joined] = read([task])
    assert joined.windows == ((2.0, 4.0), (10.0, 12.0))


def test_tasks_are_the_same_each_time_and_hold_their_rows():
    assert export(*ROWS) == export(*ROWS)
    ids = [result["id"] for task in export(*ROWS) for result in task["annotations"][0]["result"]]
    assert len(set(ids)) == len(ids) / 2 == 5
    assert [row for task in export(*ROWS) for row in task["data"]["costl"]] == [to_row(row) for row in ROWS]


@pytest.mark.parametrize("kind", ["annotations", "predictions"])
def test_tasks_have_the_fields_that_label_studio_requires(kind):
    """The rules of label_studio_sdk 2.1 for TimelineLabels, a text field and a task, without its hundred megabytes."""
    for task in export(*ROWS, kind=kind):
        assert task["data"].keys() >= {"video", "fps"} and isinstance(task["data"]["fps"], float)
        for result in task[kind][0]["result"]:
            assert {"id", "from_name", "to_name", "type", "value"} <= result.keys()
            assert f'name="{result["from_name"]}" toName="{result["to_name"]}"' in CONFIG
            assert {range_.keys() == {"start", "end"} for range_ in result["value"]["ranges"]} == {True}
            assert all(1 <= range_["start"] <= range_["end"] for range_ in result["value"]["ranges"])
            choices = result["value"].get("timelinelabels") or result["value"]["text"]
            assert choices and all(isinstance(choice, str) for choice in choices)
            assert result["type"] == "textarea" or f'<Label value="{choices[0]}"/>' in CONFIG


def test_label_studio_s_own_sdk_accepts_tasks():
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(CONFIG)
    for kind in ("annotations", "predictions"):
        for task in export(*ROWS, kind=kind):
            assert interface.validate_task({"data": task["data"]})
            assert interface.validate_prediction(task[kind][0], return_errors=True) == []
            assert interface.validate_annotation(task[kind][0])
            text = json.dumps(task[kind][0])
            for wrong in (text.replace('"ranges"', '"range"'), text.replace('"timeline"', '"line"')):
                assert not interface.validate_annotation(json.loads(wrong))
