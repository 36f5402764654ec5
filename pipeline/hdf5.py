"""The one way we touch HDF5: files published whole by rename, every name and size checked before it is read."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import CacheError

# What h5py raises for a file that is damaged or was made to do harm.
_FOREIGN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
_PAGE = 4096
_LARGEST_ATTRIBUTE = 1 << 16
# The superblock that libver="earliest" writes: signature, version 0 and what follows from it, ..., end of the file.
_SIGNATURE = b"\x89HDF\r\n\x1a\n\0"
_HEAD = struct.Struct("<40sQ")


@dataclass(frozen=True)
class Location:
    """Where an array lies in its file: byte offset, shape and type; known to be plain bytes inside the file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def memmap(self) -> np.ndarray:
        """The array as a read-only memory map. Raises CacheError when the file is gone or has become shorter."""
        try:
            return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.path}: gone or cut short since it was opened ({error}). Extract again.") from error

    def array(self) -> np.ndarray:
        """The same, also where there is nothing to map."""
        return self.memmap() if 0 not in self.shape else np.zeros(self.shape, self.dtype)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that gets its name only when it is complete and on disk: written aside, fsynced, renamed.

    The same data give the same bytes. Raises CacheError when it cannot be written (disk full, no permission).
    """
    # Another machine may have a process of the same number.
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        # Whole pages, so that a memory map of a dataset is aligned.
        with h5py.File(
            aside, "w", libver="earliest", locking=False, alignment_threshold=_PAGE, alignment_interval=_PAGE
        ) as file:
            yield file
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        raise CacheError(
            f"{path}: cannot be written ({error}). Check free space and permissions; what was finished is kept."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading. Raises CacheError for what is missing, foreign or damaged, also while it is read."""
    if not path.is_file():
        raise CacheError(f"{path}: no such file. Make it with costl extract.")
    try:
        if not h5py.is_hdf5(path):
            raise CacheError(f"{path}: not an HDF5 file. Give the feats.h5 that costl extract wrote.")
        # Published files never change, so that no lock is needed and read-only folders work.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _FOREIGN as error:
        raise CacheError(f"{path}: damaged ({str(error)[:160]}). Delete it and run costl extract again.") from error


def check_header(path: Path, *, least: int = 0) -> None:
    """Whether a file of ours is there and as long as its first bytes say, without opening it as HDF5 (50 times slower).

    Raises CacheError when it is missing, a link, cut short, no HDF5 file, or of fewer than `least` bytes.
    """
    refuse_link(path)
    try:
        with path.open("rb") as file:
            head, size = file.read(_HEAD.size), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). Make it with costl extract.") from error
    if len(head) < _HEAD.size or not head.startswith(_SIGNATURE):
        raise CacheError(f"{path}: not an HDF5 file as costl extract writes it. Delete it and run costl extract again.")
    _, end = _HEAD.unpack(head)
    if size < max(end, least):
        raise CacheError(f"{path}: {size} bytes, expected {max(end, least)}. Delete it and run costl extract again.")


def refuse_link(path: Path) -> None:
    """Raises CacheError for a link: what it leads to is not ours."""
    if path.is_symlink():
        raise CacheError(f"{path}: a link, expected a file. Put the part itself there.")


def put_attributes(file: h5py.File, values: Mapping[str, str | int | float]) -> None:
    """Stores plain scalars; texts as fixed-length UTF-8."""
    for name, value in values.items():
        file.attrs[name] = _bytes(value) if isinstance(value, str) else value


def get_attribute(file: h5py.File, name: str, kind: type) -> Any:
    """One scalar attribute of this kind (str, int or float). Raises CacheError for anything else."""
    letter = {str: "S", int: "i", float: "f"}[kind]
    if not h5py.h5a.exists(file.id, name.encode()):
        raise CacheError(f"{file.filename}: no attribute {name!r}. It was not made by costl extract.")
    found = h5py.h5a.open(file.id, name.encode())
    if found.shape != () or found.dtype.kind != letter or found.dtype.itemsize > _LARGEST_ATTRIBUTE:
        raise CacheError(
            f"{file.filename}: attribute {name!r} is not one {kind.__name__}. It was not made by costl extract."
        )
    value = file.attrs[name]
    return bytes(value).decode() if kind is str else kind(value)


def put_text(group: h5py.Group, name: str, text: str) -> None:
    """Stores a text as one fixed-length UTF-8 string, which any HDF5 viewer shows."""
    group.create_dataset(name, data=_bytes(text))


def get_text(file: h5py.File, name: str) -> str:
    """The text stored under this name. Raises CacheError for anything that is not one plain string inside the file."""
    dataset = _dataset(file, name)
    _locate(dataset, kind="S", ndim=0)
    return bytes(dataset[()]).decode()


def get_array(file: h5py.File, name: str, dtype: str, *, ndim: int) -> np.ndarray:
    """The array stored under this name. Raises CacheError for another type, another number of axes, or a bomb."""
    dataset = _dataset(file, name)
    _locate(dataset, kind=dtype, ndim=ndim)
    return np.asarray(dataset[()])


def locate_array(file: h5py.File, name: str, dtype: str, *, ndim: int) -> Location:
    """Where the array of this name lies, for a memory map. Raises CacheError as `get_array` does."""
    return _locate(_dataset(file, name), kind=dtype, ndim=ndim)


def names_in(file: h5py.File, name: str) -> list[str]:
    """The names inside a group, sorted. Raises CacheError when it is no group of this very file."""
    node = _walk(file, name)
    if not isinstance(node, h5py.Group):
        raise CacheError(f"{file.filename}: {name!r} is not a group. It was not made by costl extract.")
    return sorted(node)


def _bytes(text: str) -> np.ndarray:
    encoded = text.encode()
    return np.array(encoded, dtype=f"S{max(1, len(encoded))}")


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    # Windows can neither open a folder nor needs to.
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset:
    # One component at a time: a link in the middle of a path may lead to another file as well as one at its end.
    node = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            found = "a link elsewhere" if link is not None else "nothing"
            raise CacheError(
                f"{file.filename}: expected data under {name!r}, found {found}. It was not made by costl extract."
            )
        node = node[part]
    return node


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    node = _walk(file, name)
    if not isinstance(node, h5py.Dataset):
        raise CacheError(f"{file.filename}: {name!r} is not a dataset. It was not made by costl extract.")
    return node


def _locate(dataset: h5py.Dataset, *, kind: str, ndim: int) -> Location:
    path, shape, dtype = Path(dataset.file.filename), dataset.shape, dataset.dtype
    refusal = f"{path}: {dataset.name} is {dtype} {shape}, expected plain {kind} with {ndim} axes. Extract again."
    right_type = dtype.kind == "S" if kind == "S" else dtype == np.dtype(kind)
    plain = dataset.chunks is None and not dataset.is_virtual and not dataset.external
    if shape is None or not right_type or len(shape) != ndim or not plain:
        raise CacheError(refusal)
    size = dtype.itemsize
    for length in shape:  # in whole numbers: numpy's product would overflow on a made-up shape
        size *= length
    offset = dataset.id.get_offset() if size else 0
    if offset is None or offset < 0 or offset + size > path.stat().st_size:
        raise CacheError(f"{path}: {dataset.name} claims {size} bytes that the file does not hold. Extract again.")
    return Location(path, offset, shape, dtype)
