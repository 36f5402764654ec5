"""Rankings of clips of TVSum and YouTube Highlights: published values and a plain reference."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.data.annotations import Prediction, Query
from costl.metrics.compute import benchmark_of, compute_metrics, measure
from costl.metrics.highlights import TVSUM, score_rankings, score_ratings, sequential_sum
from costl.pipeline.errors import UsageError

SHARED = Path(__file__).parents[4] / "shared" / "data"
GOLDEN = SHARED / "eval_fixtures" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the published values are not here")


def prediction(query: Query, saliency) -> Prediction:
    return Prediction(query.qid, query.query, query.vid, (), tuple(saliency))


def tvsum(qid, ratings, domain="") -> Query:
    rows = tuple(map(tuple, ratings))
    return Query(qid, "a title", f"v{qid}", 2.0 * len(rows), (), tuple(range(len(rows))), rows, domain=domain)


def youtube(qid, ratings, domain="") -> Query:
    # Windows that overlap by half, as those of YouTube Highlights do.
    windows = tuple((1.7 * i, 1.7 * i + 3.4) for i in range(len(ratings)))
    rows = tuple((float(rating),) for rating in ratings)
    return Query(qid, "dog", f"v{qid}", windows[-1][1], (), tuple(range(len(rows))), rows, windows, domain)


# --- published values ---------------------------------------------------------------------------------------------


def tvsum_labels() -> dict[str, Query]:
    rows = [json.loads(line) for line in (SHARED / "annotations/tvsum/tvsum_val.jsonl").read_text().splitlines()]
    # Ratings from 0. Each rater is compared with their own median, so that the shift changes nothing.
    return {row["vid"]: tvsum(row["vid"], np.array(row["label"]) - 1, row["domain"]) for row in rows}


def youtube_labels(golden) -> list[Query]:
    labels = json.loads((SHARED / "annotations/youtube_highlights/youtube_anno.json").read_text())
    return [
        youtube(vid, [2 * match + 2 for match in labels[vid]["match"]], case["domain"])
        for case in golden
        for vid in case["preds"]
    ]


@needs_golden
@pytest.mark.parametrize("official", [False, True])
def test_tvsum_top_5_is_that_of_the_published_code(official):
    cases, labels = json.loads((GOLDEN / "tvsum_top5.json").read_text())["cases"], tvsum_labels()
    queries = [labels[case["vid"]] for case in cases]
    for key, saliency in (
        ("mAP_random", lambda case, query: case["pred_random"]),
        ("mAP_mean_annotator", lambda case, query: np.mean(query.saliency, axis=1).tolist()),
    ):
        predictions = [prediction(query, saliency(case, query)) for case, query in zip(cases, queries, strict=True)]
        brief = compute_metrics(predictions, queries, benchmark="tvsum", official=official)["brief"]
        expected = {f"HL-top5-mAP-{case['domain']}": 100 * case[key] for case in cases}
        for name, value in expected.items():
            assert brief[name] == (pytest.approx(value, abs=1e-9) if official else pytest.approx(value, abs=0.000501))
        assert brief["HL-top5-mAP"] == pytest.approx(np.mean(list(expected.values())), abs=0.000501)


@needs_golden
@pytest.mark.parametrize("official", [False, True])
def test_youtube_map_is_that_of_the_published_code(official):
    golden = json.loads((GOLDEN / "youtube_map.json").read_text())["cases"]
    queries = youtube_labels(golden)
    scores = {vid: scores for case in golden for vid, scores in case["preds"].items()}
    predictions = [prediction(query, scores[query.qid]) for query in queries]
    brief = compute_metrics(predictions, queries, benchmark="youtube-highlights", official=official)["brief"]
    for case in golden:
        expected = pytest.approx(100 * case["mAP"], abs=1e-9 if official else 0.000501)
        assert brief[f"HL-mAP-{case['domain']}"] == expected
    assert brief["HL-mAP"] == pytest.approx(100 * np.mean([case["mAP"] for case in golden]), abs=0.000501)


# --- a plain reference ---------------------------------------------------------------------------------------------


def plain_area(labels) -> float:
    """Area under precision over recall, as the sum of trapezoids between neighbouring points."""
    if not sum(labels):
        return 0.0
    points = [(0.0, 1.0)]
    for rank in range(1, len(labels) + 1):
        points.append((sum(labels[:rank]) / sum(labels), sum(labels[:rank]) / rank))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def plain_ranking(scores) -> list[int]:
    return sorted(range(len(scores)), key=lambda clip: (-scores[clip], clip))


def plain_top5(ratings, scores) -> float:
    areas = []
    for column in zip(*ratings, strict=True):
        median = sorted(column)[(len(column) - 1) // 2]
        areas.append(plain_area([column[clip] > median for clip in plain_ranking(scores)[:5]]))
    return sum(areas) / len(areas)


def plain_map(ratings, scores) -> float:
    return plain_area([ratings[clip] > 2 for clip in plain_ranking(scores)])


def plain_mean_over_domains(values, domains) -> float:
    means = [np.mean([v for v, d in zip(values, domains, strict=True) if d == name]) for name in set(domains)]
    return float(np.mean(means))


clips = st.integers(1, 9)
videos = st.lists(
    clips.flatmap(
        lambda n: st.tuples(
            st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=n, max_size=n),
            st.lists(st.integers(-2, 2), min_size=n, max_size=n) | st.just([]),
            st.sampled_from(["", "BK", "dog"]),
        )
    ),
    min_size=1,
    max_size=5,
)


@given(videos, st.randoms(use_true_random=False))
def test_tvsum_scores_as_in_a_plain_reference_in_any_order(rows, random):
    queries = [tvsum(i, ratings, domain) for i, (ratings, _, domain) in enumerate(rows)]
    predictions = [prediction(q, scores) for q, (_, scores, _) in zip(queries, rows, strict=True)]
    expected = [plain_top5(ratings, scores) if scores else 0.0 for ratings, scores, _ in rows]
    check(predictions, queries, "tvsum", "HL-top5-mAP", expected, random)


@given(videos, st.randoms(use_true_random=False))
def test_youtube_scores_as_in_a_plain_reference_in_any_order(rows, random):
    first = [[rating[0] for rating in ratings] for ratings, _, _ in rows]
    queries = [youtube(i, ratings, row[2]) for i, (ratings, row) in enumerate(zip(first, rows, strict=True))]
    predictions = [prediction(q, scores) for q, (_, scores, _) in zip(queries, rows, strict=True)]
    expected = [plain_map(ratings, row[1]) if row[1] else 0.0 for ratings, row in zip(first, rows, strict=True)]
    check(predictions, queries, "youtube-highlights", "HL-mAP", expected, random)


def check(predictions, queries, benchmark, name, expected, random) -> None:
    domains = [query.domain for query in queries]
    metrics = compute_metrics(predictions, queries, benchmark=benchmark)
    assert metrics["brief"][name] == pytest.approx(100 * plain_mean_over_domains(expected, domains))
    for domain in set(domains) - {""}:
        own = [value for value, d in zip(expected, domains, strict=True) if d == domain]
        assert metrics["brief"][f"{name}-{domain}"] == pytest.approx(100 * np.mean(own))
        assert metrics["domains"][domain]["videos"] == len(own)
    empty = sum(not p.saliency for p in predictions)
    assert [
        note for note in metrics["notes"] if note.startswith(f"{empty} queries have no predicted saliency")
    ] == metrics["notes"]
    assert len(metrics["notes"]) == bool(empty)
    for number, values in measure(predictions, queries, benchmark=benchmark)[1].items():
        assert np.nanmean(values) == pytest.approx(metrics["brief"][number])
    pairs = list(zip(predictions, queries, strict=True))
    random.shuffle(pairs)
    again = compute_metrics([p for p, _ in pairs], [q for _, q in pairs][::-1], benchmark=benchmark)["brief"]
    assert again == {key: pytest.approx(value) for key, value in metrics["brief"].items()}


# --- by hand, and refusals ----------------------------------------------------------------------------------------


def test_top_5_by_hand():
    # One annotator; the lower median of 0 0 1 2 3 4 is 1, so that clips 3, 4 and 5 are positive.
    query = tvsum(1, [[0], [0], [1], [2], [3], [4]])
    metrics = compute_metrics([prediction(query, [9, 0, 8, 7, 6, 1])], [query], benchmark="tvsum")
    # Ranked 0 2 3 4 5: precision 0 0 1/3 1/2 3/5 at recalls 0 0 1/3 2/3 1, starting from precision 1.
    assert metrics["brief"] == {
        "HL-top5-mAP": pytest.approx(100 / 3 * ((0 + 1 / 3) + (1 / 3 + 1 / 2) + (1 / 2 + 3 / 5)) / 2)
    }


def test_only_official_rankings_are_rounded():
    """One positive at the third rank: precision 0, 0, 1/3; one trapezoid of (0 + 1/3) / 2 = 1/6."""
    rated = youtube(0, [1, 3, 1], "dog")
    ranked = prediction(rated, [0.5, 0.1, 0.9])
    metrics = {
        mode: compute_metrics([ranked], [rated], benchmark="youtube-highlights", official=mode)
        for mode in (True, False)
    }
    assert metrics[True]["brief"]["HL-mAP"] == 16.667
    assert metrics[False]["brief"]["HL-mAP"] == pytest.approx(100 / 6, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "area", "percent"),
    [  # the area on paper; rounded to six decimals before it is to five, each would end otherwise
        ("0111001", 349 / 672, 51.935),  # 0.519345238...
        ("1011001", 475 / 672, 70.685),  # 0.706845238...
        ("0010111", 1241 / 3360, 36.935),  # 0.369345238...
        ("00010101", 1213 / 5040, 24.067),  # 0.240674603...
    ],
)
def test_official_rankings_are_rounded_once(labels, area, percent):
    rated = youtube(0, [4 if digit == "1" else 0 for digit in labels])
    ranked = prediction(rated, range(len(labels), 0, -1))
    brief, exact = (
        compute_metrics([ranked], [rated], benchmark="youtube-highlights", official=mode)["brief"]
        for mode in (True, False)
    )
    assert brief == {"HL-mAP": percent} and exact == {"HL-mAP": pytest.approx(100 * area)}


def test_lists_of_different_length_raise_an_error():
    rated = [tvsum(i, [[4], [0]]) for i in (1, 2)]
    predictions = [prediction(rated[0], [1.0, 0.0])]
    with pytest.raises(ValueError, match="zip"):
        score_rankings(predictions, rated, TVSUM)
    with pytest.raises(ValueError, match="zip"):
        score_ratings(predictions, rated, official=False, clip_s=2.0)


def test_a_query_without_ratings_has_no_number():
    unrated = Query(1, "a title", "v1", 8.0)
    assert np.isnan(score_rankings([prediction(unrated, [1, 2, 3, 4])], [unrated], TVSUM)).all()


def test_sequential_sum_adds_each_column():
    assert sequential_sum(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [4.0, 6.0]


def test_only_rated_clips_are_ranked():
    query = dataclasses.replace(tvsum(1, [[0], [4], [0]]), duration_s=8.0)  # a fourth clip without ratings
    assert compute_metrics([prediction(query, [0, 1, 0, 9])], [query], benchmark="tvsum")["brief"]["HL-top5-mAP"] == 100


def test_official_mode_cuts_where_strict_mode_refuses():
    query = tvsum(1, [[0], [4], [0], [4]])
    with pytest.raises(UsageError, match="query 1 has 2 saliency scores, its video 4 clips"):
        compute_metrics([prediction(query, [0, 1])], [query], benchmark="tvsum")
    metrics = compute_metrics([prediction(query, [0, 1])], [query], benchmark="tvsum", official=True)
    assert metrics["brief"] == {"HL-top5-mAP": 100.0}


def test_the_expected_length_is_that_of_the_rated_windows():
    query = youtube(1, [4, 0, 4])
    with pytest.raises(UsageError, match="query 1 has 4 saliency scores, its video 3 clips"):
        compute_metrics([prediction(query, [1, 2, 3, 4])], [query], benchmark="youtube-highlights")


def test_rankings_without_labels_or_predictions_are_refused():
    query = tvsum(1, [[0], [4]])
    plain = Query(2, "a cat", "v2", 4.0, ((0.0, 2.0),))
    with pytest.raises(UsageError, match=r"none of its 1 queries has rated clips.*\(benchmark tvsum\)"):
        compute_metrics([], [plain], benchmark="tvsum")
    with pytest.raises(UsageError, match="query 2 has no rated clips, unlike others"):
        compute_metrics([], [query, plain], benchmark="tvsum")
    with pytest.raises(UsageError, match="query 1 has no predicted saliency"):
        compute_metrics([Prediction(1, "q", "v1", ((0, 2, 1),))], [query], benchmark="tvsum", official=True)


def test_the_benchmark_follows_from_the_labels():
    windows = Query(1, "a cat", "v", 4.0, ((0.0, 2.0),), domain="cats")
    assert benchmark_of([windows]) == "qvhighlights"
    assert benchmark_of([tvsum(1, [[1]], "BK")]) == "tvsum"
    assert benchmark_of([tvsum(1, [[1]])]) == "qvhighlights"
    assert benchmark_of([youtube(1, [1])]) == "youtube-highlights"
