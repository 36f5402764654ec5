"""What runs on a worker of a cluster: CLIP loaded once and kept, one video after another into parts on shared storage.

The scheduler reads these functions too, so that loading this module loads nothing heavy.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.progress import Progress
from costl.pipeline.videos import Video, content_hash

if TYPE_CHECKING:
    from costl.pipeline.cache.index import VideoRow
    from costl.pipeline.encode.clip import Clip
    from costl.pipeline.options import Effort, Form, How

TRIES = 3  # workers that one video may cost
_LOOK_EVERY_S = 2.0
_LIBRARIES = ("torch", "open_clip_torch", "decord", "decord2", "h5py", "numpy")


@dataclass(frozen=True)
class Order:
    """What all videos of a run have in common: the CLIP and what it must be, how frames are made and tokens stored, and
    with what `effort`.

    `out` is the cache and `folder` the run's own folder beside its parts: full paths, set when the run begins.
    """

    model: str
    weights: str
    device: str
    fingerprint: Mapping[str, Any]
    form: Form
    how: How
    effort: Effort
    out: Path = Path()
    folder: Path = Path()


@dataclass(frozen=True)
class Worker:
    """How a worker is: whether it may start processes, the kind of its device, and the versions that decide features."""

    may_start_processes: bool
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Made:
    """What became of one video, and on which worker."""

    row: VideoRow
    worker: str


def look(device: str) -> Worker:
    """What a worker says about itself. Raises UsageError for a device that it does not have."""
    from costl.pipeline.encode.clip import pick_device

    daemonic = multiprocessing.current_process().daemon
    return Worker(not daemonic, pick_device(device).type, versions())


def versions() -> dict[str, str]:
    """Of this very code (a hash of its text) and of the libraries that decide features; builds for a device count alike."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))
    found = {"CoSTL's code": code.hexdigest()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library).partition("+")[0]
        except PackageNotFoundError:  # decord or decord2: nobody has both
            continue
    return found


def make_ready(order: Order, mark: str, sample: Sequence[tuple[Path, int]]) -> str:
    """Loads CLIP, looks for the videos in `sample` (path, bytes), leaves the file `mark` in the run's folder.

    Returns a sentence about what is wrong with this worker, or nothing.
    """
    if not order.folder.is_dir():
        return f"does not see {order.folder.parent}: the folder of --out must be on storage that all workers share"
    for path, size in sample:
        found = path.stat().st_size if path.is_file() else -1
        if found != size:
            what = "does not see it" if found < 0 else f"sees {found} bytes, here it has {size}"
            return f"{path}: {what}; the videos must be on storage that all workers share"
    try:
        (order.folder / mark).touch()
    except OSError as error:
        return f"cannot write in {order.folder.parent} ({error.strerror}): run the workers as a user who may"
    return _differences(order, _clip_of(order))


def extract_one(order: Order, video: Video) -> Made:
    """One video into its part; a video that was on `TRIES` workers when they died becomes a row of status "crashed".

    Raises what `extract_into` raises, the worker's name put before it, and CacheError when the run is over.
    """
    from distributed import get_worker

    worker = str(get_worker().address)
    try:
        tries = _tries(order, video)
        if len(tries) >= TRIES:
            return Made(_crashed(video), worker)
        # Next to others it would take them along, and they would be blamed for it.
        with _ROOM.enter(alone=bool(tries)), _at_work(order, video):
            return Made(_extract(order, video), worker)
    except CostlError as error:
        error.args = (f"worker {worker}: {error}",)
        raise


def _extract(order: Order, video: Video) -> VideoRow:
    from costl.pipeline.cache.index import Contents
    from costl.pipeline.cache.part import parts_folder
    from costl.pipeline.cache.writer import CacheWriter
    from costl.pipeline.run.engine import extract_into

    clip = _clip_of(order)
    differences = _differences(order, clip)
    if differences:
        raise CacheError(f"{differences}.")
    fps = float(order.fingerprint["fps"])
    contents = Contents(
        fingerprint=order.fingerprint, fps=fps, patch_grid=clip.patch_grid, joint=clip.joint, form=order.form
    )
    writer = CacheWriter(order.out, contents, {})  # never entered: lock and index are the client's
    if (parts_folder(order.out) / f"{video.id}.h5").exists():  # of a try whose answer was lost with its worker
        kept = writer.keep(video.id, content_hash(video.path))
        if kept:
            return kept
    (row,) = extract_into(
        writer, [video], clips=[clip], fps=fps, how=order.how, effort=order.effort, tell=_until_over(order)
    )
    return row


def _differences(order: Order, clip: Clip) -> str:
    mine = clip.fingerprint()
    asked = {name: order.fingerprint[name] for name in mine}
    found = explain_difference(asked, mine, was="asked for", now="this worker has")
    return "; ".join(found)


def _clip_of(order: Order) -> Clip:
    from costl.pipeline.encode.weights import find_source

    about = find_source(order.model, order.weights).file.stat()
    with _LOADING:
        precision = str(order.fingerprint["precision"])
        touched = (about.st_size, about.st_mtime_ns)
        return _load(order.model, order.weights, order.device, precision, order.form, touched)


@functools.lru_cache(maxsize=1)
def _load(model: str, weights: str, device: str, precision: str, form: Form, _touched: tuple[int, int]) -> Clip:
    from costl.pipeline.encode.clip import load_clip

    return load_clip(model, weights, device=device, precision=precision, layers=form.layers, patches=form.patches)


class _Room:
    """Lets many threads in at once, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting = 0
        self._closed = False

    @contextmanager
    def enter(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._waiting += alone
            self._changed.wait_for(lambda: not self._closed and (self._inside == 0 if alone else self._waiting == 0))
            self._waiting -= alone
            self._inside, self._closed = self._inside + 1, alone
        try:
            yield
        finally:
            with self._changed:
                self._inside, self._closed = self._inside - 1, False
                self._changed.notify_all()


# What a worker keeps between tasks, for as long as its process lives.
_LOADING = threading.Lock()
_ROOM = _Room()


def _tries(order: Order, video: Video) -> list[Path]:
    """The marks of tries that were begun and never ended."""
    marks = (order.folder / f"{video.id}.{number}" for number in range(TRIES))
    return [mark for mark in marks if mark.exists()]


@contextmanager
def _at_work(order: Order, video: Video) -> Iterator[None]:
    """Leaves a mark on shared storage that outlives this worker, should it die."""
    try:
        for number in range(TRIES):
            with suppress(FileExistsError):
                os.close(os.open(order.folder / f"{video.id}.{number}", os.O_CREAT | os.O_EXCL))
                break
    except OSError as error:
        raise CacheError(
            f"{order.folder}: cannot be written ({error}). Either the run is over or the disk is full."
        ) from error
    try:
        yield
    finally:
        for mark in _tries(order, video):
            mark.unlink(missing_ok=True)


def _crashed(video: Video) -> VideoRow:
    from costl.pipeline.cache.index import VideoRow

    reason = f"{video.path.name}: {TRIES} workers died while they had it (out of memory?). Try to convert the file."
    return VideoRow(video.id, "crashed", video.path.stem, reason=reason)


def _until_over(order: Order) -> Any:
    """A `Tell` that ends the video in hand when the run's folder is gone: nobody waits for it any more."""
    looked_s = time.monotonic()

    def tell(_: Progress) -> None:
        nonlocal looked_s
        if time.monotonic() - looked_s > _LOOK_EVERY_S:
            looked_s = time.monotonic()
            if not order.folder.is_dir():
                raise CacheError(f"{order.out}: the run that asked for this is over.")

    return tell
