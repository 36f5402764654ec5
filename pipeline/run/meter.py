"""How fast frames run through an extraction and who waits for whom, measured while it goes on."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from costl.pipeline.progress import Flow

_WINDOW_S = 10.0  # "just now"


class Waits:
    """How long one thread has waited for what; another thread may ask while it still waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._seconds = clock, defaultdict[str, float](float)
        self._now: tuple[str, float] | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """What happens inside is waiting."""
        began = self._clock()
        self._now = (what, began)
        try:
            yield
        finally:
            self._now = None
            self._seconds[what] += self._clock() - began

    def seconds(self, what: str) -> float:
        """So far, the wait that is not over included."""
        now = self._now
        return self._seconds[what] + (self._clock() - now[1] if now and now[0] == what else 0.0)


class Working(Protocol):
    """A device at work: the frames it has encoded, and its thread's waits for "decode" and "disk"."""

    frames: int
    waits: Waits


class Meter:
    """What a run has done so far. `videos` counts what became of them, `decoders` who decoded those that are done,
    `batches` the frames encoded at once by each device; `decode_waited_s` is summed over the decode processes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.videos, self.decoders = Counter[str](), Counter[str]()
        self.batches: list[int] = []
        self.processes, self.decode_waited_s = 0, 0.0
        self._devices: Sequence[Working] = ()
        self._clock, self._began = clock, clock()
        self._marks: deque[tuple[float, int, dict[str, float]]] = deque()

    def watch(self, devices: Sequence[Working], *, processes: int) -> None:
        """From now on these encode what so many processes decode."""
        self._devices, self.processes, self._began = devices, processes, self._clock()
        self._marks = deque([(self._began, 0, self.waited_s())])

    @property
    def frames(self) -> int:
        """Encoded so far."""
        return sum(device.frames for device in self._devices)

    def waited_s(self) -> dict[str, float]:
        """Seconds that others have waited for "decode", "disk" and "CLIP", summed over devices or processes."""
        of_devices = {what: sum(device.waits.seconds(what) for device in self._devices) for what in ("decode", "disk")}
        return {**of_devices, "CLIP": self.decode_waited_s}

    def flow(self, *, done: float, total: int) -> Flow:
        """How it goes just now; `done` of `total` videos are behind us, begun ones in part."""
        now, frames, waited = self._clock(), self.frames, self.waited_s()
        self._marks.append((now, frames, waited))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW_S:
            self._marks.popleft()
        then, frames_then, waited_then = self._marks[0]
        past_s = max(now - then, 1e-9)
        shares = self.shares({what: waited[what] - waited_then[what] for what in waited}, past_s)
        slowest = max(shares, key=lambda what: shares[what])
        left_s = (now - self._began) * (total - done) / done if done > 0 else None
        return Flow(frames, (frames - frames_then) / past_s, slowest, shares[slowest], left_s)

    def shares(self, waited_s: Mapping[str, float], past_s: float) -> dict[str, float]:
        """Which part of `past_s` those who waited for each spent on it, 0 to 1."""
        many = {"decode": len(self._devices), "disk": len(self._devices), "CLIP": self.processes}
        return {what: min(1.0, seconds / (past_s * max(1, many[what]))) for what, seconds in waited_s.items()}
