"""Several seeds: the numbers of the single runs, finished runs reused, a model a domain for TVSum."""

from __future__ import annotations

import json
import statistics

import pytest

from costl.evaluate import evaluate
from costl.experiments.repeat import LAST, LEGACY, Repeats, repeat
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.training.run_folder import read_run

QUICK = ("train.epochs=1", "train.batch_size=15")


def test_each_seed_is_a_run_and_the_table_has_their_mean_and_deviation(world, tmp_path):
    repeats = repeat(world.cache, seeds=2, overrides=QUICK, out=tmp_path / "r", device="cpu")
    singles = [evaluate(tmp_path / "r" / f"seed-{seed}", device="cpu").metrics["brief"] for seed in (0, 1)]
    assert repeats.by_seed == {"chosen on val": singles} and singles[0] != singles[1]
    assert [read_run(tmp_path / "r" / f"seed-{seed}").config.train.seed for seed in (0, 1)] == [0, 1]
    written = json.loads((tmp_path / "r" / "repeat.json").read_text())["ways"]["chosen on val"]
    assert written["by_seed"] == singles
    for name, mean in written["mean"].items():
        values = [row[name] for row in singles]
        assert mean == pytest.approx(statistics.mean(values))
        assert written["deviation"][name] == pytest.approx(statistics.stdev(values))


def test_finished_seeds_are_not_trained_again_when_one_is_added(world, tmp_path):
    two = repeat(world.cache, seeds=2, overrides=QUICK, out=tmp_path, device="cpu")
    trained_at = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    three = repeat(world.cache, seeds=3, overrides=QUICK, out=tmp_path, device="cpu")
    assert three.by_seed["chosen on val"][:2] == two.by_seed["chosen on val"]
    assert {path: path.stat().st_mtime_ns for path in trained_at} == trained_at


def test_runs_of_other_settings_are_refused(world, tmp_path):
    repeat(world.cache, seeds=1, overrides=QUICK, out=tmp_path, device="cpu")
    with pytest.raises(UsageError, match="was trained with other settings"):
        repeat(world.cache, seeds=1, overrides=["train.epochs=2"], out=tmp_path, device="cpu")


def test_tvsum_has_a_model_a_domain_and_labels_selection_on_test_legacy(world, tmp_path):
    cache = _as_tvsum(world, tmp_path)
    settings = ("data.benchmark=tvsum", "train.select=HL-top5-mAP", "train.epochs=2", "train.batch_size=15", "loss.contrast=0")
    plain = repeat(cache, seeds=1, overrides=settings, out=tmp_path / "plain", device="cpu")
    assert list(plain.by_seed) == [LAST]
    both = repeat(cache, seeds=2, overrides=[*settings, "train.select_on=test"], out=tmp_path / "both", device="cpu")
    assert sorted(p.name for p in (tmp_path / "both").iterdir() if p.is_dir()) == ["AA", "BB"]
    last, legacy = both.by_seed[LAST], both.by_seed[LEGACY]
    for row in (*last, *legacy):
        assert row["HL-top5-mAP"] == pytest.approx((row["HL-top5-mAP-AA"] + row["HL-top5-mAP-BB"]) / 2)
    assert all(best["HL-top5-mAP"] >= row["HL-top5-mAP"] for best, row in zip(legacy, last, strict=True))
    rows = (tmp_path / "both" / "AA" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert last[0]["HL-top5-mAP"] == plain.by_seed[LAST][0]["HL-top5-mAP"]  # selection on test changes no weight


def test_one_seed_has_no_deviation(tmp_path):
    rows = [{"HL-top5-mAP": 50.0, "HL-top5-mAP-BK": 40.0}]
    one = Repeats(tmp_path, "test", {LAST: rows})
    assert "±" not in "\n".join(one.lines()) and "50.00" in "\n".join(one.lines())
    two = Repeats(tmp_path, "test", {LAST: [*rows, {"HL-top5-mAP": 54.0, "HL-top5-mAP-BK": 40.0}]})
    assert "52.00 ± 2.83" in "\n".join(two.lines()) and "40.00 ± 0.00" in "\n".join(two.lines())


def _as_tvsum(world, tmp_path):
    """The small world with ratings only, its videos in two domains, and no validation split."""
    annotations = {}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in CacheReader(world.cache).annotations(split).splitlines()]
        vids = sorted({row["vid"] for row in rows})
        annotations[split] = "\n".join(json.dumps(_rated(row, vids.index(row["vid"]))) for row in rows)
    return world.copy(tmp_path / "tvsum", **annotations, val=None).cache


def _rated(row, number):
    clips = row["duration"] // 2
    ratings = [[(3 * i + number + rater * i) % 5 for rater in range(20)] for i in range(clips)]
    plain = {name: row[name] for name in ("qid", "query", "vid", "duration")}
    domain = ("AA", "BB")[number % 2]
    return plain | {"relevant_clip_ids": list(range(clips)), "saliency_scores": ratings, "domain": domain}
