"""What an HDF5 object says of itself on disk, read before HDF5 opens it: opening some datasets opens other files.

A virtual dataset without a largest size has its sources opened, pipes and devices too, by no more than being opened itself.
Layout: HDF5 File Format Specification 3.0, IV.A.1.a (version 1 object header) and IV.A.2.i (data layout message).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

_PREFIX, _MESSAGE, _PLACE = struct.Struct("<BxHIIxxxx"), struct.Struct("<HHBxxx"), struct.Struct("<QQ")
_LAYOUT, _FILES, _CONTINUED = 0x0008, 0x0007, 0x0010
_VERSION_1, _LAST_PLAIN_LAYOUT = 1, 3  # from 4 on a layout may be virtual; libver="earliest" writes none of these
_MOST_BYTES = 1 << 20


def is_plain(descriptor: int, address: int) -> bool:
    """Whether the object at this place of an open file keeps its data, if it has any, in this file, as ours do.

    False also for headers of a version that we do not write.
    """
    if not hasattr(os, "pread"):  # Windows: it is looked at when it is open
        return True
    try:
        for kind, data in _messages(descriptor, address):
            if kind == _FILES or (kind == _LAYOUT and not 1 <= data[0] <= _LAST_PLAIN_LAYOUT):
                return False
    except (struct.error, IndexError, ValueError, OverflowError, OSError):
        return False
    return True


def _messages(descriptor: int, address: int) -> Iterator[tuple[int, bytes]]:
    version, _, _, size = _PREFIX.unpack(os.pread(descriptor, _PREFIX.size, address))
    if version != _VERSION_1:
        raise ValueError(f"an object header of version {version}")
    waiting, read = [(address + _PREFIX.size, size)], 0
    while waiting:
        start, size = waiting.pop()
        read += size
        if read > _MOST_BYTES:
            raise ValueError("an object header without an end")
        block, at = os.pread(descriptor, size, start), 0
        while at + _MESSAGE.size <= len(block):
            kind, length, _ = _MESSAGE.unpack_from(block, at)
            data = block[at + _MESSAGE.size : at + _MESSAGE.size + length]
            at += _MESSAGE.size + length
            if kind == _CONTINUED:
                waiting.append(_PLACE.unpack_from(data))
            yield kind, data
