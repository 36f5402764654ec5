"""Evaluates a run as a search: every sentence of a split is grounded in every video of the split, then scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from costl.data import queries as splits
from costl.data.annotations import Query
from costl.metrics.corpus import RANKS, CorpusTruth, RankedMoment, score_corpus
from costl.metrics.corpus_files import is_own_rankings, truth_of_split, write_rankings
from costl.metrics.output import CorpusScores, write_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.formats.annotations import plain_name
from costl.pipeline.formats.files import refuse_overwrite
from costl.pipeline.progress import Progress, ProgressCallback
from costl.predict.loaded_run import LoadedRun, open_run

RANKINGS, METRICS = "corpus-rankings.jsonl", "corpus-metrics.json"


def evaluate_corpus(
    run: Path | None = None,
    *,
    split: str = "test",
    truth: Path | None = None,
    cache: Path | None = None,
    weights: str = "best",
    out: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> CorpusScores:
    """The corpus metrics of a run (by default the newest in `runs/`) on the videos of a split; see `score_corpus`.

    `truth` is a corpus.jsonl or an annotation file; by default the corpus.jsonl next to the videos, and without one the
    annotations of the split, in which a sentence is true in its own videos alone. Each sentence is grounded in each video
    that has features, so the time grows with sentences times videos. Writes corpus-rankings.jsonl and corpus-metrics.json
    to `out`, by default `eval-<split>/` in the run.

    Raises UsageError and CacheError as `costl.evaluate.evaluate` does, and UsageError for a truth that names other videos.
    """
    if out is not None:
        _refuse_other_files(out, overwrite=overwrite)
    loaded = open_run(run, cache=cache, weights=weights, device=device)
    features = loaded.features
    queries = splits.read_queries(features, split, domain=loaded.run.config.data.domain)
    rows, notes = _searched(truth_of_split(split, queries, videos=features.videos, truth=truth), features, split)
    first = queries[0]
    sentences = [Query(i, row.sentence, first.vid, first.duration_s) for i, row in enumerate(rows)]
    splits.check_queries(sentences, features, split=split)
    rankings = ground_corpus(loaded, rows, {query.vid: query.duration_s for query in queries}, progress)
    metrics = score_corpus(rankings, rows)
    folder = out or loaded.run.folder / f"eval-{split}"
    write_rankings(folder / RANKINGS, rankings)
    write_metrics(folder / METRICS, metrics)
    return CorpusScores(metrics, (*notes, f"Rankings and metrics: {folder}/"))


def _refuse_other_files(folder: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a file that would be replaced and is not an earlier output, unless `overwrite`."""
    refuse_overwrite(folder / RANKINGS, is_ours=is_own_rankings, overwrite=overwrite)
    refuse_overwrite(folder / METRICS, is_ours=lambda content: content.startswith(b'{\n  "corpus": {'), overwrite=overwrite)


def ground_corpus(
    loaded: LoadedRun,
    truth: Sequence[CorpusTruth],
    durations_s: Mapping[str, float],
    progress: ProgressCallback | None = None,
) -> dict[str, list[RankedMoment]]:
    """The ranked moments of each sentence in these videos, as far as metrics count them.

    They are the first 100, the best one of each of the first 100 videos, and all of the videos in which the sentence is true;
    so memory does not grow with the number of videos. `durations_s` are those of the videos. A video without features has no
    moments.
    """
    report_progress = progress or (lambda _: None)
    true_videos = {row.sentence: {moment.video for moment in row.moments} for row in truth}
    rankings: dict[str, list[RankedMoment]] = {row.sentence: [] for row in truth}
    report_progress(Progress("ground", 0, len(durations_s)))
    for done, (vid, duration_s) in enumerate(sorted(durations_s.items()), start=1):
        pairs = [Query(i, row.sentence, vid, duration_s) for i, row in enumerate(truth)]
        for prediction in loaded.predict(pairs):
            moments = rankings[prediction.query] + [(plain_name(vid), *window) for window in prediction.windows]
            rankings[prediction.query] = _counted(moments, true_videos[prediction.query])
        report_progress(Progress("ground", done, len(durations_s), vid))
    return rankings


def _counted(moments: Sequence[RankedMoment], true_videos: Collection[str]) -> list[RankedMoment]:
    """The moments that metrics count, best first; equal scores keep their order."""
    counted = []
    videos: set[str] = set()
    for rank, moment in enumerate(sorted(moments, key=lambda moment: -moment[3])):
        is_best_of_video = moment[0] not in videos and len(videos) < max(RANKS)
        videos.add(moment[0])
        if rank < max(RANKS) or is_best_of_video or moment[0] in true_videos:
            counted.append(moment)
    return counted


def _searched(
    truth: Sequence[CorpusTruth], features: CacheReader, split: str
) -> tuple[list[CorpusTruth], list[str]]:
    """The sentences that can be searched, and a note about absent ones without words in the cache, which are left out."""
    words = features.word_table()
    searched = [row for row in truth if row.moments or row.sentence in words]
    missing = len(truth) - len(searched)
    note = f"{split}: {missing} absent sentences have no words in {features.path} and are left out."
    return searched, [note] if missing else []
