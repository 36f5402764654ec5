"""The files of a library: what is known of each file, and where the index is stored.

FOLDER/.costl/files.json     for each file its stamp and the hash of its content, so that unchanged files are not read again
FOLDER/.costl/search.h5     a cache of frame tokens and joint vectors, one video for each content
FOLDER/.costl/vectors/       the joint vectors in one flat file (see `vectors`)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.feature_store import user_folder
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.engine import cpu_cores
from costl.pipeline.videos import FileStamp, content_hash, file_stamp

FOLDER, CACHE, VECTORS = ".costl", "library.h5", "vectors"
_FILES = "files.json"
_FORMAT = 1


@dataclass(frozen=True)
class VideoFile:
    """A file: its `stamp` when it was read, and the hash of its `content`, or the `reason` why it cannot be read."""

    stamp: FileStamp
    content: str = ""
    reason: str = ""

    @property
    def changed_s(self) -> float:
        """When the file was changed last, in seconds since 1970."""
        return self.stamp[2] / 1e9 if self.stamp else 0.0


def index_folder(videos: Path) -> Path:
    """Where the index of a folder is stored: in its `.costl`, or in the user's cache folder if that cannot be written."""
    inside = videos / FOLDER
    if os.access(inside if inside.is_dir() else videos, os.W_OK):
        return inside
    return user_folder() / "libraries" / sha256(os.fsencode(videos.resolve())).hexdigest()[:16]


def remove_index(videos: Path) -> Path:
    """Removes the index of a folder, and returns where it was. Raises UsageError where there is none, CacheError if in use."""
    index = index_folder(videos)
    if not (index / CACHE).exists():
        raise UsageError(f"{index}: no index of {videos} there, so there is nothing to remove.")
    with locked_cache(index / CACHE):
        shutil.rmtree(index)
    return index


def read_files(index: Path) -> dict[str, VideoFile]:
    """The files at the last search, by name; none if the list is missing, damaged or of another version."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads((index / _FILES).read_text(encoding="utf-8"))
        if content["format"] == _FORMAT:
            return {name: VideoFile(tuple(stamp), *rest) for name, (stamp, *rest) in content["files"].items()}
    return {}


def write_files(index: Path, files: Mapping[str, VideoFile]) -> None:
    """Publishes the list of files. Raises CostlError when it cannot be written."""
    rows = {name: [file.stamp, file.content, file.reason] for name, file in files.items()}
    publish(index / _FILES, json.dumps({"format": _FORMAT, "files": rows}).encode())


def look_again(
    paths: Mapping[str, Path], known: Mapping[str, VideoFile], report_progress: ProgressCallback
) -> dict[str, VideoFile]:
    """The files now. Only those with another stamp than the `known` one are read."""
    stamps = {name: file_stamp(path) for name, path in paths.items()}
    files = {name: known[name] for name in paths if name in known and known[name].stamp == stamps[name] and stamps[name]}
    unread = [name for name in paths if name not in files]

    def read(name: str) -> VideoFile:
        try:
            return VideoFile(stamps[name], content_hash(paths[name]))
        except VideoError as error:
            return VideoFile((), reason=str(error))

    pool = ThreadPoolExecutor(cpu_cores())
    try:
        for number, (name, file) in enumerate(zip(unread, pool.map(read, unread), strict=True), start=1):
            files[name] = file
            report_progress(Progress("check", number, len(unread), name))
    finally:
        pool.shutdown(cancel_futures=True)  # the callback may raise, to stop the update
    return {name: files[name] for name in paths}
