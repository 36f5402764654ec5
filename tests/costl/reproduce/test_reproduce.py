"""`costl reproduce`: a miniature of each benchmark in one command, its table, missing videos, and what is refused.

Two more of the miniatures are in `tests/crash/test_reproduce_kills.py`.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from miniatures import Miniature, write_miniature
from table_cells import cells

from costl.commands import main
from costl.experiments.scored_runs import stored_predictions
from costl.metrics.compute import compute_metrics
from costl.metrics.score_files import read_truth
from costl.pipeline.errors import BusyError, CostlError, UsageError
from costl.pipeline.formats.files import locked
from costl.pipeline.progress import Progress
from costl.pipeline.world.write_world import TINY_CLIP
from costl.reproduce import forecast, measure
from costl.reproduce.forecast import Rates
from costl.reproduce.reproduce import reproduce

SMALL = ("model.width=16", "model.heads=2", "spatial.top_k=4", "train.epochs=1", "train.warmup_steps=1")
RATES = Rates(1, 0.5, 1, 1, 1, 1, 1, 1, 1)


@pytest.fixture
def no_measurement(monkeypatch) -> None:
    monkeypatch.setattr(measure, "measure", lambda *_, **__: RATES)


def published(miniature: Miniature, folder: Path, *, fps: float = 0.5) -> dict:
    """The arguments for features of a miniature."""
    frames, text = miniature.publish(folder, fps=fps)
    return {"annotations": miniature.annotations, "features": {"all": frames}, "text": text}


def brief_by_hand(folder: Path, benchmark: str, runs: list[str]) -> dict:
    """The official numbers of the predictions in `runs`, without anything of `costl.reproduce`."""
    rows = [row for run in runs for row in stored_predictions(folder / "runs" / run, "test", "best")]
    return compute_metrics(rows, read_truth(folder / "prepared" / "test.jsonl"), benchmark=benchmark, official=True)["brief"]


def test_qvhighlights_ends_with_the_table_of_a_paper(tmp_path, no_measurement):
    options = published(write_miniature("qvhighlights", tmp_path / "official"), tmp_path)
    result = reproduce("qvhighlights", **options, seeds=2, overrides=SMALL, out=tmp_path / "r", device="cpu")
    by_seed = [brief_by_hand(tmp_path / "r", "qvhighlights", [f"seed-{seed}"]) for seed in (0, 1)]
    assert result.scores["chosen on val"].by_seed == by_seed and result.official and result.exit_code == 0

    values = [row["MR-full-mAP"] for row in by_seed]
    mean = np.mean(values)
    deviation = np.std(values, ddof=1)
    lines = (tmp_path / "r" / "table.md").read_text().splitlines()
    rows = {row[0]: row for row in map(cells, filter(lambda line: line.startswith("|"), lines))}
    column = rows["Method"].index("mAP avg")
    assert rows["CoSTL, chosen on val, 2 seeds"][column] == f"{mean:.2f} ± {deviation:.2f}"
    r2_tuning = ["CLIP ViT-B/32", "2024", "68.03", "49.35", "69.04", "47.56", "46.17", "40.75", "64.20"]
    assert rows["R2-Tuning"][1:-1] == r2_tuning and "IAE-VTG" in rows["R2-Tuning"][-1]

    table = list(csv.DictReader((tmp_path / "r" / "table.csv").read_text().splitlines()))
    assert float(table[-1]["mAP avg"]) == pytest.approx(mean, abs=1e-4)
    assert float(table[-1]["mAP avg deviation"]) == pytest.approx(deviation, abs=1e-4)
    tex = (tmp_path / "r" / "table.tex").read_text()
    assert r"\bottomrule" in tex and rf"{mean:.2f} $\pm$ {deviation:.2f}" in tex and tex.count("Methods.") == 1
    for part in ("seeds 0 to 1", "best MR-full-mAP on val", "No video is missing", "model.width=16", "all 12 channels"):
        assert part in result.methods, part


def test_tacos_says_which_annotation_files_differ(tmp_path, no_measurement):
    options = published(write_miniature("tacos", tmp_path / "official"), tmp_path)
    messages: list[str] = []
    result = reproduce(
        "tacos",
        **options,
        seeds=1,
        overrides=SMALL,
        out=tmp_path / "r",
        device="cpu",
        progress=lambda update: messages.append(update.message),
    )
    differ = "Annotation files other than in the official release (sha256): test.jsonl, train.jsonl, val.jsonl."
    assert differ in "\n".join(messages) and differ in result.methods and "±" not in "".join(result.lines()[-2:])
    assert result.scores["chosen on val"].by_seed == [brief_by_hand(tmp_path / "r", "tacos", ["seed-0"])]


def test_tvsum_has_a_model_a_domain_and_measures_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos = write_miniature("tvsum", tmp_path / "official").render(tmp_path / "videos")
    shutil.copy(next(videos.iterdir()), videos / "not-annotated.mp4")
    options = [part for setting in SMALL for part in ("--set", setting)]
    command = ["reproduce", "tvsum", "--annotations", "official", "--videos", "videos", "--seeds", "1", "--table", "latex"]
    done = CliRunner().invoke(main, [*command, *options, "--weights", str(TINY_CLIP), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("% needs") and "CoSTL, last epoch, 1 seed &" in done.stdout
    written = json.loads(Path("reproduce-tvsum/results.json").read_text())
    assert sorted(path.name for path in Path("reproduce-tvsum/runs").iterdir() if path.is_dir()) == ["BK", "VT"]
    (numbers,) = written["selections"]["last epoch"]["by_seed"]
    of_domains = [numbers["HL-top5-mAP-BK"], numbers["HL-top5-mAP-VT"]]
    assert numbers["HL-top5-mAP"] == pytest.approx(sum(of_domains) / 2, abs=0.01)  # all three are rounded
    assert "About" in done.stderr and "the features of 10 videos" in done.stderr and "for 2 trainings" in done.stderr
    assert "10 videos extracted" in done.stderr  # and not the one without annotations
    rates = forecast.read_rates(Path("reproduce-tvsum/forecast.json"))
    assert rates and rates.fps == 0.5 and min(rates.clip_s, rates.train_s, rates.predict_s, rates.run_s) > 0
    parts = [path.stat().st_size for path in Path("reproduce-tvsum/features.h5.parts").glob("*.h5")]
    assert rates.clip_bytes * 60 == pytest.approx(sum(parts), rel=0.02)  # ten videos of six clips


def test_queries_without_videos_count_zero_and_the_table_counts_them(tmp_path, no_measurement):
    miniature = write_miniature("youtube-highlights", tmp_path / "official")
    options = published(miniature, tmp_path, fps=1) | {"seeds": 1, "overrides": SMALL, "device": "cpu"}
    gone = miniature.test_rows[1]["vid"]  # the only test video of its domain
    (options["features"]["all"] / f"{gone}.npz").unlink()
    with pytest.raises(UsageError, match=rf"1 of 10 annotated videos are missing: {gone}\. .*--allow-missing-videos"):
        reproduce("youtube-highlights", **options, out=tmp_path / "r")
    result = reproduce("youtube-highlights", **options, out=tmp_path / "r", allow_missing_videos=True)
    (numbers,) = result.scores["chosen on val"].by_seed
    assert numbers["HL-mAP-surfing"] == 0 and numbers["HL-mAP"] == numbers["HL-mAP-dog"] / 2 > 0
    text = "\n".join(result.lines())
    assert "1 of 2 test queries are unanswered" in text and "strict rules" in text and result.exit_code == 1
    assert "1 of 2 queries of test" in result.methods and "Left out, without a video with features" in result.methods
    assert "Published rows of YouTube Highlights are missing" in text
    miniature.publish(tmp_path / "again", fps=1)
    shutil.copy(tmp_path / "again" / "frames" / f"{gone}.npz", options["features"]["all"])
    with pytest.raises(UsageError, match="learned from other videos than there are now"):
        reproduce("youtube-highlights", **options, out=tmp_path / "r")


@pytest.fixture(scope="module")
def tacos(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tacos")
    return published(write_miniature("tacos", folder / "official"), folder)


def test_a_small_disk_is_refused_before_the_first_video(tacos, tmp_path, monkeypatch, no_measurement):
    monkeypatch.setattr(forecast, "free_bytes", lambda folder: 20)
    with pytest.raises(UsageError, match=r"0\.0 MB are free, and 0\.0 MB are needed for the features of 5 videos"):
        reproduce("tacos", **tacos, out=tmp_path / "r")
    assert not (tmp_path / "r" / "features.h5").exists()


def test_two_runs_in_one_folder_are_refused(tacos, tmp_path):
    (tmp_path / "r").mkdir()
    with locked(tmp_path / "r" / ".lock", ""), pytest.raises(BusyError, match="r: another costl reproduce works here"):
        reproduce("tacos", **tacos, out=tmp_path / "r")


def test_an_interrupt_says_that_the_same_command_continues(tacos, tmp_path, no_measurement):
    def interrupt(update: Progress) -> None:
        if update.stage == "videos":
            raise KeyboardInterrupt("Every step is kept; costl train --resume x goes on from there.")

    partial = tmp_path / "r" / "prepared" / ".test.jsonl.12-ab.tmp"
    partial.parent.mkdir(parents=True)
    partial.write_text("")
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        reproduce("tacos", **tacos, out=tmp_path / "r", progress=interrupt)
    assert not partial.exists()


def of(**changes: object) -> Callable[[dict], dict]:
    return lambda options: {name: value for name, value in (options | changes).items() if value != "gone"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of(features="gone"), "--videos and --features are both missing"),
        (of(videos=Path("v")), "--videos and --features are both given"),
        (of(features="gone", videos=Path("v")), "--text and --joint belong to --features"),
        (of(text="gone"), "--text is missing"),
        (of(dtype="int8", model="ViT-B-16"), "--dtype, --model: for --videos only"),
        (of(features="gone", text="gone", videos=Path("v"), dtype="float99"), "dtype is 'float99'"),
        (of(annotations=Path("gone")), "gone: no such folder"),
        (of(overrides=["train.epochs=x"]), "expected a whole number"),
        (of(joint="b"), "--joint b: no such stream"),
    ],
)
def test_wrong_arguments_are_refused_with_nothing_trained(change, reason, tacos, tmp_path, monkeypatch, no_measurement):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CostlError, match=reason):
        reproduce("tacos", **change(tacos))
    assert not Path("reproduce-tacos/runs").exists()
    assert not list(tmp_path.iterdir()) or "joint" in reason


def test_a_folder_with_other_files_is_refused(tacos, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds files that costl reproduce did not write \(notes.txt\)"):
        reproduce("tacos", **tacos, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_test_split_without_labels_is_refused(tmp_path):
    miniature = write_miniature("qvhighlights", tmp_path / "official")
    labelled = miniature.annotations / "highlight_test_with_gt.jsonl"
    row = json.loads(labelled.read_text().splitlines()[0])
    unlabelled = {name: row[name] for name in ("qid", "query", "duration", "vid")}
    (miniature.annotations / "highlight_test_release.jsonl").write_text(json.dumps(unlabelled) + "\n")
    labelled.unlink()
    with pytest.raises(UsageError, match="the test split has no labels"):
        reproduce("qvhighlights", **published(miniature, tmp_path), out=tmp_path / "r")
