"""The tokens of queries: encoded in batches, or reused from a cache that stores them already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from costl.pipeline.cache.words import stored_words
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

BATCH = 64  # sentences


def encode_queries(
    encoder: CLIPEncoder,
    queries: list[str],
    cache: Path,
    report_progress: ProgressCallback,
    *,
    fill_batches: bool = True,
) -> dict[str, SentenceTokens]:
    """The tokens of each query; those that `cache` stores already are not encoded again.

    For `fill_batches` and errors see `encode_new`.
    """
    sentences = reusable_words(cache)
    new = [query for query in queries if query not in sentences]
    sentences |= encode_new(encoder, new, report_progress, fill_batches=fill_batches)
    return {query: sentences[query] for query in queries}


def reusable_words(cache: Path) -> dict[str, SentenceTokens]:
    """The tokens that the cache stores of each query, except those of caches so old that they lack the texts of tokens."""
    return {query: sentence for query, sentence in stored_words(cache).items() if sentence.texts}


def encode_new(
    encoder: CLIPEncoder, queries: list[str], report_progress: ProgressCallback, *, fill_batches: bool = True
) -> dict[str, SentenceTokens]:
    """The tokens of these queries. Raises UsageError for a query without a word.

    With `fill_batches` the last batch is padded to the size of the others. The last bits of a token depend on how many
    sentences are encoded at once, and must not depend on what else was annotated.
    """
    sentences: dict[str, SentenceTokens] = {}
    for start in range(0, len(queries), BATCH):
        batch = queries[start : start + BATCH]
        padding = batch[:1] * (BATCH - len(batch)) if fill_batches else []
        sentences |= zip(batch, encoder.encode_text([*batch, *padding]), strict=False)
        report_progress(Progress("words", start + len(batch), len(queries)))
    return sentences
