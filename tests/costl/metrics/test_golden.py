"""Three videos and five queries with every headline number computed by hand."""

from __future__ import annotations

import pytest

from costl.data.annotations import Prediction, Query
from costl.metrics.compute import compute_metrics, measure

# video  seconds  query  true windows            predicted (score)                    IoU with the best window
# A      150      1      [10 30]                 [10 30] 0.9    [100 120] 0.5         1, 0
#                 2      [0 8] [40 100]          [40 90] 0.8    [0 10] 0.7            50/60, 8/10
# B      60       3      [20 40]                 [0 10] 0.9     [20 36] 0.6           0, 16/20
#                 4      [0 6] [50 60]           [50 60] 0.9    [51 60] 0.8  [0 4] 0.7   1, 9/10 (taken), 4/6
# C      20       5      [4 18]                  nothing
QUERIES = [
    Query(1, "one", "A", 150.0, ((10, 30),)),
    Query(2, "two", "A", 150.0, ((0, 8), (40, 100))),
    Query(3, "three", "B", 60.0, ((20, 40),), (10, 11, 12), ((4, 4, 2), (4, 1, 3), (0, 3, 3))),
    Query(4, "four", "B", 60.0, ((0, 6), (50, 60))),
    Query(5, "five", "C", 20.0, ((4, 18),), (2,), ((1, 1, 1),)),
]
# Query 3 ranks clip 11, a clip without ratings, clip 10, clip 12, and then the rest alike.
SALIENCY = tuple({11: 5.0, 0: 4.0, 10: 3.0, 12: 2.0}.get(clip, 0.0) for clip in range(30))
PREDICTIONS = [
    Prediction(1, "one", "A", ((10, 30, 0.9), (100, 120, 0.5))),
    Prediction(2, "two", "A", ((0, 10, 0.7), (40, 90, 0.8))),  # not in order of score
    Prediction(3, "three", "B", ((0, 10, 0.9), (20, 36, 0.6)), SALIENCY),
    Prediction(4, "four", "B", ((50, 60, 0.9), (51, 60, 0.8), (0, 4, 0.7))),
    Prediction(5, "five", "C", (), (0.0,) * 2 + (1.0,) + (0.0,) * 7),
]
ON_PAPER = {
    # First moments: 1, 50/60, 0, 1, none.
    "MR-full-R1@0.3": 3 / 5,
    "MR-full-R1@0.5": 3 / 5,
    "MR-full-R1@0.7": 3 / 5,
    "MR-full-mIoU": (1 + 50 / 60 + 0 + 1 + 0) / 5,
    # Query 3 has its window among the first five, at 0.8.
    "MR-full-R5@0.3": 4 / 5,
    "MR-full-R5@0.5": 4 / 5,
    "MR-full-R5@0.7": 4 / 5,
    # Average precision at 0.5, then at 0.75. Query 4: hits at ranks 1 and 3, of two; above 4/6 at rank 1 alone.
    "MR-full-mAP@0.5": (1 + 1 + 1 / 2 + (1 + 2 / 3) / 2 + 0) / 5,
    "MR-full-mAP@0.75": (1 + 1 + 1 / 2 + 1 / 2 + 0) / 5,
    # Over ten thresholds: query 2 has both up to 0.8 (seven) and then none, query 3 at rank 2 up to 0.8, query 4 both up to
    # 0.65 (four).
    "MR-full-mAP": (1 + 7 / 10 + 7 / 10 / 2 + (4 * 5 / 6 + 6 / 2) / 10 + 0) / 5,
    # Short, up to 10 s: [0 8] of query 2, second in its list; both of query 4.
    "MR-short-mAP": (7 / 10 / 2 + (4 * 5 / 6 + 6 / 2) / 10) / 2,
    # Middle, up to 30 s: queries 1, 3 and 5. Long: [40 100] of query 2.
    "MR-middle-mAP": (1 + 7 / 10 / 2 + 0) / 3,
    "MR-long-mAP": 7 / 10,
    # Queries 3 and 5 are rated; in 5 nothing reaches Fair. In 3 three annotators, best precision at each find or later:
    # Fair:      clips 10 11    at ranks 1 3    (1 + 2/3) / 2;    10 12 at 3 4   1/2;    10 11 12 at 1 3 4   (1 + 3/4 + 3/4) / 3
    # Good:      the same       the same;                                                   11 12 at 1 4      (1 + 1/2) / 2
    # VeryGood:  the same;      10 at 3  1/3;   none  0
    "HL-min-Fair-mAP": ((1 + 2 / 3) / 2 + 1 / 2 + (1 + 3 / 4 + 3 / 4) / 3) / 3 / 2,
    "HL-min-Good-mAP": ((1 + 2 / 3) / 2 + 1 / 2 + (1 + 1 / 2) / 2) / 3 / 2,
    "HL-min-VeryGood-mAP": ((1 + 2 / 3) / 2 + 1 / 3 + 0) / 3 / 2,
    # The best clip of query 3 is clip 11, which one annotator rates 4.
    "HL-min-Fair-Hit1": 1 / 2,
    "HL-min-Good-Hit1": 1 / 2,
    "HL-min-VeryGood-Hit1": 1 / 2,
}


@pytest.mark.promise(15)
def test_every_headline_number_equals_the_hand_computed_one():
    metrics = compute_metrics(PREDICTIONS, QUERIES)
    assert metrics["brief"] == {name: pytest.approx(100 * value, abs=1e-9) for name, value in ON_PAPER.items()}
    assert metrics["full"]["MR-R1"]["0.85"] == pytest.approx(40)  # 50/60 falls short
    assert [note.split(" ")[0] for note in metrics["notes"]] == ["1", "1"]  # one without a window, one not sorted


@pytest.mark.promise(15)
def test_official_mode_takes_the_first_listed_and_rounds_to_two_decimals():
    # Query 3 lists the better one first; mAP goes by score all the same. Query 5 gets an IoU of 14/20.
    third = Prediction(3, "three", "B", ((20, 36, 0.6), (0, 10, 0.9)))
    answered = [*PREDICTIONS[:2], third, PREDICTIONS[3], Prediction(5, "five", "C", ((0, 20, 0.1),))]
    moments_only = [Prediction(p.qid, p.query, p.vid, p.windows) for p in answered]
    brief = compute_metrics(moments_only, QUERIES, official=True)["brief"]
    assert "MR-full-mIoU" not in brief and "MR-full-R1@0.3" not in brief
    assert measure(moments_only, QUERIES, official=True)[1].keys() == brief.keys()
    # Query 2 lists [0 10] first, of IoU 0.8 with [0 8]; query 5 counts up to 0.7.
    assert (brief["MR-full-R1@0.5"], brief["MR-full-R1@0.7"]) == (100.0, 100.0)
    ten = [1, 7 / 10, 7 / 10 / 2, (4 * 5 / 6 + 6 / 2) / 10, 5 / 10]
    assert brief["MR-full-mAP"] == round(100 * sum(ten) / 5, 2) == 63.67


def test_contributions_of_queries_equal_the_hand_computed_ones():
    values_by_name = measure(PREDICTIONS, QUERIES)[1]
    none, fourth = float("nan"), (4 * 5 / 6 + 6 / 2) / 10
    by_query = {
        "MR-full-mAP": [1, 7 / 10, 7 / 10 / 2, fourth, 0],
        "MR-full-R5@0.7": [1, 1, 1, 1, 0],
        "MR-short-mAP": [none, 7 / 10 / 2, none, fourth, none],
        "MR-long-mAP": [none, 7 / 10, none, none, none],
        "HL-min-VeryGood-Hit1": [none, none, 1, none, 0],
    }
    for name, values in by_query.items():
        assert values_by_name[name].tolist() == pytest.approx([100 * value for value in values], abs=1e-9, nan_ok=True), name
    half = [Prediction(1, "one", "A", ((10, 20, 1.0),))], QUERIES[:1]  # IoU 10/20, which is enough at 0.5
    assert measure(*half)[1]["MR-full-R5@0.5"].tolist() == [100.0]
