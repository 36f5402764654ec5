"""One video's features in one file: its layout, what it says about itself, and the checks before it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import hdf5
from pipeline.errors import CacheError
from pipeline.fingerprint import digest
from pipeline.grid import Grid
from pipeline.index import Contents, VideoRow


def parts_folder(path: Path) -> Path:
    """Where the parts of the cache `path` lie."""
    return path.with_name(f"{path.name}.parts")


def write_part(path: Path, row: VideoRow, fingerprint: str, *, tokens: np.ndarray, times_s: np.ndarray) -> None:
    """Publishes one part with all that its row says, so that the index could be made again from the parts."""
    with hdf5.writing(path) as file:
        hdf5.put_attributes(
            file,
            {
                "video_id": row.id,
                "name": row.name,
                "fingerprint": fingerprint,
                "content_hash": row.content_hash,
                "checksum": row.checksum,
                "duration_s": row.duration_s,
                "repaired": row.repaired,
                "decoder": row.decoder,
            },
        )
        file["tokens"], file["times_s"] = tokens, times_s


def read_row(path: Path, contents: Contents) -> VideoRow:
    """The row that a part speaks for. Raises CacheError when it is missing, damaged or made with other settings."""
    with hdf5.reading(path) as file:
        check_part(file, digest(contents.fingerprint))
        duration_s = hdf5.get_attribute(file, "duration_s", float)
        clips = Grid(fps=contents.fps, duration_s=duration_s).clips
        tokens_in(file, clips, contents)
        times_in(file, clips)
        return VideoRow(
            id=hdf5.get_attribute(file, "video_id", str),
            status="ok",
            name=hdf5.get_attribute(file, "name", str),
            part=path.name,
            clips=clips,
            duration_s=duration_s,
            checksum=hdf5.get_attribute(file, "checksum", str),
            content_hash=hdf5.get_attribute(file, "content_hash", str),
            repaired=hdf5.get_attribute(file, "repaired", int),
            decoder=hdf5.get_attribute(file, "decoder", str),
        )


def check_part(file: Any, fingerprint: str) -> None:
    """Raises CacheError for a part whose features other settings made."""
    if hdf5.get_attribute(file, "fingerprint", str) != fingerprint:
        raise CacheError(f"{file.filename}: made with other settings than its index. Run costl extract again.")


def tokens_in(file: Any, clips: int, contents: Contents) -> hdf5.Location:
    """Where the tokens [clips 1+p c] of an open part lie. Raises CacheError for any other shape or type."""
    found = hdf5.locate_array(file, "tokens", "<f2", ndim=3)
    if found.shape != (clips, *contents.token_shape):
        raise CacheError(
            f"{file.filename}: tokens {found.shape}, expected {(clips, *contents.token_shape)}. Extract again."
        )
    return found


def times_in(file: Any, clips: int) -> np.ndarray:
    """The times of an open part. Raises CacheError unless there are `clips` of them, finite and never falling."""
    times_s = hdf5.get_array(file, "times_s", "<f8", ndim=1)
    if len(times_s) != clips or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise CacheError(f"{file.filename}: times that do not rise, or not {clips} of them. Run costl extract again.")
    return times_s


def part_bytes(row: VideoRow, contents: Contents) -> int:
    """What the arrays of a part take, the least that its file can."""
    tokens, channels = contents.token_shape
    return row.clips * (tokens * channels * np.dtype(np.float16).itemsize + np.dtype(np.float64).itemsize)


def checksum_of(tokens: np.ndarray, times_s: np.ndarray) -> str:
    """sha256 over the bytes of the tokens, then of the times."""
    hasher = hashlib.sha256(np.ascontiguousarray(tokens).data)
    hasher.update(np.ascontiguousarray(times_s).data)
    return hasher.hexdigest()
