"""Published sentences: for every query its words in context and one vector, from a file named after its qid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CostlError, UsageError, VideoError, some
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.published.arrays import KEY, Array, as_half, locate, look_at
from costl.pipeline.published.survey import refuse

# As Moment-DETR published them, and whoever followed.
WORDS, SENTENCE = "last_hidden_state", "pooler_output"


@dataclass(frozen=True)
class Text:
    """The words of every query; `layout` says where words and sentences came from and how wide they are."""

    words: Mapping[str, Words]
    layout: str

    @property
    def sentence_width(self) -> int:
        """Channels of a sentence."""
        return len(next(iter(self.words.values())).sentence)


def read_text(rows: Iterable[Mapping[str, Any]], folder: Path, tell: Tell, *, joint: str | None) -> Text:
    """The words of every distinct query of annotation `rows`, from the file of the first qid that asks it.

    With `joint`, the name of a stream, every file must hold a sentence of its own. Raises UsageError that lists the
    first files that are missing or cannot be used, or when they are not all of one layout.
    """
    if not folder.is_dir():
        raise UsageError(
            f"--text: {folder} is no folder. Pass the one with a file such as qid7803.npz for every query."
        )
    qids: dict[str, Any] = {}
    for row in rows:
        qids.setdefault(row["query"], row["qid"])
    words: dict[str, Words] = {}
    layouts: dict[str, str] = {}
    lost, bad = [], []
    for number, (query, qid) in enumerate(qids.items(), start=1):
        path = locate(folder, f"qid{qid}") or locate(folder, str(qid))
        if path is None:
            lost.append(f"qid{qid}")
            continue
        try:
            words[query], layout = _words(path, joint=joint)
            layouts.setdefault(layout, path.name)
        except CostlError as error:
            bad.append(str(error))
        tell(Progress("words", number, len(qids), path.name))
    if lost:
        raise UsageError(f"{folder}: {len(lost)} of {len(qids)} queries have no file: {some(lost)}, as .npz or .npy.")
    refuse(bad, "files of text")
    if len(layouts) != 1:
        told = "; ".join(f"{name} has {layout}" for layout, name in layouts.items()) or "no queries"
        raise UsageError(f"{folder}: the files are not of one kind ({told}). Make them again.")
    return Text(words, *layouts)


def _words(path: Path, *, joint: str | None) -> tuple[Words, str]:
    """What a file holds, and a phrase that says where it came from and how wide it is. Raises VideoError."""
    found = look_at(path, (WORDS, KEY, SENTENCE))
    source = next((key for key in (WORDS, KEY) if key in found), None)
    if source is None:
        raise VideoError(f"{path}: no {WORDS!r} or {KEY!r}, it has {', '.join(found)}.")
    if joint is not None and SENTENCE not in found:
        raise VideoError(f"{path}: no {SENTENCE!r}, which --joint {joint} compares with the frames.")
    if len(found[source].shape) != 2 or 0 in found[source].shape:
        raise VideoError(f"{path} ({source}): shape {found[source].shape}, expected (words, channels).")
    tokens = found[source].read()
    sentence = _vector(found[SENTENCE]) if SENTENCE in found else tokens.mean(axis=0)
    length = float(np.linalg.norm(sentence))
    if length == 0:
        raise VideoError(f"{path}: the sentence is all zeros. Make these features again.")
    # What was published are the words in context; the words by themselves, our first half, were not kept.
    both = np.concatenate([np.zeros_like(tokens), tokens], axis=1)
    layout = f"{source} {tokens.shape[1]}, {SENTENCE if SENTENCE in found else 'mean of words'} {len(sentence)}"
    return Words(tokens=as_half(both, path), sentence=(sentence / length).astype(np.float32)), layout


def _vector(array: Array) -> np.ndarray:
    """[c] of an array [c] or [1 c]."""
    if array.shape[:-1] not in ((), (1,)) or 0 in array.shape or not array.shape:
        raise VideoError(f"{array.path} ({array.key}): shape {array.shape}, expected (channels,).")
    return array.read().reshape(-1)
