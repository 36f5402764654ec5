"""The one thread of a run that writes to disk: it collects the features of each video and publishes complete videos."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING

import numpy as np

from costl.pipeline.cache.hdf5 import write_error
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Decoded, Failed
from costl.pipeline.encode.types import FrameFeatures
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.videos import Video, content_hash, file_stamp, window_name

if TYPE_CHECKING:
    from costl.pipeline.run.encoder_thread import Frame

UNSAVED = 4  # batches of features that may wait for the disk


class SaverThread:
    """Takes batches of features and the end of each video, in any order; puts a row into `rows` for each finished video,
    or for each of its windows.

    No more than `UNSAVED` batches wait: `add_features` blocks until there is room. After a failure (`error`) or when `stop`
    is set, the thread keeps emptying its queue until `finish`, so that no other thread waits for it.
    """

    def __init__(self, writer: CacheWriter, videos: Mapping[str, Video], *, stop: threading.Event):
        self.rows: SimpleQueue[VideoRow] = SimpleQueue()
        self.error: BaseException | None = None
        self._writer = writer
        self._videos = videos
        self._stop = stop
        self._stamps = {video.id: file_stamp(video.path) for video in videos.values()}
        self._queue: SimpleQueue[list[Frame] | Decoded | Failed | None] = SimpleQueue()
        self._room = threading.Semaphore(UNSAVED)
        self._buffers: dict[str, FeatureBuffer] = {}
        self._decoded: dict[str, Decoded] = {}
        self._failed: set[str] = set()
        self.thread = threading.Thread(target=self._run, daemon=True, name="costl-save")

    def add_features(self, frames: list[Frame]) -> None:
        """Takes a batch of frames with their features; blocks while `UNSAVED` batches wait."""
        self._room.acquire()
        self._queue.put(frames)

    def end_video(self, event: Decoded | Failed) -> None:
        """Takes the end of a video's decoding."""
        self._queue.put(event)

    def finish(self) -> None:
        """Ends the thread once its queue is empty; nothing may be added afterwards."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self.error is None and not self._stop.is_set():
                    self._handle(item)
            except OSError as error:
                self.error = write_error(self._writer.parts, error)
            except BaseException as error:
                self.error = error
            finally:
                if isinstance(item, list):
                    self._room.release()
        for buffer in self._buffers.values():
            buffer.close()

    def _handle(self, item: list[Frame] | Decoded | Failed) -> None:
        if isinstance(item, Failed):
            self._failed.add(item.video_id)
            if item.video_id in self._buffers:
                self._buffers.pop(item.video_id).close()
            self._record_failure(item.video_id, item.status, item.reason)
        elif isinstance(item, Decoded):
            self._decoded[item.video_id] = item
            self._save_if_complete(item.video_id)
        else:
            for frame in item:
                self._add_to_buffer(frame)

    def _add_to_buffer(self, frame: Frame) -> None:
        if frame.video_id in self._failed:  # its frames were on the way when the video failed
            return
        if frame.video_id not in self._buffers:
            self._buffers[frame.video_id] = FeatureBuffer(self._writer.parts)
        self._buffers[frame.video_id].add(frame)
        self._save_if_complete(frame.video_id)

    def _save_if_complete(self, video_id: str) -> None:
        decoded = self._decoded.get(video_id)
        buffer = self._buffers.get(video_id)
        if decoded is not None and buffer is not None and len(buffer) == decoded.clips:
            del self._decoded[video_id], self._buffers[video_id]
            with closing(buffer):
                self._save(decoded, buffer)

    def _save(self, decoded: Decoded, buffer: FeatureBuffer) -> None:
        video = self._videos[decoded.video_id]
        try:
            # The file was just decoded, so the system still has it in memory.
            content = content_hash(video.path, since=self._stamps[video.id])
            if video.windows:
                self._store_windows(video, decoded, buffer, content)
            else:
                self._store(decoded, buffer.features(), buffer.times_s(), content, video_id=video.id, name=video.name)
        except VideoError as error:
            self._record_failure(video.id, error.status, str(error))

    def _store_windows(self, video: Video, decoded: Decoded, buffer: FeatureBuffer, content: str) -> None:
        """Stores each window as a video of its own; clips that several windows share are in `buffer` once."""
        grid = Grid(self._writer.fps, decoded.duration_s)
        clips = grid.clips_of(video.windows)
        features, times_s = buffer.features(), buffer.times_s()
        for window in video.windows:
            inside = grid.within(window)
            own = slice(*np.searchsorted(clips, [inside.start, inside.stop]).tolist())
            duration_s = grid.of_window(inside).duration_s
            late_s = decoded.picture_start_s - inside.start * grid.clip_s
            # A window before the first picture consists of it, and a row's picture must begin before its end.
            picture_start_s = min(max(0.0, late_s), math.nextafter(duration_s, 0.0))
            part = replace(decoded, duration_s=duration_s, picture_start_s=picture_start_s)
            of_window = FrameFeatures(*(array[own] for array in features))
            self._store(part, of_window, times_s[own], content, video_id=window_name(window))

    def _store(
        self, decoded: Decoded, features: FrameFeatures, times_s: np.ndarray, content: str, *, video_id: str, name: str = ""
    ) -> None:
        row = self._writer.store(
            video_id,
            name=name,
            tokens=features.tokens,
            joint=features.joint,
            times_s=times_s,
            duration_s=decoded.duration_s,
            picture_start_s=decoded.picture_start_s,
            content_hash=content,
            repaired=decoded.repaired,
            decoder=decoded.decoder,
        )
        self.rows.put(row)

    def _record_failure(self, video_id: str, status: str, reason: str) -> None:
        name = self._videos[video_id].name
        self.rows.put(self._writer.record_without_features(video_id, name=name, status=status, reason=reason))


class FeatureBuffer:
    """The features of one video, added in any order and held in an unnamed file: memory does not grow with the length.

    Its methods raise OSError when the disk of `folder` is full or cannot be written.
    """

    def __init__(self, folder: Path):
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._record = np.dtype([])  # of one frame in the file
        self._times_s: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._times_s)

    def add(self, frame: Frame) -> None:
        """Adds a frame with its features."""
        arrays = [np.ascontiguousarray(array) for array in frame.value]
        names = FrameFeatures._fields
        self._record = np.dtype([(name, a.dtype, a.shape) for name, a in zip(names, arrays, strict=True)])
        self._file.seek(frame.clip_index * self._record.itemsize)
        for array in arrays:
            self._file.write(array.data)
        self._times_s[frame.clip_index] = frame.time_s

    def features(self) -> FrameFeatures:
        """All features, valid until `close`."""
        self._file.flush()
        frames = np.memmap(self._file, dtype=self._record, mode="r", shape=len(self))
        return FrameFeatures(*(frames[name] for name in FrameFeatures._fields))

    def times_s(self) -> np.ndarray:
        """All times, float64 [t]."""
        return np.array([self._times_s[index] for index in sorted(self._times_s)])

    def close(self) -> None:
        """Frees the file."""
        self._file.close()
