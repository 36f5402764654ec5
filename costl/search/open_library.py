"""Opens a library: brings the index of a folder up to date, or reads a cache of `costl extract`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import BusyError, CacheError, UsageError
from costl.pipeline.feature_store import user_folder
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.files import as_path
from costl.pipeline.library.best_videos import Scan
from costl.pipeline.library.cluster_scan import open_scan
from costl.pipeline.library.folder import CACHE, VECTORS, index_folder
from costl.pipeline.library.store_limit import DEFAULT_BYTES
from costl.pipeline.library.update import read_library, update_library
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import find_videos
from costl.search.library import Library, LibraryVideo


def open_library(
    path: Path | str,
    *,
    run: Path | str | None = None,
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    cluster: str | None = None,
    keep_bytes: int = DEFAULT_BYTES,
    update: bool = True,
    progress: ProgressCallback | None = None,
) -> Library:
    """Opens a folder of videos, or a cache of `costl extract`, for searching.

    A folder is indexed first: new and changed videos are extracted, which takes as long as `costl extract` (see
    `update_library`). `update=False` searches what the last update has indexed. `run` is a trained model that finds the
    moments again in the best videos: by default the newest run in `runs/` that fits (see `run_for_library`), and with "none"
    CLIP alone. Their features are stored in the user's cache folder, at most `keep_bytes`. `cluster` is the address of a
    Dask scheduler, whose workers index and compare; `run` works on this machine.

    Raises UsageError for a folder without videos, wrong arguments, weights that are not here and a cluster that does not
    answer; CacheError for a damaged index, or one of another encoder.
    """
    scan = open_scan(cluster)
    path = as_path("path", path)
    if path.is_file() or path.suffix == ".h5":
        if model is not None:
            raise UsageError(f"model is {model!r}, but {path} is a cache, which was made with a model already.")
        library = _open_cache(path, weights, device, scan, progress)
        library.use_run(run, keep_bytes=keep_bytes)
        return library
    index = index_folder(path)
    if not update and not (index / CACHE).exists():
        raise CacheError(f"{path}: not indexed yet. Search it once with update.")
    options: dict[str, Any] = {"model": model, "weights": weights, "device": device, "workers": workers, "cluster": cluster}
    notes = []
    try:
        files = update_library(path, index, **options, progress=progress) if update else read_library(path, index)
    except BusyError:
        if not (index / CACHE).exists():
            raise
        files = read_library(path, index)
        notes.append("another search is indexing this folder. What is not indexed yet is missing here.")
    features = CacheReader(index / CACHE, files.index)
    names = files.names()
    videos = {
        key: [LibraryVideo(name, path / name, files.files[name].changed_s) for name in names.get(key, [])]
        for key in features.video_ids
    }
    given: dict[str, Any] = {"notes": notes, "device": device, "scan": scan, "progress": progress}
    library = Library(path, features, index / VECTORS, videos, files, **given)
    library.use_run(run, keep_bytes=keep_bytes)
    return library


def _open_cache(path: Path, weights: str | None, device: str, scan: Scan, progress: ProgressCallback | None) -> Library:
    features = CacheReader(path)
    if weights is not None:
        features.source["weights"] = weights
    found: dict[str, Path] = {}
    if features.videos is not None and features.videos.is_dir():
        is_nested = any("/" in name for name in features.video_ids)
        found = {video.name: video.path for video in find_videos(features.videos, recursive=is_nested, allow_none=True)}
    videos = {name: [_with_time(name, found.get(name, Path(name)))] for name in features.video_ids}
    folder = path.with_name(f"{path.name}.vectors")
    if not os.access(folder if folder.is_dir() else path.parent, os.W_OK):
        folder = user_folder() / "libraries" / digest({"cache": str(path.resolve())})[:16]
    return Library(path, features, folder, videos, None, device=device, scan=scan, progress=progress)


def _with_time(name: str, path: Path) -> LibraryVideo:
    with contextlib.suppress(OSError):
        return LibraryVideo(f"{name}{path.suffix}" if path.is_absolute() else name, path, path.stat().st_mtime)
    return LibraryVideo(name, path)
