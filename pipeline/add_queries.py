"""Words of new annotations into a cache that is there already: nothing is decoded, and no video need be here any more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import Contents, Index, VideoRow, read_index, seen_from, told_from, write_index
from costl.pipeline.cache.inspect import SHOWN
from costl.pipeline.cache.lock import locked
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.words import known_words, remove_others, words_folder, write_words
from costl.pipeline.data_folder import missing_videos, queries_in, read_annotations, rows_in
from costl.pipeline.encode.clip import Clip, load_clip
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CacheError, UsageError, some
from costl.pipeline.extract import encode_new, missing_row
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.progress import Progress, Tell

_SPLIT = re.compile(r"\w[\w.+ -]*")
# What decides words: sentences are always encoded in float32, and never preprocessed as pictures are.
_DECIDES_WORDS = ("model", "weights")


@dataclass(frozen=True)
class SplitChange:
    """A split that was added, or took the place of one of the same name: its rows `before` (None: it is new), `after`."""

    name: str
    before: int | None
    after: int


@dataclass(frozen=True)
class Addition:
    """What was added to a cache: its splits, how many queries were encoded (`new`) or had words already (`known`).

    `missing` are annotated videos without features, `truncated` the added queries longer than CLIP reads. `exit_code` is
    1 when a video is missing.
    """

    cache: Path
    splits: tuple[SplitChange, ...]
    new: int
    known: int
    missing: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return 1 if self.missing else 0

    def lines(self) -> list[str]:
        """The cache."""
        return [str(self.cache)]

    def data(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self) | {"cache": str(self.cache)}

    def messages(self) -> list[str]:
        """What became of the splits, which videos and words are missing, and the counts."""
        missing = [f"missing: {name}: annotated, but without features" for name in self.missing[:SHOWN]]
        cut = [f"cut: longer than CLIP reads, its end is lost: {query!r}" for query in self.truncated]
        counts = f"{self.new} queries encoded, {self.known} were there already."
        return [*map(_in_words, self.splits), *missing, *cut, counts]


def _in_words(split: SplitChange) -> str:
    change = "is new" if split.before is None else f"replaces one of {split.before} rows"
    return f"split {split.name}: {split.after} rows, {change}."


def add_words(
    cache: Path,
    annotations: Path,
    *,
    weights: str | None = None,
    allow_missing_videos: bool = False,
    device: str = "auto",
    progress: Tell | None = None,
) -> Addition:
    """Puts the splits of a JSONL file (its name is the split's) or folder, and their words, into the cache at `cache`.

    Features and rows stay as they are. The words that are new are encoded by the CLIP that the cache names, or by
    `weights` where it has moved. Annotated videos without features are refused unless `allow_missing_videos`; those
    the cache has never heard of then become rows of status "missing". The index is published at once: whatever happens,
    the old one stands with its words, or the new one. Raises UsageError for annotations that cannot be used, CacheError
    for a cache that is busy, damaged, imported, or made by another CLIP than the one at hand.
    """
    tell = progress or (lambda _: None)
    _refuse_other_places(cache)
    with locked(cache):
        index = read_index(cache)
        added = read_annotations(annotations)
        _check_names(added)
        lost = _videos_without_features(cache, index.rows, added, allow=allow_missing_videos)
        texts = dict(sorted({**index.contents.annotations, **added}.items()))  # so that adding again changes no byte
        kept = {query: words for query, words in known_words(cache).items() if words.texts}
        new = [query for query in queries_in(texts) if query not in kept]
        contents = replace(index.contents, annotations=texts)
        if new:
            clip, contents = _load(cache, contents, weights, device, tell)
            kept |= encode_new(clip, new, tell, even=True)
        rows = [*index.rows, *_rows_of(lost, index.rows)]
        _publish(cache, Index(contents, sorted(rows, key=lambda row: row.id), index.words), kept)
    asked = queries_in(added)
    return Addition(
        cache=cache,
        splits=tuple(_change(name, index.contents.annotations, added) for name in added),
        new=len(new),
        known=len(asked) - len(set(asked) & set(new)),
        missing=tuple(lost),
        truncated=tuple(query for query in asked if kept[query].truncated),
    )


def _refuse_other_places(cache: Path) -> None:
    read_index(cache)  # what is missing or no cache is said first
    if not words_folder(cache).is_dir():
        raise CacheError(
            f"{cache}: no words in {parts_folder(cache)}, where they are kept. Words are added to a cache with its parts "
            "beside it: put them there, or unpack it if it was packed."
        )


def _check_names(texts: Mapping[str, str]) -> None:
    # It becomes the name of a group in the index and of a folder in a run.
    wrong = [name for name in texts if not _SPLIT.fullmatch(name)]
    if wrong:
        raise UsageError(f"{wrong[0] + '.jsonl'!r}: cannot be the name of a split. Call the file, say, more.jsonl.")


def _videos_without_features(
    cache: Path, rows: Sequence[VideoRow], texts: Mapping[str, str], *, allow: bool
) -> list[str]:
    lost = missing_videos(texts, (row.name for row in rows if row.ok))
    if lost and not allow:
        status = {row.name: f" ({row.status})" for row in rows}
        named = some((f"{name}{status.get(name, '')}" for name in lost), last=", and ")
        raise UsageError(
            f"The annotations speak of {len(lost)} videos without features in {cache}: {named}. Extract "
            "them with costl extract --videos, take out their rows, or pass --allow-missing-videos to go on without them."
        )
    return lost


def _rows_of(lost: Sequence[str], rows: Sequence[VideoRow]) -> list[VideoRow]:
    known = {row.name for row in rows}
    return [missing_row(name) for name in lost if name not in known]


def _load(cache: Path, contents: Contents, weights: str | None, device: str, tell: Tell) -> tuple[Clip, Contents]:
    """The CLIP that made the features, and contents that say where it is now."""
    made_by = contents.fingerprint
    if not {*_DECIDES_WORDS, "precision"} <= made_by.keys():
        raise CacheError(
            f"{cache}: its features were imported, so that no CLIP is known to encode new queries with. Import them again "
            "with these annotations and the features of their words."
        )
    model, place = contents.source.get("model", made_by["model"]), contents.source.get("weights", "")
    asked = weights or seen_from(cache.parent, place)
    if not asked:
        raise CacheError(f"{cache}: does not say where its CLIP is. Name it with --weights.")
    tell(Progress("load", 0, 1, f"{model}, {asked}"))
    clip = _load_named(cache, model, asked, device=device, precision=made_by["precision"], given=weights is not None)
    differences = explain_difference(_pick(made_by), _pick(clip.fingerprint()), was="cache has", now="here is")
    if differences:
        raise CacheError(
            f"{cache} was made by another CLIP than {asked} ({'; '.join(differences)}). "
            "Give the one it was made by with --weights."
        )
    return clip, replace(contents, source={"model": model, "weights": told_from(cache.parent, asked)})


def _load_named(cache: Path, model: str, weights: str, *, device: str, precision: str, given: bool) -> Clip:
    try:
        return load_clip(model, weights, device=device, precision=precision)
    except UsageError as error:
        if given:
            raise
        raise UsageError(
            f"{error} {cache} was made with it: if it has moved, say where it is with --weights."
        ) from error


def _pick(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fingerprint[name] for name in _DECIDES_WORDS}


def _publish(cache: Path, index: Index, words: Mapping[str, Words]) -> None:
    """The words under a name of their own, then the index that names them, then away with what nobody names."""
    asked = queries_in(index.contents.annotations)
    name = write_words(words_folder(cache), {query: words[query] for query in asked})
    write_index(cache, replace(index, words=name))
    remove_others(words_folder(cache), name)


def _change(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> SplitChange:
    earlier = len(rows_in({name: before[name]})) if name in before else None
    return SplitChange(name, earlier, len(rows_in({name: after[name]})))
