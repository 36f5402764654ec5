"""Decodes videos in supervised processes: a video that hangs or kills its process fails, and the others go on.

    parent                                             process i (spawned; imports one decoder and numpy only)
    Video  ------------------ pipe ------------------> opens the video, samples the grid's centres
    the next Video ---------- pipe ------------------> sent with the last frames: no pause between two videos
    Chunk <-- "slot 2 holds frames 32..63" -- pipe --- writes pixels into one of its own slots
    Chunk.release() --------- pipe ------------------> may fill slot 2 again

The slots are one block of shared memory without a name, so nothing stays behind when a process is killed. A process
without a free slot waits: the slots bound the memory. Each process keeps its deadline in shared memory, and the parent
kills a process that has missed it. Waiting for a slot does not count.
"""

from __future__ import annotations

import ctypes
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from costl.pipeline.decode.worker import NO_DEADLINE, DecodeSettings, open_time_limit_s, run_worker
from costl.pipeline.errors import CostlError
from costl.pipeline.processes import NewProcesses
from costl.pipeline.videos import Video

_START_LIMIT_S = 120.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Chunk:
    """Frames `first_index`, `first_index + 1`, ... of one video, with the second at which each came on screen.

    `pixels` (uint8 [t h w 3]) is a view into a slot, valid until `release()`. Call `release()` for every chunk, from any
    thread; otherwise the process that sent it waits forever. `clips` is the number of all frames that are sampled from it,
    `waited_s` the seconds that its process waited for a free slot.
    """

    video_id: str
    first_index: int
    pixels: np.ndarray
    times_s: np.ndarray
    release: Callable[[], None]
    clips: int
    waited_s: float


@dataclass(frozen=True)
class Decoded:
    """A video whose `clips` frames have all been sent."""

    video_id: str
    picture_start_s: float
    duration_s: float
    clips: int
    repaired: int
    decoder: str


@dataclass(frozen=True)
class Failed:
    """A video that could not be decoded; discard the chunks that came before.

    `status`: "failed" (the video), "timeout", "crashed" (its process died), or "error" (of the disk, or an unexpected one).
    """

    video_id: str
    status: str
    reason: str


Event = Chunk | Decoded | Failed


def decode_videos(
    videos: Sequence[Video], settings: DecodeSettings, *, processes: int, check: Callable[[], None] = lambda: None
) -> AbstractContextManager[Iterator[Event]]:
    """Decode `videos` in `processes` processes; gives an iterator of events in the order in which they arrive.

    Every video ends in exactly one `Decoded` or `Failed`. Frames take `processes * slots * slot_bytes` bytes. `check` is
    called between events and five times a second without events; an exception that it raises ends the iteration. Leaving
    the context kills the processes. Raises CostlError if a process cannot start.
    """
    return closing(_Supervisor(videos, processes, settings).events(check))


class _Supervisor:
    """Assigns videos, receives the messages of all workers, and restarts workers that die or miss their deadline."""

    def __init__(self, videos: Sequence[Video], processes: int, settings: DecodeSettings):
        self._queue = deque(videos)
        self._settings = settings
        self._workers = [_Worker(settings) for _ in range(min(processes, len(videos)))]

    def events(self, check: Callable[[], None]) -> Generator[Event, None, None]:
        try:
            while self._queue or any(worker.video for worker in self._workers):
                check()
                self._start_idle()
                worker_of_pipe = {worker.pipe: worker for worker in self._workers if worker.process is not None}
                for pipe in wait(list(worker_of_pipe), timeout=_POLL_S):
                    event = self._receive(worker_of_pipe[pipe])
                    if event is not None:
                        yield event
                for worker in self._workers:
                    if worker.is_late():
                        yield self._timed_out(worker)
        finally:
            for worker in self._workers:
                worker.kill()

    def _start_idle(self) -> None:
        """Start missing processes and give a video to each that has none, as long as videos are left."""
        for worker in self._workers:
            if self._queue and worker.process is None:
                worker.start()
            elif self._queue and worker.ready and worker.video is None:
                worker.assign(self._queue.popleft())

    def _receive(self, worker: _Worker) -> Event | None:
        try:
            kind, *content = worker.pipe.recv()
        except (EOFError, OSError):
            return self._crashed(worker)
        if kind == "ready":
            worker.ready = True
            worker.deadline.value = NO_DEADLINE
            return None
        assert worker.video is not None, kind
        video_id = worker.video.id
        if kind == "chunk":
            slot, shape, is_last, fields = content
            worker.in_use.add(slot)
            if is_last and self._queue:
                worker.assign(self._queue.popleft())
            begin = slot * self._settings.slot_bytes
            pixels = worker.pixels[begin : begin + math.prod(shape)].reshape(shape)
            return Chunk(video_id, pixels=pixels, release=lambda: worker.release(slot), **fields)
        worker.video, worker.next_video = worker.next_video, None
        return Decoded(video_id, *content) if kind == "decoded" else Failed(video_id, *content)

    def _crashed(self, worker: _Worker) -> Failed | None:
        was_ready = worker.ready
        reason = _exit_reason(worker.kill())
        if not was_ready:
            raise CostlError(f"A decode process could not start: {reason}. Its own message is above.")
        if worker.video is None:
            return None
        return self._failed(worker, "crashed", f"the process that decoded it {reason}")

    def _timed_out(self, worker: _Worker) -> Failed:
        worker.kill()
        if worker.video is None:
            raise CostlError(f"A decode process did not start within {_START_LIMIT_S:.0f} s.")
        limit_s = self._settings.time_limit_s
        reason = f"the decoder hangs, no progress within {limit_s:g} s + 10 x the video's own length"
        return self._failed(worker, "timeout", reason)

    def _failed(self, worker: _Worker, status: str, reason: str) -> Failed:
        """The end of the video of a worker that failed; its next video goes back to the front of the queue."""
        assert worker.video is not None
        if worker.next_video is not None:
            self._queue.appendleft(worker.next_video)
        video = worker.video
        worker.video = worker.next_video = None
        return Failed(video.id, status, f"{video.path.name}: {reason}. Try to convert the file.")


class _Worker:
    """A decode process, started anew after it was killed, and the memory that it shares with the parent."""

    def __init__(self, settings: DecodeSettings):
        # Unlike SharedMemory, these arrays have no name that could outlive the process, and do not depend on /dev/shm.
        context = NewProcesses()
        self.memory = context.RawArray(ctypes.c_uint8, settings.slots * settings.slot_bytes)
        self.pixels: np.ndarray = np.frombuffer(self.memory, dtype=np.uint8)  # type: ignore[call-overload]
        self.deadline = context.RawValue(ctypes.c_double, NO_DEADLINE)
        self.in_use: set[int] = set()  # slots whose chunks have not been released
        self.process: Any = None
        self.pipe: Any = None
        self.ready = False
        self.video: Video | None = None
        self.next_video: Video | None = None  # assigned while `video` is not finished
        self._last_progress_s = time.monotonic()
        self._context, self._settings, self._lock = context, settings, threading.Lock()

    def start(self) -> None:
        """Start the process."""
        self.deadline.value = time.monotonic() + _START_LIMIT_S
        with self._lock:  # a slot released now is either in `free` or sent through the new pipe, never both
            self.pipe, child_pipe = self._context.Pipe()
            free = [slot for slot in range(self._settings.slots) if slot not in self.in_use]
            arguments = (child_pipe, self.memory, self.deadline, free, self._settings)
            self.process = self._context.Process(target=run_worker, args=arguments, daemon=True, name="costl-decode")
            self.process.start()
        child_pipe.close()

    def assign(self, video: Video) -> None:
        """Send a video. One that is sent during another is the next, and the process sets the deadline for it."""
        if self.video is None:
            self.video = video
            self.deadline.value = time.monotonic() + open_time_limit_s(video, self._settings)
        else:
            self.next_video = video
        with self._lock:
            self._send(video)

    def is_late(self) -> bool:
        """Whether its process has missed its deadline and sent no message that is still unread.

        A process that waits for a slot has no deadline. One that waits although all slots are free has been stopped.
        """
        now_s = time.monotonic()
        if self.process is None or self.pipe.poll():
            return False
        if self.video is None or self.in_use or self.deadline.value != NO_DEADLINE:
            self._last_progress_s = now_s
        return now_s > self.deadline.value or now_s - self._last_progress_s > self._settings.time_limit_s

    def release(self, slot: int) -> None:
        """Let the process fill this slot again."""
        with self._lock:
            if slot in self.in_use:
                self.in_use.remove(slot)
                self._send(slot)

    def kill(self) -> int:
        """Kill the process if it is running; returns its exit code."""
        if self.process is None:
            return 0
        self.process.kill()
        self.process.join()
        exit_code: int = self.process.exitcode
        with self._lock:
            self.pipe.close()
            self.process = None
        self.ready = False
        self.deadline.value = NO_DEADLINE
        return exit_code

    def _send(self, message: Video | int) -> None:
        with suppress(OSError):  # a process that has ended is noticed at the next `recv`
            if self.process is not None:
                self.pipe.send(message)


def _exit_reason(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
