"""Arrays in published .npz and .npy files: headers are checked before anything is read, and nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from costl.pipeline.errors import VideoError

FEATURES_KEY = "features"
_MAX_DEFLATE_RATIO = 500  # a zip bomb expands by 1000 times, features hardly at all
_FLOAT16_MAX = float(np.finfo(np.float16).max)
# What numpy and zipfile raise for a file that is damaged or of another format.
_READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    MemoryError,
)
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class StoredArray:
    """An array of numbers that is not read yet: a whole .npy file (`key` is empty), or the entry `key` of an .npz file."""

    path: Path
    key: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Returns the array as float32. Raises VideoError for a file that is damaged and for values that are not finite."""
        try:
            loaded = np.load(self.path, allow_pickle=False)
            values = np.asarray(loaded[self.key] if self.key else loaded, dtype=np.float32)
        except _READ_ERRORS as error:
            raise VideoError(f"{self.path}: damaged ({_one_line(error)}). Download it again.") from error
        count = np.count_nonzero(~np.isfinite(values))
        if count:
            raise VideoError(f"{self.path}: {count} values are not finite. Extract these features again.")
        return values


def find_file(folder: Path, name: str) -> Path | None:
    """Returns the .npz file of this name, or else the .npy file. None if neither exists or `name` leads out of the folder."""
    path = Path(name)
    if "\0" in name or path.anchor or ".." in path.parts or path.as_posix() != name:
        return None
    paths = [folder / f"{name}.npz", folder / f"{name}.npy"]
    return next(filter(Path.is_file, paths), None)


def read_headers(path: Path, keys: Sequence[str] = (FEATURES_KEY,)) -> dict[str, StoredArray]:
    """Reads the headers of those `keys` that the file has, and none of their values. A .npy file counts as the first key.

    Raises VideoError for a file that is damaged, has none of `keys` (the message lists the keys it has), or holds
    anything but numbers under them.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {keys[0]: _read_header(path, "", file, max_bytes=path.stat().st_size)}
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            arrays = {}
            for key in [key for key in keys if key in names]:
                entry = archive.getinfo(f"{key}.npy")
                max_bytes = min(entry.file_size, _MAX_DEFLATE_RATIO * entry.compress_size)
                with archive.open(entry) as file:
                    arrays[key] = _read_header(path, key, file, max_bytes=max_bytes)
    except _READ_ERRORS as error:
        raise VideoError(f"{path}: cannot be read ({_one_line(error)}). Download it again.") from error
    if not arrays:
        expected = " or ".join(map(repr, keys))
        raise VideoError(f"{path}: no {expected}, it has {', '.join(names[:8]) or 'nothing'}.")
    return arrays


def to_float16(values: np.ndarray, path: Path) -> np.ndarray:
    """Returns `values` as float16. Raises VideoError, which names the file `path`, for a value that is too large."""
    largest = float(np.abs(values).max())
    if largest > _FLOAT16_MAX:
        raise VideoError(f"{path}: holds {largest:g}, more than float16 can ({_FLOAT16_MAX:g}). Scale these features.")
    return values.astype(np.float16)


def _read_header(path: Path, key: str, file: IO[bytes], *, max_bytes: int) -> StoredArray:
    read_array_header = _HEADER_READERS[np.lib.format.read_magic(file)]
    shape, _, dtype = read_array_header(file)
    name = f"{path} ({key})" if key else str(path)
    if dtype.kind not in "fiu":
        raise VideoError(f"{name}: holds {dtype}, expected numbers. Objects are never unpickled.")
    size = math.prod(shape) * dtype.itemsize
    if size > max_bytes:
        raise VideoError(f"{name}: its header claims {size} bytes, the file cannot hold more than {max_bytes}.")
    return StoredArray(path, key, shape)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
