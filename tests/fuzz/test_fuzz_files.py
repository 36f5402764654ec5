"""Caches and checkpoints with seeded damage are read, or refused by a CostlError, in bounded memory and time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from open_damaged import CACHES, CHECKPOINTS, small_state
from preloaded import Preloaded
from small_cache import unit_vectors

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.training.state import save_state

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GROWN_MB = 100
FEW, MANY = 25, 10_000
ROW = {"qid": 1, "query": "a dog", "vid": "v_a", "duration": 6, "relevant_windows": [[0, 4]]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files that `open_damaged` damages: a cache of three videos, the same packed, and a checkpoint."""
    whole = tmp_path / "whole"
    whole.mkdir()
    rng = np.random.default_rng(0)
    contents = Contents(
        fingerprint={"model": "tiny", "fps": 0.5},
        fps=0.5,
        patch_grid=(2, 3),
        joint=JointSpace(width=4, logit_scale=100.0),
        token_width=8,
        annotations={"train": json.dumps(ROW) + "\n", "val": ""},
        settings={"train": {"epochs": 3}},
        videos="videos",
        source={"model": "tiny", "weights": "./weights.pt"},
    )
    words = {"a dog": SentenceTokens(np.ones((2, 6), np.float16), np.ones(4, np.float32), texts=("a ", "dog "))}
    with CacheWriter(whole / "feats.h5", contents, words) as writer:
        writer.write_index()
        for name, clips in (("v_a", 3), ("v_b", 5), ("v_c", 1)):
            tokens = rng.normal(size=(clips, 7, 8)).astype(np.float16)
            features = {"tokens": tokens, "joint": unit_vectors(rng, clips, 4), "times_s": np.arange(clips) * 2.0 + 1}
            writer.store(name, **features, duration_s=clips * 2.0, content_hash="0" * 64)
        writer.record_without_features("bad", status="failed", reason="no video stream")
    pack(whole / "feats.h5", out=whole / "packed.h5")
    save_state(small_state(), whole)
    return tmp_path


def open_files(kind: str, count: int, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Opens `count` damaged files; -> how many had each outcome, and every problem."""
    counts: dict[str, int] = {}
    problems: list[str] = []
    first = 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while first < count:
        program = [HERE / "open_damaged.py", kind, first, count - first, folder]
        with Preloaded(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            stdout, stderr = process.communicate()
        if process.returncode:
            seed = int((folder / "seed").read_text())
            killed = process.returncode < 0
            reason = signal.Signals(-process.returncode).name if killed else stderr[-1000:]
            problems.append(f"{kind} {seed}: the process ended by {reason}")
            counts["crashed"] = counts.get("crashed", 0) + 1
            first = seed + 1
            continue
        report = json.loads(stdout.splitlines()[-1])
        counts |= {name: counts.get(name, 0) + number for name, number in report["counts"].items()}
        problems += [f"{kind} {seed}: {error}\n{trace}" for error, (seed, trace) in report["foreign"].items()]
        if report["grown_mb"] > GROWN_MB:
            problems.append(f"{kind}: grew by {report['grown_mb']:.0f} MB")
        first = count
    return counts, problems


@pytest.mark.promise(9)
@pytest.mark.parametrize("kind", [*CACHES, *CHECKPOINTS])
def test_a_damaged_file_is_read_or_refused_in_bounded_memory(folder, kind, report_figure):
    counts, problems = open_files(kind, FEW, folder)
    report_figure(f"{kind}: {sum(counts.values())} files, {counts}")
    assert not problems, "\n".join(problems)
    assert counts["refused"] > FEW / 4 and sum(counts.values()) == FEW


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("kind", [*CACHES, *CHECKPOINTS])
def test_ten_thousand_damaged_files_are_read_or_refused(folder, kind, report_figure):
    counts, problems = open_files(kind, MANY, folder)
    report_figure(f"{kind}: {sum(counts.values())} files, {counts}")
    assert not problems, "\n".join(problems)
