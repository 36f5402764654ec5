"""Which files a path means, and which layout each of them has, by its content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.benchmarks.output import REPORT
from costl.converters.labels import Labels
from costl.converters.layouts import activitynet, didemo, ego4d, jsonl, label_studio, subtitles, tables, tvr
from costl.converters.video_folder import VideoFolder
from costl.pipeline.data_folder import SPLIT_NAMES, SPLITS
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.annotations import json_object
from costl.pipeline.formats.strict_json import as_jsonl, json_lines, read_json, read_text

_JSON = (".json", ".jsonl", ".ndjson")
_IN_FOLDERS = (".csv", ".tsv", *_JSON, *subtitles.SUFFIXES)  # a .txt there is more often a README than a table
_KNOWN = (
    "a table (.csv, .tsv), subtitles (.vtt, .srt), or JSON of Label Studio, ActivityNet Captions, DiDeMo, TVR, Ego4D or "
    "QVHighlights"
)


@dataclass(frozen=True)
class LabelLayout:
    """A way to write labels: its title, and its reader, which takes the path of a file, its content, and the videos.

    `named_splits`: its files are published under the names of splits, so that the name of a single one says its split.
    """

    title: str
    read: Callable[[Path, Any, VideoFolder], Labels]
    named_splits: bool = False


@dataclass(frozen=True)
class LabelFile:
    """A file of labels: its layout, its content for the reader, and the split in its name, or an empty text."""

    path: Path
    layout: LabelLayout
    content: Any
    split: str

    def read(self, videos: VideoFolder) -> Labels:
        """The labels of the file. Raises UsageError that lists its first bad rows."""
        return self.layout.read(self.path, self.content, videos)


TABLE = LabelLayout("table", tables.read)
SUBTITLES = LabelLayout("subtitles", subtitles.read)
LABEL_STUDIO = LabelLayout("Label Studio", label_studio.read)
ACTIVITYNET = LabelLayout("ActivityNet Captions", activitynet.read)
DIDEMO = LabelLayout("DiDeMo", didemo.read, named_splits=True)
EGO4D = LabelLayout("Ego4D", ego4d.read, named_splits=True)
TVR = LabelLayout("TVR", tvr.read, named_splits=True)
QVHIGHLIGHTS = LabelLayout("QVHighlights", jsonl.read, named_splits=True)
ROWS = LabelLayout("rows of CoSTL", jsonl.read)


def find_labels(source: Path) -> list[LabelFile]:
    """The labels of a file or a folder, by name. Raises UsageError for an unknown layout, and for several in one folder."""
    if not source.is_file() and not source.is_dir():
        raise UsageError(f"{source}: neither a file nor a folder, expected labels: {_KNOWN}.")
    files = [_open(path) for path in (_label_paths(source) if source.is_dir() else [source])]
    by_layout = {file.layout.title: file.path.name for file in files}
    if len(by_layout) > 1:
        named = first_few(f"{name} ({title})" for title, name in by_layout.items())
        raise UsageError(f"{source}: labels in several layouts: {named}. Name one of these files instead of the folder.")
    return files


def _label_paths(folder: Path) -> list[Path]:
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _IN_FOLDERS and path.is_file()]
    paths = [path for path in paths if path.name != REPORT and not path.name.startswith(".")]
    if not paths:
        names = [entry.name + "/" * entry.is_dir() for entry in sorted(folder.iterdir())]
        content = f"found {first_few(names)}" if names else "the folder is empty"
        raise UsageError(f"{folder}: no labels; {content}. Expected {_KNOWN}.")
    return paths


def _open(path: Path) -> LabelFile:
    layout, content = _layout(path, read_text(path))
    # Subtitles have the names of their videos, such as test-drive.srt.
    return LabelFile(path, layout, content, "" if layout is SUBTITLES else _split_in_name(path.stem))


def _layout(path: Path, text: str) -> tuple[LabelLayout, Any]:
    suffix = path.suffix.lower()
    if not text.strip():
        raise UsageError(f"{path}: empty, expected labels.")
    if suffix in subtitles.SUFFIXES:
        return SUBTITLES, text
    if suffix in tables.SUFFIXES and text.lstrip()[0] not in "[{":
        return TABLE, text
    if text.lstrip()[0] in "[{":
        return _json_layout(path, text)
    raise UsageError(f"{path}: not labels that costl prepare reads. Expected {_KNOWN}.")


def _json_layout(path: Path, text: str) -> tuple[LabelLayout, Any]:
    try:
        content = read_json(text)
    except ValueError as error:
        if "\n" not in text.strip():
            raise UsageError(f"{path}: not JSON ({error}).") from error
        return _jsonl_layout(path, text)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return _list_layout(path, content, text)
    if isinstance(content, dict) and isinstance(content.get("videos"), list):
        return EGO4D, content
    if isinstance(content, dict) and any(_mapping(fields).get("sentences") is not None for fields in content.values()):
        return ACTIVITYNET, content
    if isinstance(content, dict) and "annotations" in content and "data" in content:
        return LABEL_STUDIO, [content]
    if isinstance(content, dict) and ("query" in content or "vid_name" in content):  # JSONL of one line
        return _jsonl_layout(path, text)
    raise _unknown(path, content)


def _list_layout(path: Path, items: Sequence[Any], text: str) -> tuple[LabelLayout, Any]:
    first = items[0]
    if didemo.is_item(first):
        return DIDEMO, items
    if "query" in first or "vid_name" in first:
        return _jsonl_layout(path, as_jsonl(text))
    if "data" in first or "annotations" in first or label_studio.TYPE in first:
        return LABEL_STUDIO, items
    raise _unknown(path, first)


def _jsonl_layout(path: Path, text: str) -> tuple[LabelLayout, Any]:
    number, line = next(iter(json_lines(text)))
    try:
        first = json_object(line)
    except UsageError as error:
        raise UsageError(f"{path}:{number}: {error}.") from error
    if "vid_name" in first:
        return TVR, text
    if "query" in first or "vid" in first:
        return QVHIGHLIGHTS if re.match(r"highlight_(train|val|test)_", path.name) else ROWS, text
    raise _unknown(path, first)


def _unknown(path: Path, content: Any) -> UsageError:
    kind = "a list" if isinstance(content, list) else f"fields {first_few(repr(name)[:40] for name in content)}"
    return UsageError(f"{path}: JSON of an unknown layout ({kind}). Expected {_KNOWN}.")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _split_in_name(stem: str) -> str:
    """The split that a word of a name means, as in tvr_train_release; an empty text for none or several."""
    words = re.findall(r"[a-z]+", stem.lower())
    splits = {SPLIT_NAMES.get(word, word) for word in words} & set(SPLITS)
    return splits.pop() if len(splits) == 1 else ""
