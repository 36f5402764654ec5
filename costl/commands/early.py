"""What the commands refuse before they load PyTorch, which takes seconds. The functions that they call check it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from costl.training.launch import read_launch

# Options that earlier versions had. Using one is an error with the next step.
REMOVED = {
    ("extract", "--cache"): "Run costl cache add-queries.",
    ("extract", "--layers"): "A cache stores the tokens of CLIP's last block only: leave the option out.",
    ("extract", "--compile"): "It made an extraction no faster: leave it out.",
}


def check_run(
    run: Path | None, *, cache: Path | None = None, splits: Sequence[str] = (), benchmark: str | None = None
) -> None:
    """Raises UsageError or CacheError for a run, its cache, splits or a benchmark that cannot be used."""
    from costl.data.queries import read_queries
    from costl.metrics.compute import benchmark_rules
    from costl.training.run_folder import newest_run, open_cache, read_run

    if _each_process_would_print():
        return
    trained = read_run(run) if run else newest_run()
    features = open_cache(trained, cache)
    benchmark_rules(benchmark or trained.config.data.benchmark)
    for split in splits:
        read_queries(features, split, domain=trained.config.data.domain)


def check_training(
    cache: Path,
    config: Sequence[Path],
    overrides: Sequence[str],
    splits: Sequence[str] = (),
    start_from: str | None = None,
) -> None:
    """Raises UsageError or CacheError for a cache, settings, splits or a model to start from that cannot be used.

    `splits` are those to score.
    """
    from costl.config import load_config

    if _each_process_would_print():
        return
    load_config(*config, overrides=overrides)
    from costl.data.queries import read_queries
    from costl.training.inputs import read_new

    features, _, _ = read_new(cache, config, overrides, start_from)
    for split in splits:
        read_queries(features, split)


def check_resumed(run: Path, cache: Path | None) -> None:
    """Raises UsageError or CacheError for a run that cannot be continued."""
    from costl.training.inputs import read_interrupted

    if not _each_process_would_print():
        read_interrupted(run, cache)


def refuse_removed_options(command: str, arguments: Sequence[str]) -> None:
    """Raises a usage error with the next step if an option of this command is gone."""
    for option in [argument.partition("=")[0] for argument in arguments]:
        if (command, option) in REMOVED:
            raise click.UsageError(f"costl {command} {option} is gone. {REMOVED[command, option]}")


def _each_process_would_print() -> bool:
    return read_launch().world_size > 1
