"""Reads natural language queries of Ego4D (Grauman et al. 2022): videos, their clips, and the queries about each clip.

A query has its times twice: in seconds of the clip (`clip_start_sec`), and in seconds of the whole video
(`video_start_sec`). Which of them count depends on the files that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from costl.benchmarks.common import parse_all
from costl.converters.labels import Label, Labels
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import Window, number_in
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import text_in

_NOTES = {
    "clip": "Ego4D: {count} queries count seconds in their clip (clip_uid).",
    "video": "Ego4D: {count} queries count seconds in the whole video (video_uid), since the files of their clips are missing.",
}


def read(path: Path, content: Mapping[str, Any], videos: VideoFolder) -> Labels:
    """The labels of a file: about its clips, or about a whole video that is there where its clips are not.

    Queries without a text are left out, as Ego4D has some. Raises UsageError that lists the first bad clips.
    """
    per_clip = parse_all(_clips(path, content), lambda where, uid, clip: _labels(where, uid, clip, videos=videos))
    labels = [label for _, clip_labels, _ in per_clip for label in clip_labels]
    counts = Counter(dict.fromkeys(_NOTES, 0))
    for unit, clip_labels, _ in per_clip:
        counts[unit] += len(clip_labels)
    notes = [_NOTES[unit].format(count=count) for unit, count in counts.items() if count]
    empty = sum(without_text for _, _, without_text in per_clip)
    notes += [f"Ego4D: {empty} queries without a text are left out."] if empty else []
    return Labels(labels, tuple(notes))


def _clips(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """(where for the error, where for its labels, video_uid, clip) of every clip."""
    for video in content["videos"]:
        uid = str(video.get("video_uid", "")) if isinstance(video, dict) else ""
        clips = video.get("clips") if isinstance(video, dict) else None
        if not uid or not isinstance(clips, list):
            raise UsageError(f"{path}: a video without 'video_uid' or 'clips'.")
        for clip in clips:
            where = f"{path}: clip {clip.get('clip_uid') if isinstance(clip, dict) else clip!r}"
            yield where, where, uid, clip


def _labels(where: str, video_uid: str, clip: Any, *, videos: VideoFolder) -> tuple[str, list[Label], int]:
    """Whether its times are those of the clip or the video, the labels, and the number of queries without a text."""
    if not isinstance(clip, dict) or not isinstance(clip.get("annotations"), list):
        raise UsageError("expected an object with 'clip_uid' and 'annotations'")
    clip_uid = text_in(clip, "clip_uid")
    unit = "video" if videos.find(video_uid) and not videos.find(clip_uid) else "clip"
    # The duration of a whole video is not in the file.
    duration_s = number_in(clip, "video_end_sec") - number_in(clip, "video_start_sec") if unit == "clip" else None
    labels = []
    empty = 0
    for query in _queries(clip["annotations"]):
        if not str(query.get("query") or "").strip():
            empty += 1
            continue
        windows = (_window(query, unit),) if f"{unit}_start_sec" in query else ()
        name = clip_uid if unit == "clip" else video_uid
        labels.append(Label(where, name, text_in(query, "query"), windows=windows, duration_s=duration_s))
    return unit, labels, empty


def _queries(annotations: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for annotation in annotations:
        queries = annotation.get("language_queries") if isinstance(annotation, dict) else None
        if not isinstance(queries, list) or not all(isinstance(query, dict) for query in queries):
            raise UsageError("an annotation without a list 'language_queries' of objects")
        yield from queries


def _window(query: Mapping[str, Any], unit: str) -> Window:
    return number_in(query, f"{unit}_start_sec"), number_in(query, f"{unit}_end_sec")
