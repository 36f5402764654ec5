"""What runs inside a decode process: it receives jobs through a pipe and writes their frames into slots of shared memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions

CHUNK_FRAMES = 32
GRACE_PER_VIDEO_SECOND = 10.0  # seconds of work allowed per second of video, on top of the time limit
NO_DEADLINE = float("inf")
_READ_BYTES_PER_S = 10e6  # decord reads the whole file when it opens it


@dataclass(frozen=True)
class Job:
    """One video to decode: `fps` frames a second, by the decoder and sampling that `frame_options` name."""

    video_id: str
    path: str
    fps: float
    frame_options: FrameOptions = field(default_factory=FrameOptions)


@dataclass(frozen=True)
class WorkerSettings:
    """The options of `decode_videos` that its processes need."""

    time_limit_s: float
    slot_bytes: int
    slots: int
    memory_limit_bytes: int | None
    open_video: Callable[[str], Any]
    decoders: tuple[str, ...] = ()


def open_time_limit_s(job: Job, settings: WorkerSettings) -> float:
    """How many seconds a video may take until its first frame is requested; more for a large file."""
    size = os.path.getsize(job.path) if os.path.exists(job.path) else 0
    return settings.time_limit_s + size / _READ_BYTES_PER_S


def open_video(path: str, options: FrameOptions | None = None) -> Any:
    """The default way to open a video. Any function of a path that returns an `OpenVideo` can replace it."""
    from costl.pipeline.decode import backends  # only decode processes import the libraries that decode

    return backends.open_video(Path(path), options or FrameOptions())


def run_worker(pipe: Connection, memory: Any, deadline: Any, free: list[int], settings: WorkerSettings) -> None:
    """The main function of a decode process. It may fill the slots `free` of `memory`.

    It writes into `deadline` the time (monotonic seconds) by which it must make progress.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides what to do
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _silence_libraries()
    _limit_memory(settings.memory_limit_bytes)
    if settings.open_video is open_video:
        _import_decoders(settings.decoders)
    slots = _Slots(pipe, memory, free, settings.slot_bytes)
    with suppress(EOFError, OSError):  # the parent has ended
        pipe.send(("ready",))
        while True:
            job = slots.next_job()
            pipe.send(_decode(job, slots, deadline, settings))


def _exit_with_parent() -> None:
    """End this process when the parent ends; a decoder that hangs would outlive it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _silence_libraries() -> None:
    """Discard what libav and decord write to file descriptor 2, but keep Python's own messages."""
    python_stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    sys.stderr = python_stderr


def _limit_memory(limit_bytes: int | None) -> None:
    """Limit private memory (Linux only); the shared slots and mapped libraries do not count."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        if limit_bytes is not None:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def _import_decoders(names: Sequence[str]) -> None:
    """Import the libraries of these decoders before the first job, so that no video's time limit includes it."""
    from costl.pipeline.decode import backends

    for name in names:
        backends.opener(name)


def _decode(job: Job, slots: _Slots, deadline: Any, settings: WorkerSettings) -> tuple:
    """Decode one video into slots; returns the last message about it."""
    deadline.value = time.monotonic() + open_time_limit_s(job, settings)
    try:
        with _open_job(job, settings) as video:
            return ("decoded", *_send_frames(video, job, slots, deadline, settings))
    except VideoError as error:
        return "failed", error.status, str(error)
    except MemoryError:
        return "failed", "failed", f"{Path(job.path).name}: needs more memory than one decode process may take."
    except Exception as error:  # an unexpected error in one video must not stop the batch
        return "failed", "error", f"{Path(job.path).name}: {type(error).__name__}: {error}"
    finally:
        deadline.value = NO_DEADLINE


def _open_job(job: Job, settings: WorkerSettings) -> Any:
    if settings.open_video is open_video:
        return open_video(job.path, job.frame_options)
    return settings.open_video(job.path)


def _send_frames(video: Any, job: Job, slots: _Slots, deadline: Any, settings: WorkerSettings) -> tuple:
    """Send the sampled frames of an open video; returns the content of the message "decoded"."""
    grid = Grid(job.fps, video.duration_s)
    frame_bytes = video.height * video.width * 3
    chunk_frames = min(CHUNK_FRAMES, settings.slot_bytes // max(1, frame_bytes))
    if chunk_frames < 1:
        raise VideoError(
            f"{Path(job.path).name}: one frame of {video.width} x {video.height} takes {frame_bytes / 1e6:.0f} MB, "
            f"at most {settings.slot_bytes / 1e6:.0f} MB are reserved for it. Scale the video down."
        )
    allowed_s = settings.time_limit_s + GRACE_PER_VIDEO_SECOND * chunk_frames * grid.clip_s
    first_index = 0
    deadline.value = time.monotonic() + allowed_s
    cheapest = job.frame_options.sampling == "cheapest"
    wanted_s = video.cheapest_times_s(grid) if cheapest else grid.centres_s()
    for frames in video.sample(wanted_s, chunk=chunk_frames):
        deadline.value = NO_DEADLINE  # the time spent waiting for a slot does not count
        if not slots.has_free_slot():
            video.stop_reading_ahead()  # decord would decode on without a bound
        slots.send(first_index, frames.pixels, frames.times_s, clips=grid.clips)
        first_index += len(frames.times_s)
        deadline.value = time.monotonic() + allowed_s
    return video.duration_s, grid.clips, video.repaired, video.decoder


class _Slots:
    """This process's slots of shared memory, and the pipe through which released slots and jobs arrive."""

    def __init__(self, pipe: Connection, memory: Any, free: list[int], slot_bytes: int):
        self._pipe, self._free, self._slot_bytes = pipe, free, slot_bytes
        self._memory: np.ndarray = np.frombuffer(memory, dtype=np.uint8)
        self._jobs: deque[Job] = deque()  # the next job may arrive before the last one has ended

    def next_job(self) -> Job:
        while not self._jobs:
            self._receive()
        return self._jobs.popleft()

    def has_free_slot(self) -> bool:
        """Whether the next chunk can be sent without waiting."""
        while self._pipe.poll():
            self._receive()
        return bool(self._free)

    def send(self, first_index: int, pixels: np.ndarray, times_s: np.ndarray, *, clips: int) -> None:
        """Write one chunk into a free slot and announce it; waits for a slot."""
        began_s = time.monotonic()
        while not self.has_free_slot():
            self._receive()
        waited_s = time.monotonic() - began_s
        slot = self._free.pop()
        begin = slot * self._slot_bytes
        self._memory[begin : begin + pixels.size] = pixels.ravel()
        self._pipe.send(("chunk", slot, first_index, pixels.shape, times_s, clips, waited_s))

    def _receive(self) -> None:
        message = self._pipe.recv()
        if isinstance(message, Job):
            self._jobs.append(message)
        else:
            self._free.append(message)
