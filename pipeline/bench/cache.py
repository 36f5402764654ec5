"""Compares the speed of a cache with plain files and memory maps of the same bytes, and measures the error of int8."""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.options import TokenFormat
from costl.pipeline.progress import Progress, ProgressCallback

# A video of 150 s at 0.5 fps by ViT-B/32, as in QVHighlights.
CLIPS = 75
GRID = (7, 7)
CHANNELS = 768
_DTYPES = ("float16", "int8")
_Speeds = dict[str, list[tuple[float, float]]]  # of the cache and of plain files in each round, by operation


@dataclass(frozen=True)
class Speed:
    """The speed of one operation in MB/s of float16 tokens, medians over the rounds: by the cache (`ours`) and `plain`."""

    what: str
    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        """Above 1 if the cache is faster."""
        return self.ours / self.plain


@dataclass(frozen=True)
class Int8Error:
    """The error of int8 tokens, as a share of a norm: of all tokens (`all`), of the frame tokens (`frame`), and of the
    frame tokens minus the mean of their video (`own`). `size` is the number of bytes relative to float16."""

    all: float
    frame: float
    own: float
    size: float


@dataclass(frozen=True)
class CacheBench:
    """The result on `videos` videos with tokens of `source`. `look_up_ms`: time to open a video before its first read."""

    source: str
    videos: int
    paces: tuple[Speed, ...]
    look_up_ms: float
    int8: Int8Error
    exit_code = 0

    def lines(self) -> list[str]:
        """A table for the terminal."""
        lines = [f"{'MB/s of float16 tokens':42}{'cache':>9}{'plain':>9}{'ratio':>7}"]
        lines += [f"{row.what:42}{row.ours:>9.0f}{row.plain:>9.0f}{row.ratio:>7.2f}" for row in self.paces]
        lines += [
            f"{self.videos} videos, {self.source}. The checks before the first read of a video take {self.look_up_ms:.2f} ms.",
            f"int8: {self.int8.size:.3f} of the size; error {self.int8.all:.2%} of a token, {self.int8.frame:.2%} of a "
            f"frame token, {self.int8.own:.2%} of its difference from its video's mean.",
        ]
        return lines

    def data(self) -> dict[str, Any]:
        """Every number, for JSON."""
        return asdict(self)


def bench_cache(
    *,
    cache: Path | None = None,
    videos: int = 64,
    rounds: int = 3,
    folder: Path = Path(),
    progress: ProgressCallback | None = None,
) -> CacheBench:
    """Writes and reads up to `videos` videos in `folder` (on the disk to measure), in each format and as plain files.

    The tokens are those of `cache`, or random ones for videos of 150 s at 0.5 fps by ViT-B/32. Every write ends with an
    fsync and a rename. Before a cold read, the system drops the files from its page cache (Linux only). Raises UsageError
    for less than one video or round and for a folder that cannot be written, CacheError for a cache that cannot be read
    and a full disk.
    """
    if videos < 1 or rounds < 1:
        raise UsageError(f"{videos} videos, {rounds} rounds: expected at least one of each.")
    report_progress = progress or (lambda _: None)
    samples = _Samples(cache, videos)
    speeds: _Speeds = defaultdict(list)
    with _temporary_folder(folder) as temporary:
        home = Path(temporary)
        for number in range(rounds):
            _write_all(samples, home, speeds)
            report_progress(Progress("write", number + 1, rounds))
        for number in range(rounds):
            _read_all(samples, home, speeds)
            report_progress(Progress("read", number + 1, rounds))
        readers = _readers(home)
        look_up_ms = 1e3 * median(_open_times_s(readers["float16"], samples))
        error = _int8_error(samples, readers)
    rows = [
        Speed(what, ours=median(ours for ours, _ in pairs), plain=median(plain for _, plain in pairs))
        for what, pairs in speeds.items()
    ]
    return CacheBench(samples.source, len(samples.names), tuple(rows), look_up_ms, error)


def _temporary_folder(folder: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}). Choose another --folder.") from error


class _Samples:
    """The videos to write and read: those of a cache, or random tokens."""

    def __init__(self, cache: Path | None, videos: int):
        self._reader = None if cache is None else CacheReader(cache)
        self.names: Sequence[str] = [f"v{i}" for i in range(videos)]
        self.source = "random tokens"
        self.contents = _random_contents()
        if self._reader is None:
            self._tokens = np.random.default_rng(0).normal(size=(CLIPS, 1 + GRID[0] * GRID[1], CHANNELS))
            self._tokens = self._tokens.astype(np.float16)
        else:
            self.names = self._reader.video_ids[:videos]
            self.source = f"tokens of {cache}"
            self.contents = self._reader.contents
        if not self.names:
            raise UsageError(f"{cache}: no video with features, expected at least one.")

    def tokens(self, name: str) -> np.ndarray:
        return self._tokens if self._reader is None else self._reader.tokens(name)

    def clips(self, name: str) -> int:
        return CLIPS if self._reader is None else self._reader.grid(name).clips

    def megabytes(self) -> float:
        return sum(self.tokens(name).nbytes for name in self.names) / 1e6


def _random_contents() -> Contents:
    joint = JointSpace(
        norm_weight=np.ones(CHANNELS, np.float32),
        norm_bias=np.zeros(CHANNELS, np.float32),
        norm_eps=1e-5,
        projection=np.ones((CHANNELS, 1), np.float32),
        logit_scale=100.0,
    )
    return Contents(fingerprint={"source": "random"}, fps=0.5, patch_grid=GRID, joint=joint)


def _write_all(samples: _Samples, home: Path, speeds: _Speeds) -> None:
    ours_s = {dtype: _seconds(partial(_write, samples, home, dtype)) for dtype in _DTYPES}
    plain_s = _seconds(lambda: _write_plain(samples, home))
    for dtype in _DTYPES:
        speeds[f"write {dtype}"].append((samples.megabytes() / ours_s[dtype], samples.megabytes() / plain_s))


def _write(samples: _Samples, home: Path, dtype: str) -> None:
    tokens = samples.contents.token_format.tokens
    contents = replace(samples.contents, token_format=TokenFormat(dtype, tokens=tokens), annotations={})
    (home / dtype).mkdir(exist_ok=True)
    with CacheWriter(home / dtype / "feats.h5", contents, {}) as writer:
        for number, name in enumerate(samples.names):
            clips = samples.clips(name)
            writer.store(
                f"v{number}",
                tokens=samples.tokens(name),
                times_s=np.arange(clips) / contents.fps,
                duration_s=clips / contents.fps,
                content_hash="",
            )
        writer.write_index()


def _write_plain(samples: _Samples, home: Path) -> None:
    unfinished = home / "unfinished"
    try:
        for number, name in enumerate(samples.names):
            with unfinished.open("wb") as file:
                file.write(np.ascontiguousarray(samples.tokens(name)).data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, _plain_file(home, number))
    except OSError as error:
        raise CacheError(
            f"{home}: cannot be written ({error.strerror}). Free some space, or use fewer --videos."
        ) from error


def _read_all(samples: _Samples, home: Path, speeds: _Speeds) -> None:
    """Reads each dtype cold and warm, with a new reader, which checks every video first, and again with another reader."""
    for dtype in _DTYPES:
        checked_reader = _readers(home)[dtype]
        read_plain = _plain_reads(samples, home)
        for when in ("cold", "warm") if hasattr(os, "posix_fadvise") else ("warm",):
            new_reader = _readers(home)[dtype]
            for which, reader in (("first", new_reader), ("again", checked_reader)):
                if reader is checked_reader:
                    _open_times_s(reader, samples)  # checks every video
                cold_parts = _parts(reader) if when == "cold" else []
                ours = _read_speed(samples, _reads(samples, reader), cold_parts)
                cold_files = sorted(home.glob("*.bin")) if when == "cold" else []
                plain = _read_speed(samples, read_plain, cold_files)
                speeds[f"read {dtype}, {when}, {which}"].append((ours, plain))


def _reads(samples: _Samples, reader: CacheReader) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (reader.tokens(f"v{number}") for number in range(len(samples.names)))


def _plain_reads(samples: _Samples, home: Path) -> Callable[[], Iterator[np.ndarray]]:
    shapes = [samples.tokens(name).shape for name in samples.names]
    return lambda: (
        np.memmap(_plain_file(home, number), np.float16, "r", shape=shape) for number, shape in enumerate(shapes)
    )


def _read_speed(samples: _Samples, reads: Callable[[], Iterator[np.ndarray]], cold: Sequence[Path]) -> float:
    """MB/s of copying all tokens to one buffer, after dropping the files `cold` from the page cache."""
    most_clips = max(map(samples.clips, samples.names))
    buffer = np.empty((most_clips, *samples.contents.token_shape), np.float16)
    buffer.fill(0)  # allocates its pages before the time starts
    for path in cold:
        _drop_pages(path)

    def read() -> None:
        for tokens in reads():
            buffer[: len(tokens)] = tokens

    return samples.megabytes() / _seconds(read)


def _drop_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only pages that are on disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _open_times_s(reader: CacheReader, samples: _Samples) -> list[float]:
    """Seconds to open each video and read none of its tokens."""
    return [_seconds(partial(reader.tokens, f"v{number}", clips=slice(0))) for number in range(len(samples.names))]


def _int8_error(samples: _Samples, readers: Mapping[str, CacheReader]) -> Int8Error:
    squares: dict[str, float] = defaultdict(float)  # sums of squares over all videos
    for number, name in enumerate(samples.names):
        tokens = samples.tokens(name).astype(np.float32)
        error = readers["int8"].tokens(f"v{number}").astype(np.float32) - tokens
        frame = tokens[:, :1]
        squares["tokens"] += _sum_of_squares(tokens)
        squares["frame"] += _sum_of_squares(frame)
        squares["centred frame"] += _sum_of_squares(frame - frame.mean(0))
        squares["error"] += _sum_of_squares(error)
        squares["frame error"] += _sum_of_squares(error[:, :1])
    size = {dtype: sum(path.stat().st_size for path in _parts(reader)) for dtype, reader in readers.items()}
    return Int8Error(
        all=_norm_ratio(squares["error"], squares["tokens"]),
        frame=_norm_ratio(squares["frame error"], squares["frame"]),
        own=_norm_ratio(squares["frame error"], squares["centred frame"]),
        size=size["int8"] / size["float16"],
    )


def _sum_of_squares(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _norm_ratio(squares: float, reference_squares: float) -> float:
    return float(np.sqrt(squares / reference_squares)) if reference_squares else 0.0


def _readers(home: Path) -> dict[str, CacheReader]:
    return {dtype: CacheReader(home / dtype / "feats.h5") for dtype in _DTYPES}


def _parts(reader: CacheReader) -> list[Path]:
    return [reader.part_path(name) for name in reader.video_ids]


def _plain_file(home: Path, number: int) -> Path:
    return home / f"{number}.bin"


def _seconds(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s
