"""Videos through decoding and CLIP into an open cache: batches across videos, one thread that saves, rows for all."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipeline.cache import CacheWriter, VideoRow
from pipeline.clip import Clip
from pipeline.decoding import Job
from pipeline.errors import CostlError, VideoError
from pipeline.packing import Gathered, Packer
from pipeline.progress import Progress
from pipeline.videos import Video, content_hash, stamp
from pipeline.workers import Chunk, Decoded, Failed, decode_videos

FAILURES_IN_A_ROW = 20
_BATCH = {"cuda": 256, "cpu": 16}
_UNSAVED = 4  # videos that may wait for the disk


def extract_into(
    writer: CacheWriter,
    videos: Sequence[Video],
    *,
    clip: Clip,
    fps: float,
    workers: int | None = None,
    batch: int | None = None,
    time_limit_s: float = 30.0,
    tell: Callable[[Progress], None],
) -> list[VideoRow]:
    """Decodes and encodes every one of `videos` into an open cache; a row for each, in the order they are finished."""
    run = _Run(clip, writer, videos, batch=batch or _BATCH.get(clip.device.type, 64), tell=tell)
    run.decode(fps=fps, processes=workers or cores(), time_limit_s=time_limit_s)
    return run.rows


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """Decodes and encodes videos, and hands what is finished to one thread that saves it."""

    def __init__(
        self, clip: Clip, writer: CacheWriter, videos: Sequence[Video], *, batch: int, tell: Callable[[Progress], None]
    ):
        self._clip, self._writer, self._tell = clip, writer, tell
        self._videos = {video.id: video for video in videos}
        self._stamps = {video.id: stamp(video.path) for video in videos}
        self._packer = Packer(clip.encode_images, batch=batch)
        self._gathered: dict[str, Gathered] = {}
        self._decoded: dict[str, Decoded] = {}
        self._saving: deque[Future[VideoRow]] = deque()
        self._failed_in_a_row = 0
        self.rows: list[VideoRow] = []

    def decode(self, *, fps: float, processes: int, time_limit_s: float) -> None:
        """Works until every video is a row. Raises CostlError after too many failures in a row."""
        jobs = [Job(video.id, str(video.path), fps) for video in self._videos.values()]
        if not jobs:
            return
        with self._saver(), decode_videos(jobs, processes=processes, time_limit_s=time_limit_s) as events:
            for event in events:
                if isinstance(event, Chunk):
                    self._take(event)
                elif isinstance(event, Decoded):
                    self._failed_in_a_row = 0
                    self._decoded[event.video_id] = event
                    self._save_if_complete(event.video_id)
                else:
                    self._give_up(event)
            self._collect(self._packer.flush())

    @contextmanager
    def _saver(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as self._saves:
            try:
                yield
                self._wait(0)
            finally:
                self._saves.shutdown(cancel_futures=True)
                for gathered in self._gathered.values():
                    gathered.close()

    def _take(self, chunk: Chunk) -> None:
        if len(self._videos) == 1:  # of many, the finished ones are progress enough
            done = chunk.first_index + len(chunk.times_s)
            self._tell(Progress("frames", done, 0, self._videos[chunk.video_id].path.name))
        gathered = self._gathered.get(chunk.video_id) or Gathered(self._writer.parts)
        self._gathered[chunk.video_id] = gathered
        gathered.add_times(chunk.times_s)
        try:
            images = self._clip.prepare(chunk.pixels)
        finally:
            chunk.release()
        self._collect(self._packer.add(chunk.video_id, images))

    def _collect(self, encoded: Iterator[tuple[str, Any]]) -> None:
        for video_id, tokens in encoded:
            self._gathered[video_id].add_tokens(tokens)
            self._save_if_complete(video_id)

    def _save_if_complete(self, video_id: str) -> None:
        decoded = self._decoded.get(video_id)
        if decoded is None or self._gathered[video_id].frames < decoded.clips:
            return
        del self._decoded[video_id]
        self._queue(self._save, decoded, self._gathered.pop(video_id))

    def _give_up(self, failed: Failed) -> None:
        self._packer.drop(failed.video_id)
        if failed.video_id in self._gathered:
            self._gathered.pop(failed.video_id).close()
        self._queue(self._note, failed)
        self._failed_in_a_row += 1
        if self._failed_in_a_row == FAILURES_IN_A_ROW:
            self._wait(0)
            raise CostlError(
                f"{FAILURES_IN_A_ROW} videos in a row failed, the last one: {failed.reason} "
                "This looks like the machine or the folder, not the videos; what was finished is kept."
            )

    def _queue(self, save: Callable[..., VideoRow], *arguments: Any) -> None:
        self._saving.append(self._saves.submit(save, *arguments))
        self._wait(_UNSAVED)

    def _wait(self, unsaved: int) -> None:
        """Until no more than so many videos wait for the disk; an error of the saving thread comes out here."""
        while len(self._saving) > unsaved or (self._saving and self._saving[0].done()):
            row = self._saving.popleft().result()
            self.rows.append(row)
            self._tell(Progress("videos", len(self.rows), len(self._videos), row.reason or row.name))

    def _save(self, decoded: Decoded, gathered: Gathered) -> VideoRow:
        video = self._videos[decoded.video_id]
        try:
            return self._writer.store(
                video.id,
                name=video.path.stem,
                tokens=gathered.tokens(),
                times_s=gathered.times_s(),
                duration_s=decoded.duration_s,
                # Just decoded, so that it need not come from the disk.
                content_hash=content_hash(video.path, since=self._stamps[video.id]),
                repaired=decoded.repaired,
                decoder=decoded.decoder,
            )
        except VideoError as error:
            return self._note(Failed(video.id, error.status, str(error)))
        finally:
            gathered.close()

    def _note(self, failed: Failed) -> VideoRow:
        name = self._videos[failed.video_id].path.stem
        return self._writer.note(failed.video_id, name=name, status=failed.status, reason=failed.reason)
