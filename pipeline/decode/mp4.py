"""What decoders do not tell of a container: an MP4's index and edit list, and how long a file itself says it is."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def edit_list_s(path: Path) -> float | None:
    """Seconds an MP4's edit list leaves on screen; None without one. decord neither tells nor obeys it.

    Layout: ISO/IEC 14496-12, boxes moov/mvhd (8.2.2) and moov/trak/edts/elst (8.6.6).
    """
    try:
        film = _boxes(moov(path))
        header = film["mvhd"][0]
        scale = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
        shown = [_shown_ticks(_boxes(track)) for track in film.get("trak", [])]
        return max(shown, default=0) / scale or None
    except (KeyError, IndexError, struct.error, ZeroDivisionError):
        return None


def _shown_ticks(track: dict[str, list[bytes]]) -> int:
    """Length of a video track's edits in ticks of the film; 0 for other tracks and where the list does not say."""
    handler = _boxes(track["mdia"][0])["hdlr"][0]
    if handler[8:12] != b"vide" or "edts" not in track:
        return 0
    edits = _boxes(track["edts"][0])["elst"][0]
    entry = ">QqI" if edits[0] else ">IiI"
    count = struct.unpack_from(">I", edits, 4)[0]
    size = struct.calcsize(entry)
    entries = [struct.unpack_from(entry, edits, 8 + size * k) for k in range(min(count, len(edits) // size))]
    # A media time of -1 is a pause before the first frame.
    return sum(length for length, media_time, _ in entries if media_time >= 0)


def _boxes(data: bytes) -> dict[str, list[bytes]]:
    """The boxes in `data` by their four-letter kind."""
    boxes: dict[str, list[bytes]] = {}
    position = 0
    while position + 8 <= len(data):
        size = struct.unpack_from(">I", data, position)[0]
        if size < 8:
            break
        kind = data[position + 4 : position + 8].decode("latin-1")
        boxes.setdefault(kind, []).append(data[position + 8 : position + size])
        position += size
    return boxes


def moov(path: Path) -> bytes:
    """The content of an MP4's moov box, empty where there is none or it is cut short."""
    with open(path, "rb") as file:
        for kind, start, end in _outer_boxes(file):
            if kind == b"moov":
                file.seek(start)
                return file.read(end - start) if end <= os.fstat(file.fileno()).st_size else b""
    return b""


def _outer_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, where it ends by its own word) of each box of a file, in their order."""
    at = 0
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        if size < 8:  # 0 means 'to the end of the file', anything else is no MP4
            return
        yield kind, file.tell(), at + size
        if at + size > os.fstat(file.fileno()).st_size:
            return
        at += size
        file.seek(at)


def promised_bytes(path: Path) -> int:
    """How long a file says it is, in MP4 (and MOV), Matroska (and WebM) and AVI; 0 where it does not.

    Layout: ISO/IEC 14496-12, 4.2; RFC 8794, 4 and 11.2 (EBML header), RFC 9559, 5.1 (Segment);
    RIFF of the Multimedia Programming Interface 1.0.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if head[4:8] in _FIRST_BOXES:
            file.seek(0)
            # What follows the film may be padding or rubbish.
            return max((end for kind, _, end in _outer_boxes(file) if kind in (b"moov", b"moof", b"mdat")), default=0)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + struct.unpack_from("<I", head, 4)[0]
    if head[:4] != _EBML:
        return 0
    size, begin = _vint(head, 4)
    segment = begin + size
    if head[segment : segment + 4] != _SEGMENT:
        return 0
    size, begin = _vint(head, segment + 4)
    return begin + size if size else 0


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """(the number, where it ends): as many zero bits as bytes follow, then a one; all ones means that nobody knows: 0."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    field = data[at : at + length]
    if length > 8 or len(field) < length:
        return 0, at
    value = int.from_bytes(field, "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), at + length
