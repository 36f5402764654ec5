"""Compares the speed of a cache with plain files and memory maps of the same tokens, and measures the error of int8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from costl.pipeline.bench.measure import cost_of, measure
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
        writes: dict[str, Callable[[], object]] = {
            dtype: partial(_write, tokens, contents, home / dtype, dtype) for dtype in _DTYPES
        }
        writes["plain"] = partial(_write_plain, tokens, home)
        seconds = {"write": {name: cost.wall_s for name, cost in measure(writes, repeats=repeats).items()}}
        report_progress(Progress("read", 1, 2))
        seconds |= _read_seconds(tokens, home, repeats)
        lines = _speed_table(seconds, megabytes=sum(array.nbytes for array in tokens) / 1e6)
        lines.append(f"{len(tokens)} videos, {'random tokens' if cache is None else f'tokens of {cache}'}.")
        lines.append(_int8_line(tokens, home))
        report_progress(Progress("read", 2, 2))
    return lines


def _tokens_of(reader: CacheReader, videos: int) -> tuple[Contents, list[np.ndarray]]:
    tokens = [reader.tokens(name) for name in reader.video_ids[:videos]]
    if not tokens:
        raise UsageError(f"{reader.path}: no video with features, expected at least one.")
    return reader.contents, tokens


def _random_tokens(videos: int) -> tuple[Contents, list[np.ndarray]]:
    joint = JointSpace(
        norm_weight=np.ones(CHANNELS, np.float32),
        norm_bias=np.zeros(CHANNELS, np.float32),
        norm_eps=1e-5,
        projection=np.ones((CHANNELS, 1), np.float32),
        logit_scale=100.0,
    )
    contents = Contents(fingerprint={"source": "random"}, fps=0.5, patch_grid=GRID, joint=joint)
    tokens = np.random.default_rng(0).normal(size=(CLIPS, 1 + GRID[0] * GRID[1], CHANNELS)).astype(np.float16)
    return contents, [tokens] * videos


def _write(tokens: Sequence[np.ndarray], contents: Contents, folder: Path, dtype: str) -> None:
    token_format = TokenFormat(dtype, tokens=contents.token_format.tokens)
    contents = replace(contents, token_format=token_format, annotations={})
    folder.mkdir(exist_ok=True)
    with CacheWriter(folder / "feats.h5", contents, {}) as writer:
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


def _read_seconds(tokens: Sequence[np.ndarray], home: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds to copy all tokens to a buffer: first from the disk by a new reader, which checks every video, then again."""
    buffer = np.ones((max(map(len, tokens)), *tokens[0].shape[1:]), np.float16)

    def copy(arrays: Iterable[np.ndarray]) -> None:
        for array in arrays:
            buffer[: len(array)] = array

    def read(reader: CacheReader) -> None:
        copy(reader.tokens(f"v{number}") for number in range(len(tokens)))

    def read_plain() -> None:
        paths = (home / f"{number}.bin" for number in range(len(tokens)))
        copy(np.memmap(path, np.float16, "r", shape=array.shape) for path, array in zip(paths, tokens, strict=True))

    seconds = {}
    if hasattr(os, "posix_fadvise"):
        new = {dtype: partial(_read_new, read, home / dtype / "feats.h5") for dtype in _DTYPES}
        files = {dtype: list((home / dtype).rglob("*.h5")) for dtype in _DTYPES}
        cold = {dtype: min(_cold_s(new[dtype], files[dtype]) for _ in range(repeats)) for dtype in _DTYPES}
        cold["plain"] = min(_cold_s(read_plain, list(home.glob("*.bin"))) for _ in range(repeats))
        seconds["first read, cold"] = cold
    warm: dict[str, Callable[[], object]] = {}
    for dtype in _DTYPES:
        reader = CacheReader(home / dtype / "feats.h5")
        read(reader)
        warm[dtype] = partial(read, reader)
    warm["plain"] = read_plain
    seconds["next reads, warm"] = {name: cost.wall_s for name, cost in measure(warm, repeats=repeats).items()}
    return seconds


def _read_new(read: Callable[[CacheReader], None], path: Path) -> None:
    read(CacheReader(path))


def _cold_s(read: Callable[[], None], files: Iterable[Path]) -> float:
    """Seconds of `read` after the system has dropped `files` from its page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # only pages that are on disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return cost_of(read).wall_s


def _speed_table(seconds: Mapping[str, Mapping[str, float]], *, megabytes: float) -> list[str]:
    rows = []
    for name, by_format in seconds.items():
        row = [name, f"{megabytes / by_format['plain']:.0f}"]
        for dtype in _DTYPES:
            row += [f"{megabytes / by_format[dtype]:.0f}", f"{by_format['plain'] / by_format[dtype]:.2f}"]
        rows.append(row)
    return table(["MB/s of float16 tokens", "plain files", *(c for dtype in _DTYPES for c in (dtype, "ratio"))], rows)


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
