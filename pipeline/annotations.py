"""Annotations against the videos that are there: the names of videos, and times after the end of a video."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath

from costl.pipeline.cache.index import Index, VideoRow
from costl.pipeline.data_folder import missing_videos
from costl.pipeline.errors import SHOWN, first_few
from costl.pipeline.formats.annotations import RATED_CLIP_S, Query, cut_note, parse_jsonl, plain_name
from costl.pipeline.formats.strict_json import json_lines, read_json
from costl.pipeline.grid import Grid

REMEDY = "Correct these rows or take them out, and run the same costl extract again."


def with_known_names(texts: Mapping[str, str], videos: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(checked annotations in which each video has its name in `videos`, notes about the names that were changed).

    A name changes if only the ending of the file, the Unicode form or the slashes differ: 'a.mp4' becomes 'a'.
    """
    names = list(videos)
    by_plain_name: dict[str, list[str]] = {}
    for name in names:
        by_plain_name.setdefault(plain_name(name), []).append(name)
    found = {
        vid: by_plain_name.get(plain_name(vid)) or by_plain_name.get(plain_name(vid.replace("\\", "/")), [])
        for vid in missing_videos(texts, names)
    }
    changed = {vid: same[0] for vid, same in found.items() if len(same) == 1}
    if not changed:
        return dict(texts), []
    first, name = next(iter(changed.items()))
    note = f"The annotations name {len(changed)} videos in another way than their files, such as {first!r}: read as {name!r}."
    return {split: _rename(text, changed) for split, text in texts.items()}, [note]


def _rename(text: str, changed: Mapping[str, str]) -> str:
    lines = text.split("\n")
    for number, line in json_lines(text):
        row = read_json(line)
        if row["vid"] in changed:
            lines[number - 1] = json.dumps(row | {"vid": changed[row["vid"]]}, ensure_ascii=False)
    return "\n".join(lines)


def first_missing(missing: Sequence[str], videos: Iterable[str]) -> str:
    """The first few missing videos for an error message, each with the one of `videos` that was probably meant."""
    names = list(videos)
    # To compare all names would take long.
    return first_few([*(with_similar_name(name, names) for name in missing[:SHOWN]), *missing[SHOWN:]], last=", and ")


def with_similar_name(name: str, videos: Iterable[str]) -> str:
    """The name of a missing video for an error message, with the video that was probably meant, if there is one.

    All videos of this name are given where several folders have one.
    """
    by_loose_name: dict[str, list[str]] = {}
    for other in videos:
        by_loose_name.setdefault(_loose_name(other), []).append(other)
    similar = get_close_matches(_loose_name(name), list(by_loose_name), n=1, cutoff=0.8)
    if not similar:
        return name
    meant = first_few(map(repr, by_loose_name[similar[0]]), between=" or ")
    return f"{name!r} (did you mean {meant}?)"


def _loose_name(name: str) -> str:
    """A name without folder, ending, capitals and spaces at its ends."""
    return plain_name(PurePosixPath(name.replace("\\", "/")).name.strip()).casefold()


def compare_with_videos(index: Index, splits: Iterable[str]) -> tuple[list[str], list[str]]:
    """(sentences about moments after the end of their video, notes about durations and cut windows) for some splits."""
    durations = durations_s(index.rows)
    late: list[str] = []
    notes: list[str] = []
    for split in splits:
        queries = parse_jsonl(index.contents.annotations[split], f"{split}.jsonl")
        late += late_moments(split, queries, durations, index.contents.fps)
        notes += [*cut_note(split, queries), *duration_notes(split, queries, durations, index.contents.fps)]
    return late, notes


def durations_s(rows: Iterable[VideoRow]) -> dict[str, float]:
    """The seconds of every video with features, by its name."""
    return {row.name: row.duration_s for row in rows if row.ok}


def moment_start_limit_clips(grid: Grid) -> float:
    """A moment that starts here or later (in clips) lies outside the video.

    The limit is a little behind the last clip. Between both may lie a tail too short for a clip of its own, or the
    rounding of an annotation; a moment that starts there counts as the last clip.
    """
    return grid.clips + max(1.0, RATED_CLIP_S * grid.fps)


def late_moments(split: str, queries: Sequence[Query], durations: Mapping[str, float], fps: float) -> list[str]:
    """A sentence about the queries with a moment after the end of their video, empty if there is none.

    `durations` has the seconds of every video with features. `fps` is the clips per second.
    """
    late = [
        f"query {query.qid!r} {list(window)} in {query.vid!r} ({_lengths(query, durations[query.vid])})"
        for query in queries
        if query.vid in durations and (window := _late_window(query, Grid(fps, durations[query.vid])))
    ]
    if not late:
        return []
    return [f"{split}.jsonl: {len(late)} queries have a moment after the end of their video: {first_few(late)}. {REMEDY}"]


def _late_window(query: Query, grid: Grid) -> Sequence[float]:
    """The first window that starts after the end of the video, [start, end] in seconds; empty if there is none."""
    limit = moment_start_limit_clips(grid)
    return next((window for window in query.windows if window[0] * grid.fps >= limit), ())


def _lengths(query: Query, video_s: float) -> str:
    annotated_s = query.duration_s
    return f"{video_s:g} s long" + (f", {annotated_s:g} by its annotation" if annotated_s != video_s else "")


def duration_notes(split: str, queries: Sequence[Query], durations: Mapping[str, float], fps: float) -> list[str]:
    """A note about videos of another duration than annotated; only differences that cannot come from rounding count."""
    differences = {
        query.vid: abs(query.duration_s - durations[query.vid]) for query in queries if query.vid in durations
    }
    differences = {vid: seconds for vid, seconds in differences.items() if seconds > max(RATED_CLIP_S, 1 / fps)}
    if not differences:
        return []
    worst = max(differences, key=lambda vid: differences[vid])
    return [
        f"{split}: {len(differences)} videos are longer or shorter than their annotation says, "
        f"{worst} by {differences[worst]:.1f} s. Check that the annotation was made for this cut of the video."
    ]
