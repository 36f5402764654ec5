"""The tokens of every query in one file next to the parts, named after its content and read by query as a memory map.

feats.h5.parts/words/<sha256>.h5    queries (JSON), texts (JSON: for each query a list, one text a token, or empty),
                                    tokens float16 [n 2*ct], ends int64 [q], sentences float32 [q e], truncated uint8 [q]

The index names the file that belongs to it. The file is written once in a run, while the index is written again and again:
for QVHighlights this file takes 250 MB, and the whole index 10 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import read_index
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CacheError, CostlError


class WordTable(Mapping[str, SentenceTokens]):
    """The tokens of all queries in a file, by query; a query's tokens are read when it is looked up.

    `group` is that of the words in a packed cache at `path`. Raises CacheError for a file that is missing, foreign or
    damaged, and for non-finite tokens.
    """

    def __init__(self, path: Path, group: str = ""):
        self.path = path
        self._group = group
        if not group:
            hdf5.refuse_link(path)
        with hdf5.open_file(path, group) as file:
            queries = json.loads(hdf5.get_text(file, "queries"))
            self._texts = json.loads(hdf5.get_text(file, "texts"))
            # Query i owns the rows from bounds[i] to bounds[i + 1] of the tokens.
            self._bounds = np.append(0, hdf5.get_array(file, "ends", "<i8", ndim=1))
            self._truncated = hdf5.get_array(file, "truncated", "|u1", ndim=1)
            self._tokens = hdf5.locate_array(file, "tokens", "<f2", ndim=2).array()
            self._sentences = hdf5.locate_array(file, "sentences", "<f4", ndim=2).array()
            self._check_lengths(queries)
            self._position = {str(query): i for i, query in enumerate(queries)}

    def __getitem__(self, query: str) -> SentenceTokens:
        i = self._position[query]
        try:
            return SentenceTokens(
                tokens=self._tokens[self._bounds[i] : self._bounds[i + 1]],
                sentence=self._sentences[i],
                truncated=bool(self._truncated[i]),
                texts=tuple(map(str, self._texts[i])),
            )
        except CostlError as error:
            raise CacheError(
                f"{self.path}: damaged at the query {query!r}: {error} Delete it and run costl extract again."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._position)

    def __len__(self) -> int:
        return len(self._position)

    def counts(self) -> dict[str, int]:
        """The number of queries, of their tokens, of channels in a token, and of truncated queries."""
        tokens, channels = self._tokens.shape
        truncated = int(np.count_nonzero(self._truncated))
        return {"queries": len(self), "tokens": tokens, "channels": channels, "truncated": truncated}

    def verify(self, name: str) -> None:
        """Reads everything. Raises CacheError when the content does not match the hash in `name`, the file's name."""
        with hdf5.open_file(self.path, self._group) as file:
            queries = hdf5.get_text(file, "queries")
            texts = hdf5.get_text(file, "texts")
        checksum = _checksum(queries, texts, self._tokens, self._bounds[1:], self._sentences, self._truncated)
        if f"{checksum}.h5" != name:
            raise CacheError(
                f"{self.path}: its content has changed since it was written. Delete it and run costl extract again."
            )

    def _check_lengths(self, queries: Any) -> None:
        texts = self._texts
        are_lists = isinstance(queries, list) and isinstance(texts, list) and all(isinstance(text, list) for text in texts)
        counts = (len(self._bounds) - 1, len(self._sentences), len(self._truncated))
        agree = are_lists and len({len(queries), len(texts), *counts}) == 1
        if not agree or (self._bounds[1:] < self._bounds[:-1]).any() or self._bounds[-1] != len(self._tokens):
            raise CacheError(f"{self.path}: the words do not fit their queries. Delete it and run costl extract again.")


def stored_words(path: Path) -> dict[str, SentenceTokens]:
    """The tokens of the queries in the cache at `path`; empty where there is no cache, or where they are damaged."""
    if not path.exists():
        return {}
    try:
        name = read_index(path).words_file
        table = WordTable(words_folder(path) / name)
        table.verify(name)
        return dict(table)
    except CacheError:
        return {}


def words_folder(path: Path) -> Path:
    """The folder with the words of the cache `path`."""
    return parts_folder(path) / "words"


def write_words(folder: Path, words: Mapping[str, SentenceTokens]) -> str:
    """Publishes the tokens of all queries in `folder` and returns the file's name.

    Raises CacheError when it cannot be written.
    """
    sentences = list(words.values())
    queries = json.dumps(list(words), ensure_ascii=False)
    texts = json.dumps([sentence.texts for sentence in sentences], ensure_ascii=False)
    arrays = {
        "tokens": np.concatenate([sentence.tokens for sentence in sentences] or [np.zeros((0, 0), np.float16)]),
        "ends": np.cumsum([len(sentence.tokens) for sentence in sentences], dtype=np.int64),
        "sentences": np.stack([sentence.sentence for sentence in sentences] or [np.zeros(0, np.float32)])[: len(words)],
        "truncated": np.array([sentence.truncated for sentence in sentences], np.uint8),
    }
    name = f"{_checksum(queries, texts, *arrays.values())}.h5"
    with hdf5.create_file(folder / name) as file:
        hdf5.put_text(file, "queries", queries)
        hdf5.put_text(file, "texts", texts)
        for label, array in arrays.items():
            file[label] = array
    return name


def remove_other_words(folder: Path, name: str) -> None:
    """Deletes the files of words in `folder` that the index no longer names; it names `name`."""
    for path in folder.glob("*.h5"):
        if path.name != name:
            # Windows cannot delete a file that another process reads; the next run deletes it.
            with contextlib.suppress(OSError):
                path.unlink()


def _checksum(queries: str, texts: str, *arrays: np.ndarray) -> str:
    hasher = hashlib.sha256(f"{queries}\n{texts}".encode())
    for array in arrays:
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()
