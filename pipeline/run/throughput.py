"""How fast frames run through an extraction and which half waits for the other, measured while it runs."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from costl.pipeline.progress import Throughput

if TYPE_CHECKING:
    from costl.pipeline.run.encoder_thread import EncoderThread

_WINDOW_S = 10.0  # the current speed is measured over these seconds


class Meter:
    """What a run has done so far.

    `videos` counts videos by status. `batches` holds the frames encoded at once by each device. `waited_s`: seconds spent
    waiting for "decode" and "disk", summed over the devices, and for "CLIP", summed over the decode processes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.videos = Counter[str]()
        self.batches: list[int] = []
        self.waited_s = {"decode": 0.0, "disk": 0.0, "CLIP": 0.0}
        self._encoders: Sequence[EncoderThread] = ()
        self._processes = 0
        self._clock = clock
        self._began_s = self._sampled_s = clock()
        self._marks: deque[tuple[float, int, dict[str, float]]] = deque()

    def watch(self, encoders: Sequence[EncoderThread], *, processes: int) -> None:
        """Starts measuring these encoders, which encode what `processes` processes decode."""
        self._encoders = encoders
        self._processes = processes
        self._began_s = self._sampled_s = self._clock()
        self._marks.append((self._began_s, 0, dict(self.waited_s)))

    @property
    def frames(self) -> int:
        """Frames encoded so far."""
        return sum(encoder.frames for encoder in self._encoders)

    def sample(self) -> None:
        """Counts the time since the last call as spent on what each encoder waits for now; call it several times a second."""
        now_s = self._clock()
        for encoder in self._encoders:
            if encoder.waiting_for:
                self.waited_s[encoder.waiting_for] += now_s - self._sampled_s
        self._sampled_s = now_s

    def throughput(self, *, done: float, total: int) -> Throughput:
        """The current speed. `done` of `total` videos are finished, those at work counted in part."""
        now_s = self._clock()
        frames = self.frames
        self._marks.append((now_s, frames, dict(self.waited_s)))
        while len(self._marks) > 2 and now_s - self._marks[1][0] >= _WINDOW_S:
            self._marks.popleft()
        then_s, frames_then, waited_then_s = self._marks[0]
        past_s = max(now_s - then_s, 1e-9)
        left_s = (now_s - self._began_s) * (total - done) / done if done > 0 else None
        return Throughput(frames, (frames - frames_then) / past_s, *self.bottleneck(past_s, waited_then_s), left_s)

    def bottleneck(self, past_s: float, waited_before_s: Mapping[str, float] | None = None) -> tuple[str, float]:
        """What threads or processes waited for most in the last `past_s`, and the share of it that they waited, 0 to 1."""
        before_s = waited_before_s or {}
        waiting = {"decode": len(self._encoders), "disk": len(self._encoders), "CLIP": self._processes}
        shares = {
            what: min(1.0, (self.waited_s[what] - before_s.get(what, 0.0)) / (past_s * max(1, count)))
            for what, count in waiting.items()
        }
        return max(shares.items(), key=lambda item: item[1])
