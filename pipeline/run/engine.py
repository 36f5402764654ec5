"""Decodes and encodes videos into an open cache: decoding, CLIP and the disk work at the same time.

    decode processes --slots--> this thread --chunks--> one thread per device --tokens--> the saver thread --> parts
    (`decode.pool`)             assigns videos,         prepares, packs, encodes          collects, publishes,
                                reports progress        (`encoder_thread`)                adds rows (`saver_thread`)

Everything in flight is bounded, whatever the length, size or number of videos. Each decode process has a few
slots: a chunk keeps its slot until a device has copied it, and a process without a free slot waits. Each device
holds less than a batch and a chunk of prepared frames, and the tokens of two batches. `saver_thread.UNSAVED` batches of
tokens may wait for the disk. The tokens of unfinished videos lie in unnamed files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from costl.pipeline.cache.index import Contents, VideoRow
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Failed, decode_videos
from costl.pipeline.decode.worker import DecodeSettings
from costl.pipeline.errors import CostlError
from costl.pipeline.options import FAILURES_IN_A_ROW, MACHINE_FAILURES, FrameOptions, RunOptions, TokenFormat
from costl.pipeline.processes import cpu_cores
from costl.pipeline.progress import Progress, ProgressCallback, Throughput
from costl.pipeline.run.saver_thread import SaverThread
from costl.pipeline.run.throughput import Meter
from costl.pipeline.videos import Video

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder
    from costl.pipeline.run.encoder_thread import EncoderThread

_REPORT_EVERY_S = 0.5


def extract_into(
    writer: CacheWriter,
    videos: Sequence[Video],
    *,
    encoders: Sequence[CLIPEncoder],
    fps: float,
    frame_options: FrameOptions,
    run_options: RunOptions | None = None,
    meter: Meter | None = None,
    failed_before: Set[str] = frozenset(),
    report_progress: ProgressCallback,
) -> list[VideoRow]:
    """Decodes and encodes all `videos` into an open cache; returns a row for each, in the order they finish,
    and for each window of a video that has some.

    `encoders`: the same CLIP on each device; a free device takes the next frames. `meter` measures the run for the caller.
    Raises CostlError after too many failures of the machine in a row (see `FailuresInARow`), or when a device fails;
    CacheError when the disk fails. Finished videos are kept.
    """
    if not videos:
        return []
    run_options = run_options or RunOptions()
    run = _Run(writer, videos, encoders, batch=run_options.batch, meter=meter or Meter(), report_progress=report_progress)
    settings = DecodeSettings(fps=fps, frame_options=frame_options, time_limit_s=run_options.time_limit_s)
    run.work(videos, settings, run_options.workers or cpu_cores(), FailuresInARow(failed_before))
    return run.rows


def cache_contents(encoder: CLIPEncoder, fingerprint: Mapping[str, Any], **others: Any) -> Contents:
    """The contents of a cache with features of this encoder; `others` are further fields of `Contents`."""
    return Contents(
        fingerprint=fingerprint,
        fps=float(fingerprint["fps"]),
        patch_grid=encoder.patch_grid,
        joint=encoder.joint,
        token_width=encoder.width,
        token_format=TokenFormat.from_fields(fingerprint),
        **others,
    )


def has_frames_of_today(row: VideoRow, video: Path) -> bool:
    """Whether an extraction of the file `video` today would take the frames of this row. Only rows of format 1 may differ."""
    if row.picture_start_s is not None:
        return True
    from costl.pipeline.decode.packets import is_still_right  # loads PyAV

    return is_still_right(video, row.decoder)


class FailuresInARow:
    """Counts failures in a row that may be the machine's: their status is one of `MACHINE_FAILURES`.

    Those of the video ids in `failed_before` do not count. Only a video that succeeds ends the row.
    """

    def __init__(self, failed_before: Set[str]):
        self._failed_before = failed_before
        self._count = 0
        self._reason = ""

    def add(self, video_id: str, status: str, reason: str) -> None:
        """Adds the outcome of a video: the status of its row, and why it failed."""
        if status == "ok":
            self._count = 0
        elif status in MACHINE_FAILURES and video_id not in self._failed_before:
            self._count += 1
            self._reason = reason

    @property
    def too_many(self) -> bool:
        """Whether so many failed that the cause is not the videos."""
        return self._count >= FAILURES_IN_A_ROW

    def check(self) -> None:
        """Raises CostlError if there are too many."""
        if self.too_many:
            raise CostlError(
                f"{FAILURES_IN_A_ROW} videos in a row failed, the last one: {self._reason} "
                "The cause looks like the machine or the folder, not the videos. Finished videos are kept."
            )


class _Run:
    """Passes chunks to the encoders and ends of videos to the saver, and reports progress; it never blocks on either."""

    def __init__(
        self,
        writer: CacheWriter,
        videos: Sequence[Video],
        encoders: Sequence[CLIPEncoder],
        *,
        batch: int | None,
        meter: Meter,
        report_progress: ProgressCallback,
    ):
        from costl.pipeline.run.encoder_thread import EncoderThread  # loads torch, which a refusal does not need

        self.rows: list[VideoRow] = []
        self._videos = {video.id: video for video in videos}
        self._total = sum(len(video.windows) or 1 for video in videos)
        self._meter = meter
        self._report_progress = report_progress
        self._stop = threading.Event()
        self._chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self._messages: SimpleQueue[str] = SimpleQueue()
        self._saver = SaverThread(writer, self._videos, stop=self._stop)
        self._encoders = [
            EncoderThread(
                encoder,
                batch=batch,
                chunks=self._chunks,
                deliver=self._saver.add_features,
                stop=self._stop,
                report_message=self._messages.put,
            )
            for encoder in encoders
        ]
        self._threads: list[EncoderThread | SaverThread] = [*self._encoders, self._saver]
        self._clips: dict[str, int] = {}  # of each video that has begun
        self._throughput: Throughput | None = None
        self._reported_at_s = 0.0

    def work(
        self, videos: Sequence[Video], settings: DecodeSettings, processes: int, failures: FailuresInARow
    ) -> None:
        """Runs until each video has a row. Raises CostlError after too many failures in a row."""
        self._meter.watch(self._encoders, processes=min(processes, len(videos)))
        with (
            self._running_threads(),
            decode_videos(videos, settings, processes=processes, check=self._poll) as events,
        ):
            for event in events:
                if isinstance(event, Chunk):
                    self._pass_on(event)
                    continue
                self._saver.end_video(event)
                status, reason = (event.status, event.reason) if isinstance(event, Failed) else ("ok", "")
                failures.add(event.video_id, status, reason)
                if failures.too_many:  # leaves the context first, so that finished videos are saved
                    break
        self._report_speed()
        failures.check()

    @contextmanager
    def _running_threads(self) -> Iterator[None]:
        """Starts the encoders and the saver; on leaving they finish their work, after an exception they stop at once."""
        for worker in self._threads:
            worker.thread.start()
        try:
            yield
            self._end_chunks()
            self._join(self._encoders)
            self._saver.finish()
            self._join([self._saver])
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._end_chunks()
            for encoder in self._encoders:
                encoder.thread.join()
            self._saver.finish()
            self._saver.thread.join()
            self._meter.batches = [encoder.batch for encoder in self._encoders]
            list(self._new_rows())

    def _end_chunks(self) -> None:
        for _ in self._encoders:
            self._chunks.put(None)

    def _join(self, threads: Sequence[EncoderThread | SaverThread]) -> None:
        for worker in threads:
            while worker.thread.is_alive():
                worker.thread.join(0.05)
                self._poll()
        self._poll()

    def _pass_on(self, chunk: Chunk) -> None:
        self._clips[chunk.video_id] = chunk.clips
        self._meter.waited_s["CLIP"] += chunk.waited_s
        self._chunks.put(chunk)

    def _poll(self) -> None:
        """Raises the error of a thread that has failed, and reports new rows, messages and the speed."""
        self._meter.sample()
        for worker in self._threads:
            if worker.error is not None:
                raise worker.error
        for row in self._new_rows():
            self._report(detail=row.reason or row.name, video=row.name, status=row.status)
        while not self._messages.empty():
            self._report(message=self._messages.get())
        if time.monotonic() - self._reported_at_s >= _REPORT_EVERY_S:
            self._reported_at_s = time.monotonic()
            self._throughput = self._meter.throughput(done=self._done(), total=self._total)
            self._report_speed()

    def _report_speed(self) -> None:
        """Reports the finished videos, and of a single video the encoded frames."""
        if len(self._videos) > 1:
            self._report()
            return
        for video_id, clips in self._clips.items():
            name = self._videos[video_id].path.name
            self._report_progress(Progress("frames", self._meter.frames, clips, name, speed=self._throughput))

    def _done(self) -> float:
        """Videos done, those at work in part: the encoded frames over the mean number of clips, and all failures."""
        failed = sum(not row.ok for row in self.rows)
        return failed + self._meter.frames * len(self._clips) / max(1, sum(self._clips.values()))

    def _report(self, **fields: str) -> None:
        self._report_progress(Progress("videos", len(self.rows), self._total, speed=self._throughput, **fields))

    def _new_rows(self) -> Iterator[VideoRow]:
        while not self._saver.rows.empty():
            row = self._saver.rows.get()
            self.rows.append(row)
            self._meter.videos[row.status] += 1
            yield row
