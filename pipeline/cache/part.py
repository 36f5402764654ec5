"""One video's features in one HDF5 file (a part): its layout, its attributes, and the checks before it is read."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents, VideoRow
from costl.pipeline.cache.int8 import channel_statistics, clip_blocks, dequantise, quantise
from costl.pipeline.errors import CacheError
from costl.pipeline.fingerprint import digest
from costl.pipeline.grid import Grid

ClipSelection = slice | Sequence[int]
_EXPONENT_BITS = 0x7C00  # of float16
_ARRAYS = {"float16": {"tokens": "<f2"}, "int8": {"tokens": "|i1", "scales": "<f4", "mean": "<f4", "std": "<f4"}}
_ATTRIBUTES = {
    "video_id": str,
    "name": str,
    "fingerprint": str,
    "content_hash": str,
    "checksum": str,
    "duration_s": float,
    "repaired": int,
    "decoder": str,
    "picture_start_s": float,
}
_JOINT = "joint"
_ATTRIBUTES_OF_FORMAT_2 = ("picture_start_s",)


def parts_folder(path: Path) -> Path:
    """The folder that holds the parts of the cache `path`."""
    return path.parent / f"{path.name}.parts"


def temporary_files(path: Path) -> list[Path]:
    """The unfinished files that a killed run left next to the cache `path`, among its parts and among its words."""
    parts = parts_folder(path)
    folders = {parts: "*.h5", parts / "words": "*.h5", path.parent: glob.escape(path.name)}
    return [file for folder, name in folders.items() for file in folder.glob(f".{name}.*.tmp")]


@dataclass(frozen=True)
class StoredTokens:
    """Where the tokens [t 1+p c] and the joint vectors [t e] of a part are stored.

    `arrays`: `tokens`, and for int8 also `scales` [t 1+p], and `mean` and `std` [g c] of the g groups (frame token,
    patches). `joint`: None in parts of format 1, and where the joint space is unknown. `earlier`: the arrays of earlier
    layers of CLIP, which old parts may hold. They are part of the checksum, and nothing else reads them.
    """

    arrays: dict[str, hdf5.Location]
    joint: hdf5.Location | None = None
    earlier: tuple[hdf5.Location, ...] = ()

    def read(self, clips: ClipSelection = slice(None), *, patches: bool = True) -> np.ndarray:
        """The tokens of these clips, float16 [t 1+p c], or without `patches` [t 1 c]; nothing else is read or computed."""
        if isinstance(clips, range) and clips.step == 1:
            clips = slice(clips.start, clips.stop)  # a slice needs no copy
        index = clips if isinstance(clips, slice) else list(clips)
        columns = slice(None) if patches else slice(0, 1)
        tokens = self.arrays["tokens"].array()[:, columns][index]
        if "scales" not in self.arrays:
            return tokens
        scales = self.arrays["scales"].array()[:, columns][index]
        return dequantise(tokens, scales, self.arrays["mean"].array(), self.arrays["std"].array())

    def checksum(self, times_s: np.ndarray) -> str:
        """sha256 over the stored bytes of the tokens, of the joint vectors and of the times."""
        hasher = hashlib.sha256()
        for location in (*self.arrays.values(), *self.earlier, *([self.joint] if self.joint else [])):
            hasher.update(np.ascontiguousarray(location.array()).data)
        hasher.update(np.ascontiguousarray(times_s).data)
        return hasher.hexdigest()

    def first_nonfinite_clip(self) -> int | None:
        """The index of the first clip with a non-finite value. The scales of int8 are checked by `locate_tokens`."""
        tokens = [] if "scales" in self.arrays else [self.arrays["tokens"].array()]
        for array in tokens + ([self.joint.array()[:, None]] if self.joint else []):
            for clips in clip_blocks(array.shape):
                # All exponent bits of a float16 are set when it is infinite or NaN: many times as fast as np.isfinite.
                exponents = np.ascontiguousarray(array[clips]).view(np.uint16) & _EXPONENT_BITS
                if exponents.max() == _EXPONENT_BITS:
                    return clips.start + int(exponents.max(axis=(1, 2)).argmax())
        return None


def write_part(
    path: Path,
    row: VideoRow,
    fingerprint: str,
    *,
    dtype: str,
    tokens: np.ndarray,
    joint: np.ndarray | None = None,
    times_s: np.ndarray,
) -> VideoRow:
    """Publishes one part and returns the row with its checksum.

    `tokens`: float16 [t 1+p c], stored as `dtype`. `joint`: float16 [t e], None where it is unknown. `times_s`: [t]. The
    part repeats everything in its row, so that the index could be rebuilt from the parts. Raises VideoError for tokens that
    cannot be stored as `dtype`, CacheError when the file cannot be written.
    """
    hasher = hashlib.sha256()
    with hdf5.create_file(path) as file:
        _write_tokens(file, tokens, hasher, quantised=dtype == "int8")
        if joint is not None:
            file[_JOINT] = joint
            hasher.update(np.ascontiguousarray(joint).data)
        file["times_s"] = times_s
        hasher.update(np.ascontiguousarray(times_s).data)
        row = replace(row, checksum=hasher.hexdigest())
        values = vars(row) | {"video_id": row.id, "fingerprint": fingerprint}
        hdf5.put_attributes(file, {name: values[name] for name in _ATTRIBUTES if values[name] is not None})
    return row


def _write_tokens(file: Any, tokens: np.ndarray, hasher: Any, *, quantised: bool) -> None:
    """Writes and hashes the tokens [t 1+p c], a block of clips at a time."""
    dataset = file.create_dataset("tokens", tokens.shape, "|i1" if quantised else "<f2")
    statistics = channel_statistics(tokens) if quantised else None
    scales: list[np.ndarray] = []
    for clips in clip_blocks(tokens.shape):
        block = np.ascontiguousarray(tokens[clips])
        if statistics is not None:
            block, block_scales = quantise(block, *statistics)
            scales.append(block_scales)
        hasher.update(block.data)
        dataset[clips] = block
    if statistics is not None:
        for name, array in zip(("scales", "mean", "std"), (np.concatenate(scales), *statistics), strict=True):
            file[name] = array
            hasher.update(array.data)


def read_row(path: Path, contents: Contents) -> VideoRow:
    """The row that a part describes. Raises CacheError when it is missing, damaged or made with other settings."""
    with hdf5.open_file(path) as file:
        check_part_fingerprint(file, digest(contents.fingerprint))
        fields = read_attributes(file)
        clips = Grid(fps=contents.fps, duration_s=fields["duration_s"]).clips
        locate_tokens(file, clips, contents)
        read_times(file, clips)
    del fields["fingerprint"]
    return VideoRow(id=fields.pop("video_id"), status="ok", part=path.name, clips=clips, **fields)


def read_attributes(file: Any) -> dict[str, Any]:
    """All attributes of an open part. Raises CacheError when one is missing.

    Parts of format 1 may lack those of format 2.
    """
    names = [name for name in _ATTRIBUTES if name not in _ATTRIBUTES_OF_FORMAT_2 or name in file.attrs]
    return {name: hdf5.get_attribute(file, name, _ATTRIBUTES[name]) for name in names}


def check_part_fingerprint(file: Any, fingerprint: str) -> None:
    """Raises CacheError for a part whose features were made with other settings."""
    if hdf5.get_attribute(file, "fingerprint", str) != fingerprint:
        raise CacheError(f"{file.file.filename}: made with other settings than its index. Run costl extract again.")


def locate_tokens(file: Any, clips: int, contents: Contents) -> StoredTokens:
    """Where the tokens [clips 1+p c] and the joint vectors [clips e] lie in an open part.

    Raises CacheError for any other shape or type, and for scales that are negative or not finite.
    """
    shape = (clips, *contents.token_shape)
    statistics = (min(shape[1], 2), shape[2])
    shapes = {"tokens": shape, "scales": shape[:2], "mean": statistics, "std": statistics}
    dtypes = _ARRAYS[contents.token_format.dtype]
    arrays = {name: _locate(file, name, dtype, shapes[name]) for name, dtype in dtypes.items()}
    if "scales" in arrays:
        mean = arrays["mean"].array()
        scales = (arrays["scales"].array(), arrays["std"].array())
        if not (np.isfinite(mean).all() and all(np.isfinite(scale).all() and (scale >= 0).all() for scale in scales)):
            raise CacheError(f"{file.file.filename}: damaged scales. Delete it and run costl extract again.")
    joint = None
    if hdf5.has_name(file, _JOINT):
        joint = _locate(file, _JOINT, "<f2", (clips, contents.joint.width))
    elif contents.joint.is_known and contents.projection is None:
        raise CacheError(f"{file.file.filename}: no joint vectors. Delete it and run costl extract again.")
    return StoredTokens(arrays, joint, tuple(_earlier_layers(file, shapes, dtypes)))


def _earlier_layers(file: Any, shapes: dict[str, Any], dtypes: dict[str, str]) -> Iterator[hdf5.Location]:
    """The arrays of the layers before the last one, in the order of the checksum: tokens-2, ..., tokens-3, ..."""
    layer = 2
    while hdf5.has_name(file, f"tokens-{layer}"):
        for name, dtype in dtypes.items():
            yield _locate(file, f"{name}-{layer}", dtype, shapes[name])
        layer += 1


def read_times(file: Any, clips: int) -> np.ndarray:
    """The times of an open part, float64 [clips]. Raises CacheError for another number, non-finite or falling times."""
    times_s = hdf5.get_array(file, "times_s", "<f8", ndim=1)
    if len(times_s) != clips or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise CacheError(f"{file.file.filename}: times that do not rise, or not {clips} of them. Run costl extract again.")
    return times_s


def _locate(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> hdf5.Location:
    location = hdf5.locate_array(file, name, dtype, ndim=len(shape))
    if location.shape != shape:
        raise CacheError(f"{file.file.filename}: {name} {location.shape}, expected {shape}. Extract again.")
    return location
