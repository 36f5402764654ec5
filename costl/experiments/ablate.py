"""Trains variants of the model with several seeds, and compares each with the full model, paired by seed.

<out>/<variant>/seed-<n>/     one run folder for each training
<out>/ablation.json, .md      every number, and the tables
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from joblib import Parallel, delayed

from costl.config import load_config
from costl.config_files import Layer
from costl.data.queries import read_queries
from costl.experiments.scored_runs import score_unless_done, train_unless_finished, with_stage_prefix
from costl.experiments.tables import Ablation, Numbers, Row, markdown
from costl.experiments.untrained_baselines import chance, choose_zero_shot, zero_shot
from costl.experiments.variants import Variant, choose_variants, resolve
from costl.model.build import build_model_for_cache
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, ProgressCallback
from costl.training.run_folder import legacy_label, read_run

OUT = Path("ablation")


@dataclass(frozen=True)
class _Job:
    """One training and its evaluations: everything that another process needs."""

    variant: Variant
    seed: int
    folder: Path
    cache: Path
    config: tuple[Layer, ...]
    overrides: tuple[str, ...]
    splits: tuple[str, ...]
    device: str

    @property
    def name(self) -> str:
        return f"{self.variant.name} seed {self.seed}"

    @property
    def changes(self) -> list[str]:
        return [*self.overrides, *self.variant.overrides, f"train.seed={self.seed}"]


def ablate(
    cache: Path,
    *,
    seeds: int = 3,
    variants: Iterable[str] = (),
    splits: Sequence[str] = ("test",),
    config: Sequence[Layer] = (),
    overrides: Iterable[str] = (),
    out: Path = OUT,
    jobs: int = 1,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> Ablation:
    """Trains each variant with seeds 0 .. `seeds` - 1, scores every run on `splits`, and compares seed by seed.

    `variants`: names of standard variants or YAML files (see `costl.experiments.variants`), by default the standard list.
    The full model is always included. `config` and `overrides` apply to all variants. The checkpoint of a run is the one
    selected on validation. Runs in `out` that are finished are reused, and interrupted ones are resumed. `jobs` trainings
    run in parallel and share the cores. Before any training it raises UsageError for wrong settings or splits, for a
    variant that does not fit the cache, and where `out` has runs with other settings.
    """
    report_progress = progress or (lambda _: None)
    if seeds < 1 or jobs < 1:
        raise UsageError(f"seeds is {seeds} and jobs is {jobs}, expected at least 1 of each.")
    features = CacheReader(cache)
    base = tuple(overrides)
    scored_splits = tuple(dict.fromkeys(splits))
    layers = [features.settings, *config]
    patches = features.patch_grid[0] * features.patch_grid[1]
    rate = load_config(*layers, overrides=base).train.learning_rate
    chosen, notes = resolve(choose_variants(variants, patches=patches, learning_rate=rate), layers, base)
    all_jobs = [
        _Job(variant, seed, out / variant.name / f"seed-{seed}", cache, tuple(config), base, scored_splits, device)
        for seed in range(seeds)  # all variants of a seed first: they can be compared early
        for variant in chosen
    ]
    _check(all_jobs, chosen, features)
    references = _references(features, scored_splits, report_progress)
    by_seed: dict[str, dict[int, Mapping[str, Numbers]]] = {variant.name: {} for variant in chosen}
    for job, numbers, job_notes in _run_all(all_jobs, jobs, report_progress):
        by_seed[job.variant.name][job.seed] = numbers
        notes += [note for note in job_notes if note not in notes]
    rows = [Row(v.name, v.overrides, tuple(by_seed[v.name][seed] for seed in range(seeds))) for v in chosen]
    result = Ablation(out, scored_splits, tuple(range(seeds)), tuple(references), tuple(rows), tuple(notes))
    publish(out / "ablation.json", (json.dumps(result.data(), indent=2) + "\n").encode())
    publish(out / "ablation.md", markdown(result).encode())
    return result


def _check(jobs: Sequence[_Job], chosen: Sequence[Variant], features: CacheReader) -> None:
    """Raises UsageError for what would otherwise stop the ablation half-way: splits, models that do not fit the cache,
    folders with other runs."""
    selection_splits = [split for split in {v.config.train.select_on for v in chosen} if split in features.splits]
    for split in ("train", *selection_splits):
        read_queries(features, split)
    for split in jobs[0].splits:
        if not any(query.windows or query.clip_ids for query in read_queries(features, split)):
            raise UsageError(f"{features.path}: split {split!r} has no labels, so that nothing can be compared on it.")
    problems = []
    for variant in chosen:
        try:
            build_model_for_cache(variant.config, features)
        except UsageError as error:
            problems.append(f"variant {variant.name}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    for job in jobs:
        if (job.folder / "run.json").exists():
            expected = replace(job.variant.config, train=replace(job.variant.config.train, seed=job.seed))
            if read_run(job.folder).config != expected:
                raise UsageError(
                    f"{job.folder}: was trained with other settings. Delete it, or choose another folder with --out."
                )


def _references(features: CacheReader, splits: Sequence[str], report_progress: ProgressCallback) -> Iterator[Row]:
    """Chance, and zero-shot CLIP where frames and sentences share a space: one row each, without seeds."""
    report_progress(Progress("references", 0, 2))
    yield Row("chance", (), ({split: chance(features, split).brief for split in splits},))
    if features.joint.is_known:
        settings, how = choose_zero_shot(features)
        numbers = {split: zero_shot(features, split, settings, how).brief for split in splits}
        yield Row("zero-shot CLIP", (), (numbers,))
    report_progress(Progress("references", 2, 2))


_JobResult = tuple[_Job, Mapping[str, Numbers], tuple[str, ...]]  # the job, its numbers by split, its notes


def _run_all(all_jobs: Sequence[_Job], parallel: int, report_progress: ProgressCallback) -> Iterator[_JobResult]:
    """The result of every job as it finishes: one after the other in this process, or `parallel` in processes."""
    count = len(all_jobs)
    if parallel == 1:
        for number, job in enumerate(all_jobs, start=1):
            yield _run(job, with_stage_prefix(f"{number}/{count} {job.name}", report_progress))
        return
    threads = max(1, _cores() // parallel)
    report_progress(Progress("ablate", 0, count))
    results = Parallel(n_jobs=parallel, return_as="generator_unordered", batch_size=1)(
        delayed(_run_in_process)(job, threads) for job in all_jobs
    )
    for number, result in enumerate(results, start=1):
        report_progress(Progress("ablate", number, count, result[0].name))
        yield result


def _run_in_process(job: _Job, threads: int) -> _JobResult:
    import torch  # in the process that trains

    torch.set_num_threads(threads)
    return _run(job, None)


def _run(job: _Job, progress: ProgressCallback | None) -> _JobResult:
    """Trains a run unless it is finished, and scores it on every split unless that is done."""
    features = CacheReader(job.cache)
    notes = train_unless_finished(
        job.folder, features, config=job.config, overrides=job.changes, device=job.device, progress=progress
    )
    numbers = {
        split: score_unless_done(job.folder, split, features, device=job.device, progress=progress).brief
        for split in job.splits
    }
    label = legacy_label(job.variant.config)
    return job, numbers, (*notes, *([label] if label else []))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
