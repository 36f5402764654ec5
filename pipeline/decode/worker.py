"""What runs inside one decode process: a job comes by the pipe, its frames go into shared slots, one at a time."""

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
from costl.pipeline.options import How

CHUNK = 32
SLOWEST = 10.0  # seconds of work allowed per second of video, on top of the time limit
NEVER = float("inf")
_READ_BYTES_PER_S = 10e6  # decord reads the whole file when it opens it


@dataclass(frozen=True)
class Job:
    """One video to decode at `fps` frames a second, and how."""

    video_id: str
    path: str
    fps: float
    how: How = field(default_factory=How)


@dataclass(frozen=True)
class Rules:
    """What `decode_videos` was asked for, as its processes need it."""

    time_limit_s: float
    slot_bytes: int
    slots: int
    memory_limit_bytes: int | None
    open_video: Callable[[str], Any]
    decoders: tuple[str, ...] = ()


def allowed_to_open_s(job: Job, rules: Rules) -> float:
    """How long a video may take until its first frame is asked for, seconds: more for a large file."""
    size = os.path.getsize(job.path) if os.path.exists(job.path) else 0
    return rules.time_limit_s + size / _READ_BYTES_PER_S


def open_video(path: str, how: How | None = None) -> Any:
    """The usual reader. Anything with its attributes and its `sample`, opened by a path alone, can stand in for it."""
    from costl.pipeline.decode import (
        backends as decoders,  # the libraries that decode belong to the decode processes alone
    )

    return decoders.open_video(Path(path), how or How())


def work(pipe: Connection, memory: Any, deadline: Any, free: list[int], rules: Rules) -> None:
    """The whole life of a decode process. `free` are the slots of `memory` it may fill, `deadline` is where it says
    by when (monotonic seconds) it must have got on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _hush()
    _limit_memory(rules.memory_limit_bytes)
    if rules.open_video is open_video:
        _import(rules.decoders)
    slots = _Slots(pipe, memory, deadline, free, rules.slot_bytes)
    with suppress(EOFError, OSError):  # the parent has gone
        pipe.send(("ready",))
        while True:
            job = slots.next_job()
            pipe.send(_decode(job, slots, deadline, rules))


def _decode(job: Job, slots: _Slots, deadline: Any, rules: Rules) -> tuple:
    """Decode one video into slots; the last message about it."""
    deadline.value = time.monotonic() + allowed_to_open_s(job, rules)
    try:
        opened = open_video(job.path, job.how) if rules.open_video is open_video else rules.open_video(job.path)
        with opened as video:
            return ("decoded", *_fill(video, job, slots, deadline, rules))
    except VideoError as error:
        return "failed", error.status, str(error)
    except MemoryError:
        return "failed", "failed", f"{Path(job.path).name}: needs more memory than one decode process may take."
    except Exception as error:  # one odd video must not stop the batch
        return "failed", "error", f"{Path(job.path).name}: {type(error).__name__}: {error}"
    finally:
        deadline.value = NEVER


def _fill(video: Any, job: Job, slots: _Slots, deadline: Any, rules: Rules) -> tuple:
    grid = Grid(job.fps, video.duration_s)
    frame_bytes = video.height * video.width * 3
    size = min(CHUNK, rules.slot_bytes // max(1, frame_bytes))
    if size < 1:
        raise VideoError(
            f"{Path(job.path).name}: one frame of {video.width} x {video.height} takes {frame_bytes / 1e6:.0f} MB, "
            f"at most {rules.slot_bytes / 1e6:.0f} MB are kept for it. Scale the video down."
        )
    allowed_s = rules.time_limit_s + SLOWEST * size * grid.clip_s
    first_index = 0
    deadline.value = time.monotonic() + allowed_s
    wanted_s = video.cheapest_s(grid) if job.how.sampling == "cheapest" else grid.centres_s()
    for frames in video.sample(wanted_s, chunk=size):
        deadline.value = NEVER  # waiting for a slot is not this video's fault
        if not slots.free():
            video.rest()  # decord would decode on meanwhile, without a bound
        slots.send(first_index, frames.pixels, frames.times_s, of=grid.clips)
        first_index += len(frames.times_s)
        deadline.value = time.monotonic() + allowed_s
    return video.duration_s, grid.clips, video.repaired, video.decoder


class _Slots:
    """This process's slots, and the pipe that brings them back and brings jobs."""

    def __init__(self, pipe: Connection, memory: Any, deadline: Any, free: list[int], slot_bytes: int):
        self._pipe, self._free, self._slot_bytes = pipe, free, slot_bytes
        self._memory: np.ndarray = np.frombuffer(memory, dtype=np.uint8)
        self._jobs: deque[Job] = deque()  # the next one may come while the last one's end is on its way

    def next_job(self) -> Job:
        while not self._jobs:
            self._receive()
        return self._jobs.popleft()

    def free(self) -> bool:
        """Whether the next chunk can be sent at once."""
        while self._pipe.poll():
            self._receive()
        return bool(self._free)

    def send(self, first_index: int, pixels: np.ndarray, times_s: np.ndarray, *, of: int) -> None:
        began = time.monotonic()
        while not self.free():
            self._receive()
        waited_s = time.monotonic() - began
        slot = self._free.pop()
        begin = slot * self._slot_bytes
        self._memory[begin : begin + pixels.size] = pixels.ravel()
        self._pipe.send(("chunk", slot, first_index, pixels.shape, times_s, of, waited_s))

    def _receive(self) -> None:
        message = self._pipe.recv()
        if isinstance(message, Job):
            self._jobs.append(message)
        else:
            self._free.append(message)


def _import(names: Sequence[str]) -> None:
    """The libraries of these decoders: the time it takes is no video's fault."""
    from costl.pipeline.decode import backends as decoders

    for name in names:
        decoders.opener(name)


def _die_with_parent() -> None:
    """A decoder that hangs would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _hush() -> None:
    """libav and decord write to descriptor 2 past Python: away with it, and keep Python's own messages."""
    own = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    sys.stderr = own


def _limit_memory(limit_bytes: int | None) -> None:
    """Private memory only (Linux); the shared slots and mapped libraries do not count."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        if limit_bytes is not None:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))
