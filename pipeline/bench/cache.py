"""How fast a cache is written and read beside plain files and memory maps of the same bytes, and what int8 costs."""

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
from costl.pipeline.encode.types import Joint
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.options import Form
from costl.pipeline.progress import Progress, Tell

CLIPS, GRID, CHANNELS = 75, (7, 7), 768  # a video of 150 s at 0.5 fps by ViT-B/32, as QVHighlights has them
_FORMS = ("float16", "int8")


@dataclass(frozen=True)
class Pace:
    """One thing done by the cache (`ours`) and in the plain way, in MB/s of float16 tokens; medians over the rounds."""

    what: str
    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        """Above 1: faster than the plain way."""
        return self.ours / self.plain


@dataclass(frozen=True)
class Loss:
    """What int8 makes of tokens, as shares of their length: of all (`all`), of the frame tokens, and of what a frame
    token has of its own: its difference from the mean over its video. `size` is the share of float16's bytes."""

    all: float
    frame: float
    own: float
    size: float


@dataclass(frozen=True)
class CacheSpeed:
    """What was measured on `videos` videos with tokens of `source`; `look_up_ms` passes before a video's first byte."""

    source: str
    videos: int
    paces: tuple[Pace, ...]
    look_up_ms: float
    int8: Loss
    exit_code = 0

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{'MB/s of float16 tokens':42}{'cache':>9}{'plain':>9}{'ratio':>7}"]
        lines += [f"{pace.what:42}{pace.ours:>9.0f}{pace.plain:>9.0f}{pace.ratio:>7.2f}" for pace in self.paces]
        lines += [
            f"{self.videos} videos, {self.source}. A video's first read takes {self.look_up_ms:.2f} ms more, for its checks.",
            f"int8: {self.int8.size:.3f} of the size; error {self.int8.all:.2%} of a token, {self.int8.frame:.2%} of a "
            f"frame token, {self.int8.own:.2%} of its difference from its video's mean.",
        ]
        return lines

    def data(self) -> dict[str, Any]:
        """Every number, for machines."""
        return asdict(self)


def bench_cache(
    *,
    cache: Path | None = None,
    videos: int = 64,
    rounds: int = 3,
    folder: Path = Path(),
    progress: Tell | None = None,
) -> CacheSpeed:
    """Writes and reads up to `videos` videos in `folder` (where caches will lie) in each form, and as plain files.

    The tokens are those of `cache`, or random ones as large as 150 s at 0.5 fps by ViT-B/32. Every write is fsynced and
    renamed. Cold reads come after the system has dropped the files' pages, where it can be told to (Linux). Raises
    UsageError for fewer than one video or round and a folder that cannot be written, CacheError for a cache that cannot
    be read and a disk that is full.
    """
    if videos < 1 or rounds < 1:
        raise UsageError(f"{videos} videos, {rounds} rounds: expected at least one of each.")
    tell, samples = progress or (lambda _: None), _Samples(cache, videos)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with _temporary(folder) as place:
        home = Path(place)
        for number in range(rounds):
            _write_all(samples, home, found)
            tell(Progress("write", number + 1, rounds))
        for number in range(rounds):
            _read_all(samples, home, found)
            tell(Progress("read", number + 1, rounds))
        readers = _readers(home)
        look_up_ms = 1e3 * median(_look_ups(readers["float16"], samples))
        loss = _loss(samples, readers)
    paces = [Pace(what, *(median(side) for side in zip(*pairs, strict=True))) for what, pairs in found.items()]
    return CacheSpeed(samples.source, len(samples.names), tuple(paces), look_up_ms, loss)


def _temporary(folder: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}). Choose another --folder.") from error


class _Samples:
    """The videos to work with, one at a time."""

    def __init__(self, cache: Path | None, videos: int):
        self._reader = None if cache is None else CacheReader(cache)
        self.names: Sequence[str] = [f"v{i}" for i in range(videos)]
        self.source, self.contents = "random tokens", _made_up()
        if self._reader is None:
            self._tokens = np.random.default_rng(0).normal(size=(CLIPS, 1 + GRID[0] * GRID[1], CHANNELS))
            self._tokens = self._tokens.astype(np.float16)
        else:
            self.names, self.source = self._reader.video_ids[:videos], f"tokens of {cache}"
            self.contents = self._reader.contents
        if not self.names:
            raise UsageError(f"{cache}: no video with features, expected at least one.")

    def tokens(self, name: str) -> np.ndarray:
        return self._tokens if self._reader is None else self._reader.tokens(name)

    def clips(self, name: str) -> int:
        return CLIPS if self._reader is None else self._reader.grid(name).clips

    def megabytes(self) -> float:
        return sum(self.tokens(name).nbytes for name in self.names) / 1e6


def _made_up() -> Contents:
    joint = Joint(
        norm_weight=np.ones(CHANNELS, np.float32),
        norm_bias=np.zeros(CHANNELS, np.float32),
        norm_eps=1e-5,
        projection=np.ones((CHANNELS, 1), np.float32),
        logit_scale=100.0,
    )
    return Contents(fingerprint={"source": "random"}, fps=0.5, patch_grid=GRID, joint=joint)


def _write_all(samples: _Samples, home: Path, found: dict[str, list[tuple[float, float]]]) -> None:
    ours = {dtype: _timed(partial(_write, samples, home, dtype)) for dtype in _FORMS}
    plain = _timed(lambda: _write_plain(samples, home))
    for dtype in _FORMS:
        found[f"write {dtype}"].append((samples.megabytes() / ours[dtype], samples.megabytes() / plain))


def _write(samples: _Samples, home: Path, dtype: str) -> None:
    tokens = samples.contents.form.tokens
    contents = replace(samples.contents, form=Form(dtype, tokens=tokens), annotations={})
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
    aside = home / "aside"
    try:
        for number, name in enumerate(samples.names):
            with aside.open("wb") as file:
                file.write(np.ascontiguousarray(samples.tokens(name)).data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, _plain(home, number))
    except OSError as error:
        raise CacheError(
            f"{home}: cannot be written ({error.strerror}). Make room, or ask for fewer --videos."
        ) from error


def _read_all(samples: _Samples, home: Path, found: dict[str, list[tuple[float, float]]]) -> None:
    """A new reader each time: the first read of every video pays for its checks, the second does not."""
    for dtype in _FORMS:
        reader, plain = _readers(home)[dtype], _plain_reads(samples, home)
        for when, drop in (("cold", True), ("warm", False)) if hasattr(os, "posix_fadvise") else (("warm", False),):
            fresh = _readers(home)[dtype]
            for what, one in ((f"read {dtype}, {when}, first", fresh), (f"read {dtype}, {when}, again", reader)):
                if one is reader:
                    _look_ups(reader, samples)  # at its parts, so that this is not the first time
                ours = _timed_reads(samples, _reads(samples, one), _parts(one) if drop else [])
                theirs = _timed_reads(samples, plain, sorted(home.glob("*.bin")) if drop else [])
                found[what].append((ours, theirs))


def _reads(samples: _Samples, reader: CacheReader) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (reader.tokens(f"v{number}") for number in range(len(samples.names)))


def _plain_reads(samples: _Samples, home: Path) -> Callable[[], Iterator[np.ndarray]]:
    shapes = [samples.tokens(name).shape for name in samples.names]
    return lambda: (
        np.memmap(_plain(home, number), np.float16, "r", shape=shape) for number, shape in enumerate(shapes)
    )


def _timed_reads(samples: _Samples, reads: Callable[[], Iterator[np.ndarray]], cold: Sequence[Path]) -> float:
    """MB/s of all tokens copied to one place, after the pages of the files `cold` were dropped."""
    place = np.empty((max(map(samples.clips, samples.names)), *samples.contents.token_shape), np.float16)
    place.fill(0)  # its pages exist before the clock starts
    for path in cold:
        _drop(path)

    def read() -> None:
        for tokens in reads():
            place[: len(tokens)] = tokens

    return samples.megabytes() / _timed(read)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not on disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _look_ups(reader: CacheReader, samples: _Samples) -> list[float]:
    """Seconds until each video's tokens can be read, none of which are."""
    return [_timed(partial(reader.tokens, f"v{n}", clips=slice(0))) for n in range(len(samples.names))]


def _loss(samples: _Samples, readers: Mapping[str, CacheReader]) -> Loss:
    sums: dict[str, float] = defaultdict(float)
    for number, name in enumerate(samples.names):
        true = samples.tokens(name).astype(np.float32)
        off = readers["int8"].tokens(f"v{number}").astype(np.float32) - true
        own = true[:, :1] - true[:, :1].mean(0)
        for what, values in (("all", true), ("frame", true[:, :1]), ("own", own), ("off", off), ("off f", off[:, :1])):
            sums[what] += float(np.square(values, dtype=np.float64).sum())
    size = {dtype: sum(path.stat().st_size for path in _parts(reader)) for dtype, reader in readers.items()}
    return Loss(
        all=_share(sums["off"], sums["all"]),
        frame=_share(sums["off f"], sums["frame"]),
        own=_share(sums["off f"], sums["own"]),
        size=size["int8"] / size["float16"],
    )


def _share(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole else 0.0


def _readers(home: Path) -> dict[str, CacheReader]:
    return {dtype: CacheReader(home / dtype / "feats.h5") for dtype in _FORMS}


def _parts(reader: CacheReader) -> list[Path]:
    return [reader.part_path(name) for name in reader.video_ids]


def _plain(home: Path, number: int) -> Path:
    return home / f"{number}.bin"


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
