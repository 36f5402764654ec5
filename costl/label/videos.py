"""The videos that can be labelled: how the label file names them, and why a video cannot be labelled."""

from __future__ import annotations

import secrets
import threading
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from costl.pipeline.errors import VideoError
from costl.pipeline.preview.playback import Playback, read_playback
from costl.pipeline.videos import FileStamp, file_stamp, list_videos, printable, video_names


@dataclass(frozen=True)
class LabelVideo:
    """A video: its `name`, the path relative to the folder, and `vid`, its name in the label file.

    `key` stands for it in addresses, and cannot be guessed. `problem`: why it cannot be labelled.
    """

    name: str
    vid: str
    path: Path
    key: str
    problem: str = ""

    @property
    def file(self) -> str:
        """The name of the file, as it can be shown."""
        return printable(PurePosixPath(self.name).name)

    @property
    def folder(self) -> str:
        """The folder of the file with a slash at its end, or nothing."""
        parent = str(PurePosixPath(self.name).parent)
        return "" if parent == "." else f"{printable(parent)}/"


class LabelVideos:
    """The videos of a folder and of the folders in it, by the paths that they have when it is made.

    A video is called as `costl extract` calls it (`video_names`), in Unicode's composed form. Two files of one name cannot be
    labelled. `folder` is the whole path of the folder. Raises UsageError for a folder without videos.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        paths = list_videos(folder)
        vids = {name: unicodedata.normalize("NFC", vid) for name, vid in video_names(paths).items()}
        files = Counter(vids.values())
        self.all = [
            LabelVideo(name, vids[name], path, secrets.token_urlsafe(12), _problem(name, vids[name], files))
            for name, path in paths.items()
        ]
        self._by_key = {video.key: video for video in self.all}
        self._by_name = {video.name: video for video in self.all}
        self._playback: dict[str, tuple[FileStamp, Playback]] = {}
        self._lock = threading.Lock()

    def with_key(self, key: str) -> LabelVideo | None:
        """The video of a key whose file is still there."""
        video = self._by_key.get(key)
        return video if video is not None and video.path.is_file() else None

    def named(self, name: str) -> LabelVideo | None:
        """The video with this path relative to the folder."""
        return self._by_name.get(name)

    def playback(self, video: LabelVideo) -> Playback:
        """The length and the clock of a video. Raises VideoError for one that cannot be read or labelled."""
        if video.problem:
            raise VideoError(video.problem)
        stamp = file_stamp(video.path)
        with self._lock:
            known = self._playback.get(video.name)
        if known and known[0] == stamp:
            return known[1]
        playback = read_playback(video.path)
        with self._lock:
            self._playback[video.name] = stamp, playback
        return playback


def _problem(name: str, vid: str, files: Mapping[str, int]) -> str:
    if printable(name) != name:
        return f"{printable(name)}: its name is not valid UTF-8. Rename it."
    if files[vid] > 1:
        return f"{name}: {files[vid]} files are called {vid!r}, whatever their ending. Rename all but one, and start again."
    return ""
