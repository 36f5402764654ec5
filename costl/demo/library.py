"""The state of the library page without its HTML: searches, the files of the hits, their thumbnails and exports."""

from __future__ import annotations

import asyncio
import io
import secrets
import tempfile
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from costl.demo.indexed_folder import IndexedFolder
from costl.demo.library_page import Card, problem_html, results_html
from costl.demo.page import progress_reply
from costl.demo.pictures import frame_jpeg
from costl.demo.served_files import ServedFiles
from costl.demo.streams import REPLY_EVERY_S, json_line, result_of, until_done
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.library.update import NOT_YET
from costl.pipeline.preview.cut import browser_start_s
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import printable
from costl.search.export.formats import FORMATS, ONE_VIDEO
from costl.search.export.write import write_hits
from costl.search.filters import Filters
from costl.search.hits import SearchResult
from costl.search.library import Library

SHOWN = 24  # moments of one page of results
_MOST = 1000  # moments of a search
_FRAME_HEIGHT = 270  # pixels
_RESULTS = 100  # searches that can be exported
_SEARCHES, _DECODERS = 4, 2  # at a time
_FOLDERS = 500  # that the filter suggests


@dataclass(frozen=True)
class Download:
    """An exported file, and a message about each video that it leaves out."""

    name: str
    content: bytes
    notes: tuple[str, ...] = ()


class LibrarySearch:
    """Searches the library in `folder` for the browser, and indexes it meanwhile.

    `run`, `weights` and `device` are those of `open_library`. `has_ended`: whether the server is shutting down, so that
    replies must end.
    """

    def __init__(
        self, folder: Path, *, run: Path | str | None = None, weights: str | None = None, device: str = "auto"
    ):
        self._indexed = IndexedFolder(folder, run=run, weights=weights, device=device)
        self.folder = self._indexed.folder
        self.indexing = self._indexed.indexing
        self.has_ended: Callable[[], bool] = lambda: False
        self._files = ServedFiles()
        self._results: OrderedDict[str, SearchResult] = OrderedDict()
        self._threads = ThreadPoolExecutor(_SEARCHES)
        self._decoders = ThreadPoolExecutor(_DECODERS)

    def close(self) -> None:
        """Stops all work, and waits until it has stopped."""
        self.indexing.stop()
        self._threads.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    async def index_replies(self) -> AsyncIterator[str]:
        """Lines of JSON: the progress of the index while it runs, then its `state` and what can be searched."""
        while self.indexing.state == "running":
            if self.has_ended():
                return
            yield json_line(state="running", **self.indexing.progress_reply())
            await asyncio.sleep(REPLY_EVERY_S)
        yield json_line(**await asyncio.to_thread(self._summary))

    async def search_replies(self, asked: Mapping[str, str]) -> AsyncIterator[str]:
        """Lines of JSON: {"text": what goes on} until {"html": the results or a problem, "summary": the results in a few words}.

        Before anything is indexed the last one has `unindexed` as well.
        `asked` holds the `query`, the filters `within`, `after`, `before` and `longer`, and the number of moments, `top`.
        """
        text = "Searching"

        def report(progress: Progress) -> None:
            nonlocal text
            text = str(progress_reply(progress)["text"])

        work = asyncio.wrap_future(self._threads.submit(self._search, dict(asked), report))
        async for line in until_done(work, waiting=lambda: {"text": text}, has_ended=self.has_ended):
            yield line

    def video_file(self, key: str) -> Path | None:
        """The file of a hit; None for an unknown key and a file that is gone."""
        path = self._files.paths.get(key)
        return path if path is not None and path.is_file() else None

    def start_s(self, key: str) -> float | None:
        """The `currentTime` of a browser at the start of a video; None for one that is gone or cannot be read."""
        path = self.video_file(key)
        try:
            return None if path is None else browser_start_s(path)
        except VideoError:
            return None

    async def frame(self, key: str, second: float) -> bytes | None:
        """The JPEG of the picture at a second of a video; None for one that is gone or cannot be read.

        Raises Ending while the server shuts down.
        """
        return await result_of(partial(self._frame, key, second), self._decoders, has_ended=self.has_ended)

    def export(self, search: str, ranks: Sequence[int], output_format: str) -> Download:
        """The hits of a search with these ranks, from 0 on, or all if there are none, as one file or as a ZIP archive.

        Raises UsageError for a search that is unknown by now, unknown ranks and formats, and as `write_hits` does.
        """
        result = self._results.get(search)
        if result is None:
            raise UsageError("these results are no longer known. Search again.")
        every = [*result.hits, *result.below]
        if output_format not in FORMATS or not all(rank in range(len(every)) for rank in ranks):
            raise UsageError(f"format {output_format!r} of moments {list(ranks)} cannot be exported. Search again.")
        hits = [every[rank] for rank in sorted(set(ranks))] if ranks else list(result.hits)
        return _export(replace(result, hits=tuple(hits), below=()), output_format)

    def _summary(self) -> dict[str, object]:
        """The state of the index when no update runs."""
        state, error = self.indexing.state, self.indexing.error
        try:
            library = self._indexed.open()
        except CostlError as problem:
            library, state, error = None, "failed", str(problem)
        files = library.files.files if library and library.files else {}
        failed = library.files.failed if library and library.files else {}
        return {
            "state": state,
            "error": error,
            "videos": len(library) if library else 0,
            "hours": library.hours if library else 0.0,
            "unfinished": sum(reason == NOT_YET for reason in failed.values()),
            "failed": [[printable(name), reason] for name, reason in failed.items() if reason != NOT_YET],
            "folders": _folders(list(files)),
        }

    def _search(self, asked: Mapping[str, str], report: ProgressCallback) -> dict[str, object]:
        try:
            filters = _filters(asked)
            top = min(_MOST, max(1, int(asked.get("top") or SHOWN)))
            library = self._indexed.open()
            if library is None or not len(library):
                return _problem("Nothing is indexed yet. Search again when the first videos are.") | {"unindexed": True}
            query = asked.get("query", "").strip()
            (result,) = library.search_all([query], top=top, filters=filters, progress=report)
            return self._reply(library, result, filtered=filters != Filters(), has_more=len(result.hits) == top < _MOST)
        except CostlError as error:
            return _problem(str(error))
        except Exception as error:
            traceback.print_exception(error)
            return _problem(f"{error} Look at the terminal of the demo.")

    def _reply(self, library: Library, result: SearchResult, *, filtered: bool, has_more: bool) -> dict[str, object]:
        every = [*result.hits, *result.below]
        curves = library.curves(result.query, {hit.name for hit in every})
        cosines = np.concatenate([*curves.values(), np.empty(0, np.float32)])
        span = (float(cosines.min(initial=1.0)), float(cosines.max(initial=-1.0)))
        cards = [
            Card(rank, hit, self._files.key(hit.video), curves[hit.name], library.clip_s, span)
            for rank, hit in enumerate(every)
        ]
        search = secrets.token_urlsafe(12)
        self._results[search] = result
        while len(self._results) > _RESULTS:
            self._results.popitem(last=False)
        shown = replace(result, notes=(*result.notes, library.passed_over))
        html = results_html(search, shown, cards, filtered=filtered, has_more=has_more)
        return {"html": html, "summary": _in_words(result)}

    def _frame(self, key: str, second: float) -> bytes | None:
        path = self.video_file(key)
        return None if path is None else frame_jpeg(path, second, height=_FRAME_HEIGHT)


def _filters(asked: Mapping[str, str]) -> Filters:
    """Raises UsageError for a value that is no date or no number."""
    days: dict[str, date | None] = {}
    for name in ("after", "before"):
        text = asked.get(name, "")
        try:
            days[name] = date.fromisoformat(text) if text else None
        except ValueError as error:
            raise UsageError(f"{name} is {text!r}, expected a date such as 2026-05-01.") from error
    text = asked.get("longer", "")
    try:
        longer_than_s = float(text or 0)
    except ValueError as error:
        raise UsageError(f"longer than is {text!r}, expected seconds.") from error
    return Filters(within=asked.get("within", ""), longer_than_s=longer_than_s, **days)


def _problem(message: str) -> dict[str, object]:
    return {"html": problem_html(message), "summary": ""}


def _in_words(result: SearchResult) -> str:
    if not result.hits:
        return "Nothing like this here."
    count, videos = len(result.hits), len({hit.name for hit in result.hits})
    return f"{count:,} moment{'s' * (count != 1)} in {videos:,} of {result.videos:,} video{'s' * (result.videos != 1)}"


def _folders(names: Sequence[str]) -> list[str]:
    """Every folder of these paths with a slash at its end, the outer ones first if there are too many."""
    folders = {f"{folder}/" for name in names for folder in map(str, PurePosixPath(name).parents) if folder != "."}
    few = sorted(folders, key=lambda folder: (folder.count("/"), folder))[:_FOLDERS]
    return sorted(map(printable, few))


def _export(result: SearchResult, output_format: str) -> Download:
    """One file if the format allows it, or else a ZIP archive with a file for each video."""
    name = _file_name(result.query)
    several = len({hit.name for hit in result.hits}) > 1
    if not (several and output_format in ONE_VIDEO):
        texts: list[str] = []
        try:
            _, notes = write_hits([result], output_format=output_format, out=None, print_text=texts.append)
        except UsageError:
            if not (several and output_format == "edl"):  # videos of several frame rates
                raise
        else:
            suffix = {"table": "txt", "chapters": "txt"}.get(output_format, output_format)
            return Download(f"{name}.{suffix}", "".join(texts).encode(), tuple(notes))
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="costl-export-") as folder, zipfile.ZipFile(archive, "w") as target:
        paths, notes = write_hits([result], output_format=output_format, out=Path(folder), print_text=lambda _: None)
        for path in paths:
            target.write(path, path.relative_to(folder))
    return Download(f"{name}-{output_format}.zip", archive.getvalue(), tuple(notes))


def _file_name(query: str) -> str:
    """A name for a file about a query: its letters and digits."""
    letters = "".join(letter if letter.isalnum() else " " for letter in query)
    return "-".join(letters.split())[:60] or "moments"
