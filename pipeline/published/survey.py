"""Looks at every published file before anything is written: what is missing, damaged, of another width or length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError, VideoError, some
from costl.pipeline.grid import Grid
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.published.arrays import Array, locate, look_at

_SHOWN = 5
_FITS = 0.9  # of the videos, so that a rate is worth suggesting
_RATES = [*(1.0 / n for n in range(60, 1, -1)), *map(float, range(1, 61))]


@dataclass(frozen=True)
class Source:
    """The published features of one video: an array [t c] of every stream, about as many rows as it has clips."""

    name: str
    grid: Grid
    streams: tuple[Array, ...]

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
    """The `videos` to import, the names of those that are `missing` with the streams they lack, every stream's width."""

    videos: tuple[Source, ...]
    missing: Mapping[str, str]
    widths: Mapping[str, int]


def tolerance(clips: int) -> int:
    """By how many clips a stream may be off: two, in a short video a tenth of it, and always one."""
    return max(1, min(2, clips // 10))


def durations_in(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of every annotated video, in the order of `rows`. Raises UsageError where rows disagree about one."""
    found: dict[str, float] = {}
    apart: dict[str, str] = {}
    for row in rows:
        seconds = float(row["duration"])
        if found.setdefault(row["vid"], seconds) != seconds:
            apart.setdefault(row["vid"], f"{row['vid']} lasts {found[row['vid']]:g} s and {seconds:g} s")
    if apart:
        raise UsageError(f"The annotations disagree about {len(apart)} videos: {some(apart.values())}. Correct them.")
    return found


def survey(
    durations: Mapping[str, float], streams: Mapping[str, Path], *, fps: float, allow_missing: bool, tell: Tell
) -> Survey:
    """Reads the header of every file: one a video in the folder of each stream.

    Raises UsageError, naming the first few and how many there are, for files that are missing (unless allowed), that
    cannot be used, that are of another width than the rest, and for streams that do not fit `fps`.
    """
    for name, folder in streams.items():
        if not folder.is_dir():
            raise UsageError(f"{name}: {folder} is no folder. Pass --features {name}=DIR with one file a video.")
    found: dict[str, dict[str, Array]] = {}
    missing: dict[str, str] = {}
    bad: list[str] = []
    for number, vid in enumerate(durations, start=1):
        paths = {name: locate(folder, vid) for name, folder in streams.items()}
        lacks = [name for name, path in paths.items() if path is None]
        if lacks:
            missing[vid] = " and ".join(lacks)
        else:
            try:
                found[vid] = {name: frames_of(path) for name, path in paths.items() if path}
            except VideoError as error:
                bad.append(str(error))
        tell(Progress("look", number, len(durations), vid))
    _refuse_missing(missing, len(durations), streams, allow_missing=allow_missing)
    widths = {name: _width([arrays[name] for arrays in found.values()], bad) for name in streams}
    refuse(bad, "files of features")
    _refuse_lengths(found, durations, list(streams), fps)
    videos = (Source(vid, Grid(fps, durations[vid]), tuple(arrays.values())) for vid, arrays in found.items())
    return Survey(tuple(videos), missing, widths)


def frames_of(path: Path) -> Array:
    """The features [t c] of a file. Raises VideoError for what is none."""
    (array,) = look_at(path).values()
    if len(array.shape) != 2 or 0 in array.shape:
        raise VideoError(f"{path}: shape {array.shape}, expected (clips, channels).")
    return array


def refuse(bad: Sequence[str], what: str) -> None:
    """Raises UsageError that lists the first of these sentences, unless there are none."""
    if bad:
        more = f" And {len(bad) - _SHOWN} more." if len(bad) > _SHOWN else ""
        raise UsageError(f"{len(bad)} of the {what} cannot be used: {' '.join(bad[:_SHOWN])}{more}")


def _refuse_missing(
    missing: Mapping[str, str], total: int, streams: Mapping[str, Path], *, allow_missing: bool
) -> None:
    if not missing or (allow_missing and len(missing) < total):
        return
    lacks = some(f"{vid} ({name})" for vid, name in missing.items())
    folders = "; ".join(f"{name}: {folder}, {_census(folder)}" for name, folder in streams.items())
    way_out = "Check the folders" if len(missing) == total else "Fetch them, or pass --allow-missing"
    raise UsageError(f"{len(missing)} of {total} annotated videos have no features: {lacks}. {way_out} ({folders}).")


def _census(folder: Path) -> str:
    names = [path.name for path in folder.iterdir()]
    return f"{len(names)} files such as {min(names)}" if names else "which is empty"


def _width(arrays: Sequence[Array], bad: list[str]) -> int:
    """The width of most; the others are sentences in `bad`."""
    counts = Counter(array.shape[1] for array in arrays)
    usual = max(counts, key=lambda width: counts[width], default=0)
    bad += [f"{a.path}: {a.shape[1]} channels, the others have {usual}." for a in arrays if a.shape[1] != usual]
    return usual


def _refuse_lengths(
    found: Mapping[str, Mapping[str, Array]], durations: Mapping[str, float], streams: Sequence[str], fps: float
) -> None:
    """A rate that most videos of a stream disagree with is wrong; otherwise the videos are."""
    lengths = {name: {vid: arrays[name].shape[0] for vid, arrays in found.items()} for name in streams}
    wrong = {
        name: [vid for vid, n in each.items() if not _fits(n, durations[vid], fps)] for name, each in lengths.items()
    }
    if not any(wrong.values()):
        return
    others = {name: _rate_of(lengths[name], durations) for name in streams if 2 * len(wrong[name]) > len(found)}
    first = ", ".join(
        f"{vid} ({name}: {lengths[name][vid]} for {durations[vid]:g} s, expected {Grid(fps, durations[vid]).clips})"
        for name, vid in [(name, vid) for name in streams for vid in wrong[name]][:_SHOWN]
    )
    count = len({vid for vids in wrong.values() for vid in vids})
    raise UsageError(
        f"At {fps:g} clips a second {count} of {len(found)} videos have another number of features than their annotated "
        f"duration asks for: {first}. {_advice(others, streams, fps)}"
    )


def _advice(others: Mapping[str, float | None], streams: Sequence[str], fps: float) -> str:
    rates = {others.get(name, fps) for name in streams}
    if len(rates) > 1 and None not in rates:
        told = ", ".join(f"{name} {others.get(name, fps) or 0:.6g}" for name in streams)
        return f"The streams look like different rates ({told} a second): import one of them, or resample the other."
    if others and None not in rates:
        (rate,) = rates
        return f"The features look like {rate:.6g} a second: pass --fps {rate:.6g}."
    return "Check that features and annotations are of the same videos and cuts."


def _fits(length: int, duration_s: float, fps: float) -> bool:
    clips = Grid(fps, duration_s).clips
    return abs(length - clips) <= tolerance(clips)


def _rate_of(lengths: Mapping[str, int], durations: Mapping[str, float]) -> float | None:
    """The rate that nearly all of these lengths fit, a plain one if possible; None where no rate does."""
    rate = sum(lengths.values()) / sum(durations[vid] for vid in lengths)
    plain = min(_RATES, key=lambda candidate: max(candidate / rate, rate / candidate))
    for candidate in (plain, float(f"{rate:.4g}")):
        if sum(_fits(n, durations[vid], candidate) for vid, n in lengths.items()) >= _FITS * len(lengths):
            return candidate
    return None
