"""Without a validation split, models that have not seen a video predict it, and are compared with CLIP alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costl import cross_validation
from costl.cross_validation import divide_by_video
from costl.data.annotations import Query, parse_predictions
from costl.data.queries import read_queries
from costl.metrics.compute import measure
from costl.pipeline.cache.reader import CacheReader
from costl.predict.zero_shot import zero_shot_prediction
from costl.train import resume, train

SETTINGS = ["train.epochs=2", "train.batch_size=30", "train.folds=3"]


@pytest.fixture(scope="module")
def unvalidated(world, tmp_path_factory) -> Path:
    """The cache of four training videos, without a validation split."""
    return world.copy(tmp_path_factory.mktemp("data"), val=None).cache


def predictions(run: Path) -> dict[int, str]:
    """The video of each predicted query, in the files of all folds."""
    files = sorted(run.glob("folds/*/predictions.jsonl"))
    rows = [row for file in files for row in parse_predictions(file.read_text(), file.name)]
    assert len({row.qid for row in rows}) == len(rows)
    return {row.qid: row.vid for row in rows}


@pytest.fixture(scope="module")
def whole(unvalidated, tmp_path_factory):
    return train(unvalidated, overrides=SETTINGS, out=tmp_path_factory.mktemp("runs") / "run", device="cpu")


def test_every_training_query_is_predicted_once_and_compared(unvalidated, whole):
    features = CacheReader(unvalidated)
    queries = read_queries(features, "train")
    assert predictions(whole.run) == {query.qid: query.vid for query in queries}
    alone = measure([zero_shot_prediction(query, features) for query in queries], queries)[1]["MR-full-mAP"].mean()
    comparison = whole.zero_shot
    assert (comparison.queries, comparison.videos) == (len(queries), 4)
    assert comparison.zero_shot == pytest.approx(alone)
    assert "held-out queries about 4 videos" in whole.messages()[-1]
    assert json.loads((whole.run / "summary.json").read_text())["zero_shot"]["trained"] == comparison.trained


def test_no_model_has_seen_the_videos_that_it_predicts(unvalidated, tmp_path, monkeypatch):
    seen: list[set[str]] = []
    monkeypatch.setattr(
        cross_validation,
        "predict_split",
        lambda model, held_out, *_, **__: seen[-1].update(query.vid for query in held_out) or [],
    )
    trained: list[set[str]] = []
    original = cross_validation._open_fold

    def open_fold(training, folder, held_out):
        fold = original(training, folder, held_out)
        trained.append({query.vid for query in fold.queries})
        seen.append(set())
        return fold

    monkeypatch.setattr(cross_validation, "_open_fold", open_fold)
    monkeypatch.setattr(cross_validation, "compare_with_zero_shot", lambda *_: None)
    train(unvalidated, overrides=[*SETTINGS, "train.epochs=1"], out=tmp_path / "run", device="cpu")
    everything = {query.vid for query in read_queries(CacheReader(unvalidated), "train")}
    assert len(seen) == 3 and set.union(*seen) == everything
    assert all(held and not held & known and held | known == everything for held, known in zip(seen, trained, strict=True))


@pytest.mark.parametrize("stop_at", ["first fold", "second epoch of a fold", "last prediction"])
def test_an_interrupted_cross_validation_goes_on_to_the_same_numbers(unvalidated, whole, tmp_path, monkeypatch, stop_at):
    from costl import train as module

    run = tmp_path / "run"
    calls = 0
    name = {"first fold": (module, "_train_fold"), "second epoch of a fold": (module, "_train_epoch")}
    owner, attribute = name.get(stop_at, (cross_validation, "_write_predictions"))
    stop_call = {"first fold": 1, "second epoch of a fold": 2 + 2, "last prediction": 3}[stop_at]
    real = getattr(owner, attribute)

    def stopping(*args, **options):
        nonlocal calls
        calls += 1
        if calls == stop_call:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(owner, attribute, stopping)
    with pytest.raises(KeyboardInterrupt):
        train(unvalidated, overrides=SETTINGS, out=run, device="cpu")
    assert not (run / "summary.json").exists()
    monkeypatch.setattr(owner, attribute, real)
    assert resume(run, device="cpu").zero_shot == whole.zero_shot
    assert not [*run.glob("folds/*/*.safetensors")]  # their weights are not needed any more


NOT_WANTED = {
    "no folds": ["train.folds=0"],
    "one fold": ["train.folds=1"],
    "chosen on test": ["train.select_on=test"],
}


@pytest.mark.parametrize("name", NOT_WANTED)
def test_there_is_no_cross_validation_where_it_is_not_wanted(unvalidated, tmp_path, name):
    settings = ["train.epochs=1", "train.batch_size=30", *NOT_WANTED[name]]
    report = train(unvalidated, overrides=settings, out=tmp_path / "run", device="cpu")
    assert report.zero_shot is None and not (tmp_path / "run" / "folds").exists()


def test_many_queries_are_not_cross_validated(unvalidated, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_QUERIES", 23)  # there are 24
    settings = ["train.epochs=1", "train.batch_size=30"]
    assert train(unvalidated, overrides=settings, out=tmp_path / "run", device="cpu").zero_shot is None


@pytest.mark.parametrize(("videos", "folds"), [(7, 3), (3, 3), (10, 2), (2, 2)])
def test_folds_share_no_video_and_have_equally_many(videos, folds):
    queries = [Query(f"{v}-{q}", "a", f"v{v}", 10.0) for v in range(videos) for q in range(1 + v % 3)]
    parts = divide_by_video(queries, folds)
    vids = [{query.vid for query in part} for part in parts]
    assert sum(map(len, vids)) == videos and max(map(len, vids)) - min(map(len, vids)) <= 1
    assert sorted(query.qid for part in parts for query in part) == sorted(query.qid for query in queries)
    assert divide_by_video(queries[::-1], folds) == [part[::-1] for part in parts]
