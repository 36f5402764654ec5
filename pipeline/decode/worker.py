"""What runs inside a decode process: it receives videos through a pipe and writes their frames into slots of shared memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.decode.backends import open_video, opener
from costl.pipeline.decode.video import CHUNK_FRAMES, Frames, OpenVideo
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions
from costl.pipeline.videos import Video

GRACE_PER_VIDEO_SECOND = 10.0  # seconds of work allowed per second of video, on top of the time limit
NO_DEADLINE = float("inf")
_READ_BYTES_PER_S = 10e6  # decord reads the whole file when it opens it


VideoOpener = Callable[[Path, FrameOptions], AbstractContextManager[OpenVideo]]


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How videos are decoded: `fps` frames a second, made as `frame_options` say, in slots of `slot_bytes` bytes.

    Opening a video may take `time_limit_s` seconds (and more for a large file), each chunk `time_limit_s` plus ten times the
    length of video that it covers. Each process has `slots` slots: one is filled, one is in the pipe, one is in use.
    `open_video` must be a function of a module, because it is sent to the processes.
    """

    fps: float
    frame_options: FrameOptions = field(default_factory=FrameOptions)
    time_limit_s: float = 30.0
    slot_bytes: int = 32 << 20  # one 4K frame, or 48 frames of 360p
    slots: int = 3
    memory_limit_bytes: int = 8 << 30
    open_video: VideoOpener = open_video


def open_time_limit_s(video: Video, settings: DecodeSettings) -> float:
    """How many seconds a video may take until its first frame is requested; more for a large file."""
    size = video.path.stat().st_size if video.path.exists() else 0
    return settings.time_limit_s + size / _READ_BYTES_PER_S


def run_worker(pipe: Connection, memory: Any, deadline: Any, free: list[int], settings: DecodeSettings) -> None:
    """The main function of a decode process. It may fill the slots `free` of `memory`.

    It writes into `deadline` the time (monotonic seconds) by which it must make progress.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides what to do
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _silence_libraries()
    _limit_memory(settings.memory_limit_bytes)
    opener(settings.frame_options.decoder)  # imports its libraries, so that no video's time limit includes that
    slots = _Slots(pipe, memory, free, settings.slot_bytes)
    with suppress(EOFError, OSError):  # the parent has ended
        pipe.send(("ready",))
        while True:
            video = slots.next_video()
            pipe.send(_decode(video, slots, deadline, settings))


def _exit_with_parent() -> None:
    """End this process when the parent ends; a decoder that hangs would outlive it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _silence_libraries() -> None:
    """Discard what libav and decord write to file descriptor 2, but keep Python's own messages."""
    python_stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    sys.stderr = python_stderr


def _limit_memory(limit_bytes: int) -> None:
    """Limit private memory (Linux only); the shared slots and mapped libraries do not count."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def _decode(video: Video, slots: _Slots, deadline: Any, settings: DecodeSettings) -> tuple:
    """Decode one video into slots; returns the last message about it."""
    name = video.path.name
    deadline.value = time.monotonic() + open_time_limit_s(video, settings)
    try:
        with settings.open_video(video.path, settings.frame_options) as opened:
            return ("decoded", *_send_frames(opened, video, slots, deadline, settings))
    except VideoError as error:
        return "failed", error.status, str(error)
    except MemoryError:
        return "failed", "failed", f"{name}: needs more memory than one decode process may take."
    except Exception as error:  # an unexpected error in one video must not stop the batch
        return "failed", "error", f"{name}: {type(error).__name__}: {error}"
    finally:
        deadline.value = NO_DEADLINE


def _send_frames(opened: OpenVideo, video: Video, slots: _Slots, deadline: Any, settings: DecodeSettings) -> tuple:
    """Send the sampled frames of an open video; returns the content of the message "decoded"."""
    wanted_s = _wanted_s(opened, video, settings)
    frame_bytes = opened.height * opened.width * 3
    chunk_frames = min(CHUNK_FRAMES, settings.slot_bytes // max(1, frame_bytes))
    if chunk_frames < 1:
        raise VideoError(
            f"{video.path.name}: one frame of {opened.width} x {opened.height} takes {frame_bytes / 1e6:.0f} MB, "
            f"at most {settings.slot_bytes / 1e6:.0f} MB are reserved for it. Scale the video down."
        )
    # Some decoders also decode what lies before a window or between two of them.
    skipped_s = max(0.0, float(np.diff(wanted_s, prepend=0.0).max()) - 1 / settings.fps)
    allowed_s = settings.time_limit_s + GRACE_PER_VIDEO_SECOND * (chunk_frames / settings.fps + skipped_s)
    first_index = 0
    deadline.value = time.monotonic() + allowed_s
    for frames in opened.sample(wanted_s, chunk=chunk_frames):
        deadline.value = NO_DEADLINE  # the time spent waiting for a slot does not count
        if not slots.has_free_slot():
            opened.stop_reading_ahead()  # decord would decode on without a bound
        slots.send(first_index, frames, clips=len(wanted_s))
        first_index += len(frames.times_s)
        deadline.value = time.monotonic() + allowed_s
    return opened.picture_start_s, opened.duration_s, len(wanted_s), opened.repaired, opened.decoder


def _wanted_s(opened: OpenVideo, video: Video, settings: DecodeSettings) -> np.ndarray:
    """When the frames are on screen that are to be sampled, rising seconds: one for each clip of the video or its windows."""
    grid = Grid(settings.fps, opened.duration_s)
    cheapest = settings.frame_options.sampling == "cheapest"
    wanted_s = opened.cheapest_times_s(grid) if cheapest else grid.centres_s()
    if video.windows and not all(grid.within(window) for window in video.windows):
        raise VideoError(f"{video.path.name}: ends at {opened.duration_s:.1f} s, before a part of it that is needed.")
    return wanted_s[grid.clips_of(video.windows)] if video.windows else wanted_s


class _Slots:
    """This process's slots of shared memory, and the pipe through which released slots and videos arrive."""

    def __init__(self, pipe: Connection, memory: Any, free: list[int], slot_bytes: int):
        self._pipe, self._free, self._slot_bytes = pipe, free, slot_bytes
        self._memory: np.ndarray = np.frombuffer(memory, dtype=np.uint8)
        self._videos: deque[Video] = deque()  # the next video may arrive before the last one has ended

    def next_video(self) -> Video:
        while not self._videos:
            self._receive()
        return self._videos.popleft()

    def has_free_slot(self) -> bool:
        """Whether the next chunk can be sent without waiting."""
        while self._pipe.poll():
            self._receive()
        return bool(self._free)

    def send(self, first_index: int, frames: Frames, *, clips: int) -> None:
        """Write one chunk into a free slot and announce it; waits for a slot."""
        began_s = time.monotonic()
        while not self.has_free_slot():
            self._receive()
        waited_s = time.monotonic() - began_s
        slot = self._free.pop()
        begin = slot * self._slot_bytes
        self._memory[begin : begin + frames.pixels.size] = frames.pixels.ravel()
        is_last = first_index + len(frames.times_s) == clips
        fields = {"first_index": first_index, "times_s": frames.times_s, "clips": clips, "waited_s": waited_s}
        self._pipe.send(("chunk", slot, frames.pixels.shape, is_last, fields))

    def _receive(self) -> None:
        message = self._pipe.recv()
        if isinstance(message, Video):
            self._videos.append(message)
        else:
            self._free.append(message)
