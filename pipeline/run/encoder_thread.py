"""One thread per device: it prepares decoded frames, packs them into batches across videos, and encodes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from costl.pipeline.decode.pool import Chunk
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.errors import CostlError
from costl.pipeline.run.batch_packer import BatchPacker, FrameRun, with_tokens
from costl.pipeline.run.throughput import WaitTimes

_USUAL_BATCH = {"cuda": 256, "cpu": 8}  # ViT-B/32 on two cores, ms a frame: 1: 79, 4: 53, 8: 49, 32: 48
_TRIAL_FRAMES = 4


class EncoderThread:
    """Takes chunks from `chunks`, which several encoders may share, and passes batches of tokens to `deliver`.

    It holds less than one batch and one chunk of prepared frames, and the tokens of two batches: on a GPU the next batch
    is started before the last one is fetched. When the device runs out of memory the batch is halved for the rest of the
    run. After a failure (`error`) or when `stop` is set, it keeps releasing chunks until the None that ends them, so that
    no decode process waits for a slot.
    """

    def __init__(
        self,
        encoder: CLIPEncoder,
        *,
        batch: int | None,
        compiled: bool,
        chunks: SimpleQueue[Chunk | None],
        deliver: Callable[[list[FrameRun]], None],
        stop: threading.Event,
        report_message: Callable[[str], None],
    ):
        self.frames = 0
        self.waits = WaitTimes()
        self.error: BaseException | None = None
        self._encoder = encoder
        self._compiled = compiled
        self._chunks = chunks
        self._deliver = deliver
        self._stop = stop
        self._report_message = report_message
        self._packer = BatchPacker(batch=batch or usual_batch(encoder))
        self._started: tuple[list[FrameRun], Callable[[], np.ndarray]] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"costl-{encoder.device}")

    @property
    def batch(self) -> int:
        """Frames encoded at once."""
        return self._packer.batch

    def _run(self) -> None:
        try:
            if self._compiled:
                self._compile()
            for chunk in iter(self._next_chunk, None):
                self._take(chunk)
            if not self._stop.is_set():
                self._encode(self._packer.remaining_batches())
                self._deliver_started()
        except BaseException as error:
            self.error = error
            for chunk in iter(self._chunks.get, None):
                chunk.release()

    def _compile(self) -> None:
        try:
            self._encoder.compile(self.batch)
        except Exception as error:  # a compiler can fail in a hundred ways, and all of them end here
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._report_message(f"{self._encoder.device}: cannot compile here ({reason}); going on without --compile.")

    def _next_chunk(self) -> Chunk | None:
        if self._chunks.empty():  # no batch can be started before the last one is delivered
            self._deliver_started()
        with self.waits.waiting("decode"):
            return self._chunks.get()

    def _take(self, chunk: Chunk) -> None:
        try:
            if self._stop.is_set():
                return
            images = self._prepare(chunk.pixels)
        finally:
            chunk.release()
        self._packer.add(FrameRun(chunk.video_id, chunk.first_index, chunk.times_s, images))
        self._encode(self._packer.full_batches())

    def _prepare(self, pixels: np.ndarray) -> Tensor:
        try:
            with self._translated_errors():
                return self._encoder.prepare(pixels)
        except _OutOfMemory as error:
            half = len(pixels) // 2
            if not half:
                raise self._too_small() from error
        first_half = self._prepare(pixels[:half])
        second_half = self._prepare(pixels[half:])
        return torch.cat([first_half, second_half])

    def _encode(self, batches: Iterable[list[FrameRun]]) -> None:
        for frame_runs in batches:
            if self._stop.is_set():
                return
            try:
                with self._translated_errors():
                    fetch = self._encoder.start(self._packer.stack_images(frame_runs))
            except _OutOfMemory:
                self._packer.put_back(frame_runs)
                self._halve_batch()
                continue
            self._deliver_started()
            self._started = (frame_runs, fetch)

    def _deliver_started(self) -> None:
        """Fetches and delivers the tokens of the batch that was started last."""
        if self._started is None:
            return
        frame_runs, fetch = self._started
        self._started = None
        with self._translated_errors():
            tokens = fetch()
        self.frames += sum(map(len, frame_runs))
        with self.waits.waiting("disk"):
            self._deliver(with_tokens(frame_runs, tokens))

    def _halve_batch(self) -> None:
        if self.batch == 1:
            raise self._too_small()
        device = self._encoder.device
        self._report_message(f"{device} is full: {self.batch} frames at once become {self.batch // 2} from here on.")
        self._packer.batch //= 2
        if device.type == "cuda":
            torch.cuda.empty_cache()

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
            if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
                raise _OutOfMemory from error
            reason = str(error).strip().splitlines()[0]
            raise CostlError(
                f"{self._encoder.device} failed ({reason}). Finished videos are kept: run the same command again. If it "
                "fails again, the device or its driver is broken: continue with another --device."
            ) from error


class _OutOfMemory(Exception):
    """The device has no memory left."""


def usual_batch(encoder: CLIPEncoder) -> int:
    """Frames encoded at once by default: what is fast on the device and fits into its free memory."""
    most = _USUAL_BATCH.get(encoder.device.type, 64)
    if encoder.device.type != "cuda":
        return most
    try:
        free_bytes, _ = torch.cuda.mem_get_info(encoder.device)
        return batch_that_fits(free_bytes, _frame_bytes(encoder), most=most)
    except torch.OutOfMemoryError:
        return 1


def batch_that_fits(free_bytes: float, frame_bytes: float, *, most: int) -> int:
    """The largest of `most`, half of it, a quarter, ... whose frames take at most half of the free memory."""
    batch = most
    while batch > 1 and batch * frame_bytes > free_bytes / 2:
        batch //= 2
    return batch


def _frame_bytes(encoder: CLIPEncoder) -> float:
    """Measured bytes that one frame takes on the GPU while it is encoded."""
    torch.cuda.reset_peak_memory_stats(encoder.device)
    before = torch.cuda.memory_allocated(encoder.device)
    encoder.start(encoder.blank(_TRIAL_FRAMES))()
    return (torch.cuda.max_memory_allocated(encoder.device) - before) / _TRIAL_FRAMES
