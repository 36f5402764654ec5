"""`costl study`: ablations, repetitions with several seeds, comparisons with significance tests, and linear probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.early import check_training
from costl.commands.options import (
    ANY_PATH,
    AT_LEAST_ONE,
    FOLDER,
    Group,
    as_json,
    config_files,
    device,
    out,
    overrides,
    paper_table,
    quiet,
    required_cache,
    scoring,
)
from costl.commands.output import print_result
from costl.commands.progress_bars import run_and_print

splits = click.option(
    "--split", "splits", multiple=True, default=["test"], show_default=True, help="Split to score. Repeatable."
)


@click.group(cls=Group)
def study() -> None:
    """Run ablations, train several seeds, compare predictions."""


@study.command()
@required_cache
@click.option(
    "--seeds", type=AT_LEAST_ONE, default=3, show_default=True, help="Trainings of each variant, with seeds 0, 1, 2, ..."
)
@click.option(
    "--variants",
    multiple=True,
    metavar="NAME,...",
    help='Names of variants, or settings, such as "spatial.top_k=2 model.width=64". Repeatable.  [default: all names]',
)
@splits
@config_files
@overrides
@out("Folder of the runs and the tables.", type=FOLDER, default="ablation", show_default=True)
@click.option("--jobs", type=AT_LEAST_ONE, default=1, show_default=True, help="Trainings in parallel, on shared cores.")
@device
@quiet
@as_json
def ablate(**options: Any) -> None:
    """Train variants of the model, and compare their scores.

    \b
    Examples:
        costl study ablate --cache feats.h5 --split test --split test_unseen
        costl study ablate --cache feats.h5 --variants steps-0,steps-1,cls,adapter --jobs 2

    \b
    Names of variants:
        steps-0, steps-1, no-clip-prior, top-k-4, top-k-16, top-k-all,
        strides-1, strides-1-2, no-null-tokens, kernel-1,
        no-LOSS for each loss (such as no-saliency), and the baselines cls and adapter,
        also as cls-slower and adapter-slower with a quarter of the learning rate;
        docs/ablation.md explains them

    Prints mean and standard deviation over the seeds, and the difference from the full model on the same seeds. If it was
    interrupted, the same command trains only what is missing.
    """
    check_training(options["cache"], options["config"], options["overrides"], options["splits"])
    from costl.experiments.variants import choose_variants

    choose_variants(options["variants"], patches=1, learning_rate=1)  # reports errors before torch is loaded
    from costl.experiments.ablate import ablate

    run_and_print(ablate, **options)


@study.command()
@required_cache
@click.option(
    "--seeds", type=AT_LEAST_ONE, default=5, show_default=True, help="Number of trainings, with seeds 0, 1, 2, ..."
)
@click.option("--split", default="test", show_default=True, help="Split to score every run on.")
@config_files
@overrides
@out("Folder of the runs. Finished runs in it are not trained again.", type=FOLDER)
@device
@quiet
@as_json
@paper_table
def repeat(**options: Any) -> None:
    """Train with several seeds; print mean and standard deviation.

    \b
    Example:
        costl study repeat --cache feats.h5 --seeds 3

    On TVSum and YouTube Highlights, trains one model for each domain (kind of video). Without a validation split
    (TVSum), the last epoch is scored. With --set train.select_on=test, the table also shows the best epoch on test, as
    papers report it.
    """
    check_training(options["cache"], options["config"], options["overrides"], [options["split"]])
    from costl.experiments.repeat import repeat

    run_and_print(repeat, **options)


@study.command()
@click.argument("a", type=ANY_PATH)
@click.argument("b", type=ANY_PATH)
@click.option("--truth", type=ANY_PATH, help="The annotations to score both files against.")
@scoring
@as_json
@paper_table
def compare(a: Path, b: Path, truth: Path | None, as_json: bool, table: str | None, **rules: Any) -> None:
    """Compare two prediction files on the same queries.

    \b
    Examples:
        costl study compare mine.jsonl theirs.jsonl --truth val.jsonl
        costl study compare reproduce-charades/ other-settings/

    Prints the difference B - A of each metric, with its 95 % interval (paired bootstrap over queries) and its p value
    (sign flips over queries). Of two folders of costl reproduce, the means over their seeds are compared.
    """
    if a.is_dir() and b.is_dir():
        if truth or any(rules.values()):
            raise click.UsageError("--truth, --benchmark and --official are for prediction files: leave them out for folders.")
        from costl.reproduce.compare import compare_reproductions

        print_result(compare_reproductions(a, b), as_json=as_json, table=table)
        return
    if truth is None:
        raise click.UsageError("Missing option '--truth': the annotations to score both files against.")
    from costl.metrics.compare import compare

    print_result(compare(a, b, truth=truth, **rules), as_json=as_json, table=table)


@study.command()
@required_cache
@splits
@click.option("--objects", type=ANY_PATH, help="The world's objects.jsonl.  [default: next to its videos]")
@quiet
@as_json
def diagnose(**options: Any) -> None:
    """Measure how well CLIP's tokens show places and sizes.

    \b
    Example:
        costl study diagnose --cache feats.h5 --split test --split test_unseen

    Compares the frame token with the patch tokens, by linear probes. They are trained on the training videos and scored
    on the chosen splits. Needs a sample world (costl data sample, costl quickstart): its files have the true position
    and size of every object.
    """
    from costl.experiments.probe import diagnose

    run_and_print(diagnose, **options)
