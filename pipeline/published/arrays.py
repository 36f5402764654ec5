"""Published features as they come: one .npz or .npy a video or query, looked at before they are read, never unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from costl.pipeline.errors import VideoError

SUFFIXES = (".npz", ".npy")
KEY = "features"
_MOST_DEFLATED = 500  # times its size: a bomb is 1000 times as large, features are hardly larger
_LARGEST = float(np.finfo(np.float16).max)
# What numpy and zipfile raise for a file that is damaged or was never theirs.
_FOREIGN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Array:
    """Where an array is: a whole .npy (`key` is empty), or what an .npz holds under `key`; known to be plain numbers."""

    path: Path
    key: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The array as float32. Raises VideoError for a file that is damaged, or holds what is no finite number."""
        try:
            found = np.asarray(_load(self.path, self.key), dtype=np.float32)
        except _FOREIGN as error:
            raise VideoError(f"{self.path}: damaged ({_short(error)}). Fetch it again.") from error
        if not np.isfinite(found).all():
            count = int(found.size - np.isfinite(found).sum())
            raise VideoError(f"{self.path}: {count} values are no finite number. Make these features again.")
        return found


def locate(folder: Path, name: str) -> Path | None:
    """The file of this name with either suffix, .npz first; None where there is none, or the name is no file name."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES if Path(name).name == name and "\0" not in name]
    return next((path for path in paths if path.is_file()), None)


def look_at(path: Path, keys: Sequence[str] = (KEY,)) -> dict[str, Array]:
    """Which of `keys` the file holds, each as an array yet to be read; a .npy is the first of them.

    Reads headers alone. Raises VideoError for a file that is damaged, has none of `keys` (saying which it has), or
    holds anything but plain numbers there.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {keys[0]: _array(path, "", file, held=path.stat().st_size)}
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            found = {}
            for key in keys:
                if key in names:
                    about = archive.getinfo(f"{key}.npy")
                    with archive.open(about) as file:
                        found[key] = _array(
                            path, key, file, held=min(about.file_size, _MOST_DEFLATED * about.compress_size)
                        )
    except _FOREIGN as error:
        raise VideoError(f"{path}: cannot be read ({_short(error)}). Fetch it again.") from error
    if not found:
        raise VideoError(f"{path}: no {' or '.join(map(repr, keys))}, it has {', '.join(names[:8]) or 'nothing'}.")
    return found


def as_half(values: np.ndarray, path: Path) -> np.ndarray:
    """The same as float16. Raises VideoError, naming the file they came from, for what is too large for it."""
    largest = float(np.abs(values).max())
    if largest > _LARGEST:
        raise VideoError(f"{path}: holds {largest:g}, more than float16 can ({_LARGEST:g}). Scale these features.")
    return values.astype(np.float16)


def _load(path: Path, key: str) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if not key:
        return loaded
    with loaded:
        return loaded[key]


def _array(path: Path, key: str, file: IO[bytes], *, held: int) -> Array:
    read_header: Any = _HEADERS.get(np.lib.format.read_magic(file))
    shape, _, dtype = read_header(file) if read_header else ((), False, np.dtype(object))
    what = f"{path}{f' ({key})' if key else ''}"
    if dtype.kind not in "fiu":
        raise VideoError(f"{what}: holds {dtype}, expected numbers. Objects are never unpickled.")
    if math.prod(shape) * dtype.itemsize > held:
        raise VideoError(f"{what}: claims {math.prod(shape) * dtype.itemsize} bytes, it cannot hold more than {held}.")
    return Array(path, key, shape)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
