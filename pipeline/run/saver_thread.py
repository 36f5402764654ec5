"""The one thread of a run that writes to disk: it collects the tokens of each video and publishes complete videos."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from costl.pipeline.cache.hdf5 import write_error
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Decoded, Failed
from costl.pipeline.errors import VideoError
from costl.pipeline.run.batch_packer import FrameRun
from costl.pipeline.videos import Video, content_hash, file_stamp

UNSAVED = 4  # batches of tokens that may wait for the disk


class SaverThread:
    """Takes batches of tokens and the end of each video, in any order; puts a row into `rows` for each finished video.

    No more than `UNSAVED` batches wait: `add_tokens` blocks until there is room. After a failure (`error`) or when `stop`
    is set, the thread keeps emptying its queue until `finish`, so that no other thread waits for it.
    """

    def __init__(self, writer: CacheWriter, videos: Mapping[str, Video], *, stop: threading.Event):
        self.rows: SimpleQueue[VideoRow] = SimpleQueue()
        self.error: BaseException | None = None
        self._writer = writer
        self._videos = videos
        self._stop = stop
        self._stamps = {video.id: file_stamp(video.path) for video in videos.values()}
        self._queue: SimpleQueue[list[FrameRun] | Decoded | Failed | None] = SimpleQueue()
        self._free_places = threading.Semaphore(UNSAVED)
        self._buffers: dict[str, TokenBuffer] = {}
        self._decoded: dict[str, Decoded] = {}
        self._failed: set[str] = set()
        self.thread = threading.Thread(target=self._run, daemon=True, name="costl-save")

    def add_tokens(self, frame_runs: list[FrameRun]) -> None:
        """Takes a batch of tokens; blocks while `UNSAVED` batches wait."""
        self._free_places.acquire()
        self._queue.put(frame_runs)

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
            except BaseException as error:
                self.error = error
            finally:
                if isinstance(item, list):
                    self._free_places.release()
        for buffer in self._buffers.values():
            buffer.close()

    def _handle(self, item: list[FrameRun] | Decoded | Failed) -> None:
        if isinstance(item, Failed):
            self._discard(item)
        elif isinstance(item, Decoded):
            self._decoded[item.video_id] = item
            self._save_if_complete(item.video_id)
        else:
            for frame_run in item:
                self._add_to_buffer(frame_run)

    def _discard(self, failed: Failed) -> None:
        self._failed.add(failed.video_id)
        if failed.video_id in self._buffers:
            self._buffers.pop(failed.video_id).close()
        self._record_failure(failed)

    def _add_to_buffer(self, frame_run: FrameRun) -> None:
        if frame_run.video_id in self._failed:  # its frames were on the way when the video failed
            return
        if frame_run.video_id not in self._buffers:
            self._buffers[frame_run.video_id] = TokenBuffer(self._writer.parts)
        self._buffers[frame_run.video_id].add(frame_run)
        self._save_if_complete(frame_run.video_id)

    def _save_if_complete(self, video_id: str) -> None:
        decoded = self._decoded.get(video_id)
        buffer = self._buffers.get(video_id)
        if decoded is None or buffer is None or buffer.frames < decoded.clips:
            return
        del self._decoded[video_id], self._buffers[video_id]
        try:
            self._save(decoded, buffer)
        finally:
            buffer.close()

    def _save(self, decoded: Decoded, buffer: TokenBuffer) -> None:
        video = self._videos[decoded.video_id]
        try:
            row = self._writer.store(
                video.id,
                name=video.path.stem,
                tokens=buffer.tokens(),
                times_s=buffer.times_s(),
                duration_s=decoded.duration_s,
                # The file was just decoded, so the system still has it in memory.
                content_hash=content_hash(video.path, since=self._stamps[video.id]),
                repaired=decoded.repaired,
                decoder=decoded.decoder,
            )
        except VideoError as error:
            self._record_failure(Failed(video.id, error.status, str(error)))
        else:
            self.rows.put(row)

    def _record_failure(self, failed: Failed) -> None:
        name = self._videos[failed.video_id].path.stem
        row = self._writer.record_without_features(
            failed.video_id, name=name, status=failed.status, reason=failed.reason
        )
        self.rows.put(row)


class TokenBuffer:
    """The tokens of one video, added in any order and held in an unnamed file: memory does not grow with the length.

    Raises CacheError when the disk of `folder` is full or cannot be written.
    """

    def __init__(self, folder: Path):
        with _disk_errors(folder):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._folder = folder
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float16)
        self._times_s: dict[int, np.ndarray] = {}
        self.frames = 0

    def add(self, frame_run: FrameRun) -> None:
        """Adds frames whose `values` are tokens [n ...]."""
        tokens = np.ascontiguousarray(frame_run.values)
        self._shape = tokens.shape[1:]
        self._dtype = tokens.dtype
        with _disk_errors(self._folder):
            self._file.seek(frame_run.first_index * tokens[0].nbytes)
            self._file.write(tokens.data)
        self._times_s[frame_run.first_index] = np.array(frame_run.times_s, dtype=np.float64)
        self.frames += len(frame_run)

    def tokens(self) -> np.ndarray:
        """All tokens, [t ...], valid until `close`."""
        with _disk_errors(self._folder):
            self._file.flush()
        return np.memmap(self._file, dtype=self._dtype, mode="r", shape=(self.frames, *self._shape))

    def times_s(self) -> np.ndarray:
        """All times, float64 [t]."""
        return np.concatenate([times_s for _, times_s in sorted(self._times_s.items())])

    def close(self) -> None:
        """Frees the file."""
        self._file.close()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(folder, error) from error
