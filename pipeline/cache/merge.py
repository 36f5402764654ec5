"""Caches of shares become one: rows, annotations and words together, parts linked or copied, the index last."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents, VideoRow, path_from, told_from
from costl.pipeline.cache.inspect import failures
from costl.pipeline.cache.part import check_part, checksum_of, layers_in, parts_folder, read_row, times_in
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.data_folder import SPLITS, queries_in
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CacheError, UsageError, some
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.run.shards import joined, lines_of

_WORST_LAST = ("missing", "pending")  # what says least: a video that one machine did not see, or none has got to


@dataclass(frozen=True)
class MergeReport:
    """How many videos have features now, how many parts were `linked` and `copied`; `failed` are the rows without any.

    `notes` are sentences for the person. `exit_code` is 1 when a video has no features.
    """

    cache: Path
    videos: int
    linked: int
    copied: int
    failed: tuple[VideoRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        """The cache."""
        return [str(self.cache)]

    def data(self) -> dict[str, Any]:
        """Every field, with a row for each video without features."""
        return vars(self) | {"cache": str(self.cache), "failed": [row.data() for row in self.failed]}

    def messages(self) -> list[str]:
        """The videos without features, the notes, and the counts."""
        counts = (
            f"{self.videos} videos with features, {len(self.failed)} without; "
            f"{self.linked} parts linked, {self.copied} copied."
        )
        return [*failures(self.cache, self.failed), *self.notes, counts]


def merge(out: Path, caches: Sequence[Path], *, progress: Tell | None = None) -> MergeReport:
    """Joins `caches` of one fingerprint into `out`, which may exist already and is then completed.

    Caches that `extract` made of all shares of a folder become, byte for byte, the cache of the whole folder. Of two
    rows for one video the one with features wins. Parts are hard links where the file system can, otherwise copies whose
    checksum is verified. Interrupted, the same call goes on. Raises UsageError where there is nothing to join, CacheError
    naming what differs: fingerprints, settings, two different features of one video, two annotations of one qid.
    """
    tell = progress or (lambda _: None)
    places = {path.resolve(): path for path in caches if path.resolve() != out.resolve()}
    if not places:
        raise UsageError(
            "costl cache merge: name the cache to write and the caches to join, such as feats.h5 a.h5 b.h5."
        )
    sources = [CacheReader(path) for path in places.values()]
    readers = sources + ([CacheReader(out)] if out.exists() else [])
    _refuse_differences(readers)
    chosen = _choose(readers)
    contents = _contents(out, sources, readers)
    words = _words(readers, queries_in(contents.annotations))
    linked = copied = 0
    with CacheWriter(out, contents, words) as writer:
        for number, (row, reader) in enumerate(chosen, start=1):
            if row.ok and not _is_here(parts_folder(out) / row.part, row, contents):
                by_link = _bring(reader.part_path(row.name), parts_folder(out) / row.part, row, contents)
                linked, copied = linked + by_link, copied + (not by_link)
            writer.adopt(row)
            tell(Progress("merge", number, len(chosen), row.name))
        hdf5.sync(parts_folder(out))
        writer.write_index()
    failed = tuple(row for row, _ in chosen if not row.ok)
    notes = _notes(contents)
    return MergeReport(out, len(chosen) - len(failed), linked, copied, failed, notes)


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


def _choose(readers: Sequence[CacheReader]) -> list[tuple[VideoRow, CacheReader]]:
    """For every video the row that says most, and whose it is, by id. Raises CacheError for two different features."""
    best: dict[str, tuple[VideoRow, CacheReader]] = {}
    apart: dict[str, str] = {}
    for reader in readers:
        for row in reader.rows:
            other, of = best.setdefault(row.id, (row, reader))
            if row.ok and other.ok and row != other:
                what = "of another file" if row.content_hash != other.content_hash else "other features"
                apart.setdefault(row.id, f"{row.name} ({of.path} and {reader.path}: {what})")
            elif _says(row) < _says(other):
                best[row.id] = row, reader
    if apart:
        raise CacheError(
            f"{len(apart)} videos have different features in two caches: {some(apart.values())}. "
            "Delete the cache that is wrong, or extract it again, and merge then."
        )
    return [best[name] for name in sorted(best)]


def _says(row: VideoRow) -> int:
    return -1 if row.ok else 1 + _WORST_LAST[::-1].index(row.status) if row.status in _WORST_LAST else 0


def _contents(out: Path, sources: Sequence[CacheReader], readers: Sequence[CacheReader]) -> Contents:
    first = sources[0]
    # What was merged before is needed only where these caches are not whole without it.
    texts, share = _annotations(sources)
    if share or not all(reader.contents.share for reader in sources):
        texts, share = _annotations(readers)
    source = first.source | {"weights": told_from(out.parent, first.source["weights"])} if first.source else {}
    videos = path_from(out.parent, first.videos) if first.videos else ""
    return replace(first.contents, annotations=texts, share=share, source=source, videos=videos)


def _annotations(readers: Sequence[CacheReader]) -> tuple[dict[str, str], dict[str, Any]]:
    """The text of every split, and what of the shares' places must be kept since some are still to come."""
    names = {split for reader in readers for split in reader.splits}
    splits = [split for split in SPLITS if split in names] + sorted(names.difference(SPLITS))
    together = joined(reader.contents.share for reader in readers)
    if together is None:
        return {split: _in_turn(split, readers) for split in splits}, {}
    texts: dict[str, str] = {}
    places: dict[str, list[int]] = {}
    for split in splits:
        lines = _by_place(split, readers)
        places[split] = sorted(lines)
        texts[split] = "".join(lines[place] for place in places[split])
    files = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    whole = files == together["files"] and together["shares"] == list(range(1, together["of"] + 1))
    return texts, {} if whole else together | {"places": places}


def _by_place(split: str, readers: Sequence[CacheReader]) -> dict[int, str]:
    found: dict[int, str] = {}
    for reader in readers:
        places = reader.contents.share["places"].get(split, [])
        lines = lines_of(reader.contents.annotations.get(split, ""))
        if len(places) != len(lines) or any(found.get(p, line) != line for p, line in zip(places, lines, strict=True)):
            raise CacheError(f"{reader.path}: its {split}.jsonl does not fit its shares. Extract this share again.")
        found |= zip(places, lines, strict=True)
    return found


def _in_turn(split: str, readers: Sequence[CacheReader]) -> str:
    """One cache's rows after the other's; a qid of an earlier cache must be the same row, and is left out."""
    kept: list[str] = []
    owner: dict[str, tuple[Any, CacheReader]] = {}
    for reader in readers:
        earlier = dict(owner)
        for line in lines_of(reader.contents.annotations.get(split, "")):
            if not line.strip():
                kept += [line] if reader is readers[0] else []
                continue
            row = json.loads(line)
            qid = json.dumps(row["qid"])
            if qid not in earlier:
                owner[qid] = row, reader
                kept += ["\n"] if kept and not kept[-1].endswith("\n") else []
                kept.append(line)
            elif earlier[qid][0] != row:
                raise CacheError(
                    f"{split}.jsonl: qid {qid} is one annotation in {earlier[qid][1].path} and another in {reader.path}. "
                    "Give one of them another qid and extract it again."
                )
    return "".join(kept)


def _words(readers: Sequence[CacheReader], queries: Iterable[str]) -> dict[str, Words]:
    known: dict[str, Words] = {}
    for reader in reversed(readers):
        known |= reader.all_words()
    missing = [query for query in queries if query not in known]
    if missing:
        raise CacheError(f"No cache has the words of {len(missing)} queries: {some(missing)}. Extract it again.")
    return {query: known[query] for query in queries}


def _is_here(path: Path, row: VideoRow, contents: Contents) -> bool:
    try:
        return path.is_file() and read_row(path, contents) == row
    except CacheError:
        return False


def _bring(source: Path, target: Path, row: VideoRow, contents: Contents) -> bool:
    """Publishes the part `source` as `target`; whether as a link. Raises CacheError for a copy that is not the same."""
    hdf5.refuse_link(source)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        linked = _link(source, aside)
        if linked and read_row(source, contents) != row:
            raise CacheError(f"{source}: not the part that its index speaks of. Run costl extract again for its cache.")
        if not linked:
            shutil.copyfile(source, aside)
            hdf5.sync(aside)
            _compare(aside, source, row, contents)
        os.replace(aside, target)
    except OSError as error:
        missing = error.errno == errno.ENOENT and not source.exists()
        what = f"{source}: no such part" if missing else f"{target}: cannot be written ({error.strerror})"
        raise CacheError(f"{what}. What was joined so far is kept; put it right and merge again.") from error
    finally:
        aside.unlink(missing_ok=True)
    return linked


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        return False
    return True


def _compare(copy: Path, source: Path, row: VideoRow, contents: Contents) -> None:
    with hdf5.reading(copy) as file:
        check_part(file, hdf5.get_attribute(file, "fingerprint", str))
        layers, times_s = layers_in(file, row.clips, contents), times_in(file, row.clips)
    if checksum_of(layers, times_s) != row.checksum:
        raise CacheError(f"{source}: damaged, its copy has another checksum. Delete it and extract this share again.")


def _notes(contents: Contents) -> tuple[str, ...]:
    if not contents.share:
        return ()
    absent = sorted(set(range(1, contents.share["of"] + 1)).difference(contents.share["shares"]))
    told = ", ".join(f"{number}/{contents.share['of']}" for number in absent)
    return (f"Not all shares are here: {told} can be joined later.",) if absent else ()
