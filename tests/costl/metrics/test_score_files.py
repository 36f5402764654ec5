"""Prediction files, scored and compared by the commands: right numbers, or one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from table_cells import cells

from costl.commands import main
from costl.data.annotations import parse_jsonl, parse_predictions
from costl.metrics.compare import compare
from costl.metrics.compute import compute_metrics, measure
from costl.metrics.score_files import score_files

SHARED = Path(__file__).parents[4] / "shared" / "data"
FIXTURES = SHARED / "eval_fixtures"
VAL = SHARED / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the published predictions are not here")


def truth_row(qid, **changes) -> dict:
    row = {"qid": qid, "query": "a cat", "vid": f"v{qid}", "duration": 6, "relevant_windows": [[0, 4]]}
    return row | {"relevant_clip_ids": [0, 1], "saliency_scores": [[4, 2, 0], [1, 4, 4]]} | changes


def prediction_row(qid, **changes) -> dict:
    row = {"qid": qid, "query": "a cat", "vid": f"v{qid}", "pred_relevant_windows": [[0, 4, 0.9], [1, 6, 0.5]]}
    return row | {"pred_saliency_scores": [0.5, 1.0, -1.0]} | changes


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def costl(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("truth.jsonl").write_text(lines(*map(truth_row, (1, 2, 3))))
    Path("mine.jsonl").write_text(lines(*map(prediction_row, (1, 2, 3))))
    worse = [prediction_row(qid, pred_relevant_windows=[[2, 6, 0.9]]) for qid in (1, 2)]
    Path("worse.jsonl").write_text(lines(*worse, prediction_row(3)))
    return tmp_path


SCORE = ("evaluate", "--predictions", "mine.jsonl", "--truth", "truth.jsonl")


def test_the_command_gives_the_metrics_and_an_interval_for_each(folder):
    result = json.loads(costl(*SCORE, "--json").stdout)
    queries = parse_jsonl(Path("truth.jsonl").read_text(), "truth.jsonl")
    rows = parse_predictions(Path("mine.jsonl").read_text(), "mine.jsonl")
    intervals = result.pop("intervals")
    assert result.pop("scored") == {"benchmark": "qvhighlights", "official": False, "queries": 3, "clip_s": 2.0}
    assert result == compute_metrics(rows, queries)
    assert intervals.keys() == result["brief"].keys()
    for name, (low, high) in intervals.items():
        assert low - 1e-9 <= result["brief"][name] <= high + 1e-9
    table = costl(*SCORE)
    assert table.exit_code == 0 and "95 %" in table.stdout and "HIT@1" in table.stdout
    assert table.stderr == "3 queries, scored as qvhighlights, clips of 2 s.\n"


@pytest.mark.promise(14)
def test_the_order_of_rows_changes_nothing(folder):
    before = costl(*SCORE).stdout
    Path("mine.jsonl").write_text(lines(*map(prediction_row, (3, 1, 2))))
    assert costl(*SCORE).stdout == before


@needs_fixtures
def test_a_released_submission_scores_what_was_published(folder):
    arguments = ("--predictions", FIXTURES / "cgdetr" / "val_preds.jsonl", "--truth", VAL, "--official", "--json")
    result = json.loads(costl("evaluate", *arguments).stdout)
    assert len(result.pop("intervals")) == len(result["brief"]) and result.pop("scored")["official"]
    assert result == json.loads((FIXTURES / "cgdetr" / "val_metrics_recomputed.json").read_text())
    fork = json.loads(costl("evaluate", *arguments, "--benchmark", "charades").stdout)["brief"]
    assert fork == json.loads((FIXTURES / "cgdetr" / "val_metrics_upstream.json").read_text())["brief"]


def test_labels_decide_the_benchmark_and_the_option_overrides_it(folder):
    rated = truth_row(1, relevant_windows=None, domain="BK")
    Path("truth.jsonl").write_text(lines(rated))
    Path("mine.jsonl").write_text(lines(prediction_row(1)))
    assert "scored as tvsum" in costl(*SCORE).stderr and "top5-mAP" in costl(*SCORE).stdout
    assert "scored as qvhighlights" in costl(*SCORE, "--benchmark", "qvhighlights").stderr
    Path("truth.jsonl").write_text(lines(rated | {"rated_windows": [[0, 3], [2, 5], [4, 6]]}))
    assert score_files(Path("mine.jsonl"), Path("truth.jsonl"))["scored"]["benchmark"] == "youtube-highlights"


def test_scoring_loads_neither_torch_nor_h5py(folder):
    code = (
        "import sys\nfrom costl.commands import main\n"
        f"try: main({[*SCORE, '--official']!r})\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'h5py', 'pyarrow', 'matplotlib', 'decord', 'sklearn', 'joblib'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else code)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "R1@0.7" in done.stdout


BAD = {
    "no such file": (None, "mine.jsonl: cannot be read (No such file or directory)"),
    "latin-1": ('{"qid": 1,\n"query": "caf\xe9"}'.encode("latin-1"), "mine.jsonl:2: not UTF-8 text (byte 0xe9)"),
    "half of UTF-16": (b"\xff\xfea", "mine.jsonl:1: not UTF-8 text"),
    "empty": ("\n\n", "mine.jsonl: no row for 1, 2, 3, 3 of the 3 queries of truth.jsonl"),
    "not JSON": (lines(prediction_row(1), "{'qid': 2}"), "mine.jsonl:2: \"{'qid': 2}\" is not JSON (Expecting"),
    "a list": (lines("[1]"), "mine.jsonl:1: a JSON number, expected an object"),
    "NaN": (lines(prediction_row(1, pred_relevant_windows=[[0, float("nan"), 1]])), "... is not JSON (NaN"),
    "infinite": (
        lines(prediction_row(1, pred_saliency_scores=[1, 2, 10**400])),
        "mine.jsonl:1: 'pred_saliency_scores' holds",
    ),
    "extra": (lines(*map(prediction_row, (1, 2, 3, 4))), "mine.jsonl: no query 4 in truth.jsonl (3 queries)"),
    "twice": (lines(*map(prediction_row, (1, 2, 3, 2))), "mine.jsonl:4: qid 2 is already on line 2"),
    "text for number": (
        lines(*map(prediction_row, ("1", 2, 3))),
        "mine.jsonl: no query '1' in truth.jsonl (3 queries). The qid '1' is a text, that of truth.jsonl is the number 1.",
    ),
    "texts for all numbers": (lines(*map(prediction_row, ("1", "2", "3"))), "The qid '1' is a text, that of truth.jsonl is"),
    "text of another split": (lines(*map(prediction_row, (1, 2, "7"))), "no query '7' in truth.jsonl (3 queries). Is it of"),
    "reversed": (
        lines(prediction_row(1, pred_relevant_windows=[[4, 0, 1]]), *map(prediction_row, (2, 3))),
        "query 1: window [4.0, 0.0] is not inside its video of 6.0 s",
    ),
    "outside": (
        lines(prediction_row(1), prediction_row(2, pred_relevant_windows=[[0, 7, 1]]), prediction_row(3)),
        "query 2: window [0.0, 7.0] is not inside its video",
    ),
    "short saliency": (
        lines(prediction_row(1, pred_saliency_scores=[1]), *map(prediction_row, (2, 3))),
        "query 1 has 1 saliency scores, its video 3 clips",
    ),
    "long saliency": (
        lines(prediction_row(1, pred_saliency_scores=[1] * 4), *map(prediction_row, (2, 3))),
        "query 1 has 4 saliency scores, its video 3 clips",
    ),
    "no score": (
        lines(prediction_row(1, pred_relevant_windows=[[0, 4]])),
        "mine.jsonl:1: 'pred_relevant_windows' holds a list",
    ),
    "annotations": (
        lines(*map(truth_row, (1, 2, 3))),
        "mine.jsonl: a file of annotations (it has relevant_windows, relevant_clip_ids, saliency_scores, duration), "
        "expected predictions with pred_relevant_windows and pred_saliency_scores",
    ),
    "nothing predicted": (
        lines(prediction_row(1), {"qid": 2, "windows": [[0, 4, 1]]}, prediction_row(3)),
        "mine.jsonl:2: query 2 has neither pred_relevant_windows nor pred_saliency_scores",
    ),
    "another video": (
        lines(prediction_row(1, vid="v2"), *map(prediction_row, (2, 3))),
        "query 1 names the video 'v2', expected 'v1'",
    ),
    "another sentence": (
        lines(prediction_row(1, query="a dog"), *map(prediction_row, (2, 3))),
        "query 1 is 'a dog', in the truth it is 'a cat'",
    ),
    "a sentence with one word more": (
        lines(prediction_row(1, query="a cat runs"), *map(prediction_row, (2, 3))),
        "query 1 is 'a cat runs', in the truth it is 'a cat'",
    ),
}


@pytest.mark.parametrize("command", ["evaluate", "compare"])
@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
@pytest.mark.promise(13)
def test_bad_predictions_are_refused_in_one_sentence(folder, content, message, command):
    Path("mine.jsonl").unlink()
    if content is not None:
        Path("mine.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    files = (
        SCORE if command == "evaluate" else ("study", "compare", "worse.jsonl", "mine.jsonl", "--truth", "truth.jsonl")
    )
    result = costl(*files)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and result.stdout == "" and line.startswith("Error: ") and line.endswith((".", "?"))
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "truth.jsonl: no row in it"),
        (lines(truth_row(1), "{"), "truth.jsonl:2: '{' is not JSON"),
        (lines(truth_row(1, relevant_windows=[0, 4])), "truth.jsonl:1: 'relevant_windows' holds the number 0, expected lists"),
        (lines(truth_row(1, relevant_clip_ids=[0, 3])), "truth.jsonl:1: clip 3 is rated, but there are 3 clips"),
        (lines(truth_row(1, relevant_windows=[[4, 0]])), r"truth.jsonl:1: window [4.0, 0.0] is not 0 <= start < end"),
        (lines(*map(prediction_row, (1, 2, 3))), "truth.jsonl: a file of predictions (it has pred_relevant_windows"),
        (
            lines(*({"qid": qid, "query": "a cat", "vid": f"v{qid}", "duration": 6} for qid in (1, 2, 3))),
            "truth: none of its 3 queries has windows or rated clips",
        ),
    ],
)
def test_bad_annotations_are_refused_in_one_sentence(folder, content, message):
    Path("truth.jsonl").write_text(content)
    result = costl(*SCORE)
    assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def with_text_qids(text: str) -> bytes:
    return "".join(json.dumps(row | {"qid": str(row["qid"])}) + "\n" for row in map(json.loads, text.splitlines())).encode()


@pytest.mark.parametrize(
    ("mine", "truth"),
    [
        (str.encode, lambda text: text.encode("utf-8-sig")),
        (lambda text: text.encode("utf-8-sig"), str.encode),
        (lambda text: text.encode("utf-16"), lambda text: b"\xfe\xff" + text.encode("utf-16-be")),
        (lambda text: text.replace("\n", "\r\n").encode(), lambda text: text.replace("\n", "\r").encode()),
        (lambda text: json.dumps([*map(json.loads, text.splitlines())]).encode(), str.encode),
        (str.encode, lambda text: json.dumps([*map(json.loads, text.splitlines())], indent=1).encode()),
        (with_text_qids, with_text_qids),
        (lambda text: text.replace("a cat", "A  cat ").encode(), str.encode),
        (str.encode, lambda text: text.replace('"v2"', '"v2.mp4"').encode()),
    ],
)
def test_other_ways_to_write_the_same_files_give_the_same_scores(folder, mine, truth):
    before = costl(*SCORE)
    for path, rewrite in ((Path("mine.jsonl"), mine), (Path("truth.jsonl"), truth)):
        path.write_bytes(rewrite(path.read_text()))
    after = costl(*SCORE)
    assert after.exit_code == 0 and after.stdout == before.stdout and before.exit_code == 0


@pytest.mark.parametrize("mode", [(), ("--official",)])
def test_a_window_that_was_cut_is_noted(folder, mode):
    Path("truth.jsonl").write_text(lines(truth_row(1, relevant_windows=[[2, 6.4]]), *map(truth_row, (2, 3))))
    result = costl(*SCORE, *mode)
    note = "truth.jsonl: 1 queries have a window that reaches outside its video, query 1 by 0.4 s. These windows are cut there."
    assert result.exit_code == 0 and note in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "runs/x"), "--predictions cannot be combined with --run. It can be used with --predictions, --truth, "),
        (("--split", "val", "--cache", "f.h5"), "cannot be combined with --split, --cache"),
        (("--weights", "last"), "cannot be combined with --weights"),
        (("--submission", "hl.zip"), "cannot be combined with --submission"),
        (("--benchmark", "qvh"), "benchmark is 'qvh', expected one of qvhighlights, charades"),
        (("--benchmark", "youtube-highlights", "--out", "x"), "cannot be combined with --out"),
    ],
)
def test_options_that_do_not_go_together_are_named(folder, arguments, message):
    result = costl(*SCORE, *arguments)
    assert result.exit_code == 2 and result.stdout == "" and message in result.stderr


def test_one_file_without_the_other_is_refused(folder):
    for option in ("--predictions", "--truth"):
        result = costl("evaluate", option, "mine.jsonl")
        assert result.exit_code == 2 and "belong together: give both" in result.stderr


@pytest.mark.parametrize("mode", [(), ("--official",)])
@pytest.mark.promise(13)
def test_a_query_without_a_row_is_refused_by_name(folder, mode):
    Path("mine.jsonl").write_text(lines(prediction_row(2)))
    for command in (SCORE, ("study", "compare", "worse.jsonl", "mine.jsonl", "--truth", "truth.jsonl")):
        refused = costl(*command, *mode)
        assert refused.exit_code == 2 and refused.stdout == ""
        assert "mine.jsonl: no row for 1, 3, 2 of the 3 queries of truth.jsonl." in refused.stderr
        assert "empty lists" in refused.stderr


def test_a_query_with_empty_lists_counts_zero_and_is_noted(folder):
    Path("mine.jsonl").write_text(
        lines(prediction_row(1), prediction_row(2), prediction_row(3, pred_relevant_windows=[], pred_saliency_scores=[]))
    )
    result = json.loads(costl(*SCORE, "--json").stdout)
    assert result["brief"]["MR-full-R1@0.7"] == pytest.approx(200 / 3)
    assert result["notes"] == ["1 queries have no predicted window and count 0; the published evaluator stops."]
    official = costl(*SCORE, "--official")
    assert official.exit_code == 2 and "query 3 has no predicted windows" in official.stderr


# --- compare ------------------------------------------------------------------------------------------------------


def test_a_comparison_has_both_numbers_difference_interval_and_p(folder):
    result = json.loads(
        costl("study", "compare", "worse.jsonl", "mine.jsonl", "--truth", "truth.jsonl", "--json").stdout
    )
    row = result["rows"]["MR-full-R1@0.5"]
    assert (row["a"], row["b"], row["queries"]) == (pytest.approx(100 / 3), 100, 3)
    assert row["difference"] == pytest.approx(200 / 3) and row["interval"][1] == 100
    assert row["p"] == 0.5  # of the four patterns of two signs, two reach it
    assert result["rows"]["HL-min-VeryGood-mAP"]["p"] == 1.0 and result["rows"]["HL-min-VeryGood-mAP"]["difference"] == 0


def test_the_table_of_a_comparison_explains_itself(folder):
    text = costl("study", "compare", "worse.jsonl", "mine.jsonl", "--truth", "truth.jsonl").stdout
    header, row = (next(line for line in text.splitlines() if part in line) for part in ("B - A", "MR-full-R1@0.5"))
    assert cells(header) == ["", "A", "B", "B - A", "95 % interval", "p", "queries"]
    assert cells(row) == ["MR-full-R1@0.5", "33.33", "100.00", "+66.67", "+0.00 .. +100.00", "0.5000", "3"]
    assert "B is better in 0 and worse in 0 at p < 0.05" in text and "not what another training run would" in text
    assert "costl study compare mine.jsonl theirs.jsonl --truth val.jsonl" in costl("study", "compare", "--help").stdout


def test_swapping_the_files_negates_the_difference(folder):
    forth = compare(Path("worse.jsonl"), Path("mine.jsonl"), truth=Path("truth.jsonl")).rows
    back = compare(Path("mine.jsonl"), Path("worse.jsonl"), truth=Path("truth.jsonl")).rows
    for name, row in forth.items():
        assert (row.difference, row.p) == pytest.approx((-back[name].difference, back[name].p))
        assert row.interval == pytest.approx((-back[name].interval[1], -back[name].interval[0]))


@needs_fixtures
def test_two_released_methods_differ_as_published_and_significantly():
    a, b = FIXTURES / "moment_detr_sample" / "val_preds.jsonl", FIXTURES / "cgdetr" / "val_preds.jsonl"
    result = compare(a, b, truth=VAL, official=True)
    for path, name in ((a, "a"), (b, "b")):
        published = json.loads((path.parent / "val_metrics_recomputed.json").read_text())["brief"]
        assert {key: round(getattr(row, name), 2) for key, row in result.rows.items()} == published
    row = result.rows["MR-full-mAP"]
    assert row.p < 0.001 and row.interval[0] > 5
    queries = parse_jsonl(VAL.read_text(), "val")
    values = [
        measure(parse_predictions(path.read_text(), ""), queries, official=True)[1]["MR-full-mAP"] for path in (a, b)
    ]
    # A paired interval by the textbook: the spread of the differences, not of the two numbers.
    half = 1.96 * np.std(values[1] - values[0]) / np.sqrt(len(queries))
    assert row.interval == pytest.approx((row.difference - half, row.difference + half), abs=0.15)


def test_files_that_share_no_number_are_refused(folder):
    Path("moments.jsonl").write_text(lines(*(prediction_row(qid, pred_saliency_scores=[]) for qid in (1, 2, 3))))
    Path("saliency.jsonl").write_text(lines(*(prediction_row(qid, pred_relevant_windows=[]) for qid in (1, 2, 3))))
    result = costl("study", "compare", "moments.jsonl", "saliency.jsonl", "--truth", "truth.jsonl", "--official")
    assert result.exit_code == 2 and "nothing to compare" in result.stderr
