"""Stage one in its order: check what is cheap, load CLIP, decode and encode what is missing, publish the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
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
from pipeline.clip import Clip, load_clips
from pipeline.decoders import resolve
from pipeline.encoding import cores, extract_into
from pipeline.errors import UsageError
from pipeline.history import recorded
from pipeline.how import How
from pipeline.index import path_from, read_index, told_from
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
    without_patches,
)
from pipeline.videos import Video, content_hash, find_videos, safe_id

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
    progress: Callable[[Progress], None] | None = None,
    **chosen: Any,
) -> ExtractReport:
    """Turns the videos of a folder (or one video file) and their annotations into the cache `out`, or completes it.

    `annotations`: a folder, a file, or the JSONL text of each split; by default the files beside the videos. What decides
    the features are the fields of `ExtractSettings`: those `chosen` here (None: not) win over the costl.yaml of the
    annotations' folder, which takes the place of the videos'. With `allow_missing_videos`, annotated videos that are not
    there become rows of status "missing". `workers` decode processes (default: one a core), `batch` frames encoded at once,
    `device` one or several, as "cuda:0,cuda:1", `compiled` after a minute of compiling, where that is possible. Each run
    leaves a line in OUT.runs.jsonl. Videos that are finished are not decoded again; a video that cannot be decoded becomes
    a row, and the rest goes on. Raises UsageError for what is wrong with the input, CacheError for a cache of other
    settings, damaged or busy, CostlError after 20 failures in a row or when a device fails.
    """
    tell = progress or (lambda _: None)
    found = _find(videos)
    folder = data_folder(videos)
    from_folder = read_settings(settings_folder(folder, annotations))
    settings = _resolve(from_folder.extract, **chosen)
    texts = _annotations(annotations, folder, found, allow_missing=allow_missing_videos)
    _check_counts(workers=workers, batch=batch)
    decoder, patches = resolve(settings.decoder), settings.tokens == "all"
    refuse_if_busy(out)
    tell(Progress("load", 0, 1, f"{settings.model}, {settings.weights}"))
    clip, *others = clips = load_clips(
        settings.model,
        settings.weights,
        devices=device,
        precision=precision,
        layers=settings.layers,
        patches=patches,
    )
    target = clip.preprocess.target if settings.resize == "decoder" else None
    how = How(decoder, settings.sampling, target)
    contents = Contents(
        fingerprint=clip.fingerprint() | how.fingerprint() | asdict(settings.form) | {"fps": float(settings.fps)},
        fps=float(settings.fps),
        patch_grid=clip.patch_grid,
        joint=clip.joint,
        annotations=texts,
        settings=from_folder.train if patches else without_patches(from_folder.train),
        form=settings.form,
        videos=path_from(out.parent, found[0].path.parent),
        source={"model": settings.model, "weights": told_from(out.parent, settings.weights)},
    )
    check_fingerprint(out, contents.fingerprint)
    dropped = _dropped_splits(out, texts)
    words = encode_queries(clip, queries_in(texts), out, tell)
    with CacheWriter(out, contents, words) as writer, recorded(out, clips) as meter:
        absent = [_note_missing(writer, name) for name in missing_videos(texts, (video.path.stem for video in found))]
        skipped, changed = _keep_finished(found, writer, tell)
        missing = [video for video in found if video.id not in skipped]
        meter.videos |= {"skipped": len(skipped), "missing": len(absent)}
        rows = extract_into(
            writer,
            missing,
            clip=clip,
            others=others,
            fps=contents.fps,
            how=how,
            workers=workers,
            batch=batch,
            compiled=compiled,
            meter=meter,
            time_limit_s=time_limit_s,
            tell=tell,
        )
    return ExtractReport(
        cache=out,
        done=tuple(row.name for row in rows if row.ok),
        skipped=tuple(video.path.stem for video in found if video.id in skipped),
        failed=(*absent, *(row for row in rows if not row.ok)),
        truncated=tuple(query for query, one in words.items() if one.truncated),
        changed=tuple(changed),
        dropped=dropped,
    )


def encode_queries(clip: Clip, queries: list[str], out: Path, tell: Callable[[Progress], None]) -> dict[str, Words]:
    """The words of every query; those that the cache at `out` has already, of the same fingerprint and named, are kept."""
    known = {query: words for query, words in known_words(out).items() if words.texts}
    known |= encode_new(clip, [query for query in queries if query not in known], tell)
    return {query: known[query] for query in queries}


def encode_new(clip: Clip, queries: list[str], tell: Callable[[Progress], None]) -> dict[str, Words]:
    """The words of these queries. Raises UsageError for one without a word in it."""
    found: dict[str, Words] = {}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[start : start + _QUERIES_AT_ONCE]
        found |= dict(zip(some, clip.encode_text(some), strict=True))
        tell(Progress("words", start + len(some), len(queries)))
    return found


def missing_row(name: str) -> VideoRow:
    """The row of a video that is annotated and nowhere to be found."""
    return VideoRow(safe_id(name), "missing", name, reason="annotated, but its video is not there.")


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


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}, expected at least 1.")


def _dropped_splits(out: Path, texts: Mapping[str, str]) -> tuple[str, ...]:
    earlier = read_index(out).contents.annotations if out.exists() else {}
    return tuple(split for split in earlier if split not in texts)


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
