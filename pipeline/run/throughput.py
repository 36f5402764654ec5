"""How fast frames run through an extraction and which half waits for the other, measured while it runs."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from costl.pipeline.progress import Throughput

_WINDOW_S = 10.0  # the current speed is measured over these seconds


class WaitTimes:
    """How long one thread has waited for each thing; other threads may read it during a wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds = defaultdict[str, float](float)
        self._current: tuple[str, float] | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts the time spent inside as waiting for `what`."""
        began = self._clock()
        self._current = (what, began)
        try:
            yield
        finally:
            self._current = None
            self._seconds[what] += self._clock() - began

    def seconds(self, what: str) -> float:
        """Seconds so far, with those of a wait that is not over."""
        current = self._current
        unfinished_s = self._clock() - current[1] if current and current[0] == what else 0.0
        return self._seconds[what] + unfinished_s


class WorkingEncoder(Protocol):
    """A device at work: the frames it has encoded, and its thread's waits for "decode" and "disk"."""

    frames: int
    waits: WaitTimes


class Meter:
    """What a run has done so far.

    `videos` counts videos by status, `decoders` counts finished videos by decoder, `batches` holds the frames encoded at
    once by each device. `decode_waited_s` is summed over the decode processes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.videos = Counter[str]()
        self.decoders = Counter[str]()
        self.batches: list[int] = []
        self.processes = 0
        self.decode_waited_s = 0.0
        self._encoders: Sequence[WorkingEncoder] = ()
        self._clock = clock
        self._began = clock()
        self._marks: deque[tuple[float, int, dict[str, float]]] = deque()

    def watch(self, encoders: Sequence[WorkingEncoder], *, processes: int) -> None:
        """Starts measuring these encoders, which encode what `processes` processes decode."""
        self._encoders = encoders
        self.processes = processes
        self._began = self._clock()
        self._marks = deque([(self._began, 0, self.waited_s())])

    @property
    def frames(self) -> int:
        """Frames encoded so far."""
        return sum(encoder.frames for encoder in self._encoders)

    def waited_s(self) -> dict[str, float]:
        """Seconds spent waiting for "decode", "disk" and "CLIP", summed over devices or decode processes."""
        by_devices = {what: sum(encoder.waits.seconds(what) for encoder in self._encoders) for what in ("decode", "disk")}
        return {**by_devices, "CLIP": self.decode_waited_s}

    def throughput(self, *, done: float, total: int) -> Throughput:
        """The current speed. `done` of `total` videos are finished, those at work counted in part."""
        now = self._clock()
        frames = self.frames
        waited = self.waited_s()
        self._marks.append((now, frames, waited))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW_S:
            self._marks.popleft()
        then, frames_then, waited_then = self._marks[0]
        past_s = max(now - then, 1e-9)
        shares = self.shares({what: waited[what] - waited_then[what] for what in waited}, past_s)
        slowest = max(shares, key=lambda what: shares[what])
        left_s = (now - self._began) * (total - done) / done if done > 0 else None
        return Throughput(frames, (frames - frames_then) / past_s, slowest, shares[slowest], left_s)

    def shares(self, waited_s: Mapping[str, float], past_s: float) -> dict[str, float]:
        """The share of `past_s`, 0 to 1, that threads or processes spent waiting for each thing."""
        waiting = {"decode": len(self._encoders), "disk": len(self._encoders), "CLIP": self.processes}
        return {what: min(1.0, seconds / (past_s * max(1, waiting[what]))) for what, seconds in waited_s.items()}
