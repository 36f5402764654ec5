"""The one thread of a run that touches the disk: it gathers the tokens of each video and publishes what is whole."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from queue import SimpleQueue

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Decoded, Failed
from costl.pipeline.errors import VideoError
from costl.pipeline.run.batches import Gathered, Stretch
from costl.pipeline.videos import Video, content_hash, stamp

UNSAVED = 4  # batches of tokens that may wait for the disk

_Item = list[Stretch] | Decoded | Failed


class Saver:
    """Takes tokens in any order and the end of each video, whichever comes first; a row in `rows` for each that is done.

    No more than `UNSAVED` batches wait: who brings another one is held up. A saver that has failed (`error`) or is to
    `stop` goes on emptying its box until `finish`, so that nobody waits for it.
    """

    def __init__(self, writer: CacheWriter, videos: Mapping[str, Video], *, stop: threading.Event):
        self.rows: SimpleQueue[VideoRow] = SimpleQueue()
        self.error: BaseException | None = None
        self._writer, self._videos, self._stop = writer, videos, stop
        self._stamps = {video.id: stamp(video.path) for video in videos.values()}
        self._box: SimpleQueue[_Item | None] = SimpleQueue()
        self._room = threading.Semaphore(UNSAVED)
        self._gathered: dict[str, Gathered] = {}
        self._decoded: dict[str, Decoded] = {}
        self._failed: set[str] = set()
        self.thread = threading.Thread(target=self._run, daemon=True, name="costl-save")

    def tokens(self, stretches: list[Stretch]) -> None:
        """Takes a batch; waits while too many are there."""
        self._room.acquire()
        self._box.put(stretches)

    def ended(self, event: Decoded | Failed) -> None:
        """Takes the end of a video's decoding."""
        self._box.put(event)

    def finish(self) -> None:
        """Nothing more comes: the thread ends when its box is empty."""
        self._box.put(None)

    def _run(self) -> None:
        while (item := self._box.get()) is not None:
            try:
                if self.error is None and not self._stop.is_set():
                    self._handle(item)
            except BaseException as error:
                self.error = error
            finally:
                if isinstance(item, list):
                    self._room.release()
        for gathered in self._gathered.values():
            gathered.close()

    def _handle(self, item: _Item) -> None:
        if isinstance(item, Failed):
            self._failed.add(item.video_id)
            if item.video_id in self._gathered:
                self._gathered.pop(item.video_id).close()
            self._note(item)
        elif isinstance(item, Decoded):
            self._decoded[item.video_id] = item
            self._save_if_whole(item.video_id)
        else:
            for stretch in item:
                self._gather(stretch)

    def _gather(self, stretch: Stretch) -> None:
        if stretch.video_id in self._failed:  # some of its frames were on their way
            return
        if stretch.video_id not in self._gathered:
            self._gathered[stretch.video_id] = Gathered(self._writer.parts)
        self._gathered[stretch.video_id].add(stretch)
        self._save_if_whole(stretch.video_id)

    def _save_if_whole(self, video_id: str) -> None:
        decoded, gathered = self._decoded.get(video_id), self._gathered.get(video_id)
        if decoded is None or gathered is None or gathered.frames < decoded.clips:
            return
        del self._decoded[video_id], self._gathered[video_id]
        try:
            self._save(decoded, gathered)
        finally:
            gathered.close()

    def _save(self, decoded: Decoded, gathered: Gathered) -> None:
        video = self._videos[decoded.video_id]
        try:
            row = self._writer.store(
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
            self._note(Failed(video.id, error.status, str(error)))
        else:
            self.rows.put(row)

    def _note(self, failed: Failed) -> None:
        name = self._videos[failed.video_id].path.stem
        self.rows.put(self._writer.note(failed.video_id, name=name, status=failed.status, reason=failed.reason))
