"""Stage one in its order: check what is cheap, load CLIP, decode and encode what is missing, publish the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache import (
    CacheWriter,
    Contents,
    VideoRow,
    Words,
    check_fingerprint,
    known_words,
    parts_folder,
    refuse_if_busy,
)
from pipeline.clip import TEXT_BATCH, Clip, load_clip
from pipeline.cluster import agree_on_precision, extract_on_cluster
from pipeline.encoding import cores, extract_into
from pipeline.errors import UsageError
from pipeline.index import path_from, seen_from, told_from
from pipeline.progress import Progress
from pipeline.settings import (
    ExtractSettings,
    check_annotations,
    data_folder,
    missing_videos,
    queries_in,
    read_annotations,
    read_settings,
    settings_folder,
)
from pipeline.shards import parse_share, refuse_others
from pipeline.station import Order
from pipeline.videos import Video, content_hash, find_videos, safe_id

__all__ = ["ExtractReport", "ExtractSettings", "Progress", "extract"]

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class ExtractReport:
    """What a run did: names of videos decoded now (`done`) and found finished (`skipped`), rows of those that `failed`.

    `truncated` are the queries longer than CLIP reads. `exit_code` is 1 when a video failed or is missing.
    """

    cache: Path
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[VideoRow, ...] = ()
    truncated: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return 1 if self.failed else 0


def extract(
    videos: Path,
    *,
    out: Path = Path("feats.h5"),
    annotations: Path | Mapping[str, str] | None = None,
    allow_missing_videos: bool = False,
    model: str | None = None,
    weights: str | None = None,
    fps: float | None = None,
    device: str = "auto",
    precision: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    time_limit_s: float = 30.0,
    cluster: str | None = None,
    shard: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ExtractReport:
    """Turns the videos of a folder (or one video file) and their annotations into the cache `out`, or completes it.

    `annotations`: a folder, a file, or the JSONL text of each split; by default the files beside the videos. `model`,
    `weights` and `fps` win over the costl.yaml of the annotations' folder, which takes the place of the videos'. With
    `allow_missing_videos`, annotated videos that are not there become rows of status "missing". `workers` decode processes
    (default: one a core), `batch` frames encoded at once. Videos that are finished are not decoded again; a video
    that cannot be decoded becomes a row, and the rest goes on. `cluster`: address of a Dask scheduler whose workers do
    the videos. `shard`, such as "2/4": only that share of the folder and its annotations, to be joined by `merge`.
    Raises UsageError for what is wrong with the input, CacheError for a cache of other settings, damaged or busy,
    CostlError after 20 failures in a row.
    """
    tell = progress or (lambda _: None)
    found = _find(videos)
    folder = data_folder(videos)
    from_folder = read_settings(settings_folder(folder, annotations))
    settings = _resolve(from_folder.extract, model=model, weights=weights, fps=fps)
    texts = _annotations(annotations, folder, found, allow_missing=allow_missing_videos)
    _check_counts(workers=workers, batch=batch)
    absent, place = missing_videos(texts, (video.path.stem for video in found)), found[0].path.parent
    share_of: Mapping[str, Any] = {}
    if shard:
        share = parse_share(shard)
        refuse_others(out, share)
        texts, share_of = share.cut(texts)
        found = [video for video in found if share.holds(video.id)]
        absent = [name for name in absent if share.holds(safe_id(name))]
    refuse_if_busy(out)
    if cluster:
        precision = agree_on_precision(cluster, device=device, precision=precision, workers=workers)
    tell(Progress("load", 0, 1, f"{settings.model}, {settings.weights}"))
    # On a cluster the device is the workers'; here only sentences are encoded.
    here = "auto" if cluster else device
    clip = load_clip(settings.model, settings.weights, device=here, precision=precision)
    contents = Contents(
        fingerprint=clip.fingerprint() | {"fps": float(settings.fps)},
        fps=float(settings.fps),
        patch_grid=clip.patch_grid,
        joint=clip.joint,
        annotations=texts,
        settings=from_folder.train,
        videos=path_from(out.parent, place),
        source={"model": settings.model, "weights": told_from(out.parent, settings.weights)},
        share=share_of,
    )
    check_fingerprint(out, contents.fingerprint)
    words = encode_queries(clip, queries_in(texts), out, tell, even=True)
    with CacheWriter(out, contents, words) as writer:
        failed = [_note_missing(writer, name) for name in absent]
        skipped = _keep_finished(found, writer, tell)
        missing = [video for video in found if video.id not in skipped]
        options: dict[str, Any] = {"batch": batch, "time_limit_s": time_limit_s}
        if cluster:
            weights = seen_from(out.parent, contents.source["weights"])
            order = Order(settings.model, weights, device, dict(contents.fingerprint), options)
            rows = extract_on_cluster(cluster, writer, missing, order=order, tell=tell)
        else:
            rows = extract_into(writer, missing, clip=clip, fps=contents.fps, workers=workers, tell=tell, **options)
    return ExtractReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(video.path.stem for video in found if video.id in skipped),
        failed=(*failed, *(row for row in rows if not row.ok)),
        truncated=tuple(query for query, one in words.items() if one.truncated),
    )


def encode_queries(
    clip: Clip, queries: list[str], out: Path, tell: Callable[[Progress], None], *, even: bool = False
) -> dict[str, Words]:
    """The words of every query; those that the cache at `out` has already, of the same fingerprint and named, are kept.

    With `even`, CLIP gets batches of one size, the last one filled up: the last bits of a word depend on how many sentences
    are encoded at once, and must not depend on what else was annotated.
    """
    known = {query: words for query, words in known_words(out).items() if words.texts}
    new = [query for query in queries if query not in known]
    for start in range(0, len(new), _QUERIES_AT_ONCE):
        some = new[start : start + _QUERIES_AT_ONCE]
        fill = some[:1] * (-len(some) % TEXT_BATCH) if even else []
        known |= dict(zip(some, clip.encode_text([*some, *fill]), strict=False))
        tell(Progress("words", start + len(some), len(new)))
    return {query: known[query] for query in queries}


def _find(videos: Path) -> list[Video]:
    return [Video(safe_id(videos.stem), videos)] if videos.is_file() else find_videos(videos)


def _resolve(from_folder: Mapping[str, Any], **flags: Any) -> ExtractSettings:
    asked = {**from_folder, **{name: value for name, value in flags.items() if value is not None}}
    settings = replace(ExtractSettings(), **asked)
    if "model" in asked and Path(settings.weights.removeprefix("local-dir:")).is_dir():
        raise UsageError(
            f"model {settings.model}: the weights in {settings.weights} bring their own architecture. Leave the model "
            "out, or name a tag for it, such as --weights openai."
        )
    return settings


def _annotations(
    given: Path | Mapping[str, str] | None, folder: Path, found: Sequence[Video], *, allow_missing: bool
) -> dict[str, str]:
    names = [video.path.stem for video in found]
    if isinstance(given, Mapping):
        check_annotations(given, names, allow_missing=allow_missing)
        return dict(given)
    return read_annotations(folder if given is None else given, names, allow_missing=allow_missing)


def _note_missing(writer: CacheWriter, name: str) -> VideoRow:
    return writer.note(safe_id(name), name=name, status="missing", reason="annotated, but its video is not there.")


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}, expected at least 1.")


def _keep_finished(found: Sequence[Video], writer: CacheWriter, tell: Callable[[Progress], None]) -> set[str]:
    """The ids of videos whose part is whole and whose file is still the same; the others are noted as pending."""
    kept = set()
    with ThreadPoolExecutor(cores()) as pool:
        # Only what has a part is read now: hashing a large folder takes as long as reading it.
        parts = {video.id: (parts_folder(writer.path) / f"{video.id}.h5").exists() for video in found}
        hashes = {video.id: pool.submit(content_hash, video.path) for video in found if parts[video.id]}
        for number, video in enumerate(found, start=1):
            if (
                video.id in hashes
                and not hashes[video.id].exception()
                and writer.keep(video.id, hashes[video.id].result())
            ):
                kept.add(video.id)
            else:
                writer.note(video.id, name=video.path.stem, status="pending", reason="not extracted yet.")
            tell(Progress("check", number, len(found), video.path.name))
    writer.write_index()
    return kept
