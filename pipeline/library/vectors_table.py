"""The table of a search file: which video is at which rows. It is stored in columns, so that many videos open at once.

FOLDER/vectors.table    one JSON line with the format and the SHA-256 of the next line, which holds the columns
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.errors import CacheError, next_step
from costl.pipeline.formats.files import atomic_path

FORMAT = 1
TABLE = "vectors.table"
NEXT_STEP = "Delete it: the search file is made again from the cache."
_COLUMNS: dict[str, Any] = {"rows": np.int64, "clips": np.int64, "crcs": np.int64, "durations_s": np.float64}


@dataclass(frozen=True)
class VectorsTable:
    """The videos of a search file. All columns have one value for each video, in the order of its rows.

    `cache`: digest of the settings of the features. `data`: name of the file with the vectors, of which the first
    `written_rows` rows are valid, also those of videos that are gone. `checksums`: those of the cache's rows. A video has
    the rows [rows, rows + clips), whose CRC-32 is in `crcs`. Raises CacheError for values that disagree.
    """

    cache: str
    fps: float
    width: int
    data: str
    written_rows: int
    keys: tuple[str, ...]
    checksums: tuple[str, ...]
    rows: np.ndarray
    clips: np.ndarray
    crcs: np.ndarray
    durations_s: np.ndarray

    def __post_init__(self) -> None:
        columns = (self.checksums, self.rows, self.clips, self.crcs, self.durations_s)
        # The name is a file next to the table and nothing else.
        is_plain = re.fullmatch(r"vectors-[0-9a-f]{16}\.f16", self.data) and self.width > 0 and self.fps > 0
        if not is_plain or {np.shape(column) for column in columns} != {(len(self.keys),)}:
            raise CacheError("columns that disagree")
        if (self.rows < 0).any() or (self.clips < 1).any() or (self.rows + self.clips > self.written_rows).any():
            raise CacheError("rows that are outside of the file")


def write_table(folder: Path, table: VectorsTable) -> None:
    """Publishes the table in `folder`. Raises OSError when the disk refuses."""
    columns = vars(table) | {name: getattr(table, name).tolist() for name in _COLUMNS}
    content = json.dumps(columns, ensure_ascii=False).encode()
    head = json.dumps({"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    with atomic_path(folder / TABLE) as temporary:
        temporary.write_bytes(head + b"\n" + content)


def read_table(folder: Path) -> VectorsTable:
    """The table in `folder`. Raises CacheError when it is missing, damaged, foreign or of another format."""
    path = folder / TABLE
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError as error:
        raise CacheError(f"{path}: no such file. Update the library first.") from error
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). {next_step(error)}") from error
    try:
        header = json.loads(head)
        if header["format"] != FORMAT:
            raise CacheError(f"format {str(header['format'])[:20]}, this program reads {FORMAT}")
        if hashlib.sha256(content).hexdigest() != header["sha256"]:
            raise CacheError("its content has changed since it was written")
        return _from_columns(json.loads(content))
    except (CacheError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CacheError(f"{path}: damaged or foreign ({str(error)[:160]}). {NEXT_STEP}") from error


def _from_columns(columns: dict[str, Any]) -> VectorsTable:
    arrays: dict[str, np.ndarray] = {name: np.array(columns[name], dtype) for name, dtype in _COLUMNS.items()}
    return VectorsTable(
        cache=str(columns["cache"]),
        fps=float(columns["fps"]),
        width=int(columns["width"]),
        data=str(columns["data"]),
        written_rows=int(columns["written_rows"]),
        keys=tuple(columns["keys"]),
        checksums=tuple(columns["checksums"]),
        **arrays,
    )
