"""Stage one in its order: check what is cheap, load CLIP, decode and encode what is missing, publish the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import Contents, VideoRow, path_from, read_index, seen_from, told_from
from costl.pipeline.cache.inspect import by_reason
from costl.pipeline.cache.lock import refuse_if_busy
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.words import known_words
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
    without_patches,
)
from costl.pipeline.decode.backends import resolve
from costl.pipeline.encode.clip import TEXT_BATCH, Clip, load_clips
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import UsageError
from costl.pipeline.options import Effort, How
from costl.pipeline.progress import Progress
from costl.pipeline.run.cluster import agree_on_precision, extract_on_cluster
from costl.pipeline.run.cluster_worker import Order
from costl.pipeline.run.engine import cores, extract_into
from costl.pipeline.run.history import recorded
from costl.pipeline.run.shards import parse_share, refuse_others
from costl.pipeline.videos import Video, content_hash, find_videos, safe_id

__all__ = ["ExtractReport", "ExtractSettings", "Progress", "extract"]

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class ExtractReport:
    """What a run did: names of videos decoded now (`done`) and found finished (`skipped`), rows of those that `failed`.

    `changed` are those that were finished earlier and whose file is another now, `dropped` the splits that the cache had
    and these annotations have not, `truncated` the queries longer than CLIP reads. `exit_code` is 1 when a video failed
    or is missing.
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
        """What the command returns."""
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        """The cache."""
        return [str(self.cache)]

    def data(self) -> dict[str, Any]:
        """Every field, with a row for each video that failed."""
        return vars(self) | {"cache": str(self.cache), "failed": [row.data() for row in self.failed]}

    def messages(self) -> list[str]:
        """Why videos failed, what was cut, what has changed, and the counts."""
        messages = by_reason(self.failed)
        messages += [f"cut: longer than CLIP reads, its end is lost: {query!r}" for query in self.truncated]
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
    progress: Callable[[Progress], None] | None = None,
    **chosen: Any,
) -> ExtractReport:
    """Turns the videos of a folder (or one video file) and their annotations into the cache `out`, or completes it.

    `annotations`: a folder, a file, or the JSONL text of each split; by default the files beside the videos. What decides
    the features are the fields of `ExtractSettings`: those `chosen` here (None: not) win over the costl.yaml of the
    annotations' folder, which takes the place of the videos'. With `allow_missing_videos`, annotated videos that are not
    there become rows of status "missing". `device`: one or several, as "cuda:0,cuda:1"; for `workers`, `batch`, `compiled`
    and `time_limit_s` see `encoding.Effort`. `cluster`: address of a Dask scheduler whose workers do the videos. `shard`,
    such as "2/4": only that share of the folder and its annotations, to be joined by `merge`. Each run leaves a line in
    OUT.runs.jsonl. Videos that are finished are not decoded again; one that cannot be decoded becomes a row, and the rest
    goes on. Raises UsageError for what is wrong with the input, CacheError for a cache of other settings, damaged or busy,
    CostlError after 20 failures in a row of videos that had not failed before, or when a device fails.
    """
    tell = progress or (lambda _: None)
    asked = _asked(videos, annotations, chosen, allow_missing=allow_missing_videos)
    if shard:
        asked = _share_of(asked, shard, out)
    effort = Effort(workers=workers, batch=batch, compiled=compiled, time_limit_s=time_limit_s)
    refuse_if_busy(out)
    if cluster:
        precision = agree_on_precision(cluster, device=device, precision=precision, workers=workers)
    # On a cluster the device is the workers'; here only sentences are encoded.
    clips = _load(asked.settings, "auto" if cluster else device, precision, tell)
    how = _how(asked.settings, clips[0])
    contents = _contents(asked, clips[0], how, out)
    check_fingerprint(out, contents.fingerprint)
    dropped, forgiven = _of_earlier_run(out, asked.texts)
    words = encode_queries(clips[0], queries_in(asked.texts), out, tell, even=True)
    with CacheWriter(out, contents, words) as writer, recorded(out, clips) as meter:
        failed = [_note_missing(writer, name) for name in asked.absent]
        skipped, changed = _keep_finished(asked.videos, writer, tell)
        todo = [video for video in asked.videos if video.id not in skipped]
        meter.videos |= {"skipped": len(skipped), "missing": len(failed)}
        if cluster:
            weights = seen_from(out.parent, contents.source["weights"])
            order = Order(asked.settings.model, weights, device, dict(contents.fingerprint), contents.form, how, effort)
            rows = extract_on_cluster(cluster, writer, todo, order=order, forgiven=forgiven, tell=tell)
            meter.videos.update(row.status for row in rows)
        else:
            rows = extract_into(
                writer,
                todo,
                clips=clips,
                fps=contents.fps,
                how=how,
                effort=effort,
                meter=meter,
                forgiven=forgiven,
                tell=tell,
            )
    return ExtractReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(video.path.stem for video in asked.videos if video.id in skipped),
        failed=(*failed, *(row for row in rows if not row.ok)),
        truncated=tuple(query for query, one in words.items() if one.truncated),
        changed=tuple(changed),
        dropped=dropped,
    )


def encode_queries(
    clip: Clip, queries: list[str], out: Path, tell: Callable[[Progress], None], *, even: bool = False
) -> dict[str, Words]:
    """The words of every query; those that the cache at `out` has already, of the same fingerprint and named, are kept.

    For `even` see `encode_new`.
    """
    known = {query: words for query, words in known_words(out).items() if words.texts}
    known |= encode_new(clip, [query for query in queries if query not in known], tell, even=even)
    return {query: known[query] for query in queries}


def encode_new(clip: Clip, queries: list[str], tell: Callable[[Progress], None], *, even: bool) -> dict[str, Words]:
    """The words of these queries. Raises UsageError for one without a word in it.

    With `even`, CLIP gets batches of one size, the last one filled up: the last bits of a word depend on how many sentences
    are encoded at once, and must not depend on what else was annotated.
    """
    found: dict[str, Words] = {}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[start : start + _QUERIES_AT_ONCE]
        fill = some[:1] * (-len(some) % TEXT_BATCH) if even else []
        found |= dict(zip(some, clip.encode_text([*some, *fill]), strict=False))
        tell(Progress("words", start + len(some), len(queries)))
    return found


def missing_row(name: str) -> VideoRow:
    """The row of a video that is annotated and nowhere to be found."""
    return VideoRow(safe_id(name), "missing", name, reason="annotated, but its video is not there.")


@dataclass(frozen=True)
class _Asked:
    """What a run is to do: its videos and where they lie, those that are `absent`, the annotations, what decides the
    features (`settings`), what the data folder asks of `training`, and which `share` of the folder this is."""

    videos: list[Video]
    place: Path
    absent: list[str]
    texts: Mapping[str, str]
    settings: ExtractSettings
    training: Mapping[str, Any]
    share: Mapping[str, Any] = field(default_factory=dict)


def _asked(
    videos: Path,
    annotations: Path | Mapping[str, str] | None,
    chosen: Mapping[str, Any],
    *,
    allow_missing: bool,
) -> _Asked:
    found, folder = _find(videos), data_folder(videos)
    from_folder = read_settings(settings_folder(folder, annotations))
    settings = _resolve(from_folder.extract, **chosen)
    texts = _annotations(annotations, folder, found, allow_missing=allow_missing)
    absent = missing_videos(texts, (video.path.stem for video in found))
    return _Asked(found, found[0].path.parent, absent, texts, settings, from_folder.train)


def _share_of(asked: _Asked, shard: str, out: Path) -> _Asked:
    share = parse_share(shard)
    refuse_others(out, share)
    texts, share_of = share.cut(asked.texts)
    return replace(
        asked,
        videos=[video for video in asked.videos if share.holds(video.id)],
        absent=[name for name in asked.absent if share.holds(safe_id(name))],
        texts=texts,
        share=share_of,
    )


def _load(
    settings: ExtractSettings, devices: str, precision: str | None, tell: Callable[[Progress], None]
) -> list[Clip]:
    tell(Progress("load", 0, 1, f"{settings.model}, {settings.weights}"))
    form = settings.form
    return load_clips(
        settings.model,
        settings.weights,
        devices=devices,
        precision=precision,
        layers=form.layers,
        patches=form.patches,
    )


def _how(settings: ExtractSettings, clip: Clip) -> How:
    target = clip.preprocess.target if settings.resize == "decoder" else None
    return How(resolve(settings.decoder), settings.sampling, target)


def _contents(asked: _Asked, clip: Clip, how: How, out: Path) -> Contents:
    settings, form = asked.settings, asked.settings.form
    return Contents(
        fingerprint=clip.fingerprint() | how.fingerprint() | asdict(form) | {"fps": float(settings.fps)},
        fps=float(settings.fps),
        patch_grid=clip.patch_grid,
        joint=clip.joint,
        annotations=asked.texts,
        settings=asked.training if form.patches else without_patches(asked.training),
        form=form,
        videos=path_from(out.parent, asked.place),
        source={"model": settings.model, "weights": told_from(out.parent, settings.weights)},
        share=asked.share,
    )


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
    row = missing_row(name)
    return writer.note(row.id, name=row.name, status=row.status, reason=row.reason)


def _of_earlier_run(out: Path, texts: Mapping[str, str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The splits that the cache has and these annotations have not, and the ids of videos that failed then."""
    if not out.exists():
        return (), frozenset()
    earlier = read_index(out)
    failed = (row.id for row in earlier.rows if not row.ok and row.status not in ("pending", "missing"))
    return tuple(split for split in earlier.contents.annotations if split not in texts), frozenset(failed)


def _keep_finished(
    found: Sequence[Video], writer: CacheWriter, tell: Callable[[Progress], None]
) -> tuple[set[str], list[str]]:
    """The ids of videos whose part is whole and whose file is still the same, and the names of those whose file is not;
    all but the first are noted as pending."""
    kept: set[str] = set()
    changed: list[str] = []
    with ThreadPoolExecutor(cores()) as pool:
        # Only what has a part is read now: hashing a large folder takes as long as reading it.
        parts = {video.id: (parts_folder(writer.path) / f"{video.id}.h5").exists() for video in found}
        hashes = {video.id: pool.submit(content_hash, video.path) for video in found if parts[video.id]}
        for number, video in enumerate(found, start=1):
            content = _result(hashes.get(video.id))
            if content and writer.keep(video.id, content):
                kept.add(video.id)
            else:
                changed += [video.path.stem] if content and writer.is_of_another(video.id, content) else []
                writer.note(video.id, name=video.path.stem, status="pending", reason="not extracted yet.")
            tell(Progress("check", number, len(found), video.path.name))
    writer.write_index()
    return kept, changed


def _result(hashed: Future[str] | None) -> str | None:
    return None if hashed is None or hashed.exception() else hashed.result()
