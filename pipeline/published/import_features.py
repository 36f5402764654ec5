"""Imports published frame features instead of extracting them: checks every file, then writes the cache video by video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costl.pipeline.cache.index import Contents, VideoRow
from costl.pipeline.cache.inspect import WrittenCache, failure_messages
from costl.pipeline.cache.lock import refuse_if_busy
from costl.pipeline.cache.writer import CacheWriter, check_fingerprint
from costl.pipeline.data_folder import (
    ExtractSettings,
    read_annotations,
    read_settings,
    rows_in,
    without_spatial_encoder,
)
from costl.pipeline.encode.types import JointSpace, unit_length
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.fingerprint import digest
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.published.arrays import StoredArray, to_float16
from costl.pipeline.published.checks import VideoFeatures, annotated_durations, survey_features
from costl.pipeline.published.sentences import read_text_features
from costl.pipeline.videos import content_hash, safe_id


@dataclass(frozen=True)
class ImportReport(WrittenCache):
    """The result of an import: names of the videos written now (`done`) or earlier (`skipped`), and rows of the `failed`.

    `uneven` counts videos that have a stream with a clip or two too many or too few. `joint` is the stream that shares its
    space with the sentences, or empty. `exit_code` is 1 if a video is missing or failed.
    """

    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    uneven: int = 0
    joint: str = ""

    def messages(self) -> list[str]:
        """The videos without features, notes about lengths and the joint space, and the counts."""
        messages = failure_messages(self.cache, self.failed)
        if self.uneven:
            messages.append(
                f"{self.uneven} videos have a clip or two more or fewer than annotated: they were cut, or padded with their "
                "last row."
            )
        if not self.joint:
            messages.append(
                "Without --joint, frames and sentences share no space, so the model does not use their similarity."
            )
        messages.append(
            f"{len(self.done)} videos imported, {len(self.skipped)} were there already, {len(self.failed)} failed."
        )
        return messages


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
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Writes published features to the cache `out`, or completes it. Every frame is one token, without patches.

    `features` names a folder for each stream, with one `<vid>.npz` (`features` [t c]) or `.npy` [t c] for each video. The
    streams are concatenated in this order, each normalized to length one if `normalize`. `text` holds `qid<qid>` or
    `<qid>`, .npz or .npy: the words [l c] as `last_hidden_state` or `features`, and the sentence [c] as `pooler_output`
    (by default the mean of the words). `fps` takes precedence over the costl.yaml next to the annotations; the default is
    0.5. `joint` names the stream that shares its space with the sentences. A stream that is a clip or two too long is cut;
    one that is too short is padded with its last frame. Unchanged files are not imported again.

    Raises UsageError, before anything is written, for annotations or files that are missing, damaged, or do not fit
    together; CacheError for a cache with other settings, damaged or busy.
    """
    report_progress = progress or (lambda _: None)
    if joint is not None and joint not in features:
        raise UsageError(f"--joint {joint}: no such stream, only {', '.join(features)}.")
    texts = read_annotations(annotations)
    settings = read_settings(annotations if annotations.is_dir() else annotations.parent)
    rate = float(ExtractSettings(fps=settings.extract.get("fps", ExtractSettings.fps) if fps is None else fps).fps)
    refuse_if_busy(out)
    queries = rows_in(texts)
    videos, missing, widths = survey_features(
        annotated_durations(queries), features, fps=rate, allow_missing=allow_missing, report_progress=report_progress
    )
    sentences, layout = read_text_features(queries, text, joint=joint, report_progress=report_progress)
    contents = Contents(
        fingerprint={
            "source": "imported features",
            "streams": ", ".join(f"{name} {width}" for name, width in widths.items()),
            "normalize": normalize,
            "joint": joint or "none",
            "text": layout,
            "fps": rate,
        },
        fps=rate,
        patch_grid=(0, 0),
        joint=_joint_space(widths, joint, len(next(iter(sentences.values())).sentence)),
        token_width=sum(widths.values()),
        annotations=texts,
        settings=without_spatial_encoder(settings.train),
    )
    check_fingerprint(out, contents.fingerprint)
    with CacheWriter(out, contents, sentences) as writer:
        joint_stream = None if joint is None else list(features).index(joint)
        skipped, rows = _import_videos(videos, writer, report_progress, normalize=normalize, joint_stream=joint_stream)
        for name, streams in missing.items():
            reason = f"no file of {streams}."
            rows.append(writer.record_without_features(safe_id(name), name=name, status="missing", reason=reason))
    return ImportReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(skipped),
        failed=tuple(row for row in rows if not row.ok),
        uneven=sum(video.uneven for video in videos),
        joint=joint or "",
    )


def _joint_space(widths: Mapping[str, int], stream: str | None, sentence_width: int) -> JointSpace:
    """The space of the sentences; it is known if `stream` names the features that share it."""
    if stream is not None and widths[stream] != sentence_width:
        raise UsageError(
            f"--joint {stream}: its frames have {widths[stream]} channels and the sentences {sentence_width}, so that "
            "they cannot be compared. Leave --joint out."
        )
    # The scale is that of every published CLIP after training.
    return JointSpace(width=sentence_width, logit_scale=100.0, is_known=stream is not None)


def _import_videos(
    videos: Sequence[VideoFeatures],
    writer: CacheWriter,
    report_progress: ProgressCallback,
    *,
    normalize: bool,
    joint_stream: int | None,
) -> tuple[list[str], list[VideoRow]]:
    """(names of the videos whose part is complete and whose files and duration are unchanged, rows of the others)."""
    unchanged: list[str] = []
    pending: list[tuple[VideoFeatures, str]] = []
    for number, video in enumerate(videos, start=1):
        video_id = safe_id(video.name)
        files = [content_hash(array.path) for array in video.streams]
        content = digest({"files": files, "duration_s": video.grid.duration_s})
        if writer.reuse_if_unchanged(video_id, content):
            unchanged.append(video.name)
        else:
            pending.append((video, content))
            writer.record_without_features(video_id, name=video.name, status="pending", reason="not imported yet.")
        report_progress(Progress("check", number, len(videos), video.name))
    writer.write_index()
    rows: list[VideoRow] = []
    for video, content in pending:
        row = _import_video(video, content, writer, normalize=normalize, joint_stream=joint_stream)
        rows.append(row)
        report_progress(Progress("videos", len(rows), len(pending), row.reason or row.name))
    return unchanged, rows


def _import_video(
    video: VideoFeatures, content: str, writer: CacheWriter, *, normalize: bool, joint_stream: int | None
) -> VideoRow:
    video_id = safe_id(video.name)
    try:
        streams = [_read_stream(array, video.grid.clips, normalize=normalize) for array in video.streams]
    except VideoError as error:
        return writer.record_without_features(video_id, name=video.name, status=error.status, reason=str(error))
    return writer.store(
        video_id,
        name=video.name,
        tokens=np.concatenate(streams, axis=1)[:, None],
        joint=None if joint_stream is None else unit_length(streams[joint_stream]).astype(np.float16),
        times_s=video.grid.centres_s(),
        duration_s=video.grid.duration_s,
        content_hash=content,
        decoder="imported",
    )


def _read_stream(array: StoredArray, clips: int, *, normalize: bool) -> np.ndarray:
    """Float16 [t c], cut to `clips` or padded with the last row. `normalize`: rows have length one, or stay zero."""
    values = array.read()[:clips]
    if normalize:
        values = unit_length(values)
    padding = np.repeat(values[-1:], clips - len(values), axis=0)
    return to_float16(np.concatenate([values, padding]), array.path)
