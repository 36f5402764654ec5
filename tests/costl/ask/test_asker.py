"""`Asker` answers like extraction and evaluation, stores features by the content of the video, and refuses wrong weights."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import costl
import costl.pipeline.feature_store
import costl.pipeline.run.engine
from costl.ask.answer import Answer, check_queries
from costl.ask.asker import Asker
from costl.data.batch import model_inputs
from costl.data.queries import read_queries
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode import clip
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.fingerprint import explain_difference
from costl.search.calibrate import AbsentLevels, PairCalibration
from costl.search.moments import find_segments
from costl.train import train


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A trained run of the small world."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")
    return folder


@pytest.fixture
def asker(run, tmp_path) -> Asker:
    return costl.load(run, cache_dir=tmp_path / "features", device="cpu", workers=1)


@pytest.fixture
def no_decoding(monkeypatch):
    def decode(*_, **__):
        pytest.fail("decoded")

    def forbid() -> None:
        monkeypatch.setattr(costl.pipeline.run.engine, "decode_videos", decode)

    return forbid


def a_query(world) -> tuple[Path, str]:
    """A video of the test split and its query."""
    query = read_queries(CacheReader(world.cache), "test")[0]
    return world.videos / f"{query.vid}.mp4", query.query


def test_ask_gives_the_same_answer_as_extract_and_evaluate(world, run, asker, tmp_path):
    evaluate(run, split="test", out=tmp_path / "eval", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()]
    for vid in {row["vid"] for row in rows}:
        rows_of_video = [row for row in rows if row["vid"] == vid]
        answers = asker.ask(world.videos / f"{vid}.mp4", [row["query"] for row in rows_of_video])
        for row, answer in zip(rows_of_video, answers, strict=True):
            windows = [[m.start_s, m.end_s, m.score] for m in answer.moments]
            np.testing.assert_allclose(windows, row["pred_relevant_windows"], atol=1e-3)
            np.testing.assert_allclose(answer.saliency.scores, row["pred_saliency_scores"], atol=1e-3)
            assert (answer.query, answer.duration_s, answer.saliency.clip_s) == (row["query"], 24.0, 2.0)


def test_asking_a_renamed_video_again_needs_neither_decoding_nor_clip(
    world, run, asker, tmp_path, monkeypatch, no_decoding
):
    video, query = a_query(world)
    (first,) = asker.ask(video, query)
    no_decoding()
    monkeypatch.setattr(costl.pipeline.feature_store, "reload_encoder", lambda *_, **__: pytest.fail("loaded"))
    other = Path(shutil.copy(video, tmp_path / "Ünder an other name.mp4"))
    (second,) = costl.load(run, cache_dir=tmp_path / "features", device="cpu").ask(str(other), [query])
    assert (second.moments, second.saliency) == (first.moments, first.saliency) and second.video == other


def test_a_new_query_encodes_only_its_words(world, asker, monkeypatch, no_decoding):
    video, query = a_query(world)
    asker.ask(video, query)
    no_decoding()
    encoded: list[str] = []
    encoder = asker._feature_store._encoder
    encode_text = encoder.encode_text
    monkeypatch.setattr(encoder, "encode_text", lambda texts: encoded.extend(texts) or encode_text(texts))
    asker.ask(video, [query, "the blue star", "the red ring"])
    asker.ask(video, [query, "the red ring"])
    assert encoded == ["the blue star", "the red ring"]


def test_several_queries_decode_the_video_once(world, asker, monkeypatch):
    video, query = a_query(world)
    decoded: list[Path] = []
    decode_videos = costl.pipeline.run.engine.decode_videos

    def record(videos, *arguments, **options):
        decoded.extend(video.path for video in videos)
        return decode_videos(videos, *arguments, **options)

    monkeypatch.setattr(costl.pipeline.run.engine, "decode_videos", record)
    answers = asker.ask(video, [query, "the blue star", "the red ring"])
    assert [answer.query for answer in answers] == [query, "the blue star", "the red ring"]
    assert decoded == [video]


def test_a_changed_file_is_decoded_again(world, asker, tmp_path):
    one, other = (world.videos / f"test_000{i}.mp4" for i in (0, 1))
    video = Path(shutil.copy(one, tmp_path / "holiday.mp4"))
    (first,) = asker.ask(video, "the red ring")
    shutil.copy(other, video)
    (second,) = asker.ask(video, "the red ring")
    assert first.saliency != second.saliency
    assert second.saliency == asker.ask(other, "the red ring")[0].saliency


def test_damaged_stored_features_are_extracted_again(world, asker):
    video, query = a_query(world)
    (first,) = asker.ask(video, query)
    (index,) = asker._feature_store.folder.glob("*.h5")
    index.write_bytes(index.read_bytes()[:1000])
    assert asker.ask(video, query)[0].moments == first.moments
    (part,) = asker._feature_store.folder.glob("*.h5.parts/*.h5")
    part.write_bytes(b"")
    assert asker.ask(video, query)[0].moments == first.moments


NOT_TEXT = [5, None, b"a cat", ["a cat", 5], [["a cat"]], "\udce9 cat", np.array("a cat"), np.array([["a cat"]])]


@pytest.mark.parametrize(
    ("queries", "problem"),
    [([], "no query"), (np.array([]), "no query")]
    + [(queries, "no letter or digit in it") for queries in ([""], ["a cat", "?!"], ["  "], "…", "_")]
    + [(queries, "not a text in UTF-8") for queries in NOT_TEXT],
)
def test_a_query_that_is_no_sentence_is_refused_before_any_work(world, asker, no_decoding, queries, problem):
    no_decoding()
    with pytest.raises(UsageError, match=problem):
        asker.ask(a_query(world)[0], queries)


@pytest.mark.parametrize("path", [5, b"x", float("nan"), ["x"], "", "a\0b", "\ud800"])
def test_arguments_that_are_not_a_path_are_refused_by_their_name(run, asker, path):
    with pytest.raises(UsageError, match=r"model is .*, expected a path"):
        costl.load(path)
    with pytest.raises(UsageError, match=r"cache_dir is .*, expected a path"):
        costl.load(run, cache_dir=path)
    with pytest.raises(UsageError, match=r"video is .*, expected a path"):
        asker.ask(path, "a cat")


def test_weights_that_are_not_there_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match="no such weights file"):
        costl.load(run, weights=tmp_path / "gone", cache_dir=str(tmp_path / "features")).ask(run / "config.yaml", "a cat")


def test_queries_in_other_scripts_are_accepted():
    check_queries(["猫が跳ぶ", "кот", "3"])


def test_a_file_that_is_not_a_video_is_refused_and_stores_nothing(asker, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all")
    for name in ("empty", "text", "gone"):
        with pytest.raises(VideoError, match=rf"{name}\.mp4"):
            asker.ask(tmp_path / f"{name}.mp4", "a cat")
    assert not list(asker._feature_store.folder.glob("*.h5"))


def test_a_query_that_clip_cuts_off_gets_a_note(world, asker):
    (answer,) = asker.ask(a_query(world)[0], "the red star " * 60)
    assert answer.notes == ("the query is longer than CLIP can read, so its end was ignored.",)
    assert "note: the query" in repr(answer)


def test_different_clip_weights_are_refused(world, run, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline"))
    try:
        from tiny_clip import write_clip_weights
    finally:
        sys.path.pop(0)
    other = write_clip_weights(tmp_path / "other", seed=1)
    asker = costl.load(run, weights=str(other), cache_dir=tmp_path / "features", device="cpu")
    with pytest.raises(
        CacheError, match=r"another CLIP than .*other \(.*weights: expected \w+…, here is"
    ) as caught:
        asker.ask(a_query(world)[0], "a cat")
    assert caught.value.exit_code == 3 and "--weights" in str(caught.value)


def test_asking_needs_the_clip_weights_but_not_the_cache_or_the_videos(world, tmp_path):
    here = world.copy(tmp_path / "there")
    train(here.cache, overrides=["train.epochs=1"], out=tmp_path / "run", device="cpu")
    video = Path(shutil.copy(here.videos / "test_0000.mp4", tmp_path / "my.mp4"))
    clip = Path(shutil.copytree(world.videos / "clip", tmp_path / "clip"))
    shutil.rmtree(tmp_path / "there")
    moved = shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    about = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(
        json.dumps(about | {"source": {"model": "ViT-B-32", "weights": str(tmp_path / "gone")}})
    )
    with pytest.raises(CacheError, match=r"gone: the CLIP weights that .*elsewhere was trained with .*--weights"):
        costl.load(moved, cache_dir=tmp_path / "features", device="cpu")
    asker = costl.load(moved, weights=str(clip), cache_dir=tmp_path / "features", device="cpu", workers=1)
    assert asker.ask(video, "the red ring")[0].moments


def test_another_release_of_open_clip_is_accepted(world, run, tmp_path):
    old = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((old / "run.json").read_text())
    about["fingerprint"]["open_clip"] = "2.0.0"
    (old / "run.json").write_text(json.dumps(about))
    asker = costl.load(old, cache_dir=tmp_path / "features", device="cpu", workers=1)
    assert asker.ask(a_query(world)[0], "the red ring")


def test_a_model_trained_on_imported_features_cannot_be_asked(run, tmp_path):
    imported = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((imported / "run.json").read_text())
    about["fingerprint"] = {"imported": "published features", "fps": 0.5}
    (imported / "run.json").write_text(json.dumps(about))
    with pytest.raises(CacheError, match="trained on features that were not made here"):
        costl.load(imported, cache_dir=tmp_path / "features", device="cpu")


def test_patch_attention_is_the_attention_of_step_one(world, asker):
    video, query = a_query(world)
    asker.ask(video, query)
    attention = asker.patch_attention(video, query, [0.5, 7.9, 24.0])
    assert [one.centre_s for one in attention] == [1.0, 7.0, 23.0]
    assert asker.patch_attention(video, query, []) == []
    features = CacheReader(next(asker._feature_store.folder.glob("*.h5")))
    whole = model_inputs([read_queries(CacheReader(world.cache), "test")[0]], CacheReader(world.cache), patches=True)
    step_one = asker._predictor._model.spatial_output(whole).coarse.attention
    for one, position in zip(attention, (0, 3, 11), strict=True):
        assert one.weights.shape == features.patch_grid and one.weights.sum() == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(one.weights.ravel(), step_one[0, position].detach().numpy(), atol=2e-3)


def test_importing_costl_loads_no_heavy_library():
    code = "import sys, costl; costl.load; sys.exit(bool({'torch', 'h5py', 'decord', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(costl.__file__).parents[1]).returncode == 0


def test_explain_difference_uses_the_words_of_its_caller():
    assert explain_difference({"a": 1}, {"a": 2}, was="trained with", now="here is") == ["a: trained with 1, here is 2"]


def test_an_answer_has_a_picture_in_a_notebook(world, asker):
    (answer,) = asker.ask(a_query(world)[0], "the <red> & ring")
    assert isinstance(answer, Answer) and answer._repr_png_().startswith(b"\x89PNG")


NO_NUMBERS = [["a"], ["1"], "12", [None], [[1.0]], np.zeros((1, 1)), np.array([0, 86400], "M8[s]"), 5, 5j, None]


def test_times_that_are_not_in_the_video_are_refused(world, asker):
    for times_s in [[-5], [-0.1, 3.0], [24.1], [1e9], [10**400], [math.nan], [math.inf], *NO_NUMBERS]:
        with pytest.raises(UsageError, match=r"times_s is .*, expected a list of seconds from 0 to 24 \(the end\)"):
            asker.patch_attention(*a_query(world), times_s)
    for accepted in (np.array([1, 2]), np.float32([23.9]), (0, 24), range(3), iter([1.5])):
        assert asker.patch_attention(*a_query(world), accepted)


@pytest.mark.parametrize("size", [(0, 0), (-1, 5), ("a", "b"), (1.5, 2), (None, 4), (float("nan"), 5)])
def test_a_frame_without_pixels_is_refused(asker, size):
    assert asker.visible_region(np.int64(64), 64) == (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(UsageError, match=r"height and width are .*, expected pixels"):
        asker.visible_region(*size)


@pytest.mark.parametrize(
    ("argument", "value", "part"),
    [("workers", value, "expected a whole number from 1 on") for value in (0, -1, "2", 1.5, math.nan, [])]
    + [("device", value, "cannot be used here") for value in ("", "abacus", "meta", "cuda:99", [])],
)
def test_impossible_workers_and_devices_are_refused_by_load(run, tmp_path, argument, value, part):
    with pytest.raises(UsageError, match=f"{argument} .*{part}"):
        costl.load(run, **{"cache_dir": tmp_path, "device": "cpu", argument: value})


@pytest.fixture
def zero_shot(world, tmp_path, monkeypatch) -> Asker:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return costl.load("none", weights=str(world.videos / "clip"), cache_dir=tmp_path / "features", device="cpu", workers=1)


def test_without_training_moments_are_those_of_the_curve(world, zero_shot):
    """Computed again with the encoder, from the features of the world's own cache."""
    video, query = a_query(world)
    (answer,) = zero_shot.ask(video, query)
    features = CacheReader(world.cache)
    curve = features.joint_vectors(video.stem) @ features.words(query).sentence
    expected = find_segments(curve, logit_scale=features.joint.logit_scale)
    found = answer.moments or answer.below
    assert [(m.start_s, m.end_s) for m in found] == [(s.start * 2.0, s.end * 2.0) for s in expected]
    scores = [m.score for m in found]
    assert scores == sorted(scores, reverse=True) and scores[0] == answer.confidence
    np.testing.assert_allclose(answer.saliency.scores, curve, atol=1e-3)
    assert any("answered by CLIP alone" in note for note in answer.notes)


@pytest.mark.parametrize(("confidence", "is_answer"), [(0.95, True), (0.9, True), (0.89, False), (0.0, False)])
def test_moments_of_a_sentence_that_is_not_there_are_no_answers(world, zero_shot, monkeypatch, confidence, is_answer):
    monkeypatch.setattr(AbsentLevels, "score", lambda self, levels: np.full(len(levels), confidence))
    (answer,) = zero_shot.ask(*a_query(world))
    assert bool(answer.moments) is is_answer and bool(answer.below) is not is_answer
    text = answer.table()
    assert ("no match in this video" in text) is not is_answer
    assert ("below the threshold" in answer.table(show_below=True)) is not is_answer
    assert answer.top(1).moments == answer.moments[:1] and answer.top(1).below == answer.below[:1]


def test_a_run_refuses_by_its_calibration(world, asker, monkeypatch):
    """The small world has too few pairs for a calibration of its own."""
    (answer,) = asker.ask(*a_query(world))
    assert answer.moments and not answer.below
    for constant, is_answer in ((50.0, True), (-50.0, False)):
        asker._predictor._calibration = PairCalibration((0.0, 0.0, constant), tuple([0.5] * 100))
        (answer,) = asker.ask(*a_query(world))
        assert bool(answer.moments) is is_answer and bool(answer.below) is not is_answer


def test_a_repeated_question_without_a_run_loads_no_clip(world, zero_shot, tmp_path, no_decoding, monkeypatch):
    (first,) = zero_shot.ask(*a_query(world))
    no_decoding()
    monkeypatch.setattr(clip, "load_encoder", lambda *_, **__: pytest.fail("loaded"))
    again = costl.load("none", weights=str(world.videos / "clip"), cache_dir=tmp_path / "features", device="cpu")
    assert again.ask(*a_query(world)) == [first]


def test_where_there_is_no_run_clip_answers(tmp_path, monkeypatch, world):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert costl.load(weights=str(world.videos / "clip"), device="cpu").name.startswith("zero-shot ViT-B-32")
