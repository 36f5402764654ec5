"""Reads an HDF5 object's header on disk before HDF5 opens the object, since opening some datasets opens other files.

HDF5 opens the sources of a virtual dataset without a maximum size, pipes and devices included, as soon as the dataset is
opened. Layout: HDF5 File Format Specification 3.0, IV.A.1.a (version 1 object header) and IV.A.2.i (data layout message).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

_PREFIX, _MESSAGE, _CONTINUATION = struct.Struct("<BxHIIxxxx"), struct.Struct("<HHBxxx"), struct.Struct("<QQ")
_DATA_LAYOUT, _EXTERNAL_FILES, _CONTINUATION_TYPE = 0x0008, 0x0007, 0x0010
_VERSION_1 = 1
_LAST_LAYOUT_IN_FILE = 3  # from version 4 on a layout may be virtual; libver="earliest" writes none of these
_MAX_BYTES = 1 << 20


def is_self_contained(descriptor: int, address: int) -> bool:
    """Whether the object at this address of an open file keeps its data, if it has any, in the same file.

    False also for object headers of a version that extraction does not write.
    """
    if not hasattr(os, "pread"):  # Windows: `hdf5` checks the dataset after it is opened
        return True
    try:
        for kind, data in _messages(descriptor, address):
            if kind == _EXTERNAL_FILES or (kind == _DATA_LAYOUT and not 1 <= data[0] <= _LAST_LAYOUT_IN_FILE):
                return False
    except (struct.error, IndexError, ValueError, OverflowError, OSError):
        return False
    return True


def _messages(descriptor: int, address: int) -> Iterator[tuple[int, bytes]]:
    """The type and the data of every message in an object header."""
    version, _, _, size = _PREFIX.unpack(os.pread(descriptor, _PREFIX.size, address))
    if version != _VERSION_1:
        raise ValueError(f"an object header of version {version}")
    blocks = [(address + _PREFIX.size, size)]
    total = 0
    while blocks:
        start, size = blocks.pop()
        total += size
        if total > _MAX_BYTES:
            raise ValueError("an object header without an end")
        block = os.pread(descriptor, size, start)
        position = 0
        while position + _MESSAGE.size <= len(block):
            kind, length, _ = _MESSAGE.unpack_from(block, position)
            position += _MESSAGE.size
            data = block[position : position + length]
            position += length
            if kind == _CONTINUATION_TYPE:
                blocks.append(_CONTINUATION.unpack_from(data))
            yield kind, data
