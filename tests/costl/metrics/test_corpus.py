"""Corpus metrics against an evaluator written with plain loops, against hand-worked numbers, and their files."""

from __future__ import annotations

import json
import math
import random

import pytest

from costl.metrics.corpus import CorpusTruth, TrueMoment, score_corpus
from costl.metrics.corpus_files import (
    read_rankings,
    read_truth,
    score_corpus_files,
    truth_of_split,
    write_rankings,
)
from costl.metrics.output import CorpusScores
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import parse_jsonl
from costl.search.export.formats import format_hits
from costl.search.hits import Hit, SearchResult

# The oracle: one sentence at a time, without numpy.


def overlap(a, b) -> float:
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inside / ((a[1] - a[0]) + (b[1] - b[0]) - inside)


def is_hit(moment, truth, threshold) -> bool:
    video, start, end, _ = moment
    return any(t.video == video and overlap((start, end), (t.start_s, t.end_s)) >= threshold for t in truth)


def ranked(moments) -> list:
    """Best first, by insertion: a moment passes only those with a lower score."""
    result: list = []
    for moment in moments:
        position = len(result)
        while position and result[position - 1][3] < moment[3]:
            position -= 1
        result.insert(position, moment)
    return result


def recall(hits, k) -> float:
    return 1.0 if True in hits[:k] else 0.0


def video_hits(moments, truth) -> list[bool]:
    order: list[str] = []
    for moment in moments:
        if moment[0] not in order:
            order.append(moment[0])
    return [video in [t.video for t in truth] for video in order]


def single_video_recall(moments, truth, threshold, k) -> float:
    videos = sorted({t.video for t in truth})
    values = [recall([is_hit(m, truth, threshold) for m in moments if m[0] == video], k) for video in videos]
    return sum(values) / len(values)


def ndcg(moments, truth) -> float:
    used: set[int] = set()
    gain = 0.0
    for rank, (video, start, end, _) in enumerate(moments[:10]):
        best = None
        for i, t in enumerate(truth):
            if t.video == video and i not in used:
                key = (overlap((start, end), (t.start_s, t.end_s)), t.relevance)
                if best is None or key > best[0]:
                    best = (key, i)
        if best and best[0][0] >= 0.5:
            used.add(best[1])
            gain += (2 ** truth[best[1]].relevance - 1) / math.log2(rank + 2)
    ideal = sorted([t.relevance for t in truth], reverse=True)[:10]
    return gain / sum((2**r - 1) / math.log2(i + 2) for i, r in enumerate(ideal))


def oracle(rankings, truth) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for row in truth:
        if not row.moments:
            continue
        moments = ranked(rankings[row.sentence])
        values = {"NDCG10@0.5": ndcg(moments, row.moments)}
        for k in (1, 10, 100):
            values[f"VR-R{k}"] = recall(video_hits(moments, row.moments), k)
            for threshold in (0.5, 0.7):
                hits = [is_hit(moment, row.moments, threshold) for moment in moments]
                values[f"VCMR-R{k}@{threshold}"] = recall(hits, k)
                values[f"SVMR-R{k}@{threshold}"] = single_video_recall(moments, row.moments, threshold, k)
        for name, value in values.items():
            sums.setdefault(name, []).append(value)
    return {name: 100 * sum(values) / len(values) for name, values in sums.items()}


def oracle_rejection(rankings, truth) -> tuple[float, float]:
    best = {row.sentence: max((m[3] for m in rankings[row.sentence]), default=-math.inf) for row in truth}
    present = [best[row.sentence] for row in truth if row.moments]
    absent = [best[row.sentence] for row in truth if not row.moments]
    wins = sum(2 * (p > a) + (p == a) for p in present for a in absent)
    accepting = [t for t in present if 100 * sum(p >= t for p in present) >= 95 * len(present)]
    refused = sum(a < max(accepting) for a in absent) / len(absent)
    return 100 * (wins / (2 * len(present) * len(absent))), 100 * refused


def random_moment(rng, scores) -> tuple[str, float, float, float]:
    start = rng.randrange(0, 12)
    return rng.choice("abcde"), float(start), float(start + rng.randrange(1, 6)), rng.choice(scores)


def random_case(seed: int):
    """A few sentences: ties of scores, overlaps and relevances, duplicates, empty rankings, absent sentences."""
    rng = random.Random(seed)
    scores = [0.1, 0.2, 0.5, 0.9] if seed % 2 else [rng.random() for _ in range(200)]
    truth, rankings = [], {}
    for i in range(rng.randrange(4, 40)):
        moments = [random_moment(rng, [1.0, 2.0, 3.0, 4.0]) for _ in range(rng.choice([0, 1, 1, 2, 5, 14]))]
        moments = moments or ([random_moment(rng, [1.0])] if i == 0 else [])
        truth.append(CorpusTruth(f"sentence {i}", tuple(TrueMoment(*moment) for moment in moments)))
        answer = [random_moment(rng, scores) for _ in range(rng.choice([0, 1, 3, 12, 30, 130]))]
        rankings[f"sentence {i}"] = answer + answer[: rng.choice([0, 0, 2])]
    return rankings, truth


@pytest.mark.parametrize("seed", range(30))
def test_every_number_equals_that_of_plain_loops(seed):
    rankings, truth = random_case(seed)
    metrics = score_corpus(rankings, truth)
    expected = oracle(rankings, truth)
    # Means of fractions differ in their last bits with the order of the sum, as logarithms do.
    for name in [name for name in expected if name.startswith(("SVMR", "NDCG"))]:
        assert metrics["corpus"].pop(name) == pytest.approx(expected.pop(name), rel=1e-12)
    assert metrics["corpus"] == expected
    if any(not row.moments for row in truth):
        part = metrics["rejection"]["all"]
        assert (part["AUROC"], part["refused"]) == oracle_rejection(rankings, truth)
    else:
        assert "rejection" not in metrics


A = TrueMoment("a", 0, 10, 4)
B = TrueMoment("b", 20, 30, 2)
FIRST = ("a", 0.0, 10.0, 0.9)
# The second of two equal predictions cannot take the same true moment: 15 at rank 1, 3 at rank 3.
TWICE = (15 + 3 / 2) / (15 + 3 / math.log2(3))
HAND_WORKED = {
    "all true moments in order": ([FIRST, ("b", 20, 30, 0.8)], {"VCMR-R1@0.7": 100, "SVMR-R1@0.7": 100, "NDCG10@0.5": 100}),
    "a true moment counts once": (
        [FIRST, ("a", 0, 10, 0.8), ("b", 20, 30, 0.7)],
        {"VR-R1": 100, "NDCG10@0.5": 100 * TWICE},
    ),
    "an IoU of exactly a half counts": ([("a", 0, 5, 1)], {"VCMR-R1@0.5": 100, "VCMR-R1@0.7": 0, "SVMR-R1@0.5": 50}),
    "the right times in a wrong video": ([("c", 0, 10, 1)], {"VCMR-R100@0.5": 0, "VR-R100": 0, "SVMR-R100@0.5": 0}),
    "a video counts once in VR": (
        [("c", i, i + 1, 1 - i / 100) for i in range(50)] + [("a", 40, 50, 0)],
        {"VR-R1": 0, "VR-R10": 100, "VCMR-R100@0.5": 0, "NDCG10@0.5": 0},
    ),
    "the list is ranked by score": ([("c", 0, 10, 0.1), FIRST], {"VCMR-R1@0.5": 100, "VR-R1": 100}),
    "no answer": ([], {"VCMR-R100@0.5": 0, "VR-R100": 0, "SVMR-R100@0.5": 0, "NDCG10@0.5": 0}),
}


@pytest.mark.parametrize("case", HAND_WORKED)
def test_numbers_worked_out_by_hand(case):
    moments, expected = HAND_WORKED[case]
    metrics = score_corpus({"s": moments}, [CorpusTruth("s", (A, B))])
    assert {name: metrics["corpus"][name] for name in expected} == pytest.approx(expected)
    assert metrics["scored"] == {"present": 1, "absent": 0}


def case_with_groups(present=19, absent=(("object", 0.2), ("event", 0.6), ("object", -1.0), ("event", 0.95))):
    truth = [CorpusTruth(f"p{i}", (A,)) for i in range(present)]
    rankings = {f"p{i}": [("a", 0.0, 10.0, 0.5 + i / 100)] for i in range(present)}
    for i, (group, score) in enumerate(absent):
        truth.append(CorpusTruth(f"x{i}", absent=group))
        rankings[f"x{i}"] = [("a", 0.0, 1.0, score)] if score >= 0 else []
    return rankings, truth


def test_rejection_of_all_absent_sentences_and_of_each_group():
    metrics = score_corpus(*case_with_groups())
    rejection = metrics["rejection"]
    assert {name: part["absent"] for name, part in rejection.items()} == {"all": 4, "event": 2, "object": 2}
    # 19 of 19 present sentences are needed for 95 %: the threshold is 0.5, and 0.2 and an empty answer are below.
    assert {name: part["refused"] for name, part in rejection.items()} == {"all": 50, "event": 0, "object": 100}
    assert rejection["object"]["AUROC"] == 100
    # 0.6 ties with one present score and is below eight; 0.95 is above all.
    assert rejection["event"]["AUROC"] == pytest.approx(100 * 8.5 / 38)
    twenty = score_corpus(*case_with_groups(present=20))["rejection"]["all"]
    assert twenty["refused"] == 50  # now one of 20 may be below the threshold, which is 0.51


def test_intervals_contain_the_numbers_and_shrink_with_more_sentences():
    widths = []
    for seed, copies in ((1, 1), (1, 8)):
        rankings, truth = random_case(seed)
        many = [CorpusTruth(f"{row.sentence} {i}", row.moments) for row in truth for i in range(copies)]
        answers = {f"{row.sentence} {i}": rankings[row.sentence] for row in truth for i in range(copies)}
        metrics = score_corpus(answers, many)
        numbers = metrics["corpus"] | {name: metrics["rejection"]["all"][name] for name in ("AUROC", "refused")}
        intervals = metrics["intervals"] | metrics["rejection"]["all"]["intervals"]
        assert numbers.keys() == intervals.keys()
        assert all(low <= numbers[name] + 1e-9 and numbers[name] <= high + 1e-9 for name, (low, high) in intervals.items())
        widths.append(intervals["AUROC"][1] - intervals["AUROC"][0])
    assert widths[1] < widths[0] / 2


REFUSED = {
    "a sentence twice": ({"s": []}, [CorpusTruth("s", (A,))] * 2, "'s': occurs more than once in the truth"),
    "no ranking": ({}, [CorpusTruth("s", (A,))], "'s': has no ranking. A sentence without an answer has an empty one"),
    "no truth": ({"s": [], "t": []}, [CorpusTruth("s", (A,))], "'t': is ranked, but is not in the truth"),
    "nothing present": ({"s": []}, [CorpusTruth("s")], "none of its 1 sentences is true in a video"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rankings_that_do_not_fit_the_truth_are_refused(case):
    rankings, truth, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        score_corpus(rankings, truth)


TRUTH_ROWS = [
    {"split": "test", "sentence": "a dog", "kind": "presence", "videos": {"v1.mp4": [[2, 8, 3]], "v2": [[0, 4]]}},
    {"split": "test", "sentence": "a cat", "absent": "object", "videos": {}},
    {"split": "val", "sentence": "a dog", "videos": {"v3": [[0, 2]]}},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_truth_file_has_a_corpus_for_each_split(tmp_path):
    path = jsonl(tmp_path / "corpus.jsonl", TRUTH_ROWS)
    dog = CorpusTruth("a dog", (TrueMoment("v1", 2, 8, 3), TrueMoment("v2", 0, 4, 1)))
    assert read_truth(path) == read_truth(path, "test") == [dog, CorpusTruth("a cat", absent="object")]
    assert read_truth(path, "val") == [CorpusTruth("a dog", (TrueMoment("v3", 0, 2),))]
    with pytest.raises(UsageError, match="no split 'train', only 'test', 'val'"):
        read_truth(path, "train")
    without_splits = [{name: value for name, value in row.items() if name != "split"} for row in TRUTH_ROWS[:2]]
    assert read_truth(jsonl(path, without_splits), "val") == [dog, CorpusTruth("a cat", absent="object")]


def test_annotations_make_a_sentence_true_in_its_own_videos(tmp_path):
    rows = [
        {"qid": 1, "query": "a dog", "vid": "v1", "duration": 20, "relevant_windows": [[2, 8], [10, 12]]},
        {"qid": 2, "query": "a dog", "vid": "v2", "duration": 20, "relevant_windows": [[0, 4]]},
        {"qid": 3, "query": "unlabelled", "vid": "v2", "duration": 20},
    ]
    path = jsonl(tmp_path / "test.jsonl", rows)
    moments = (TrueMoment("v1", 2, 8), TrueMoment("v1", 10, 12), TrueMoment("v2", 0, 4))
    assert read_truth(path) == [CorpusTruth("a dog", moments)]


def test_the_truth_of_a_split_is_next_to_its_videos_or_in_its_queries(tmp_path):
    text = json.dumps({"qid": 1, "query": "a dog", "vid": "v1", "duration": 20, "relevant_windows": [[2, 8]]})
    queries = parse_jsonl(text, "test.jsonl")
    own = [CorpusTruth("a dog", (TrueMoment("v1", 2, 8),))]
    assert truth_of_split("test", queries, videos=tmp_path) == truth_of_split("test", queries, videos=None) == own
    path = jsonl(tmp_path / "corpus.jsonl", TRUTH_ROWS)
    with pytest.raises(UsageError, match=r"not in split 'test': v2\. Is it of another set of videos"):
        truth_of_split("test", queries, videos=tmp_path)
    jsonl(path, [{"split": "test", "sentence": "a dog", "videos": {"v1": [[0, 2]]}}])
    assert truth_of_split("test", queries, videos=tmp_path) == [CorpusTruth("a dog", (TrueMoment("v1", 0, 2),))]


def test_rankings_are_read_as_they_were_written_and_scored(tmp_path):
    rankings = {"a dog": [("v2", 0.0, 4.0, 0.75), ("v1", 0.0, 1.0, 0.5)], "a cat": []}
    path = tmp_path / "rankings.jsonl"
    write_rankings(path, rankings)
    assert read_rankings(path) == {name: tuple(moments) for name, moments in rankings.items()}
    truth = jsonl(tmp_path / "corpus.jsonl", TRUTH_ROWS)
    metrics = score_corpus_files(path, truth)
    assert metrics == score_corpus(rankings, read_truth(truth))
    assert (metrics["corpus"]["VCMR-R1@0.5"], metrics["corpus"]["SVMR-R1@0.5"]) == (100, 50)
    scores = CorpusScores(metrics)
    assert any(line.startswith("| VCMR, IoU 0.5 | 100.00") for line in scores.lines())
    assert any("NDCG@10, IoU 0.5" in line for line in scores.lines())
    assert scores.messages() == ["1 sentences that are true in some video, 1 absent ones."]


def test_what_a_search_prints_as_jsonl_is_a_ranking(tmp_path):
    """What is below its threshold counts as well: rejection has a threshold of its own."""

    def hit(name, score) -> Hit:
        return Hit("a dog", name, tmp_path / name, 9.0, 1.0, 2.5, score)

    found = SearchResult("a dog", hits=(hit("new/v2.mp4", 0.75),), below=(hit("v1.mkv", 0.5),), videos=2)
    path = tmp_path / "hits.jsonl"
    path.write_text(format_hits([found, SearchResult("a cat", hits=())], "jsonl"))
    assert read_rankings(path) == {"a dog": (("new/v2", 1.0, 2.5, 0.75), ("v1", 1.0, 2.5, 0.5)), "a cat": ()}


BAD_TRUTH = {
    "": "no row in it, expected one JSON object a line",
    '{"sentence": "a"}': "1: 'videos' is None, expected an object",
    '{"sentence": "a", "videos": {"v": [2, 8]}}': "1: 'videos' holds",
    '{"sentence": "a", "videos": {"v": [[8, 2]]}}': r"1: 'videos' holds \[8, 2\], expected 0 <= start < end",
    '{"sentence": "a", "videos": {"v": [[2, 8, 0]]}}': "and a relevance above 0",
    '{"sentence": "a", "videos": {"v": [[2]]}}': r"expected \[start, end\] or \[start, end, relevance\]",
    '{"sentence": "a", "videos": {"v": [["2", 8]]}}': "holds the text '2', expected a number",
    '{"videos": {}}': "'sentence' is missing",
    '{"sentence": "a", "videos": {}}\n{"sentence": "a", "videos": {}}': "2: split '', sentence 'a' is already on line 1",
}
BAD_RANKINGS = {
    "": "no row in it, expected one JSON object a line",
    '{"sentence": "a"}': "sentence 'a' has no 'moments'",
    '{"sentence": "a", "moments": [["v", 0, 1]]}': r"expected \[video, start, end, score\]",
    '{"sentence": "a", "moments": [[7, 0, 1, 1]]}': r"expected \[video, start, end, score\]",
    '{"sentence": "a", "moments": [["v", 2, 1, 1]]}': "expected start <= end",
    '{"sentence": "a", "moments": [["v", 0, 1, NaN]]}': "is not JSON",
    '{"sentence": "a", "moments": "none"}': "'moments' holds 'none', expected a list of lists",
    '{"query": "a", "hits": {}}': "'hits' holds .*, expected a list of objects",
    '{"query": "a", "hits": [["v", 0, 1, 1]]}': "'hits' holds .*, expected a list of objects",
    '{"hits": []}': "'query' is missing",
    '{"query": "a", "hits": [{"start_s": 0, "end_s": 1, "score": 1}]}': "'name' is missing",
    '{"query": "a", "hits": [{"name": "v", "start_s": 0, "end_s": "1", "score": 1}]}': "'end_s' holds the text '1'",
    '{"query": "a", "hits": [{"name": "v", "start_s": 2, "end_s": 1, "score": 1}]}': "expected start <= end",
    '{"sentence": "a", "moments": []}\n{"sentence": "a", "moments": []}': "2: sentence 'a' is already on line 1",
}


@pytest.mark.parametrize("text", BAD_TRUTH)
def test_a_bad_truth_file_is_refused_with_its_line(text, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=BAD_TRUTH[text]):
        read_truth(path)


@pytest.mark.parametrize("text", BAD_RANKINGS)
def test_a_bad_ranking_file_is_refused_with_its_line(text, tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=BAD_RANKINGS[text]):
        read_rankings(path)
