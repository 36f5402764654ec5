"""One video's features in one file: its layout, what it says about itself, and the checks before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents, VideoRow
from costl.pipeline.cache.int8 import blocks, channels_of, quantise, restore
from costl.pipeline.errors import CacheError
from costl.pipeline.fingerprint import digest
from costl.pipeline.grid import Grid
from costl.pipeline.options import Form

Clips = slice | Sequence[int]


def parts_folder(path: Path) -> Path:
    """Where the parts of the cache `path` lie."""
    return path.with_name(f"{path.name}.parts")


@dataclass(frozen=True)
class Stored:
    """Where the tokens of one layer lie in a part: `tokens` [t 1+p c], as int8 with `scales` [t 1+p], `mean` and `std`."""

    tokens: hdf5.Location
    scales: hdf5.Location | None = None
    mean: hdf5.Location | None = None
    std: hdf5.Location | None = None

    def read(self, clips: Clips = slice(None), *, patches: bool = True) -> np.ndarray:
        """Some clips' tokens, float16 [t 1+p c], or without `patches` [t 1 c]; nothing else is read or computed."""
        which = _index(clips)
        first = slice(None) if patches else slice(0, 1)
        tokens = self.tokens.memmap()[:, first][which]
        if self.scales is None or self.mean is None or self.std is None:
            return tokens
        scales = self.scales.memmap()[:, first][which]
        return restore(tokens, scales, self.mean.memmap(), self.std.memmap())

    def arrays(self) -> Iterator[np.ndarray]:
        """What is stored, as it is, in the order of the checksum."""
        return (place.memmap() for place in (self.tokens, self.scales, self.mean, self.std) if place is not None)


def write_part(
    path: Path, row: VideoRow, fingerprint: str, *, form: Form, tokens: np.ndarray, times_s: np.ndarray
) -> VideoRow:
    """Publishes one part with all that its row says, so that the index could be made again from the parts.

    `tokens` float16 [t k 1+p c] may be a memory map: they are never in memory as a whole. -> the row with its checksum.
    """
    hasher = hashlib.sha256()
    with hdf5.writing(path) as file:
        for layer in range(-1, -form.layers - 1, -1):
            _write_layer(file, tokens[:, layer], layer, hasher, quantised=form.dtype == "int8")
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


def read_row(path: Path, contents: Contents) -> VideoRow:
    """The row that a part speaks for. Raises CacheError when it is missing, damaged or made with other settings."""
    with hdf5.reading(path) as file:
        check_part(file, digest(contents.fingerprint))
        duration_s = hdf5.get_attribute(file, "duration_s", float)
        clips = Grid(fps=contents.fps, duration_s=duration_s).clips
        layers_in(file, clips, contents)
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


def layers_in(file: Any, clips: int, contents: Contents) -> list[Stored]:
    """All layers of an open part, the last one first. Raises CacheError as `tokens_in` does."""
    return [tokens_in(file, clips, contents, layer) for layer in range(-1, -contents.form.layers - 1, -1)]


def tokens_in(file: Any, clips: int, contents: Contents, layer: int = -1) -> Stored:
    """Where a layer's tokens [clips 1+p c] of an open part lie. Raises CacheError for any other shape or type, and for
    scales that cannot be."""
    shape = (clips, *contents.token_shape)
    if contents.form.dtype == "float16":
        return Stored(_locate(file, _named("tokens", layer), "<f2", shape))
    groups = (min(shape[1], 2), shape[2])
    found = Stored(
        tokens=_locate(file, _named("tokens", layer), "|i1", shape),
        scales=_locate(file, _named("scales", layer), "<f4", shape[:2]),
        mean=_locate(file, _named("mean", layer), "<f4", groups),
        std=_locate(file, _named("std", layer), "<f4", groups),
    )
    _, scales, mean, std = found.arrays()
    if not (np.isfinite(mean).all() and _can_scale(scales) and _can_scale(std)):
        raise CacheError(f"{file.filename}: damaged scales. Delete it and run costl extract again.")
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
    layers = contents.form.layers * tokens * contents.form.token_bytes(channels)
    return row.clips * (layers + np.dtype(np.float64).itemsize)


def checksum_of(layers: Sequence[Stored], times_s: np.ndarray) -> str:
    """sha256 over the bytes of what is stored of each layer, the last one first, then of the times."""
    hasher = hashlib.sha256()
    for array in (array for layer in layers for array in layer.arrays()):
        hasher.update(np.ascontiguousarray(array).data)
    hasher.update(np.ascontiguousarray(times_s).data)
    return hasher.hexdigest()


def first_not_finite(layer: Stored) -> int | None:
    """The first clip of a layer with a value that is no finite number; int8 has none, its scales are looked at on opening."""
    tokens = layer.tokens.memmap()
    for place in blocks(tokens.shape) if layer.scales is None else ():
        # Float16 with all bits of its exponent set is infinite or no number: seen many times as fast as by isfinite.
        exponents = np.ascontiguousarray(tokens[place]).view(np.uint16) & 0x7C00
        if exponents.max() == 0x7C00:
            return place.start + int(np.argmax((exponents == 0x7C00).any(axis=(1, 2))))
    return None


def _named(name: str, layer: int) -> str:
    return name if layer == -1 else f"{name}{layer}"


def _index(clips: Clips) -> slice | list[int]:
    if isinstance(clips, range) and clips.step == 1:
        return slice(clips.start, clips.stop)  # which needs no copy
    return clips if isinstance(clips, slice) else list(clips)


def _locate(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> hdf5.Location:
    found = hdf5.locate_array(file, name, dtype, ndim=len(shape))
    if found.shape != shape:
        raise CacheError(f"{file.filename}: {name} {found.shape}, expected {shape}. Extract again.")
    return found


def _can_scale(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _write_layer(file: Any, tokens: np.ndarray, layer: int, hasher: Any, *, quantised: bool) -> None:
    """Some clips at a time, each hashed on its way."""
    stored = file.create_dataset(_named("tokens", layer), tokens.shape, "|i1" if quantised else "<f2")
    channels = channels_of(tokens) if quantised else None
    scales: list[np.ndarray] = []
    for place in blocks(tokens.shape):
        block = np.ascontiguousarray(tokens[place])
        if channels is not None:
            block, some = quantise(block, *channels)
            scales.append(some)
        hasher.update(block.data)
        stored[place] = block
    if channels is not None:
        for name, array in zip(("scales", "mean", "std"), (np.concatenate(scales), *channels), strict=True):
            file[_named(name, layer)] = array
            hasher.update(array.data)
