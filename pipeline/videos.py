"""The videos of a folder: which files count, the safe and stable id of each, and the hash of its content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from costl.pipeline.errors import UsageError, VideoError

SUFFIXES = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".ts", ".flv", ".wmv", ".3gp"])
LONGEST_ID = 200  # bytes; an id becomes a file name with a suffix, and file systems stop at 255
# What Windows takes for a device, whatever suffix follows.
RESERVED = frozenset(
    ["CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in range(10))]
)
_READ_BYTES = 1 << 20

Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Video:
    """One video file; `id` is what annotations call it: the file name without its suffix, made safe by `safe_id`."""

    id: str
    path: Path


def find_videos(folder: Path, *, allow_none: bool = False) -> list[Video]:
    """The videos in `folder`, or in `folder/videos` when it holds none itself, sorted by id.

    What is called like a video and is none (a folder, a pipe, a link to nothing) counts as well, so that it is told of
    and not lost; but it makes no folder one that holds videos. Raises UsageError when the folder is missing, when it holds
    no video (unless `allow_none`), and when two files would share an id.
    """
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {found}. Pass the folder that holds the videos.")
    paths = _video_files(folder) or _video_files(folder / "videos")
    if not paths and not allow_none:
        expected = " ".join(sorted(SUFFIXES))
        found = _census(folder)
        raise UsageError(f"{folder}: no videos ({found}), expected {expected} here or in {folder / 'videos'}.")
    _refuse_shared_stems(paths)
    return sorted((Video(safe_id(path.stem), path) for path in paths), key=lambda video: video.id)


def safe_id(stem: str) -> str:
    """`stem` unless it holds anything but letters, digits and `._~- +,=@()[]`; then that part percent-encoded.

    Different stems give different ids, and every id is a plain file name: no '/', no NUL, no leading dot, no device of
    Windows. Ids may differ in capitals alone, as those of YouTube do; `CacheWriter` watches over file systems that don't.
    """
    # '%' itself is always encoded, which is what keeps the ids of different stems different.
    encoded = quote(stem, safe=" +,=@()[]", errors="surrogateescape")
    if encoded.startswith(".") or encoded.partition(".")[0].strip().upper() in RESERVED:
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) <= LONGEST_ID:
        return encoded
    digest = hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()
    return f"{encoded[: LONGEST_ID - 33]}%{digest[:32]}"


def readable(text: str) -> str:
    """The same, with bytes of a file's name that are no UTF-8 as escapes: what can be printed, stored and sent."""
    return os.fsencode(text).decode(errors="backslashreplace") if any("\ud800" <= c <= "\udfff" for c in text) else text


def stamp(path: Path) -> Stamp:
    """What a file system notes of a file's last change, nothing where there is no file. Reads none of it."""
    try:
        found = path.stat()
    except OSError:
        return ()
    # The time of change, unlike that of modification, cannot be set back.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def content_hash(path: Path, *, since: Stamp | None = None) -> str:
    """sha256 in hex over the file's size and its whole content.

    `since` is the file's `stamp` before something else read it: the hash is then that of what was read, too. Raises
    VideoError when the file cannot be read, with status "changed" when it is not the one it was.
    """
    digest = _hash(path)
    if since is not None and stamp(path) != since:
        raise VideoError(
            f"{path.name}: was changed while this run was at work. Extract again when nobody writes to it.",
            status="changed",
        )
    return digest


def _hash(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise VideoError(f"{path.name}: not a regular file.")
        with open(path, "rb") as file:
            digest = hashlib.sha256(f"{path.stat().st_size}\n".encode())
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise VideoError(f"{path.name}: cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def _video_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    # is_file follows links and is false for dangling or circular ones.
    return paths if any(map(Path.is_file, paths)) else []


def _refuse_shared_stems(paths: Iterable[Path]) -> None:
    by_stem: dict[str, Path] = {}
    for path in sorted(paths):
        first = by_stem.setdefault(path.stem, path)
        if first is not path:
            names = f"{first.name} and {path.name}"
            raise UsageError(f"{names}: two videos with one id, '{first.stem}'. Rename or remove one of them.")


def _census(folder: Path) -> str:
    """What the folder holds instead of videos: '3 .jpg, 1 .txt'."""
    counts: dict[str, int] = {}
    for path in folder.iterdir():
        kind = "folder" if path.is_dir() else path.suffix or "file without suffix"
        counts[kind] = counts.get(kind, 0) + 1
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    return ", ".join(f"{count} {kind}" for kind, count in common) or "it is empty"
