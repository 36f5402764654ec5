"""The tables of a reproduction, published numbers, checksums of the official files, and the paired test of two folders."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from costl.benchmarks.layouts import BENCHMARKS
from costl.commands import main
from costl.data.annotations import Prediction, Query
from costl.metrics import compare as of_files
from costl.metrics.paper_table import COLUMNS, DOMAINS
from costl.pipeline.errors import CacheError, UsageError
from costl.reproduce import published
from costl.reproduce.compare import compare_reproductions
from costl.reproduce.official_files import compare_with_release
from costl.reproduce.results import Reproduction
from costl.reproduce.scores import Scores, score_seeds, unanswered

KEY = "MR-full-mIoU"
RNG = np.random.default_rng(0)


def reproduction(folder: Path, values: np.ndarray, **changes: object) -> Reproduction:
    """A written result of two seeds on Charades-STA, from one value a query [b]."""
    by_seed = [{KEY: float(np.nanmean(values)) + shift} for shift in (-1.0, 1.0)]
    result = Reproduction(
        folder=folder,
        benchmark="charades",
        title="Charades-STA",
        features="CLIP",
        scores={"chosen on val": Scores(by_seed, {KEY: values}, [""] * len(values))},
        qids=list(range(len(values))),
        official=True,
        unanswered=0,
        methods="Methods. 100 % & more.",
    )
    result = replace(result, **changes)
    result.write()
    return result


def test_two_folders_are_compared_as_two_files_are(tmp_path):
    a = 100 * RNG.random(40)
    b = a + RNG.normal(5, 2, 40)
    a[3] = np.nan  # a query that does not count
    reproduction(tmp_path / "a", a)
    reproduction(tmp_path / "b", b)
    row = compare_reproductions(tmp_path / "a", tmp_path / "b").rows[KEY]
    assert row == of_files.paired_rows({KEY: a}, {KEY: b}, groups=[""] * 40)[KEY]
    assert row.difference == pytest.approx(np.nanmean(b - a)) and row.queries == 39 and row.p < 0.01
    result = CliRunner().invoke(main, ["study", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert json.loads(result.stdout)["rows"][KEY]["p"] == row.p
    text = CliRunner().invoke(main, ["study", "compare", str(tmp_path / "a"), str(tmp_path / "b")]).stdout
    assert "A has 2 seeds and B 2" in text and "mean over the seeds of a folder" in text


def test_the_value_of_a_query_is_its_mean_over_seeds():
    queries = [Query(qid, "a dog", f"v{qid}", 100.0, ((10.0, 20.0),)) for qid in (1, 2)]
    right, wrong = ((10.0, 20.0, 1.0),), ((60.0, 80.0, 1.0),)
    first = [Prediction(1, "a dog", "v1", right), Prediction(2, "a dog", "v2", right)]
    second = [Prediction(1, "a dog", "v1", right), Prediction(2, "a dog", "v2", wrong)]
    scores = score_seeds([first, second], queries, benchmark="charades", official=True)
    assert [numbers["MR-full-R1@0.5"] for numbers in scores.by_seed] == [100, 50]
    assert scores.values["MR-full-R1@0.5"].tolist() == [100, 50]
    assert scores.intervals["MR-full-R1@0.5"] == (50, 100)  # both resampled queries may be the same one
    assert unanswered(queries, [first, second[:1]]) == [queries[1]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"benchmark": "tacos"}, r"a is of charades and .*b of tacos"),
        ({"qids": list(range(1, 21))}, "have other test queries"),
        ({"official": False}, "b has unanswered queries and is scored by other rules"),
    ],
)
def test_folders_that_are_no_pair_are_refused(tmp_path, changes, reason):
    reproduction(tmp_path / "a", np.ones(20))
    reproduction(tmp_path / "b", np.ones(20), **changes)
    with pytest.raises(UsageError, match=reason):
        compare_reproductions(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"per_query": {}, "selections": {}}', "[" * 100_000])
def test_a_damaged_result_is_refused(tmp_path, content):
    with pytest.raises(UsageError, match=r"no results\.json in it, expected a folder that costl reproduce has finished"):
        compare_reproductions(tmp_path, tmp_path)
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(CacheError, match=r"results\.json: damaged"):
        compare_reproductions(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--official"], "leave them out"), (["--truth", "x"], "leave them out"), ([], "no results.json")],
)
def test_options_of_files_are_refused_for_folders(tmp_path, arguments, reason):
    done = CliRunner().invoke(main, ["study", "compare", str(tmp_path), str(tmp_path), *arguments])
    assert done.exit_code == 2 and reason in done.stderr
    missing = CliRunner().invoke(main, ["study", "compare", str(tmp_path / "gone"), str(tmp_path)])
    assert missing.exit_code == 2 and "--truth" in missing.stderr


def test_unanswered_queries_are_counted_under_the_table(tmp_path):
    result = reproduction(tmp_path, np.ones(20), unanswered=3, official=False)
    assert "- 3 of 20 test queries are unanswered, without features of their videos: each counts 0." in result.lines()
    assert result.exit_code == 1 and (tmp_path / "table.md").read_text().startswith("# Charades-STA\n")
    assert r"Methods. 100 \% \& more." in (tmp_path / "table.tex").read_text()


def test_every_published_number_is_a_percentage_in_a_known_column():
    table = Path(published.__file__).with_name("published.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert {row["benchmark"] for row in rows} == BENCHMARKS.keys() - {"youtube-highlights"}
    for row in rows:
        columns = {*COLUMNS[row["benchmark"]], *(DOMAINS if row["benchmark"] == "tvsum" else ())}
        numbers = {name: text for name, text in list(row.items())[6:] if text}
        assert numbers and set(numbers) <= columns and row["method"] and row["features"] and row["source"], row
        assert all(0 < float(text) < 100 for text in numbers.values()), row
        assert row["year"] in ("", "2025-26") or 2020 <= int(row["year"]) <= 2026, row


def test_published_rows_are_in_the_order_of_their_years():
    years = [row.year for row in published.published_rows("qvhighlights")]
    assert years == sorted(years, key=lambda year: year or "9999") and years[0] == "2021" and years[-1] == ""
    assert published.published_rows("youtube-highlights") == []


def test_annotations_are_compared_with_the_official_release():
    official = "07e29508bfc2d512f1ec2f7b70b289ab094dd8ed8f39403fc42be14be62bb675"
    message = compare_with_release("tacos", {"test.jsonl": official, "train.jsonl": "0" * 64, "mine.jsonl": "1" * 64})
    assert message == (
        "Annotation files other than in the official release (sha256): train.jsonl; without a known checksum: mine.jsonl; "
        "as in the official release: test.jsonl."
    )
