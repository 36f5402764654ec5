"""Videos through decoding and CLIP into an open cache, nothing waiting for anything but the slower half.

    decode processes --slots--> this thread --chunks--> a thread a device --tokens--> the saving thread --> parts
    (`workers`)                 listens, hands out       resizes, packs,               gathers, publishes,
                                jobs, tells              encodes (`device`)            writes rows (`saving`)

What is in flight is bounded at every arrow, whatever the length, size or number of videos: `SLOTS` slots of
`SLOT_BYTES` for each decode process (a chunk keeps its slot until a device has copied it; a process without a free slot
waits), less than a batch and a chunk of prepared frames and the tokens of two batches on each device, and
`saving.UNSAVED` batches of tokens before the disk. Tokens of unfinished videos lie in nameless files.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from queue import SimpleQueue

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Decoded, Event, decode_videos
from costl.pipeline.decode.worker import Job
from costl.pipeline.encode.clip import Clip
from costl.pipeline.errors import CostlError
from costl.pipeline.options import FAILURES_IN_A_ROW, Effort, How
from costl.pipeline.progress import Flow, Progress
from costl.pipeline.run.encoder_thread import Encoder
from costl.pipeline.run.meter import Meter
from costl.pipeline.run.saver_thread import Saver
from costl.pipeline.videos import Video

_TELL_EVERY_S = 0.5


def extract_into(
    writer: CacheWriter,
    videos: Sequence[Video],
    *,
    clips: Sequence[Clip],
    fps: float,
    how: How,
    effort: Effort | None = None,
    meter: Meter | None = None,
    forgiven: Set[str] = frozenset(),
    tell: Callable[[Progress], None],
) -> list[VideoRow]:
    """Decodes and encodes every one of `videos` into an open cache; a row for each, in the order they are finished.

    `clips`: one and the same CLIP on every device; frames go to whichever is free. `meter` counts, for a caller who wants
    to know more. Raises CostlError after too many failures in a row (of others than the `forgiven`, which failed before) or
    when a device fails, CacheError when the disk does; what was finished is kept.
    """
    if not videos:
        return []
    effort = effort or Effort()
    run = _Run(clips, writer, videos, effort=effort, meter=meter or Meter(), forgiven=forgiven, tell=tell)
    run.work(fps=fps, how=how, processes=effort.workers or cores(), time_limit_s=effort.time_limit_s)
    return run.rows


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """Hands chunks to the devices and ends to the saver, and tells what has come of it; it never waits for either."""

    def __init__(
        self,
        clips: Sequence[Clip],
        writer: CacheWriter,
        videos: Sequence[Video],
        *,
        effort: Effort,
        meter: Meter,
        forgiven: Set[str],
        tell: Callable[[Progress], None],
    ):
        self.rows: list[VideoRow] = []
        self._videos = {video.id: video for video in videos}
        self._meter, self._forgiven, self._tell = meter, forgiven, tell
        self._stop = threading.Event()
        self._chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self._words: SimpleQueue[str] = SimpleQueue()
        self._saver = Saver(writer, self._videos, stop=self._stop)
        self._encoders = [
            Encoder(
                clip,
                batch=effort.batch,
                compiled=effort.compiled,
                chunks=self._chunks,
                give=self._saver.tokens,
                stop=self._stop,
                say=self._words.put,
            )
            for clip in clips
        ]
        self._threads: list[Encoder | Saver] = [*self._encoders, self._saver]
        self._begun: dict[str, float] = {}  # videos at work, and the share of each that is decoded
        self._ended = self._decoded_frames = self._failed_in_a_row = 0
        self._flow: Flow | None = None
        self._told_s = 0.0

    def work(self, *, fps: float, how: How, processes: int, time_limit_s: float) -> None:
        """Works until every video is a row. Raises CostlError after too many failures in a row."""
        jobs = [Job(video.id, str(video.path), fps, how) for video in self._videos.values()]
        self._meter.watch(self._encoders, processes=min(processes, len(jobs)))
        with (
            self._working(),
            decode_videos(jobs, processes=processes, time_limit_s=time_limit_s, look=self._look) as events,
        ):
            for event in events:
                self._take(event)
                if self._failed_in_a_row == FAILURES_IN_A_ROW:
                    break
        if self._failed_in_a_row == FAILURES_IN_A_ROW:
            raise CostlError(
                f"{FAILURES_IN_A_ROW} videos in a row failed, the last one: {event.reason} "  # type: ignore[union-attr]
                "This looks like the machine or the folder, not the videos; what was finished is kept."
            )

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The devices and the saver at work; on leaving they finish what they have, but for an exception."""
        for one in self._threads:
            one.thread.start()
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
            list(self._count_rows())

    def _end_chunks(self) -> None:
        for _ in self._encoders:
            self._chunks.put(None)

    def _join(self, threads: Sequence[Encoder | Saver]) -> None:
        for one in threads:
            while one.thread.is_alive():
                one.thread.join(0.05)
                self._look()
        self._look()

    def _take(self, event: Event) -> None:
        if isinstance(event, Chunk):
            done = event.first_index + len(event.times_s)
            self._begun[event.video_id] = done / max(done, event.clips)
            self._decoded_frames += len(event.times_s)
            self._meter.decode_waited_s += event.waited_s
            self._chunks.put(event)
            if len(self._videos) == 1:  # of many, the finished ones are progress enough
                name = self._videos[event.video_id].path.name
                self._tell(Progress("frames", done, event.clips, name, flow=self._flow))
            return
        if isinstance(event, Decoded):
            self._failed_in_a_row = 0
        elif event.video_id not in self._forgiven:
            self._failed_in_a_row += 1
        self._begun.pop(event.video_id, None)
        self._ended += 1
        self._saver.ended(event)

    def _look(self) -> None:
        """Raises what a thread has failed with, and tells what is new."""
        for one in self._threads:
            if one.error is not None:
                raise one.error
        for row in self._count_rows():
            self._tell(self._where(row.reason or row.name, video=row.name, status=row.status))
        while not self._words.empty():
            self._tell(self._where(word=self._words.get()))
        if time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            self._flow = self._meter.flow(done=self._done(), total=len(self._videos))
            if len(self._videos) > 1:
                self._tell(self._where())

    def _done(self) -> float:
        """Videos behind us, begun ones in part: what is decoded and still waits for CLIP is not yet done."""
        encoded = self._meter.frames / max(1, self._decoded_frames)
        return (self._ended + sum(self._begun.values())) * encoded

    def _where(self, detail: str = "", *, video: str = "", status: str = "", word: str = "") -> Progress:
        done, total = len(self.rows), len(self._videos)
        return Progress("videos", done, total, detail, video=video, status=status, flow=self._flow, word=word)

    def _count_rows(self) -> Iterator[VideoRow]:
        while not self._saver.rows.empty():
            row = self._saver.rows.get()
            self.rows.append(row)
            self._meter.videos[row.status] += 1
            if row.ok:
                self._meter.decoders[row.decoder] += 1
            yield row
