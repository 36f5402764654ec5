"""Moments that a search offers for a sentence in a video, from an index of the folder that is made meanwhile."""

from __future__ import annotations

import glob
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from costl.ask.model_folder import ZERO_SHOT
from costl.demo.indexed_folder import IndexedFolder
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.progress import Progress
from costl.search.filters import Filters
from costl.search.hits import Hit
from costl.search.library import Library

_MOST = 5  # moments for one sentence in one video
_MOST_BELOW = 2  # of them, where none reaches the threshold


class _Closed(Exception):
    """The page is being closed."""


@dataclass(frozen=True)
class Proposed:
    """Proposals for a sentence, best first, and the similarity `curve` of the sentence with each clip of the video.

    `note`: what has answered, or why there are no proposals.
    """

    hits: tuple[Hit, ...] = ()
    note: str = ""
    curve: tuple[float, ...] = ()


class Proposals:
    """Proposals for the videos in `folder`; `run`, `weights` and `device` are those of `open_library`, without a run CLIP alone.

    `indexing` brings the index of the folder up to date, in a thread of its own.
    """

    def __init__(self, folder: Path, *, run: Path | str | None = None, weights: str | None = None, device: str = "auto"):
        self._closing = threading.Event()
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="proposals")
        self._latest: Future[Proposed] | None = None
        self._indexed = IndexedFolder(folder, run=run or ZERO_SHOT, weights=weights, device=device, progress=self._stop_if_closed)
        self.indexing = self._indexed.indexing

    def status(self) -> dict[str, object]:
        """The state of the index for the page, with its progress or its error."""
        return {"state": self.indexing.state, "error": self.indexing.error, **self.indexing.progress_reply()}

    def find(self, video: str, sentence: str) -> Future[Proposed]:
        """The proposals for a sentence in a video, which is named by its path in the folder. An error becomes the note.

        One search runs at a time; one that has not begun is cancelled by the next.
        """
        if self._latest is not None:
            self._latest.cancel()
        self._latest = self._searches.submit(self._find, video, sentence)
        return self._latest

    def close(self) -> None:
        """Stops all work, and waits until it has stopped."""
        self._closing.set()
        self.indexing.stop()
        self._searches.shutdown(cancel_futures=True)

    def _find(self, video: str, sentence: str) -> Proposed:
        try:
            library = self._indexed.open()
            if library is None or not len(library):
                return Proposed(note=self._why_not_indexed())
            return _find(library, video, sentence)
        except _Closed:
            return Proposed()
        except CostlError as error:
            return Proposed(note=str(error))
        except Exception as error:
            traceback.print_exception(error)
            return Proposed(note=f"{error} Look at the terminal.")

    def _why_not_indexed(self) -> str:
        if self.indexing.state == "failed":
            return f"No proposals: {self.indexing.error}"
        if self.indexing.state == "running":
            return "Proposals come when the first videos are indexed."
        return "No proposals: nothing is indexed yet."

    def _stop_if_closed(self, _: Progress) -> None:
        if self._closing.is_set():
            raise _Closed


def _find(library: Library, video: str, sentence: str) -> Proposed:
    try:
        (result,) = library.search_all([sentence], top=2 * _MOST, filters=Filters(within=glob.escape(video)))
    except UsageError:
        failed = library.files.failed.get(video, "") if library.files else ""
        if failed or not library.curves(sentence, {video}):
            return Proposed(note=f"No proposals for this video: {failed or 'it is not indexed yet.'}")
        raise
    hits = _of_video(result.hits, video)[:_MOST]
    below = _of_video(result.below, video)[:_MOST_BELOW]
    curve = [round(float(value), 4) for value in library.curves(sentence, {video}).get(video, ())]
    note = "Proposed" if hits else "Nothing like this here. These are the nearest moments"
    return Proposed(tuple(hits or below), f"{note} by {result.answered_by}.", tuple(curve))


def _of_video(hits: Sequence[Hit], video: str) -> list[Hit]:
    return [hit for hit in hits if hit.name == video]
