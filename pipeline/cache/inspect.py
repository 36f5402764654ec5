"""What a cache holds: `costl cache inspect` prints facts, `costl cache status` the outcome of each video."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.int8 import clip_blocks
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import first_few
from costl.pipeline.formats.strict_json import json_lines

MAX_LISTED = 20  # videos without features, one a line


@dataclass(frozen=True)
class Inspection:
    """Facts about a cache or a video: names and values in sections."""

    facts: Mapping[str, Mapping[str, Any]]
    exit_code = 0

    def lines(self) -> list[str]:
        """For the terminal: a heading for each section, a line for each fact."""
        width = max(len(name) for section in self.facts.values() for name in section)
        lines: list[str] = []
        for heading, section in self.facts.items():
            lines.append(heading)
            for name, value in section.items():
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                lines.append(f"  {name:{width}}  {text}".rstrip())
        return lines

    def data(self) -> dict[str, Any]:
        """The facts."""
        return dict(self.facts)


def inspect_cache(path: Path) -> Inspection:
    """The facts about the cache at `path`; its parts are not read.

    Raises CacheError when its index or words are damaged.
    """
    reader = CacheReader(path)
    rows = [row for row in reader.rows if row.ok]
    return Inspection(
        {
            "cache": {"path": str(path), "format": reader.format, "packed": reader.pack_table is not None},
            "features": {
                "model": reader.fingerprint.get("model") or reader.source.get("model", ""),
                "weights": reader.source.get("weights", ""),
                "clips_per_second": reader.fps,
                "channels": reader.contents.token_shape[1],
                "patch_grid": list(reader.patch_grid),
                **asdict(reader.contents.token_format),
            },
            "videos": {
                "folder": str(reader.videos or ""),
                "with_features": len(rows),
                "without_features": dict(Counter(row.status for row in reader.rows if not row.ok)),
                "hours": round(sum(row.duration_s for row in rows) / 3600, 3),
                "clips": sum(row.clips for row in rows),
                "repaired_frames": sum(row.repaired for row in rows),
                "decoders": dict(Counter(row.decoder for row in rows)),
            },
            "annotations": {split: len(list(json_lines(reader.annotations(split)))) for split in reader.splits},
            "words": reader.word_table().counts(),
            "settings": reader.settings,
            "fingerprint": reader.fingerprint | {"sha256": reader.digest},
        }
    )


def inspect_video(path: Path, name: str) -> Inspection:
    """The facts about one video of the cache at `path`, its features read in full.

    Raises CacheError when it has no features or is damaged.
    """
    reader = CacheReader(path)
    times_s = reader.times_s(name)
    distance_s = np.abs(times_s - reader.grid(name).centres_s()).max()
    return Inspection(
        {
            "row": asdict(reader.row(name)),
            "times": {
                "first_s": float(times_s[0]),
                "last_s": float(times_s[-1]),
                "repeated_frames": int((np.diff(times_s) == 0).sum()),
                "largest_distance_from_centre_s": float(distance_s),
            },
            "tokens": _token_norms(reader.tokens(name)),
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
    )


def _token_norms(tokens: np.ndarray) -> dict[str, Any]:
    """Whether all tokens [t 1+p c] are finite, and the mean L2 norm of frame tokens and of patches."""
    # A few clips at a time, so that memory does not grow with the video.
    blocks = (np.asarray(tokens[clips], np.float32) for clips in clip_blocks(tokens.shape))
    norms = np.concatenate([np.linalg.norm(block, axis=-1) for block in blocks])
    patch_norms = norms[:, 1:]
    return {
        "finite": bool(np.isfinite(norms).all()),
        "mean_frame_norm": float(norms[:, 0].mean()),
        "mean_patch_norm": float(patch_norms.mean()) if patch_norms.size else None,
    }


@dataclass(frozen=True)
class Status:
    """The rows of a cache; `everything` prints all of them. `notes`: sentences about the last run and missing queries."""

    rows: Sequence[VideoRow]
    everything: bool = False
    notes: Sequence[str] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The first videos without features and why (with `everything`, all videos), then the summary."""
        failed = [row for row in self.rows if not row.ok]
        listed = self.rows if self.everything else failed[:MAX_LISTED]
        width = max((len(row.name) for row in listed), default=0)
        lines = [
            f"{row.name:{width}}  {row.status:8}  {row.reason or f'{row.clips} clips, {row.duration_s:.1f} s'}"
            for row in listed
        ]
        if not self.everything and len(failed) > MAX_LISTED:
            lines.append(f"... and {len(failed) - MAX_LISTED} more; --all lists every video.")
        groups = group_by_reason(failed)
        if len(groups) < len(failed):  # otherwise every reason is another one, and is listed already
            lines += groups
        return [*lines, *self._summary()]

    def _summary(self) -> list[str]:
        rows = [row for row in self.rows if row.ok]
        hours = sum(row.duration_s for row in rows) / 3600
        clips = sum(row.clips for row in rows)
        lines = [f"{len(rows)} of {len(self.rows)} videos have features. {clips} clips, {hours:.1f} hours."]
        counts = Counter(row.status for row in self.rows if not row.ok).most_common()
        if counts:
            lines.append(f"Without: {', '.join(f'{count} {status}' for status, count in counts)}.")
        return lines

    def data(self) -> list[dict[str, Any]]:
        """Every row."""
        return [row.data() for row in self.rows]

    def messages(self) -> list[str]:
        """The notes."""
        return list(self.notes)


def no_queries_message(cache: Path) -> str:
    """What to do with a cache that has no annotations."""
    return f"{cache} has no queries yet. costl cache add-queries {cache} --annotations train.jsonl adds them."


@dataclass(frozen=True)
class WrittenCache:
    """A `cache` that was written, and the `failed` rows of videos without features."""

    cache: Path
    failed: tuple[VideoRow, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 1 if a video has no features."""
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        """The path of the cache."""
        return [str(self.cache)]

    def messages(self) -> list[str]:
        """The videos without features."""
        return failure_messages(self.cache, self.failed)

    def data(self) -> dict[str, Any]:
        """Every field, with a row for each video without features."""
        return vars(self) | {"cache": str(self.cache), "failed": [row.data() for row in self.failed]}


def group_by_reason(failed: Sequence[VideoRow]) -> list[str]:
    """A line for each reason, the most frequent first: the number of videos, their status, the reason, and a few names.

    Reasons are the same when they differ only in numbers or in a file's name at the beginning.
    """
    groups: dict[tuple[str, str], list[VideoRow]] = {}
    for row in failed:
        without_numbers = re.sub(r"\d+(\.\d+)?", "#", _reason_without_name(row))
        groups.setdefault((row.status, without_numbers), []).append(row)
    lines: list[str] = []
    for rows in sorted(groups.values(), key=len, reverse=True):
        names = first_few(row.name for row in rows)
        lines.append(f"{len(rows):5} {rows[0].status}: {_reason_without_name(rows[0])} ({names})")
    return lines


def _reason_without_name(row: VideoRow) -> str:
    file = row.name.rpartition("/")[2]
    return re.sub(rf"^{re.escape(file)}(\.\w+)?: ", "", row.reason)


def failure_messages(cache: Path, failed: Sequence[VideoRow]) -> list[str]:
    """A message for each of the first videos without features, and how many more there are."""
    messages = [f"{row.status}: {row.name}: {row.reason}" for row in failed[:MAX_LISTED]]
    if len(failed) > MAX_LISTED:
        messages.append(f"... and {len(failed) - MAX_LISTED} more (costl cache status {cache}).")
    return messages
