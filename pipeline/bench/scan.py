"""Compares the scan of a library with usearch, torch and numpy, and with the time that reading the same bytes takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.bench.measure import Cost, can_drop_pages, cost_of, drop_pages, measure
from costl.pipeline.cache.index import Contents, Index, VideoRow, read_index, write_index
from costl.pipeline.cache.part import parts_folder, write_part
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import JointSpace
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.table import table
from costl.pipeline.library.folder import CACHE, VECTORS
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors, checksum, header, open_vectors
from costl.pipeline.library.vectors_table import VectorsTable, write_table
from costl.pipeline.library.vectors_update import update_vectors
from costl.pipeline.options import TokenFormat
from costl.pipeline.processes import cpu_cores
from costl.pipeline.progress import Progress, ProgressCallback

FPS = 0.5
CLIPS = 90  # of each video: three minutes
TOP = 100
MANY = 8  # sentences at once
_OPEN = "open"
_DATA = "vectors-0123456789abcdef.f16"
_BLOCK_VIDEOS = 200
_TOP_BLOCK = 256  # clips
_Works = dict[str, Callable[[], object]]


def bench_scan(
    index: Path, *, videos: int, repeats: int = 10, progress: ProgressCallback | None = None
) -> list[str]:
    """The table of scanning the library of `videos` videos that `write_library` has written to the folder `index`.

    All rows use every core, and the least of `repeats` rounds counts, in each of which every row is measured once. Adds
    videos to the library.
    """
    report_progress = progress or (lambda _: None)
    report_progress(Progress("search", 0, 1))
    vectors = index / VECTORS
    cold = measure(_cold_works(vectors), repeats=2) if can_drop_pages() else {}
    works = {**_works(open_vectors(vectors)), _OPEN: lambda: open_vectors(vectors)}
    for work in works.values():  # reads the file into the page cache
        work()
    warm = measure(works, repeats=repeats)
    added_s = min(_add_video(index, videos + number, report_progress) for number in range(3))
    report_progress(Progress("search", 1, 1))
    clips = videos * CLIPS
    gigabytes = 2e-9 * clips * open_vectors(vectors).width
    title = f"{clips / FPS / 3600:g} hours, {clips} clips, {gigabytes:.2f} GB, {cpu_cores()} cores"
    lines = cost_table(title, {name: cost for name, cost in warm.items() if name != _OPEN}, "read")
    if cold:
        lines += ["", *cost_table("the same from the disk, with the page cache dropped", cold, "read, cold")]
    lines += ["", f"Opening {videos} videos: {1e3 * warm[_OPEN].wall_s:.1f} ms. Adding one video: {1e3 * added_s:.0f} ms."]
    if not _has_usearch():
        lines.append("usearch is not installed, so its rows are missing: pip install usearch")
    return lines


def write_library(index: Path, contents: Contents, videos: int, report_progress: ProgressCallback) -> list[VideoRow]:
    """The index of a library of `videos` videos with random unit vectors, without their parts; returns their rows."""
    width = contents.joint.width
    vectors = np.random.default_rng(0).normal(size=(_BLOCK_VIDEOS * CLIPS, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    block = vectors.astype("<f2")
    crcs = []
    (index / VECTORS).mkdir(parents=True)
    with (index / VECTORS / _DATA).open("wb") as file:
        file.write(header(_DATA, width))
        for start in range(0, videos, _BLOCK_VIDEOS):
            report_progress(Progress("write", start, videos))
            some = np.roll(block, start // _BLOCK_VIDEOS, axis=1)[: (videos - start) * CLIPS]
            file.write(some.data)
            crcs += [checksum(some[row : row + CLIPS]) for row in range(0, len(some), CLIPS)]
    report_progress(Progress("write", videos, videos))
    rows = [_video_row(number) for number in range(videos)]
    written = VectorsTable(
        cache=digest(contents.fingerprint),
        fps=FPS,
        width=width,
        data=_DATA,
        written_rows=videos * CLIPS,
        keys=tuple(row.name for row in rows),
        checksums=tuple(row.checksum for row in rows),
        rows=CLIPS * np.arange(videos),
        clips=np.full(videos, CLIPS),
        crcs=np.array(crcs, np.int64),
        durations_s=np.full(videos, CLIPS / FPS),
    )
    write_table(index / VECTORS, written)
    write_index(index / CACHE, _index(contents, rows))
    return rows


def random_contents(fingerprint: Mapping[str, Any], source: Mapping[str, str], width: int) -> Contents:
    """The contents of a cache of random vectors, as if an encoder with this fingerprint and source had made them."""
    return Contents(
        fingerprint,
        fps=FPS,
        patch_grid=(0, 0),
        joint=JointSpace(width=width, logit_scale=100.0),
        token_width=1,
        source=source,
        token_format=TokenFormat(tokens="cls"),
    )


def _works(vectors: Vectors) -> _Works:
    sentences = _sentences(MANY, vectors.width)
    works: _Works = {
        "read": partial(_read, vectors.array),
        "one sentence": lambda: [_top(row) for row in similarities(vectors, sentences[:1])],
        f"{MANY} sentences": lambda: [_top(row) for row in similarities(vectors, sentences)],
    }
    if _has_usearch():
        works["one sentence, usearch"] = partial(_usearch, vectors.array, sentences[:1])
        works[f"{MANY} sentences, usearch"] = partial(_usearch, vectors.array, sentences)
    works["one sentence, torch float16"] = partial(_torch, vectors.array, sentences[0])
    works["one sentence, numpy float32 in blocks"] = partial(_numpy, vectors.array, sentences[0])
    return works


def _cold_works(folder: Path) -> _Works:
    """The same with the page cache dropped. Each opens the file by itself, since mapped pages are not dropped."""

    def read() -> None:
        drop_pages([folder / _DATA])
        with (folder / _DATA).open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass

    def search() -> None:
        drop_pages([folder / _DATA])
        vectors = open_vectors(folder)
        similarities(vectors, _sentences(1, vectors.width))

    return {"read, cold": read, "one sentence, cold": search}


def _read(array: np.ndarray) -> int:
    """The bitwise or of all bytes: every core reads its share."""
    numbers = array.view(np.uint64).reshape(-1)
    cores = cpu_cores()
    bounds = [len(numbers) * core // cores for core in range(cores + 1)]
    with ThreadPoolExecutor(cores) as pool:
        shares = [numbers[bounds[core] : bounds[core + 1]] for core in range(cores)]
        return int(np.bitwise_or.reduce([*pool.map(np.bitwise_or.reduce, shares)]))


def _top(row: np.ndarray) -> np.ndarray:
    """The indices of the `TOP` largest values [n], best first: they are in the blocks with the largest maxima."""
    whole = len(row) // _TOP_BLOCK * _TOP_BLOCK
    maxima = row[:whole].reshape(-1, _TOP_BLOCK).max(axis=1)
    blocks = np.argpartition(maxima, -TOP)[-TOP:] if len(maxima) > TOP else np.arange(len(maxima))
    rest = np.arange(whole, len(row))
    candidates = np.concatenate([(blocks[:, None] * _TOP_BLOCK + np.arange(_TOP_BLOCK)).ravel(), rest])
    if len(candidates) > TOP:
        candidates = candidates[np.argpartition(row[candidates], -TOP)[-TOP:]]
    return candidates[np.argsort(-row[candidates])]


def _usearch(array: np.ndarray, sentences: np.ndarray) -> object:
    from usearch.index import MetricKind, search

    queries = sentences.astype(np.float16)
    return search(array, queries, TOP, MetricKind.IP, exact=True, threads=cpu_cores())


def _torch(array: np.ndarray, sentence: np.ndarray) -> object:
    """The product in float16, whose result is rounded to float16."""
    import torch  # here, because it would hide the memory of the search in a new process

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array is read-only, and only read
        clips = torch.from_numpy(array)
    return torch.topk(clips @ torch.from_numpy(sentence).half(), min(TOP, len(array)))


def _numpy(array: np.ndarray, sentence: np.ndarray) -> np.ndarray:
    """Blocks that fit into the cache of a core are converted to float32."""
    blocks: Iterator[np.ndarray] = (array[start : start + 512] for start in range(0, len(array), 512))
    return _top(np.concatenate([block.astype(np.float32) @ sentence for block in blocks]))


def _add_video(index: Path, number: int, report_progress: ProgressCallback) -> float:
    """Adds one video to the cache; the seconds in which the search file follows."""
    rng = np.random.default_rng(number)
    before = read_index(index / CACHE)
    joint = rng.normal(size=(CLIPS, before.contents.joint.width)).astype(np.float16)
    tokens = np.zeros((CLIPS, 1, 1), np.float16)
    times_s = np.arange(CLIPS) / FPS
    row = _video_row(number)
    path = parts_folder(index / CACHE) / row.part
    path.parent.mkdir(exist_ok=True)
    fingerprint = digest(before.contents.fingerprint)
    row = write_part(path, row, fingerprint, dtype="float16", tokens=tokens, joint=joint, times_s=times_s)
    write_index(index / CACHE, _index(before.contents, [*before.rows, row]))
    cache = CacheReader(index / CACHE)
    return cost_of(partial(update_vectors, index / VECTORS, cache)).wall_s


def _video_row(number: int) -> VideoRow:
    name = f"video-{number:06d}"
    return VideoRow(
        id=name,
        status="ok",
        name=name,
        part=f"{name}.h5",
        clips=CLIPS,
        duration_s=CLIPS / FPS,
        checksum=f"{number:064x}",
        picture_start_s=0.0,
    )


def _index(contents: Contents, rows: list[VideoRow]) -> Index:
    return Index(contents, rows, f"{0:064x}.h5")


def _sentences(count: int, width: int) -> np.ndarray:
    """Random unit vectors, float32 [count e]."""
    sentences = np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)
    return np.asarray(sentences / np.linalg.norm(sentences, axis=1, keepdims=True))


def _has_usearch() -> bool:
    return find_spec("usearch") is not None


def cost_table(title: str, costs: Mapping[str, Cost], limit: str) -> list[str]:
    """Milliseconds and CPU milliseconds of each core, and both relative to those of the row `limit`."""
    cores = cpu_cores()
    rows = []
    for name, cost in costs.items():
        wall, cpu = cost.wall_s, cost.cpu_s / cores
        ratios = (f"{wall / costs[limit].wall_s:.2f}", f"{cores * cpu / max(costs[limit].cpu_s, 1e-9):.2f}")
        rows.append((name, f"{1e3 * wall:.1f}", ratios[0], f"{1e3 * cpu:.1f}", ratios[1]))
    return table([title, "ms", "ratio", "CPU ms a core", "ratio"], rows)
