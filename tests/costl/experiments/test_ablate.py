"""The ablation: differences recomputed from the files of the runs, finished work reused, errors before any training."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from preloaded import Preloaded

from costl.commands import main
from costl.config import Loss, load_config
from costl.experiments.ablate import ablate
from costl.experiments.tables import Ablation
from costl.experiments.variants import choose_variants, standard_variants
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.training.run_folder import read_run

QUICK = ("train.epochs=1", "train.batch_size=15")
ONE_THREAD = (*QUICK, "train.threads=1")
KEY = "MR-full-mAP"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Ablation:
    """A finished ablation of one variant, which no test may change."""
    folder = tmp_path_factory.mktemp("ablation") / "out"
    return ablate(world.cache, seeds=1, variants=["cls"], overrides=ONE_THREAD, out=folder, device="cpu")


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of that ablation."""
    return shutil.copytree(whole.folder, tmp_path / "finished")


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
        assert row["statistics"][split]["mean"][KEY] == pytest.approx(statistics.mean(plain))
        assert row["statistics"][split]["deviation"][KEY] == pytest.approx(statistics.stdev(plain))
        assert row["difference"][split]["mean"][KEY] == pytest.approx(statistics.mean(differences))
        assert row["difference"][split]["deviation"][KEY] == pytest.approx(statistics.stdev(differences))
        half = 12.706 * statistics.stdev(differences) / math.sqrt(2)
        assert row["difference"][split]["half"][KEY] == pytest.approx(half)
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
    assert not any(stage.startswith("1/2 full seed-0: train") for stage in stages)
    assert any(stage.startswith("2/2 cls seed-0: train") for stage in stages)
    again = ablate(world.cache, seeds=1, variants=["cls"], **settings)
    assert again.differences()["cls"]["test"][0][KEY] == pytest.approx(
        written_number(tmp_path, "cls", 0, "test") - written_number(tmp_path, "full", 0, "test")
    )


def test_numbers_of_other_rules_or_older_weights_are_not_reused(world, whole, finished):
    settings = {"seeds": 1, "variants": ["full"], "overrides": ONE_THREAD, "out": finished, "device": "cpu"}
    path = finished / "full" / "seed-0" / "eval-test" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["brief"][KEY] += 1
    path.write_text(json.dumps(metrics | {"scored": metrics["scored"] | {"official": True}}))
    assert ablate(world.cache, **settings).variants["full"] == whole.variants["full"]
    path.write_text(json.dumps(metrics))
    os.utime(finished / "full" / "seed-0" / "best.safetensors")
    assert ablate(world.cache, **settings).variants["full"] == whole.variants["full"]


def test_parallel_jobs_give_the_same_rows(world, whole, tmp_path):
    command = ["-m", "costl", "study", "ablate", "--cache", world.cache, "--seeds", 1, "--variants", "cls"]
    command += [*(f"--set={setting}" for setting in ONE_THREAD), "--device=cpu", "--jobs=2", "--out", tmp_path]
    with Preloaded(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout == "\n".join(whole.lines()) + "\n"


def test_a_killed_ablation_leaves_no_training_behind(world, tmp_path):
    command = ["-m", "costl", "study", "ablate", "--cache", world.cache, "--variants", "cls", "--seeds", 1]
    command += ["--set", "train.epochs=4000", "--set", "train.patience=4000", "--jobs", "2", "--out", tmp_path]
    rows = [tmp_path / name / "seed-0" / "metrics.jsonl" for name in ("full", "cls")]
    with Preloaded(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
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
    time.sleep(0.5)  # an epoch takes a tenth of that
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
    ("arguments", "part"),
    [
        (["--variants", "step-0"], "--variants step-0: no such variant. Did you mean steps-0 or steps-1 or strides-1?"),
        (["--variants", "spatial.topk=2"], "variant spatial.topk=2: --set spatial.topk=2: unknown setting spatial.topk. Did you"),
        (["--split", "tset"], "no split 'tset'"),
        (["--seeds", "0"], "0 is not in the range 1<=x"),
        (["--jobs", "0"], "0 is not in the range 1<=x"),
        (["--set", "train.epoch=1"], "Did you mean epochs?"),
    ],
)
def test_wrong_arguments_are_refused_before_any_training(world, tmp_path, arguments, part):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["study", "ablate", "--cache", str(world.cache), "--out", str(out), *arguments])
    assert result.exit_code == 2 and part in result.stderr and not out.exists()


def test_runs_of_other_settings_are_refused_before_any_training(world, finished):
    shutil.rmtree(finished / "cls")
    with pytest.raises(UsageError, match="was trained with other settings"):
        ablate(world.cache, seeds=1, variants=["cls"], overrides=["train.epochs=2"], out=finished, device="cpu")
    assert not (finished / "cls").exists()


def test_standard_variants_change_one_thing_each_and_remove_every_part():
    variants = standard_variants(patches=49, learning_rate=1e-3)
    configs = [load_config(overrides=changes) for changes in variants.values()]
    assert next(iter(variants)) == "full" and configs[0] == load_config()
    assert len(set(map(repr, configs))) == len(configs)
    slower = {name for name, changes in variants.items() if "train.learning_rate=0.00025" in changes}
    assert slower == {"cls-slower", "adapter-slower"}
    assert all(len(changes) == 1 for name, changes in variants.items() if name not in {"full", *slower})
    turned_off = {name for config in configs for name, weight in vars(config.loss).items() if weight == 0}
    assert turned_off == set(vars(Loss()))
    assert variants["top-k-all"] == ("spatial.top_k=49",)


def test_names_and_settings_of_variants_can_be_mixed():
    chosen = choose_variants(["cls,adapter", "model.width=64 temporal.strides=[1,2]"], patches=9, learning_rate=1e-3)
    assert list(chosen) == ["full", "cls", "adapter", "model.width=64 temporal.strides=[1,2]"]
    config = load_config(overrides=list(chosen.values())[-1])
    assert config.model.width == 64 and config.temporal.strides == (1, 2)


def test_a_variant_with_the_settings_of_the_full_model_is_left_out(world, tmp_path):
    base = [*QUICK, "spatial.steps=0"]
    ablation = ablate(world.cache, seeds=1, variants=["steps-0"], overrides=base, out=tmp_path, device="cpu")
    assert list(ablation.variants) == ["full"]
    assert "steps-0: the settings of the full model, left out." in ablation.messages()


def test_one_seed_has_no_deviation_and_a_missing_number_has_no_column(tmp_path):
    numbers = {
        name: {"test": [{KEY: value, "x": 1.0}], "hl": [{"HL-mAP": value}]} for name, value in (("full", 50.0), ("b", 47.5))
    }
    ablation = Ablation(tmp_path, {}, numbers, {"full": (), "b": ("model.kind=cls",)})
    rows = [line.split() for line in ablation.lines()]
    assert ["|", "test", "|", "mAP", "|"] in rows and ["|", "hl", "|", "HL-mAP", "|"] in rows
    assert ["|", "full", "|", "50.0", "|"] in rows and ["|", "b", "|", "-2.5", "|"] in rows
    assert "- b: `model.kind=cls`" in ablation.markdown()
