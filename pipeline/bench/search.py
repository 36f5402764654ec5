"""Compares the scan of a library with usearch, torch and numpy, and with the time that reading the same bytes takes."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from costl.pipeline.bench.measure import (
    Cost,
    can_drop_pages,
    can_measure_memory,
    cost_of,
    drop_pages,
    in_new_process,
    measure,
)
from costl.pipeline.cache.index import Contents, Index, VideoRow, write_index
from costl.pipeline.cache.part import parts_folder, write_part
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import JointSpace
from costl.pipeline.errors import UsageError
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.table import table
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors, checksum, header, open_vectors
from costl.pipeline.library.vectors_table import VectorsTable, write_table
from costl.pipeline.library.vectors_update import update_vectors
from costl.pipeline.options import TokenFormat
from costl.pipeline.processes import cpu_cores
from costl.pipeline.progress import Progress, ProgressCallback

FPS, WIDTH = 0.5, 512  # as by ViT-B/32
CLIPS = 90  # of each video: three minutes
TOP = 100
MANY = 8  # sentences at once
_OPEN = "open"
_DATA = "vectors-0123456789abcdef.f16"
_CONTENTS = Contents(
    {"source": "random"},
    fps=FPS,
    patch_grid=(0, 0),
    joint=JointSpace(width=WIDTH, logit_scale=100.0),
    token_width=1,
    token_format=TokenFormat(tokens="cls"),
)
_BLOCK_VIDEOS = 200
_TOP_BLOCK = 256  # clips
_Works = dict[str, Callable[[], object]]


def bench_search(
    *, hours: float = 100.0, repeats: int = 10, folder: Path = Path(), progress: ProgressCallback | None = None
) -> list[str]:
    """The table of searching `hours` of videos of three minutes, random unit vectors in a search file in `folder`.

    All rows use every core, and the least of `repeats` rounds counts, in each of which every row is measured once. Raises
    UsageError for less than one video or repeat.
    """
    videos = round(hours * 3600 * FPS / CLIPS)
    if videos < 1 or repeats < 1:
        raise UsageError(f"{hours:g} hours, {repeats} repeats: expected at least one video of three minutes, and one repeat.")
    report_progress = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        home = Path(temporary)
        write_search_file(home, videos, report_progress)
        report_progress(Progress("search", 0, 1))
        cold = measure(_cold_works(home), repeats=2) if can_drop_pages() else {}
        works = {**_works(open_vectors(home)), _OPEN: lambda: open_vectors(home)}
        for work in works.values():  # reads the file into the page cache
            work()
        warm = measure(works, repeats=repeats)
        added_s = min(_add_video(home, videos + number, report_progress) for number in range(3))
        growth = in_new_process(memory_growth, home) if can_measure_memory() else None
        report_progress(Progress("search", 1, 1))
    gigabytes = 2e-9 * videos * CLIPS * WIDTH
    title = f"{hours:g} hours, {videos * CLIPS} clips, {gigabytes:.2f} GB, {cpu_cores()} cores"
    lines = _time_table(title, {name: cost for name, cost in warm.items() if name != _OPEN}, "read")
    if cold:
        lines += ["", *_time_table("the same from the disk, with the page cache dropped", cold, "read, cold")]
    lines += ["", f"Opening {videos} videos: {1e3 * warm[_OPEN].wall_s:.1f} ms. Adding one video: {1e3 * added_s:.0f} ms."]
    if growth is not None:
        lines.append(f"Memory, without the mapped file: {growth / 1e6:.0f} MB more for {MANY} sentences.")
    if not _has_usearch():
        lines.append("usearch is not installed, so its rows are missing: pip install usearch")
    return lines


def write_search_file(folder: Path, videos: int, report_progress: ProgressCallback) -> None:
    """A search file of `videos` videos with random unit vectors, and the index of the cache that it would be made from."""
    vectors = np.random.default_rng(0).normal(size=(_BLOCK_VIDEOS * CLIPS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    block = vectors.astype("<f2")
    crcs = []
    with (folder / _DATA).open("wb") as file:
        file.write(header(_DATA, WIDTH))
        for start in range(0, videos, _BLOCK_VIDEOS):
            report_progress(Progress("write", start, videos))
            some = np.roll(block, start // _BLOCK_VIDEOS, axis=1)[: (videos - start) * CLIPS]
            file.write(some.data)
            crcs += [checksum(some[row : row + CLIPS]) for row in range(0, len(some), CLIPS)]
    report_progress(Progress("write", videos, videos))
    rows = [_video_row(number) for number in range(videos)]
    written = VectorsTable(
        cache=_digest(),
        fps=FPS,
        width=WIDTH,
        data=_DATA,
        written_rows=videos * CLIPS,
        keys=tuple(row.name for row in rows),
        checksums=tuple(row.checksum for row in rows),
        rows=CLIPS * np.arange(videos),
        clips=np.full(videos, CLIPS),
        crcs=np.array(crcs, np.int64),
        durations_s=np.full(videos, CLIPS / FPS),
    )
    write_table(folder, written)
    write_index(folder / "feats.h5", _index(rows))


def memory_growth(folder: Path) -> float:
    """The most bytes of memory, without mapped files, that opening and `MANY` sentences add to this process."""
    before = _anonymous_bytes()
    most = before
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.001):
            most = max(most, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _values = similarities(open_vectors(folder), _sentences(MANY))  # stays until the memory is read
        return max(most, _anonymous_bytes()) - before
    finally:
        ended.set()
        watcher.join()


def _works(vectors: Vectors) -> _Works:
    sentences = _sentences(MANY)
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


def _cold_works(home: Path) -> _Works:
    """The same with the page cache dropped. Each opens the file by itself, since mapped pages are not dropped."""

    def read() -> None:
        drop_pages([home / _DATA])
        with (home / _DATA).open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass

    def search() -> None:
        drop_pages([home / _DATA])
        similarities(open_vectors(home), _sentences(1))

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


def _add_video(home: Path, number: int, report_progress: ProgressCallback) -> float:
    """Adds one video to the cache; the seconds in which the search file follows."""
    rng = np.random.default_rng(number)
    joint = rng.normal(size=(CLIPS, WIDTH)).astype(np.float16)
    tokens = np.zeros((CLIPS, 1, 1), np.float16)
    times_s = np.arange(CLIPS) / FPS
    row = _video_row(number)
    path = parts_folder(home / "feats.h5") / row.part
    path.parent.mkdir(exist_ok=True)
    row = write_part(path, row, _digest(), dtype="float16", tokens=tokens, joint=joint, times_s=times_s)
    write_index(home / "feats.h5", _index([*CacheReader(home / "feats.h5").rows, row]))
    cache = CacheReader(home / "feats.h5")
    return cost_of(partial(update_vectors, home, cache)).wall_s


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


def _index(rows: list[VideoRow]) -> Index:
    return Index(_CONTENTS, rows, f"{0:064x}.h5")


def _digest() -> str:
    return digest(_CONTENTS.fingerprint)


def _sentences(count: int) -> np.ndarray:
    """Random unit vectors, float32 [count e]."""
    sentences = np.random.default_rng(1).normal(size=(count, WIDTH)).astype(np.float32)
    return np.asarray(sentences / np.linalg.norm(sentences, axis=1, keepdims=True))


def _anonymous_bytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _has_usearch() -> bool:
    return find_spec("usearch") is not None


def _time_table(title: str, costs: Mapping[str, Cost], limit: str) -> list[str]:
    """Milliseconds and CPU milliseconds of each core, and both relative to those of the row `limit`."""
    cores = cpu_cores()
    rows = []
    for name, cost in costs.items():
        wall, cpu = cost.wall_s, cost.cpu_s / cores
        ratios = (f"{wall / costs[limit].wall_s:.2f}", f"{cores * cpu / max(costs[limit].cpu_s, 1e-9):.2f}")
        rows.append((name, f"{1e3 * wall:.1f}", ratios[0], f"{1e3 * cpu:.1f}", ratios[1]))
    return table([title, "ms", "ratio", "CPU ms a core", "ratio"], rows)
