"""How a training goes while it goes on: the loss, the speed, the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping

from costl.state import State
from pipeline.progress import Pace, Progress, Tell

TELL_EVERY_S = 0.2


class Pacer:
    """Tells a few times a second how the epoch in hand goes."""

    def __init__(self, tell: Tell, state: State, *, weights: Mapping[str, float], epochs: int, queries: int):
        self._tell, self._state, self._weights, self._queries = tell, state, weights, queries
        self._total = epochs * queries
        self._started_s, self._first, self._next_s = time.monotonic(), -1, 0.0

    def __call__(self, before: str, seen: int) -> None:
        """`seen` queries of this epoch are done; `before` is the epoch before, in words."""
        now_s, done = time.monotonic(), self._state.epoch * self._queries + seen
        if now_s < self._next_s:
            return
        if self._first < 0:  # what was done before, by an earlier process, says nothing about the speed of this one
            self._started_s, self._first = now_s, done
        self._next_s = now_s + TELL_EVERY_S
        per_s = (done - self._first) / (now_s - self._started_s) if done > self._first else 0.0
        left_s = (self._total - done) / per_s if per_s else None
        epoch, loss = self._state.epoch + 1, self._state.midway.mean(self._weights)
        pace = Pace(epoch=epoch, loss=loss, queries_per_s=per_s, left_s=left_s, before=before)
        self._tell(Progress("train", done, self._total, before or "epoch 1", flow=pace))
