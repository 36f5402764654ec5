"""Brings the index of a library up to date: finds what is new, changed, moved and gone, and extracts what is missing.

Each video is stored under the hash of its content. So a renamed or moved file costs nothing, and copies cost one extraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.cache.index import (
    Contents,
    Index,
    VideoRow,
    absolute_weights,
    read_index,
    relative_path,
    relative_weights,
)
from costl.pipeline.cache.inspect import MAX_LISTED
from costl.pipeline.cache.lock import read_unpacked_index, refuse_if_locked
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.data_folder import ExtractSettings, read_settings
from costl.pipeline.device import pick_device
from costl.pipeline.encode.names import check_names, default_weights
from costl.pipeline.encode.reload import reload_encoder
from costl.pipeline.errors import CacheError
from costl.pipeline.library.encoder_record import search_fingerprint
from costl.pipeline.library.folder import CACHE, VideoFile, look_again, read_files, write_files
from costl.pipeline.options import MACHINE_FAILURES, MODEL, FrameOptions, RunOptions
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.cluster import agree_on_precision, extract_on_cluster
from costl.pipeline.run.engine import cache_contents, extract_into
from costl.pipeline.run.history import recorded_run
from costl.pipeline.videos import Video, list_videos

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

NOT_YET = "not indexed yet."  # the reason of a file that no update has reached
_TRY_AGAIN = MACHINE_FAILURES | {"pending", "changed"}  # statuses that do not come from the content of a video


@dataclass(frozen=True)
class LibraryFiles:
    """The files of a library after an update.

    `files`: each video by its name, its path relative to the folder. `failed`: the reason for each that cannot be searched.
    `done`: names of videos that this update has extracted. `changed`, `moved` and `gone`: names, compared with the last update.
    `index`: that of the cache; None if the update has changed it.
    """

    folder: Path
    files: Mapping[str, VideoFile]
    failed: Mapping[str, str]
    done: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    index: Index | None = field(default=None, repr=False, compare=False)

    def messages(self) -> list[str]:
        """Why videos cannot be searched, and what has changed since the last update."""
        counts = {"indexed": self.done, "changed": self.changed, "moved": self.moved, "gone": self.gone}
        changes = [f"{len(names)} {word}" for word, names in counts.items() if names]
        failed = [f"cannot be searched: {name}: {_without_name(name, reason)}" for name, reason in self.failed.items()]
        more = len(failed) - MAX_LISTED
        return [
            *failed[:MAX_LISTED],
            *([f"cannot be searched: {more} more videos."] if more > 0 else []),
            *([f"{len(self.files)} videos: {', '.join(changes)}."] if changes else []),
        ]

    def names(self) -> dict[str, list[str]]:
        """The names of the files with each content."""
        names: dict[str, list[str]] = {}
        for name, file in self.files.items():
            names.setdefault(file.content, []).append(name)
        return names


def update_library(
    videos: Path,
    index: Path,
    *,
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    cluster: str | None = None,
    progress: ProgressCallback | None = None,
) -> LibraryFiles:
    """Extracts what the index of the folder `videos` lacks, into the folder `index`; unchanged files are not read.

    `model` and `weights` are by default those of the index, and of a new index those of the folder's costl.yaml or else of
    `costl extract`. `cluster` is the address of a Dask scheduler whose workers process the videos, on their `device`. A video
    that fails becomes a row with its reason. It is tried again when its file changes, and after failures of the machine. It
    can be killed at any time, and the next call goes on.
    Raises UsageError for a folder without videos and weights that are not here, CacheError for an index of another encoder, one
    that another process is writing, or one that cannot be written.
    """
    report_progress = progress or (lambda _: None)
    paths = list_videos(videos)
    cache = index / CACHE
    refuse_if_locked(cache)
    run = _Update(videos, cache, device=device, workers=workers, cluster=cluster, report_progress=report_progress)
    run.open(model, weights)
    known = read_files(index)
    files = look_again(paths, known, report_progress)
    if files != known:
        write_files(index, files)
    rows = run.extract(files, paths)
    changes = _differences(known, files)
    return LibraryFiles(videos, files, _failed(files, rows), done=tuple(run.done), **changes, index=run.index)


def read_library(videos: Path, index: Path) -> LibraryFiles:
    """The files of a library as its last update has left them, without looking at the folder."""
    files = read_files(index)
    contents = read_index(index / CACHE)
    return LibraryFiles(videos, files, _failed(files, {row.id: row for row in contents.rows}), index=contents)


def _failed(files: Mapping[str, VideoFile], rows: Mapping[str, VideoRow]) -> dict[str, str]:
    """Why each file that cannot be searched cannot; a row is missing while another update works on it."""
    found = {name: rows.get(file.content) for name, file in files.items()}
    return {
        name: files[name].reason or (row.reason if row else NOT_YET)
        for name, row in found.items()
        if row is None or not row.ok
    }


def _without_name(name: str, reason: str) -> str:
    return reason.removeprefix(f"{Path(name).name}: ")


def _differences(known: Mapping[str, VideoFile], files: Mapping[str, VideoFile]) -> dict[str, tuple[str, ...]]:
    earlier = {file.content for file in known.values()}
    return {
        "changed": tuple(name for name in files if name in known and files[name].content != known[name].content),
        "moved": tuple(name for name in files if name not in known and files[name].content in earlier),
        "gone": tuple(name for name in known if name not in files),
    }


class _Update:
    """One update of the cache of a library."""

    def __init__(
        self,
        videos: Path,
        cache: Path,
        *,
        device: str,
        workers: int | None,
        cluster: str | None,
        report_progress: ProgressCallback,
    ):
        self._videos = videos
        self._cache = cache
        self._device = device
        self._run_options = RunOptions(workers=workers)
        self._cluster = cluster
        self._report_progress = report_progress
        self._encoder: CLIPEncoder | None = None
        self._contents: Contents
        self._rows: dict[str, VideoRow] = {}
        self.done: list[str] = []
        self.index: Index | None = None

    def open(self, model: str | None, weights: str | None) -> None:
        """Reads the index, or loads the encoder of a new one."""
        if model is not None and weights is None:
            weights = default_weights(model)
        if self._cache.exists():
            self.index = read_unpacked_index(self._cache)
            self._contents, self._rows = self.index.contents, {row.id: row for row in self.index.rows}
            self._refuse_another_encoder(model, weights)
            return
        settings = self._settings(model, weights)
        check_names(settings.model, settings.weights)
        precision = self._agree_on_precision(None) if self._cluster else None
        self._encoder = _load(settings, "auto" if self._cluster else self._device, precision, self._report_progress)
        self._contents = _contents(settings, self._encoder, self._videos, self._cache)

    def _settings(self, model: str | None, weights: str | None) -> ExtractSettings:
        """The settings of a new index: what is chosen, else those of the folder's costl.yaml, else the defaults."""
        chosen = {name: value for name, value in (("model", model), ("weights", weights)) if value is not None}
        values = {**read_settings(self._videos).extract, **chosen, "tokens": "cls", "dtype": "float16"}
        if "weights" not in values:
            values["weights"] = default_weights(str(values.get("model", MODEL)))
        return ExtractSettings(**values)

    def _refuse_another_encoder(self, model: str | None, weights: str | None) -> None:
        source = self._contents.source
        stored = absolute_weights(self._cache.parent, source["weights"])
        wanted = None if weights is None else absolute_weights(self._cache.parent, relative_weights(self._cache.parent, weights))
        if wanted not in (None, stored) or model not in (None, source["model"]):
            raise CacheError(
                f"{self._cache}: this library was indexed with {source['model']}, {stored}, not with {model or source['model']}, "
                f"{weights}. Search it without naming a model, or remove its index first: costl search --videos {self._videos} "
                "--remove-index"
            )

    def extract(self, files: Mapping[str, VideoFile], paths: Mapping[str, Path]) -> dict[str, VideoRow]:
        """Extracts the contents without a row, removes rows of contents that are gone; returns the rows by content."""
        names: dict[str, str] = {}  # of the first file of each content
        for name, file in files.items():
            names.setdefault(file.content, name)
        names.pop("", None)
        missing = [content for content in names if content not in self._rows or self._rows[content].status in _TRY_AGAIN]
        if not missing and self._rows.keys() <= names.keys() and self._cache.exists():
            return self._rows
        self.index = None
        failed_before = frozenset(row.id for row in self._rows.values() if not row.ok)
        with CacheWriter(self._cache, self._contents, {}) as writer:
            rows = {content: row for content, row in self._rows.items() if content in names and content not in missing}
            for row in rows.values():
                writer.keep_row(row)
            # Parts of videos that were gone for a while, and those of a killed update.
            earlier = {content: writer.reuse_if_unchanged(content, content) for content in missing}
            found = {content: row for content, row in earlier.items() if row is not None}
            writer.write_index()
            unfinished = [Video(content, paths[names[content]], content) for content in missing if content not in found]
            made = self._extract_into(writer, unfinished, names, failed_before) if unfinished else []
        self.done = [names[row.id] for row in made if row.ok]
        return rows | found | {row.id: row for row in made}

    def _extract_into(
        self, writer: CacheWriter, unfinished: Sequence[Video], names: Mapping[str, str], failed_before: frozenset[str]
    ) -> list[VideoRow]:
        encoder = self._encoder or self._reload()

        def report(progress: Progress) -> None:
            name = names.get(progress.video, progress.video)
            detail = names.get(progress.detail, progress.detail)
            self._report_progress(replace(progress, video=name, detail=detail))

        with recorded_run(self._cache, [encoder]) as meter:
            options: dict[str, Any] = {
                "frame_options": FrameOptions.from_fingerprint(self._contents.fingerprint, encoder.preprocess.resize_target),
                "run_options": self._run_options,
                "meter": meter,
                "failed_before": failed_before,
                "report_progress": report,
            }
            if self._cluster:
                return extract_on_cluster(
                    self._cluster, writer, unfinished, contents=self._contents, device=self._device, **options
                )
            return extract_into(writer, unfinished, encoders=[encoder], fps=self._contents.fps, **options)

    def _agree_on_precision(self, precision: str | None) -> str:
        """That of the index, or what the workers prefer. Raises UsageError as `cluster.agree_on_precision` does."""
        assert self._cluster is not None
        workers = self._run_options.workers
        return agree_on_precision(self._cluster, device=self._device, precision=precision, workers=workers)

    def _reload(self) -> CLIPEncoder:
        source = self._contents.source
        if self._cluster:
            self._agree_on_precision(str(self._contents.fingerprint["precision"]))
        return reload_encoder(
            self._contents.fingerprint,
            source["model"],
            absolute_weights(self._cache.parent, source["weights"]),
            owner=str(self._cache),
            device="auto" if self._cluster else self._device,
            report_progress=self._report_progress,
        )


def _load(
    settings: ExtractSettings, device: str, precision: str | None, report_progress: ProgressCallback
) -> CLIPEncoder:
    pick_device(device)  # before open_clip is loaded, which takes seconds
    from costl.pipeline.encode.clip import load_encoder

    report_progress(Progress("load", 0, 1, f"{settings.model}, {settings.weights}"))
    return load_encoder(settings.model, settings.weights, device=device, precision=precision, patches=False)


def _contents(settings: ExtractSettings, encoder: CLIPEncoder, videos: Path, cache: Path) -> Contents:
    return cache_contents(
        encoder,
        search_fingerprint(encoder.fingerprint(), settings),
        videos=relative_path(cache.parent, videos),
        source={"model": settings.model, "weights": relative_weights(cache.parent, settings.weights)},
    )
