"""The videos of a folder, found by the names that labels have for them: their files, durations and frame rates."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path, PurePosixPath

from costl.benchmarks.durations import durations
from costl.converters.times import show_rate
from costl.pipeline.annotations import with_similar_name
from costl.pipeline.errors import UsageError, VideoError, first_few
from costl.pipeline.formats.annotations import plain_name
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import Video, find_videos


class VideoFolder:
    """The videos of `folder` and the folders in it, as `costl extract` finds them; None for no videos at all.

    `frame_rate`: the frames a second at which labels count, if it is not that of each video. Raises UsageError as
    `find_videos` does.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        allow_none: bool = False,
        frame_rate: Fraction | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        videos = find_videos(folder, recursive=True, allow_none=allow_none) if folder else []
        self._by_name = {video.name: video for video in videos}
        self._by_folded: dict[str, list[Video]] = defaultdict(list)
        self._by_end: dict[str, list[Video]] = defaultdict(list)
        for name, video in self._by_name.items():
            self._by_folded[_fold(name)].append(video)
            for start in range(1, name.count("/") + 1):
                self._by_end[_fold(name.split("/", start)[-1])].append(video)
        self._folders = {name.partition("/")[0] for name in self._by_name if "/" in name}
        self.frame_rate = frame_rate
        self._rates: dict[Fraction, str] = {}
        self._find = cache(self._find_video)
        self._rate_of_file = cache(self._read_rate)
        self.duration_of = durations(self.find, progress)

    def find(self, name: str) -> Path | None:
        """The file of a video by its name, with or without folders and ending; None if there is none.

        Upper and lower case may differ, and folders may be missing, where only one file fits.
        """
        video = self._find(name)
        return video.path if video else None

    def vid_of(self, name: str) -> str:
        """What a cache calls a video: its path in the folder without the ending; for a missing file the name of the labels."""
        video = self._find(name)
        path = _as_path(name)
        is_relative = self._folders and not path.is_absolute() and ".." not in path.parts
        return video.name if video else plain_name(str(path) if is_relative else _last_part(name))

    def rate_of(self, name: str, *, stated: Fraction | None = None) -> Fraction | None:
        """The frames a second at which labels of a video count: `stated` by the labels, the rate of the folder, or that of
        the video; None for a missing video. Raises UsageError for a video whose rate varies.
        """
        rate = stated or self.frame_rate or self._rate_of_file(name)
        if rate:
            source = "as the labels say" if stated else "as --frame-rate says" if self.frame_rate else "the rate of the video"
            self._rates[rate] = source
        return rate

    def with_similar(self, name: str) -> str:
        """The name of a missing video for a message, with the file that was probably meant, if there is one."""
        return with_similar_name(name, self._by_name)

    def rate_notes(self) -> list[str]:
        """A sentence about each frame rate that was used. Raises UsageError for a frame rate of the folder without use."""
        if self.frame_rate and not self._rates:
            raise UsageError("--frame-rate: these labels count no frames, their times are in seconds. Leave it out.")
        return [f"Frames are counted at {show_rate(rate)} a second, {self._rates[rate]}." for rate in sorted(self._rates)]

    def refuse_shared_files(self, names: Iterable[str]) -> None:
        """Raises UsageError where names in different folders, such as a/1.mp4 and b/1.mp4, have one file here."""
        by_video: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
        for name in dict.fromkeys(names):
            video = self._find(name)
            outside = _as_path(name).parts[: -1 - video.name.count("/")] if video else ()
            if video and outside:
                by_video[video.name].setdefault(outside, name)
        for vid, by_folder in by_video.items():
            if len(by_folder) > 1:
                file = self._by_name[vid].path.name
                raise UsageError(f"{first_few(by_folder.values())} are videos of one name: {file}. Rename their files.")

    def _find_video(self, name: str) -> Video | None:
        """The video whose path `name` ends in, or the only one whose path ends in `name`.

        A name that begins with a folder here is the whole path.
        """
        parts = [part for part in _as_path(name).parts if part != "/"]
        is_whole = len(parts) > 1 and parts[0] in self._folders
        ends = ["/".join(parts[start:]) for start in range(1 if is_whole else len(parts))]
        for end in ends:
            if video := self._by_name.get(end) or self._by_name.get(plain_name(end)):
                return video
        for end in ends:
            if video := _only(self._by_folded, end):
                return video
        return _only(self._by_end, ends[0]) if ends and not is_whole else None

    def _read_rate(self, name: str) -> Fraction | None:
        from costl.pipeline.decode.frame_rate import read_frame_numbers

        path = self.find(name)
        try:
            return read_frame_numbers(path).rate if path else None
        except VideoError as error:
            reason = str(error).partition(". ")[0].rstrip(".")
            hint = "write its times in seconds, or pass --frame-rate with the rate at which its frames were counted"
            raise UsageError(f"its times are frames, and {reason}; {hint}") from error


def _only(videos: Mapping[str, Sequence[Video]], name: str) -> Video | None:
    """The video of a name with or without ending, if there is only one."""
    found = videos.get(_fold(name)) or videos.get(_fold(plain_name(name))) or []
    return found[0] if len(found) == 1 else None


def _as_path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _last_part(name: str) -> str:
    return _as_path(name).name or name


def _fold(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
