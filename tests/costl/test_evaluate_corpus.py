"""A run evaluated as a search over all videos of a split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.evaluate import evaluate
from costl.evaluate_corpus import evaluate_corpus, ground_corpus
from costl.metrics.corpus import CorpusTruth, TrueMoment, score_corpus
from costl.metrics.corpus_files import read_rankings, read_truth
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.predict.loaded_run import open_run
from costl.train import train


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def best_first(loaded, sentence: str, queries: list[Query]) -> list:
    """All moments of all videos, each pair predicted on its own."""
    durations = {query.vid: query.duration_s for query in queries}
    moments = []
    for vid in sorted(durations):
        (prediction,) = loaded.predict([Query(0, sentence, vid, durations[vid])])
        moments += [(vid, *window) for window in prediction.windows]
    return sorted(moments, key=lambda moment: -moment[3])


def test_every_sentence_is_grounded_in_every_video_and_scored(world, copy):
    scores = evaluate_corpus(copy, device="cpu")
    truth = read_truth(world.videos / "corpus.jsonl", "test")
    assert scores.metrics["scored"] == {
        "present": sum(bool(row.moments) for row in truth),
        "absent": sum(not row.moments for row in truth),
    }
    assert set(scores.metrics["rejection"]) >= {"all", "object"}
    folder = copy / "eval-test"
    rankings = read_rankings(folder / "corpus-rankings.jsonl")
    assert score_corpus(rankings, truth) == scores.metrics == json.loads((folder / "corpus-metrics.json").read_text())
    loaded = open_run(copy, device="cpu")
    queries = read_queries(loaded.features, "test")
    for sentence in (queries[0].query, truth[-1].sentence):
        expected = best_first(loaded, sentence, queries)
        assert {vid for vid, *_ in rankings[sentence]} == {"test_0000", "test_0001"}
        assert len(rankings[sentence]) == len(expected)
        for moment, other in zip(rankings[sentence], expected, strict=True):
            assert moment[0] == other[0] and moment[1:] == pytest.approx(other[1:], abs=1e-4)


class ManyVideos:
    """A stand-in for a run: video i has two moments with scores that fall with i."""

    def predict(self, pairs):
        from costl.data.annotations import Prediction

        return [
            Prediction(q.qid, q.query, q.vid, ((0, 1, 1 - int(q.vid[1:]) / 1000), (1, 2, 0.5 - int(q.vid[1:]) / 1000)))
            for q in pairs
        ]


def test_a_ranking_has_what_metrics_count_and_no_more():
    durations = {f"v{i:03d}": 10.0 for i in range(300)}
    truth = [CorpusTruth("s", (TrueMoment("v250", 0, 1),)), CorpusTruth("absent")]
    progress: list[int] = []
    rankings = ground_corpus(ManyVideos(), truth, durations, lambda p: progress.append(p.done))
    assert [moment[0] for moment in rankings["absent"]] == [f"v{i:03d}" for i in range(100)]
    assert rankings["s"] == [*rankings["absent"], ("v250", 0.0, 1.0, 0.75), ("v250", 1.0, 2.0, 0.25)]
    assert progress == list(range(301))
    metrics = score_corpus(rankings, truth)["corpus"]
    assert (metrics["VR-R100"], metrics["VCMR-R100@0.5"], metrics["SVMR-R1@0.7"]) == (0, 0, 100)


def test_without_a_corpus_file_the_annotations_are_the_truth(world, copy, tmp_path):
    small = world.copy(tmp_path / "copy")
    (small.videos / "corpus.jsonl").unlink(missing_ok=True)
    metrics = evaluate_corpus(copy, cache=small.cache, device="cpu").metrics
    texts = {query.query for query in read_queries(CacheReader(world.cache), "test")}
    assert metrics["scored"] == {"present": len(texts), "absent": 0} and "rejection" not in metrics


def truth_file(path: Path, *rows: tuple[str, dict]) -> Path:
    lines = [json.dumps({"split": "test", "sentence": sentence, "videos": videos}) + "\n" for sentence, videos in rows]
    path.write_text("".join(lines))
    return path


def test_sentences_without_words_in_the_cache(world, copy, tmp_path):
    known = read_queries(CacheReader(world.cache), "test")[0].query
    truth = truth_file(tmp_path / "t.jsonl", (known, {"test_0000": [[0, 4]]}), ("no such words", {}))
    scores = evaluate_corpus(copy, truth=truth, device="cpu")
    assert scores.metrics["scored"] == {"present": 1, "absent": 0}
    assert any("1 absent sentences have no words in" in message for message in scores.messages())
    truth_file(truth, ("no such words", {"test_0000": [[0, 4]]}))
    with pytest.raises(CacheError, match=r"no words of 1 queries of 'test'.*'no such words'"):
        evaluate_corpus(copy, truth=truth, device="cpu")
    truth_file(truth, (known, {"val_0000": [[0, 4]]}))
    with pytest.raises(UsageError, match="not in split 'test': val_0000"):
        evaluate_corpus(copy, truth=truth, device="cpu")


def test_an_evaluation_reports_rejection_of_wrong_videos(world, copy):
    metrics = evaluate(copy, device="cpu").metrics["rejection"]["wrong video"]
    true_videos = {row.sentence: {m.video for m in row.moments} for row in read_truth(world.videos / "corpus.jsonl")}
    queries = read_queries(CacheReader(world.cache), "test")
    askable = [query for query in queries if len(true_videos[query.query]) < 2]
    assert (metrics["present"], metrics["absent"]) == (len(queries), len(askable))
    loaded = open_run(copy, device="cpu")
    wrong = {"test_0000": "test_0001", "test_0001": "test_0000"}

    def best(query: Query, vid: str) -> float:
        (prediction,) = loaded.predict([Query(0, query.query, vid, query.duration_s)])
        return prediction.windows[0][2]

    present = [best(query, query.vid) for query in queries]
    absent = [best(query, wrong[query.vid]) for query in askable]
    wins = sum((p > a) + (p == a) / 2 for p in present for a in absent)
    assert metrics["AUROC"] == pytest.approx(100 * wins / len(present) / len(absent))


def test_a_corpus_file_of_something_else_stops_only_a_corpus_evaluation(world, copy, tmp_path):
    small = world.copy(tmp_path / "copy")
    (small.videos / "corpus.jsonl").write_text('{"text": "a corpus of sentences"}\n')
    assert evaluate(copy, cache=small.cache, device="cpu").metrics["rejection"]["wrong video"]["absent"] > 0
    with pytest.raises(UsageError, match=r"corpus\.jsonl:1: 'sentence' is missing"):
        evaluate_corpus(copy, cache=small.cache, device="cpu")


def costl(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_scores_a_run_and_the_rankings_that_it_wrote(world, copy):
    first = costl("evaluate", "--corpus", "--run", copy, "-q", "--device", "cpu")
    assert first.exit_code == 0 and "| VCMR, IoU 0.5" in first.stdout and "| object" in first.stdout, first.output
    rankings = copy / "eval-test" / "corpus-rankings.jsonl"
    truth = world.videos / "corpus.jsonl"
    again = costl("evaluate", "--corpus", "--predictions", rankings, "--truth", truth)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    as_json = costl("evaluate", "--corpus", "--predictions", rankings, "--truth", truth, "--split", "test", "--json")
    assert json.loads(as_json.stdout) == json.loads((copy / "eval-test" / "corpus-metrics.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--corpus --predictions p.jsonl", "belong together: give both"),
        ("--corpus --predictions p.jsonl --truth t.jsonl --run r", "--corpus with --predictions cannot be combined with --run"),
        ("--corpus --official", "--corpus cannot be combined with --official"),
        ("--corpus --submission z.zip", "--corpus cannot be combined with --submission"),
    ],
)
def test_options_that_exclude_each_other(arguments, message):
    result = costl("evaluate", *arguments.split())
    assert result.exit_code == 2 and message in result.stderr
