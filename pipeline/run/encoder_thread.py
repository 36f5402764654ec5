"""One device at work in a thread of its own: decoded frames in, tokens out, in batches of one size across videos."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from costl.pipeline.decode.pool import Chunk
from costl.pipeline.encode.clip import Clip
from costl.pipeline.errors import CostlError
from costl.pipeline.run.batches import Packer, Stretch, with_tokens
from costl.pipeline.run.meter import Waits

_BATCH = {"cuda": 256, "cpu": 8}  # more is no faster: ViT-B/32 on two cores, ms a frame: 1: 79, 4: 53, 8: 49, 32: 48
_TRIED = 4


class Encoder:
    """Takes chunks from `chunks`, which several encoders may share, and gives batches of tokens to `give`.

    Beside the slots of the chunks that wait it holds less than a batch and one chunk of prepared frames, and the tokens
    of two batches: on a GPU the next one is begun before the last one is fetched. When the device is full the batch is
    halved, and stays so. A thread that has failed (`error`) or is to `stop` goes on releasing chunks until the None
    that ends them, so that nobody waits for it.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        batch: int | None,
        compiled: bool,
        chunks: SimpleQueue[Chunk | None],
        give: Callable[[list[Stretch]], None],
        stop: threading.Event,
        say: Callable[[str], None],
    ):
        self.frames, self.waits = 0, Waits()
        self.error: BaseException | None = None
        self._clip, self._chunks, self._give, self._stop, self._say = clip, chunks, give, stop, say
        self._compiled = compiled
        self._packer = Packer(batch=batch or usual_batch(clip))
        self._begun: tuple[list[Stretch], Callable[[], np.ndarray]] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"costl-{clip.device}")

    @property
    def batch(self) -> int:
        """Frames encoded at once."""
        return self._packer.batch

    def _run(self) -> None:
        try:
            if self._compiled:
                self._compile()
            for chunk in iter(self._next, None):
                self._take(chunk)
            if not self._stop.is_set():
                self._encode(self._packer.rest())
                self._hand_over()
        except BaseException as error:
            self.error = error
            for chunk in iter(self._chunks.get, None):
                chunk.release()

    def _next(self) -> Chunk | None:
        if self._chunks.empty():  # nothing to begin before
            self._hand_over()
        with self.waits.waiting("decode"):
            return self._chunks.get()

    def _take(self, chunk: Chunk) -> None:
        try:
            if self._stop.is_set():
                return
            images = self._prepare(chunk.pixels)
        finally:
            chunk.release()
        self._packer.add(Stretch(chunk.video_id, chunk.first_index, chunk.times_s, images))
        self._encode(self._packer.full())

    def _prepare(self, pixels: np.ndarray) -> Tensor:
        try:
            with self._named():
                return self._clip.prepare(pixels)
        except _Full as error:
            half = len(pixels) // 2
            if not half:
                raise self._too_small() from error
        return torch.cat([self._prepare(pixels[:half]), self._prepare(pixels[half:])])

    def _encode(self, batches: Iterable[list[Stretch]]) -> None:
        for stretches in batches:
            if self._stop.is_set():
                return
            try:
                with self._named():
                    begun = self._clip.start(self._packer.images(stretches))
            except _Full:
                self._packer.put_back(stretches)
                self._halve()
                continue
            self._hand_over()
            self._begun = (stretches, begun)

    def _hand_over(self) -> None:
        """Gives the tokens of the batch that was begun last."""
        if self._begun is None:
            return
        (stretches, begun), self._begun = self._begun, None
        with self._named():
            tokens = begun()
        self.frames += sum(map(len, stretches))
        with self.waits.waiting("disk"):
            self._give(with_tokens(stretches, tokens))

    def _halve(self) -> None:
        if self.batch == 1:
            raise self._too_small()
        self._say(f"{self._clip.device} is full: {self.batch} frames at once become {self.batch // 2} from here on.")
        self._packer.batch //= 2
        if self._clip.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_small(self) -> CostlError:
        return CostlError(
            f"{self._clip.device}: not even one frame fits into its memory. What was finished is kept; free some, or "
            "go on with another --device."
        )

    def _compile(self) -> None:
        try:
            self._clip.compile(self.batch)
        except Exception as error:  # a compiler has a hundred ways to fail, and all of them end here
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(f"{self._clip.device}: cannot compile here ({why}); going on without --compile.")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
                raise _Full from error
            raise CostlError(
                f"{self._clip.device} failed ({str(error).strip().splitlines()[0]}). What was finished is kept: give the "
                "same command again; if it fails again, the device or its driver is broken: go on with another --device."
            ) from error


class _Full(Exception):
    """The device has no memory left."""


def usual_batch(clip: Clip) -> int:
    """Frames encoded at once unless the person says how many: what is fast on the device and fits beside the rest."""
    most = _BATCH.get(clip.device.type, 64)
    if clip.device.type != "cuda":
        return most
    try:
        return batch_that_fits(torch.cuda.mem_get_info(clip.device)[0], _frame_bytes(clip), most=most)
    except torch.OutOfMemoryError:
        return 1


def batch_that_fits(free_bytes: float, frame_bytes: float, *, most: int) -> int:
    """The largest of `most`, a half of it, a quarter, ... whose frames take at most half of what is free."""
    batch = most
    while batch > 1 and batch * frame_bytes > free_bytes / 2:
        batch //= 2
    return batch


def _frame_bytes(clip: Any) -> float:
    """What one frame takes on the GPU while it is encoded, measured."""
    torch.cuda.reset_peak_memory_stats(clip.device)
    before = torch.cuda.memory_allocated(clip.device)
    clip.start(clip.blank(_TRIED))()
    return (torch.cuda.max_memory_allocated(clip.device) - before) / _TRIED
