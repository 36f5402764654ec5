"""Evaluation: the same numbers as validation, the written files, and refusals that name the next step."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from costl.config import Config
from costl.data.annotations import Prediction, Query, parse_predictions
from costl.data.queries import data_notes, read_queries
from costl.evaluate import choose_examples, evaluate
from costl.experiments.ablate import ablate
from costl.experiments.repeat import repeat
from costl.experiments.untrained_baselines import zero_shot
from costl.metrics.compute import compute_metrics
from costl.model.build import build_model, cache_sizes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.extract import extract
from costl.predict.loaded_run import open_run
from costl.predict.postprocess import rated_saliency
from costl.predict.predict import predict_split
from costl.report.build import report
from costl.submission import submit
from costl.train import train
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import newest_run, read_run


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A trained run of the small world."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(world.cache, out=folder, device="cpu")
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_an_evaluation_writes_metrics_predictions_and_a_picture(world, copy, real_pictures):
    evaluation = evaluate(copy, split="test", device="cpu")
    assert evaluation.folder == copy / "eval-test"
    text = (evaluation.folder / "predictions.jsonl").read_text()
    predictions = parse_predictions(text, "predictions.jsonl")
    queries = read_queries(CacheReader(world.cache), "test")
    assert [p.qid for p in predictions] == [q.qid for q in queries]
    intervals = evaluation.metrics["intervals"]
    assert compute_metrics(predictions, queries) == {
        name: part for name, part in evaluation.metrics.items() if name not in ("intervals", "scored", "rejection")
    }
    assert intervals and all(
        low <= evaluation.metrics["brief"][name] <= high for name, (low, high) in intervals.items()
    )
    assert json.loads((evaluation.folder / "metrics.json").read_text()) == evaluation.metrics
    assert pq.read_table(evaluation.folder / "predictions.parquet").num_rows == len(queries)
    with Image.open(evaluation.folder / "predictions.png") as picture:
        assert picture.width > 1000 and picture.height > 600


def test_evaluating_val_gives_the_score_that_chose_the_checkpoint(copy):
    _, meta = load_checkpoint(copy, "best")
    evaluation = evaluate(copy, split="val", device="cpu")
    assert evaluation.metrics["brief"]["MR-full-mAP"] == pytest.approx(meta["score"])


def test_last_weights_are_the_average_of_the_last_epoch(world, copy):
    average, best = load_checkpoint(copy, "last")[1]["average"], load_checkpoint(copy, "best")[0]
    for which, expected in (("last", average), ("best", best)):
        loaded = open_run(copy, weights=which, device="cpu").model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    metrics = evaluate(copy, split="val", weights="last", device="cpu").metrics["brief"]
    assert metrics == {name: pytest.approx(value) for name, value in rows[-1]["val"].items()}
    with pytest.raises(UsageError, match="weights is 'lsat', expected one of best, last"):
        evaluate(copy, weights="lsat", device="cpu")


def with_domains(text: str) -> str:
    """Videos in two domains, without windows, as TVSum has them."""
    rows = [json.loads(line) for line in text.splitlines()]
    vids = sorted({row["vid"] for row in rows})
    for row in rows:
        row["domain"] = ("BK", "BT")[vids.index(row["vid"]) % 2]
        row["saliency_scores"] = row["saliency_scores"] or [[3, 2, 0]]
        row["relevant_clip_ids"] = row["relevant_clip_ids"] or [0]
        row["relevant_windows"] = None
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_run_is_trained_and_evaluated_on_its_domain_by_its_benchmark(world, tmp_path):
    splits = {split: with_domains(CacheReader(world.cache).annotations(split)) for split in ("train", "val", "test")}
    copy = world.copy(tmp_path, **splits)
    settings = ["data.benchmark=tvsum", "data.domain=BT", "train.select=HL-top5-mAP", "train.epochs=1"]
    train(copy.cache, overrides=settings, out=tmp_path / "run", device="cpu")
    evaluation = evaluate(tmp_path / "run", device="cpu")
    assert set(evaluation.metrics["brief"]) == {"HL-top5-mAP", "HL-top5-mAP-BT"}
    in_domain = [q for q in read_queries(CacheReader(copy.cache), "test") if q.domain == "BT"]
    assert 0 < len(in_domain) < len(read_queries(CacheReader(copy.cache), "test"))
    rows = (evaluation.folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(row)["qid"] for row in rows] == [q.qid for q in in_domain]
    other = evaluate(tmp_path / "run", benchmark="qvhighlights", device="cpu").metrics["brief"]
    assert "HL-min-VeryGood-mAP" in other and "HL-top5-mAP" not in other
    with pytest.raises(UsageError, match="split 'train' has no domain 'BKK', only BK, BT"):
        train(copy.cache, overrides=["data.domain=BKK"], out=tmp_path / "other", device="cpu")
    with pytest.raises(UsageError, match="benchmark is 'tvsun', expected one of"):
        evaluate(tmp_path / "run", benchmark="tvsun", device="cpu")
    with pytest.raises(UsageError, match="split 'test_unseen' has no domain 'BT', only none"):
        evaluate(tmp_path / "run", split="test_unseen", device="cpu")


def test_a_split_without_labels_is_predicted_and_has_no_metrics(world, copy, tmp_path):
    evaluate(copy, device="cpu")
    rows = [json.loads(line) for line in CacheReader(world.cache).annotations("test").splitlines()]
    unlabelled = "".join(
        json.dumps({key: row[key] for key in ("qid", "query", "vid", "duration")}) + "\n" for row in rows
    )
    small = world.copy(tmp_path / "unlabelled", test=unlabelled)
    evaluation = evaluate(copy, cache=small.cache, device="cpu")
    assert evaluation.metrics == {} and evaluation.notes == (
        "test: no labels, so that there are predictions and no metrics.",
    )
    names = {path.name for path in evaluation.folder.iterdir()}
    assert names == {"predictions.jsonl", "predictions.parquet", "predictions.png"}  # the old metrics.json is gone
    assert len((evaluation.folder / "predictions.jsonl").read_text().splitlines()) == len(rows)


def test_windows_are_rounded_to_the_set_unit(world, copy):
    config = (copy / "config.yaml").read_text()
    assert "round_s: null" in config
    (copy / "config.yaml").write_text(config.replace("round_s: null", "round_s: 3.0"))
    evaluation = evaluate(copy, device="cpu")
    windows = [
        w for row in parse_predictions((evaluation.folder / "predictions.jsonl").read_text(), "p") for w in row.windows
    ]
    assert windows and all(start % 3 == 0 and end % 3 == 0 and 0 <= start < end <= 24 for start, end, _ in windows)


def of_all_lengths(features: CacheReader, path: Path) -> CacheReader:
    """The same videos cut to different lengths, each shorter than the one before, so that batches have padding."""
    with CacheWriter(path, features.contents, features.word_table()) as writer:
        for less, name in enumerate(features.video_ids):
            tokens, times_s = features.tokens(name)[less:], features.times_s(name)[: len(features.times_s(name)) - less]
            joint = features.joint_vectors(name)[less:].astype(np.float16)
            seconds = len(tokens) / features.fps
            writer.store(name, tokens=tokens, joint=joint, times_s=times_s, duration_s=seconds, content_hash=name)
        writer.write_index()
    return CacheReader(path)


@pytest.mark.promise(14)
def test_predictions_depend_on_neither_order_nor_batch(world, run, tmp_path, report_figure):
    whole = CacheReader(world.cache)
    config = read_run(run).config
    features = of_all_lengths(whole, tmp_path / "feats.h5")
    model = build_model(config, **cache_sizes(config, features))
    model.load_state_dict(load_checkpoint(run, "best")[0])
    labelled = [q for split in whole.splits for q in read_queries(whole, split)]
    queries = [Query(q.qid, q.query, q.vid, features.grid(q.vid).duration_s) for q in labelled]
    assert len({q.duration_s for q in queries}) == len(features.video_ids)

    def predict(some_queries):
        predictions = predict_split(model, some_queries, features, config=config, device=torch.device("cpu"))
        return {p.qid: np.concatenate([np.ravel(p.windows), p.saliency]) for p in predictions}

    together = predict(queries)
    backwards = predict(queries[::-1])
    single = {qid: row for query in queries[::3] for qid, row in predict([query]).items()}
    most = max(np.abs(together[qid] - other[qid]).max() for other in (backwards, single) for qid in other)
    report_figure(
        f"{len(backwards)} queries backwards, {len(single)} of them alone: seconds and scores differ by {most:.0e} at most"
    )
    assert all(np.allclose(together[qid], backwards[qid], atol=1e-4) for qid in together)
    assert all(np.allclose(together[qid], single[qid], atol=1e-4) for qid in single)


def test_predicting_does_not_change_the_mode_of_the_model(world, run):
    features = CacheReader(world.cache)
    config = read_run(run).config
    model = build_model(config, **cache_sizes(config, features)).train()
    predict_split(model, read_queries(features, "val"), features, config=config, device=torch.device("cpu"))
    assert model.training and next(model.parameters()).requires_grad


def test_official_mode_rounds_as_published(copy):
    metrics = evaluate(copy, official=True, device="cpu").metrics
    assert "MR-full-R1@0.3" not in metrics["brief"]
    assert [note for note in metrics.get("notes", []) if "published evaluator stops" not in note] == []
    assert all(value == round(value, 2) for value in metrics["brief"].values())


def test_saliency_is_one_score_for_two_seconds_whatever_the_features(world, tmp_path):
    cache = extract(world.videos, out=tmp_path / "fine.h5", fps=1.25, device="cpu", workers=1).cache
    train(cache, overrides=["train.epochs=1", "train.batch_size=30"], out=tmp_path / "run", device="cpu")
    evaluate(tmp_path / "run", device="cpu")
    lines = (tmp_path / "run" / "eval-test" / "predictions.jsonl").read_text().splitlines()
    assert {len(json.loads(line)["pred_saliency_scores"]) for line in lines} == {12}  # 24 s
    assert CacheReader(cache).grid("test_0000").clips == 30


@pytest.mark.parametrize(
    ("saliency", "fps", "duration_s", "expected"),
    [
        ((1, 2, 3), 0.5, 6.0, (1, 2, 3)),  # the same grid
        ((1, 3, 5, 9), 1.0, 4.0, (2, 7)),  # two clips of one second in each two
        ((1, 2, 3, 4, 5), 1.25, 4.0, (1.5, 4)),  # centres 0.4 1.2 | 2.0 2.8 3.6
        ((1, 5), 0.25, 8.0, (1, 1, 5, 5)),  # clips of four seconds: the nearest
        ((7,), 0.01, 6.0, (7, 7, 7)),
        ((1, 2, 3), 0.5, 6.9, (1, 2, 3)),  # what is left is less than half a clip
        ((1, 2, 3), 0.5, 7.5, (1, 2, 3, 3)),  # annotated longer than the video is
        ((1, 2, 3), 0.5, 4.0, (1, 2)),  # annotated shorter
        ((4,), 0.5, 0.7, (4,)),
    ],
)
def test_scores_are_averaged_into_two_seconds(saliency, fps, duration_s, expected):
    query = Query(1, "a sentence", "v", duration_s)
    assert rated_saliency([float(score) for score in saliency], query, fps=fps) == pytest.approx(expected)


def test_saliency_is_averaged_over_the_rated_windows_of_a_query():
    query = Query(1, "dog", "v", 8.0, (), (0,), ((1.0,),), ((0.0, 3.0), (2.0, 5.0), (5.1, 5.3), (5.0, 8.0)))
    scores = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]  # one a second, centres at 0.5, 1.5, ...
    assert rated_saliency(scores, query, fps=1.0) == pytest.approx((1.0, 3.0, 5.0, 6.0))


def test_the_newest_run_is_the_one_started_last(copy, tmp_path, monkeypatch):
    older = Path(shutil.copytree(copy, tmp_path / "runs" / "z-older"))
    newer = Path(shutil.copytree(copy, tmp_path / "runs" / "a-newer"))
    (tmp_path / "runs" / "no-run").mkdir()
    about = json.loads((older / "run.json").read_text())
    (older / "run.json").write_text(json.dumps(about | {"started": "2020-01-01T00:00:00+00:00"}))
    (newer / "run.json").write_text(json.dumps(about | {"started": "2020-01-01T00:30:00+01:00"}))
    assert newest_run(tmp_path / "runs").folder == older  # half past twelve in another time zone is earlier
    monkeypatch.chdir(tmp_path)
    assert evaluate(device="cpu").run == Path("runs/z-older")


def test_without_a_run_the_error_names_the_next_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"runs/: no trained run\. Train one with costl train"):
        evaluate()
    with pytest.raises(UsageError, match=r"elsewhere: not a run, run\.json is missing"):
        evaluate(Path("elsewhere"))


def test_a_missing_split_is_refused_with_the_names_of_the_splits(copy):
    with pytest.raises(UsageError, match="no split 'tset', only test, test_unseen, train, val"):
        evaluate(copy, split="tset")


def test_a_cache_with_other_features_is_refused_with_the_difference(world, copy, tmp_path):
    other = extract(world.videos / "test_0000.mp4", out=tmp_path / "other.h5", annotations=_one(world), fps=1.0)
    with pytest.raises(CacheError, match=r"holds other features than .*fps: cache has 1\.0, asked for 0\.5"):
        evaluate(copy, cache=other.cache)


def test_a_moved_cache_is_used_when_its_path_is_given(world, copy, tmp_path):
    moved = world.copy(tmp_path)
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(about | {"cache": str(tmp_path / "gone.h5")}))
    with pytest.raises(CacheError, match=r"gone\.h5: no cache there.* with --cache"):
        evaluate(copy)
    assert evaluate(copy, cache=moved.cache, device="cpu").split == "test"


def test_a_damaged_run_is_refused(copy):
    (copy / "run.json").write_text("{")
    with pytest.raises(CacheError, match=r"run\.json: damaged"):
        evaluate(copy)


def test_weights_of_another_model_are_refused(copy):
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("width: 32", "width: 64"))
    with pytest.raises(CacheError, match="weights do not fit"):
        evaluate(copy, device="cpu")


@pytest.mark.promise(13)
def test_queries_about_videos_without_features_score_0_and_are_named(world, copy, tmp_path):
    lines = CacheReader(world.cache).annotations("test").splitlines()
    without_features = json.dumps(json.loads(lines[0]) | {"qid": 1, "vid": "missing"})
    small = world.copy(tmp_path, test="\n".join([*lines, without_features]))
    full = evaluate(copy, device="cpu").metrics["brief"]
    evaluation = evaluate(copy, cache=small.cache, device="cpu")
    answered = len(lines) / (len(lines) + 1)
    assert evaluation.metrics["brief"]["MR-full-mAP"] == pytest.approx(answered * full["MR-full-mAP"])
    assert any("1 of 7 queries ask about videos without features (missing)" in note for note in evaluation.notes)


@dataclass(frozen=True)
class Home:
    """A folder with an evaluated run, a submission, and caches in which the videos of one split have no features."""

    folder: Path
    run: Path
    caches: dict[str, Path]

    def files(self) -> dict[Path, tuple[bytes, int]]:
        """The content of every file and when it was written."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def about_videos_without_features(text: str) -> str:
    """The same queries, each about a video that the cache does not have."""
    rows = [json.loads(line) for line in text.splitlines()]
    return "".join(json.dumps(row | {"vid": f"absent_{row['vid']}"}) + "\n" for row in rows)


@pytest.fixture(scope="module")
def home(world, run, tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    own = Path(shutil.copytree(run, folder / "run"))
    evaluate(own, device="cpu")
    submit(folder / "hl.zip", own, device="cpu")
    caches = {}
    for split in ("val", "test"):
        text = about_videos_without_features(CacheReader(world.cache).annotations(split))
        caches[split] = world.copy(folder / split, **{split: text}).cache
    return Home(folder, own, caches)


SHORT = ("train.epochs=1",)
# For each path: the split whose videos have no features, and the call.
WITHOUT_FEATURES = {
    "an evaluation over an earlier one": (
        "test",
        lambda home, cache: evaluate(home.run, cache=cache, device="cpu"),
    ),
    "an evaluation in a new folder": (
        "test",
        lambda home, cache: evaluate(home.run, cache=cache, out=home.folder / "new", device="cpu"),
    ),
    "an evaluation in the folder of another split": (
        "val",
        lambda home, cache: evaluate(home.run, split="val", cache=cache, out=home.run / "eval-test", device="cpu"),
    ),
    "a submission over an earlier one": (
        "test",
        lambda home, cache: submit(home.folder / "hl.zip", home.run, cache=cache, device="cpu"),
    ),
    "a report of an earlier evaluation": ("test", lambda home, cache: report(home.run, cache=cache, device="cpu")),
    "a repetition": (
        "test",
        lambda home, cache: repeat(cache, seeds=1, overrides=SHORT, out=home.folder / "repeat", device="cpu"),
    ),
    "an ablation": (
        "test",
        lambda home, cache: ablate(
            cache, seeds=1, variants=["full"], overrides=SHORT, out=home.folder / "ablation", device="cpu"
        ),
    ),
    "a training that is validated on them": (
        "val",
        lambda home, cache: train(cache, overrides=SHORT, out=home.folder / "trained", device="cpu"),
    ),
    "a training that is chosen on test": (
        "test",
        lambda home, cache: train(
            cache, overrides=[*SHORT, "train.select_on=test"], out=home.folder / "trained", device="cpu"
        ),
    ),
    "zero-shot CLIP": ("test", lambda home, cache: zero_shot(CacheReader(cache), "test", Config())),
}


@pytest.mark.parametrize("name", WITHOUT_FEATURES)
def test_a_split_without_features_is_refused_and_no_file_changes(home, name):
    split, call = WITHOUT_FEATURES[name]
    before = home.files()
    expected = (
        rf"no video of split '{split}' has features \(6 queries about absent_{split}_0000, .*costl cache status .* why"
    )
    with pytest.raises(UsageError, match=expected):
        call(home, home.caches[split])
    assert home.files() == before


def test_a_domain_without_features_is_refused_and_others_are_not(world, tmp_path):
    texts = {split: with_domains(CacheReader(world.cache).annotations(split)) for split in ("train", "val", "test")}
    rows = [json.loads(line) for line in texts["test"].splitlines()]
    changed = [row | ({"vid": "absent"} if row["domain"] == "BT" else {}) for row in rows]
    texts["test"] = "".join(json.dumps(row) + "\n" for row in changed)
    features = CacheReader(world.copy(tmp_path, **texts).cache)
    with pytest.raises(UsageError, match="no video of split 'test' in domain 'BT' has features"):
        read_queries(features, "test", domain="BT")
    assert len(read_queries(features, "test", domain="BK")) == 3 and len(read_queries(features, "test")) == 6


def test_an_annotated_duration_that_differs_is_noted(world):
    features = CacheReader(world.cache)
    queries = [Query(1, "a", "test_0000", 24.0), Query(2, "b", "test_0001", 60.0)]
    (note,) = data_notes("test", queries, features)
    assert "test_0001 by 36.0 s" in note


def test_examples_run_from_the_best_to_the_worst(world):
    queries = [Query(i, "q", "v", 100.0, ((0.0, 50.0),)) for i in range(20)]
    predictions = [Prediction(i, "q", "v", ((0.0, 50.0 - 2 * i, 0.5),)) for i in range(20)]
    qids = [query.qid for query, _ in choose_examples(queries, predictions[::-1])]
    assert qids[0] == 0 and qids[-1] == 19 and qids == sorted(qids) and len(qids) == 8


def test_a_missing_device_is_a_usage_error():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="device 'abacus' cannot be used here"):
        pick_device("abacus")


def _one(world) -> dict[str, str]:
    rows = (world.videos / "test.jsonl").read_text().splitlines()
    return {"test": "\n".join(row for row in rows if json.loads(row)["vid"] == "test_0000")}
