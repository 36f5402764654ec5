"""Decoding in supervised processes: a video that hangs or kills its process costs itself and nothing else.

    parent                                             process i (spawned; imports one decoder and numpy only)
    Job  -------------------- pipe ------------------> opens the video, samples the grid's centres
    the next Job ------------ pipe ------------------> as soon as the last frames are here: no gap between two videos
    Chunk <-- "slot 2 holds frames 32..63" -- pipe --- writes pixels into one of its own slots
    Chunk.release() --------- pipe ------------------> may fill slot 2 again

The slots are one block of shared memory without a name, so nothing is left behind however anyone dies. A process that
has no free slot waits: the slots bound the memory and are the back-pressure. Each process keeps in shared memory the
moment by which it must get on; the parent kills the one that has missed it. Waiting for a slot never counts.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.decode.worker import NEVER, Job, Rules, allowed_to_open_s, open_video, work
from costl.pipeline.errors import CostlError

SLOT_BYTES = 32 << 20  # one 4K frame, or 48 frames of 360p
SLOTS = 3  # per process: one being filled, one in the pipe, one in use
_START_LIMIT_S = 120.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Chunk:
    """Frames `first_index`, `first_index + 1`, ... of one video's grid, with the seconds each came on screen.

    `pixels` (uint8 [n h w 3]) is a view into a slot: valid until `release()`, which must be called for every chunk,
    from any thread, or the process that made it waits for ever. `clips` are the frames of the whole video, `waited_s`
    the seconds that its process had to wait for a free slot.
    """

    video_id: str
    first_index: int
    pixels: np.ndarray
    times_s: np.ndarray
    release: Callable[[], None] = field(repr=False, compare=False)
    clips: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True)
class Decoded:
    """A video whose `clips` frames have all been given."""

    video_id: str
    duration_s: float
    clips: int
    repaired: int
    decoder: str


@dataclass(frozen=True)
class Failed:
    """A video that could not be decoded; the chunks it gave before are to be thrown away.

    `status`: "failed" (the video), "timeout", "crashed" (its process died), or "error" (an exception nobody expected).
    """

    video_id: str
    status: str
    reason: str


Event = Chunk | Decoded | Failed


@contextmanager
def decode_videos(
    jobs: Sequence[Job],
    *,
    processes: int,
    time_limit_s: float = 30.0,
    slot_bytes: int = SLOT_BYTES,
    slots: int = SLOTS,
    memory_limit_bytes: int | None = 8 << 30,
    open_video: Callable[[str], Any] = open_video,
    look: Callable[[], None] = lambda: None,
) -> Iterator[Iterator[Event]]:
    """Decode `jobs` in `processes` processes; gives an iterator of what comes, in the order it comes.

    Every job ends in exactly one `Decoded` or `Failed`. Opening a video may take `time_limit_s` (and more for a large
    file), each chunk `time_limit_s` plus ten times the stretch of video it covers. Frames take
    `processes * slots * slot_bytes` bytes. `open_video` must be a module's own function, so that it can be sent to the
    processes; a script that calls this needs the usual `if __name__ == "__main__":`. `look` is called between events
    and five times a second where none come; what it raises ends the iteration. Leaving the context kills the processes.
    Raises CostlError when one cannot even start.
    """
    if min(processes, slots, slot_bytes) < 1 or not time_limit_s > 0:
        raise ValueError("processes, slots, slot_bytes and time_limit_s must be above zero")
    rules = Rules(
        time_limit_s, slot_bytes, slots, memory_limit_bytes, open_video, tuple({job.how.decoder for job in jobs})
    )
    supervisor = _Supervisor(jobs, min(processes, len(jobs)), rules)
    events = supervisor.events(look)
    try:
        yield events
    finally:
        events.close()
        supervisor.close()


class _Seat:
    """A place for one process after another, with the memory they share with the parent."""

    def __init__(self, rules: Rules):
        # Unlike SharedMemory these have no name that could outlive us, and never exceed a small /dev/shm.
        context = multiprocessing.get_context("spawn")
        self.memory = context.RawArray(ctypes.c_uint8, rules.slots * rules.slot_bytes)
        self.pixels: np.ndarray = np.frombuffer(self.memory, dtype=np.uint8)  # type: ignore[call-overload]
        self.deadline = context.RawValue(ctypes.c_double, NEVER)
        self.in_use: set[int] = set()  # slots whose chunks have not been released
        self.process: Any = None
        self.pipe: Connection | None = None
        self.ready = False
        self.job: Job | None = None
        self.next_job: Job | None = None  # handed out ahead
        self._got_on_s = time.monotonic()
        self._context, self._rules, self._lock = context, rules, threading.Lock()

    def hire(self) -> None:
        """Start a process in this seat."""
        self.deadline.value = time.monotonic() + _START_LIMIT_S
        with self._lock:  # a slot released now is either among the free ones or sent through the new pipe, never both
            self.pipe, theirs = self._context.Pipe()
            free = [slot for slot in range(self._rules.slots) if slot not in self.in_use]
            arguments = (theirs, self.memory, self.deadline, free, self._rules)
            self.process = self._context.Process(target=work, args=arguments, daemon=True, name="costl-decode")
            self.process.start()
        theirs.close()

    def assign(self, job: Job) -> None:
        """Give a job; one that comes while another is at work is next, and the process sets its deadline itself."""
        if self.job is None:
            self.job = job
            self.deadline.value = time.monotonic() + allowed_to_open_s(job, self._rules)
        else:
            self.next_job = job
        with self._lock:
            self._send(job)

    def finish(self) -> Job:
        """The job that has ended; the next one takes its place."""
        assert self.job is not None
        ended, self.job, self.next_job = self.job, self.next_job, None
        return ended

    def late(self) -> bool:
        """Whether its process should have got on by now; what it has said is heard first.

        One that waits for a slot has no deadline, but one that waits although all slots are free has been stopped.
        """
        now = time.monotonic()
        if self.pipe is None or self.pipe.poll():
            return False
        if self.job is None or self.in_use or self.deadline.value != NEVER:
            self._got_on_s = now
        return now > self.deadline.value or now - self._got_on_s > self._rules.time_limit_s

    def release(self, slot: int) -> None:
        with self._lock:
            if slot in self.in_use:
                self.in_use.remove(slot)
                self._send(slot)

    def dismiss(self) -> int | None:
        """Kill the process, if there is one; its exit code."""
        if self.process is None:
            return None
        self.process.kill()
        self.process.join()
        exit_code = self.process.exitcode
        self.process.close()
        with self._lock:
            assert self.pipe is not None
            self.pipe.close()
            self.process, self.pipe, self.ready = None, None, False
        self.deadline.value = NEVER
        return exit_code

    def _send(self, message: Job | int) -> None:
        with suppress(OSError):  # a process that is gone is noticed when we listen to it
            if self.pipe is not None:
                self.pipe.send(message)


class _Supervisor:
    """Hands out jobs, listens to every process at once, and replaces those that die or are late."""

    def __init__(self, jobs: Sequence[Job], processes: int, rules: Rules):
        self._queue = deque(jobs)
        self._rules = rules
        self._seats = [_Seat(rules) for _ in range(processes)]

    def events(self, look: Callable[[], None]) -> Generator[Event, None, None]:
        while self._queue or any(seat.job for seat in self._seats):
            look()
            self._staff()
            by_pipe = {seat.pipe: seat for seat in self._seats if seat.pipe is not None}
            for pipe in wait(list(by_pipe), timeout=_POLL_S):
                event = self._listen(by_pipe[pipe])  # type: ignore[index]
                if event is not None:
                    yield event
            for seat in self._seats:
                if seat.late():
                    yield self._overdue(seat)

    def close(self) -> None:
        self._queue.clear()
        for seat in self._seats:
            if seat.process is not None:
                seat.process.kill()  # all at once, then wait for each
        for seat in self._seats:
            seat.dismiss()

    def _staff(self) -> None:
        for seat in self._seats:
            if self._queue and seat.process is None:
                seat.hire()
            elif self._queue and seat.ready and seat.job is None:
                seat.assign(self._queue.popleft())

    def _listen(self, seat: _Seat) -> Event | None:
        try:
            assert seat.pipe is not None
            kind, *content = seat.pipe.recv()
        except (EOFError, OSError):
            return self._lost(seat)
        if kind == "ready":
            seat.ready, seat.deadline.value = True, NEVER
            return None
        assert seat.job is not None, kind
        if kind == "chunk":
            return self._chunk(seat, seat.job, *content)
        job = seat.finish()
        return Decoded(job.video_id, *content) if kind == "decoded" else Failed(job.video_id, *content)

    def _chunk(
        self, seat: _Seat, job: Job, slot: int, first_index: int, shape: tuple, times_s: np.ndarray, *about: Any
    ) -> Event:
        seat.in_use.add(slot)
        if first_index + len(times_s) == about[0] and self._queue:  # its last frames
            seat.assign(self._queue.popleft())
        begin = slot * self._rules.slot_bytes
        pixels = seat.pixels[begin : begin + math.prod(shape)].reshape(shape)
        return Chunk(job.video_id, first_index, pixels, times_s, lambda: seat.release(slot), *about)

    def _lost(self, seat: _Seat) -> Event | None:
        was_ready, job = seat.ready, self._take_back(seat)
        how = _how_it_died(seat.dismiss())
        if not was_ready:
            raise CostlError(f"A decode process could not start: {how}. Its own message is above.")
        if job is None:
            return None
        name = Path(job.path).name
        return Failed(job.video_id, "crashed", f"{name}: the process that decoded it {how}. Try to convert the file.")

    def _overdue(self, seat: _Seat) -> Event:
        job = self._take_back(seat)
        seat.dismiss()
        if job is None:
            raise CostlError(f"A decode process did not start within {_START_LIMIT_S:.0f} s.")
        reason = f"the decoder hangs, no progress within {self._rules.time_limit_s:g} s + 10 x the video's own length"
        return Failed(job.video_id, "timeout", f"{Path(job.path).name}: {reason}. Try to convert the file.")

    def _take_back(self, seat: _Seat) -> Job | None:
        """The job that was at work; the one handed out ahead is for someone else."""
        job, seat.job = seat.job, None
        if seat.next_job is not None:
            self._queue.appendleft(seat.next_job)
            seat.next_job = None
        return job


def _how_it_died(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
