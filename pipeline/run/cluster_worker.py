"""What runs on a worker of a cluster: it loads CLIP once and extracts one video after another into shared storage.

The scheduler imports these functions too, so this module imports nothing heavy when it is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.errors import CacheError, CostlError, UsageError, next_step
from costl.pipeline.fingerprint import canonical_json, explain_difference
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import FileStamp, Video, content_hash, file_stamp

if TYPE_CHECKING:
    from costl.pipeline.cache.index import VideoRow
    from costl.pipeline.encode.clip import CLIPEncoder
    from costl.pipeline.options import FrameOptions, RunOptions

TRIES = 3  # a video that was on so many workers when they died is not tried again
_CHECK_EVERY_S = 2.0
_LIBRARIES = ("torch", "open_clip_torch", "decord", "decord2", "h5py", "numpy", "numkong")


@dataclass(frozen=True)
class RunSpec:
    """What all videos of a run share: the CLIP and the fingerprint of the features, how frames are made, and how work is run.

    `out` is the cache and `folder` the run's own folder among its parts, both as full paths.
    """

    model: str
    weights: str
    device: str
    fingerprint: Mapping[str, Any]
    frame_options: FrameOptions
    run_options: RunOptions
    out: Path
    folder: Path


def inspect_worker(device: str, client_versions: Mapping[str, str]) -> str:
    """The type of the device of the worker that runs this.

    Raises UsageError for a worker without this device, that may not start processes, or with other versions.
    """
    from costl.pipeline.device import pick_device

    if multiprocessing.current_process().daemon:
        raise UsageError(
            "may not start processes, which decoding needs. Start it with DASK_DISTRIBUTED__WORKER__DAEMON=False in its "
            "environment, or with dask worker --no-nanny."
        )
    check_versions(client_versions)
    return pick_device(device).type


def check_versions(client_versions: Mapping[str, str]) -> None:
    """Raises UsageError for a worker whose versions differ from those of the client."""
    differences = explain_difference(client_versions, versions(), was="here", now="there")
    if differences:
        raise UsageError(f"has other versions ({'; '.join(differences)}). Install the same everywhere.")


def versions() -> dict[str, str]:
    """A hash of this package's code, and the versions of the libraries that decide results, without build suffixes."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    by_name = {"CoSTL's code": code.hexdigest()}
    for library in _LIBRARIES:
        try:
            by_name[library] = version(library).partition("+")[0]
        except PackageNotFoundError:  # either decord or decord2 is missing
            continue
    return by_name


def prepare_worker(spec: RunSpec, sample: Sequence[tuple[Path, int]]) -> str:
    """Loads CLIP, checks the videos in `sample` (path, bytes), and leaves a mark in the run's folder; returns its name.

    Raises UsageError for a worker that does not share the storage, and CacheError for one with another CLIP.
    """
    for path, size in sample:
        bytes_here = path.stat().st_size if path.is_file() else "no file"
        if bytes_here != size:
            raise UsageError(
                f"{path}: {bytes_here} here, {size} bytes on the client. The videos must be on storage that all workers "
                "share."
            )
    mark = f"worker-{uuid.uuid4().hex}"
    try:
        (spec.folder / mark).touch()
    except OSError as error:
        raise UsageError(
            f"{spec.folder.parent}: cannot be written ({error.strerror}). The folder of the cache must be on storage that "
            "all workers share, and they must be allowed to write there."
        ) from error
    _encoder_for(spec)
    return mark


def extract_one(spec: RunSpec, video: Video) -> VideoRow:
    """Extracts one video into its part. A video that was on `TRIES` workers when they died gets the status "crashed".

    Raises what `extract_into` raises, with the worker's address in front, and CacheError when the run is over.
    """
    from distributed import get_worker

    try:
        earlier_tries = _marks(spec, video)
        if len(earlier_tries) >= TRIES:
            return _crashed(video)
        # If it kills this process, other videos in the process would be blamed as well.
        with _at_work(alone=bool(earlier_tries)), _marked(spec, video):
            return _extract(spec, video)
    except CostlError as error:
        error.args = (f"worker {get_worker().address}: {error}",)
        raise


def _extract(spec: RunSpec, video: Video) -> VideoRow:
    from costl.pipeline.cache.writer import CacheWriter
    from costl.pipeline.run.engine import cache_contents, extract_into

    encoder = _encoder_for(spec)
    contents = cache_contents(encoder, spec.fingerprint)
    writer = CacheWriter(spec.out, contents, {})  # never entered: the client holds the lock and writes the index
    if (writer.parts / f"{video.id}.h5").exists():  # by a try whose result was lost with its worker
        existing = writer.reuse_if_unchanged(video.id, content_hash(video.path))
        if existing:
            return existing
    (row,) = extract_into(
        writer,
        [video],
        encoders=[encoder],
        fps=contents.fps,
        frame_options=spec.frame_options,
        run_options=spec.run_options,
        report_progress=_stop_when_over(spec),
    )
    return row


def _encoder_for(spec: RunSpec) -> CLIPEncoder:
    from costl.pipeline.encode.weights import find_source

    file_version = file_stamp(find_source(spec.model, spec.weights).file)
    with _LOADING:
        return _load(canonical_json(spec.fingerprint), spec.model, spec.weights, spec.device, file_version)


@functools.lru_cache(maxsize=1)
def _load(fingerprint: str, model: str, weights: str, device: str, _file_version: FileStamp) -> CLIPEncoder:
    from costl.pipeline.encode.reload import reload_encoder

    return reload_encoder(
        json.loads(fingerprint), model, weights, owner="this run", device=device, report_progress=lambda _: None
    )


# These live as long as the worker's process, across tasks.
_LOADING = threading.Lock()
_ENTERING = threading.Lock()
_PERMITS = 1024  # more than a worker has threads
_permits = threading.Semaphore(_PERMITS)


@contextmanager
def _at_work(*, alone: bool) -> Iterator[None]:
    """Waits until this thread may work: next to others, or with no other thread of this process at work."""
    needed = _PERMITS if alone else 1
    with _ENTERING:
        for _ in range(needed):
            _permits.acquire()
    try:
        yield
    finally:
        _permits.release(needed)


def _marks(spec: RunSpec, video: Video) -> list[Path]:
    """The marks of tries that began and did not end."""
    marks = (spec.folder / f"{video.id}.{number}" for number in range(TRIES))
    return [mark for mark in marks if mark.exists()]


@contextmanager
def _marked(spec: RunSpec, video: Video) -> Iterator[None]:
    """Leaves a mark on shared storage while the video is at work; the mark remains if the worker dies."""
    try:
        for number in range(TRIES):
            with suppress(FileExistsError):
                (spec.folder / f"{video.id}.{number}").touch(exist_ok=False)
                break
    except OSError as error:
        remedy = "The run is over." if isinstance(error, FileNotFoundError) else next_step(error)
        raise CacheError(f"{spec.folder}: cannot be written ({error.strerror}). {remedy}") from error
    try:
        yield
    finally:
        for mark in _marks(spec, video):
            mark.unlink(missing_ok=True)


def _crashed(video: Video) -> VideoRow:
    from costl.pipeline.cache.index import VideoRow

    reason = f"{video.path.name}: {TRIES} workers died while they had it (out of memory?). Try to convert the file."
    return VideoRow(video.id, "crashed", video.name, reason=reason)


def _stop_when_over(spec: RunSpec) -> ProgressCallback:
    """A progress callback that raises CacheError once the run's folder is gone, because the result is no longer needed."""
    checked_s = time.monotonic()

    def report_progress(_: Progress) -> None:
        nonlocal checked_s
        if time.monotonic() - checked_s > _CHECK_EVERY_S:
            checked_s = time.monotonic()
            if not spec.folder.is_dir():
                raise CacheError(f"{spec.out}: the run that asked for this is over.")

    return report_progress
