"""Every token format is extracted, trained on, resumed and asked, and never mixed with another."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import costl
from costl.commands import main
from costl.data.batch import model_inputs
from costl.data.queries import read_queries
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.options import TokenFormat
from costl.pipeline.progress import Progress
from costl.train import resume, train
from costl.training.run_folder import read_run

FORMATS = {"int8": {"dtype": "int8"}, "cls": {"tokens": "cls"}, "cls8": {"dtype": "int8", "tokens": "cls"}}
each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def caches(world, tmp_path_factory) -> dict[str, CacheReader]:
    """The cache of the small world in each token format."""
    folder = tmp_path_factory.mktemp("formats")
    for name, options in FORMATS.items():
        report = extract(world.videos, out=folder / name / "feats.h5", device="cpu", workers=1, **options)
        assert report.failed == () and len(report.done) == 10
    return {name: CacheReader(folder / name / "feats.h5") for name in FORMATS}


@each_format
def test_a_model_trains_on_every_token_format_and_is_evaluated(caches, tmp_path, name):
    features = caches[name]
    train(features.path, overrides=["train.epochs=1", "train.batch_size=30"], out=tmp_path / "run", device="cpu")
    assert read_run(tmp_path / "run").config.spatial.steps == (0 if "cls" in name else 2)
    evaluation = evaluate(tmp_path / "run", split="test", device="cpu")
    assert 0 <= evaluation.metrics["brief"]["MR-full-mAP"] <= 100


def test_token_formats_have_the_same_features(world, caches):
    whole = CacheReader(world.cache)
    assert caches["int8"].patch_grid == whole.patch_grid
    for video in whole.video_ids:
        tokens = whole.tokens(video).astype(np.float32)
        np.testing.assert_array_equal(caches["cls"].tokens(video), tokens[:, :1])
        error = np.linalg.norm(caches["int8"].tokens(video) - tokens) / np.linalg.norm(tokens)
        assert 0 < error < 0.01


@each_format
def test_the_documented_reader_reads_every_token_format(caches, monkeypatch, name):
    page = (Path(__file__).parents[3] / "docs" / "cache-format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    features = caches[name]
    monkeypatch.chdir(features.path.parent)
    names: dict = {}
    exec(compile(block, "cache-format.md", "exec"), names)
    for video in features.video_ids:
        np.testing.assert_array_equal(names["tokens"][video], features.tokens(video))


def test_token_formats_have_the_documented_sizes(world, caches):
    sizes = {name: sum(part.stat().st_size for part in parts(features)) for name, features in caches.items()}
    whole = sum(part.stat().st_size for part in parts(CacheReader(world.cache)))
    assert sizes["int8"] < 0.75 * whole and sizes["cls"] < 0.5 * whole


def parts(features: CacheReader) -> list[Path]:
    return [features.part_path(video) for video in features.video_ids]


def test_the_token_format_is_in_the_fingerprint_and_in_the_index(world, caches):
    features = caches["cls8"]
    options = FORMATS["cls8"]
    assert (options | {"layers": 1}).items() <= features.fingerprint.items()
    assert features.contents.token_format == TokenFormat(**options)
    again = extract(world.videos, out=features.path, device="cpu", workers=1, **options)
    assert again.done == () and len(again.skipped) == 10
    with pytest.raises(CacheError, match=r"dtype: cache has int8, asked for float16"):
        extract(world.videos, out=features.path, device="cpu", workers=1, tokens="cls")


def test_options_override_the_token_format_of_the_data_folder(world, tmp_path):
    videos = Path(shutil.copytree(world.videos, tmp_path / "videos"))
    for video in sorted(videos.glob("*.mp4"))[1:]:
        video.unlink()
    text = (videos / "costl.yaml").read_text(encoding="utf-8")
    (videos / "costl.yaml").write_text(
        text.replace("fps: 0.5", "fps: 0.5\n  dtype: int8\n  tokens: cls"), encoding="utf-8"
    )
    arguments = ["extract", "--videos", str(videos), "--out", str(tmp_path / "feats.h5"), "--allow-missing-videos"]
    result = CliRunner().invoke(main, [*arguments, "--tokens", "all", "--device", "cpu"])
    assert result.exit_code == 1, result.stderr  # nine videos are missing
    assert CacheReader(tmp_path / "feats.h5").contents.token_format == TokenFormat("int8")


def test_a_wrong_token_format_is_refused_before_any_work(world, tmp_path):
    arguments = ["extract", "--videos", str(world.videos), "--out", str(tmp_path / "feats.h5"), "--dtype", "int4"]
    result = CliRunner().invoke(main, arguments)
    assert "is not one of 'float16', 'int8'" in result.stderr and not (tmp_path / "feats.h5").exists()


def test_the_spatial_encoder_is_refused_for_features_of_cls_tokens(caches, tmp_path):
    with pytest.raises(UsageError, match=r"have no patches: they were imported, or .* --tokens cls"):
        train(caches["cls"].path, overrides=["spatial.steps=2"], out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8", "dtype: cache has int8, asked for float16"),
        ("cls", "tokens: cache has cls, asked for all"),
    ],
)
def test_a_run_resumes_only_with_its_own_token_format(world, caches, tmp_path, name, message):
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world.cache, out=tmp_path / "run", device="cpu", progress=stop)
    with pytest.raises(CacheError, match=message):
        resume(tmp_path / "run", cache=caches[name].path, device="cpu")


@each_format
def test_an_asked_video_gets_features_in_the_format_of_the_model(world, caches, tmp_path, name):
    features = caches[name]
    train(features.path, overrides=["train.epochs=1", "train.batch_size=30"], out=tmp_path / "run", device="cpu")
    evaluate(tmp_path / "run", split="test", out=tmp_path / "eval", device="cpu")
    row = json.loads((tmp_path / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    asker = costl.load(tmp_path / "run", cache_dir=tmp_path / "store", device="cpu", workers=1)
    (answer,) = asker.ask(world.videos / f"{row['vid']}.mp4", row["query"])
    (parts_folder,) = (tmp_path / "store").rglob("*.h5.parts")
    stored = CacheReader(parts_folder.with_suffix(""))
    assert stored.contents.token_format == features.contents.token_format and stored.patch_grid == features.patch_grid
    np.testing.assert_array_equal(stored.tokens(stored.video_ids[0]), features.tokens(row["vid"]))
    windows = [[m.start_s, m.end_s, m.score] for m in answer.moments]
    np.testing.assert_allclose(windows, row["pred_relevant_windows"], atol=1e-3)


def test_a_batch_and_a_window_read_only_the_tokens_they_need(caches, monkeypatch):
    from costl.pipeline.cache import part as module

    features = caches["int8"]
    sizes: list[tuple[int, ...]] = []
    whole = module.dequantise
    monkeypatch.setattr(module, "dequantise", lambda tokens, *more: sizes.append(tokens.shape) or whole(tokens, *more))
    query = read_queries(features, "test")[0]
    inputs = model_inputs([query], features, patches=False)
    clips, tokens, channels = 12, 1 + features.patch_grid[0] * features.patch_grid[1], inputs.tokens.shape[-1]
    window = model_inputs([query], features, patches=True, clips=slice(4, 9)).tokens[0]
    np.testing.assert_array_equal(window, features.tokens(query.vid)[4:9])
    some = model_inputs([query], features, patches=False, clips=[4, 7]).tokens[0]
    np.testing.assert_array_equal(some, features.tokens(query.vid)[[4, 7], :1])
    counts = [sizes[i] for i in (0, 1, 3)]
    assert counts == [(clips, 1, channels), (5, tokens, channels), (2, 1, channels)]
