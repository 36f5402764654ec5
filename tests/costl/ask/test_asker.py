"""Asking: the features and the code of evaluation, whatever the video; made once, known by content, refused by name."""

from __future__ import annotations

import json
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
from costl.data.batch import collate
from costl.data.splits import read_queries
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.fingerprint import explain_difference
from costl.train import train


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A trained run of the small world."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")
    return folder


@pytest.fixture
def asker(run, tmp_path) -> Asker:
    return costl.load(run, cache_dir=tmp_path / "kept", device="cpu", workers=1)


@pytest.fixture
def no_decoding(monkeypatch):
    def decode(*arguments, **more):
        pytest.fail("decoded")

    def forbid() -> None:
        monkeypatch.setattr(costl.pipeline.run.engine, "decode_videos", decode)

    return forbid


def a_query(world, split="test") -> tuple[Path, str]:
    query = read_queries(CacheReader(world.cache), split)[0]
    return world.videos / f"{query.vid}.mp4", query.query


def test_the_answer_is_that_of_extract_and_evaluate(world, run, asker, tmp_path):
    evaluate(run, split="test", out=tmp_path / "eval", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()]
    for vid in {row["vid"] for row in rows}:
        about = [row for row in rows if row["vid"] == vid]
        answers = asker.ask(world.videos / f"{vid}.mp4", [row["query"] for row in about])
        for row, answer in zip(about, answers, strict=True):
            windows = [[m.start_s, m.end_s, m.score] for m in answer.moments]
            np.testing.assert_allclose(windows, row["pred_relevant_windows"], atol=1e-3)
            np.testing.assert_allclose(answer.saliency.scores, row["pred_saliency_scores"], atol=1e-3)
            assert (answer.query, answer.duration_s, answer.saliency.clip_s) == (row["query"], 24.0, 2.0)


def test_a_second_ask_decodes_nothing_and_loads_no_clip_even_under_another_name(
    world, run, asker, tmp_path, monkeypatch, no_decoding
):
    video, query = a_query(world)
    (first,) = asker.ask(video, query)
    no_decoding()
    monkeypatch.setattr(costl.pipeline.feature_store, "load_clip", lambda *_, **__: pytest.fail("loaded"))
    other = Path(shutil.copy(video, tmp_path / "Ünder an other name.mp4"))
    (again,) = costl.load(run, cache_dir=tmp_path / "kept", device="cpu").ask(str(other), [query])
    assert (again.moments, again.saliency) == (first.moments, first.saliency) and again.video == other


def test_a_new_query_encodes_only_its_words(world, asker, monkeypatch, no_decoding):
    video, query = a_query(world)
    asker.ask(video, query)
    no_decoding()
    encoded: list[str] = []
    clip = asker._kept._clip
    whole = clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda texts: encoded.extend(texts) or whole(texts))
    asker.ask(video, [query, "the blue star", "the red ring"])
    asker.ask(video, [query, "the red ring"])
    assert encoded == ["the blue star", "the red ring"]


def test_several_queries_cost_one_look_at_the_video(world, asker, monkeypatch):
    video, query = a_query(world)
    jobs: list[str] = []
    real = costl.pipeline.run.engine.decode_videos
    monkeypatch.setattr(
        costl.pipeline.run.engine, "decode_videos", lambda some, **more: jobs.extend(j.path for j in some) or real(some, **more)
    )
    answers = asker.ask(video, [query, "the blue star", "the red ring"])
    assert [answer.query for answer in answers] == [query, "the blue star", "the red ring"] and jobs == [str(video)]


def test_a_file_that_changed_is_another_video(world, asker, tmp_path):
    one, other = (world.videos / f"test_000{i}.mp4" for i in (0, 1))
    mine = Path(shutil.copy(one, tmp_path / "mine.mp4"))
    (first,) = asker.ask(mine, "the red ring")
    shutil.copy(other, mine)
    (second,) = asker.ask(mine, "the red ring")
    assert first.saliency != second.saliency
    assert second.saliency == asker.ask(other, "the red ring")[0].saliency


def test_features_kept_but_damaged_are_made_again(world, asker):
    video, query = a_query(world)
    (first,) = asker.ask(video, query)
    (index,) = asker._kept.folder.glob("*.h5")
    index.write_bytes(index.read_bytes()[:1000])
    assert asker.ask(video, query)[0].moments == first.moments
    (part,) = asker._kept.folder.glob("*.h5.parts/*.h5")
    part.write_bytes(b"")
    assert asker.ask(video, query)[0].moments == first.moments


@pytest.mark.parametrize("queries", [[], [""], ["a cat", "?!"], ["  "], "…"])
def test_a_query_without_letters_is_refused_before_any_work(world, asker, no_decoding, queries):
    no_decoding()
    with pytest.raises(UsageError, match=r"no query|no letter in it"):
        asker.ask(a_query(world)[0], queries)


def test_a_query_in_another_script_is_one():
    check_queries(["猫が跳ぶ", "кот", "3"])


def test_what_is_no_video_is_said_in_a_sentence_and_leaves_nothing(asker, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all")
    for name in ("empty", "text", "gone"):
        with pytest.raises(VideoError, match=rf"{name}\.mp4"):
            asker.ask(tmp_path / f"{name}.mp4", "a cat")
    assert not list(asker._kept.folder.glob("*.h5"))


def test_a_query_longer_than_clip_reads_is_noted(world, asker):
    (answer,) = asker.ask(a_query(world)[0], "the red star " * 60)
    assert answer.notes == ("the query is longer than CLIP reads, its end was not heard.",) and "note:" in repr(answer)


def test_another_clip_is_refused_by_name(world, run, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline"))
    try:
        from tiny_clip import write_clip
    finally:
        sys.path.pop(0)
    other = write_clip(tmp_path / "other", seed=1)
    asker = costl.load(run, weights=str(other), cache_dir=tmp_path / "kept", device="cpu")
    with pytest.raises(
        CacheError, match=r"another CLIP than .*other \(.*weights: trained with \w+…, here is"
    ) as caught:
        asker.ask(a_query(world)[0], "a cat")
    assert caught.value.exit_code == 3 and "--weights" in str(caught.value)


def test_the_run_needs_neither_its_cache_nor_its_videos_but_its_clip(world, tmp_path):
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
        costl.load(moved, cache_dir=tmp_path / "kept", device="cpu")
    asker = costl.load(moved, weights=str(clip), cache_dir=tmp_path / "kept", device="cpu", workers=1)
    assert asker.ask(video, "the red ring")[0].moments


def test_another_release_of_open_clip_is_no_other_clip(world, run, tmp_path):
    old = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((old / "run.json").read_text())
    about["fingerprint"]["open_clip"] = "2.0.0"
    (old / "run.json").write_text(json.dumps(about))
    asker = costl.load(old, cache_dir=tmp_path / "kept", device="cpu", workers=1)
    assert asker.ask(a_query(world)[0], "the red ring")


def test_features_that_were_not_made_here_cannot_be_asked(run, tmp_path):
    foreign = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((foreign / "run.json").read_text())
    about["fingerprint"] = {"imported": "somebody's features", "fps": 0.5}
    (foreign / "run.json").write_text(json.dumps(about))
    with pytest.raises(CacheError, match="trained on features that were not made here"):
        costl.load(foreign, cache_dir=tmp_path / "kept", device="cpu")


def test_where_the_model_looked_is_step_ones_share_of_the_frame(world, asker):
    video, query = a_query(world)
    asker.ask(video, query)
    looks = asker.looks(video, query, [0.5, 7.9, 99.0])
    assert [look.at_s for look in looks] == [1.0, 7.0, 23.0]
    features = CacheReader(next(asker._kept.folder.glob("*.h5")))
    whole = collate([read_queries(CacheReader(world.cache), "test")[0]], CacheReader(world.cache), patches=True)
    seen = []
    hook = asker._model.spatial.where.register_forward_hook(lambda module, given, found: seen.append(found.share))
    asker._model(**whole.model_inputs())
    hook.remove()
    for look, clip in zip(looks, (0, 3, 11), strict=True):
        assert look.share.shape == features.patch_grid and look.share.sum() == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(look.share.ravel(), seen[0][0, clip].detach().numpy(), atol=2e-3)


def test_loading_the_package_loads_nothing_heavy():
    code = "import sys, costl; costl.load; sys.exit(bool({'torch', 'h5py', 'decord', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(costl.__file__).parents[1]).returncode == 0


def test_a_difference_is_told_in_the_words_of_who_asks():
    assert explain_difference({"a": 1}, {"a": 2}, was="trained with", now="here is") == ["a: trained with 1, here is 2"]


def test_an_answer_shows_itself_in_a_notebook(world, asker):
    (answer,) = asker.ask(a_query(world)[0], "the <red> & ring")
    assert isinstance(answer, Answer) and answer._repr_png_().startswith(b"\x89PNG")
    assert "&lt;red&gt; &amp; ring" in answer._repr_html_() and "<red>" not in answer._repr_html_()
