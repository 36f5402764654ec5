"""How a cache behaves as its videos grow in number: a made-up one with small parts, and the table of what it costs."""

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

from costl.data.batch import training_batches
from costl.data.splits import read_queries
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CostlError
from costl.pipeline.progress import Progress, Tell

CLIPS, CHANNELS, WORDS, WORD_WIDTH, SENTENCE = 2, 8, 11, 1024, 512
FEW = 1000
_EPOCHS = 3

# What one command costs, in a process of its own: this one has seen too much to know what opening an index takes.
_ALONE = """
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
found, quick_s = timed(lambda: verify(path, quick=True))
assert not found.damaged, found.damaged[0]
print(json.dumps({"open, s": opened_s, "open, MB": grown, "the first words, s": words_s,
                  "status, s": status_s, "verify --quick, s": quick_s}))
"""


@dataclass(frozen=True)
class IndexCost:
    """`rows`: what was measured, for each number of videos."""

    rows: Mapping[str, Mapping[str, float]]
    exit_code = 0

    def lines(self) -> list[str]:
        """For the terminal: a line for each measurement, a column for each cache, and how much one grew to the other."""
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


def bench_index(*, videos: int = 10148, folder: Path | None = None, progress: Tell | None = None) -> IndexCost:
    """Writes a cache of `FEW` videos and one of `videos` (to `folder`, by default a temporary one), and measures both.

    Seconds and megabytes to open; seconds of status, of verify --quick, of writing the index; milliseconds a sample of
    an epoch's reads, the first one, which opens every part, and the quickest of those after it.
    """
    tell = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        few = min(FEW, videos)
        paths = {few: Path(place) / "few" / "feats.h5", videos: Path(place) / "many" / "feats.h5"}
        written = {count: write_synthetic(path, videos=count, progress=tell) for count, path in paths.items()}
        rows = {str(count): _alone(path) for count, path in paths.items()}
        readers = {count: CacheReader(path) for count, path in paths.items()}
        epochs: dict[int, list[float]] = {count: [] for count in paths}
        for number in range(_EPOCHS):  # in turn, so that what else the machine does falls on both
            for count, reader in readers.items():
                epochs[count].append(epoch_ms(reader))
            tell(Progress("epochs", number + 1, _EPOCHS))
    for count in paths:
        rows[str(count)] |= {
            "write index, s": written[count],
            "first epoch, ms a sample": epochs[count][0],
            "next epochs, ms a sample": min(epochs[count][1:]),
        }
    return IndexCost(rows)


def write_synthetic(path: Path, *, videos: int, word_width: int = WORD_WIDTH, progress: Tell | None = None) -> float:
    """A cache of so many videos with tokens [2 2 8] and one query of 11 words each; -> seconds its index took to write."""
    tell, rng = progress or (lambda _: None), np.random.default_rng(0)
    queries = [f"what is asked about number {i}" for i in range(videos)]
    words = {query: _random_words(rng, word_width) for query in queries}
    rows = [_annotation(i, query) for i, query in enumerate(queries)]
    contents = Contents(
        fingerprint={"source": "synthetic"},
        fps=0.5,
        patch_grid=(1, 1),
        joint=Joint(
            norm_weight=np.ones(CHANNELS, np.float32),
            norm_bias=np.zeros(CHANNELS, np.float32),
            norm_eps=1e-5,
            projection=np.ones((CHANNELS, SENTENCE), np.float32),
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
            tell(Progress(f"write {videos}", i + 1, videos))
        writer.write_index()  # the first one writes the words as well
        started = time.perf_counter()
        writer.write_index()
        return time.perf_counter() - started


def epoch_ms(features: CacheReader) -> float:
    """Milliseconds a query of reading everything an epoch of training reads."""
    queries = read_queries(features, "train")
    draw = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    batches = training_batches(queries, features, batch_size=32, patches=True, wrong=True, generator=draw)
    seen = sum(len(batch.queries) for batch in batches)
    return 1e3 * (time.perf_counter() - started) / seen


def _alone(path: Path) -> dict[str, float]:
    query = read_queries(CacheReader(path), "train")[0].query
    command: Sequence[str] = [sys.executable, "-c", _ALONE, str(path), query]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise CostlError(f"The measurement failed: {done.stderr.strip().splitlines()[-1]}.")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _random_words(rng: np.random.Generator, width: int) -> Words:
    tokens = rng.random((WORDS, width), dtype=np.float32).astype(np.float16)
    return Words(tokens=tokens, sentence=np.full(SENTENCE, SENTENCE**-0.5, np.float32))


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
