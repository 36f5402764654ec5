"""The one way we touch HDF5: files published whole by rename, every name and size checked before it is read."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from costl.pipeline.cache.hdf5_header import is_plain
from costl.pipeline.errors import CacheError

# What h5py raises for a file that is damaged or was made to do harm.
_FOREIGN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BROKEN = {errno.EIO, getattr(errno, "ESTALE", errno.EIO)}
_PAGE = 4096
PLAIN_KINDS = "biufS"  # numpy's letters for what is nothing but its bytes
_LARGEST_ATTRIBUTE = 1 << 16
_MOST_NODES = 10_000
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

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        # In whole numbers: numpy's product would overflow on a made-up shape.
        return math.prod(self.shape) * self.dtype.itemsize

    def memmap(self) -> np.ndarray:
        """The array as a read-only memory map. Raises CacheError when the file is gone or has become shorter."""
        try:
            found = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.path}: gone or cut short since it was opened ({error}). Extract again.") from error
        # Only what is smaller than a page may lie askew, which not every library can read.
        return found if found.flags.aligned else np.array(found)

    def array(self) -> np.ndarray:
        """The same, also where there is nothing to map."""
        return self.memmap() if 0 not in self.shape else np.zeros(self.shape, self.dtype)


@dataclass(frozen=True)
class Listed:
    """A part inside a packed file, as the table of that file lists it: read like an open HDF5 file, with none opened."""

    filename: str
    attributes: Mapping[str, str | int | float]
    arrays: Mapping[str, Location]

    def array(self, name: str) -> Location:
        """Where the array of this name lies. Raises CacheError when there is none."""
        if name not in self.arrays:
            raise CacheError(f"{self.filename}: expected data under {name!r}, found nothing. Pack it again.")
        return self.arrays[name]


@contextlib.contextmanager
def writing(path: Path, *, then: Callable[[Path], None] | None = None) -> Iterator[h5py.File]:
    """A new HDF5 file that gets its name only when it is complete and on disk, as `publishing` does it.

    `then` is given the closed file before that, to fill in what `reserve` set aside. The same data give the same bytes.
    Raises CacheError when it cannot be written (disk full, no permission).
    """
    with publishing(path) as aside:
        with _Patient(aside) as raw:
            # Whole pages, so that a memory map of a dataset is aligned.
            with h5py.File(
                raw, "w", libver="earliest", locking=False, alignment_threshold=_PAGE, alignment_interval=_PAGE
            ) as file:
                yield file
            if raw.refusal is not None:
                raise raw.refusal
        if then:
            then(aside)


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Where to write what will be called `path` when it is whole: written aside, fsynced, renamed.

    Raises CacheError when it cannot be written.
    """
    # Another machine may have a process of the same number.
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that fails; the next run takes it away
            aside.unlink(missing_ok=True)


class _Patient(io.FileIO):
    """A new file that keeps the disk's first `refusal` to itself until HDF5 has closed it.

    HDF5 cannot close what it could not write: its objects stay open, and each of them complains on the terminal.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.refusal: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while self.refusal is None and len(rest):
                rest = rest[os.write(self.fileno(), rest) :]
        except OSError as error:
            self.refusal = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.refusal = self.refusal or error
            return size or 0


def unwritable(path: Path, error: Exception) -> CacheError:
    """What to say of a file or folder that the disk did not take, and what to do about it."""
    code = _errno(error)
    reason = os.strerror(code) if code else " ".join(str(error).split())[:160]
    return CacheError(f"{path}: cannot be written ({reason}). {_remedy(path, code)} What was finished is kept.")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading. Raises CacheError for what is missing, foreign or damaged, also while it is read."""
    if not path.is_file():
        raise CacheError(f"{path}: no such file. Make it with costl extract.")
    with translated(path):
        if not h5py.is_hdf5(path):
            raise CacheError(f"{path}: not an HDF5 file. Give the feats.h5 that costl extract wrote.")
        # Published files never change, so that no lock is needed and read-only folders work.
        with h5py.File(path, "r", locking=False) as file:
            yield file


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Whatever h5py, or a reader of its texts, makes of damage in the file at `path` becomes a CacheError."""
    try:
        yield
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


def get_attribute(file: h5py.File | Listed, name: str, kind: type) -> Any:
    """One scalar attribute of this kind (str, int or float). Raises CacheError for anything else."""
    if isinstance(file, Listed):
        if type(file.attributes.get(name)) is not kind:
            raise CacheError(f"{file.filename}: attribute {name!r} is not one {kind.__name__}. Pack it again.")
        return file.attributes[name]
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


def get_text(file: h5py.File | Listed, name: str) -> str:
    """The text stored under this name. Raises CacheError for anything that is not one plain string inside the file."""
    if isinstance(file, Listed):
        return _text(_plain(file.array(name), name, kind="S", ndim=0))
    dataset = _dataset(file, name)
    _locate(dataset, kind="S", ndim=0)
    return bytes(dataset[()]).decode()


def get_array(file: h5py.File | Listed, name: str, dtype: str, *, ndim: int) -> np.ndarray:
    """The array stored under this name. Raises CacheError for another type, another number of axes, or a bomb."""
    if isinstance(file, Listed):
        return np.array(locate_array(file, name, dtype, ndim=ndim).array())
    dataset = _dataset(file, name)
    _locate(dataset, kind=dtype, ndim=ndim)
    return np.asarray(dataset[()])


def locate_array(file: h5py.File | Listed, name: str, dtype: str, *, ndim: int) -> Location:
    """Where the array of this name lies, for a memory map. Raises CacheError as `get_array` does."""
    if isinstance(file, Listed):
        return _plain(file.array(name), name, kind=dtype, ndim=ndim)
    return _locate(_dataset(file, name), kind=dtype, ndim=ndim)


def names_in(file: h5py.File, name: str) -> list[str]:
    """The names inside a group, sorted. Raises CacheError when it is no group of this very file."""
    return sorted(group_in(file, name))


def has(file: h5py.File, name: str) -> bool:
    """Whether something, a link too, is called so at the top of the file."""
    return file.get(name, getlink=True) is not None


def group_in(file: h5py.File, name: str) -> h5py.Group:
    """The group of this name. Raises CacheError when it is no group of this very file."""
    node = _walk(file, name)
    if not isinstance(node, h5py.Group):
        raise CacheError(f"{file.filename}: {name!r} is not a group. It was not made by costl extract.")
    return node


def arrays_in(file: h5py.Group) -> dict[str, Location]:
    """Every array of a file or group by its path, in groups as well, sorted.

    Raises CacheError for links elsewhere, names for the same thing twice (and so cycles), and what is not plain bytes.
    """
    found: dict[str, Location] = {}
    seen: set[Any] = set()
    waiting = [(name, file) for name in file]
    while waiting:
        name, group = waiting.pop()
        node = _walk(group, name.rpartition("/")[2])
        token = h5py.h5o.get_info(node.id).addr
        if token in seen or len(seen) >= _MOST_NODES:
            raise CacheError(f"{file.file.filename}: {name!r} stands for what is there already. Extract again.")
        seen.add(token)
        if isinstance(node, h5py.Dataset):
            found[name] = _place(node)
        elif isinstance(node, h5py.Group):
            waiting += [(f"{name}/{inner}", node) for inner in node]
    return dict(sorted(found.items()))


def scalars_in(file: h5py.Group) -> dict[str, str | int | float]:
    """Every attribute of a file that is one text or finite number, sorted."""
    kinds = {"S": str, "i": int, "u": int, "f": float}
    found: dict[str, str | int | float] = {}
    for name in sorted(file.attrs):
        about = h5py.h5a.open(file.id, name.encode())
        if about.shape == () and about.dtype.kind in kinds:
            kind = kinds[about.dtype.kind]
            value = int(file.attrs[name]) if kind is int else get_attribute(file, name, kind)
            if kind is not float or math.isfinite(value):
                found[name] = value
    return found


def reserve(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Makes an array that is filled in when the file is closed; -> where its bytes will lie. Groups on the way are made."""
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)  # the same data give the same bytes
    *above, last = name.split("/")
    parent = group.require_group("/".join(above)) if above else group
    made = h5py.h5d.create(parent.id, last.encode(), h5py.h5t.py_create(dtype), space, dcpl=how)
    return int(made.get_offset() or 0) if 0 not in shape else 0


def _errno(error: Exception) -> int | None:
    """HDF5 reports some failures of the system in words alone."""
    found = re.search(r"errno = (\d+)", str(error))
    return getattr(error, "errno", None) or (int(found[1]) if found else None)


def _remedy(path: Path, code: int | None) -> str:
    if code in _FULL:
        return f"{_free(path)}Make room, then give the same command again."
    if code in _DENIED:
        return "Change its permissions, or choose another place for the cache."
    if code in _BROKEN:
        return "The disk, or the network to it, fails: see to that, then give the same command again."
    return "Check free space and permissions, then give the same command again."


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there. "
    except OSError:
        return ""


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
                f"{file.file.filename}: expected data under {name!r}, found {found}. It was not made by costl extract."
            )
        if not is_plain(node.file.id.get_vfd_handle(), h5py.h5o.get_info(node.id, part.encode()).addr):
            raise CacheError(
                f"{file.file.filename}: {name!r} is not what costl extract writes, its data may lie in another file. "
                "Extract again."
            )
        node = node[part]
    return node


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    node = _walk(file, name)
    if not isinstance(node, h5py.Dataset):
        raise CacheError(f"{file.filename}: {name!r} is not a dataset. It was not made by costl extract.")
    return node


def _locate(dataset: h5py.Dataset, *, kind: str, ndim: int) -> Location:
    return _plain(_place(dataset), dataset.name, kind=kind, ndim=ndim)


def _plain(found: Location, name: str, *, kind: str, ndim: int) -> Location:
    right_type = found.dtype.kind == "S" if kind == "S" else found.dtype == np.dtype(kind)
    if not right_type or len(found.shape) != ndim:
        raise CacheError(
            f"{found.path}: {name} is {found.dtype} {found.shape}, expected plain {kind} with {ndim} axes. Extract again."
        )
    return found


def _place(dataset: h5py.Dataset) -> Location:
    path, shape, dtype = Path(dataset.file.filename), dataset.shape, dataset.dtype
    plain = dataset.chunks is None and not dataset.is_virtual and not dataset.external
    if shape is None or dtype.kind not in PLAIN_KINDS or not plain:
        raise CacheError(f"{path}: {dataset.name} is {dtype} {shape}, expected plain bytes in the file. Extract again.")
    size = Location(path, 0, shape, dtype).size
    offset = dataset.id.get_offset() if size else 0
    if offset is None or offset < 0 or offset + size > path.stat().st_size:
        raise CacheError(f"{path}: {dataset.name} claims {size} bytes that the file does not hold. Extract again.")
    return Location(path, offset, shape, dtype)


def _text(found: Location) -> str:
    return bytes(found.array()[()]).decode()
