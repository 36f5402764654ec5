"""A small cache with random features: three videos, three queries, and the arguments to write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, SentenceTokens

CHANNELS, PATCH_GRID, JOINT_CHANNELS, WORD_CHANNELS = 8, (2, 3), 4, 6
CLIP_COUNTS = {"v_a": 3, "v_b": 5, "v_c": 1}  # of each video
JOINT_SPACE = JointSpace(width=JOINT_CHANNELS, logit_scale=100.0)


def unit_vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random vectors of length one along the last axis, float16."""
    values = rng.normal(size=shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float16)


def small_contents(**changes) -> Contents:
    """The contents of the index, with these fields changed."""
    contents = Contents(
        fingerprint={"model": "tiny", "fps": 0.5},
        fps=0.5,
        patch_grid=PATCH_GRID,
        joint=JOINT_SPACE,
        token_width=CHANNELS,
        annotations={"train": '{"qid": 1, "query": "a dog"}\n', "val": ""},
        settings={"epochs": 3},
    )
    return dataclasses.replace(contents, **changes)


def sentence_tokens() -> dict[str, SentenceTokens]:
    """The tokens of three queries, the second of them truncated."""
    rng = np.random.default_rng(1)
    return {
        query: SentenceTokens(
            tokens=rng.normal(size=(count, WORD_CHANNELS)).astype(np.float16),
            sentence=rng.normal(size=JOINT_CHANNELS).astype(np.float32),
            truncated=count > 3,
            texts=tuple(f"{word} " for word in query.split()),
        )
        for query, count in (("a dog", 2), ("ein Hund läuft weg", 4), ("日本", 1))
    }


def video_features(video_id: str) -> dict:
    """The arguments of `CacheWriter.store` for one of the videos in `CLIP_COUNTS`."""
    clips = CLIP_COUNTS[video_id]
    rng = np.random.default_rng(len(video_id) + clips)
    return {
        "tokens": rng.normal(size=(clips, 7, CHANNELS)).astype(np.float16),
        "joint": unit_vectors(rng, clips, JOINT_CHANNELS),
        "times_s": np.arange(clips) * 2.0 + 1.0,
        "duration_s": clips * 2.0,
        "content_hash": f"hash of {video_id}",
        "repaired": 1,
        "decoder": "decord 0.6.0",
    }


def write_small_cache(path: Path) -> Path:
    """Writes the three videos and a failed one, and returns the path."""
    with CacheWriter(path, small_contents(), sentence_tokens()) as writer:
        writer.write_index()
        for video_id in CLIP_COUNTS:
            writer.store(video_id, **video_features(video_id))
        writer.record_without_features("bad", status="failed", reason="no video stream")
    return path
