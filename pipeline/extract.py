"""Stage one in order: check the input, load CLIP, decode and encode the unfinished videos, publish the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import Contents, VideoRow, absolute_weights, read_index, relative_path, relative_weights
from costl.pipeline.cache.inspect import group_by_reason
from costl.pipeline.cache.lock import refuse_if_busy
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.words import stored_words
from costl.pipeline.cache.writer import CacheWriter, check_fingerprint
from costl.pipeline.data_folder import (
    ExtractSettings,
    check_annotations,
    data_folder,
    missing_videos,
    queries_in,
    read_annotations,
    read_settings,
    settings_folder,
    without_spatial_encoder,
)
from costl.pipeline.decode.backends import resolve
from costl.pipeline.encode.clip import TEXT_BATCH, CLIPEncoder, load_encoders
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import UsageError
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.cluster import agree_on_precision, extract_on_cluster
from costl.pipeline.run.cluster_worker import RunSpec
from costl.pipeline.run.engine import cpu_cores, extract_into
from costl.pipeline.run.history import recorded_run
from costl.pipeline.run.shards import parse_share, refuse_other_shares
from costl.pipeline.videos import Video, content_hash, find_videos, safe_id

__all__ = ["ExtractReport", "ExtractSettings", "Progress", "extract"]

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class ExtractReport:
    """What a run did: the names of videos that are `done` now or were finished before (`skipped`), and rows that `failed`.

    `changed`: videos whose file is not the one that was extracted earlier. `dropped`: splits of the cache that are not
    among these annotations. `truncated`: queries longer than CLIP reads. `exit_code` is 1 if a video failed or is missing.
    """

    cache: Path
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[VideoRow, ...] = ()
    truncated: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        """The path of the cache."""
        return [str(self.cache)]

    def data(self) -> dict[str, Any]:
        """All fields, with a row for each video that failed."""
        return vars(self) | {"cache": str(self.cache), "failed": [row.data() for row in self.failed]}

    def messages(self) -> list[str]:
        """Why videos failed, which queries were cut, what has changed, and the counts."""
        messages = group_by_reason(self.failed)
        messages += [f"cut: longer than CLIP reads, its end is ignored: {query!r}" for query in self.truncated]
        if self.changed:
            names = ", ".join(self.changed[:5]) + (", ..." if len(self.changed) > 5 else "")
            messages.append(f"{len(self.changed)} videos changed since they were extracted: {names}.")
        messages += [
            f"split {split} is not among these annotations and was removed from the cache. To add it again: "
            f"costl cache add-queries {self.cache} --annotations {split}.jsonl"
            for split in self.dropped
        ]
        counts = (
            f"{len(self.done)} videos extracted, {len(self.skipped)} were there already, {len(self.failed)} failed."
        )
        return [*messages, counts]


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
    compiled: bool = False,
    time_limit_s: float = 30.0,
    cluster: str | None = None,
    shard: str | None = None,
    progress: ProgressCallback | None = None,
    **chosen: Any,
) -> ExtractReport:
    """Turns the videos of a folder (or one video file) and their annotations into the cache `out`, or completes it.

    `annotations`: a folder, a file, or the JSONL text of each split; by default the files next to the videos. `chosen` are
    fields of `ExtractSettings`, which decide the features: a value that is not None wins over the costl.yaml of the
    annotations' folder, or else of the videos' folder. With `allow_missing_videos`, annotated videos without a file become
    rows of status "missing". `device`: one or several, such as "cuda:0,cuda:1". For `workers`, `batch`, `compiled` and
    `time_limit_s` see `options.RunOptions`. `cluster`: the address of a Dask scheduler whose workers process the videos.
    `shard`, such as "2/4": only that share of the folder and its annotations, to be joined later by `merge`.

    Each run adds a line to OUT.runs.jsonl. Finished videos are not decoded again. A video that cannot be decoded becomes a
    row, and the others go on. Raises UsageError for a wrong input, CacheError for a cache that is busy, damaged or made
    with other settings, CostlError after 20 failures in a row of videos that had not failed before, or if a device fails.
    """
    report_progress = progress or (lambda _: None)
    inputs = _read_inputs(videos, annotations, chosen, allow_missing=allow_missing_videos)
    if shard:
        inputs = _select_share(inputs, shard, out)
    settings = inputs.settings
    run_options = RunOptions(workers=workers, batch=batch, compiled=compiled, time_limit_s=time_limit_s)
    refuse_if_busy(out)
    if cluster:
        precision = agree_on_precision(cluster, device=device, precision=precision, workers=workers)
    # On a cluster, `device` is that of the workers, and this machine encodes sentences only.
    encoders = _load_encoders(settings, "auto" if cluster else device, precision, report_progress)
    frame_options = _frame_options(settings, encoders[0])
    contents = _contents(inputs, encoders[0], frame_options, out)
    check_fingerprint(out, contents.fingerprint)
    dropped, failed_before = _earlier_run(out, inputs.annotations)
    queries = queries_in(inputs.annotations)
    sentences = encode_queries(encoders[0], queries, out, report_progress, fill_batches=True)
    with CacheWriter(out, contents, sentences) as writer, recorded_run(out, encoders) as meter:
        missing = [_record_missing(writer, name) for name in inputs.missing]
        skipped, changed = _reuse_finished(inputs.videos, writer, report_progress)
        unfinished = [video for video in inputs.videos if video.id not in skipped]
        meter.videos |= {"skipped": len(skipped), "missing": len(missing)}
        if cluster:
            spec = RunSpec(
                model=settings.model,
                weights=absolute_weights(out.parent, contents.source["weights"]),
                device=device,
                fingerprint=dict(contents.fingerprint),
                token_format=contents.token_format,
                frame_options=frame_options,
                run_options=run_options,
            )
            rows = extract_on_cluster(
                cluster, writer, unfinished, spec=spec, failed_before=failed_before, report_progress=report_progress
            )
            meter.videos.update(row.status for row in rows)
        else:
            rows = extract_into(
                writer,
                unfinished,
                encoders=encoders,
                fps=contents.fps,
                frame_options=frame_options,
                run_options=run_options,
                meter=meter,
                failed_before=failed_before,
                report_progress=report_progress,
            )
    return ExtractReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(video.path.stem for video in inputs.videos if video.id in skipped),
        failed=(*missing, *(row for row in rows if not row.ok)),
        truncated=tuple(query for query, sentence in sentences.items() if sentence.truncated),
        changed=tuple(changed),
        dropped=dropped,
    )


@dataclass(frozen=True)
class _Inputs:
    """What a run works on: its `videos` and their `folder`, the names of annotated videos without a file (`missing`), the
    annotations, the `settings` that decide the features, the folder's settings for `training`, and the `share` of the
    folder that the run takes, empty for all of it."""

    videos: list[Video]
    folder: Path
    missing: list[str]
    annotations: Mapping[str, str]
    settings: ExtractSettings
    training: Mapping[str, Any]
    share: Mapping[str, Any] = field(default_factory=dict)


def _read_inputs(
    path: Path,
    annotations: Path | Mapping[str, str] | None,
    chosen: Mapping[str, Any],
    *,
    allow_missing: bool,
) -> _Inputs:
    videos = [Video(safe_id(path.stem), path)] if path.is_file() else find_videos(path)
    names = [video.path.stem for video in videos]
    folder = data_folder(path)
    folder_settings = read_settings(settings_folder(folder, annotations))
    settings = _resolve_settings(folder_settings.extract, chosen)
    if isinstance(annotations, Mapping):
        check_annotations(annotations, names, allow_missing=allow_missing)
        texts = dict(annotations)
    else:
        source = folder if annotations is None else annotations
        texts = read_annotations(source, names, allow_missing=allow_missing)
    return _Inputs(
        videos=videos,
        folder=videos[0].path.parent,
        missing=missing_videos(texts, names),
        annotations=texts,
        settings=settings,
        training=folder_settings.train,
    )


def _resolve_settings(folder_settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> ExtractSettings:
    values = {**folder_settings, **{name: value for name, value in chosen.items() if value is not None}}
    settings = replace(ExtractSettings(), **values)
    if "model" in values and Path(settings.weights.removeprefix("local-dir:")).is_dir():
        raise UsageError(
            f"model {settings.model}: the weights in {settings.weights} bring their own architecture. Leave the model "
            "out, or name a tag for it, such as --weights openai."
        )
    return settings


def _select_share(inputs: _Inputs, shard: str, out: Path) -> _Inputs:
    share = parse_share(shard)
    refuse_other_shares(out, share)
    annotations, share_fields = share.select_annotations(inputs.annotations)
    return replace(
        inputs,
        videos=[video for video in inputs.videos if share.holds(video.id)],
        missing=[name for name in inputs.missing if share.holds(safe_id(name))],
        annotations=annotations,
        share=share_fields,
    )


def _load_encoders(
    settings: ExtractSettings, devices: str, precision: str | None, report_progress: ProgressCallback
) -> list[CLIPEncoder]:
    report_progress(Progress("load", 0, 1, f"{settings.model}, {settings.weights}"))
    token_format = settings.token_format
    return load_encoders(
        settings.model,
        settings.weights,
        devices=devices,
        precision=precision,
        layers=token_format.layers,
        patches=token_format.has_patches,
    )


def _frame_options(settings: ExtractSettings, encoder: CLIPEncoder) -> FrameOptions:
    resize_to = encoder.preprocess.resize_target if settings.resize == "decoder" else None
    return FrameOptions(resolve(settings.decoder), settings.sampling, resize_to)


def _contents(inputs: _Inputs, encoder: CLIPEncoder, frame_options: FrameOptions, out: Path) -> Contents:
    settings = inputs.settings
    token_format = settings.token_format
    fingerprint = encoder.fingerprint() | frame_options.fingerprint() | asdict(token_format)
    return Contents(
        fingerprint=fingerprint | {"fps": float(settings.fps)},
        fps=float(settings.fps),
        patch_grid=encoder.patch_grid,
        joint=encoder.joint,
        annotations=inputs.annotations,
        settings=inputs.training if token_format.has_patches else without_spatial_encoder(inputs.training),
        token_format=token_format,
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


def encode_queries(
    encoder: CLIPEncoder,
    queries: list[str],
    out: Path,
    report_progress: ProgressCallback,
    *,
    fill_batches: bool = False,
) -> dict[str, SentenceTokens]:
    """The tokens of each query; those already stored in the cache `out`, with their texts, are reused.

    For `fill_batches` see `encode_new`.
    """
    sentences = {query: sentence for query, sentence in stored_words(out).items() if sentence.texts}
    new = [query for query in queries if query not in sentences]
    sentences |= encode_new(encoder, new, report_progress, fill_batches=fill_batches)
    return {query: sentences[query] for query in queries}


def encode_new(
    encoder: CLIPEncoder, queries: list[str], report_progress: ProgressCallback, *, fill_batches: bool
) -> dict[str, SentenceTokens]:
    """The tokens of these queries. Raises UsageError for a query without a word.

    With `fill_batches`, CLIP gets batches of one size, the last one padded. The last bits of a token depend on how many
    sentences are encoded at once, and must not depend on what else was annotated.
    """
    sentences: dict[str, SentenceTokens] = {}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = queries[start : start + _QUERIES_AT_ONCE]
        padding = part[:1] * (-len(part) % TEXT_BATCH) if fill_batches else []
        encoded = encoder.encode_text([*part, *padding])
        sentences |= dict(zip(part, encoded, strict=False))
        report_progress(Progress("words", start + len(part), len(queries)))
    return sentences


def _record_missing(writer: CacheWriter, name: str) -> VideoRow:
    row = missing_row(name)
    return writer.record_without_features(row.id, name=row.name, status=row.status, reason=row.reason)


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
    folder = parts_folder(writer.path)
    with ThreadPoolExecutor(cpu_cores()) as pool:
        # Hashing a large folder takes as long as reading it, so only videos with a part are hashed.
        with_part = [video for video in videos if (folder / f"{video.id}.h5").exists()]
        hashes = {video.id: pool.submit(content_hash, video.path) for video in with_part}
        for number, video in enumerate(videos, start=1):
            content = _hash_or_none(hashes.get(video.id))
            if content and writer.reuse_if_unchanged(video.id, content):
                finished.add(video.id)
            else:
                if content and writer.content_changed(video.id, content):
                    changed.append(video.path.stem)
                writer.record_without_features(
                    video.id, name=video.path.stem, status="pending", reason="not extracted yet."
                )
            report_progress(Progress("check", number, len(videos), video.path.name))
    writer.write_index()
    return finished, changed


def _hash_or_none(hashing: Future[str] | None) -> str | None:
    return None if hashing is None or hashing.exception() else hashing.result()
