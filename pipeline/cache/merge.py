"""Merges the caches of several shares into one: rows, annotations and words together, parts linked or copied, index last."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents, VideoRow, relocate_contents
from costl.pipeline.cache.inspect import WrittenCache, failure_messages
from costl.pipeline.cache.part import locate_tokens, read_row, read_times
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.data_folder import SPLITS, queries_in
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CacheError, UsageError, first_few
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.formats.files import sync
from costl.pipeline.formats.strict_json import json_lines, read_json
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.shards import join_shares, lines_with_ends

# Of two rows for one video the lower rank wins; every status that names a failure has rank 0.
_RANKS = {"ok": -1, "pending": 1, "missing": 2}


@dataclass(frozen=True)
class MergeReport(WrittenCache):
    """The number of `videos` with features, and `notes` for the user."""

    videos: int = 0
    notes: tuple[str, ...] = ()

    def messages(self) -> list[str]:
        """The videos without features, the notes, and the counts."""
        counts = f"{self.videos} videos with features, {len(self.failed)} without."
        return [*failure_messages(self.cache, self.failed), *self.notes, counts]


def merge(out: Path, caches: Sequence[Path], *, progress: ProgressCallback | None = None) -> MergeReport:
    """Merges `caches` with the same fingerprint into `out`; an existing `out` is completed.

    The caches of all shares of a folder become, byte for byte, the cache of the whole folder. Of two rows for one video the
    one with features wins. Parts are hard links where the file system supports them, otherwise copies whose checksum is
    verified. An interrupted call can be repeated. Raises UsageError without caches to merge, CacheError naming what
    differs: fingerprints, settings, two different features of one video.
    """
    report_progress = progress or (lambda _: None)
    paths = {path.resolve(): path for path in caches if path.resolve() != out.resolve()}
    if not paths:
        raise UsageError(
            "costl cache merge: name the cache to write and the caches to join, such as feats.h5 a.h5 b.h5."
        )
    sources = [CacheReader(path) for path in paths.values()]
    readers = sources + ([CacheReader(out)] if out.exists() else [])
    _refuse_differences(readers)
    best_rows = _best_rows(readers)
    contents = _merged_contents(out, sources, readers)
    words = _merged_words(readers, queries_in(contents.annotations))
    with CacheWriter(out, contents, words) as writer:
        for number, (row, reader) in enumerate(best_rows, start=1):
            if row.ok and writer.reuse_if_unchanged(row.id, row.content_hash) != row:
                _publish_part(reader.part_path(row.name), writer.parts / row.part, row, contents)
            writer.adopt_row(row)
            report_progress(Progress("merge", number, len(best_rows), row.name))
        sync(writer.parts)
        writer.write_index()
    failed = tuple(row for row, _ in best_rows if not row.ok)
    return MergeReport(out, failed, videos=len(best_rows) - len(failed), notes=_notes(contents.share))


def _refuse_differences(readers: Sequence[CacheReader]) -> None:
    first = readers[0]
    for other in readers[1:]:
        names = {"was": f"{first.path} has", "now": f"{other.path} has"}
        differences = explain_difference(first.fingerprint, other.fingerprint, **names)
        differences += explain_difference(first.settings, other.settings, **names)
        if differences:
            raise CacheError(
                f"{other.path} cannot be joined with {first.path} ({'; '.join(differences)}). "
                "Extract all of them with the same settings."
            )


def _best_rows(readers: Sequence[CacheReader]) -> list[tuple[VideoRow, CacheReader]]:
    """The row of the lowest rank for each video, and its cache, by id. Raises CacheError for two different features."""
    best: dict[str, tuple[VideoRow, CacheReader]] = {}
    conflicts: dict[str, str] = {}
    for reader in readers:
        for row in reader.rows:
            best_row, best_reader = best.setdefault(row.id, (row, reader))
            if row.ok and best_row.ok and row != best_row:
                conflicts.setdefault(row.id, f"{row.name} ({best_reader.path} and {reader.path})")
            elif _RANKS.get(row.status, 0) < _RANKS.get(best_row.status, 0):
                best[row.id] = (row, reader)
    if conflicts:
        raise CacheError(
            f"{len(conflicts)} videos have different features in two caches: {first_few(conflicts.values())}. "
            "Delete the cache that is wrong, or extract it again, and merge then."
        )
    return [best[video_id] for video_id in sorted(best)]


def _merged_contents(out: Path, sources: Sequence[CacheReader], readers: Sequence[CacheReader]) -> Contents:
    # An earlier merge is needed only if these caches are not the whole without it.
    annotations, share = _merged_annotations(sources)
    if share or not all(reader.contents.share for reader in sources):
        annotations, share = _merged_annotations(readers)
    first = sources[0]
    contents = relocate_contents(first.contents, first.path.parent, out.parent)
    projection = next((reader.contents.projection for reader in readers if reader.contents.projection is not None), None)
    return replace(contents, annotations=annotations, share=share, projection=projection)


def _merged_annotations(readers: Sequence[CacheReader]) -> tuple[dict[str, str], dict[str, Any]]:
    """The text of every split, and the fields of the shares; these are empty once all shares are here."""
    names = {split for reader in readers for split in reader.splits}
    splits = [split for split in SPLITS if split in names] + sorted(names.difference(SPLITS))
    share = join_shares(reader.contents.share for reader in readers)
    if share is None:
        return {split: _concatenate(split, readers) for split in splits}, {}
    texts: dict[str, str] = {}
    numbers: dict[str, list[int]] = {}
    for split in splits:
        lines = _lines_by_number(split, readers)
        numbers[split] = sorted(lines)
        texts[split] = "".join(lines[number] for number in numbers[split])
    hashes = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    complete = hashes == share["files"] and share["shares"] == list(range(1, share["of"] + 1))
    return texts, {} if complete else share | {"places": numbers}


def _lines_by_number(split: str, readers: Sequence[CacheReader]) -> dict[int, str]:
    """The lines of a split by their number in the whole file."""
    merged: dict[int, str] = {}
    for reader in readers:
        numbers = reader.contents.share["places"].get(split, [])
        lines = lines_with_ends(reader.contents.annotations.get(split, ""))
        fits = len(numbers) == len(lines)
        if not fits or any(merged.get(n, line) != line for n, line in zip(numbers, lines, strict=True)):
            raise CacheError(f"{reader.path}: its {split}.jsonl does not fit its shares. Extract this share again.")
        merged |= zip(numbers, lines, strict=True)
    return merged


def _concatenate(split: str, readers: Sequence[CacheReader]) -> str:
    """The lines of one cache after those of the other; a line of an earlier cache is left out. Raises CacheError for two
    different lines with one qid."""
    texts = [reader.contents.annotations.get(split, "") for reader in readers]
    if len(set(texts)) == 1:
        return texts[0]
    lines = dict.fromkeys(line for text in texts for _, line in json_lines(text))
    counts = Counter(repr(read_json(line).get("qid")) for line in lines)
    repeated = [qid for qid, count in counts.items() if count > 1]
    if repeated:
        raise CacheError(
            f"{len(repeated)} qids of {split}.jsonl belong to different rows of two caches: {first_few(repeated)}. Give each "
            "row a qid of its own and extract one cache again. If rows were corrected, delete an earlier merge first."
        )
    return "".join(f"{line}\n" for line in lines)


def _merged_words(readers: Sequence[CacheReader], queries: Sequence[str]) -> dict[str, SentenceTokens]:
    """The tokens of these queries; of two caches with the same query, those of the first."""
    words: dict[str, SentenceTokens] = {}
    for reader in reversed(readers):
        words |= reader.word_table()
    missing = [query for query in queries if query not in words]
    if missing:
        raise CacheError(f"No cache has the words of {len(missing)} queries: {first_few(missing)}. Extract it again.")
    return {query: words[query] for query in queries}


def _publish_part(source: Path, target: Path, row: VideoRow, contents: Contents) -> None:
    """Links the part `source` as `target`, or copies it where links are not possible.

    Raises CacheError for a part that is missing or damaged, and when `target` cannot be written.
    """
    hdf5.refuse_link(source)
    if read_row(source, contents) != row:
        raise CacheError(f"{source}: not the part that its index lists. Run costl extract again for its cache.")
    with contextlib.suppress(OSError):  # another disk, or a file system without links
        target.unlink(missing_ok=True)  # a part that does not fit its row
        os.link(source, target)
        return
    with hdf5.atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        with hdf5.open_file(temporary) as file:
            checksum = locate_tokens(file, row.clips, contents).checksum(read_times(file, row.clips))
        if checksum != row.checksum:
            raise CacheError(f"{source}: damaged, its copy has another checksum. Delete it and extract this share again.")


def _notes(share: Mapping[str, Any]) -> tuple[str, ...]:
    missing = [f"{n}/{share['of']}" for n in range(1, share.get("of", 0) + 1) if n not in share["shares"]]
    return (f"Not all shares are here: {', '.join(missing)} can be joined later.",) if missing else ()
