"""Trains variants of the model with several seeds, and compares each with the full model, paired by seed.

<out>/<variant>/seed-<n>/     one run folder for each training
<out>/ablation.json, .md      every number, and the tables
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from joblib import Parallel, delayed

from costl.config import Config, load_config
from costl.config_files import Layer
from costl.data.queries import read_queries
from costl.experiments.scored_runs import refuse_other_settings, train_and_score, with_stage_prefix
from costl.experiments.tables import Ablation, Numbers, is_own_result
from costl.experiments.untrained_baselines import untrained_baselines
from costl.experiments.variants import FULL, choose_variants
from costl.model.build import cache_sizes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish, refuse_overwrite
from costl.pipeline.progress import Progress, ProgressCallback
from costl.training.run_folder import legacy_label

OUT = Path("ablation")


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

    `variants`: see `choose_variants`. `config` and `overrides` apply to all variants. The checkpoint of a run is the one
    chosen on validation. Finished runs in `out` are reused, and interrupted ones are resumed. `jobs` trainings run in
    parallel and share the cores. Before any training it raises UsageError for wrong settings or splits, for a variant that
    does not fit the cache, and for runs in `out` with other settings.
    """
    report_progress = progress or (lambda _: None)
    table = out / "ablation.json"
    refuse_overwrite(table, is_ours=is_own_result)
    refuse_overwrite(out / "ablation.md", is_ours=lambda _: table.exists())
    features = CacheReader(cache)
    layers = [features.settings, *config]
    overrides = tuple(overrides)
    base = load_config(*layers, overrides=overrides)
    patches = features.patch_grid[0] * features.patch_grid[1]
    changes = choose_variants(variants, patches=patches, learning_rate=base.train.learning_rate)
    configs = _variant_configs(features, layers, overrides, changes)
    trained = [name for name in changes if name == FULL or configs[name] != base]
    notes = [f"{name}: the settings of the full model, left out." for name in changes if name not in trained]
    runs = [
        (name, out / name / f"seed-{seed}", [*overrides, *changes[name], f"train.seed={seed}"])
        for seed in range(seeds)  # all variants of a seed first: they can be compared early
        for name in trained
    ]
    for _, folder, run_overrides in runs:
        refuse_other_settings(folder, cache, config, run_overrides)
    _check_splits(features, base, splits)
    report_progress(Progress("references", 0, 1))
    references, how = untrained_baselines(features, splits, base)
    report_progress(Progress("ablate", 0, len(runs)))
    results = Parallel(n_jobs=jobs, return_as="generator", batch_size=1)(
        delayed(train_and_score)(
            folder,
            cache,
            splits,
            config=config,
            overrides=run_overrides,
            device=device,
            # A callback cannot be passed to another process.
            progress=with_stage_prefix(f"{number}/{len(runs)} {name} {folder.name}", progress) if jobs == 1 else None,
        )
        for number, (name, folder, run_overrides) in enumerate(runs, start=1)
    )
    by_seed: dict[str, dict[str, list[Numbers]]] = {name: {split: [] for split in splits} for name in trained}
    for number, ((name, folder, _), (scores, run_notes)) in enumerate(zip(runs, results, strict=True), start=1):
        for split in by_seed[name]:
            by_seed[name][split].append(scores[split])
        notes += run_notes
        report_progress(Progress("ablate", number, len(runs), f"{name} {folder.name}"))
    notes += [*how, legacy_label(base)]
    result = Ablation(
        folder=out,
        references=references,
        variants=by_seed,
        changes=changes,
        notes=[note for note in dict.fromkeys(notes) if note],
    )
    publish(table, (json.dumps(result.data(), indent=2) + "\n").encode())
    publish(out / "ablation.md", (result.markdown() + "\n").encode())
    return result


def _check_splits(features: CacheReader, config: Config, splits: Sequence[str]) -> None:
    """Raises UsageError for a split that cannot be read or has no labels to score."""
    for split in {"train", *splits, *({config.train.select_on} & set(features.splits))}:
        queries = read_queries(features, split)
        if split in splits and not any(query.windows or query.clip_ids for query in queries):
            raise UsageError(f"{features.path}: split {split!r} has no labels, so that nothing can be compared on it.")


def _variant_configs(
    features: CacheReader, layers: Sequence[Layer], overrides: Sequence[str], changes: Mapping[str, Sequence[str]]
) -> dict[str, Config]:
    """The settings of each variant. Raises UsageError that names every variant that is wrong or does not fit the cache."""
    configs = {}
    problems = []
    for name, variant_overrides in changes.items():
        try:
            configs[name] = load_config(*layers, overrides=[*overrides, *variant_overrides])
            cache_sizes(configs[name], features)
        except UsageError as error:
            problems.append(f"variant {name}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return configs
