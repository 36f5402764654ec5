"""A benchmark in one call: prepare, forecast, features, trainings over seeds, scores, and a table for a paper.

<out>/prepared/        what costl prepare writes
<out>/forecast.json    what was measured on a few videos
<out>/features.h5      the cache
<out>/trained-on.json  the features, annotations and videos of the trainings
<out>/runs/            the trainings, as costl study repeat lays them out
<out>/table.md, table.tex, table.csv, results.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.benchmarks.layouts import find_benchmark, find_layout
from costl.benchmarks.output import REPORT, PrepareReport
from costl.benchmarks.prepare import prepare
from costl.config import Config, load_config
from costl.config_files import benchmark_settings
from costl.data.annotations import Prediction, Query, parse_jsonl
from costl.data.queries import read_queries
from costl.pipeline.cache.inspect import WrittenCache
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError, UsageError, first_few
from costl.pipeline.formats.files import locked, publish
from costl.pipeline.progress import Progress, ProgressCallback
from costl.reproduce.forecast import Forecast, read_rates, work_left, write_rates
from costl.reproduce.official_files import compare_with_release
from costl.reproduce.results import Reproduction
from costl.reproduce.scores import refuse_unlabelled, score_seeds, unanswered
from costl.reproduce.sources import Source, choose_source
from costl.training.run_folder import annotation_digests

SPLIT = "test"
_CACHE, _PREPARED, _RUNS = "features.h5", "prepared", "runs"


@dataclass(frozen=True)
class _Job:
    """What was asked for: `settings` are those of the benchmark, changed by `overrides`."""

    name: str
    title: str
    out: Path
    source: Source
    seeds: int
    settings: Config
    overrides: Sequence[str]
    device: str
    progress: ProgressCallback | None

    @property
    def cache(self) -> Path:
        return self.out / _CACHE

    @property
    def runs(self) -> Path:
        return self.out / _RUNS

    @property
    def training(self) -> Mapping[str, Any]:
        """The arguments of every training."""
        return {"overrides": self.overrides, "device": self.device, "progress": self.progress}


def reproduce(
    name: str,
    *,
    annotations: Path,
    videos: Path | None = None,
    features: Mapping[str, Path] | None = None,
    text: Path | None = None,
    joint: str | None = None,
    seeds: int = 5,
    out: Path | None = None,
    allow_missing_videos: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: ProgressCallback | None = None,
    **chosen: Any,
) -> Reproduction:
    """Reproduces the benchmark `name` in the folder `out` (default: reproduce-NAME), and writes a table for a paper there.

    `annotations` is the folder of the official files. Features come from `videos`, by the fields of `ExtractSettings` in
    `chosen`, or are `features` that others published, with those of the sentences in `text` and `joint` as for
    `import_features`. With `allow_missing_videos`, queries about videos without features count 0, by strict rules. Whatever
    interrupted an earlier call, the same call continues it, and ends with the same tables on the same CPU.

    Raises UsageError for wrong arguments, annotations and folders, and for a disk that is too small, before the first video
    of the cache; CostlError for videos that fail unless `allow_missing_videos`; BusyError for a folder in which another call
    works; what `prepare`, `extract`, `import_features` and `repeat` raise.
    """
    benchmark = find_benchmark(name)
    source = choose_source(
        videos=videos,
        features=features or {},
        text=text,
        joint=joint,
        allow_missing=allow_missing_videos,
        device=device,
        chosen=chosen,
    )
    settings = load_config(benchmark_settings(name), overrides=overrides)
    find_layout(benchmark, annotations)  # refuses a wrong folder before anything is written
    folder = out or Path(f"reproduce-{name}")
    _refuse_other_files(folder)
    job = _Job(name, benchmark.title, folder, source, seeds, settings, overrides, device, progress)
    with _locked(folder):
        _report(progress, "prepare")
        report = prepare(
            name,
            annotations=annotations,
            out=folder / _PREPARED,
            videos=source.videos,
            allow_missing_videos=allow_missing_videos or source.videos is None,
            progress=progress,
        )
        release = compare_with_release(name, report.sources)
        _report(progress, "prepare", release, *report.notes)
        splits = _read_splits(report)
        refuse_unlabelled(splits[SPLIT], str(annotations))
        vids = _available(source, splits, allow_missing=allow_missing_videos)
        _forecast(job, splits, vids)
        cache = source.make_cache(folder / _PREPARED, job.cache, vids, progress)
        _report(progress, "features", *cache.messages())
        _refuse_failed(cache, allowed=allow_missing_videos)
        _refuse_other_inputs(job)
        return _train_and_score(job, release)


def _refuse_other_files(folder: Path) -> None:
    """Raises UsageError for a folder that has files and is not one of these."""
    is_ours = (folder / _PREPARED / REPORT).is_file()
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    others = sorted({*names} - {_PREPARED})
    if others and not is_ours:
        found = first_few(others)
        raise UsageError(f"{folder}: holds files that costl reproduce did not write ({found}). Choose another --out.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder, locks it, and removes the partial files of a call that was killed.

    Raises BusyError while another process works there.

    An interrupt loses its message, which is about a single training and not about this call.
    """
    message = f"{folder}: another costl reproduce works here. Wait for it, or choose another --out."
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(OSError):  # some network disks cannot lock
            stack.enter_context(locked(folder / ".lock", message))
        for temporary in folder.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None


def _report(progress: ProgressCallback | None, stage: str, *messages: str) -> None:
    if progress:
        progress(Progress(stage, bool(messages), 1, message="\n".join(messages)))


def _read_splits(report: PrepareReport) -> dict[str, list[Query]]:
    """The queries that `prepare` wrote, by split."""
    paths = {split: report.out / f"{split}.jsonl" for split in report.splits}
    return {split: parse_jsonl(path.read_text(encoding="utf-8"), str(path)) for split, path in paths.items()}


def _available(source: Source, splits: Mapping[str, Sequence[Query]], *, allow_missing: bool) -> list[str]:
    """The annotated videos that can have features.

    Raises UsageError for missing ones unless `allow_missing`, and if train or test has none at all.
    """
    annotated = {query.vid for queries in splits.values() for query in queries}
    vids = source.available(annotated)
    missing = sorted(annotated.difference(vids))
    if missing and not allow_missing:
        raise UsageError(
            f"{len(missing)} of {len(annotated)} annotated videos are missing: {first_few(missing)}. Add them, or pass "
            "--allow-missing-videos to go on without them."
        )
    for split in ("train", SPLIT):
        if not {query.vid for query in splits[split]} & set(vids):
            raise UsageError(f"None of the annotated videos of {split} is there. Check --videos or --features.")
    return vids


def _forecast(job: _Job, splits: Mapping[str, Sequence[Query]], vids: Sequence[str]) -> None:
    """Reports how much time and disk the rest takes. Raises UsageError for a disk that is too small."""
    path = job.out / "forecast.json"
    rates = read_rates(path)
    if rates is None:
        from costl.reproduce.measure import choose_sample, measure  # loads torch, which a refusal does not need

        train = [query for query in splits["train"] if job.settings.data.domain in ("", query.domain)]
        rates = measure(
            job.source,
            choose_sample(train, vids, limit=job.settings.train.batch_size),
            settings_file=job.out / _PREPARED / "costl.yaml",
            out=job.out,
            **job.training,
        )
        write_rates(path, rates)
    work = work_left(
        splits,
        vids,
        job.settings,
        fps=rates.fps,
        seeds=job.seeds,
        cache=job.cache,
        runs=job.runs,
    )
    if not (work.videos or work.trainings):
        return
    forecast = Forecast(rates, work)
    forecast.refuse_small_disk(job.out, hint=job.source.smaller)
    _report(job.progress, "forecast", forecast.message(job.out))


def _refuse_failed(cache: WrittenCache, *, allowed: bool) -> None:
    """Raises CostlError for videos without features, unless these are allowed."""
    if cache.failed and not allowed:
        names = first_few(row.name for row in cache.failed)
        raise CostlError(
            f"{len(cache.failed)} videos have no features: {names}. {cache.failed[0].name}: {cache.failed[0].reason} Repair "
            "them and run the same command again, or pass --allow-missing-videos to go on without them."
        )


def _refuse_other_inputs(job: _Job) -> None:
    """Records what the trainings learn from. Raises UsageError if those of an earlier call learned from something else."""
    features = CacheReader(job.cache)
    inputs = {
        "features": features.digest,
        "annotations": annotation_digests(features),
        "videos": sorted(features.video_ids),
    }
    path = job.out / "trained-on.json"
    earlier: dict[str, Any] = {}
    if not path.exists():
        publish(path, (json.dumps(inputs, indent=1) + "\n").encode())
        return
    with suppress(OSError, ValueError):  # a damaged file: nothing in it is what there is now
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
    changed = [name for name, value in inputs.items() if earlier.get(name) != value]
    if changed:
        raise UsageError(
            f"{job.out}: its trainings learned from other {' and '.join(changed)} than there are now. Choose another --out, "
            f"or delete {job.runs} and {path} to train again."
        )


def _train_and_score(job: _Job, release: str) -> Reproduction:
    """Trains what is not trained yet, scores every selection of the checkpoint, and writes the tables."""
    from costl.experiments.repeat import repeat, selections, trained_domains
    from costl.reproduce.methods import describe_features, describe_methods

    repeats = repeat(job.cache, seeds=job.seeds, split=SPLIT, out=job.runs, **job.training)
    features = CacheReader(job.cache)
    settings = load_config(features.settings, overrides=job.overrides)
    names = [split for split in ("train", "val", SPLIT) if split in features.splits]
    splits = {split: read_queries(features, split, domain=settings.data.domain) for split in names}
    queries = splits[SPLIT]
    domains, left_out = trained_domains(features, settings, SPLIT)
    weights = selections(features, settings)
    predictions = {name: _predictions(job, domains, kind) for name, kind in weights.items()}
    missing = unanswered(queries, [rows for by_seed in predictions.values() for rows in by_seed])
    scores = {
        name: score_seeds(by_seed, queries, benchmark=job.name, official=not missing)
        for name, by_seed in predictions.items()
    }
    methods = describe_methods(
        title=job.title,
        release=release,
        features=features,
        splits=splits,
        settings=settings,
        changes=job.overrides,
        seeds=job.seeds,
        selections=list(weights),
        versions=_versions(job.runs / domains[0] / "seed-0"),
        official=not missing,
        left_out=left_out,
    )
    result = Reproduction(
        folder=job.out,
        benchmark=job.name,
        title=job.title,
        features=describe_features(features),
        scores=scores,
        qids=[query.qid for query in queries],
        official=not missing,
        unanswered=len(missing),
        methods=methods,
        notes=repeats.notes,
    )
    result.write()
    return result


def _predictions(job: _Job, domains: Sequence[str], weights: str) -> list[list[Prediction]]:
    """The predictions of each seed for all domains."""
    from costl.experiments.scored_runs import stored_predictions

    folders = [[job.runs / domain / f"seed-{seed}" for domain in domains] for seed in range(job.seeds)]
    return [[row for run in runs for row in stored_predictions(run, SPLIT, weights)] for runs in folders]


def _versions(run: Path) -> dict[str, str]:
    """The versions of the libraries that trained a run."""
    return dict(json.loads((run / "run.json").read_text(encoding="utf-8"))["versions"])
