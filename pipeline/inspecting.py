"""What is inside a cache, for a person: how its features were made, what there is, and one video looked at closely."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import CacheReader
from pipeline.errors import CacheError, UsageError
from pipeline.foreign import read_json
from pipeline.index import FORMAT
from pipeline.inspected import Inspection, cache_sections, video_sections

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
    except CacheError:  # costl verify says so
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
            f"{path}: cannot be read ({error.strerror}). costl verify names all that are missing."
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
