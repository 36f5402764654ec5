"""A cache of two videos for tests that interrupt its writing, and a text encoder for the sentences that are added to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_cache import unit_vectors

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, SentenceTokens

VIDEOS = ("a", "b")


def annotation_line(query: str, video: str = "a") -> str:
    return f'{{"qid": 1, "query": "{query}", "vid": "{video}", "duration": 4.0}}\n'


def cache_contents() -> Contents:
    joint = JointSpace(width=3, logit_scale=9.0)
    fingerprint = {"model": "tiny", "weights": "0" * 64, "precision": "fp32"}
    annotations = {"train": annotation_line("a dog"), "test": annotation_line("a cat")}
    return Contents(fingerprint, 0.5, (1, 2), joint, token_width=4, annotations=annotations)


def query_features(*queries: str) -> dict[str, SentenceTokens]:
    """One token for each query, as large as the query is long."""
    token = np.ones((1, 5), np.float16)
    sentence = np.ones(3, np.float32)
    return {query: SentenceTokens(token * len(query), sentence * len(query), texts=(query,)) for query in queries}


def write_cache(cache: Path, reported: list[str]) -> None:
    """Writes the cache as an extraction does, and appends each video to `reported` once its part is stored."""
    rng = np.random.default_rng(1)
    tokens = {name: rng.normal(size=(2, 3, 4)).astype(np.float16) for name in VIDEOS}
    joint = unit_vectors(rng, 2, 3)
    times_s = np.array([1.0, 3.0])
    with CacheWriter(cache, cache_contents(), query_features("a dog", "a cat")) as writer:
        reused = [name for name in VIDEOS if writer.reuse_if_unchanged(name, f"hash of {name}")]
        writer.write_index()
        for name in VIDEOS:
            if name not in reused:
                features = {"tokens": tokens[name], "joint": joint, "times_s": times_s}
                writer.store(name, **features, duration_s=4.0, content_hash=f"hash of {name}")
            reported.append(name)


class TextEncoder:
    """Stands in for the CLIP that made the cache."""

    def fingerprint(self) -> dict[str, str]:
        return dict(cache_contents().fingerprint)

    def encode_text(self, queries: list[str]) -> list[SentenceTokens]:
        return list(query_features(*queries).values())
