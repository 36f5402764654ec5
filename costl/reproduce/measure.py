"""Measures the rates of a reproduction on a few of its videos, in a folder that is removed again."""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from costl.benchmarks.common import to_row
from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.experiments.scored_runs import with_stage_prefix
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.data_folder import SETTINGS_FILE
from costl.pipeline.errors import CostlError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.reproduce.forecast import Rates
from costl.reproduce.sources import Source

VIDEOS = 6
EPOCHS = 3  # of a single step; the first one also pays for what is done once
_PREFIX = ".measure-"


class StageTimer:
    """A progress callback that adds up the seconds of each stage, and forwards what it receives."""

    def __init__(self, forward_to: ProgressCallback | None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._forward_to = forward_to
        self._last = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        """Counts the time since the last report for the stage of this one."""
        now = time.perf_counter()
        self.seconds[progress.stage] += now - self._last
        self._last = now
        if self._forward_to:
            self._forward_to(progress)


def choose_sample(queries: Sequence[Query], vids: Iterable[str], *, limit: int) -> list[Query]:
    """Up to `limit` of the queries, about VIDEOS of the videos `vids` at equal distances in the order of their names."""
    by_vid: dict[str, list[Query]] = {vid: [] for vid in sorted(vids)}
    for query in queries:
        if query.vid in by_vid:
            by_vid[query.vid].append(query)
    groups = [group for group in by_vid.values() if group]
    chosen = groups[:: max(1, len(groups) // VIDEOS)][:VIDEOS]
    in_turn = [query for turn in zip_longest(*chosen) for query in turn if query]
    return in_turn[:limit]


def measure(
    source: Source,
    queries: Sequence[Query],
    *,
    settings_file: Path,
    out: Path,
    overrides: Sequence[str],
    device: str,
    progress: ProgressCallback | None,
) -> Rates:
    """The rates of extracting the videos of these training queries, and of training on them in one batch.

    Works in a hidden folder in `out`, and removes those of earlier calls that were killed. Raises CostlError if none of the
    videos can be used.
    """
    for left_over in out.glob(f"{_PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with TemporaryDirectory(prefix=_PREFIX, dir=out) as name:
        folder = Path(name)
        annotations = _write_annotations(folder / "annotations", queries, settings_file)
        timer = StageTimer(with_stage_prefix("measure", progress))
        cache = folder / "features.h5"
        vids = {query.vid for query in queries}
        report = source.make_cache(annotations, cache, vids, timer)
        features = CacheReader(cache)
        rows = [row for row in features.rows if row.ok]
        if not rows:
            raise CostlError(f"None of the {len(vids)} videos that were tried has features: {report.failed[0].reason}")
        clips = sum(row.clips for row in rows)
        sentences = len({query.query for query in queries})
        train_s, predict_s, run_s = _measure_training(features, folder / "run", overrides, device)
        return Rates(
            videos=len(rows),
            fps=features.fps,
            clip_s=(timer.seconds["videos"] + timer.seconds["frames"]) / clips,  # the second name is that of a single video
            clip_bytes=_bytes(parts_folder(cache).glob("*.h5")) / clips,
            sentence_bytes=_bytes((parts_folder(cache) / "words").glob("*.h5")) / sentences,
            train_s=train_s,
            predict_s=predict_s,
            run_s=run_s,
            run_bytes=_bytes((folder / "run").rglob("*")),
        )


def _write_annotations(folder: Path, queries: Sequence[Query], settings_file: Path) -> Path:
    folder.mkdir()
    lines = (json.dumps(to_row(query), ensure_ascii=False) + "\n" for query in queries)
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(settings_file, folder / SETTINGS_FILE)
    return folder


def _measure_training(
    features: CacheReader, run: Path, overrides: Sequence[str], device: str
) -> tuple[float, float, float]:
    """Seconds of a query in an epoch of training and in a prediction, and of a training apart from its epochs."""
    from costl.predict.loaded_run import open_run
    from costl.train import train
    from costl.training.run_folder import read_rows, read_run

    started = time.perf_counter()
    settings = [*overrides, f"train.epochs={EPOCHS}", "train.folds=0", "train.splice=0", "train.pseudo_labels=0"]
    train(features.path, overrides=settings, out=run, device=device)
    took_s = time.perf_counter() - started
    epochs_s = [row["seconds"] for row in read_rows(read_run(run), up_to=EPOCHS)]
    loaded = open_run(run, device=device)
    queries = read_queries(features, "train", domain=loaded.run.config.data.domain)
    answered = len(loaded.predict(queries))
    started = time.perf_counter()
    loaded.predict(queries)
    predict_s = (time.perf_counter() - started) / answered
    return fmean(epochs_s[1:]) / answered, predict_s, took_s - sum(epochs_s)


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
