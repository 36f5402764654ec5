"""Extraction on an existing Dask cluster: each video is a task, and the client holds the cache's lock."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import Contents, VideoRow, absolute_weights
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.device import default_precision
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.cluster_client import connect, results, retrying_lost_tasks, run_on_all
from costl.pipeline.run.cluster_worker import RunSpec, extract_one, inspect_worker, prepare_worker, versions
from costl.pipeline.run.engine import FailuresInARow
from costl.pipeline.run.throughput import Meter
from costl.pipeline.videos import Video

_VISIBLE_S = 60.0  # network file systems show a new file late
_POLL_S = 0.2
_SAMPLE = 50
_GO_ON = "Finished videos are kept. Run the same command to continue."


def agree_on_precision(address: str, *, device: str, precision: str | None, workers: int | None = None) -> str:
    """The precision in which all workers of the scheduler at `address` compute: `precision`, or what their devices prefer.

    Raises UsageError if the package `distributed` is missing, no scheduler answers, or it has no workers; and with the
    worker's name, if a worker may not start processes, has other versions than this machine, or another type of device.
    """
    if workers is not None:
        raise UsageError(
            "--workers is for one machine: on a cluster each thread of a worker decodes a video (--nthreads)."
        )
    with connect(address) as client:
        by_type = {kind: name for name, kind in run_on_all(client, inspect_worker, device, versions())}
    if precision:
        return precision
    if len(by_type) > 1:
        devices = ", ".join(f"{name} has {kind}" for kind, name in by_type.items())
        raise UsageError(f"The workers have different devices ({devices}). Name one for all by --device.")
    return default_precision(next(iter(by_type)))


def extract_on_cluster(
    address: str,
    writer: CacheWriter,
    videos: Sequence[Video],
    *,
    contents: Contents,
    device: str,
    frame_options: FrameOptions,
    run_options: RunOptions,
    meter: Meter,
    failed_before: Set[str] = frozenset(),
    report_progress: ProgressCallback,
) -> list[VideoRow]:
    """As `engine.extract_into`, but each video is a task for the next free worker of the scheduler at `address`.

    The workers write the parts, into the writer's folder as they see it, and return rows. Other workers repeat the videos
    of a lost worker. Raises UsageError naming a worker that does not see the folder or the videos or has another CLIP, and
    CostlError if the scheduler or all workers are lost.
    """
    if not videos:
        return []
    # Not Path.resolve, which raises for a link that leads to itself.
    videos = [replace(video, path=Path(os.path.realpath(video.path))) for video in videos]
    failures = FailuresInARow(failed_before)
    rows: list[VideoRow] = []
    with _run_folder(writer.parts) as folder, connect(address) as client, retrying_lost_tasks(client, extract_one):
        spec = RunSpec(
            model=contents.source["model"],
            weights=absolute_weights(writer.path.parent, contents.source["weights"]),
            device=device,
            fingerprint=dict(contents.fingerprint),
            frame_options=frame_options,
            run_options=run_options,
            out=writer.path.resolve(),
            folder=folder,
        )
        _prepare_workers(client, spec, videos, report_progress)
        tasks = client.map(extract_one, [spec] * len(videos), videos, pure=False)
        for row in results(client, tasks, poll_s=_POLL_S, remedy=_GO_ON):
            _refuse_invisible_part(writer, row)
            rows.append(writer.adopt_row(row))
            meter.videos[row.status] += 1
            report_progress(Progress("videos", len(rows), len(videos), row.reason or row.name))
            failures.add(row.id, row.status, row.reason)
            failures.check()
    return rows


@contextmanager
def _run_folder(parts: Path) -> Iterator[Path]:
    """A folder for this run's marks; the workers stop when it is gone. Removes the folders of killed runs."""
    for old in parts.glob(".run-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder = parts.resolve() / f".run-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise CacheError(f"{folder}: cannot be made ({error.strerror}). Choose another --out.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for stray in parts.glob(".*.tmp"):  # of lost workers
            stray.unlink(missing_ok=True)


def _prepare_workers(
    client: Any, spec: RunSpec, videos: Sequence[Video], report_progress: ProgressCallback
) -> None:
    """Lets every worker load CLIP and check what it sees. Raises UsageError with the name of one that has a problem."""
    step = -(-len(videos) // _SAMPLE)
    sample = [(video.path, video.path.stat().st_size) for video in videos[::step] if video.path.is_file()]
    workers = len(client.nthreads())
    report_progress(Progress("workers", 0, workers))
    for number, (name, mark) in enumerate(run_on_all(client, prepare_worker, spec, sample), start=1):
        if not _wait_until_visible(spec.folder / mark):
            raise UsageError(
                f"worker {name} writes to another {spec.folder.parent} than this machine sees: the cache must be on "
                "shared storage."
            )
        report_progress(Progress("workers", number, workers, name))


def _refuse_invisible_part(writer: CacheWriter, row: VideoRow) -> None:
    if row.ok and not _wait_until_visible(writer.parts / row.part):
        raise CacheError(
            f"{writer.parts / row.part}: a worker wrote it, but this machine does not see it. The cache must be on "
            "shared storage."
        )


def _wait_until_visible(path: Path) -> bool:
    until_s = time.monotonic() + _VISIBLE_S
    while not path.exists() and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    return path.exists()
