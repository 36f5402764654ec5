"""Tables for papers: the columns of each benchmark, exact lines of Markdown and LaTeX, and names with special characters."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from table_cells import cells

from costl.commands import main
from costl.data.annotations import Prediction, Query
from costl.evaluate import Evaluation
from costl.experiments.repeat import Repeats
from costl.metrics.compute import BENCHMARKS, compute_metrics
from costl.metrics.output import write_predictions
from costl.metrics.paper_table import COLUMNS, paper_table

MOMENTS = {"MR-full-R1@0.3": 70, "MR-full-R1@0.5": 59.994, "MR-full-R1@0.7": 40, "MR-full-mIoU": 50.126}
MOMENTS |= {"MR-full-mAP@0.5": 61.0, "MR-full-mAP@0.75": 43, "MR-full-mAP": 44.5, "MR-short-mAP": 1, "MR-full-R5@0.5": 2}
HIGHLIGHTS = {"HL-min-Fair-mAP": 3, "HL-min-VeryGood-mAP": 39.999, "HL-min-VeryGood-Hit1": 66}
TVSUM = {"HL-top5-mAP": 80.0, "HL-top5-mAP-BK": 81, "HL-top5-mAP-VT": 82, "HL-top5-mAP-other": 83}
ROWS = {
    "qvhighlights": (
        MOMENTS | HIGHLIGHTS,
        "R1@0.5 R1@0.7 mAP@0.5 mAP@0.75 mAP_avg HL_mAP HIT@1",
        "59.99 40.00 61.00 43.00 44.50 40.00 66.00",
    ),
    "qvhighlights, moments alone": (MOMENTS, "R1@0.5 R1@0.7 mAP@0.5 mAP@0.75 mAP_avg", "59.99 40.00 61.00 43.00 44.50"),
    "qvhighlights, no value": (MOMENTS | {"MR-full-mAP": None}, "R1@0.5 R1@0.7 mAP@0.5 mAP@0.75", "59.99 40.00 61.00 43.00"),
    "charades": (MOMENTS, "R1@0.3 R1@0.5 R1@0.7 mIoU", "70.00 59.99 40.00 50.13"),
    "tacos": (MOMENTS, "R1@0.3 R1@0.5 R1@0.7 mIoU", "70.00 59.99 40.00 50.13"),
    "tvsum": (TVSUM, "VT BK other top-5_mAP", "82.00 81.00 83.00 80.00"),
    "tvsum, no domain": ({"HL-top5-mAP": 80.0}, "top-5_mAP", "80.00"),
    "youtube-highlights": ({"HL-mAP": 60.0, "HL-mAP-ski": 61, "HL-mAP-dog": 62}, "dog ski mAP", "62.00 61.00 60.00"),
}  # fmt: skip
NAMES = {
    "a_b": r"a\_b",
    "50 % & #1": r"50 \% \& \#1",
    r"C:\runs\x": r"C:\textbackslash{}runs\textbackslash{}x",
    "$x^2$ {y} ~z": r"\$x\textasciicircum{}2\$ \{y\} \textasciitilde{}z",
    "[ours]": "{[}ours]",
    "*ours*": "{*}ours{*}",
    "a|b <c>": r"a\textbar{}b \textless{}c\textgreater{}",
    "two\nlines": "two lines",
    "Größe 模型": "Größe 模型",
}


def fields(line: str) -> list[str]:
    """The cells of one line of a LaTeX table."""
    assert line.endswith(r" \\")
    return re.split(r" (?<!\\)& ", line[:-3])


def test_every_benchmark_has_columns():
    assert set(COLUMNS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", ROWS)
def test_the_columns_are_those_of_papers_in_their_order(name):
    numbers, columns, values = ROWS[name]
    columns, values = ([text.replace("_", " ") for text in line.split()] for line in (columns, values))
    benchmark = name.split(",")[0]
    head, _, row = paper_table({"ours": [numbers]}, benchmark=benchmark, style="md")
    assert cells(head) == ["Method", *columns] and cells(row) == ["ours", *values]
    lines = paper_table({"ours": [numbers], "other": [{}]}, benchmark=benchmark, style="latex")
    assert lines[:3] == [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    assert fields(lines[3]) == ["Method", *columns] and lines[4] == r"\midrule"
    assert fields(lines[5]) == ["ours", *values] and fields(lines[6]) == ["other", *["-"] * len(columns)]
    assert lines[7:] == [r"\bottomrule", r"\end{tabular}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_both_formats(name):
    rows = {name: [{"HL-mAP": 1.0}]}
    assert fields(paper_table(rows, benchmark="youtube-highlights", style="latex")[5]) == [NAMES[name], "1.00"]
    row = paper_table(rows, benchmark="youtube-highlights", style="md")[2]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3 and "\n" not in row
    assert row.split(" | ")[0].strip("| ").replace(r"\|", "|") == " ".join(name.split())


def test_several_seeds_give_mean_and_standard_deviation():
    seeds = [{"HL-top5-mAP": value} for value in (79.0, 80.0, 81.0)]
    repeats = Repeats(Path("x"), "test", {"last epoch": seeds}, benchmark="tvsum")
    assert repeats.paper_table("md")[2] == "| last epoch | 80.00 ± 1.00 |"
    assert repeats.paper_table("latex")[5] == r"last epoch & 80.00 $\pm$ 1.00 \\"


@pytest.mark.parametrize(
    ("metrics", "name"), [({}, "mine"), ({"legacy": "legacy: chosen on test"}, "mine (legacy: chosen on test)")]
)
def test_a_row_names_the_run_and_how_its_epoch_was_chosen(metrics, name):
    metrics |= {"brief": MOMENTS, "scored": {"benchmark": "charades"}}
    evaluation = Evaluation(Path("runs/mine"), "test", Path("runs/mine/eval-test"), metrics)
    assert cells(evaluation.paper_table("md")[2])[0] == name
    assert Evaluation(Path("x"), "test", Path("x"), {}).paper_table("latex") == []  # a split without labels


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Two prediction files and their annotations."""
    row = {"qid": 1, "query": "a cat", "vid": "v", "duration": 10, "relevant_windows": [[0, 4], [6, 10]]}
    row |= {"relevant_clip_ids": [0, 1], "saliency_scores": [[4, 4, 4], [2, 1, 0]]}
    (tmp_path / "val.jsonl").write_text(json.dumps(row))
    paths = {"truth": tmp_path / "val.jsonl"}
    for name, end in (("my_model", 5), ("theirs", 9)):
        paths[name] = tmp_path / f"{name}.jsonl"
        write_predictions(paths[name], [Prediction(1, "a cat", "v", ((0, end, 0.9),), (5, 4, 3, 2, 1))])
    return paths


def printed(arguments: str, files: dict[str, Path]) -> list[str]:
    result = CliRunner().invoke(main, [str(files.get(word, word)) for word in arguments.split()])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_the_commands_print_the_table(files):
    lines = printed("evaluate --predictions my_model --truth truth --table latex", files)
    assert lines[1] == r"\begin{tabular}{lrrrrrrr}" and fields(lines[5])[:2] == [r"my\_model", "100.00"]
    lines = printed("evaluate --predictions my_model --truth truth --benchmark charades --table md", files)
    query = Query(1, "a cat", "v", 10.0, ((0, 4), (6, 10)))
    brief = compute_metrics([Prediction(1, "a cat", "v", ((0, 5, 0.9),))], [query])["brief"]
    assert cells(lines[0]) == ["Method", "R1@0.3", "R1@0.5", "R1@0.7", "mIoU"] and len(lines) == 3
    assert cells(lines[2])[1:] == [f"{brief[f'MR-full-{name}']:.2f}" for name in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")]
    lines = printed("study compare my_model theirs --truth truth --table md", files)
    assert [cells(line)[:2] for line in lines[2:]] == [["my_model", "100.00"], ["theirs", "0.00"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate --table md --json", "--table and --json cannot be combined"),
        ("study compare a b --truth c --json --table md", "--table and --json cannot be combined"),
        ("study repeat --cache x --json --table md", "--table and --json cannot be combined"),
        ("evaluate --submission a.zip --table md", "--submission cannot be combined with --table"),
        ("evaluate --table html", "'html' is not one of 'md', 'latex'"),
    ],
)
def test_wrong_uses_are_refused_before_any_work(arguments, message):
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2 and message in result.stderr
