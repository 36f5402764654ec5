"""One thread per device: it prepares decoded frames, packs them into batches across videos, and encodes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from costl.pipeline.decode.pool import Chunk
from costl.pipeline.encode.types import FrameFeatures
from costl.pipeline.errors import CostlError

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

# Errors that torch gives no class of their own. The libraries of CUDA allocate outside of torch's allocator.
_MEMORY_IS_FULL = (
    *("DefaultCPUAllocator", "MPS backend out of memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
_USUAL_BATCH = {"cuda": 256, "cpu": 8}  # ViT-B/32 on two cores, ms a frame: 1: 79, 4: 53, 8: 49, 32: 48


class Frame(NamedTuple):
    """The frame of a video for one clip of its grid, on screen from `time_s`.

    `value` is its image [3 y x] on the device before it is encoded, and afterwards its `FrameFeatures` without the axis n.
    """

    video_id: str
    clip_index: int
    time_s: float
    value: Any


class EncoderThread:
    """Takes chunks from `chunks`, which several encoders may share, and passes batches of frames with features to `deliver`.

    All batches have the same size, whatever videos their frames come from; the last one is padded. A token must not depend
    on which videos happened to be decoded together, and equal shapes take equal paths through the device's kernels.

    The thread holds less than one batch and one chunk of prepared frames, and the features of two batches: on a GPU the next
    batch is started before the last one is fetched. When the device runs out of memory, the batch is halved for the rest of
    the run. After a failure (`error`) or when `stop` is set, the thread keeps releasing chunks until the None that ends
    them, so that no decode process waits for a slot.
    """

    def __init__(
        self,
        encoder: CLIPEncoder,
        *,
        batch: int | None,
        chunks: SimpleQueue[Chunk | None],
        deliver: Callable[[list[Frame]], None],
        stop: threading.Event,
        report_message: Callable[[str], None],
    ):
        self.batch = batch or usual_batch(encoder)  # frames encoded at once
        self.frames = 0  # encoded so far
        self.waiting_for = ""  # "decode" or "disk" while it waits
        self.error: BaseException | None = None
        self._encoder = encoder
        self._chunks = chunks
        self._deliver = deliver
        self._stop = stop
        self._report_message = report_message
        self._prepared: deque[Frame] = deque()
        self._started: tuple[list[Frame], Callable[[], FrameFeatures]] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"costl-{encoder.device}")

    def _run(self) -> None:
        try:
            for chunk in iter(self._next_chunk, None):
                self._take(chunk)
            self._encode_batches(last=True)
            self._deliver_started()
        except BaseException as error:
            self.error = error
            for chunk in iter(self._chunks.get, None):
                chunk.release()

    def _next_chunk(self) -> Chunk | None:
        if self._chunks.empty():  # no batch can be started before the last one is delivered
            self._deliver_started()
        self.waiting_for = "decode"
        chunk = self._chunks.get()
        self.waiting_for = ""
        return chunk

    def _take(self, chunk: Chunk) -> None:
        try:
            if self._stop.is_set():
                return
            with self._translated_errors():
                images = self._encoder.prepare(chunk.pixels)
        except _OutOfMemory as error:
            raise self._too_small() from error
        finally:
            chunk.release()
        for clip_index, (time_s, image) in enumerate(zip(chunk.times_s, images, strict=True), start=chunk.first_index):
            self._prepared.append(Frame(chunk.video_id, clip_index, time_s, image))
        self._encode_batches()

    def _encode_batches(self, *, last: bool = False) -> None:
        """Encodes all full batches of prepared frames; with `last` the remaining frames as well."""
        while len(self._prepared) >= (1 if last else self.batch) and not self._stop.is_set():
            frames = [self._prepared.popleft() for _ in range(min(self.batch, len(self._prepared)))]
            images = [frame.value for frame in frames]
            images += [torch.zeros_like(images[0])] * (self.batch - len(images))
            fetch = self._start_batch(images)
            if fetch is None:
                self._prepared.extendleft(reversed(frames))
                self._halve_batch()
                continue
            self._deliver_started()
            self._started = frames, fetch

    def _start_batch(self, images: list[Any]) -> Callable[[], FrameFeatures] | None:
        """Starts a batch; None if the memory is full. Then everything that it had allocated is free again."""
        try:
            with self._translated_errors():
                return self._encoder.start(torch.stack(images))
        except _OutOfMemory:  # its traceback holds the tensors of the batch until this function has returned
            return None

    def _deliver_started(self) -> None:
        """Fetches and delivers the features of the batch that was started last."""
        if self._started is None or self._stop.is_set():
            return
        frames, fetch = self._started
        self._started = None
        with self._translated_errors():
            features = map(FrameFeatures._make, zip(*fetch(), strict=True))
        self.frames += len(frames)
        self.waiting_for = "disk"
        self._deliver([frame._replace(value=value) for frame, value in zip(frames, features, strict=False)])
        self.waiting_for = ""

    def _halve_batch(self) -> None:
        if self.batch == 1:
            raise self._too_small()
        device = self._encoder.device
        self._report_message(f"{device} is full: {self.batch} frames at once become {self.batch // 2} from here on.")
        self.batch //= 2
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()

    def _too_small(self) -> CostlError:
        return CostlError(
            f"{self._encoder.device}: not even one frame fits into its memory. Finished videos are kept. Free some "
            "memory, or continue with another --device."
        )

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _MEMORY_IS_FULL):
                raise _OutOfMemory from error
            reason = str(error).strip().splitlines()[0]
            raise CostlError(
                f"{self._encoder.device} failed ({reason}). Finished videos are kept: run the same command again. If it "
                "fails again, the device or its driver is broken: continue with another --device."
            ) from error


class _OutOfMemory(Exception):
    """The device has no memory left."""


def usual_batch(encoder: CLIPEncoder) -> int:
    """Frames encoded at once by default; a device that is too small for them halves the batch."""
    return _USUAL_BATCH.get(encoder.device.type, 64)
