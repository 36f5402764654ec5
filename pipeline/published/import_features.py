"""Published frame features in the place of stage one: look at every file, then write the cache, one video at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache.index import Contents, VideoRow
from costl.pipeline.cache.inspect import failures
from costl.pipeline.cache.lock import refuse_if_busy
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.writer import CacheWriter, check_fingerprint
from costl.pipeline.data_folder import ExtractSettings, read_annotations, read_settings, rows_in, without_patches
from costl.pipeline.encode.types import Joint
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.fingerprint import digest
from costl.pipeline.options import FAILURES_IN_A_ROW
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.published.arrays import Array, as_half
from costl.pipeline.published.sentences import Text, read_text
from costl.pipeline.published.survey import Source, Survey, durations_in, survey
from costl.pipeline.videos import content_hash, safe_id

_CLIP_SCALE = 100.0  # the temperature that every published CLIP was trained to


@dataclass(frozen=True)
class ImportReport:
    """What an import did: names of videos written now (`done`) and found finished (`skipped`), rows of the others.

    `cut` and `padded` count videos with a stream of a clip or two too many or too few. `joint` is the stream that lies
    in a space with the sentences, if any. `exit_code` is 1 when a video is missing or failed.
    """

    cache: Path
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[VideoRow, ...] = ()
    cut: int = 0
    padded: int = 0
    joint: str = ""

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
        """The videos without features, what is odd about the features, and the counts."""
        messages = failures(self.cache, self.failed)
        if self.cut or self.padded:
            messages.append(
                f"Lengths differ from the annotations: {self.cut} videos were cut, {self.padded} had their last row repeated."
            )
        if not self.joint:
            messages.append("No --joint: frames and sentences have no common space, so their similarity is not used.")
        return [
            *messages,
            f"{len(self.done)} videos imported, {len(self.skipped)} were there already, {len(self.failed)} failed.",
        ]


def import_features(
    annotations: Path,
    *,
    features: Mapping[str, Path],
    text: Path,
    out: Path = Path("feats.h5"),
    fps: float | None = None,
    joint: str | None = None,
    normalize: bool = True,
    allow_missing: bool = False,
    progress: Tell | None = None,
) -> ImportReport:
    """Turns published features into the cache `out`, or completes it: frames of one token and no patches.

    `features` names a folder for each stream, with one `<vid>.npz` (`features` [t c]) or `.npy` [t c] a video; a frame is
    their concatenation in this order, each of length one unless `normalize` is off. `text` holds `qid<qid>` or `<qid>`,
    .npz or .npy: the words [l c] as `last_hidden_state` or `features`, the sentence [c] as `pooler_output` (where there
    is none, the mean of the words). `fps` wins over the costl.yaml beside the annotations, and is 0.5 without one.
    `joint` names the stream that lies in one space with the sentences. A stream that is a clip or two off is cut, or its
    last frame repeated. Files that were imported are not written again unless they changed.

    Raises UsageError, before anything is written, for annotations or files that are missing, damaged, or do not fit each
    other; CacheError for a cache of other settings, damaged or busy; CostlError after 20 failures in a row.
    """
    tell = progress or (lambda _: None)
    if not features:
        raise UsageError(
            "No features: pass --features NAME=DIR for every stream, such as --features clip=clip_features."
        )
    if joint is not None and joint not in features:
        raise UsageError(f"--joint {joint}: no such stream, only {', '.join(features)}.")
    texts = read_annotations(annotations)
    from_folder = read_settings(annotations if annotations.is_dir() else annotations.parent)
    rate = _rate(fps, from_folder.extract)
    refuse_if_busy(out)
    found = survey(durations_in(rows_in(texts)), features, fps=rate, allow_missing=allow_missing, tell=tell)
    asked = read_text(rows_in(texts), text, tell, joint=joint)
    contents = Contents(
        fingerprint=_fingerprint(found, asked, fps=rate, joint=joint, normalize=normalize),
        fps=rate,
        patch_grid=(0, 0),
        joint=_joint(found.widths, joint, asked.sentence_width),
        annotations=texts,
        settings=without_patches(from_folder.train),
    )
    check_fingerprint(out, contents.fingerprint)
    with CacheWriter(out, contents, asked.words) as writer:
        skipped = _keep_finished(found, writer, tell)
        rows = _store(found, skipped, writer, tell, normalize=normalize)
        lost = [_note_missing(writer, name, lacks) for name, lacks in found.missing.items()]
    return ImportReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(skipped),
        failed=(*lost, *(row for row in rows if not row.ok)),
        cut=sum(source.cut for source in found.videos),
        padded=sum(source.padded for source in found.videos),
        joint=joint or "",
    )


def _rate(asked: float | None, from_folder: Mapping[str, Any]) -> float:
    given = (
        {"fps": asked} if asked is not None else {name: value for name, value in from_folder.items() if name == "fps"}
    )
    return float(ExtractSettings(**given).fps)


def _fingerprint(found: Survey, asked: Text, *, fps: float, joint: str | None, normalize: bool) -> dict[str, Any]:
    return {
        "source": "imported features",
        "streams": ", ".join(f"{name} {width}" for name, width in found.widths.items()),
        "normalize": normalize,
        "joint": joint or "none",
        "text": asked.layout,
        "fps": fps,
    }


def _joint(widths: Mapping[str, int], stream: str | None, sentence_width: int) -> Joint:
    """A projection that picks the channels of `stream`; without one all zeros, since nothing is known."""
    width = sum(widths.values())
    projection = np.zeros((width, sentence_width), np.float32)
    if stream is not None:
        if widths[stream] != sentence_width:
            raise UsageError(
                f"--joint {stream}: its frames have {widths[stream]} channels and the sentences {sentence_width}, so that "
                "they cannot be compared. Leave --joint out."
            )
        before = sum(list(widths.values())[: list(widths).index(stream)])
        projection[before : before + sentence_width] = np.eye(sentence_width)
    return Joint(
        norm_weight=np.ones(width, np.float32),
        norm_bias=np.zeros(width, np.float32),
        norm_eps=1e-5,
        projection=projection,
        logit_scale=_CLIP_SCALE,
        normed=False,
    )


def _keep_finished(found: Survey, writer: CacheWriter, tell: Tell) -> list[str]:
    """The names of videos whose part is whole and whose files and duration are still the same."""
    kept = []
    for number, source in enumerate(found.videos, start=1):
        video_id = safe_id(source.name)
        there = (parts_folder(writer.path) / f"{video_id}.h5").exists()
        if there and writer.keep(video_id, _hash(source)):
            kept.append(source.name)
        else:
            writer.note(video_id, name=source.name, status="pending", reason="not imported yet.")
        tell(Progress("check", number, len(found.videos), source.name))
    writer.write_index()
    return kept


def _store(
    found: Survey, skipped: Iterable[str], writer: CacheWriter, tell: Tell, *, normalize: bool
) -> list[VideoRow]:
    """Writes the others, one after the other. Raises CostlError after too many failures in a row."""
    known, rows, in_a_row = set(skipped), [], 0
    missing = [source for source in found.videos if source.name not in known]
    for source in missing:
        row = _store_one(source, writer, normalize=normalize)
        rows.append(row)
        in_a_row = 0 if row.ok else in_a_row + 1
        if in_a_row == FAILURES_IN_A_ROW:
            raise CostlError(
                f"{in_a_row} videos in a row failed, the last one: {row.reason} What was finished is kept."
            )
        tell(Progress("videos", len(rows), len(missing), row.reason or row.name))
    return rows


def _store_one(source: Source, writer: CacheWriter, *, normalize: bool) -> VideoRow:
    try:
        content, tokens = _hash(source), _frames(source, normalize=normalize)
    except VideoError as error:
        return writer.note(safe_id(source.name), name=source.name, status=error.status, reason=str(error))
    return writer.store(
        safe_id(source.name),
        name=source.name,
        tokens=tokens[:, None],
        times_s=source.grid.centres_s(),
        duration_s=source.grid.duration_s,
        content_hash=content,
        decoder="imported",
    )


def _note_missing(writer: CacheWriter, name: str, lacks: str) -> VideoRow:
    return writer.note(safe_id(name), name=name, status="missing", reason=f"no file of {lacks}.")


def _hash(source: Source) -> str:
    """Of all that decides a video's features. Raises VideoError when a file cannot be read."""
    files = [content_hash(array.path) for array in source.streams]
    return digest({"files": files, "duration_s": source.grid.duration_s})


def _frames(source: Source, *, normalize: bool) -> np.ndarray:
    """All streams of a video side by side, float16 [t c]. Raises VideoError for values that cannot be kept."""
    streams = [_fitted(array, source.grid.clips, normalize=normalize) for array in source.streams]
    return np.concatenate(streams, axis=1)


def _fitted(array: Array, clips: int, *, normalize: bool) -> np.ndarray:
    """Rows of length one (a row of zeros stays), cut to `clips`, or the last one repeated."""
    values = array.read()[:clips]
    if normalize:
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    values = np.concatenate([values, np.repeat(values[-1:], clips - len(values), axis=0)])
    return as_half(values, array.path)
