"""Which videos are whose when several machines share a folder by hand, and the annotations of a share.

A video belongs to the share that the sha256 of its id falls into. So every process decides alone, from the name: they
never disagree, whatever is in the folder when each of them starts, and a video that is added later moves no other. Shares
by size would be more even for a few dozen videos (of thousands each share has its part to within some percent), but then
all must see the same folder at the same moment, and one new video may move many.
"""

from __future__ import annotations

import hashlib
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
        """Whether a video is of this share."""
        hashed = hashlib.sha256(video_id.encode()).digest()
        return int.from_bytes(hashed[:8], "big") % self.of == self.number - 1

    def cut(self, texts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
        """The lines of checked annotations that are about this share's videos; and where in their files they stood.

        Lines that are blank belong to the first share, so that all shares together are the files, byte for byte.
        """
        mine: dict[str, str] = {}
        places: dict[str, list[int]] = {}
        for split, text in texts.items():
            lines = lines_of(text)
            places[split] = [place for place, line in enumerate(lines) if self._owns(line)]
            mine[split] = "".join(lines[place] for place in places[split])
        files = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
        return mine, {"shares": [self.number], "of": self.of, "places": places, "files": files}

    def _owns(self, line: str) -> bool:
        return self.holds(safe_id(json.loads(line)["vid"])) if line.strip() else self.number == 1


def parse_share(text: str) -> Share:
    """`2/4` is the second of four. Raises UsageError for anything else."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text!r}: expected I/N, such as 1/4, 2/4, 3/4 and 4/4 for four processes.")
    return Share(int(found[1]), int(found[2]))


def refuse_others(path: Path, share: Share) -> None:
    """Raises CacheError when the cache at `path` has videos that are not of this share: they would leave its index."""
    if not path.exists():
        return
    others = [row.name for row in read_index(path).rows if not share.holds(row.id)]
    if others:
        raise CacheError(
            f"{path} holds {len(others)} videos that are not of share {share.number}/{share.of}, such as {others[0]}. "
            f"Give every share a cache of its own, such as --out {path.stem}-{share.number}.h5, and join them with "
            "costl cache merge."
        )


def lines_of(text: str) -> list[str]:
    """The lines of a file with their ends: put together they are the file."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1].removesuffix("\n")
    return lines if lines[-1] else lines[:-1]


def joined(shares: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """`shares`, `of` and `files` of several shares together; None where they are not all of the same files."""
    found = [checked(share) for share in shares]
    if not found or not all(found) or any((s["of"], s["files"]) != (found[0]["of"], found[0]["files"]) for s in found):
        return None
    numbers = sorted({number for share in found for number in share["shares"]})
    return {"shares": numbers, "of": found[0]["of"], "files": found[0]["files"]}


def checked(share: Any) -> dict[str, Any]:
    """What `Share.cut` says of a share, as a file has it. Raises CacheError for anything else."""
    if share == {}:
        return {}
    kinds = {"shares": list, "of": int, "places": dict, "files": dict}
    right = isinstance(share, dict) and share.keys() == kinds.keys()
    right = right and all(isinstance(share[name], kind) for name, kind in kinds.items())
    if not right or not _whole_numbers(share["shares"], *share["places"].values()):
        raise CacheError(f"cache: share {str(share)[:80]!r}. The index is foreign or damaged.")
    return dict(share)


def _whole_numbers(*lists: Any) -> bool:
    return all(isinstance(one, list) and all(isinstance(n, int) and n >= 0 for n in one) for one in lists)
