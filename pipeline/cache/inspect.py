"""What a cache holds, for a person: how its features were made, one video in detail, and the status of every video.

`inspect_cache` and `inspect_video` collect facts (`costl cache inspect`), `Inspection` prints them, and `Status` prints the
rows (`costl cache status`).
"""

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

MAX_LISTED = 20  # videos without features, one a line
_MAX_NAMED = 3  # videos with the same reason, in one line
_CLIPS_AT_ONCE = 64
_BINS = 24
_BARS = " ▁▂▃▄▅▆▇█"
_UNITS = (("GB", 9), ("MB", 6), ("kB", 3))

Section = tuple[str, tuple[tuple[str, str], ...]]  # a heading, and (name, value) of each line


@dataclass(frozen=True)
class Inspection:
    """`facts` for JSON, and the same as text in `sections`."""

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


@dataclass(frozen=True)
class SplitCounts:
    """Rows, different queries and videos of a split; `without_features` counts its videos without features here."""

    rows: int
    queries: int
    videos: int
    without_features: int


@dataclass(frozen=True)
class TokenStatistics:
    """Whether all values of a video are `finite`, and the mean L2 norm of its tokens.

    `frame_norm` is that of the frame tokens, `patch_norm` that of the patches (None without patches). `histogram` counts the
    norms of the patches (of the frame tokens where there are no patches) in equal bins from `least` to `most`.
    """

    finite: bool
    frame_norm: float
    patch_norm: float | None
    least: float
    most: float
    histogram: tuple[int, ...]


def inspect_cache(path: Path) -> Inspection:
    """The facts about the cache at `path`; its parts are measured, not read.

    Raises CacheError when its index or words are damaged, UsageError when its annotations are.
    """
    reader = CacheReader(path)
    with_features = [row for row in reader.rows if row.ok]
    facts = {
        "cache": str(path),
        "format": FORMAT,
        "packed": reader.pack_table is not None,
        "made": _model_facts(reader),
        "stored": _array_facts(reader),
        "sizes": _sizes(reader),
        "videos": {
            "with_features": len(with_features),
            "without": dict(Counter(row.status for row in reader.rows if not row.ok)),
            "hours": sum(row.duration_s for row in with_features) / 3600,
            "clips": sum(row.clips for row in with_features),
            "repaired_frames": sum(row.repaired for row in with_features),
            "decoders": dict(Counter(row.decoder for row in with_features)),
        },
        "there": _existing_sources(reader),
        "splits": {split: asdict(_split_counts(reader, split)) for split in reader.splits},
        "words": reader.word_table().counts(),
        "settings": reader.settings,
        "fingerprint": reader.fingerprint,
        "digest": reader.digest,
    }
    return Inspection(facts, tuple(_cache_sections(facts)))


def _model_facts(reader: CacheReader) -> dict[str, Any]:
    tokens, channels = reader.contents.token_shape
    return {
        "model": reader.fingerprint.get("model") or reader.source.get("model", ""),
        "weights": reader.source.get("weights", ""),
        "fps": reader.fps,
        "tokens_per_clip": tokens,
        "patch_grid": list(reader.patch_grid),
        "channels": channels,
        "joint_channels": reader.joint.projection.shape[1],
        "joint_known": reader.joint.is_known,
        "logit_scale": reader.joint.logit_scale,
    }


def _array_facts(reader: CacheReader) -> dict[str, Any]:
    """Type and shape of each array of the first video with features; empty if there is none, or if it is damaged."""
    try:
        arrays = reader.array_locations(reader.video_ids[0]) if reader.video_ids else {}
    except CacheError:  # `costl cache verify` reports it
        return {}
    return {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in arrays.items()}


def _sizes(reader: CacheReader) -> dict[str, int]:
    """Bytes of the index (in a packed file of everything but parts and words), of the parts, and of the words."""
    index_bytes = reader.path.stat().st_size
    if reader.pack_table:
        *parts, words = (entry.size for entry in reader.pack_table.entries())
        return {"index": max(0, index_bytes - sum(parts) - words), "parts": sum(parts), "words": words}
    parts_bytes = sum(_file_size(reader.part_path(name)) for name in reader.video_ids)
    return {"index": index_bytes, "parts": parts_bytes, "words": _file_size(reader.words_path)}


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be read ({error.strerror}). costl cache verify names all that are missing."
        ) from error


def _existing_sources(reader: CacheReader) -> dict[str, Any]:
    """Whether the weights and the videos still exist at their stored paths; None where no path is stored."""
    path = reader.source.get("weights", "").rpartition("=")[2].removeprefix("local-dir:")
    # os.path.exists, since Path.exists raises for names that no file system allows.
    weights_exist = os.path.exists(path) if path and Path(path).is_absolute() else None
    folder = reader.videos
    stems: set[str] = set()
    if folder is not None and os.path.isdir(folder):
        with contextlib.suppress(PermissionError):
            stems = {file.stem for file in folder.iterdir()}
    return {
        "weights": weights_exist,
        "videos_folder": str(folder) if folder else None,
        "videos": sum(row.name in stems for row in reader.rows if row.ok) if folder else None,
    }


def _split_counts(reader: CacheReader, split: str) -> SplitCounts:
    try:
        # Not splitlines(), which also splits at U+2028 and similar characters inside a text.
        rows = [read_json(line) for line in reader.annotations(split).split("\n") if line.strip()]
        videos = {str(row["vid"]) for row in rows}
        queries = {str(row["query"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{reader.path}: its annotations of {split} are damaged ({error}). Put them right and run costl extract."
        ) from error
    return SplitCounts(len(rows), len(queries), len(videos), len(videos.difference(reader.video_ids)))


def inspect_video(path: Path, name: str) -> Inspection:
    """The facts about one video of the cache at `path`, its features read in full.

    Raises CacheError when it has no features or is damaged.
    """
    reader = CacheReader(path)
    row = reader.row(name)
    times_s = reader.times_s(name)
    gaps_s = np.diff(times_s)
    distances_s = np.abs(times_s - reader.grid(name).centres_s())
    facts = {
        "cache": str(path),
        "row": asdict(row),
        "times": {
            "first_s": float(times_s[0]),
            "last_s": float(times_s[-1]),
            "largest_gap_s": float(gaps_s.max(initial=0.0)),
            "repeated": int((gaps_s == 0).sum()),
            "mean_distance_s": float(distances_s.mean()),
            "largest_distance_s": float(distances_s.max()),
        },
        "tokens": asdict(token_statistics(reader.tokens(name))),
        "arrays": {
            label: {
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "file": str(array.path),
                "offset": array.offset,
                "bytes": array.size,
            }
            for label, array in reader.array_locations(name).items()
        },
    }
    return Inspection(facts, tuple(_video_sections(facts)))


def token_statistics(tokens: np.ndarray) -> TokenStatistics:
    """Statistics of tokens [t ... 1+p c], a few clips at a time, so that memory does not grow with the video."""
    finite = True
    frame_norms = np.zeros(0, np.float32)
    patch_blocks = []
    for start in range(0, len(tokens), _CLIPS_AT_ONCE):
        block = np.asarray(tokens[start : start + _CLIPS_AT_ONCE], dtype=np.float32)
        finite = finite and bool(np.isfinite(block).all())
        norms = np.linalg.norm(block, axis=-1)
        frame_norms = np.concatenate([frame_norms, norms[..., 0].ravel()])
        patch_blocks.append(norms[..., 1:].ravel())
    patch_norms = np.concatenate(patch_blocks)
    norms = patch_norms if len(patch_norms) else frame_norms
    norms = norms[np.isfinite(norms)]
    counts, edges = np.histogram(norms, bins=_BINS) if len(norms) else (np.zeros(_BINS, int), np.zeros(_BINS + 1))
    return TokenStatistics(
        finite=finite,
        frame_norm=float(frame_norms.mean()),
        patch_norm=float(patch_norms.mean()) if len(patch_norms) else None,
        least=float(edges[0]),
        most=float(edges[-1]),
        histogram=tuple(map(int, counts)),
    )


def _cache_sections(facts: Mapping[str, Any]) -> Iterator[Section]:
    """The facts about a whole cache as text."""
    layout = "one packed file" if facts["packed"] else "an index with its parts in a folder next to it"
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in facts["sizes"].items())
    yield facts["cache"], (("format", f"{facts['format']}, {layout}"), ("size", sizes))
    yield "Features", tuple(_feature_lines(facts))
    yield "Videos", tuple(_video_lines(facts["videos"], facts["there"]))
    yield "Annotations", tuple(_split_lines(facts["splits"])) or (("splits", "none"),)
    yield "Words", (("queries", _words_text(facts["words"])),)
    if facts["settings"]:
        yield "Settings of training that came with the videos", (("", json.dumps(facts["settings"])),)
    fingerprint = sorted(facts["fingerprint"].items())
    yield (
        f"Fingerprint {facts['digest']}",
        tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in fingerprint),
    )


def _feature_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    made = facts["made"]
    rows, columns = made["patch_grid"]
    tokens = f"the frame's and {rows} x {columns} patches" if rows else "the frame's alone"
    stored = ", ".join(f"{name} {array['dtype']} {array['shape']}" for name, array in facts["stored"].items())
    joint = f"{made['joint_channels']} channels, temperature {made['logit_scale']:.4g}"
    exists = {None: "", True: " (there)", False: " (no longer there)"}[facts["there"]["weights"]]
    yield "model", made["model"] or "not known"
    yield "weights", f"{made['weights'] or 'not known'}{exists}"
    yield "sampling", f"{made['fps']:g} clips a second, {1 / made['fps']:g} s each"
    yield "tokens", f"{made['tokens_per_clip']} a clip ({tokens}), {made['channels']} channels"
    yield "stored", stored or "nothing that can be read"
    yield "joint space", joint if made["joint_known"] else "not known"


def _video_lines(videos: Mapping[str, Any], sources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "with features", f"{videos['with_features']}, {videos['hours']:.2f} hours, {videos['clips']} clips"
    if videos["without"]:
        yield "without", ", ".join(f"{count} {status}" for status, count in sorted(videos["without"].items()))
    decoders = ", ".join(f"{name or 'not known'} ({count})" for name, count in sorted(videos["decoders"].items()))
    yield "decoded by", f"{decoders or 'nothing'}, {videos['repaired_frames']} frames repaired"
    if sources["videos_folder"] is not None:
        yield "files", f"{sources['videos_folder']}: {sources['videos']} of {videos['with_features']} are there"


def _split_lines(splits: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, str]]:
    for name, counts in splits.items():
        without = counts["without_features"]
        note = f", {without} of them without features" if without else ""
        yield name, f"{counts['rows']} rows, {counts['queries']} queries, {counts['videos']} videos{note}"


def _words_text(counts: Mapping[str, int]) -> str:
    truncated = f", {counts['cut']} longer than the model reads" if counts["cut"] else ""
    return f"{counts['queries']} of {counts['tokens']} tokens, {counts['channels']} channels{truncated}"


def _video_sections(facts: Mapping[str, Any]) -> Iterator[Section]:
    """The facts about one video as text."""
    row = facts["row"]
    yield (
        f"{row['name']} in {facts['cache']}",
        tuple((name, f"{value}") for name, value in row.items() if name not in ("name", "reason")),
    )
    yield "Times", tuple(_time_lines(facts["times"], row["duration_s"]))
    yield "Tokens", tuple(_token_lines(facts["tokens"]))
    yield (
        "Bytes",
        tuple(
            (
                label,
                f"{array['dtype']} {array['shape']}: {array['bytes']} bytes at {array['offset']} of {array['file']}",
            )
            for label, array in facts["arrays"].items()
        ),
    )


def _time_lines(times: Mapping[str, Any], duration_s: float) -> Iterator[tuple[str, str]]:
    mean_s = times["mean_distance_s"]
    largest_s = times["largest_distance_s"]
    yield "first, last", f"{times['first_s']:.3f} s, {times['last_s']:.3f} s of {duration_s:.3f} s"
    yield "largest gap", f"{times['largest_gap_s']:.3f} s, {times['repeated']} frames shown twice"
    yield "from clip centres", f"{mean_s:.3f} s on average, {largest_s:.3f} s at most"


def _token_lines(tokens: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    has_patches = tokens["patch_norm"] is not None
    patch_norm = f"{tokens['patch_norm']:.3f} of a patch" if has_patches else "no patches"
    histogram = histogram_text(tuple(tokens["histogram"]))
    yield "finite", "all" if tokens["finite"] else "NOT ALL: extract this video again"
    yield "mean norm", f"{tokens['frame_norm']:.3f} of the frame's token, {patch_norm}"
    yield (
        f"{'patch' if has_patches else 'frame'} norms",
        f"{tokens['least']:.2f} [{histogram}] {tokens['most']:.2f}",
    )


def histogram_text(counts: tuple[int, ...]) -> str:
    """A small histogram in one line of text; every bin that is not empty is visible."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def format_bytes(size_bytes: int) -> str:
    """A number of bytes with the unit that fits."""
    for unit, power in _UNITS:
        if size_bytes >= 10**power:
            return f"{size_bytes / 10**power:.1f} {unit}"
    return f"{size_bytes} bytes"


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
    failed = [row for row in rows if not row.ok]
    listed = rows if everything else failed[:MAX_LISTED]
    width = max((len(row.name) for row in listed), default=0)
    lines = [_row_line(row, width) for row in listed]
    if not everything and len(failed) > MAX_LISTED:
        lines.append(f"... and {len(failed) - MAX_LISTED} more; --all lists every video.")
    groups = group_by_reason(failed)
    if len(groups) < len(failed):  # otherwise every reason is another one, and is listed already
        lines += groups
    return "\n".join([*lines, *_summary(rows, failed)])


def _row_line(row: VideoRow, width: int) -> str:
    return f"{row.name:{width}}  {row.status:8}  {row.reason or f'{row.clips} clips, {row.duration_s:.1f} s'}"


def _summary(rows: Sequence[VideoRow], failed: Sequence[VideoRow]) -> list[str]:
    with_features = [row for row in rows if row.ok]
    hours = sum(row.duration_s for row in with_features) / 3600
    clips = sum(row.clips for row in with_features)
    lines = [f"{len(with_features)} of {len(rows)} videos have features. {clips} clips, {hours:.1f} hours."]
    if failed:
        counts = Counter(row.status for row in failed).most_common()
        lines.append(f"Without: {', '.join(f'{count} {status}' for status, count in counts)}.")
    return lines


def group_by_reason(failed: Sequence[VideoRow]) -> list[str]:
    """A line for each reason, the most frequent first: the number of videos, their status, the reason, and a few names.

    Reasons are the same when they differ only in numbers or in a file's name at the beginning.
    """
    groups: dict[tuple[str, str], list[VideoRow]] = {}
    for row in failed:
        without_numbers = re.sub(r"\d+(\.\d+)?", "#", _reason_without_name(row))
        groups.setdefault((row.status, without_numbers), []).append(row)
    return [_group_line(rows) for rows in sorted(groups.values(), key=len, reverse=True)]


def _group_line(rows: Sequence[VideoRow]) -> str:
    names = ", ".join(row.name for row in rows[:_MAX_NAMED])
    more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
    return f"{len(rows):5} {rows[0].status}: {_reason_without_name(rows[0])} ({names}{more})"


def _reason_without_name(row: VideoRow) -> str:
    return re.sub(rf"^{re.escape(row.name)}(\.\w+)?: ", "", row.reason)


def failure_messages(cache: Path, failed: Sequence[VideoRow]) -> list[str]:
    """A message for each of the first videos without features, and how many more there are."""
    messages = [f"{row.status}: {row.name}: {row.reason}" for row in failed[:MAX_LISTED]]
    if len(failed) > MAX_LISTED:
        messages.append(f"... and {len(failed) - MAX_LISTED} more (costl cache status {cache}).")
    return messages
