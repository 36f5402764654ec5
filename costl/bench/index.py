"""Measures how the index of a cache scales with the number of videos, on synthetic caches with small parts."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from costl.data.batch import collate
from costl.data.queries import read_queries
from costl.data.sampler import plan_epoch
from costl.pipeline.bench.measure import can_measure_memory, cost_of, in_new_process, measure, peak_rss
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.inspect import Status
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.formats.table import table
from costl.pipeline.progress import Progress, ProgressCallback

# Of the synthetic features: clips of a video, channels of a token, words of a query, channels of a word, of a sentence.
CLIPS, CHANNELS, WORDS, WORD_WIDTH, SENTENCE_WIDTH = 2, 8, 11, 1024, 512
FEW_VIDEOS = 1000
REPEATS = 2


def bench_index(*, videos: int = 10148, folder: Path | None = None, progress: ProgressCallback | None = None) -> list[str]:
    """The table of a cache of `FEW_VIDEOS` videos and one of `videos`, which are written to a temporary folder in `folder`.

    Seconds and megabytes to open; seconds of status, of verify --quick and of writing the index; milliseconds a sample to
    read an epoch: the first one, which opens every part, and the next ones.
    """
    report_progress = progress or (lambda _: None)
    few = min(FEW_VIDEOS, videos)
    columns = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for count, name in ((few, "few"), (videos, "many")):
            path = Path(temporary) / name / "feats.h5"
            index_s = write_synthetic(path, videos=count, progress=report_progress)
            columns[name] = in_new_process(_open_cost, path) | {"write index, s": index_s} | measure_cache(path, videos=count)
    rows = [
        (name, f"{small:.3f}", f"{columns['many'][name]:.3f}", f"{columns['many'][name] / small:.2f}" if small else "-")
        for name, small in columns["few"].items()
    ]
    return table(["", f"{few} videos", f"{videos} videos", "ratio"], rows)


def measure_cache(path: Path, *, videos: int) -> dict[str, float]:
    """The seconds of status and of verify --quick, and the milliseconds a sample of the first and the next epochs."""
    works = {"status, s": lambda: Status(CacheReader(path).rows).lines(), "verify --quick, s": lambda: verify(path, quick=True)}
    costs = {name: cost.wall_s for name, cost in measure(works, repeats=REPEATS).items()}
    features = CacheReader(path)
    epochs_s = [cost_of(partial(read_epoch, features)).wall_s for _ in range(1 + REPEATS)]
    return costs | {
        "first epoch, ms a sample": 1e3 * epochs_s[0] / videos,
        "next epochs, ms a sample": 1e3 * min(epochs_s[1:]) / videos,
    }


def read_epoch(features: CacheReader) -> None:
    """Reads everything that an epoch of training reads."""
    queries = read_queries(features, "train")
    draw = torch.Generator().manual_seed(0)
    for planned in plan_epoch(queries, features, batch_size=32, negative_pairs=True, generator=draw):
        collate(planned.queries, features, patches=True, negative_pairs=planned.negative_pairs)


def _open_cost(path: Path) -> dict[str, float]:
    before = peak_rss()
    costs = {"open, s": cost_of(lambda: CacheReader(path)).wall_s}
    return costs | ({"open, MB": (peak_rss() - before) / 1e6} if can_measure_memory() else {})


def write_synthetic(path: Path, *, videos: int, word_width: int = WORD_WIDTH, progress: ProgressCallback | None = None) -> float:
    """Writes a cache of `videos` videos with tokens [2 2 8] and a query of 11 words each; -> seconds to write the index."""
    report_progress = progress or (lambda _: None)
    rng = np.random.default_rng(0)
    queries = [f"what is asked about number {i}" for i in range(videos)]
    words = {query: _random_words(rng, word_width) for query in queries}
    rows = [_annotation(i, query) for i, query in enumerate(queries)]
    contents = Contents(
        fingerprint={"source": "synthetic"},
        fps=0.5,
        patch_grid=(1, 1),
        joint=JointSpace(width=SENTENCE_WIDTH, logit_scale=100.0),
        token_width=CHANNELS,
        annotations={"train": "".join(json.dumps(row) + "\n" for row in rows)},
    )
    tokens = rng.normal(size=(CLIPS, 2, CHANNELS)).astype(np.float16)
    joint = np.full((CLIPS, SENTENCE_WIDTH), SENTENCE_WIDTH**-0.5, np.float16)
    with CacheWriter(path, contents, words) as writer:
        for i in range(videos):
            writer.store(
                f"v{i:07d}_210.0_360.0",
                tokens=tokens + np.float16(i % 7),
                joint=joint,
                times_s=np.array([1.0, 3.0]),
                duration_s=2.0 * CLIPS,
                content_hash=f"{i:064x}",
                decoder="synthetic",
            )
            report_progress(Progress(f"write {videos}", i + 1, videos))
        writer.write_index()  # the first call also writes the words
        return cost_of(writer.write_index).wall_s


def _random_words(rng: np.random.Generator, width: int) -> SentenceTokens:
    tokens = rng.random((WORDS, width), dtype=np.float32).astype(np.float16)
    return SentenceTokens(tokens=tokens, sentence=np.full(SENTENCE_WIDTH, SENTENCE_WIDTH**-0.5, np.float32))


def _annotation(number: int, query: str) -> dict[str, object]:
    return {
        "qid": number,
        "query": query,
        "vid": f"v{number:07d}_210.0_360.0",
        "duration": 2 * CLIPS,
        "relevant_windows": [[0, 2]],
        "relevant_clip_ids": [0],
        "saliency_scores": [[1, 2, 4]],
    }
