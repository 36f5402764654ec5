"""One video's features in one HDF5 file (a part): its layout, its attributes, and the checks before it is read."""

from __future__ import annotations

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
from costl.pipeline.options import TokenFormat

ClipSelection = slice | Sequence[int]
_EXPONENT_BITS = 0x7C00  # of float16


def parts_folder(path: Path) -> Path:
    """The folder that holds the parts of the cache `path`."""
    return path.with_name(f"{path.name}.parts")


@dataclass(frozen=True)
class StoredTokens:
    """Where the tokens of one layer are stored in a part: `tokens` [t 1+p c].

    int8 tokens come with `scales` [t 1+p], and with `mean` and `std` [g c] of the g groups (frame token, patches).
    """

    tokens: hdf5.Location
    scales: hdf5.Location | None = None
    mean: hdf5.Location | None = None
    std: hdf5.Location | None = None

    def read(self, clips: ClipSelection = slice(None), *, patches: bool = True) -> np.ndarray:
        """The tokens of these clips, float16 [t 1+p c], or without `patches` [t 1 c]; nothing else is read or computed."""
        index = _as_index(clips)
        columns = slice(None) if patches else slice(0, 1)
        tokens = self.tokens.memmap()[:, columns][index]
        if self.scales is None or self.mean is None or self.std is None:
            return tokens
        scales = self.scales.memmap()[:, columns][index]
        return dequantise(tokens, scales, self.mean.memmap(), self.std.memmap())

    def arrays(self) -> Iterator[np.ndarray]:
        """The stored arrays, unconverted, in the order of the checksum."""
        locations = (self.tokens, self.scales, self.mean, self.std)
        return (location.memmap() for location in locations if location is not None)


def write_part(
    path: Path,
    row: VideoRow,
    fingerprint: str,
    *,
    token_format: TokenFormat,
    tokens: np.ndarray,
    times_s: np.ndarray,
) -> VideoRow:
    """Publishes one part, tokens float16 [t k 1+p c] of k layers and times_s [t], and returns the row with its checksum.

    The part repeats everything in its row, so that the index could be rebuilt from the parts. Raises VideoError for tokens
    that cannot be stored in `token_format`, CacheError when the file cannot be written.
    """
    hasher = hashlib.sha256()
    with hdf5.create_file(path) as file:
        for layer in _layer_numbers(token_format):
            _write_layer(file, tokens[:, layer], layer, hasher, quantised=token_format.dtype == "int8")
        file["times_s"] = times_s
        hasher.update(np.ascontiguousarray(times_s).data)
        row = replace(row, checksum=hasher.hexdigest())
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
    return row


def _write_layer(file: Any, tokens: np.ndarray, layer: int, hasher: Any, *, quantised: bool) -> None:
    """Writes and hashes the tokens [t 1+p c] of a layer, a block of clips at a time."""
    dataset = file.create_dataset(_array_name("tokens", layer), tokens.shape, "|i1" if quantised else "<f2")
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
        arrays = (np.concatenate(scales), *statistics)
        for name, array in zip(("scales", "mean", "std"), arrays, strict=True):
            file[_array_name(name, layer)] = array
            hasher.update(array.data)


def read_row(path: Path, contents: Contents) -> VideoRow:
    """The row that a part describes. Raises CacheError when it is missing, damaged or made with other settings."""
    with hdf5.open_file(path) as file:
        check_part_fingerprint(file, digest(contents.fingerprint))
        duration_s = hdf5.get_attribute(file, "duration_s", float)
        clips = Grid(fps=contents.fps, duration_s=duration_s).clips
        locate_layers(file, clips, contents)
        read_times(file, clips)
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


def check_part_fingerprint(file: Any, fingerprint: str) -> None:
    """Raises CacheError for a part whose features were made with other settings."""
    if hdf5.get_attribute(file, "fingerprint", str) != fingerprint:
        raise CacheError(f"{file.filename}: made with other settings than its index. Run costl extract again.")


def locate_layers(file: Any, clips: int, contents: Contents) -> list[StoredTokens]:
    """All layers of an open part, the last one first. Raises CacheError as `locate_tokens` does."""
    return [locate_tokens(file, clips, contents, layer) for layer in _layer_numbers(contents.token_format)]


def locate_tokens(file: Any, clips: int, contents: Contents, layer: int = -1) -> StoredTokens:
    """Where a layer's tokens [clips 1+p c] lie in an open part.

    Raises CacheError for any other shape or type, and for scales that are negative or not finite.
    """
    shape = (clips, *contents.token_shape)
    if contents.token_format.dtype == "float16":
        return StoredTokens(_locate(file, _array_name("tokens", layer), "<f2", shape))
    groups = (min(shape[1], 2), shape[2])
    stored = StoredTokens(
        tokens=_locate(file, _array_name("tokens", layer), "|i1", shape),
        scales=_locate(file, _array_name("scales", layer), "<f4", shape[:2]),
        mean=_locate(file, _array_name("mean", layer), "<f4", groups),
        std=_locate(file, _array_name("std", layer), "<f4", groups),
    )
    _, scales, mean, std = stored.arrays()
    if not (np.isfinite(mean).all() and _are_scales(scales) and _are_scales(std)):
        raise CacheError(f"{file.filename}: damaged scales. Delete it and run costl extract again.")
    return stored


def read_times(file: Any, clips: int) -> np.ndarray:
    """The times of an open part, float64 [clips]. Raises CacheError for another number, non-finite or falling times."""
    times_s = hdf5.get_array(file, "times_s", "<f8", ndim=1)
    if len(times_s) != clips or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise CacheError(f"{file.filename}: times that do not rise, or not {clips} of them. Run costl extract again.")
    return times_s


def min_part_bytes(row: VideoRow, contents: Contents) -> int:
    """The size of a part's arrays in bytes, which its file cannot be smaller than."""
    tokens, channels = contents.token_shape
    layers = contents.token_format.layers * tokens * contents.token_format.token_bytes(channels)
    return row.clips * (layers + np.dtype(np.float64).itemsize)


def compute_checksum(layers: Sequence[StoredTokens], times_s: np.ndarray) -> str:
    """sha256 over the stored bytes of each layer, the last one first, then of the times."""
    hasher = hashlib.sha256()
    for layer in layers:
        for array in layer.arrays():
            hasher.update(np.ascontiguousarray(array).data)
    hasher.update(np.ascontiguousarray(times_s).data)
    return hasher.hexdigest()


def first_nonfinite_clip(layer: StoredTokens) -> int | None:
    """The index of the first clip of a layer with a non-finite value; None for int8, whose scales `locate_tokens` checks."""
    if layer.scales is not None:
        return None
    tokens = layer.tokens.memmap()
    for clips in clip_blocks(tokens.shape):
        # All exponent bits of a float16 are set when it is infinite or NaN: many times as fast as np.isfinite.
        exponents = np.ascontiguousarray(tokens[clips]).view(np.uint16) & _EXPONENT_BITS
        if exponents.max() == _EXPONENT_BITS:
            nonfinite = (exponents == _EXPONENT_BITS).any(axis=(1, 2))
            return clips.start + int(np.argmax(nonfinite))
    return None


def _layer_numbers(token_format: TokenFormat) -> range:
    """-1 for the last block of CLIP, -2 for the one before, ..."""
    return range(-1, -token_format.layers - 1, -1)


def _array_name(name: str, layer: int) -> str:
    return name if layer == -1 else f"{name}{layer}"


def _as_index(clips: ClipSelection) -> slice | list[int]:
    if isinstance(clips, range) and clips.step == 1:
        return slice(clips.start, clips.stop)  # a slice needs no copy
    return clips if isinstance(clips, slice) else list(clips)


def _locate(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> hdf5.Location:
    location = hdf5.locate_array(file, name, dtype, ndim=len(shape))
    if location.shape != shape:
        raise CacheError(f"{file.filename}: {name} {location.shape}, expected {shape}. Extract again.")
    return location


def _are_scales(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())
