"""Stage one in order: check the input, load CLIP, decode and encode the unfinished videos, publish the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.annotations import compare_with_videos
from costl.pipeline.cache.index import Contents, VideoRow, read_index, relative_path, relative_weights
from costl.pipeline.cache.inspect import WrittenCache, group_by_reason, no_queries_message
from costl.pipeline.cache.lock import refuse_if_busy
from costl.pipeline.cache.writer import CacheWriter, check_fingerprint
from costl.pipeline.data_folder import ExtractSettings, queries_in, without_spatial_encoder
from costl.pipeline.decode.backends import resolve
from costl.pipeline.device import pick_device
from costl.pipeline.errors import VideoError, first_few
from costl.pipeline.formats.files import refuse_folder
from costl.pipeline.inputs import Inputs, read_inputs, select_share
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.processes import cpu_cores
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.queries import encode_queries
from costl.pipeline.run.cluster import agree_on_precision, extract_on_cluster
from costl.pipeline.run.engine import cache_contents, extract_into, has_frames_of_today
from costl.pipeline.run.history import recorded_run
from costl.pipeline.videos import Video, content_hash, safe_id

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

__all__ = ["ExtractReport", "ExtractSettings", "Progress", "extract"]

_NO_ANNOTATIONS = "No annotations: expected train.jsonl, val.jsonl or test.jsonl next to the videos, or --annotations."


@dataclass(frozen=True)
class ExtractReport(WrittenCache):
    """What a run did: the names of videos that are `done` now or were finished before (`skipped`), and rows that `failed`.

    `changed`: videos whose file is not the one that was extracted earlier. `dropped`: splits of the cache that are not
    among these annotations. `truncated`: queries longer than CLIP reads. `late`: sentences about moments after the end of
    their video, which training refuses. `left_out` and `notes`: see `inputs.Inputs`. `queries`: whether the cache has
    annotations. `exit_code` is 1 if a video failed or is missing, or a moment is late.
    """

    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    queries: bool = True
    late: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 1 if self.failed or self.late else 0

    def messages(self) -> list[str]:
        """Why videos failed, which queries were cut, what has changed, what was left out or not read, and the counts."""
        messages = group_by_reason(self.failed)
        messages += [f"cut: longer than CLIP reads, its end is ignored: {query!r}" for query in self.truncated]
        if self.changed:
            messages.append(f"{len(self.changed)} videos changed since they were extracted: {first_few(self.changed)}.")
        messages += [
            f"split {split} is not among these annotations and was removed from the cache. To add it again: "
            f"costl cache add-queries {self.cache} --annotations {split}.jsonl"
            for split in self.dropped
        ]
        counts = (
            f"{len(self.done)} videos extracted, {len(self.skipped)} were there already, {len(self.failed)} failed."
        )
        if self.left_out:
            messages.append(
                f"{len(self.left_out)} files with names of videos are left out: {first_few(self.left_out)}. They are hidden "
                "files, folders or unfinished downloads."
            )
        without_queries = () if self.queries else (_NO_ANNOTATIONS, no_queries_message(self.cache))
        return [*messages, *self.notes, *self.late, counts, *without_queries]


def extract(
    videos: Path,
    *,
    out: Path = Path("feats.h5"),
    annotations: Path | Mapping[str, str] | None = None,
    allow_missing_videos: bool = False,
    device: str = "auto",
    precision: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    time_limit_s: float = 30.0,
    cluster: str | None = None,
    shard: str | None = None,
    progress: ProgressCallback | None = None,
    **chosen: Any,
) -> ExtractReport:
    """Turns the videos of a folder and the folders in it (or one video file) and their annotations into the cache `out`, or
    completes it.

    `annotations`: a folder, a file, or the JSONL text of each split; by default the files next to the videos, or else those
    that `out` has already, which may be none: `add_queries` adds them later. `chosen` are
    fields of `ExtractSettings`, which decide the features: a value that is not None wins over the costl.yaml of the
    annotations' folder, or else of the videos' folder. With `allow_missing_videos`, annotated videos without a file become
    rows of status "missing". `device`: one or several, such as "cuda:0,cuda:1". For `workers`, `batch` and `time_limit_s`
    see `options.RunOptions`. `cluster`: the address of a Dask scheduler whose workers process the videos. `shard`, such as
    "2/4": only that share of the folder and its annotations, to be joined later by `merge`.

    Each run adds a line to OUT.runs.jsonl. Finished videos are not decoded again. A video that cannot be decoded becomes a
    row, and the others go on. Raises UsageError for a wrong input, CacheError for a cache that is busy, damaged or made
    with other settings, CostlError after 20 failures in a row that point to the machine (see `engine.FailuresInARow`), or
    if a device fails.
    """
    report_progress = progress or (lambda _: None)
    refuse_folder(out)
    inputs = read_inputs(
        videos,
        annotations,
        chosen,
        cache=out,
        keep_annotations=not shard,  # a share of annotations cannot be divided again
        allow_missing=allow_missing_videos,
    )
    before_the_work = [*inputs.notes, *([] if inputs.annotations else [_NO_ANNOTATIONS])]
    if before_the_work:
        report_progress(Progress("load", 0, 1, message="\n".join(before_the_work)))
    if shard:
        inputs = select_share(inputs, shard, out)
    run_options = RunOptions(workers=workers, batch=batch, time_limit_s=time_limit_s)
    refuse_if_busy(out)
    if cluster:
        precision = agree_on_precision(cluster, device=device, precision=precision, workers=workers)
    # On a cluster, `device` is that of the workers, and this machine encodes sentences only.
    encoders = _load_encoders(inputs.settings, "auto" if cluster else device, precision, report_progress)
    frame_options = _frame_options(inputs.settings, encoders[0])
    contents = _contents(inputs, encoders[0], frame_options, out)
    check_fingerprint(out, contents.fingerprint)
    dropped, failed_before = _earlier_run(out, inputs.annotations)
    sentences = encode_queries(encoders[0], queries_in(inputs.annotations), out, report_progress)
    with CacheWriter(out, contents, sentences) as writer, recorded_run(out, encoders) as meter:
        missing = [writer.adopt_row(missing_row(name)) for name in inputs.missing]
        finished, changed = _reuse_finished(inputs.videos, writer, report_progress)
        meter.videos |= {"skipped": len(finished), "missing": len(missing)}
        options: dict[str, Any] = {
            "frame_options": frame_options,
            "run_options": run_options,
            "meter": meter,
            "failed_before": failed_before,
            "report_progress": report_progress,
        }
        unfinished = [video for video in inputs.videos if video.id not in finished]
        if cluster:
            rows = extract_on_cluster(cluster, writer, unfinished, contents=contents, device=device, **options)
        else:
            rows = extract_into(writer, unfinished, encoders=encoders, fps=contents.fps, **options)
    late, notes = compare_with_videos(read_index(out), contents.annotations)
    return ExtractReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(video.name for video in inputs.videos if video.id in finished),
        failed=(*missing, *(row for row in rows if not row.ok)),
        truncated=tuple(query for query, sentence in sentences.items() if sentence.truncated),
        changed=tuple(changed),
        dropped=dropped,
        left_out=tuple(inputs.left_out),
        queries=bool(inputs.annotations),
        late=tuple(late),
        notes=(*inputs.notes, *notes),
    )


def _load_encoders(
    settings: ExtractSettings, devices: str, precision: str | None, report_progress: ProgressCallback
) -> list[CLIPEncoder]:
    for name in devices.split(","):
        pick_device(name.strip())  # a missing device is refused before open_clip is loaded, which takes seconds
    from costl.pipeline.encode.clip import load_encoders

    report_progress(Progress("load", 0, 1, f"{settings.model}, {settings.weights}"))
    has_patches = settings.token_format.has_patches
    return load_encoders(settings.model, settings.weights, devices=devices, precision=precision, patches=has_patches)


def _frame_options(settings: ExtractSettings, encoder: CLIPEncoder) -> FrameOptions:
    resize_to = encoder.preprocess.resize_target if settings.resize == "decoder" else None
    return FrameOptions(resolve(settings.decoder), settings.sampling, resize_to)


def _contents(inputs: Inputs, encoder: CLIPEncoder, frame_options: FrameOptions, out: Path) -> Contents:
    settings = inputs.settings
    token_format = settings.token_format
    fingerprint = encoder.fingerprint() | frame_options.fingerprint() | asdict(token_format)
    return cache_contents(
        encoder,
        fingerprint | {"fps": float(settings.fps)},
        annotations=inputs.annotations,
        settings=inputs.training if token_format.has_patches else without_spatial_encoder(inputs.training),
        videos=relative_path(out.parent, inputs.folder),
        source={"model": settings.model, "weights": relative_weights(out.parent, settings.weights)},
        share=inputs.share,
    )


def _earlier_run(out: Path, annotations: Mapping[str, str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The splits of the cache that are not among these annotations, and the ids of videos that failed before."""
    if not out.exists():
        return (), frozenset()
    earlier = read_index(out)
    dropped = tuple(split for split in earlier.contents.annotations if split not in annotations)
    failed = frozenset(row.id for row in earlier.rows if not row.ok and row.status not in ("pending", "missing"))
    return dropped, failed


def missing_row(name: str) -> VideoRow:
    """The row of an annotated video whose file is missing."""
    return VideoRow(safe_id(name), "missing", name, reason="annotated, but its video is not there.")


def _reuse_finished(
    videos: Sequence[Video], writer: CacheWriter, report_progress: ProgressCallback
) -> tuple[set[str], list[str]]:
    """The ids of videos with a complete part of the same file, and the names of those whose file has changed.

    All videos but the first kind get a row of status "pending".
    """
    finished: set[str] = set()
    changed: list[str] = []

    def content_of(video: Video) -> str:
        # Hashing a large folder takes as long as reading it, so only videos with a part are hashed.
        try:
            return content_hash(video.path) if (writer.parts / f"{video.id}.h5").exists() else ""
        except VideoError:  # decoding fails as well, and reports why
            return ""

    with ThreadPoolExecutor(cpu_cores()) as pool:
        for number, (video, content) in enumerate(zip(videos, pool.map(content_of, videos), strict=True), start=1):
            row = writer.reuse_if_unchanged(video.id, content) if content else None
            if row and has_frames_of_today(row, video.path):
                finished.add(video.id)
            else:
                if content and writer.content_changed(video.id, content):
                    changed.append(video.name)
                writer.record_without_features(
                    video.id, name=video.name, status="pending", reason="not extracted yet."
                )
            report_progress(Progress("check", number, len(videos), video.path.name))
    writer.write_index()
    return finished, changed
