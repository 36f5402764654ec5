"""What a run of stage one works on: videos, annotations and settings, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from costl.pipeline.annotations import first_missing, with_known_names
from costl.pipeline.cache.index import Contents, absolute_weights, read_index
from costl.pipeline.data_folder import (
    ExtractSettings,
    check_annotations,
    data_folder,
    has_annotations,
    missing_videos,
    read_annotations,
    read_settings,
    rows_in,
    settings_folder,
    unread_files,
)
from costl.pipeline.encode.names import check_names, default_weights, weights_folder
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.run.shards import parse_share, refuse_other_shares
from costl.pipeline.videos import Video, find_videos, folder_of, left_out, safe_id


@dataclass(frozen=True)
class Inputs:
    """The input of one run.

    `videos` lie in `folder` and the folders in it; `left_out` are names there that only look like those of videos, `missing`
    the names of annotated videos without a file. `annotations`: the JSONL text of each split. `settings` decide the features.
    `training`: the settings for training that the data folder holds. `share`: the fields of the share that the run takes (see
    `shards.Share`), empty for the whole folder. `notes`: what was read in another way than it is written, files that look
    like annotations and were not read, and videos in deeper folders without annotations.
    """

    videos: list[Video]
    folder: Path
    missing: list[str]
    annotations: Mapping[str, str]
    settings: ExtractSettings
    training: Mapping[str, Any]
    share: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    notes: tuple[str, ...] = ()


def read_inputs(
    path: Path,
    annotations: Path | Mapping[str, str] | None,
    chosen: Mapping[str, Any],
    *,
    cache: Path | None = None,
    keep_annotations: bool = True,
    allow_missing: bool,
) -> Inputs:
    """The input of a run on the videos at `path`, a folder or one video; for the other arguments see `extract.extract`.

    An existing `cache` keeps its encoder unless another one is chosen, and with `keep_annotations` a folder without
    annotations keeps those that `costl cache add-queries` has added. Raises UsageError for a folder without videos, wrong
    settings or annotations, and missing videos unless `allow_missing`.
    """
    videos = [Video(safe_id(path.stem), path)] if path.is_file() else find_videos(path, recursive=True)
    names = [video.name for video in videos]
    folder = data_folder(path)
    folder_settings = read_settings(settings_folder(folder, annotations))
    earlier = read_index(cache).contents if cache and cache.exists() else None
    settings = _resolve_settings(folder_settings.extract, chosen, _encoder_of(cache, earlier) if cache and earlier else {})
    source = ""
    if isinstance(annotations, Mapping):
        check_annotations(annotations)
        texts = dict(annotations)
    elif annotations is None and not has_annotations(folder):
        texts = dict(earlier.annotations) if earlier and keep_annotations else {}
        source = f" of {cache}"
    else:
        texts = read_annotations(annotations or folder)
    texts, notes = with_known_names(texts, names)
    place = annotations or folder
    unread = unread_files(place) if isinstance(place, Path) and place.is_dir() else []
    if unread:
        notes.append(
            f"Not read: {first_few(unread)}. Annotations are called train, val, test (.jsonl or .json) or test_*.jsonl. "
            "costl prepare converts labels."
        )
    missing = missing_videos(texts, names)
    if missing and not allow_missing:
        deeper = next((name for name in names if "/" in name), "")
        path_hint = f" In a deeper folder, the name of a video is its path, such as {deeper!r}." if deeper else ""
        raise UsageError(
            f"The annotations{source} name {len(missing)} videos that are not here: {first_missing(missing, names)}. "
            f"Here are {len(names)}: {first_few(sorted(names), last=', and ')}.{path_hint} Add the missing videos, remove their "
            "rows, or pass --allow-missing-videos to go on without them."
        )
    check_names(settings.model, settings.weights)
    notes += _deeper_note(videos, texts)
    return Inputs(
        videos=videos,
        folder=folder_of(path, videos),
        missing=missing,
        annotations=texts,
        settings=settings,
        training=folder_settings.train,
        left_out=left_out(folder_of(path, videos), recursive=True) if path.is_dir() else (),
        notes=tuple(notes),
    )


def _deeper_note(videos: Sequence[Video], texts: Mapping[str, str]) -> list[str]:
    """A note about the videos in deeper folders that no annotation names, if there are annotations."""
    deeper = [video.name for video in videos if "/" in video.name]
    annotated = {row["vid"] for row in rows_in(texts)} if deeper else set()
    unnamed = [name for name in deeper if annotated and name not in annotated]
    if not unnamed:
        return []
    return [
        f"No annotation names {len(unnamed)} videos in deeper folders, which are extracted as well: {first_few(unnamed)}. To "
        "leave out a folder, move it, or begin its name with a dot."
    ]


def _encoder_of(cache: Path, contents: Contents) -> dict[str, str]:
    """The model and the weights of a cache, empty for features that others made."""
    if not {"model", "weights"} <= contents.source.keys():
        return {}
    weights = absolute_weights(cache.parent, contents.source["weights"])
    return {"model": contents.source["model"], "weights": weights}


def _resolve_settings(
    folder_settings: Mapping[str, Any], chosen: Mapping[str, Any], encoder: Mapping[str, str]
) -> ExtractSettings:
    values = {**folder_settings, **{name: value for name, value in chosen.items() if value is not None}}
    if "model" in values and "weights" not in values:
        values["weights"] = default_weights(str(values["model"]))
    chosen_encoder = {"model", "weights"} & values.keys()
    settings = ExtractSettings(**values if chosen_encoder else {**values, **encoder})
    if "model" in values and weights_folder(settings.weights):
        raise UsageError(
            f"model {settings.model}: the weights in {settings.weights} bring their own architecture. Leave the model "
            "out, or name a tag for it, such as --weights openai."
        )
    return settings


def select_share(inputs: Inputs, shard: str, cache: Path) -> Inputs:
    """The part of the input that belongs to the share `shard`, such as "2/4".

    Raises UsageError for another text, and CacheError if the cache holds videos of other shares.
    """
    share = parse_share(shard)
    refuse_other_shares(cache, share)
    annotations, share_fields = share.select_annotations(inputs.annotations)
    return replace(
        inputs,
        videos=[video for video in inputs.videos if share.holds(video.id)],
        missing=[name for name in inputs.missing if share.holds(safe_id(name))],
        annotations=annotations,
        share=share_fields,
    )
