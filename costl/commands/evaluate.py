"""`costl evaluate`: scores a run or any prediction file, or writes a submission for the QVHighlights server."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from costl.commands.early import check_run
from costl.commands.options import (
    ANY_PATH,
    FOLDER,
    as_json,
    device,
    out,
    overwrite,
    paper_table,
    quiet,
    run_cache,
    scoring,
)
from costl.commands.output import print_result
from costl.commands.progress_bars import ProgressBars
from costl.training.launch import read_launch

FILE_OPTIONS = ("predictions", "truth", "benchmark", "official", "table")
CORPUS_FILE_OPTIONS = ("corpus", "predictions", "truth", "split")
CORPUS_OPTIONS = ("corpus", "run", "split", "truth", "cache", "weights", "out", "overwrite", "device")
SUBMISSION_OPTIONS = ("submission", "run", "cache", "weights", "overwrite", "device")


@click.command()
@click.option("--split", help="Split of the annotations: train, val, test, or another one such as test_unseen.  [default: test]")
@click.option("--run", type=FOLDER, help="Folder of the run.  [default: the newest in runs/]")
@run_cache
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    help="Weights of the epoch that validation chose (best), or of the last one (last).  [default: best]",
)
@click.option("--predictions", type=ANY_PATH, help="Score this JSONL file of predictions instead of a run.")
@click.option("--truth", type=ANY_PATH, help="The annotations, or with --corpus the corpus.jsonl, to score against.")
@click.option("--corpus", is_flag=True, help="Score a search: every sentence of the split in all videos of the split.")
@scoring
@out("Folder to write.  [default: eval-SPLIT/ in the run]", type=FOLDER)
@click.option("--submission", type=ANY_PATH, metavar="ZIP", help="Write predictions of val and test for the QVHighlights server.")
@overwrite
@device
@quiet
@as_json
@paper_table
def evaluate(as_json: bool, quiet: bool, **options: Any) -> None:
    """Score a trained model on a split.

    \b
    Examples:
        costl evaluate --split test
        costl evaluate --predictions mine.jsonl --truth val.jsonl --official
        costl evaluate --run runs/mine --table latex
        costl evaluate --submission hl.zip
        costl evaluate --corpus --split test
        costl evaluate --corpus --predictions rankings.jsonl --truth corpus.jsonl

    Prints the metrics with 95 % confidence intervals (bootstrap over queries). Writes metrics, predictions and a
    picture. The second example scores any prediction file, without a run or a cache.

    --corpus grounds each sentence in each video, so its time grows with sentences times videos: two and a half minutes on
    one core for the 596 sentences and 70 videos of the sample world. It prints how well the search finds moments (VCMR,
    NDCG) and videos (VR), moments within the right video (SVMR), and how well it rejects other videos.
    """
    chosen = {name: value for name, value in options.items() if value not in (None, False, "auto")}
    if read_launch().world_size > 1 and chosen.keys() & {"predictions", "truth", "submission", "corpus"}:
        raise click.UsageError("Only the evaluation of a run can use torchrun. Run this command without torchrun.")
    if "corpus" in chosen:
        _evaluate_corpus(chosen, quiet=quiet, as_json=as_json)
    elif "predictions" in chosen or "truth" in chosen:
        _refuse_others("--predictions", chosen, allowed=FILE_OPTIONS)
        if not {"predictions", "truth"} <= chosen.keys():
            raise click.UsageError("--predictions and --truth belong together: give both.")
        from costl.metrics.output import Scores
        from costl.metrics.score_files import score_files

        table = chosen.pop("table", None)
        print_result(Scores(score_files(**chosen), chosen["predictions"].stem), as_json=as_json, table=table)
    elif "submission" in chosen:
        _refuse_others("--submission", chosen, allowed=SUBMISSION_OPTIONS)
        check_run(chosen.get("run"), cache=chosen.get("cache"), splits=("val", "test"))
        from costl.submission import submit

        with ProgressBars(silent=quiet) as progress:
            click.echo(submit(chosen.pop("submission"), **chosen, progress=progress))
    else:
        check_run(
            chosen.get("run"),
            cache=chosen.get("cache"),
            splits=[chosen.get("split", "test")],
            benchmark=chosen.get("benchmark"),
        )
        from costl.evaluate import evaluate
        from costl.training.distributed import process_group

        table = chosen.pop("table", None)
        with ProgressBars(silent=quiet) as progress, process_group() as ranks:
            evaluation = evaluate(**chosen, progress=progress, ranks=ranks)
        if ranks.is_main:
            print_result(evaluation, as_json=as_json, table=table)


def _evaluate_corpus(chosen: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from costl.metrics.output import CorpusScores

    if "predictions" in chosen:
        _refuse_others("--corpus with --predictions", chosen, allowed=CORPUS_FILE_OPTIONS)
        if "truth" not in chosen:
            raise click.UsageError("--predictions and --truth belong together: give both.")
        from costl.metrics.corpus_files import score_corpus_files

        del chosen["corpus"]
        print_result(CorpusScores(score_corpus_files(**chosen)), as_json=as_json)
        return
    _refuse_others("--corpus", chosen, allowed=CORPUS_OPTIONS)
    check_run(chosen.get("run"), cache=chosen.get("cache"), splits=[chosen.get("split", "test")])
    if "truth" in chosen:
        from costl.metrics.corpus_files import read_truth

        read_truth(chosen["truth"], chosen.get("split"))
    from costl.evaluate_corpus import evaluate_corpus

    del chosen["corpus"]
    with ProgressBars(silent=quiet) as progress:
        scores = evaluate_corpus(**chosen, progress=progress)
    print_result(scores, as_json=as_json)


def _refuse_others(option: str, chosen: Collection[str], *, allowed: Collection[str]) -> None:
    others = [f"--{name}" for name in chosen if name not in allowed]
    if others:
        partners = ", ".join(f"--{name}" for name in allowed)
        raise click.UsageError(f"{option} cannot be combined with {', '.join(others)}. It can be used with {partners}.")
