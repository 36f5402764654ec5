"""Variants x seeds -> one table: mean and deviation of each variant, and what it differs from the full model by, paired.

<out>/<variant>/seed-<n>/     one run each, an ordinary run folder
<out>/ablation.json, .md      every number, and the tables
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from joblib import Parallel, delayed

from costl.config import load_config
from costl.config_files import Layer
from costl.data.splits import read_queries
from costl.evaluate import evaluate
from costl.experiments.references import chance, choose_zero_shot, zero_shot
from costl.experiments.repeat import trained
from costl.experiments.tables import Ablation, Numbers, Row, markdown
from costl.experiments.variants import Variant, choose_variants, resolve
from costl.model.build import build_for
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, Tell
from costl.training.run_folder import annotation_digests, legacy_label, read_run

OUT = Path("ablation")


@dataclass(frozen=True)
class _Job:
    """One training and its evaluations, all that another process needs to know."""

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
    progress: Tell | None = None,
) -> Ablation:
    """Trains each variant with seeds 0 .. `seeds` - 1, scores every run on `splits`, and compares seed by seed.

    `variants`: names of standard ones or YAML files (see `costl.experiments.variants`), by default the standard list; the full
    model always takes part. `config` and `overrides` change all of them. The checkpoint is the one chosen in training,
    on validation. What an earlier call finished in `out` is kept, what it was in the middle of is continued. `jobs`
    trainings run side by side, each with its share of the cores. Nothing is trained before everything was checked:
    raises UsageError for settings or splits that cannot be, for a variant that contradicts the cache, and where `out`
    holds runs of other settings.
    """
    tell = progress or (lambda _: None)
    if seeds < 1 or jobs < 1:
        raise UsageError(f"seeds is {seeds} and jobs is {jobs}, expected at least 1 of each.")
    features, base, scored = CacheReader(cache), tuple(overrides), tuple(dict.fromkeys(splits))
    layers, patches = [features.settings, *config], features.patch_grid[0] * features.patch_grid[1]
    rate = load_config(*layers, overrides=base).train.learning_rate
    chosen, notes = resolve(choose_variants(variants, patches=patches, learning_rate=rate), layers, base)
    todo = [
        _Job(variant, seed, out / variant.name / f"seed-{seed}", cache, tuple(config), base, scored, device)
        for seed in range(seeds)  # seed by seed, so that a table can be made of whole seeds early
        for variant in chosen
    ]
    _refuse(todo, chosen, features)
    references = _references(features, scored, tell)
    found: dict[str, dict[int, Mapping[str, Numbers]]] = {variant.name: {} for variant in chosen}
    for job, numbers, said in _all_done(todo, jobs, tell):
        found[job.variant.name][job.seed] = numbers
        notes += [note for note in said if note not in notes]
    rows = [Row(v.name, v.overrides, tuple(found[v.name][seed] for seed in range(seeds))) for v in chosen]
    result = Ablation(out, scored, tuple(range(seeds)), tuple(references), tuple(rows), tuple(notes))
    publish(out / "ablation.json", (json.dumps(result.data(), indent=2) + "\n").encode())
    publish(out / "ablation.md", markdown(result).encode())
    return result


def _refuse(todo: Sequence[_Job], chosen: Sequence[Variant], features: CacheReader) -> None:
    """All that would otherwise be found in the middle: splits, models that the cache cannot feed, folders in use."""
    watched = [split for split in {v.config.train.select_on for v in chosen} if split in features.splits]
    for split in ("train", *watched):
        read_queries(features, split)
    for split in todo[0].splits:
        if not any(query.windows or query.clip_ids for query in read_queries(features, split)):
            raise UsageError(f"{features.path}: split {split!r} has no labels, so that nothing can be compared on it.")
    problems = []
    for variant in chosen:
        try:
            build_for(variant.config, features)
        except UsageError as error:
            problems.append(f"variant {variant.name}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    for job in todo:
        if (job.folder / "run.json").exists():
            expected = replace(job.variant.config, train=replace(job.variant.config.train, seed=job.seed))
            if read_run(job.folder).config != expected:
                raise UsageError(
                    f"{job.folder}: was trained with other settings. Delete it, or choose another folder with --out."
                )


def _references(features: CacheReader, splits: Sequence[str], tell: Tell) -> Iterator[Row]:
    """Chance, and zero-shot CLIP where frames and sentences share a space: one row each, without seeds."""
    tell(Progress("references", 0, 2))
    yield Row("chance", (), ({split: chance(features, split).brief for split in splits},))
    if features.joint.known:
        settings, how = choose_zero_shot(features)
        numbers = {split: zero_shot(features, split, settings, how).brief for split in splits}
        yield Row("zero-shot CLIP", (), (numbers,))
    tell(Progress("references", 2, 2))


Done = tuple[_Job, dict[str, Numbers], tuple[str, ...]]


def _all_done(todo: Sequence[_Job], jobs: int, tell: Tell) -> Iterator[Done]:
    """Every job as it finishes: in this process with all that it has to tell, or `jobs` side by side."""
    if jobs == 1:
        for number, job in enumerate(todo, start=1):
            yield _done(job, _speaking_of(f"{number}/{len(todo)} {job.name}", tell))
        return
    threads = max(1, _cores() // jobs)
    tell(Progress("ablate", 0, len(todo)))
    results = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)(
        delayed(_in_a_process)(job, threads) for job in todo
    )
    for number, result in enumerate(results, start=1):
        tell(Progress("ablate", number, len(todo), result[0].name))
        yield result


def _in_a_process(job: _Job, threads: int) -> Done:
    torch.set_num_threads(threads)
    return _done(job, None)


def _done(job: _Job, tell: Tell | None) -> Done:
    """The run of a job, made, finished or found, and its numbers on every split."""
    features = CacheReader(job.cache)
    said = trained(job.folder, features, config=job.config, overrides=job.changes, device=job.device, tell=tell)
    numbers = {split: _kept(job, split, features) or _evaluated(job, split, tell) for split in job.splits}
    label = legacy_label(job.variant.config)
    return job, numbers, (*said, *([label] if label else []))


def _evaluated(job: _Job, split: str, tell: Tell | None) -> Numbers:
    return evaluate(job.folder, split=split, device=job.device, progress=tell).metrics["brief"]


def _kept(job: _Job, split: str, features: CacheReader) -> Numbers | None:
    """The numbers that an earlier call found with these weights, by the same rules, for the same annotations."""
    folder, weights = job.folder / f"eval-{split}", job.folder / "best.safetensors"
    try:
        if (folder / "predictions.png").stat().st_mtime_ns < weights.stat().st_mtime_ns:  # written last
            return None
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        how, brief = metrics["scored"], dict(metrics["brief"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or damaged: evaluated again
    same = annotation_digests(features)[split] == read_run(job.folder).annotations.get(split)
    plain = not how["official"] and how["benchmark"] == job.variant.config.data.benchmark
    return brief if same and plain else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _speaking_of(name: str, tell: Tell) -> Tell:
    return lambda progress: tell(replace(progress, stage=f"{name}: {progress.stage}"))
