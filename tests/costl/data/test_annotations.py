"""Annotation and prediction rows: real files are read, bad rows are refused by file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.data.annotations import Prediction, Query, parse_jsonl, parse_predictions
from costl.pipeline.errors import UsageError

SHARED = Path(__file__).parents[4] / "shared" / "data"
ROW = {"qid": 1, "query": "a cat", "vid": "v", "duration": 10}
RATED = ROW | {"relevant_windows": [[0, 4]], "relevant_clip_ids": [0, 1], "saliency_scores": [[4, 3, 2], [0, 1, 2]]}


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(text: str, parse=parse_jsonl) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, "train.jsonl")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "rows", "windows"),
    [
        ("qvhighlights/highlight_val_release.jsonl", 1550, 2803),
        ("qvhighlights/highlight_test_release.jsonl", 1542, 0),
        ("charades_sta/charades_sta_test_tvr_format.jsonl", 3720, 3720),
        ("tacos/test.jsonl", 4001, 4001),
    ],
)
def test_the_files_of_the_benchmarks_are_read_whole(name, rows, windows):
    path = SHARED / "annotations" / name
    if not path.is_file():
        pytest.skip("the benchmarks' annotations are not here")
    queries = parse_jsonl(path.read_text(), name)
    assert (len(queries), sum(len(query.windows) for query in queries)) == (rows, windows)


def test_a_row_becomes_a_query_with_all_its_labels():
    (query,) = parse_jsonl(lines(RATED | {"source": "extra fields pass"}), "train.jsonl")
    assert query == Query(1, "a cat", "v", 10.0, ((0.0, 4.0),), (0, 1), ((4.0, 3.0, 2.0), (0.0, 1.0, 2.0)))


def test_absent_and_null_labels_are_empty():
    null = ROW | {"qid": "tvsum_1", "relevant_windows": None, "relevant_clip_ids": None}
    first, second = parse_jsonl(lines(ROW, null), "test.jsonl")
    assert first.windows == second.windows == first.saliency == second.clip_ids == ()


def test_blank_lines_byte_order_mark_and_odd_separators_are_accepted():
    text = "\ufeff\r\n" + json.dumps(ROW | {"query": "one\u2028two"}, ensure_ascii=False) + "\r\n\r\n"
    assert [query.query for query in parse_jsonl(text, "train.jsonl")] == ["one\u2028two"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"qid": None}, "'qid' is missing"),
        ({"qid": True}, "'qid' is the value True"),
        ({"qid": 1.5}, "'qid' is the number 1.5, expected a whole number or a text"),
        ({"query": "  "}, "query is empty"),
        ({"query": 5}, "'query' is the number 5, expected a text"),
        ({"vid": ""}, "vid is empty"),
        ({"duration": 0}, "duration is 0.0, expected seconds above zero"),
        ({"duration": "150"}, "'duration' holds the text '150', expected a number"),
        ({"relevant_windows": [[4, 0]]}, "window [4.0, 0.0] is not 0 <= start < end"),
        ({"relevant_windows": [[4, 4]]}, "is not 0 <= start < end"),
        ({"relevant_windows": [[-2, 4]]}, "is not 0 <= start < end"),
        ({"relevant_windows": [[0, 12]]}, "<= duration (10.0)"),
        ({"relevant_windows": [[0, 1, 2]]}, "not 2 numbers long"),
        ({"relevant_windows": [0, 4]}, "'relevant_windows' holds the number 0, expected lists in a list, such as [[2, 6]]"),
        ({"relevant_windows": [["0", 4]]}, "holds the text '0', expected a number"),
        ({"relevant_window": [[0, 4]]}, "unknown field 'relevant_window', did you mean 'relevant_windows'?"),
        ({"relevant_clip_ids": [0, 0]}, "repeats a clip"),
        ({"relevant_clip_ids": [0, -1]}, "below zero"),
        ({"relevant_clip_ids": [0, 1.0]}, "a value that is not a whole number"),
        ({"relevant_clip_ids": [0]}, "1 relevant_clip_ids but 2 rows"),
        ({"saliency_scores": [[4, 3, 2], [4, 3]]}, "differ in length"),
        ({"saliency_scores": [[], []]}, "are empty"),
        ({"saliency_scores": [[4, 3, 2], [4, 3, -1]]}, "below zero"),
        ({"saliency_scores": None, "label": [[5.0]]}, "'label' is the layout of TVSum"),
    ],
)
def test_a_bad_value_is_refused_by_file_and_line(change, part):
    message = refusal("\n" + lines(ROW | {"qid": 7}, RATED | change))
    assert message.startswith("train.jsonl:3: ") and part in message


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON list, expected an object"),
        ('{"qid": NaN}', "NaN is not a number JSON knows"),
        ('{"qid": 1, "query": "q", "vid": "v", "duration": 1e999}', "larger than any number"),
        ('{"qid": 1, "query": "q", "vid": "v", "duration": 1' + 400 * "0" + "}", "expected a finite number"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_not_a_row_is_refused(line, part):
    assert part in refusal(line)


def test_a_qid_that_occurs_twice_is_refused_with_both_lines():
    assert refusal(lines(ROW, ROW)) == "train.jsonl:2: qid 1 is already on line 1."


def test_many_bad_rows_are_counted_and_the_first_are_shown():
    message = refusal(lines(*[ROW | {"duration": -1}] * 8)).splitlines()
    assert len(message) == 6 and message[-1] == "... and 3 more"


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    qid=st.integers(-(2**63), 2**63 - 1) | st.text(),
    query=st.text(),
    windows=st.lists(st.tuples(numbers, numbers, numbers), max_size=3),
    saliency=st.lists(numbers, max_size=3),
)
def test_a_prediction_written_to_a_submission_file_is_read_back_equal(qid, query, windows, saliency):
    prediction = Prediction(qid, query, "v", tuple(windows), tuple(saliency))
    assert parse_predictions(lines(prediction.to_row()), "predictions.jsonl") == [prediction]


def test_a_prediction_takes_lists_and_holds_tuples():
    prediction = Prediction(1, "a cat", "v", [[0, 2, 1]], [1, 2])
    assert prediction.windows == ((0.0, 2.0, 1.0),) and prediction.saliency == (1.0, 2.0)
    assert prediction.to_row()["pred_relevant_windows"] == [[0.0, 2.0, 1.0]]


@pytest.mark.parametrize(
    ("windows", "saliency", "part"),
    [
        ([[0, 2]], [], "not 3 numbers long"),
        ([[0, math.nan, 1]], [], "expected a finite number"),
        ([], [math.inf], "expected a finite number"),
        ([], [None], "holds null"),
    ],
)
def test_a_prediction_with_a_non_finite_number_is_refused(windows, saliency, part):
    with pytest.raises(UsageError, match=part):
        Prediction(1, "a cat", "v", windows, saliency)


def test_a_misspelt_prediction_field_is_refused():
    message = refusal(lines({"qid": 1, "pred_relevant_window": []}), parse_predictions)
    assert "did you mean 'pred_relevant_windows'?" in message
