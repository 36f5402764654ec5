"""Reads container headers: an MP4's index (moov box) and edit list, and the size in bytes that a file's header declares."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def edit_list_duration_s(path: Path) -> float | None:
    """The duration that an MP4's edit list leaves visible, in seconds; None without an edit list.

    decord neither reports nor applies the edit list. Layout: ISO/IEC 14496-12, boxes moov/mvhd (8.2.2) and
    moov/trak/edts/elst (8.6.6).
    """
    try:
        moov = read_moov(path)
        header = _child(moov, b"mvhd")
        ticks_per_second = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
        track_ticks = [_edit_list_ticks(track) for track in _children(moov, b"trak")]
        return max(track_ticks, default=0) / ticks_per_second or None
    except (IndexError, struct.error, ZeroDivisionError):
        return None


def read_moov(path: Path) -> bytes:
    """The content of an MP4's moov box; empty if the file has none or the box is cut short."""
    with open(path, "rb") as file:
        for kind, begin, end in _boxes(file):
            if kind == b"moov":
                file.seek(begin)
                content = file.read(end - begin)
                return content if len(content) == end - begin else b""
    return b""


def declared_bytes(path: Path) -> int:
    """The file size that the header of an MP4 (MOV), Matroska (WebM) or AVI declares; 0 where it declares none.

    Layout: ISO/IEC 14496-12, 4.2; RFC 8794, 4 and 11.2 (EBML header), RFC 9559, 5.1 (Segment);
    RIFF of the Multimedia Programming Interface 1.0.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if head[4:8] in _FIRST_BOXES:
            # Boxes of other kinds may be padding or garbage at the end of the file.
            ends = [end for kind, _, end in _boxes(file) if kind in (b"moov", b"moof", b"mdat")]
            return max(ends, default=0)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + struct.unpack_from("<I", head, 4)[0]
    if head[:4] != _EBML:
        return 0
    size, begin = _read_vint(head, 4)
    segment = begin + size
    if head[segment : segment + 4] != _SEGMENT:
        return 0
    size, begin = _read_vint(head, segment + 4)
    return begin + size if size else 0


def _edit_list_ticks(track: bytes) -> int:
    """Length of a video track's edits in ticks of the movie; 0 for other tracks and for tracks without an edit list."""
    handler = _child(_child(track, b"mdia"), b"hdlr")
    edit_lists = _children(track, b"edts")
    if handler[8:12] != b"vide" or not edit_lists:
        return 0
    edits = _child(edit_lists[0], b"elst")
    entry = struct.Struct(">QqI" if edits[0] else ">IiI")
    count = struct.unpack_from(">I", edits, 4)[0]
    entries = entry.iter_unpack(edits[8 : 8 + min(count, (len(edits) - 8) // entry.size) * entry.size])
    # A media time of -1 is a pause before the first frame.
    return sum(length for length, media_time, _ in entries if media_time >= 0)


def _child(data: bytes, kind: bytes) -> bytes:
    """The content of the first box of this kind in `data`. Raises IndexError if there is none."""
    return _children(data, kind)[0]


def _children(data: bytes, kind: bytes) -> list[bytes]:
    return [data[begin:end] for found, begin, end in _boxes(io.BytesIO(data)) if found == kind]


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin of its content, declared end) of each box of a file, in order; not of the boxes inside them."""
    size_of_file = file.seek(0, os.SEEK_END)
    end = 0
    while end <= size_of_file:
        begin = file.seek(end)
        head = file.read(8)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        if size < 8:  # 0 means "to the end of the file"; any other value is not an MP4
            return
        end = begin + size
        yield kind, file.tell(), end


def _read_vint(data: bytes, begin: int) -> tuple[int, int]:
    """(value, where it ends) of a variable-length integer of EBML.

    The number of leading zero bits is the number of bytes that follow. All ones mean "unknown size", which gives 0.
    """
    length = 9 - data[begin].bit_length() if begin < len(data) else 9
    field = data[begin : begin + length]
    if length > 8 or len(field) < length:
        return 0, begin
    unknown = (1 << 7 * length) - 1
    value = int.from_bytes(field, "big") & unknown
    return (0 if value == unknown else value), begin + length
