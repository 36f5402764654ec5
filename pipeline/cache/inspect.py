"""What is inside a cache, for a person: how its features were made, what there is, and one video looked at closely."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache.index import FORMAT, VideoRow
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.formats.strict_json import read_json

_CLIPS_AT_ONCE = 64
_BINS = 24


@dataclass(frozen=True)
class Split:
    """Rows, different queries and videos of a split; `without_features` are those videos that have none here."""

    rows: int
    queries: int
    videos: int
    without_features: int


@dataclass(frozen=True)
class TokenStatistics:
    """Of all values of a video: are they finite, and how long are the tokens (mean L2 norm)?

    `frame_norm` of each clip's frame token, `patch_norm` of its patches (None where there are none); `histogram` counts the
    patches' norms (the frame tokens' without patches) in equal bins from `least` to `most`.
    """

    finite: bool
    frame_norm: float
    patch_norm: float | None
    least: float
    most: float
    histogram: tuple[int, ...]


def inspect_cache(path: Path) -> Inspection:
    """What the cache at `path` holds. Raises CacheError when its index is damaged; parts are only measured, not read."""
    reader = CacheReader(path)
    ok = [row for row in reader.rows if row.ok]
    made, there, size = _made(reader), _there(reader), _sizes(reader)
    splits = {split: _split(reader, split) for split in reader.splits}
    words = reader.word_table().counts()
    facts = {
        "cache": str(path),
        "format": FORMAT,
        "packed": reader.table is not None,
        "made": made,
        "stored": _stored(reader),
        "sizes": size,
        "videos": {
            "with_features": len(ok),
            "without": dict(Counter(row.status for row in reader.rows if not row.ok)),
            "hours": sum(row.duration_s for row in ok) / 3600,
            "clips": sum(row.clips for row in ok),
            "repaired_frames": sum(row.repaired for row in ok),
            "decoders": dict(Counter(row.decoder for row in ok)),
        },
        "there": there,
        "splits": {name: asdict(split) for name, split in splits.items()},
        "words": words,
        "settings": reader.settings,
        "fingerprint": reader.fingerprint,
        "digest": reader.digest,
    }
    return Inspection(facts, tuple(cache_sections(facts)))


def inspect_video(path: Path, name: str) -> Inspection:
    """One video of the cache at `path`, its features read in full. Raises CacheError when it is not there or damaged."""
    reader = CacheReader(path)
    row, times_s, centres_s = reader.row(name), reader.times_s(name), reader.grid(name).centres_s()
    gaps_s, off_s = np.diff(times_s), np.abs(times_s - centres_s)
    times = {
        "first_s": float(times_s[0]),
        "last_s": float(times_s[-1]),
        "largest_gap_s": float(gaps_s.max(initial=0.0)),
        "repeated": int((gaps_s == 0).sum()),
        "mean_distance_s": float(off_s.mean()),
        "largest_distance_s": float(off_s.max()),
    }
    arrays = {
        label: {
            "dtype": str(found.dtype),
            "shape": list(found.shape),
            "file": str(found.path),
            "offset": found.offset,
            "bytes": found.size,
        }
        for label, found in reader.arrays(name).items()
    }
    facts = {
        "cache": str(path),
        "row": asdict(row),
        "times": times,
        "tokens": asdict(statistics(reader.tokens(name))),
        "arrays": arrays,
    }
    return Inspection(facts, tuple(video_sections(facts)))


def statistics(tokens: np.ndarray) -> TokenStatistics:
    """Of tokens [t ... 1+p c], a few clips at a time, so that memory does not grow with the video."""
    finite, frame, patches = True, np.zeros(0, np.float32), []
    for start in range(0, len(tokens), _CLIPS_AT_ONCE):
        some = np.asarray(tokens[start : start + _CLIPS_AT_ONCE], dtype=np.float32)
        finite = finite and bool(np.isfinite(some).all())
        norms = np.linalg.norm(some, axis=-1)
        frame = np.concatenate([frame, norms[..., 0].ravel()])
        patches.append(norms[..., 1:].ravel())
    patch_norms = np.concatenate(patches)
    shown = patch_norms if len(patch_norms) else frame
    shown = shown[np.isfinite(shown)]
    counts, edges = np.histogram(shown, bins=_BINS) if len(shown) else (np.zeros(_BINS, int), np.zeros(_BINS + 1))
    return TokenStatistics(
        finite=finite,
        frame_norm=float(frame.mean()),
        patch_norm=float(patch_norms.mean()) if len(patch_norms) else None,
        least=float(edges[0]),
        most=float(edges[-1]),
        histogram=tuple(map(int, counts)),
    )


def _made(reader: CacheReader) -> dict[str, Any]:
    tokens, channels = reader.contents.token_shape
    return {
        "model": reader.fingerprint.get("model") or reader.source.get("model", ""),
        "weights": reader.source.get("weights", ""),
        "fps": reader.fps,
        "tokens_per_clip": tokens,
        "patch_grid": list(reader.patch_grid),
        "channels": channels,
        "joint_channels": reader.joint.projection.shape[1],
        "joint_known": reader.joint.known,
        "logit_scale": reader.joint.logit_scale,
    }


def _stored(reader: CacheReader) -> dict[str, Any]:
    """Type and shape of each array of the first video with features; nothing where there is none, or it is damaged."""
    try:
        first = reader.arrays(reader.video_ids[0]) if reader.video_ids else {}
    except CacheError:  # costl cache verify says so
        return {}
    return {name: {"dtype": str(found.dtype), "shape": list(found.shape)} for name, found in first.items()}


def _there(reader: CacheReader) -> dict[str, Any]:
    """Whether what the cache was made from is still where it was; None where nobody can know."""
    place = reader.source.get("weights", "").rpartition("=")[2].removeprefix("local-dir:")
    # Not Path's own, which stumbles over names that no file system takes.
    weights = os.path.exists(place) if place and Path(place).is_absolute() else None
    folder = reader.videos
    stems: set[str] = set()
    if folder is not None and os.path.isdir(folder):
        with contextlib.suppress(PermissionError):
            stems = {file.stem for file in folder.iterdir()}
    return {
        "weights": weights,
        "videos_folder": str(folder) if folder else None,
        "videos": sum(row.name in stems for row in reader.rows if row.ok) if folder else None,
    }


def _sizes(reader: CacheReader) -> dict[str, int]:
    """Bytes of the index (in a packed file of all that is neither a part nor the words), of the parts, of the words."""
    index = reader.path.stat().st_size
    if reader.table:
        *parts, words = (entry.size for entry in reader.table.entries())
        return {"index": max(0, index - sum(parts) - words), "parts": sum(parts), "words": words}
    files = [reader.part_path(name) for name in reader.video_ids]
    return {"index": index, "parts": sum(map(_size, files)), "words": _size(reader.words_path)}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be read ({error.strerror}). costl cache verify names all that are missing."
        ) from error


def _split(reader: CacheReader, split: str) -> Split:
    known = set(reader.video_ids)
    try:
        # Not splitlines(), which also cuts at U+2028 and its kin inside a text.
        rows = [read_json(line) for line in reader.annotations(split).split("\n") if line.strip()]
        videos = {str(row["vid"]) for row in rows}
        return Split(len(rows), len({str(row["query"]) for row in rows}), len(videos), len(videos - known))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{reader.path}: its annotations of {split} are damaged ({error}). Put them right and run costl extract."
        ) from error


_BARS = " ▁▂▃▄▅▆▇█"
_UNITS = (("GB", 9), ("MB", 6), ("kB", 3))

Section = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Inspection:
    """`facts` as JSON holds them, and the same as text in `sections`."""

    facts: Mapping[str, Any]
    sections: tuple[Section, ...]
    exit_code = 0

    def lines(self) -> list[str]:
        """For the terminal: a heading for each section, a line for each fact."""
        width = max(len(name) for _, lines in self.sections for name, _ in lines) + 2
        text: list[str] = []
        for heading, lines in self.sections:
            text += ["", heading] if text else [heading]
            text += [f"  {name:{width}}{value}".rstrip() for name, value in lines]
        return text

    def data(self) -> dict[str, Any]:
        """The facts."""
        return dict(self.facts)


def cache_sections(facts: Mapping[str, Any]) -> Iterator[Section]:
    """The facts of a whole cache in words."""
    made, videos, sizes, there, words = (facts[name] for name in ("made", "videos", "sizes", "there", "words"))
    form = "one packed file" if facts["packed"] else "an index with its parts beside it"
    yield (
        facts["cache"],
        (
            ("format", f"{facts['format']}, {form}"),
            ("size", ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())),
        ),
    )
    rows, columns = made["patch_grid"]
    patches = f"the frame's and {rows} x {columns} patches" if rows else "the frame's alone"
    space = f"{made['joint_channels']} channels, temperature {made['logit_scale']:.4g}"
    stored = ", ".join(f"{name} {one['dtype']} {one['shape']}" for name, one in facts["stored"].items())
    yield (
        "Features",
        (
            ("model", made["model"] or "not known"),
            ("weights", f"{made['weights'] or 'not known'}{_place_text(there['weights'])}"),
            ("sampling", f"{made['fps']:g} clips a second, {1 / made['fps']:g} s each"),
            ("tokens", f"{made['tokens_per_clip']} a clip ({patches}), {made['channels']} channels"),
            ("stored", stored or "nothing that can be read"),
            ("joint space", space if made["joint_known"] else "not known"),
        ),
    )
    yield "Videos", tuple(_video_lines(videos, there))
    yield (
        "Annotations",
        tuple(
            (name, f"{one['rows']} rows, {one['queries']} queries, {one['videos']} videos{_lost(one)}")
            for name, one in facts["splits"].items()
        )
        or (("splits", "none"),),
    )
    cut = f", {words['cut']} longer than the model reads" if words["cut"] else ""
    yield (
        "Words",
        (("queries", f"{words['queries']} of {words['tokens']} tokens, {words['channels']} channels{cut}"),),
    )
    if facts["settings"]:
        yield "Settings of training that came with the videos", (("", json.dumps(facts["settings"])),)
    yield (
        f"Fingerprint {facts['digest']}",
        tuple(
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in sorted(facts["fingerprint"].items())
        ),
    )


def video_sections(facts: Mapping[str, Any]) -> Iterator[Section]:
    """The facts of one video in words."""
    row, times, tokens = facts["row"], facts["times"], facts["tokens"]
    yield (
        f"{row['name']} in {facts['cache']}",
        tuple((name, f"{value}") for name, value in row.items() if name not in ("name", "reason")),
    )
    yield (
        "Times",
        (
            ("first, last", f"{times['first_s']:.3f} s, {times['last_s']:.3f} s of {row['duration_s']:.3f} s"),
            ("largest gap", f"{times['largest_gap_s']:.3f} s, {times['repeated']} frames shown twice"),
            (
                "from clip centres",
                f"{times['mean_distance_s']:.3f} s on average, {times['largest_distance_s']:.3f} s at most",
            ),
        ),
    )
    patch = "no patches" if tokens["patch_norm"] is None else f"{tokens['patch_norm']:.3f} of a patch"
    what = "frame" if tokens["patch_norm"] is None else "patch"
    yield (
        "Tokens",
        (
            ("finite", "all" if tokens["finite"] else "NOT ALL: extract this video again"),
            ("mean norm", f"{tokens['frame_norm']:.3f} of the frame's token, {patch}"),
            (f"{what} norms", f"{tokens['least']:.2f} [{bars(tuple(tokens['histogram']))}] {tokens['most']:.2f}"),
        ),
    )
    yield (
        "Bytes",
        tuple(
            (label, f"{one['dtype']} {one['shape']}: {one['bytes']} bytes at {one['offset']} of {one['file']}")
            for label, one in facts["arrays"].items()
        ),
    )


def bars(counts: tuple[int, ...]) -> str:
    """A small histogram in one line of text; a bin that holds anything is seen."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def size_text(size_bytes: int) -> str:
    """Bytes for a person."""
    for unit, power in _UNITS:
        if size_bytes >= 10**power:
            return f"{size_bytes / 10**power:.1f} {unit}"
    return f"{size_bytes} bytes"


def _video_lines(videos: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "with features",
        f"{videos['with_features']}, {videos['hours']:.2f} hours, {videos['clips']} clips",
    )
    if videos["without"]:
        yield "without", ", ".join(f"{count} {status}" for status, count in sorted(videos["without"].items()))
    decoders = ", ".join(f"{name or 'not known'} ({count})" for name, count in sorted(videos["decoders"].items()))
    yield "decoded by", f"{decoders or 'nothing'}, {videos['repaired_frames']} frames repaired"
    if there["videos_folder"] is not None:
        yield "files", f"{there['videos_folder']}: {there['videos']} of {videos['with_features']} are there"


def _place_text(there: bool | None) -> str:
    return {None: "", True: " (there)", False: " (no longer there)"}[there]


def _lost(split: Mapping[str, int]) -> str:
    return f", {split['without_features']} of them without features" if split["without_features"] else ""


SHOWN = 20
_NAMED = 3


@dataclass(frozen=True)
class Status:
    """The rows of a cache; `everything` prints all of them; `last_run` is a sentence about the last run, or empty."""

    rows: Sequence[VideoRow]
    everything: bool = False
    last_run: str = ""
    exit_code = 0

    def lines(self) -> list[str]:
        """The videos without features and why, then the summary."""
        return status_table(self.rows, everything=self.everything).split("\n")

    def data(self) -> list[dict[str, Any]]:
        """Every row."""
        return [row.data() for row in self.rows]

    def messages(self) -> list[str]:
        """The last run."""
        return [self.last_run] if self.last_run else []


def status_table(rows: Sequence[VideoRow], *, everything: bool = False) -> str:
    """A line for each of the first videos without features (with `everything`, for every video), then the summary."""
    lost = [row for row in rows if not row.ok]
    told = rows if everything else lost[:SHOWN]
    width = max((len(row.name) for row in told), default=0)
    more = [] if everything or len(lost) <= SHOWN else [f"... and {len(lost) - SHOWN} more; --all lists every video."]
    alike = by_reason(lost)
    groups = alike if len(alike) < len(lost) else []  # where every reason is another one, all has been said
    return "\n".join([*(_line(row, width) for row in told), *more, *groups, *_summary(rows, lost)])


def by_reason(lost: Sequence[VideoRow]) -> list[str]:
    """A line for each reason, the most frequent first: how many videos, their status, why, and the first few names.

    Reasons are the same when they differ in a file's name or in numbers alone.
    """
    groups: dict[tuple[str, str], list[VideoRow]] = {}
    for row in lost:
        groups.setdefault((row.status, re.sub(r"\d+(\.\d+)?", "#", _reason(row))), []).append(row)
    return [_group(rows) for rows in sorted(groups.values(), key=len, reverse=True)]


def failures(cache: Path, failed: Sequence[VideoRow]) -> list[str]:
    """A message for each of the first videos without features, and how many more there are."""
    messages = [f"{row.status}: {row.name}: {row.reason}" for row in failed[:SHOWN]]
    if len(failed) > SHOWN:
        messages.append(f"... and {len(failed) - SHOWN} more (costl cache status {cache}).")
    return messages


def _group(rows: Sequence[VideoRow]) -> str:
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{len(rows):5} {rows[0].status}: {_reason(rows[0])} ({', '.join(row.name for row in rows[:_NAMED])}{more})"


def _reason(row: VideoRow) -> str:
    """Without the name of the file that it may begin with."""
    return re.sub(rf"^{re.escape(row.name)}(\.\w+)?: ", "", row.reason)


def _line(row: VideoRow, width: int) -> str:
    return f"{row.name:{width}}  {row.status:8}  {row.reason or f'{row.clips} clips, {row.duration_s:.1f} s'}"


def _summary(rows: Sequence[VideoRow], lost: Sequence[VideoRow]) -> list[str]:
    there = [row for row in rows if row.ok]
    hours, clips = sum(row.duration_s for row in there) / 3600, sum(row.clips for row in there)
    counts = Counter(row.status for row in lost).most_common()
    without = [f"Without: {', '.join(f'{count} {status}' for status, count in counts)}."] if lost else []
    return [f"{len(there)} of {len(rows)} videos have features. {clips} clips, {hours:.1f} hours.", *without]
