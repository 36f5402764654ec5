"""Checks every published feature file before anything is written: is one missing, damaged, or of another width or length?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError, VideoError, first_few
from costl.pipeline.grid import Grid
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.published.arrays import StoredArray, find_file, read_headers


@dataclass(frozen=True)
class VideoFeatures:
    """The published features of one video: an array [t c] of every stream, about as many rows as the video has clips."""

    name: str
    grid: Grid
    streams: tuple[StoredArray, ...]

    @property
    def uneven(self) -> bool:
        """Whether a stream has more or fewer rows than there are clips."""
        return any(array.shape[0] != self.grid.clips for array in self.streams)


def length_tolerance(clips: int) -> int:
    """By how many clips the length of a stream may differ: a tenth of the video, at least one and at most two."""
    return max(1, min(2, clips // 10))


def annotated_durations(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of every annotated video, in the order of `rows`. Raises UsageError if rows disagree about a duration."""
    durations: dict[str, float] = {}
    for row in rows:
        vid = row["vid"]
        seconds = float(row["duration"])
        if durations.setdefault(vid, seconds) != seconds:
            raise UsageError(
                f"The annotations disagree about {vid}: it lasts {durations[vid]:g} s and {seconds:g} s. Correct them."
            )
    if not durations:
        raise UsageError("The annotations have no rows. Pass those of the videos whose features you import.")
    return durations


def survey_features(
    durations: Mapping[str, float],
    folders: Mapping[str, Path],
    *,
    fps: float,
    allow_missing: bool,
    report_progress: ProgressCallback,
) -> tuple[list[VideoFeatures], dict[str, str], dict[str, int]]:
    """Reads the header of every file: one for each video in each stream's folder.

    Returns the videos to import, the names of missing videos with the streams they lack, and the width of every stream.
    Raises UsageError, which names the first few files and counts all, for files that are missing (unless
    `allow_missing`), that cannot be used, or whose width differs from the others, and for lengths that do not fit `fps`.
    """
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UsageError(
                f"{name}: {folder} is not a folder. Pass --features {name}=DIR with one file for each video."
            )
    videos: list[VideoFeatures] = []
    missing: dict[str, str] = {}
    errors: list[str] = []
    for number, (vid, duration_s) in enumerate(durations.items(), start=1):
        paths = {name: find_file(folder, vid) for name, folder in folders.items()}
        missing_streams = [name for name, path in paths.items() if path is None]
        if missing_streams:
            missing[vid] = " and ".join(missing_streams)
        else:
            try:
                grid = Grid(fps, duration_s)
                arrays = tuple(_frame_features(path, grid) for path in paths.values() if path)
                videos.append(VideoFeatures(vid, grid, arrays))
            except VideoError as error:
                errors.append(str(error))
        report_progress(Progress("headers", number, len(durations), vid))
    if missing and not (allow_missing and len(missing) < len(durations)):
        _refuse_missing(missing, len(durations), folders)
    refuse_unusable(errors, "feature files")
    widths = {name: _common_width([video.streams[i] for video in videos]) for i, name in enumerate(folders)}
    return videos, missing, widths


def refuse_unusable(errors: Sequence[str], files: str) -> None:
    """Raises UsageError with the first few `errors`, one sentence for each unusable file. Does nothing without errors."""
    if errors:
        listed = first_few(errors, between=" ", last=" And ")
        raise UsageError(f"{len(errors)} {files} cannot be used: {listed}")


def _frame_features(path: Path, grid: Grid) -> StoredArray:
    """The features [t c] of a file. Raises VideoError for any other shape, and for a length that does not fit `grid`."""
    (array,) = read_headers(path).values()
    if len(array.shape) != 2 or 0 in array.shape:
        raise VideoError(f"{path}: shape {array.shape}, expected (clips, channels).")
    length = array.shape[0]
    if abs(length - grid.clips) > length_tolerance(grid.clips):
        raise VideoError(
            f"{path}: {length} features for {grid.duration_s:g} s are {length / grid.duration_s:.3g} a second, expected "
            f"{grid.clips} ({grid.fps:g} a second; set another rate with --fps)."
        )
    return array


def _refuse_missing(missing: Mapping[str, str], total: int, folders: Mapping[str, Path]) -> None:
    videos = first_few(f"{vid} ({name})" for vid, name in missing.items())
    contents = "; ".join(f"{name}: {folder}, {_describe_contents(folder)}" for name, folder in folders.items())
    next_step = "Check the folders" if len(missing) == total else "Download them, or pass --allow-missing"
    raise UsageError(
        f"{len(missing)} of {total} annotated videos have no features: {videos}. {next_step} ({contents})."
    )


def _describe_contents(folder: Path) -> str:
    names = [path.name for path in folder.iterdir()]
    return f"with {len(names)} files such as {min(names)}" if names else "which is empty"


def _common_width(arrays: Sequence[StoredArray]) -> int:
    """The width of these arrays [t c]. Raises UsageError that names the arrays whose width is not the most common one."""
    ((common, _),) = Counter(array.shape[1] for array in arrays).most_common(1)
    errors = [
        f"{array.path}: {array.shape[1]} channels, the others have {common}."
        for array in arrays
        if array.shape[1] != common
    ]
    refuse_unusable(errors, "feature files")
    return common
