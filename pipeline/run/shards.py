"""Which videos belong to which share when several machines divide a folder, and the annotations of a share.

A video belongs to the share that the sha256 of its id falls into, so each process can tell from the name alone. All
processes agree, whatever the folder holds when each of them starts, and a video added later moves no other video. Shares
by size would be more even for a few dozen videos (among thousands, shares differ by a few percent), but all processes
would have to see the same folder at the same moment, and one new video might move many.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import read_index
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.videos import safe_id


@dataclass(frozen=True)
class Share:
    """One of `of` shares of a folder, counted from 1."""

    number: int
    of: int

    def holds(self, video_id: str) -> bool:
        """Whether a video belongs to this share."""
        hashed = hashlib.sha256(video_id.encode()).digest()
        return int.from_bytes(hashed[:8], "big") % self.of == self.number - 1

    def select_annotations(self, texts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
        """The lines of checked annotations about this share's videos, and the share's fields for the index.

        The fields hold the line numbers, from 0, in the whole files. Blank lines belong to the first share, so that all
        shares together are the files, byte for byte.
        """
        selected: dict[str, str] = {}
        places: dict[str, list[int]] = {}
        for split, text in texts.items():
            lines = lines_with_ends(text)
            places[split] = [number for number, line in enumerate(lines) if self._holds_line(line)]
            selected[split] = "".join(lines[number] for number in places[split])
        files = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
        return selected, {"shares": [self.number], "of": self.of, "places": places, "files": files}

    def _holds_line(self, line: str) -> bool:
        return self.holds(safe_id(json.loads(line)["vid"])) if line.strip() else self.number == 1


def parse_share(text: str) -> Share:
    """`2/4` is the second of four. Raises UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text!r}: expected I/N, such as 1/4, 2/4, 3/4 and 4/4 for four processes.")
    return Share(int(match[1]), int(match[2]))


def refuse_other_shares(path: Path, share: Share) -> None:
    """Raises CacheError if the cache at `path` holds videos of other shares, which a run would drop from its index."""
    if not path.exists():
        return
    others = [row.name for row in read_index(path).rows if not share.holds(row.id)]
    if others:
        raise CacheError(
            f"{path} holds {len(others)} videos that are not of share {share.number}/{share.of}, such as {others[0]}. "
            f"Give each share its own cache, such as --out {path.stem}-{share.number}.h5, and join them with "
            "costl cache merge."
        )


def lines_with_ends(text: str) -> list[str]:
    """The lines of a file with their line ends; joined they are the file."""
    return list(io.StringIO(text, newline="\n"))


def join_shares(shares: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The fields `shares`, `of` and `files` of several shares together; None unless all are shares of the same files."""
    parts = [checked_share(share) for share in shares]
    if not parts or not all(parts):
        return None
    first = parts[0]
    if any((part["of"], part["files"]) != (first["of"], first["files"]) for part in parts):
        return None
    numbers = sorted({number for part in parts for number in part["shares"]})
    return {"shares": numbers, "of": first["of"], "files": first["files"]}


def checked_share(share: Any) -> dict[str, Any]:
    """The fields of a share, as `Share.select_annotations` writes them. Raises CacheError for anything else."""
    if share == {}:
        return {}
    kinds = {"shares": list, "of": int, "places": dict, "files": dict}
    valid = isinstance(share, dict) and share.keys() == kinds.keys()
    valid = valid and all(isinstance(share[name], kind) for name, kind in kinds.items())
    if not valid or not _are_whole_numbers(share["shares"], *share["places"].values()):
        raise CacheError(f"cache: share {str(share)[:80]!r}. The index is foreign or damaged.")
    return dict(share)


def _are_whole_numbers(*lists: Any) -> bool:
    return all(isinstance(values, list) and all(isinstance(n, int) and n >= 0 for n in values) for values in lists)
