"""Measures how the index of a cache scales with the number of videos, on synthetic caches with small parts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from costl.data.queries import read_queries
from costl.data.sampler import training_batches
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.errors import CostlError
from costl.pipeline.progress import Progress, ProgressCallback

# Of the synthetic features: clips of a video, channels of a token, words of a query, channels of a word, of a sentence.
CLIPS, CHANNELS, WORDS, WORD_WIDTH, SENTENCE_WIDTH = 2, 8, 11, 1024, 512
FEW_VIDEOS = 1000
_EPOCHS = 3

# Measured in a new process: in this one the libraries are loaded and their memory is allocated.
_MEASUREMENT = """
import json, sys, time
import h5py, numpy
from pathlib import Path
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.inspect import status_table
from costl.pipeline.cache.verify import verify


def megabytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmHWM"))


def timed(call):
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


path, query = Path(sys.argv[1]), sys.argv[2]
before = megabytes() if sys.platform == "linux" else 0.0
reader, opened_s = timed(lambda: CacheReader(path))
grown = megabytes() - before if sys.platform == "linux" else float("nan")
_, words_s = timed(lambda: reader.words(query))
_, status_s = timed(lambda: status_table(CacheReader(path).rows))
report, quick_s = timed(lambda: verify(path, quick=True))
assert not report.damaged, report.damaged[0]
print(json.dumps({"open, s": opened_s, "open, MB": grown, "the first words, s": words_s,
                  "status, s": status_s, "verify --quick, s": quick_s}))
"""


@dataclass(frozen=True)
class IndexCost:
    """`rows`: the measurements (seconds, megabytes, milliseconds by name) by number of videos."""

    rows: Mapping[str, Mapping[str, float]]
    exit_code = 0

    def lines(self) -> list[str]:
        """For the terminal: a line for each measurement, a column for each cache, and their ratio."""
        columns = list(self.rows)
        names = list(self.rows[columns[0]])
        lines = [f"{'':24}" + "".join(f"{f'{column} videos':>16}" for column in columns) + f"{'ratio':>10}"]
        for name in names:
            values = [self.rows[column][name] for column in columns]
            ratio = values[-1] / values[0] if values[0] else float("nan")
            lines.append(f"{name:24}" + "".join(f"{value:>16.3f}" for value in values) + f"{ratio:>10.2f}")
        return lines

    def data(self) -> dict[str, Any]:
        """The rows."""
        return dict(self.rows)


def bench_index(*, videos: int = 10148, folder: Path | None = None, progress: ProgressCallback | None = None) -> IndexCost:
    """Writes a cache of `FEW_VIDEOS` videos and one of `videos` (to a temporary folder in `folder`), and measures both.

    Seconds and megabytes to open; seconds of status, of verify --quick and of writing the index; milliseconds a sample to
    read an epoch: the first one, which opens every part, and the fastest of the others.
    """
    report_progress = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        few = min(FEW_VIDEOS, videos)
        paths = {few: Path(temporary) / "few" / "feats.h5", videos: Path(temporary) / "many" / "feats.h5"}
        index_s = {count: write_synthetic(path, videos=count, progress=report_progress) for count, path in paths.items()}
        rows = {str(count): _measure_in_process(path) for count, path in paths.items()}
        readers = {count: CacheReader(path) for count, path in paths.items()}
        epochs: dict[int, list[float]] = {count: [] for count in paths}
        for number in range(_EPOCHS):  # in turn, so that other load of the machine affects both
            for count, reader in readers.items():
                epochs[count].append(epoch_ms(reader))
            report_progress(Progress("epochs", number + 1, _EPOCHS))
    for count in paths:
        rows[str(count)] |= {
            "write index, s": index_s[count],
            "first epoch, ms a sample": epochs[count][0],
            "next epochs, ms a sample": min(epochs[count][1:]),
        }
    return IndexCost(rows)


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
        joint=JointSpace(
            norm_weight=np.ones(CHANNELS, np.float32),
            norm_bias=np.zeros(CHANNELS, np.float32),
            norm_eps=1e-5,
            projection=np.ones((CHANNELS, SENTENCE_WIDTH), np.float32),
            logit_scale=100.0,
        ),
        annotations={"train": "".join(json.dumps(row) + "\n" for row in rows)},
    )
    tokens = rng.normal(size=(CLIPS, 2, CHANNELS)).astype(np.float16)
    with CacheWriter(path, contents, words) as writer:
        for i in range(videos):
            writer.store(
                f"v{i:07d}_210.0_360.0",
                tokens=tokens + np.float16(i % 7),
                times_s=np.array([1.0, 3.0]),
                duration_s=2.0 * CLIPS,
                content_hash=f"{i:064x}",
                decoder="synthetic",
            )
            report_progress(Progress(f"write {videos}", i + 1, videos))
        writer.write_index()  # the first call also writes the words
        started = time.perf_counter()
        writer.write_index()
        return time.perf_counter() - started


def epoch_ms(features: CacheReader) -> float:
    """Milliseconds a query to read everything that an epoch of training reads."""
    queries = read_queries(features, "train")
    draw = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    batches = training_batches(queries, features, batch_size=32, patches=True, negative_pairs=True, generator=draw)
    count = sum(len(batch.queries) for batch in batches)
    return 1e3 * (time.perf_counter() - started) / count


def _measure_in_process(path: Path) -> dict[str, float]:
    query = read_queries(CacheReader(path), "train")[0].query
    command: Sequence[str] = [sys.executable, "-c", _MEASUREMENT, str(path), query]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if process.returncode:
        raise CostlError(f"The measurement failed: {process.stderr.strip().splitlines()[-1]}.")
    measured: dict[str, float] = json.loads(process.stdout)
    return measured


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
