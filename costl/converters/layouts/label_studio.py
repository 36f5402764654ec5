"""Reads the JSON export of Label Studio for the timeline of videos (TimelineLabels), which counts frames.

Frames count from 1, and both ends of a range belong to it: Label Studio shows frame f from (f - 1) / rate to f / rate
seconds.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from costl.benchmarks.common import Row, own_row, parse_all
from costl.converters.labels import Label, Labels
from costl.converters.times import frames_to_window, parse_rate, window_to_frames
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import Window
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.strict_json import abbreviated

TYPE = "timelinelabels"
ROWS = "costl"  # where a task of ours holds the rows from which it was made
RATE_FIELDS = ("fps", "framerate", "frameRate", "frame_rate")
_MOST_FRAMES = 10**12
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts in front of the name of an uploaded file
_SOURCES = {"textarea": "the text field", "choices": "the choice", TYPE: "the label"}

Range = tuple[int, int]  # first and last frame, counted from 1


@dataclass(frozen=True)
class _Region:
    """A range of frames with its sentence, and the type of the result that has the sentence."""

    sentence: str
    frames: Range
    source: str


def read(path: Path, tasks: Sequence[Any], videos: VideoFolder) -> Labels:
    """The labels of an export: those of all its annotators, and no predictions.

    The sentence of a region is its text, if the region has a text field; else its choice; else its label. A task that
    `to_label_studio` wrote has its rows in it: those whose regions were not changed are returned exactly. Raises UsageError
    for an export of images, and that lists the first bad tasks.
    """
    _refuse_other_types(path, tasks)
    items = ((f"{path}: task {_number(task, place)}", task) for place, task in enumerate(tasks, start=1))
    per_task = parse_all(((where, where, task) for where, task in items), lambda where, task: _labels(where, task, videos))
    sources = Counter(source for _, task_sources in per_task for source in task_sources)
    notes = [f"{path.name}: the sentence of {count} regions is {_SOURCES[source]}." for source, count in sources.items()]
    notes += _notes(path, tasks, videos)
    return Labels([label for labels, _ in per_task for label in labels], tuple(notes))


def _notes(path: Path, tasks: Sequence[Any], videos: VideoFolder) -> list[str]:
    """What of an export is not used, and at which rate its frames were counted if it does not say so."""
    skipped = sum(not _annotations(task) for task in tasks)
    results = [result for task in tasks for annotation in _annotations(task) for result in _results(annotation)]
    types = Counter(str(result.get("type")) for result in results)
    notes = [f"{path.name}: {skipped} of {len(tasks)} tasks have no annotation, and are left out."] if skipped else []
    others = {name: count for name, count in types.items() if name not in _SOURCES}
    notes += [f"{path.name}: {count} results of type {name!r} are not used." for name, count in others.items()]
    states_rate = all(_mapping(task.get("data")).keys() & set(RATE_FIELDS) for task in tasks)
    if results and not states_rate and videos.frame_rate is None:
        notes.append(
            f"{path.name} does not say at which rate frames were counted. Label Studio counts 24 a second, unless the Video "
            "tag of its configuration has a framerate; if yours has none, pass --frame-rate 24."
        )
    return notes


def _refuse_other_types(path: Path, tasks: Sequence[Any]) -> None:
    """Raises UsageError for an export without regions on the timeline of a video, naming what it has."""
    if any(TYPE in task for task in tasks if isinstance(task, dict)):
        raise UsageError(f"{path}: an export of Label Studio as JSON-MIN. Export it as JSON.")
    types = {str(result.get("type")) for task in tasks for annotation in _annotations(task) for result in _results(annotation)}
    fields = {name for task in tasks if isinstance(task, dict) for name in _mapping(task.get("data"))}
    timeline = TYPE in types or (not types and not fields & {"image", "text", "audio"})
    if not timeline and not any(ROWS in _mapping(task.get("data")) for task in tasks if isinstance(task, dict)):
        found = first_few(repr(name) for name in sorted(types)) or f"data {first_few(repr(name) for name in sorted(fields))}"
        kind = "images" if "image" in fields else "something else"
        raise UsageError(f"{path}: an export of Label Studio for {kind} ({found}), expected {TYPE!r} of videos.")


def _labels(where: str, task: Any, videos: VideoFolder) -> tuple[list[Label], list[str]]:
    """The labels of a task, and for each region the type of the result that its sentence comes from."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        raise UsageError("not a task of Label Studio, expected an object with 'data' and 'annotations'")
    annotations = _annotations(task)
    if not annotations:
        return [], []
    rows = _rows(task["data"])
    video = _video_name(task, rows, videos)
    regions = [region for annotation in annotations for region in _regions(annotation)]
    rate = videos.rate_of(video, stated=_stated_rate(task["data"]))
    unchanged, windows = _compare(rows, regions, rate) if rate else ([], {})
    labels = [_kept(where, video, row) for row in unchanged]
    sentences = {_one_line(row.query.query) for row in unchanged}
    ranges: dict[str, list[Range]] = defaultdict(list)
    for region in regions:
        ranges[region.sentence].append(region.frames)
    for sentence, frames in ranges.items():
        if sentence not in sentences:
            exact = [windows.get((sentence, one)) or _seconds(one, rate) for one in frames] if rate else []
            labels.append(Label(where, video, sentence, windows=tuple(exact)))
    return labels, [region.source for region in regions]


def _compare(
    rows: Sequence[Row], regions: Sequence[_Region], rate: Fraction
) -> tuple[list[Row], dict[tuple[str, Range], Window]]:
    """The rows whose regions are all as they were written, and the exact windows of all other regions that still are."""
    found: dict[str, set[Range]] = defaultdict(set)
    for region in regions:
        found[region.sentence].add(region.frames)
    written: dict[str, dict[Range, Window]] = defaultdict(dict)
    for row in rows:
        written[_one_line(row.query.query)] |= {_frames(window, rate): window for window in row.query.windows}
    unchanged = [row for row in rows if set(written[_one_line(row.query.query)]) == found[_one_line(row.query.query)]]
    windows = {(sentence, frames): window for sentence, exact in written.items() for frames, window in exact.items()}
    return unchanged, windows


def _kept(where: str, video: str, row: Row) -> Label:
    return Label(where, video, row.query.query, duration_s=row.query.duration_s, qid=row.qid, row=row)


def _regions(annotation: Mapping[str, Any]) -> Iterator[_Region]:
    """The regions on the timeline. Results of one region have one id: its ranges, and its text or choice."""
    texts: dict[tuple[str, str], str] = {}
    for result in _results(annotation):
        for kind, key in (("textarea", "text"), ("choices", "choices")):
            if result.get("type") == kind:
                texts[kind, str(result.get("id"))] = _first_text(_mapping(result.get("value")).get(key))
    for result in _results(annotation):
        if result.get("type") == TYPE:
            value = _mapping(result.get("value"))
            region = str(result.get("id"))
            options = {kind: texts.get((kind, region), "") for kind in ("textarea", "choices")}
            options[TYPE] = _first_text(value.get(TYPE))
            source = next((kind for kind, text in options.items() if text), "")
            if not source:
                raise UsageError(f"region {region} has neither a text nor a label")
            for frames in _ranges(region, value.get("ranges")):
                yield _Region(_one_line(options[source]), frames, source)


def _ranges(region: str, ranges: Any) -> Iterator[Range]:
    if not isinstance(ranges, list) or not ranges:
        raise UsageError(f"region {region} has no 'ranges' of frames")
    for one in ranges:
        start, end = _mapping(one).get("start"), _mapping(one).get("end")
        first, last = _frame(start), _frame(end)
        if not 1 <= first <= last:
            found = f"{abbreviated(start, 20)} to {abbreviated(end, 20)}"
            raise UsageError(f"region {region} has the frames {found}, expected whole numbers from 1, in order")
        yield first, last


def _rows(data: Mapping[str, Any]) -> list[Row]:
    """The rows that a task of ours holds. Raises UsageError."""
    rows = data.get(ROWS)
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"its data {ROWS!r} is not a list of rows")
    return [own_row(row) for row in rows]


def _video_name(task: Mapping[str, Any], rows: Sequence[Row], videos: VideoFolder) -> str:
    """The name of a task's video: that of its rows, or the end of its address, without what Label Studio puts in front of an
    upload. Folders of the address count where the file is in them.
    """
    if rows and videos.find(rows[0].query.vid):
        return rows[0].query.vid
    data = task["data"]
    texts = {name: value for name, value in data.items() if isinstance(value, str) and value.strip()}
    value = texts.get("video") or texts.get("video_url") or (next(iter(texts.values())) if len(texts) == 1 else "")
    if not value:
        raise UsageError(f"its data has no 'video', only {first_few(map(repr, data)) or 'nothing'}")
    address = urlsplit(value)
    local = parse_qs(address.query).get("d")  # of Label Studio's local files
    path = local[0] if local else unquote(address.path) if address.scheme or address.query else value
    name = path.replace("\\", "/").rpartition("/")[2] or value
    without_upload = _UPLOAD.sub("", name, count=1) if _UPLOAD.match(name) else name
    return next((found for found in (path, name) if videos.find(found)), without_upload)


def _stated_rate(data: Mapping[str, Any]) -> Fraction | None:
    """The frame rate in a task's data, which a labelling configuration may name: framerate="$fps"."""
    stated = next((data[name] for name in RATE_FIELDS if data.get(name) not in (None, "")), None)
    try:
        return None if stated is None else parse_rate(str(stated))
    except UsageError:
        raise UsageError(f"its data has the frame rate {str(stated)[:40]!r}, expected frames a second") from None


def _annotations(task: Any) -> list[Mapping[str, Any]]:
    """The annotations of a task that its annotators did not cancel."""
    listed = _mapping(task).get("annotations") or _mapping(task).get("completions") or []
    annotations = [_mapping(one) for one in listed] if isinstance(listed, list) else []
    return [one for one in annotations if one and not one.get("was_cancelled")]


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = annotation.get("result")
    return [_mapping(one) for one in listed] if isinstance(listed, list) else []


def _frames(window: Window, rate: Fraction) -> Range:
    first, last = window_to_frames(window, rate)
    return first + 1, last + 1


def _seconds(frames: Range, rate: Fraction) -> Window:
    return frames_to_window(frames[0] - 1, frames[1] - 1, rate)


def _first_text(value: Any) -> str:
    """A text, or the texts of a list in a row."""
    texts = value if isinstance(value, list) else [value]
    return " ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _number(task: Any, place: int) -> Any:
    return _mapping(task).get("id", place)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _frame(value: Any) -> int:
    """The number of a frame; 0 for a value that is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < _MOST_FRAMES and value == int(value) else 0
