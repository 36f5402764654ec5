"""All access to HDF5: files are published whole by a rename, and every name and size is checked before it is read."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from costl.pipeline.cache.hdf5_header import is_self_contained
from costl.pipeline.errors import CacheError, next_step
from costl.pipeline.formats import files

# What h5py raises for a damaged or malicious file.
_H5PY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
_PAGE_BYTES = 4096
_PLAIN_KINDS = "biufS"  # numpy's kinds whose values are stored as plain bytes
_MAX_ATTRIBUTE_BYTES = 1 << 16
# The superblock that libver="earliest" writes: the signature and version 0 first, the end of the file at byte 40.
_SIGNATURE = b"\x89HDF\r\n\x1a\n\0"
_SUPERBLOCK = struct.Struct("<40sQ")


@dataclass(frozen=True)
class Location:
    """Where an array is stored: its file, byte offset, shape and type. Its bytes are known to lie inside the file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        # Python's integers: numpy's product would overflow on a forged shape.
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """The array as a read-only memory map. Raises CacheError when the file is gone or has become shorter."""
        if 0 in self.shape:  # cannot be mapped
            return np.zeros(self.shape, self.dtype)
        try:
            mapped = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.path}: gone or cut short since it was opened ({error}). Extract again.") from error
        # Only arrays smaller than a page may be unaligned, which some libraries cannot read.
        return mapped if mapped.flags.aligned else np.array(mapped)


@contextlib.contextmanager
def create_file(path: Path, *, finish: Callable[[Path], None] | None = None) -> Iterator[h5py.File]:
    """A new HDF5 file that gets its name only when it is complete and on disk, see `atomic_path`.

    `finish` gets the path of the closed file before that, to fill in what `reserve` set aside. The same data give the same
    bytes. Raises CacheError when it cannot be written (disk full, no permission).
    """
    with atomic_path(path) as temporary:
        with _DeferredErrorFile(temporary) as raw:
            # Datasets begin at whole pages, so that a memory map of them is aligned.
            with h5py.File(
                raw,
                "w",
                libver="earliest",
                locking=False,
                alignment_threshold=_PAGE_BYTES,
                alignment_interval=_PAGE_BYTES,
            ) as file:
                yield file
            if raw.first_error is not None:
                raise raw.first_error
        if finish:
            finish(temporary)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """The same as `files.atomic_path` for files of a cache. Raises CacheError when `path` cannot be written."""
    try:
        with files.atomic_path(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        raise write_error(path, error) from error


class _DeferredErrorFile(io.FileIO):
    """A new file that holds back the disk's first error until HDF5 has closed it.

    HDF5 cannot close a file that it could not write: its objects stay open, and each of them prints an error.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.first_error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while self.first_error is None and len(rest):
                rest = rest[os.write(self.fileno(), rest) :]
        except OSError as error:
            self.first_error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.first_error = self.first_error or error
            return size or 0


def write_error(path: Path, error: Exception) -> CacheError:
    """The error for a file or folder that could not be written, with its cause and the next step."""
    code = getattr(error, "errno", None)
    reason = os.strerror(code) if code else " ".join(str(error).split())[:160]
    remedy = next_step(error) if code else "Check free space and permissions, then give the same command again."
    if code == errno.ENOSPC:
        free_mb = shutil.disk_usage(path.parent).free / 1e6
        remedy = f"{free_mb:.1f} MB are free there. Make room, then give the same command again."
    return CacheError(f"{path}: cannot be written ({reason}). {remedy} What was finished is kept.")


@contextlib.contextmanager
def open_file(path: Path, group: str = "") -> Iterator[h5py.Group]:
    """Opens an HDF5 file to read, or one of its groups.

    Raises CacheError for a file that is missing, foreign or damaged, also for any error that h5py, or the parser of a text,
    raises during the block.
    """
    if path.is_dir():
        raise CacheError(f"{path}: a folder, expected a file such as feats.h5, which costl extract writes.")
    if not path.is_file():
        raise CacheError(f"{path}: no such file. Make it with costl extract.")
    try:
        open(path, "rb").close()  # h5py calls a file that may not be read no HDF5 file
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). {next_step(error)}") from error
    try:
        if not h5py.is_hdf5(path):
            raise CacheError(f"{path}: not an HDF5 file. Give the feats.h5 that costl extract wrote.")
        # Published files never change: no lock is needed, and read-only folders work.
        with h5py.File(path, "r", locking=False) as file:
            yield get_group(file, group) if group else file
    except _H5PY_ERRORS as error:
        raise CacheError(f"{path}: damaged ({str(error)[:160]}). Delete it and run costl extract again.") from error


def check_header(path: Path) -> None:
    """Checks that the file exists and is as long as its superblock says; 50 times as fast as opening it as HDF5.

    Raises CacheError when it is missing, a link, truncated, or not an HDF5 file.
    """
    refuse_link(path)
    try:
        with path.open("rb") as file:
            head = file.read(_SUPERBLOCK.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). Make it with costl extract.") from error
    if len(head) < _SUPERBLOCK.size or not head.startswith(_SIGNATURE):
        raise CacheError(f"{path}: not an HDF5 file as costl extract writes it. Delete it and run costl extract again.")
    _, end = _SUPERBLOCK.unpack(head)
    if size < end:
        raise CacheError(f"{path}: {size} bytes, expected {end}. Delete it and run costl extract again.")


def refuse_link(path: Path) -> None:
    """Raises CacheError for a link, which may lead to a file outside of the cache."""
    if path.is_symlink():
        raise CacheError(f"{path}: a link, expected a file. Put the part itself there.")


def put_attributes(file: h5py.File, values: Mapping[str, str | int | float]) -> None:
    """Stores scalars as attributes; texts as fixed-length UTF-8."""
    for name, value in values.items():
        file.attrs[name] = _fixed_length(value) if isinstance(value, str) else value


def get_attribute(file: h5py.Group, name: str, kind: type) -> Any:
    """One scalar attribute of this kind (str, int or float). Raises CacheError for anything else."""
    if not h5py.h5a.exists(file.id, name.encode()):
        raise CacheError(f"{file.file.filename}: no attribute {name!r}. It was not made by costl extract.")
    attribute = h5py.h5a.open(file.id, name.encode())
    dtype = attribute.dtype
    letter = {str: "S", int: "i", float: "f"}[kind]
    if attribute.shape != () or dtype.kind != letter or dtype.itemsize > _MAX_ATTRIBUTE_BYTES:
        raise CacheError(
            f"{file.file.filename}: attribute {name!r} is not one {kind.__name__}. It was not made by costl extract."
        )
    value = file.attrs[name]
    return bytes(value).decode() if kind is str else kind(value)


def put_text(group: h5py.Group, name: str, text: str) -> None:
    """Stores a text as one fixed-length UTF-8 string, which any HDF5 viewer shows."""
    group.create_dataset(name, data=_fixed_length(text))


def get_text(file: h5py.Group, name: str) -> str:
    """The text stored under this name. Raises CacheError for anything that is not one plain string inside the file."""
    return bytes(get_array(file, name, "S", ndim=0)[()]).decode()


def get_array(file: h5py.Group, name: str, dtype: str, *, ndim: int) -> np.ndarray:
    """The array stored under this name, `dtype` "S" for a text.

    Raises CacheError for another type, another number of axes, or a size that the file cannot hold.
    """
    locate_array(file, name, dtype, ndim=ndim)
    # Not from its location: another file may have taken the path of the open one.
    return np.array(file[name][()])


def locate_array(file: h5py.Group, name: str, dtype: str, *, ndim: int) -> Location:
    """The location of the array of this name, for a memory map. Raises CacheError as `get_array` does."""
    location = _locate(file, name)
    matches = location.dtype.kind == "S" if dtype == "S" else location.dtype == np.dtype(dtype)
    if not matches or len(location.shape) != ndim:
        raise CacheError(
            f"{location.path}: {name} is {location.dtype} {location.shape}, expected plain {dtype} with {ndim} axes. "
            "Extract again."
        )
    return location


def locate_arrays(file: h5py.Group) -> dict[str, Location]:
    """The location of every array of a file or group, by name.

    Raises CacheError for links, groups inside, and arrays that are not plain bytes in the file.
    """
    return {name: _locate(file, name) for name in sorted(file)}


def get_group(file: h5py.Group, name: str) -> h5py.Group:
    """The group of this name. Raises CacheError when it is not a group of this file."""
    node = _get_node(file, name)
    if not isinstance(node, h5py.Group):
        raise CacheError(f"{file.file.filename}: {name!r} is not a group. It was not made by costl extract.")
    return node


def has_name(file: h5py.Group, name: str) -> bool:
    """Whether an object or a link of this name exists at the top of the file or group."""
    return file.get(name, getlink=True) is not None


def reserve(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Creates an array without writing its values; returns the offset of its bytes in the file."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same data give the same bytes
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=properties)
    return int(dataset.get_offset() or 0) if 0 not in shape else 0


def _fixed_length(text: str) -> np.ndarray:
    encoded = text.encode()
    return np.array(encoded, dtype=f"S{max(1, len(encoded))}")


def _get_node(file: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    # One component at a time, since a link in the middle of a path may also lead to another file.
    node = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            what = "a link elsewhere" if link is not None else "nothing"
            raise CacheError(
                f"{file.file.filename}: expected data under {name!r}, found {what}. It was not made by costl extract."
            )
        address = h5py.h5o.get_info(node.id, part.encode()).addr
        if not is_self_contained(node.file.id.get_vfd_handle(), address):
            raise CacheError(
                f"{file.file.filename}: {name!r} is not what costl extract writes, its data may lie in another file. "
                "Extract again."
            )
        node = node[part]
    return node


def _locate(file: h5py.Group, name: str) -> Location:
    dataset = _get_node(file, name)
    if not isinstance(dataset, h5py.Dataset):
        raise CacheError(f"{file.file.filename}: {name!r} is not a dataset. It was not made by costl extract.")
    path = Path(file.file.filename)
    shape = dataset.shape
    dtype = dataset.dtype
    contiguous = dataset.chunks is None and not dataset.is_virtual and not dataset.external
    if shape is None or dtype.kind not in _PLAIN_KINDS or not contiguous:
        raise CacheError(f"{path}: {name} is {dtype} {shape}, expected plain bytes in the file. Extract again.")
    size = Location(path, 0, shape, dtype).size
    offset = dataset.id.get_offset() if size else 0
    if offset is None or offset < 0 or offset + size > path.stat().st_size:
        raise CacheError(f"{path}: {name} claims {size} bytes that the file does not hold. Extract again.")
    return Location(path, offset, shape, dtype)
