"""The videos of a folder, found by the names that labels have for them: their files, durations and frame rates."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path, PurePosixPath

from costl.benchmarks.durations import durations
from costl.converters.times import show_rate
from costl.pipeline.annotations import with_similar_name
from costl.pipeline.errors import UsageError, VideoError, first_few
from costl.pipeline.formats.annotations import plain_name
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import find_videos


class VideoFolder:
    """The videos of `folder`, as `costl extract` finds them; None for no videos at all.

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
        videos = find_videos(folder, allow_none=allow_none) if folder else []
        self._folder = folder
        self._by_stem = {video.path.stem: video.path for video in videos}
        self._by_folded: dict[str, list[Path]] = defaultdict(list)
        for stem, path in self._by_stem.items():
            self._by_folded[_fold(stem)].append(path)
        self.frame_rate = frame_rate
        self._rates: dict[Fraction, str] = {}
        self._find = cache(self._find_file)
        self._rate_of_file = cache(self._read_rate)
        self.duration_of = durations(self.find, progress)

    def find(self, name: str) -> Path | None:
        """The file of a video by its name, with or without folders and ending; None if there is none.

        Upper and lower case may differ where only one file fits.
        """
        return self._find(name)

    def vid_of(self, name: str) -> str:
        """What a cache calls a video: the name of its file without the ending; for a missing file that of the labels."""
        path = self.find(name)
        return path.stem if path else plain_name(_last_part(name))

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
        if self._in_subfolder(name):
            return f"{name} (in a folder of its own; costl extract reads one folder)"
        return with_similar_name(name, self._by_stem)

    def rate_notes(self) -> list[str]:
        """A sentence about each frame rate that was used. Raises UsageError for a frame rate of the folder without use."""
        if self.frame_rate and not self._rates:
            raise UsageError("--frame-rate: these labels count no frames, their times are in seconds. Leave it out.")
        return [f"Frames are counted at {show_rate(rate)} a second, {self._rates[rate]}." for rate in sorted(self._rates)]

    def refuse_shared_files(self, names: Iterable[str]) -> None:
        """Raises UsageError where names in different folders, such as a/1.mp4 and b/1.mp4, have one file here."""
        by_path: dict[Path, dict[str, str]] = defaultdict(dict)
        for name in dict.fromkeys(names):
            path = self.find(name)
            parent = str(_as_path(name).parent)
            if path and parent != ".":
                by_path[path].setdefault(parent, name)
        for path, by_parent in by_path.items():
            if len(by_parent) > 1:
                raise UsageError(f"{first_few(by_parent.values())} are videos of one name: {path.name}. Rename their files.")

    def _find_file(self, name: str) -> Path | None:
        last = _last_part(name)
        if self._in_subfolder(name):
            return None
        exact = self._by_stem.get(last) or self._by_stem.get(plain_name(last))
        folded = self._by_folded.get(_fold(last)) or self._by_folded.get(_fold(plain_name(last))) or []
        return exact or (folded[0] if len(folded) == 1 else None)

    def _in_subfolder(self, name: str) -> bool:
        """Whether a name with folders is a file in one of the folders here, which `costl extract` does not read."""
        path = _as_path(name)
        if self._folder is None or path.parent in (PurePosixPath("."), PurePosixPath("videos")) or ".." in path.parts:
            return False
        try:
            return not path.is_absolute() and (self._folder / path).is_file()
        except (OSError, ValueError):  # too long for a path, or with a NUL
            return False

    def _read_rate(self, name: str) -> Fraction | None:
        from costl.pipeline.decode.frame_rate import read_frame_numbers

        path = self.find(name)
        try:
            return read_frame_numbers(path).rate if path else None
        except VideoError as error:
            reason = str(error).partition(". ")[0].rstrip(".")
            hint = "write its times in seconds, or pass --frame-rate with the rate at which its frames were counted"
            raise UsageError(f"its times are frames, and {reason}; {hint}") from error


def _as_path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _last_part(name: str) -> str:
    return _as_path(name).name or name


def _fold(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
