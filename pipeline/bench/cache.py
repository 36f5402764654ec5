"""Compares the speed of a cache with plain files and memory maps of the same tokens, and measures the error of int8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from costl.pipeline.bench.measure import Cost, can_drop_pages, drop_pages, measure
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.table import table
from costl.pipeline.options import TokenFormat
from costl.pipeline.progress import Progress, ProgressCallback

# A video of 150 s at 0.5 fps by ViT-B/32, as in QVHighlights.
CLIPS = 75
GRID = (7, 7)
CHANNELS = 768
_DTYPES = ("float16", "int8")
_Works = dict[tuple[str, str], Callable[[], object]]  # by row and column of the table


def bench_cache(
    *,
    cache: Path | None = None,
    videos: int = 64,
    repeats: int = 2,
    folder: Path = Path(),
    progress: ProgressCallback | None = None,
) -> list[str]:
    """The table of the speed of writing and reading up to `videos` videos in `folder` (on the disk to measure).

    The tokens are those of `cache`, or random ones for videos of 150 s at 0.5 fps by ViT-B/32. Every write ends with an
    fsync and a rename. Before a cold read, the system drops the files from its page cache (Linux only). Raises UsageError
    for less than one video or repeat and for a cache without videos, CacheError for a cache that cannot be read.
    """
    if videos < 1 or repeats < 1:
        raise UsageError(f"{videos} videos, {repeats} repeats: expected at least one of each.")
    report_progress = progress or (lambda _: None)
    contents, tokens = _random_tokens(videos) if cache is None else _tokens_of(CacheReader(cache), videos)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        home = Path(temporary)
        report_progress(Progress("write", 0, 2))
        seconds = measure(_writes(tokens, contents, home), repeats=repeats)
        report_progress(Progress("read", 1, 2))
        seconds |= measure(_reads(tokens, home), repeats=repeats)
        report_progress(Progress("read", 2, 2))
        int8 = _int8_line(tokens, home)
    megabytes = sum(array.nbytes for array in tokens) / 1e6
    source = "random tokens" if cache is None else f"tokens of {cache}"
    return [*_speed_table(seconds, megabytes=megabytes), f"{len(tokens)} videos, {source}.", int8]


def _tokens_of(reader: CacheReader, videos: int) -> tuple[Contents, list[np.ndarray]]:
    tokens = [reader.tokens(name) for name in reader.video_ids[:videos]]
    if not tokens:
        raise UsageError(f"{reader.path}: no video with features, expected at least one.")
    return reader.contents, tokens


def _random_tokens(videos: int) -> tuple[Contents, list[np.ndarray]]:
    joint = JointSpace(width=1, logit_scale=100.0, is_known=False)
    contents = Contents({"source": "random"}, fps=0.5, patch_grid=GRID, joint=joint, token_width=CHANNELS)
    tokens = np.random.default_rng(0).normal(size=(CLIPS, 1 + GRID[0] * GRID[1], CHANNELS)).astype(np.float16)
    return contents, [tokens] * videos


def _writes(tokens: Sequence[np.ndarray], contents: Contents, home: Path) -> _Works:
    writes: _Works = {("write", "plain"): partial(_write_plain, tokens, home)}
    for dtype in _DTYPES:
        token_format = TokenFormat(dtype, tokens=contents.token_format.tokens)
        joint = replace(contents.joint, is_known=False)  # only tokens are compared
        of_dtype = replace(contents, token_format=token_format, joint=joint, annotations={})
        writes["write", dtype] = partial(_write, tokens, of_dtype, home / dtype / "feats.h5")
    return writes


def _write(tokens: Sequence[np.ndarray], contents: Contents, path: Path) -> None:
    with CacheWriter(path, contents, {}) as writer:
        for number, array in enumerate(tokens):
            writer.store(
                f"v{number}",
                tokens=array,
                times_s=np.arange(len(array)) / contents.fps,
                duration_s=len(array) / contents.fps,
                content_hash="",
            )
        writer.write_index()


def _write_plain(tokens: Sequence[np.ndarray], home: Path) -> None:
    unfinished = home / "unfinished"
    for number, array in enumerate(tokens):
        with unfinished.open("wb") as file:
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, home / f"{number}.bin")


def _reads(tokens: Sequence[np.ndarray], home: Path) -> _Works:
    """Copies of all tokens to a buffer: first from the disk by a new reader, which checks every video, then again."""
    buffer = np.ones((max(map(len, tokens)), *tokens[0].shape[1:]), np.float16)

    def read(arrays: Iterable[np.ndarray]) -> None:
        for array in arrays:
            buffer[: len(array)] = array

    def read_plain() -> None:
        paths = (home / f"{number}.bin" for number in range(len(tokens)))
        read(np.memmap(path, np.float16, "r", shape=array.shape) for path, array in zip(paths, tokens, strict=True))

    def read_cache(reader: CacheReader) -> None:
        read(reader.tokens(f"v{number}") for number in range(len(tokens)))

    def read_plain_cold() -> None:
        drop_pages(home.glob("*.bin"))
        read_plain()

    def read_cache_cold(path: Path) -> None:
        drop_pages(path.parent.rglob("*.h5"))
        read_cache(CacheReader(path))

    reads: _Works = {}
    if can_drop_pages():
        reads["first read, cold", "plain"] = read_plain_cold
        reads |= {("first read, cold", dtype): partial(read_cache_cold, home / dtype / "feats.h5") for dtype in _DTYPES}
    reads["next reads, warm", "plain"] = read_plain
    for dtype in _DTYPES:
        reader = CacheReader(home / dtype / "feats.h5")
        read_cache(reader)
        reads["next reads, warm", dtype] = partial(read_cache, reader)
    return reads


def _speed_table(seconds: Mapping[tuple[str, str], Cost], *, megabytes: float) -> list[str]:
    rows = []
    for name in dict.fromkeys(name for name, _ in seconds):
        plain_s = seconds[name, "plain"].wall_s
        row = [name, f"{megabytes / plain_s:.0f}"]
        for dtype in _DTYPES:
            spent_s = seconds[name, dtype].wall_s
            row += [f"{megabytes / spent_s:.0f}", f"{plain_s / spent_s:.2f}"]
        rows.append(row)
    return table(["MB/s of float16 tokens", "plain files", "float16", "ratio", "int8", "ratio"], rows)


def _int8_line(tokens: Sequence[np.ndarray], home: Path) -> str:
    """The size of int8 relative to float16, and the norm of its error relative to that of all tokens."""
    reader = CacheReader(home / "int8" / "feats.h5")
    error = 0.0
    norm = 0.0
    for number, array in enumerate(tokens):
        exact = array.astype(np.float32)
        error += float(np.square(reader.tokens(f"v{number}") - exact).sum())
        norm += float(np.square(exact).sum())
    size = {dtype: sum(path.stat().st_size for path in (home / dtype).rglob("*.h5")) for dtype in _DTYPES}
    return f"int8: {size['int8'] / size['float16']:.3f} of the size of float16, relative L2 error {(error / norm) ** 0.5:.2%}."
