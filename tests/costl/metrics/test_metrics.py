"""Metrics against published results, hand-computed numbers and a plain reference."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costl.data.annotations import Prediction, Query, parse_jsonl, parse_predictions
from costl.metrics.compute import compute_metrics, measure
from costl.metrics.moments import IOU_THRESHOLDS, interval_iou
from costl.pipeline.errors import UsageError

SHARED = Path(__file__).parents[4] / "shared" / "data"
FIXTURES = SHARED / "eval_fixtures"
TRUTH = {"val": "highlight_val_release.jsonl", "test": "highlight_test_with_gt.jsonl"}
RELEASED = [("cgdetr", "val"), ("cgdetr", "test"), ("moment_detr_sample", "val")]
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the published predictions are not here")


def query(qid=1, windows=((10, 30),), *, duration=150.0, clips=(), ratings=()) -> Query:
    return Query(qid, "a cat", f"v{qid}", duration, tuple(windows), tuple(clips), tuple(ratings))


def prediction(qid=1, windows=((10, 30, 1.0),), saliency=()) -> Prediction:
    return Prediction(qid, "a cat", f"v{qid}", tuple(windows), tuple(saliency))


def released(name: str, split: str) -> tuple[list[Prediction], list[Query]]:
    truth = SHARED / "annotations" / "qvhighlights" / TRUTH[split]
    predictions = FIXTURES / name / f"{split}_preds.jsonl"
    return parse_predictions(predictions.read_text(), predictions.name), parse_jsonl(truth.read_text(), truth.name)


# --- official: the published evaluator ---------------------------------------------------------------------------


@needs_fixtures
@pytest.mark.parametrize(("name", "split"), RELEASED)
@pytest.mark.promise(15)
def test_official_mode_gives_every_published_number_to_the_last_digit(name, split):
    expected = (FIXTURES / name / f"{split}_metrics_recomputed.json").read_text()
    assert compute_metrics(*released(name, split), official=True) == json.loads(expected)


@needs_fixtures
@pytest.mark.parametrize("benchmark", ["charades", "tacos"])
def test_the_fork_for_charades_and_tacos_is_reproduced_to_the_digit(benchmark):
    expected = json.loads((FIXTURES / "cgdetr" / "val_metrics_upstream.json").read_text())
    assert compute_metrics(*released("cgdetr", "val"), official=True, benchmark=benchmark) == expected


def test_the_fork_ends_long_at_150_s_and_gives_zeros_for_absent_lengths():
    queries = [query(1, [(0, 20)], duration=500), query(2, [(0, 400)], duration=500)]
    predictions = [prediction(1, [(0, 20, 1)]), prediction(2, [(0, 400, 1)])]
    metrics = compute_metrics(predictions, queries, official=True, benchmark="tacos")
    brief = metrics["brief"]
    assert brief["MR-full-mAP"] == brief["MR-full-mIoU"] == brief["MR-middle-mAP"] == 100
    assert brief["MR-short-mAP"] == brief["MR-long-mAP"] == 0
    assert metrics["short"]["MR-mAP"] == metrics["short"]["MR-R1"]
    assert set(metrics["long"]["MR-R1"].values()) == {0.0} and len(metrics["long"]["MR-R1"]) == 20
    values_by_name = measure(predictions, queries, official=True, benchmark="tacos")[1]
    # No query contributes to the zeros.
    assert "MR-middle-mAP" in values_by_name and not {"MR-short-mAP", "MR-long-mAP"} & values_by_name.keys()
    assert compute_metrics([], queries, benchmark="tacos")["full"].keys() == {"MR-mAP", "MR-R1", "MR-R5", "MR-mIoU"}


def test_official_mode_leaves_out_a_length_that_no_window_has():
    metrics = compute_metrics([prediction()], [query()], official=True)
    assert "notes" not in metrics
    assert metrics["brief"]["MR-middle-mAP"] == 100 and "MR-long-mAP" not in metrics["brief"]


def edge_cases():
    if not FIXTURES.is_dir():
        return [pytest.param(None, marks=needs_fixtures)]
    golden = json.loads((FIXTURES / "golden" / "qvhighlights_edge_cases.json").read_text())
    fill = golden["filler_preds"], golden["filler_gt"]
    return [
        pytest.param((case["preds"] + fill[0], case["gt"] + fill[1], case["metrics"]), id=case["name"])
        for case in golden["cases"]
    ]


@pytest.mark.parametrize("case", edge_cases())
def test_official_mode_has_every_quirk_of_the_published_evaluator(case):
    predictions, truth, expected = case
    metrics = compute_metrics(
        [Prediction.from_row(row) for row in predictions], [Query.from_row(row) for row in truth], official=True
    )
    assert metrics == expected


REFUSED = {
    "reversed_pred": "is not inside its video",
    "saliency_short_list": "saliency scores, its video",
    "saliency_long_list_argmax_outside": "saliency scores, its video",
    "saliency_negative_short": "saliency scores, its video",
    "odd_duration_int_truncation": "saliency scores, its video",
}


@pytest.mark.parametrize("case", edge_cases())
@pytest.mark.promise(15)
def test_strict_mode_is_right_or_refuses_where_the_published_one_is_not(case, request):
    rows = [Prediction.from_row(row) for row in case[0]], [Query.from_row(row) for row in case[1]]
    name = request.node.callspec.id
    if name in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[name]):
            compute_metrics(*rows)
        return
    metrics = compute_metrics(*rows)
    by_qid = {row.qid: row for row in rows[0]}
    pairs = [(by_qid[q.qid].windows, q.windows) for q in rows[1]]
    for threshold in IOU_THRESHOLDS:
        expected = np.mean([plain_average_precision(*pair, threshold) for pair in pairs])
        assert metrics["full"]["MR-mAP"][str(threshold)] == pytest.approx(100 * expected)
    best = [max(windows, key=lambda moment: moment[2]) for windows, _ in pairs]
    overlaps = [max(plain_iou(m, span) for span in truth) for m, (_, truth) in zip(best, pairs, strict=True)]
    for threshold in (0.3, 0.5, 0.7, 0.95):
        assert metrics["full"]["MR-R1"][str(threshold)] == pytest.approx(
            100 * np.mean([o >= threshold for o in overlaps])
        )


@needs_fixtures
def test_qvhighlights_val_is_scored_in_under_a_second():
    predictions, queries = released("cgdetr", "val")
    start = time.process_time()
    compute_metrics(predictions, queries, official=True)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("predictions", "queries", "part"),
    [
        ([prediction(1)], [query(1), query(2)], "query 2 has no predicted windows"),
        ([prediction(1), prediction(2, [])], [query(1), query(2)], "query 2 has no predicted windows"),
        ([prediction(1), prediction(2)], [query(1), query(2, [])], "query 2 has no true windows"),
        ([prediction(1), prediction(1)], [query(1)], "^predictions: query 1 occurs 2 times, expected once.$"),
        ([prediction(1), prediction(3)], [query(1)], "no query 3 in the truth"),
        ([], [query(1)], "^predictions: no windows and no saliency at all, expected a row for every query.$"),
        ([prediction(1, [])], [query(1)], "no windows and no saliency at all"),
    ],
)
def test_official_mode_refuses_what_the_published_evaluator_cannot_score(predictions, queries, part):
    with pytest.raises(UsageError, match=part):
        compute_metrics(predictions, queries, official=True)


def test_official_saliency_is_that_of_whole_clips_cut_or_filled_with_zeros():
    """5.5 s are two whole clips to the published evaluator, three to us."""
    rated = query(1, [], duration=5.5, clips=(1,), ratings=[(4, 4, 4)])
    both = {
        mode: compute_metrics([prediction(1, [], [0.1, 0.5, 0.9])], [rated], official=mode)["HL-min-Good"]
        for mode in (True, False)
    }
    assert both == {True: {"HL-mAP": 100.0, "HL-Hit1": 0.0}, False: {"HL-mAP": 50.0, "HL-Hit1": 0.0}}
    last = compute_metrics([prediction(1, [], [0.1, 0.9])], [rated], official=True)["HL-min-Good"]
    assert last == {"HL-mAP": 100.0, "HL-Hit1": 100.0}
    filled = compute_metrics(
        [prediction(1, [], [-1.0])], [dataclasses.replace(rated, clip_ids=(0,))], official=True
    )  # the zero of the clip without a score outranks it
    assert filled["HL-min-Good"] == {"HL-mAP": 50.0, "HL-Hit1": 100.0}
    with pytest.raises(UsageError, match=r"^query 1: clip 2 is rated, but its video has 2 clips\.$"):
        compute_metrics([prediction(1, [], [0.0])], [dataclasses.replace(rated, clip_ids=(2,))], official=True)


def test_official_map_takes_ten_listed_moments_and_accepts_reversed_ones():
    wrong = [(100 + i, 101 + i, 0.1) for i in range(10)]
    eleven = prediction(windows=[*wrong, (10, 30, 1.0)])
    metrics = {mode: compute_metrics([eleven], [query()], official=mode)["full"] for mode in (True, False)}
    assert metrics[True]["MR-mAP"]["average"] == 0 and metrics[False]["MR-mAP"]["average"] == 100
    assert "MR-R5" not in metrics[True] and "MR-mIoU" not in metrics[True]
    reversed_one = compute_metrics([prediction(windows=[(30, 10, 1.0)])], [query()], official=True)["full"]
    assert set(reversed_one["MR-mAP"].values()) == {100.0} and reversed_one["MR-R1"]["0.5"] == 0


def test_official_mode_leaves_out_what_the_first_row_did_not_attempt():
    rated = query(duration=4, windows=[(0, 1)], clips=(1,), ratings=[(4, 0)])
    without_moments = compute_metrics([prediction(windows=[], saliency=[0, 1])], [rated], official=True)
    without_saliency = compute_metrics([prediction(windows=[(0, 1, 1)])], [rated], official=True)
    assert "full" not in without_moments and "HL-min-Good" in without_moments
    assert "full" in without_saliency and "HL-min-Good" not in without_saliency


def test_notes_name_what_the_published_evaluator_scores_otherwise():
    spans = [(100, 120), (0, 150), (0, 150.5)]
    queries = [query(i, [span], duration=400) for i, span in enumerate(spans)]
    level = [prediction(i, [(*span, 0.5), (0, 1, 0.5)]) for i, span in enumerate(spans)]  # equal scores are sorted
    (note,) = compute_metrics(level, queries)["notes"]
    assert note.startswith("1 windows are longer than 150 s")
    ranked = query(1, [], duration=4, clips=(0, 1), ratings=[(1,), (2,)])
    odd = prediction(1, [(0, 1, 0.1), (0, 1, 0.9)], saliency=[0, 1])  # TVSum does not score windows
    assert compute_metrics([odd], [ranked], benchmark="tvsum")["notes"] == []


def test_a_window_may_end_0_01_s_outside_its_video_and_have_no_length():
    edges = [(-0.01, 10, 1), (10, 150.01, 1), (20, 20, 1)]
    assert compute_metrics([prediction(windows=edges)], [query()])["brief"]["MR-full-mIoU"] == 0  # the first only touches
    with pytest.raises(UsageError, match="not inside its video"):
        compute_metrics([prediction(windows=[(-0.011, 10, 1)])], [query()])


def test_a_video_of_one_clip_is_scored():
    metrics = compute_metrics([prediction(windows=[(0, 1, 1)], saliency=[1])], [query(windows=[(0, 1)], duration=2)])
    assert metrics["brief"]["MR-full-R1@0.7"] == 100


def test_measure_returns_both_metrics_and_contributions():
    both = [prediction(saliency=[0.0] * 75)], [query(clips=(5,), ratings=[(4, 4, 4)])]
    metrics, values_by_name = measure(*both)
    assert metrics == compute_metrics(*both)
    assert {name: values.tolist() for name, values in values_by_name.items()} == {
        name: values.tolist() for name, values in measure(*both)[1].items()
    }


def test_contributions_follow_the_rules_of_the_metrics():
    rated = [query(qid, duration=4 * qid, windows=[(0, 1)], clips=(1,), ratings=[(4, 0)]) for qid in (1, 2)]
    answers = [prediction(qid, [(0, 1, 1)], saliency=[0, 1, 0, 0] * qid) for qid in (1, 2)]
    values_by_name = measure(answers, rated, clip_s=1.0)[1]
    brief = compute_metrics(answers, rated, clip_s=1.0)["brief"]
    assert {name: float(np.nanmean(values)) for name, values in values_by_name.items()} == brief
    assert "MR-full-R5@0.5" in values_by_name and values_by_name["HL-min-Good-Hit1"].tolist() == [100.0, 100.0]


def test_official_mode_leaves_out_a_task_without_any_prediction():
    rated = [query(qid, [], duration=4, clips=(0,), ratings=[(4, 4, 4)]) for qid in (1, 2)]
    both = [prediction(qid, saliency=[1.0, 0.0]) for qid in (1, 2)]
    metrics = compute_metrics(both, rated, official=True)
    assert metrics["brief"]["HL-min-Good-mAP"] == 100 and "full" not in metrics
    with pytest.raises(UsageError, match="query 2 has no predicted saliency"):
        compute_metrics([prediction(1, [], saliency=[1.0, 0.0]), prediction(2, [])], rated, official=True)


def test_official_notes_are_about_moments_only():
    rated = query(1, [], duration=4, clips=(0,), ratings=[(4, 4, 4)])
    assert "notes" not in compute_metrics([prediction(windows=[], saliency=[1.0, 0.0])], [rated], official=True)


@pytest.mark.parametrize("official", [False, True])
def test_scoring_starts_no_process_and_prints_nothing(monkeypatch, capfd, official):
    def refuse(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr("os.fork", refuse)
    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    rated = query(clips=(5,), ratings=[(4, 4, 4)])
    compute_metrics([prediction(saliency=[1.0] * 75)], [rated], official=official)
    assert capfd.readouterr() == ("", "")


# --- strict: computed by hand ------------------------------------------------------------------------------------------


def test_a_perfect_prediction_scores_100_everywhere():
    windows = [(0, 10), (20, 40), (50, 100)]
    rated = query(windows=windows, clips=range(5), ratings=[(4, 4, 4)] * 5)
    metrics = compute_metrics(
        [prediction(windows=[(s, e, 1 - s / 100) for s, e in windows], saliency=[1.0] * 5 + [0.0] * 70)], [rated]
    )["brief"]
    # The published rule: other lengths' moments are not taken out of a length's list, here those ranked before.
    assert metrics.pop("MR-middle-mAP") == pytest.approx(50) and metrics.pop("MR-long-mAP") == pytest.approx(100 / 3)
    assert set(metrics.values()) == {100.0}


def test_iou_half_counts_at_half_and_mean_iou_is_its_mean():
    metrics = compute_metrics([prediction(1, [(10, 20, 1)]), prediction(2)], [query(1), query(2)])
    assert metrics["full"]["MR-R1"]["0.5"] == 100 and metrics["full"]["MR-R1"]["0.55"] == 50
    assert metrics["full"]["MR-mIoU"] == pytest.approx(75)
    assert metrics["full"]["MR-mAP"]["average"] == pytest.approx(55)


def test_a_second_hit_of_the_same_window_is_a_miss():
    metrics = compute_metrics(
        [prediction(windows=[(10, 30, 0.9), (10, 30, 0.8), (50, 70, 0.7)])], [query(windows=[(10, 30), (50, 70)])]
    )
    # Hits at rank 1 and 3: half the recall at precision 1, half at 2/3.
    assert metrics["full"]["MR-mAP"]["0.5"] == pytest.approx(100 * (1 / 2 + 2 / 3 / 2))


def test_strict_mode_ranks_moments_by_score_and_notes_it():
    metrics = compute_metrics([prediction(windows=[(60, 80, 0.1), (10, 30, 0.9)])], [query()])
    assert metrics["brief"]["MR-full-R1@0.7"] == 100
    assert metrics["notes"] == ["1 predictions are not sorted by score; the published evaluator takes the first for R1."]


@pytest.mark.parametrize("second", [[], [prediction(2, [])]])
def test_a_query_without_prediction_counts_zero_in_every_metric(second):
    queries = [query(qid, clips=(5,), ratings=[(4, 4, 4)]) for qid in (1, 2)]
    saliency = [1.0 if clip == 5 else 0.0 for clip in range(75)]
    metrics = compute_metrics([prediction(1, saliency=saliency), *second], queries)
    assert set(metrics["brief"].values()) == {50.0}
    empty_note = "1 queries have no predicted window and count 0; the published evaluator stops."
    missing_note = "NO ROW for 1 of 2 queries (2): each counts 0 in every number; the published evaluator stops."
    assert metrics["notes"] == [empty_note if second else missing_note]


def test_windows_longer_than_150_seconds_count_as_long():
    metrics = compute_metrics([prediction(windows=[(0, 400, 1)])], [query(windows=[(0, 400)], duration=500)])
    assert metrics["brief"]["MR-long-mAP"] == 100 and "longer than 150 s" in metrics["notes"][0]


@pytest.mark.parametrize(
    ("length_s", "strict", "official"),
    [
        (10, {"short"}, {"short"}),
        (10.5, {"middle"}, {"middle"}),
        (30, {"middle"}, {"middle"}),
        (30.5, {"long"}, {"long"}),
        (150, {"long"}, {"long"}),
        (150.5, {"long"}, set()),
    ],
)
def test_a_window_belongs_to_the_length_that_ends_with_its_own(length_s, strict, official):
    span = (10.0, 10.0 + length_s)
    task = [prediction(windows=[(*span, 1)])], [query(windows=[span], duration=300)]
    for mode, expected in ((False, strict), (True, official)):
        assert compute_metrics(*task, official=mode).keys() & {"short", "middle", "long"} == expected


def test_a_task_without_labels_is_left_out():
    metrics = compute_metrics([prediction(saliency=[0.0] * 75)], [query()])
    assert set(metrics) == {"brief", "full", "middle", "notes"}
    metrics = compute_metrics([prediction(saliency=[0.0] * 75)], [query(windows=[], clips=(0,), ratings=[(1, 2, 3)])])
    assert set(metrics) == {"brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood", "notes"}


def test_clips_may_have_another_length_and_any_number_of_raters():
    rated = query(windows=[], duration=4, clips=(1,), ratings=[(4, 0)])
    metrics = compute_metrics([prediction(windows=[], saliency=[0, 1, 0, 0])], [rated], clip_s=1.0)
    assert metrics["HL-min-VeryGood"] == {"HL-mAP": 50.0, "HL-Hit1": 100.0}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (prediction(windows=[(30, 10, 1)]), r"query 1: window \[30.0, 10.0\] is not inside its video of 150.0 s"),
        (prediction(windows=[(10, 151, 1)]), "not inside its video"),
        (prediction(windows=[(-1, 10, 1)]), "not inside its video"),
        (prediction(saliency=[0.0] * 74), "query 1 has 74 saliency scores, its video 75 clips"),
        (dataclasses.replace(prediction(), vid="other"), "query 1 names the video 'other', expected 'v1'"),
        (prediction(2), "no query 2 in the truth"),
    ],
)
@pytest.mark.promise(13)
def test_strict_mode_refuses_a_bad_row_by_name(row, part):
    with pytest.raises(UsageError, match=part):
        compute_metrics([row], [query()])


def test_an_unknown_benchmark_is_refused_with_the_known_names():
    with pytest.raises(UsageError, match="benchmark is 'qvhighlight', expected one of qvhighlights, charades, tacos"):
        compute_metrics([prediction()], [query()], benchmark="qvhighlight")


def test_labels_that_cannot_be_scored_are_refused():
    with pytest.raises(
        UsageError,
        match=r"^truth: none of its 1 queries has windows or rated clips, .* \(benchmark qvhighlights\)",
    ):
        compute_metrics([prediction()], [query(windows=[])])
    with pytest.raises(UsageError, match=r"^truth: none of its 1 queries has rated clips, .* \(benchmark tvsum\)"):
        compute_metrics([prediction()], [query()], benchmark="tvsum")
    with pytest.raises(UsageError, match=r"^truth: query 1 occurs 2 times, expected once"):
        compute_metrics([prediction()], [query(), query()])
    with pytest.raises(UsageError, match="query 2 has neither windows nor rated clips"):
        compute_metrics([prediction()], [query(), query(2, [])])
    with pytest.raises(UsageError, match=r"^clip 75 is rated, but there are 75 clips of two seconds in 150 s"):
        query(clips=(75,), ratings=[(4, 4, 4)])
    with pytest.raises(UsageError, match=r"^truth: query 1: clip 74 is rated, but its video has 37 clips"):
        compute_metrics([dataclasses.replace(prediction(), saliency=())], [query(clips=(74,), ratings=[(4, 4, 4)])], clip_s=4)


def test_iou_of_intervals_by_hand():
    iou = interval_iou(np.array([[0.0, 10.0], [0.0, 1.0], [5.0, 5.0]]), np.array([5.0, 15.0]))
    assert iou.tolist() == [pytest.approx(1 / 3), 0.0, 0.0]
    assert np.isnan(interval_iou(np.array([3.0, 3.0]), np.array([5.0, 5.0])))


@needs_fixtures
@pytest.mark.parametrize(("name", "split"), RELEASED)
@pytest.mark.promise(15)
def test_both_modes_agree_on_valid_predictions(name, split):
    predictions, queries = released(name, split)
    length_s = {query.qid: query.duration_s for query in queries}
    # Some released rows reach beyond their video or have one clip too few. Strict mode needs them corrected.
    corrected = [
        dataclasses.replace(
            row,
            windows=[(s, min(e, length_s[row.qid]), score) for s, e, score in row.windows if s < length_s[row.qid]],
            saliency=(row.saliency + (-100.0,) * 9)[: int(length_s[row.qid] / 2)],
        )
        for row in predictions
    ]
    strict, official = (compute_metrics(corrected, queries, official=mode)["brief"] for mode in (False, True))
    assert {name: pytest.approx(value, abs=0.00501) for name, value in strict.items() if name in official} == official


# --- strict: against a plain reference -----------------------------------------------------------------------------


def plain_iou(a, b) -> float:
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, shared) / (max(a[1], b[1]) - min(a[0], b[0])) if shared > 0 else 0.0


def plain_average_precision(windows, truth, threshold) -> float:
    matched: set[int] = set()
    points = []  # (precision, new recall) after every moment
    for rank, moment in enumerate(sorted(windows, key=lambda moment: -moment[2])[:10], start=1):
        free = [i for i in range(len(truth)) if i not in matched and plain_iou(moment, truth[i]) >= threshold]
        if free:
            matched.add(max(free, key=lambda i: (plain_iou(moment, truth[i]), i)))
        points.append((len(matched) / rank, bool(free)))
    return sum(max(p for p, _ in points[i:]) for i, (_, hit) in enumerate(points) if hit) / len(truth)


def plain_label_precision(labels, scores) -> float:
    if not any(labels):
        return 0.0
    points = {}  # number of positives -> best precision with at least that recall
    for level in sorted(set(scores)):
        above = [label for label, score in zip(labels, scores, strict=True) if score >= level]
        points.setdefault(sum(above), []).append(sum(above) / len(above))
    recalls = sorted(count for count in points if count)
    return float(np.mean([max(max(points[more]) for more in recalls if more >= count) for count in recalls]))


# Whole seconds on a short line and few scores, so that ties, touching windows and IoUs of just 0.5 are common.
spans = st.tuples(st.integers(0, 12), st.integers(1, 12)).map(lambda span: (span[0], span[0] + span[1]))
moments = st.lists(st.tuples(spans, st.integers(0, 3)).map(lambda pair: (*pair[0], pair[1] / 4)), max_size=12)
ratings = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=12, max_size=12)
saliencies = st.lists(st.integers(-2, 2), min_size=12, max_size=12)
tasks = st.lists(
    st.tuples(st.lists(spans, min_size=1, max_size=4), moments, ratings, saliencies), min_size=1, max_size=4
)
fewer_examples = settings(max_examples=settings.default.max_examples * 2 // 3, suppress_health_check=[HealthCheck.too_slow])


def build(tasks) -> tuple[list[Prediction], list[Query]]:
    predictions = [prediction(i, row[1], row[3]) for i, row in enumerate(tasks)]
    queries = [query(i, row[0], duration=24, clips=range(12), ratings=row[2]) for i, row in enumerate(tasks)]
    return predictions, queries


@fewer_examples
@given(tasks)
def test_moments_score_as_in_a_plain_reference(tasks):
    metrics = compute_metrics(*build(tasks))["full"]
    for threshold in IOU_THRESHOLDS:
        expected = np.mean([plain_average_precision(row[1], row[0], threshold) for row in tasks])
        assert metrics["MR-mAP"][str(threshold)] == pytest.approx(100 * expected)
    firsts = [sorted(row[1], key=lambda moment: -moment[2])[:1] for row in tasks]
    overlaps = [
        max((plain_iou(moment, span) for moment in first for span in row[0]), default=0.0)
        for first, row in zip(firsts, tasks, strict=True)
    ]
    assert metrics["MR-mIoU"] == pytest.approx(100 * np.mean(overlaps))
    fives = [
        max((plain_iou(m, span) for m in sorted(row[1], key=lambda m: -m[2])[:5] for span in row[0]), default=0.0)
        for row in tasks
    ]
    for threshold in (0.3, 0.5, 0.7):
        expected = np.mean([overlap >= threshold for overlap in overlaps])
        assert metrics["MR-R1"][str(threshold)] == pytest.approx(100 * expected)
        assert metrics["MR-R5"][str(threshold)] == pytest.approx(100 * np.mean([iou >= threshold for iou in fives]))


@fewer_examples
@given(tasks, st.sampled_from(["qvhighlights", "charades", "tacos"]), st.booleans())
def test_every_headline_number_is_the_mean_of_its_contributions(tasks, benchmark, official):
    predictions, queries = build(tasks)
    if official and not all(row.windows for row in predictions):
        return  # refused by name, see above
    options = {"benchmark": benchmark, "official": official}
    brief = compute_metrics(predictions, queries, **options)["brief"]
    values_by_name = measure(predictions, queries, **options)[1]
    without_contributions = {name for name in brief if name not in values_by_name}
    assert values_by_name.keys() <= brief.keys() and all(brief[name] == 0 for name in without_contributions)
    assert official or not without_contributions
    for name, values in values_by_name.items():
        assert values.shape == (len(queries),)
        assert np.nanmean(values) == pytest.approx(brief[name], abs=0.00501 if official else 1e-9)


@fewer_examples
@given(tasks)
def test_strict_charades_and_tacos_are_the_strict_numbers_of_qvhighlights(tasks):
    wanted = compute_metrics(*build(tasks))
    assert wanted == compute_metrics(*build(tasks), benchmark="charades")
    assert wanted == compute_metrics(*build(tasks), benchmark="tacos")


@fewer_examples
@given(tasks)
def test_highlights_score_as_in_a_plain_reference(tasks):
    metrics = compute_metrics(*build(tasks))
    for name, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        precisions, hits = [], []
        for _, _, rated, scores in tasks:
            columns = [[rating >= least for rating in column] for column in zip(*rated, strict=True)]
            precisions += [plain_label_precision(column, scores) for column in columns]
            hits.append(max(column[scores.index(max(scores))] for column in columns))
        assert metrics[f"HL-min-{name}"]["HL-mAP"] == pytest.approx(100 * np.mean(precisions))
        assert metrics[f"HL-min-{name}"]["HL-Hit1"] == pytest.approx(100 * np.mean(hits))


@fewer_examples
@given(tasks, st.randoms(use_true_random=False))
@pytest.mark.promise(14)
def test_metrics_are_within_0_and_100_and_independent_of_row_order(tasks, random):
    predictions, queries = build(tasks)
    before = compute_metrics(predictions, queries)["brief"]
    assert all(0 <= value <= 100 for value in before.values())
    random.shuffle(predictions)
    random.shuffle(queries)
    after = compute_metrics(predictions, queries)["brief"]
    assert after == {name: pytest.approx(value) for name, value in before.items()}


@fewer_examples
@given(tasks, st.data())
def test_a_perfect_first_moment_never_costs_recall(tasks, data):
    predictions, queries = build(tasks)
    row = data.draw(st.integers(0, len(tasks) - 1))
    perfect = (*data.draw(st.sampled_from(queries[row].windows)), 2.0)
    better = list(predictions)
    better[row] = dataclasses.replace(better[row], windows=(perfect, *better[row].windows))
    before, after = compute_metrics(predictions, queries)["full"], compute_metrics(better, queries)["full"]
    for kind in ("MR-R1", "MR-R5"):
        assert all(after[kind][threshold] >= value for threshold, value in before[kind].items())
    assert after["MR-mIoU"] >= before["MR-mIoU"] - 1e-9
    only = compute_metrics([better[row]], [queries[row]])["full"]
    assert set(only["MR-R1"].values()) == {100.0} and only["MR-mIoU"] == 100.0


@fewer_examples
@given(tasks)
def test_predicting_exactly_the_truth_scores_100(tasks):
    _, queries = build(tasks)
    best = [prediction(q.qid, [(*window, 1.0) for window in q.windows], [0.0] * 12) for q in queries]
    metrics = compute_metrics(best, queries)["full"]
    assert {*metrics["MR-R1"].values(), *metrics["MR-mAP"].values(), *metrics["MR-R5"].values()} == {100.0}


@fewer_examples
@given(tasks)
def test_a_further_moment_at_the_end_never_costs_precision(tasks):
    predictions, queries = build(tasks)
    fewer = [dataclasses.replace(p, windows=sorted(p.windows, key=lambda m: -m[2])[:-1]) for p in predictions]
    assert (
        compute_metrics(predictions, queries)["brief"]["MR-full-mAP"]
        >= compute_metrics(fewer, queries)["brief"]["MR-full-mAP"] - 1e-9
    )
