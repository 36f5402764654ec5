"""The words of every query in one file beside the parts, named after its content, read by query as a memory map.

feats.h5.parts/words/<sha256>.h5    queries (JSON), texts (JSON: for each query a list, one text a token, or none),
                                    tokens float16 [n 2*ct], ends int64 [q], sentences float32 [q e], truncated uint8 [q]

The index names the file it means. It is written once a run, where the index is written again and again: the words of
QVHighlights are 250 MB, all the rest of its index 10.
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
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CacheError, CostlError


class WordTable(Mapping[str, Words]):
    """The words in a file, by query; nothing is read before it is asked for.

    `listed` is the same file inside a packed one. Raises CacheError for a file that is missing, foreign or damaged, and
    for words that are no numbers.
    """

    def __init__(self, path: Path, listed: hdf5.Listed | None = None):
        self.path, self._listed = path, listed
        if listed is None:
            hdf5.refuse_link(path)
        with self._opened() as file:
            queries = json.loads(hdf5.get_text(file, "queries"))
            texts = json.loads(hdf5.get_text(file, "texts"))
            self._ends = hdf5.get_array(file, "ends", "<i8", ndim=1)
            self._truncated = hdf5.get_array(file, "truncated", "|u1", ndim=1)
            tokens = hdf5.locate_array(file, "tokens", "<f2", ndim=2)
            sentences = hdf5.locate_array(file, "sentences", "<f4", ndim=2)
            self._starts = np.concatenate([np.zeros(1, np.int64), self._ends])[:-1]
            _check(path, queries, texts, self._starts, self._ends, tokens, sentences, self._truncated)
            self._number = {str(query): i for i, query in enumerate(queries)}
            self._texts: list[list[str]] = texts
            self._tokens, self._sentences = tokens.array(), sentences.array()

    def __getitem__(self, query: str) -> Words:
        i = self._number[query]
        try:
            return Words(
                tokens=self._tokens[self._starts[i] : self._ends[i]],
                sentence=self._sentences[i],
                truncated=bool(self._truncated[i]),
                texts=tuple(map(str, self._texts[i])),
            )
        except CostlError as error:
            raise CacheError(
                f"{self.path}: damaged at the query {query!r}: {error} Delete it and run costl extract again."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._number)

    def __len__(self) -> int:
        return len(self._number)

    def counts(self) -> dict[str, int]:
        """How many queries, tokens of all of them, channels of a token, and queries that lost their end."""
        tokens, channels = self._tokens.shape
        cut = int(np.count_nonzero(self._truncated))
        return {"queries": len(self), "tokens": tokens, "channels": channels, "cut": cut}

    def verify(self, name: str = "") -> None:
        """Reads everything. Raises CacheError when it is not what the file (or `name`) is named after."""
        with self._opened() as file:
            queries, texts = (hdf5.get_text(file, name) for name in ("queries", "texts"))
        found = _digest(queries, texts, self._tokens, self._ends, self._sentences, self._truncated)
        if f"{found}.h5" != (name or self.path.name):
            raise CacheError(
                f"{self.path}: its content has changed since it was written. Delete it and run costl extract again."
            )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with hdf5.translated(self.path):
            if self._listed:
                yield self._listed
                return
            with hdf5.reading(self.path) as file:
                yield file


def write_words(folder: Path, words: Mapping[str, Words]) -> str:
    """Publishes the words in `folder`; -> the name of the file. Raises CacheError when it cannot be written."""
    every = list(words.values())
    queries = json.dumps(list(words), ensure_ascii=False)
    texts = json.dumps([one.texts for one in every], ensure_ascii=False)
    arrays = {
        "tokens": np.concatenate([one.tokens for one in every] or [np.zeros((0, 0), np.float16)]),
        "ends": np.cumsum([len(one.tokens) for one in every], dtype=np.int64),
        "sentences": np.stack([one.sentence for one in every] or [np.zeros(0, np.float32)])[: len(every)],
        "truncated": np.array([one.truncated for one in every], np.uint8),
    }
    name = f"{_digest(queries, texts, *arrays.values())}.h5"
    with hdf5.writing(folder / name) as file:
        hdf5.put_text(file, "queries", queries)
        hdf5.put_text(file, "texts", texts)
        for label, array in arrays.items():
            file[label] = array
    return name


def remove_others(folder: Path, name: str) -> None:
    """Deletes what no index names any more."""
    for path in folder.glob("*.h5"):
        if path.name != name:
            # Windows keeps a file that somebody reads; the next run takes it away.
            with contextlib.suppress(OSError):
                path.unlink()


def _digest(queries: str, texts: str, *arrays: np.ndarray) -> str:
    hasher = hashlib.sha256(f"{queries}\n{texts}".encode())
    for array in arrays:
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


def _check(
    path: Path,
    queries: Any,
    texts: Any,
    starts: np.ndarray,
    ends: np.ndarray,
    tokens: hdf5.Location,
    sentences: hdf5.Location,
    truncated: np.ndarray,
) -> None:
    lists = isinstance(queries, list) and isinstance(texts, list) and all(isinstance(one, list) for one in texts)
    fit = lists and len({len(queries), len(texts), len(ends), sentences.shape[0], len(truncated)}) == 1
    if not fit or (ends < starts).any() or (len(ends) and ends[-1] != tokens.shape[0]):
        raise CacheError(f"{path}: words that do not fit their queries. Delete it and run costl extract again.")


def words_folder(path: Path) -> Path:
    """Where the words of the cache `path` lie."""
    return parts_folder(path) / "words"


def known_words(path: Path) -> dict[str, Words]:
    """The words that an earlier run left in the cache at `path`; none where there is no cache, or they are damaged."""
    if not path.exists():
        return {}
    try:
        table = WordTable(words_folder(path) / read_index(path).words)
        table.verify()
        return dict(table)
    except CacheError:
        return {}
