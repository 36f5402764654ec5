"""A folder of small inputs: videos that nothing reads, annotations, a cache, and a run without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_cache import sentence_tokens, small_contents, video_features

from costl.config import Config
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.training.run_folder import create_run


def row(qid: int, video: str) -> str:
    fields = {"qid": qid, "query": "a dog", "vid": video, "duration": 6, "relevant_windows": [[0, 2]]}
    return json.dumps(fields) + "\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("empty", "unannotated", "videos"):
        (folder / name).mkdir()
    (folder / "unannotated" / "a.mp4").write_bytes(b"not read")
    (folder / "videos" / "a.mp4").write_bytes(b"not read")
    (folder / "videos" / "train.jsonl").write_text(row(1, "a"))
    (folder / "wrong.jsonl").write_text('{"qid": 1, "query": "a dog"}\n')
    contents = small_contents(annotations={"train": row(1, "v_a"), "val": row(2, "v_a")}, settings={})
    with CacheWriter(folder / "feats.h5", contents, sentence_tokens()) as writer:
        writer.store("v_a", **video_features("v_a"))
        writer.write_index()
    for run in ("run", "runs/new"):
        create_run(folder / run, Config(), CacheReader(folder / "feats.h5"))
    return folder
