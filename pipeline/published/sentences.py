"""Published text features: the contextual words and one vector of every query, from a file named after its qid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.published.arrays import FEATURES_KEY, StoredArray, find_file, read_headers, to_float16
from costl.pipeline.published.checks import refuse_unusable

# The keys of Moment-DETR's published text features, which later papers use as well.
WORDS_KEY = "last_hidden_state"
SENTENCE_KEY = "pooler_output"


def read_text_features(
    rows: Iterable[Mapping[str, Any]], folder: Path, *, joint: str | None, report_progress: ProgressCallback
) -> tuple[dict[str, SentenceTokens], str]:
    """(the tokens of every distinct query of annotation `rows`, the keys and widths that they were read from as text).

    The file of a query is that of its first qid. With `joint`, the name of a stream, every file must have a sentence
    vector. Raises UsageError that lists the first files that are missing or cannot be used, for files of different layouts,
    and for two queries with one qid.
    """
    if not folder.is_dir():
        raise UsageError(
            f"--text: {folder} is not a folder. Pass the folder with a file such as qid7803.npz for every query."
        )
    qids: dict[str, Any] = {}
    queries: dict[str, str] = {}
    for row in rows:
        qids.setdefault(row["query"], row["qid"])
        query = queries.setdefault(str(row["qid"]), row["query"])
        if query != row["query"]:
            raise UsageError(
                f"qid {row['qid']} belongs to two queries, {query!r} and {row['query']!r}, and there is one file of text "
                "features for both. Give each query a qid of its own."
            )
    tokens: dict[str, SentenceTokens] = {}
    layouts: dict[str, str] = {}
    errors: list[str] = []
    for number, (query, qid) in enumerate(qids.items(), start=1):
        path = find_file(folder, f"qid{qid}") or find_file(folder, str(qid))
        try:
            if path is None:
                raise VideoError(f"{folder}: no qid{qid}.npz or .npy.")
            tokens[query], layout = _read_query(path, joint=joint)
            layouts.setdefault(layout, path.name)
        except CostlError as error:
            errors.append(str(error))
        report_progress(Progress("words", number, len(qids), f"qid{qid}"))
    refuse_unusable(errors, "text files")
    if len(layouts) > 1:
        listed = "; ".join(f"{name} has {layout}" for layout, name in layouts.items())
        raise UsageError(f"{folder}: the files differ in layout ({listed}). Extract them again.")
    (layout,) = layouts
    return tokens, layout


def _read_query(path: Path, *, joint: str | None) -> tuple[SentenceTokens, str]:
    """Returns the tokens of a file, and the keys and widths they have as text. Raises VideoError."""
    arrays = read_headers(path, (WORDS_KEY, FEATURES_KEY, SENTENCE_KEY))
    words_key = next((key for key in (WORDS_KEY, FEATURES_KEY) if key in arrays), None)
    if words_key is None:
        raise VideoError(f"{path}: no {WORDS_KEY!r} or {FEATURES_KEY!r}, it has {', '.join(arrays)}.")
    if joint is not None and SENTENCE_KEY not in arrays:
        raise VideoError(f"{path}: no {SENTENCE_KEY!r}, which --joint {joint} compares with the frames.")
    shape = arrays[words_key].shape
    if len(shape) != 2 or 0 in shape:
        raise VideoError(f"{path} ({words_key}): shape {shape}, expected (words, channels).")
    words = arrays[words_key].read()
    sentence = _read_vector(arrays[SENTENCE_KEY]) if SENTENCE_KEY in arrays else words.mean(axis=0)
    norm = float(np.linalg.norm(sentence))
    if norm == 0:
        raise VideoError(f"{path}: the sentence is all zeros. Extract these features again.")
    # A cached token is the word embedding followed by the contextual word. Only the contextual words are published.
    tokens = np.concatenate([np.zeros_like(words), words], axis=1)
    sentence_source = SENTENCE_KEY if SENTENCE_KEY in arrays else "mean of words"
    layout = f"{words_key} {words.shape[1]}, {sentence_source} {len(sentence)}"
    return SentenceTokens(tokens=to_float16(tokens, path), sentence=(sentence / norm).astype(np.float32)), layout


def _read_vector(array: StoredArray) -> np.ndarray:
    """[c] of an array [c] or [1 c]."""
    if array.shape[:-1] not in ((), (1,)) or 0 in array.shape or not array.shape:
        raise VideoError(f"{array.path} ({array.key}): shape {array.shape}, expected (channels,).")
    return array.read().reshape(-1)
