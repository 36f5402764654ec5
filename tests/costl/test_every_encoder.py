"""From videos to metrics and to search results with every kind of encoder: one small model of each, with random weights."""

from __future__ import annotations

import shutil

import pytest
from small_towers import make_timm_small, small_settings, write_weights
from tiny_text import write_family

import costl
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.extract import extract
from costl.train import train

XLM_R = "XLM-RoBERTa"
ENCODERS = {  # a model of open_clip or a family of text towers, the grid of the feature map, and the width of the joint space
    "class token": ("ViT-B-32", (3, 3), 16),
    "attention pooling": ("ViT-B-16-SigLIP", (14, 14), 64),
    "convolutions": ("convnext_tiny", (7, 7), 16),
    "convolutions and attention pooling": ("RN50", (7, 7), 16),
    "text tower of transformers": (XLM_R, (4, 4), 32),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_videos_become_metrics_and_are_found(world, tmp_path, monkeypatch, kind):
    make_timm_small(monkeypatch)
    model, grid, width = ENCODERS[kind]
    if model == XLM_R:
        pytest.importorskip("transformers")
        weights = write_family(tmp_path / "clip", model)
    else:
        weights = write_weights(tmp_path, small_settings(model))
    videos = shutil.copytree(world.videos, tmp_path / "videos")
    report = extract(videos, out=tmp_path / "feats.h5", weights=str(weights), device="cpu", workers=1)
    assert report.failed == ()
    features = CacheReader(report.cache)
    assert features.patch_grid == grid and features.joint.width == width and not verify(report.cache).damaged
    train(report.cache, overrides=["train.epochs=1"], out=tmp_path / "run", device="cpu")
    metrics = evaluate(tmp_path / "run", device="cpu").metrics
    assert metrics["brief"]["MR-full-R1@0.3"] >= 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    query = next(iter(features.word_table()))
    for run in (None, tmp_path / "run"):
        result = costl.library(report.cache, run=run, device="cpu").search(query, min_score=0.0)
        assert result.hits and all(0 <= hit.start_s < hit.end_s <= hit.duration_s for hit in result.hits)
