"""Adds the queries of new annotations to a finished cache: nothing is decoded, and no video file is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.annotations import compare_with_videos, with_known_names, with_similar_name
from costl.pipeline.cache.index import (
    Contents,
    Index,
    VideoRow,
    absolute_weights,
    read_index,
    relative_weights,
    write_index,
)
from costl.pipeline.cache.inspect import MAX_LISTED
from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.words import remove_other_words, words_folder, write_words
from costl.pipeline.data_folder import missing_videos, queries_in, read_annotations, rows_in
from costl.pipeline.encode.reload import reload_encoder
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CacheError, UsageError, first_few
from costl.pipeline.extract import missing_row
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.queries import encode_new, reusable_words

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

_SPLIT_NAME = re.compile(r"\w[\w.+ -]*")


@dataclass(frozen=True)
class SplitChange:
    """A split that was added, or replaced a split of the same name: its rows `before` (None if it is new) and `after`."""

    name: str
    before: int | None
    after: int

    def message(self) -> str:
        """The change in a sentence."""
        change = "is new" if self.before is None else f"replaces one of {self.before} rows"
        return f"split {self.name}: {self.after} rows, {change}."


@dataclass(frozen=True)
class AddQueriesReport:
    """What was added to a cache: its splits, and how many queries were encoded (`new`); all others were stored already.

    `missing`: annotated videos without features. `truncated`: added queries longer than CLIP reads. `notes`: what was read
    in another way than it is written, and durations that differ. `exit_code` is 1 if a video is missing.
    """

    cache: Path
    splits: tuple[SplitChange, ...]
    new: int
    missing: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 1 if self.missing else 0

    def lines(self) -> list[str]:
        """The path of the cache."""
        return [str(self.cache)]

    def data(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"cache": str(self.cache)}

    def messages(self) -> list[str]:
        """What happened to the splits, which videos are missing, which queries were cut, and how many are new."""
        splits = [split.message() for split in self.splits]
        missing = [f"missing: {name}: annotated, but without features" for name in self.missing[:MAX_LISTED]]
        cut = [f"cut: longer than CLIP reads, its end is ignored: {query!r}" for query in self.truncated]
        return [*splits, *missing, *cut, *self.notes, f"{self.new} new queries encoded."]


def add_queries(
    cache: Path,
    annotations: Path,
    *,
    weights: str | None = None,
    allow_missing_videos: bool = False,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> AddQueriesReport:
    """Adds the splits of a JSONL file (named like its split) or of a folder, and their queries, to the cache at `cache`.

    Features and existing rows do not change. New queries are encoded by the CLIP that the cache names, or by `weights` if
    it has moved. Annotated videos without features are refused unless `allow_missing_videos`; then those without a row get
    one of status "missing". The index is replaced in one step: at any time the old or the new one stands with its queries.
    Raises UsageError for annotations that cannot be used, CacheError for a cache that is busy, damaged, imported, or made
    by another CLIP.
    """
    report_progress = progress or (lambda _: None)
    _refuse_unextendable(cache)
    with locked_cache(cache):
        index = read_index(cache)
        added = read_annotations(annotations)
        _check_split_names(added)
        added, renamed = with_known_names(added, (row.name for row in index.rows))
        missing = _videos_without_features(cache, index.rows, added, allow=allow_missing_videos)
        texts = dict(sorted({**index.contents.annotations, **added}.items()))  # so that adding again changes no byte
        sentences = reusable_words(cache)
        new = [query for query in queries_in(texts) if query not in sentences]
        contents = replace(index.contents, annotations=texts)
        late, notes = compare_with_videos(replace(index, contents=contents), added)
        if late:
            raise UsageError("\n".join(late))
        if new:
            encoder, contents = _load_matching_encoder(cache, contents, weights, device, report_progress)
            sentences |= encode_new(encoder, new, report_progress)
        names = {row.name for row in index.rows}
        rows = [*index.rows, *(missing_row(name) for name in missing if name not in names)]
        rows.sort(key=lambda row: row.id)
        _publish(cache, Index(contents, rows, index.words_file), sentences)
    return AddQueriesReport(
        cache=cache,
        splits=tuple(_split_change(name, index.contents.annotations, added) for name in added),
        new=len(new),
        missing=tuple(missing),
        truncated=tuple(query for query in queries_in(added) if sentences[query].truncated),
        notes=(*renamed, *notes),
    )


def _refuse_unextendable(cache: Path) -> None:
    read_index(cache)  # first, so that a missing or foreign file gets its own message
    if not words_folder(cache).is_dir():
        raise CacheError(
            f"{cache}: no query tokens in {parts_folder(cache)}. Queries can only be added to a cache with its parts "
            "next to it: put them there, or unpack the cache if it was packed."
        )


def _check_split_names(texts: Mapping[str, str]) -> None:
    # The name becomes that of a group in the index and of a folder in a run.
    wrong = [name for name in texts if not _SPLIT_NAME.fullmatch(name)]
    if wrong:
        raise UsageError(f"{wrong[0] + '.jsonl'!r}: cannot be the name of a split. Call the file, say, more.jsonl.")


def _videos_without_features(
    cache: Path, rows: Sequence[VideoRow], texts: Mapping[str, str], *, allow: bool
) -> list[str]:
    missing = missing_videos(texts, (row.name for row in rows if row.ok))
    if missing and not allow:
        status = {row.name: f" ({row.status})" for row in rows}
        names = first_few((f"{with_similar_name(name, status)}{status.get(name, '')}" for name in missing), last=", and ")
        raise UsageError(
            f"The annotations name {len(missing)} videos without features in {cache}: {names}. Extract them with costl "
            "extract --videos, remove their rows, or pass --allow-missing-videos to go on without them."
        )
    return missing


def _load_matching_encoder(
    cache: Path, contents: Contents, weights: str | None, device: str, report_progress: ProgressCallback
) -> tuple[CLIPEncoder, Contents]:
    """The CLIP that made the features, and contents with the path of its weights now."""
    fingerprint = contents.fingerprint
    if not {"model", "weights", "precision"} <= fingerprint.keys():
        raise CacheError(
            f"{cache}: its features were imported, so there is no CLIP to encode new queries with. Import the features "
            "again with these annotations and the features of their sentences."
        )
    model = contents.source.get("model", fingerprint["model"])
    path = weights or absolute_weights(cache.parent, contents.source.get("weights", ""))
    if not path:
        raise CacheError(f"{cache}: does not say where its CLIP is. Name it with --weights.")
    encoder = reload_encoder(
        fingerprint, model, path, owner=str(cache), device=device, report_progress=report_progress
    )
    return encoder, replace(contents, source={"model": model, "weights": relative_weights(cache.parent, path)})


def _publish(cache: Path, index: Index, sentences: Mapping[str, SentenceTokens]) -> None:
    """Writes the query tokens under a new name, then the index that names them, then removes all other query tokens."""
    queries = queries_in(index.contents.annotations)
    name = write_words(words_folder(cache), {query: sentences[query] for query in queries})
    write_index(cache, replace(index, words_file=name))
    remove_other_words(words_folder(cache), name)


def _split_change(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> SplitChange:
    rows_before = len(rows_in({name: before[name]})) if name in before else None
    return SplitChange(name, rows_before, len(rows_in({name: after[name]})))
