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

_SHOWN = 5
_MIN_FITTING = 0.9  # a rate is suggested if it fits at least this share of the videos
_COMMON_RATES = [*(1.0 / n for n in range(60, 1, -1)), *map(float, range(1, 61))]


@dataclass(frozen=True)
class VideoFeatures:
    """The published features of one video: an array [t c] of every stream, about as many rows as the video has clips."""

    name: str
    grid: Grid
    streams: tuple[StoredArray, ...]

    @property
    def cut(self) -> bool:
        """Whether a stream has more rows than there are clips."""
        return any(array.shape[0] > self.grid.clips for array in self.streams)

    @property
    def padded(self) -> bool:
        """Whether a stream has fewer rows than there are clips."""
        return any(array.shape[0] < self.grid.clips for array in self.streams)


@dataclass(frozen=True)
class Survey:
    """The `videos` to import, the names of `missing` videos with the streams they lack, and the width of every stream."""

    videos: tuple[VideoFeatures, ...]
    missing: Mapping[str, str]
    widths: Mapping[str, int]


def length_tolerance(clips: int) -> int:
    """By how many clips the length of a stream may differ: a tenth of the video, at least one and at most two."""
    return max(1, min(2, clips // 10))


def annotated_durations(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of every annotated video, in the order of `rows`. Raises UsageError if rows disagree about a duration."""
    durations: dict[str, float] = {}
    conflicts: dict[str, str] = {}
    for row in rows:
        vid = row["vid"]
        seconds = float(row["duration"])
        first = durations.setdefault(vid, seconds)
        if first != seconds:
            conflicts.setdefault(vid, f"{vid} lasts {first:g} s and {seconds:g} s")
    if conflicts:
        listed = first_few(conflicts.values())
        raise UsageError(f"The annotations disagree about {len(conflicts)} videos: {listed}. Correct them.")
    return durations


def survey_features(
    durations: Mapping[str, float],
    folders: Mapping[str, Path],
    *,
    fps: float,
    allow_missing: bool,
    report_progress: ProgressCallback,
) -> Survey:
    """Reads the header of every file: one for each video in each stream's folder.

    Raises UsageError, which names the first few files and counts all, for files that are missing (unless
    `allow_missing`), that cannot be used, or whose width differs from the others, and for lengths that do not fit `fps`.
    """
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UsageError(
                f"{name}: {folder} is not a folder. Pass --features {name}=DIR with one file for each video."
            )
    arrays: dict[str, dict[str, StoredArray]] = {}
    missing: dict[str, str] = {}
    errors: list[str] = []
    for number, vid in enumerate(durations, start=1):
        paths = {name: find_file(folder, vid) for name, folder in folders.items()}
        missing_streams = [name for name, path in paths.items() if path is None]
        if missing_streams:
            missing[vid] = " and ".join(missing_streams)
        else:
            try:
                arrays[vid] = {name: _frame_features(path) for name, path in paths.items() if path}
            except VideoError as error:
                errors.append(str(error))
        report_progress(Progress("headers", number, len(durations), vid))
    _refuse_missing(missing, len(durations), folders, allow_missing=allow_missing)
    widths = {name: _check_width([streams[name] for streams in arrays.values()], errors) for name in folders}
    refuse_unusable(errors, "feature files")
    _refuse_wrong_lengths(arrays, durations, list(folders), fps)
    videos = [VideoFeatures(vid, Grid(fps, durations[vid]), tuple(streams.values())) for vid, streams in arrays.items()]
    return Survey(tuple(videos), missing, widths)


def refuse_unusable(errors: Sequence[str], files: str) -> None:
    """Raises UsageError with the first few `errors`, one sentence for each unusable file. Does nothing without errors."""
    if errors:
        more = f" And {len(errors) - _SHOWN} more." if len(errors) > _SHOWN else ""
        raise UsageError(f"{len(errors)} {files} cannot be used: {' '.join(errors[:_SHOWN])}{more}")


def _frame_features(path: Path) -> StoredArray:
    """The features [t c] of a file. Raises VideoError for any other shape."""
    (array,) = read_headers(path).values()
    if len(array.shape) != 2 or 0 in array.shape:
        raise VideoError(f"{path}: shape {array.shape}, expected (clips, channels).")
    return array


def _refuse_missing(
    missing: Mapping[str, str], total: int, folders: Mapping[str, Path], *, allow_missing: bool
) -> None:
    if not missing or (allow_missing and len(missing) < total):
        return
    videos = first_few(f"{vid} ({name})" for vid, name in missing.items())
    contents = "; ".join(f"{name}: {folder}, {_describe_contents(folder)}" for name, folder in folders.items())
    next_step = "Check the folders" if len(missing) == total else "Download them, or pass --allow-missing"
    raise UsageError(
        f"{len(missing)} of {total} annotated videos have no features: {videos}. {next_step} ({contents})."
    )


def _describe_contents(folder: Path) -> str:
    names = [path.name for path in folder.iterdir()]
    return f"{len(names)} files such as {min(names)}" if names else "which is empty"


def _check_width(arrays: Sequence[StoredArray], errors: list[str]) -> int:
    """Returns the most common width, and adds a sentence to `errors` for each array of another width."""
    counts = Counter(array.shape[1] for array in arrays)
    usual = max(counts, key=lambda width: counts[width], default=0)
    for array in arrays:
        if array.shape[1] != usual:
            errors.append(f"{array.path}: {array.shape[1]} channels, the others have {usual}.")
    return usual


def _refuse_wrong_lengths(
    arrays: Mapping[str, Mapping[str, StoredArray]], durations: Mapping[str, float], streams: Sequence[str], fps: float
) -> None:
    """Raises UsageError if a length does not fit `fps`. If most videos of a stream do not fit, it suggests another rate."""
    lengths = {name: {vid: of_video[name].shape[0] for vid, of_video in arrays.items()} for name in streams}
    wrong = {name: _videos_that_do_not_fit(lengths[name], durations, fps) for name in streams}
    if not any(wrong.values()):
        return
    estimated_rates = {
        name: _estimate_rate(lengths[name], durations) for name in streams if 2 * len(wrong[name]) > len(arrays)
    }
    first = [(name, vid) for name in streams for vid in wrong[name]][:_SHOWN]
    listed = ", ".join(
        f"{vid} ({name}: {lengths[name][vid]} for {durations[vid]:g} s, expected {Grid(fps, durations[vid]).clips})"
        for name, vid in first
    )
    count = len({vid for vids in wrong.values() for vid in vids})
    raise UsageError(
        f"At {fps:g} clips a second, the number of features of {count} of {len(arrays)} videos does not fit their "
        f"annotated duration: {listed}. {_advice(estimated_rates, streams, fps)}"
    )


def _videos_that_do_not_fit(lengths: Mapping[str, int], durations: Mapping[str, float], fps: float) -> list[str]:
    return [vid for vid, length in lengths.items() if not _fits(length, durations[vid], fps)]


def _fits(length: int, duration_s: float, fps: float) -> bool:
    clips = Grid(fps, duration_s).clips
    return abs(length - clips) <= length_tolerance(clips)


def _estimate_rate(lengths: Mapping[str, int], durations: Mapping[str, float]) -> float | None:
    """A rate that nearly all of these lengths fit, preferably a common one. None if no rate does."""
    mean_rate = sum(lengths.values()) / sum(durations[vid] for vid in lengths)
    common = min(_COMMON_RATES, key=lambda candidate: max(candidate / mean_rate, mean_rate / candidate))
    for candidate in (common, float(f"{mean_rate:.4g}")):
        fitting = sum(_fits(length, durations[vid], candidate) for vid, length in lengths.items())
        if fitting >= _MIN_FITTING * len(lengths):
            return candidate
    return None


def _advice(estimated_rates: Mapping[str, float | None], streams: Sequence[str], fps: float) -> str:
    rates = {estimated_rates.get(name, fps) for name in streams}
    if len(rates) > 1 and None not in rates:
        listed = ", ".join(f"{name} {estimated_rates.get(name, fps) or 0:.6g}" for name in streams)
        return (
            f"The streams seem to have different rates ({listed} a second): import one of them, or resample the other."
        )
    if estimated_rates and None not in rates:
        (rate,) = rates
        return f"The features seem to have a rate of {rate:.6g} a second: pass --fps {rate:.6g}."
    return "Check that features and annotations are of the same videos and cuts."
