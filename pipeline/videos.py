"""The videos of a folder: which files count as videos, the name and id of each, and the hash of its content."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from costl.pipeline.errors import UsageError, VideoError

SUFFIXES = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv"])
SUFFIXES |= {".wmv", ".3gp", ".ogv", ".vob", ".divx"}
_UNFINISHED = (".part", ".crdownload", ".download", ".partial", ".icloud", ".tmp")  # of browsers, yt-dlp, rsync and clouds
# Folders of systems and of network disks for what was deleted, and for previews of videos.
_SYSTEM_FOLDERS = frozenset(["$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle", "#snapshot"])
LONGEST_ID = 200  # bytes; an id becomes a file name with a suffix, and file systems stop at 255
# Windows treats these names as devices, whatever suffix follows.
RESERVED = frozenset(
    ["CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in range(10))]
)
_READ_BYTES = 1 << 20
_FILE_ERRORS = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}  # not of the machine

INNER = "videos"  # the folder in a data folder that may hold the videos

FileStamp = tuple[int, ...]


@dataclass(frozen=True)
class Video:
    """One video file; `id` is its name, which annotations use, made safe by `safe_id`.

    The name is `stored_name`, or else the file name without its suffix. With `windows`, ranges of clips of its grid,
    only these are extracted, and each becomes a video of its own in the cache, called `window_name(window)`.
    """

    id: str
    path: Path
    stored_name: str = ""
    windows: tuple[range, ...] = ()

    @property
    def name(self) -> str:
        """What a cache calls the video."""
        return self.stored_name or self.path.stem


def window_name(window: range) -> str:
    """The id and the name of a window of a video, in a cache of windows of this video alone."""
    return f"clips-{window.start:08}-{window.stop:08}"


def list_videos(folder: Path) -> dict[str, Path]:
    """The path of every video in a folder and the folders in it, by its path relative to the folder, sorted.

    Hidden folders and those of deleted files are left out, and links to folders are not followed; only a folder `videos` may
    be a link, if the folder holds no video itself. Raises UsageError for a folder that is missing or holds no video.
    """
    _refuse_no_folder(folder)
    paths = _walk(folder)
    if not paths:
        raise UsageError(f"{folder}: no videos in it or in its folders, expected {' '.join(sorted(SUFFIXES))}.")
    return paths


def video_names(paths: Mapping[str, Path]) -> dict[str, str]:
    """What annotations and caches call each video of `list_videos`: its path relative to the folder, without the suffix.

    If the folder holds no video itself, its folder `videos` counts as the folder.
    """
    outer = "" if _are_own(paths) else f"{INNER}/"
    return {name: name.removeprefix(outer).removesuffix(path.suffix) for name, path in paths.items()}


def find_videos(folder: Path, *, recursive: bool = False, allow_none: bool = False) -> list[Video]:
    """The videos in `folder`, or in `folder/videos` when it holds none itself, sorted by id.

    With `recursive` also those in deeper folders, as `list_videos` finds them and `video_names` calls them. A pipe, an empty
    file or a dangling link with a video's suffix counts as well, so that it is reported as a failed video; but a folder with
    nothing else holds no videos. What is certainly no video is left out, see `left_out`. Raises UsageError when the folder is
    missing, when it holds no video (unless `allow_none`), and when two files would share a name.
    """
    _refuse_no_folder(folder)
    paths = _walk(folder) if recursive else {path.name: path for path in _video_files(folder)}
    if not _are_own(paths):
        inner = {f"{INNER}/{path.name}": path for path in _video_files(folder / INNER)}
        paths = {name: path for name, path in paths.items() if "/" in name} or inner
    if not any(map(Path.is_file, paths.values())):
        paths = {}
    if not paths and not allow_none:
        expected = " ".join(sorted(SUFFIXES))
        where = "in its folders" if recursive else f"in {folder / INNER}"
        raise UsageError(f"{folder}: no videos ({_count_by_suffix(folder)}), expected {expected} here or {where}.")
    names = video_names(paths)
    _refuse_shared_names(names)
    videos = (Video(safe_id(names[file]), path, _stored_name(names[file], path)) for file, path in paths.items())
    return sorted(videos, key=lambda video: video.id)


def folder_of(path: Path, videos: Iterable[Video]) -> Path:
    """The folder in which `find_videos` finds these videos of `path`, a folder or one video, under the same names."""
    if not path.is_dir():
        return path.parent
    return path / INNER if all((path / INNER) in video.path.parents for video in videos) else path


def is_video(name: str) -> bool:
    """Whether a file has the name of a video: its suffix, and no dot in front, as in the `._NAME` files that macOS writes."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def left_out(folder: Path, *, recursive: bool = False) -> list[str]:
    """The names in `folder`, sorted, that look like those of videos and are none: of hidden files, folders, unfinished
    downloads. With `recursive` also their paths in deeper folders; a folder with a video in it is not left out.
    """

    def looks_like_video(path: Path) -> bool:
        whole = path.with_suffix("") if path.suffix.lower() in _UNFINISHED else path
        return whole.suffix.lower() in SUFFIXES and (whole != path or path.name.startswith(".") or path.is_dir())

    places = list(_folders(folder)) if recursive else [("", folder, [])]
    with_video = {place for _, place, files in places if any(map(is_video, files))}
    with_video |= {parent for place in with_video for parent in place.parents}
    paths = [(inside, path) for inside, place, _ in places for path in place.iterdir() if path not in with_video]
    return sorted(f"{inside}{path.name}" for inside, path in paths if looks_like_video(path))


def safe_id(stem: str) -> str:
    """`stem` with everything but letters, digits and `._~- +,=@()[]` percent-encoded.

    Different stems give different ids, and each id is a plain file name: no '/', no NUL, no leading dot, no Windows device.
    Ids may differ only in upper and lower case, as those of YouTube do; `CacheWriter` checks file systems that ignore case.
    """
    # '%' itself is always encoded, so that different stems keep different ids.
    encoded = quote(stem, safe=" +,=@()[]", errors="surrogateescape")
    if encoded.startswith(".") or encoded.partition(".")[0].strip().upper() in RESERVED:
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) <= LONGEST_ID:
        return encoded
    digest = hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()
    return f"{encoded[: LONGEST_ID - 33]}%{digest[:32]}"


def printable(text: str) -> str:
    """`text` with bytes of a file name that are not UTF-8 as escapes, so that it can be printed, stored and sent."""
    return os.fsencode(text).decode(errors="backslashreplace") if any("\ud800" <= c <= "\udfff" for c in text) else text


def file_stamp(path: Path) -> FileStamp:
    """The inode, size and times of a file, which change when the file does; empty for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    # Unlike the modification time, the change time cannot be set back.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_hash(path: Path, *, since: FileStamp | None = None) -> str:
    """sha256 in hex over the file's size and its whole content.

    `since`: the `file_stamp` taken before the video was decoded; if it still fits, the hash is that of the decoded file.
    Raises VideoError when the file cannot be read, and with status "changed" when the stamp no longer fits.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block
            raise VideoError(f"{path.name}: not a regular file.")
        with open(path, "rb") as file:
            digest = hashlib.sha256(f"{path.stat().st_size}\n".encode())
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise read_failure(path, error) from error
    if since is not None and file_stamp(path) != since:
        raise VideoError(
            f"{path.name}: was changed during this run. Extract again when nothing writes to the file.",
            status="changed",
        )
    return digest.hexdigest()


def read_failure(path: Path, error: OSError) -> VideoError:
    """The error for a video that cannot be read; its status is "error" if the disk or the network is the cause."""
    next_step = "Check its name and permissions" if error.errno in _FILE_ERRORS else "Check the disk, and the network to it"
    status = "failed" if error.errno in _FILE_ERRORS else "error"
    return VideoError(f"{path.name}: cannot be read ({error.strerror}). {next_step}.", status=status)


def _refuse_no_folder(folder: Path) -> None:
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {problem}. Pass the folder that holds the videos.")


def _video_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_video(path.name) and not path.is_dir()] if folder.is_dir() else []


def _walk(folder: Path) -> dict[str, Path]:
    """The path of every video in a folder and the folders in it, by its path relative to the folder, sorted."""
    places = _folders(folder)
    paths = {f"{inside}{name}": place / name for inside, place, files in places for name in files if is_video(name)}
    return dict(sorted(paths.items()))


def _folders(folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A folder and the folders in it: (path relative to it, with a slash at its end; path; names of the files)."""
    inner = folder / INNER
    tops = [folder, inner] if inner.is_symlink() and not any(map(Path.is_file, _video_files(folder))) else [folder]
    for top in tops:
        for place, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in _SYSTEM_FOLDERS]
            yield "".join(f"{part}/" for part in Path(place).relative_to(folder).parts), Path(place), files


def _are_own(paths: Mapping[str, Path]) -> bool:
    """Whether some of the videos are in the folder itself."""
    # is_file follows links and is false for dangling or circular ones.
    return any("/" not in name and path.is_file() for name, path in paths.items())


def _stored_name(name: str, path: Path) -> str:
    return "" if name == path.stem else name


def _refuse_shared_names(names: Mapping[str, str]) -> None:
    """Raises UsageError where two of these files have one name."""
    file_of: dict[str, str] = {}
    for file, name in sorted(names.items()):
        first = file_of.setdefault(name, file)
        if first is not file:
            raise UsageError(f"{first} and {file}: two videos with one id, '{name}'. Rename or remove one of them.")


def _count_by_suffix(folder: Path) -> str:
    """The most common suffixes in the folder: '3 .jpg, 1 .txt'."""
    kinds = Counter("folder" if path.is_dir() else path.suffix or "file without suffix" for path in folder.iterdir())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "it is empty"
