"""The ablation: differences recomputed from the files of the runs, finished work reused, errors before any training."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.config import Loss, load_config
from costl.experiments.ablate import ablate
from costl.experiments.tables import Ablation, Row, markdown
from costl.experiments.variants import choose_variants, read_variants, resolve, standard_variants
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.training.run_folder import read_run

QUICK = ("train.epochs=1",)
KEY = "MR-full-mAP"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def written_number(out: Path, variant: str, seed: int, split: str) -> float:
    """The number in the metrics of the run's evaluation."""
    path = out / variant / f"seed-{seed}" / f"eval-{split}" / "metrics.json"
    return json.loads(path.read_text())["brief"][KEY]


def test_differences_are_paired_by_seed_and_from_the_runs_own_numbers(world, tmp_path):
    splits = ("test", "test_unseen")
    ablation = ablate(
        world.cache, seeds=2, variants=["steps-0"], splits=splits, overrides=QUICK, out=tmp_path, device="cpu"
    )
    written = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert list(written) == ["chance", "zero-shot CLIP", "full", "steps-0"]
    for split in splits:
        full, plain = ([written_number(tmp_path, name, seed, split) for seed in (0, 1)] for name in ("full", "steps-0"))
        differences = [b - a for a, b in zip(full, plain, strict=True)]
        row = written["steps-0"]
        assert row["mean"][split][KEY] == pytest.approx(statistics.mean(plain))
        assert row["deviation"][split][KEY] == pytest.approx(statistics.stdev(plain))
        assert row["difference"][split][KEY]["mean"] == pytest.approx(statistics.mean(differences))
        assert row["difference"][split][KEY]["deviation"] == pytest.approx(statistics.stdev(differences))
        half = 12.706 * statistics.stdev(differences) / math.sqrt(2)
        assert row["difference"][split][KEY]["half"] == pytest.approx(half)
        assert f"{statistics.mean(differences):+.1f} ± {statistics.stdev(differences):.1f}" in "\n".join(ablation.lines())
    assert [read_run(tmp_path / "steps-0" / f"seed-{s}").config.train.seed for s in (0, 1)] == [0, 1]
    assert read_run(tmp_path / "steps-0" / "seed-1").config.spatial.steps == 0
    assert "| steps-0 |" in (tmp_path / "ablation.md").read_text()
    assert "- steps-0: `spatial.steps=0`" in (tmp_path / "ablation.md").read_text()


def test_finished_runs_are_reused_and_the_rest_is_trained(world, tmp_path):
    settings = {"overrides": QUICK, "out": tmp_path, "device": "cpu"}
    stages = []

    def stop_after_the_first(progress):
        stages.append(progress.stage)
        if "2/2" in progress.stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(world.cache, seeds=1, variants=["cls"], progress=stop_after_the_first, **settings)
    assert not (tmp_path / "ablation.json").exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "full").rglob("*") if path.is_file()}
    stages.clear()
    ablate(world.cache, seeds=1, variants=["cls"], progress=lambda p: stages.append(p.stage), **settings)
    assert {path: path.stat().st_mtime_ns for path in times} == times  # neither trained nor evaluated again
    assert not any(stage.startswith("1/2 full seed 0: train") for stage in stages)
    assert any(stage.startswith("2/2 cls seed 0: train") for stage in stages)
    again = ablate(world.cache, seeds=1, variants=["cls"], **settings)
    assert again.difference(again.rows[1], "test", KEY).mean == pytest.approx(
        written_number(tmp_path, "cls", 0, "test") - written_number(tmp_path, "full", 0, "test")
    )


def test_numbers_of_other_rules_or_older_weights_are_not_reused(world, tmp_path):
    settings = {"seeds": 1, "variants": ["full"], "overrides": QUICK, "out": tmp_path, "device": "cpu"}
    first = ablate(world.cache, **settings)
    path = tmp_path / "full" / "seed-0" / "eval-test" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["brief"][KEY] += 1
    path.write_text(json.dumps(metrics | {"scored": metrics["scored"] | {"official": True}}))
    assert ablate(world.cache, **settings).rows == first.rows
    path.write_text(json.dumps(metrics))
    os.utime(tmp_path / "full" / "seed-0" / "best.safetensors")
    assert ablate(world.cache, **settings).rows == first.rows


def test_parallel_jobs_give_the_same_rows(world, tmp_path):
    settings = ("train.epochs=1", "train.threads=1")
    one = ablate(world.cache, seeds=1, variants=["cls"], overrides=settings, out=tmp_path / "1", device="cpu")
    command = [
        sys.executable,
        "-m",
        "costl",
        "study",
        "ablate",
        "--cache",
        world.cache,
        "--seeds",
        "1",
        "--variants",
        "cls",
    ]
    command += [*(f"--set={setting}" for setting in settings), "--device=cpu", "--jobs=2", "--out", tmp_path / "2"]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n".join(one.lines()) + "\n"


def test_a_killed_ablation_leaves_no_training_behind(world, tmp_path):
    command = [
        sys.executable,
        "-m",
        "costl",
        "study",
        "ablate",
        "--cache",
        str(world.cache),
        "--variants",
        "cls",
        "--seeds",
        "1",
    ]
    command += ["--set", "train.epochs=4000", "--set", "train.patience=4000", "--jobs", "2", "--out", str(tmp_path)]
    rows = [tmp_path / name / "seed-0" / "metrics.jsonl" for name in ("full", "cls")]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 200
            while not all(path.exists() for path in rows):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stdout) == (130, "") and "Interrupted." in stderr
    before = [path.read_text() for path in rows]
    time.sleep(2)
    assert [path.read_text() for path in rows] == before and not read_run(rows[0].parent).finished


def test_a_variant_that_does_not_fit_the_cache_is_refused_before_training(world, tmp_path, monkeypatch):
    monkeypatch.setattr(CacheReader, "patch_grid", (0, 0), raising=False)
    monkeypatch.setattr(CacheReader, "__setattr__", _keep_grid)
    with pytest.raises(UsageError, match=r"variant adapter: model\.kind is adapter, but the frames"):
        ablate(world.cache, variants=["adapter"], overrides=["spatial.steps=0"], out=tmp_path / "a", device="cpu")
    assert not (tmp_path / "a").exists()


def _keep_grid(self, name, value):
    object.__setattr__(self, name, (0, 0) if name == "patch_grid" else value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "small: {spatial.topk: 2}",
            "mine.yaml: small: --set spatial.topk=2: unknown setting spatial.topk. Did you mean 'top_k'?",
        ),
        ("small: {spatail.top_k: 2}", "unknown section 'spatail'. Did you mean 'spatial'?"),
        ("small: {spatial.top_k: many}", "spatial.top_k is 'many', expected a whole number"),
        ("small: {spatial.top_k: 0}", "spatial.top_k is 0, expected above zero"),
        ("small: 3", "small: found 3, expected settings"),
        ("full: {spatial.top_k: 2}", "full: is reserved for the model without changes"),
        ("../a: {spatial.top_k: 2}", "is the name of a folder"),
        ("[1, 2]", "expected variants such as"),
        ("a: {b: [}", "not valid YAML"),
        ("a: {spatial.top_k: 1}\na: {spatial.top_k: 2}", "'a' is given twice"),
    ],
)
def test_an_error_in_a_file_of_variants_names_file_and_variant(world, tmp_path, text, part):
    (tmp_path / "mine.yaml").write_text(text)
    out = tmp_path / "out"
    arguments = [
        "study",
        "ablate",
        "--cache",
        str(world.cache),
        "--variants",
        str(tmp_path / "mine.yaml"),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and part in result.stderr and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--variants", "step-0"], "--variants step-0: no such variant. Did you mean 'steps-0'?"),
        (["--variants", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--split", "tset"], "no split 'tset'"),
        (["--seeds", "0"], "seeds is 0"),
        (["--jobs", "0"], "jobs is 0"),
        (["--set", "train.epoch=1"], "Did you mean 'epochs'?"),
    ],
)
def test_wrong_arguments_are_refused_before_any_training(world, tmp_path, arguments, part):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["study", "ablate", "--cache", str(world.cache), "--out", str(out), *arguments])
    assert result.exit_code == 2 and part in result.stderr and not out.exists()


def test_runs_of_other_settings_are_refused_before_any_training(world, tmp_path):
    settings = {"seeds": 1, "out": tmp_path, "device": "cpu"}
    ablate(world.cache, variants=["full"], overrides=QUICK, **settings)
    with pytest.raises(UsageError, match="was trained with other settings"):
        ablate(world.cache, variants=["cls"], overrides=["train.epochs=2"], **settings)
    assert not (tmp_path / "cls").exists()


def test_standard_variants_change_one_thing_each_and_remove_every_part():
    variants = standard_variants(patches=49, learning_rate=1e-3)
    resolved, notes = resolve(variants, [], [])
    assert resolved[0].name == "full" and resolved[0].config == load_config()
    assert [note.split(":")[0] for note in notes] == ["steps-2", "top-k-32", "strides-1-2-4-8", "no-top-down"]
    assert len({repr(variant.config) for variant in resolved}) == len(resolved)
    slower = {name for name, changes in variants.items() if "train.learning_rate=0.00025" in changes}
    assert slower == {"cls-slower", "adapter-slower"}
    assert all(len(changes) == 1 for name, changes in variants.items() if name not in {"full", *slower})
    turned_off = {name for v in resolved for name, weight in vars(v.config.loss).items() if weight == 0}
    assert turned_off == set(vars(Loss()))
    assert variants["top-k-all"] == ("spatial.top_k=49",)


def test_names_and_files_of_variants_can_be_mixed(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("wide: {model.width: 64, temporal.strides: [1, 2]}\nfine: {train.learning_rate: 5e-4}\n")
    assert read_variants(mine)["wide"] == ("model.width=64", "temporal.strides=[1, 2]")
    chosen = choose_variants(["cls,adapter", str(mine)], patches=9, learning_rate=1e-3)
    assert list(chosen) == ["full", "cls", "adapter", "wide", "fine"]
    resolved, notes = resolve(chosen, [], ["train.epochs=7"])
    assert {variant.config.train.epochs for variant in resolved} == {7}
    assert resolved[3].config.model.width == 64 and resolved[3].config.temporal.strides == (1, 2)
    assert notes == ["fine: the settings of the full model, left out."]


def test_one_seed_has_no_deviation_and_a_missing_number_is_a_dash(tmp_path):
    rows = [Row(name, (), ({"test": {KEY: value}, "hl": {}},)) for name, value in (("full", 50.0), ("b", 47.5))]
    ablation = Ablation(tmp_path, ("test", "hl"), (0,), (), tuple(rows))
    assert list(ablation.columns) == ["mAP"]
    lines = ablation.lines()
    assert lines[3].split() == ["full", "50.0", "-"] and lines[-1].split() == ["b", "-2.5", "-"]
    assert "| b | -2.5 | - |" in markdown(ablation)
