"""The rows of a label file: what the page writes is what every reader of annotations reads."""

from __future__ import annotations

import json

import pytest

from costl.data.annotations import parse_jsonl
from costl.label.order import order_to_label
from costl.label.rows import Label, free_qid, labels_text, parse_labels, with_answer
from costl.pipeline.errors import UsageError

NEW = {"qid": 7, "vid": "a", "duration": 10.5}
ANSWER = {"query": "a dog", "windows": [[1, 2]], "grades": None, "absent": False}


def answer(row=NEW, **changes) -> dict:
    return dict(with_answer(row, **(ANSWER | changes)))


def test_moments_are_sorted_rounded_and_read_by_every_reader():
    row = answer(windows=[[6.00049, 10.5], [1.0, 2.25]], query="  a \n dog ")
    assert row == {**NEW, "query": "a dog", "relevant_windows": [[1, 2.25], [6, 10.5]]}
    (query,) = parse_jsonl(labels_text([Label.from_row(row)]), "labels.jsonl")
    assert (query.query, query.windows, query.clip_ids) == ("a dog", ((1.0, 2.25), (6.0, 10.5)), ())


def test_grades_are_the_ratings_of_one_annotator():
    row = answer(grades={3: 4, 0: 2.0})
    assert (row["relevant_clip_ids"], row["saliency_scores"]) == ([0, 3], [[2], [4]])
    assert answer(row, grades=None) == row
    assert answer(row, grades={}) == answer()
    assert "relevant_windows" not in answer(windows=[], grades={0: 1})


def test_not_in_this_video_is_an_empty_list_of_moments():
    row = answer(windows=[], absent=True)
    assert row["relevant_windows"] == [] and Label.from_row(row).is_absent
    (query,) = parse_jsonl(labels_text([Label.from_row(row)]), "labels.jsonl")
    assert not query.windows and not query.clip_ids
    assert not Label.from_row(answer()).is_absent and not Label.from_row(answer(windows=[], grades={0: 0})).is_absent


def test_a_row_without_an_answer_is_open():
    row = {**NEW, "query": "a dog"}
    assert Label.from_row(row).is_open and Label.from_row({**row, "relevant_windows": None}).is_open
    assert not any(Label.from_row(one).is_open for one in (answer(), answer(windows=[], absent=True)))


def test_other_fields_stay():
    row = answer({**NEW, "query": "a cat", "kind": "animals", "relevant_windows": [[0, 1]], "domain": "home"})
    assert row == answer() | {"kind": "animals", "domain": "home"}
    rated = {**NEW, "query": "a dog", "relevant_clip_ids": [0], "saliency_scores": [[1, 2, 4]]}
    assert answer(rated)["saliency_scores"] == [[1, 2, 4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": [[2, 1]]}, "0 <= start < end"),
        ({"windows": [[1, 1.0002]]}, "0 <= start < end"),
        ({"windows": [[-3, 2]]}, "0 <= start < end"),
        ({"windows": [[9, 13]]}, "0 <= start < end"),
        ({"windows": [[float("nan"), 2]]}, "nan is not a finite number"),
        ({"windows": [[0, 1]] * 1001}, "1001 moments"),
        ({"windows": []}, "no answer"),
        ({"query": " "}, "query is empty"),
        ({"query": "x" * 501}, "501 characters"),
        ({"absent": True}, "neither moments nor grades"),
        ({"windows": [], "grades": {0: 1}, "absent": True}, "neither moments nor grades"),
        ({"grades": {0: 5}}, "not between 0 and 4"),
        ({"grades": {0: -1}}, "not between 0 and 4"),
        ({"grades": {5: 1}}, "clip 5 is rated"),
    ],
)
def test_impossible_answers_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        answer(**changes)


def test_a_version_changes_with_the_content_and_not_with_the_order():
    label, same = Label.from_row(answer()), Label.from_row(dict(reversed(answer().items())))
    assert label.version == same.version != Label.from_row(answer(windows=[[1, 3]])).version


def test_rows_are_written_as_they_were_read():
    text = '{"qid": "x", "query": "un été", "vid": "a.mp4", "duration": 3, "note": [1]}\n'
    labels = parse_labels(text, "labels.jsonl")
    assert labels_text(labels.values()) == text and labels["x"].video == "a"
    assert labels_text(parse_labels(f"[{text.strip()}]", "labels.json").values()) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "labels.jsonl:1: 'x' is not JSON"),
        ('{"qid": 1}', "labels.jsonl:1: 'query', 'vid', 'duration' are missing"),
        (2 * (json.dumps(NEW | {"query": "a"}) + "\n"), "labels.jsonl:2: qid 7 is already on line 1"),
    ],
)
def test_bad_rows_are_named_by_their_line(text, message):
    with pytest.raises(UsageError, match=message):
        parse_labels(text, "labels.jsonl")


def test_new_ids_are_above_all_numbers():
    assert free_qid([]) == 1 and free_qid([3, "9", -5, 2**60]) == 4


def test_videos_without_labels_come_first():
    assert order_to_label(["a", "b", "c", "d"], {"a": 2, "c": 1}) == ["b", "d", "c", "a"]
