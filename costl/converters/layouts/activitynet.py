"""Reads ActivityNet Captions (Krishna et al. 2017): an object with durations, timestamps and sentences for each video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costl.benchmarks.common import parse_all, positive_in
from costl.converters.labels import Label, Labels
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import table_in
from costl.pipeline.errors import UsageError

# The usual splits of papers: the first annotators of the validation videos choose the model, the second ones test it.
SPLITS = {"train": "train", "val_1": "val", "val_2": "test"}


def read(path: Path, content: Mapping[str, Any], videos: VideoFolder) -> Labels:
    """The labels of a file. The file names train, val_1 and val_2 mean train, val and test. Raises UsageError."""
    split = SPLITS.get(path.stem, "")
    per_video = parse_all(
        ((f"{path}: {vid}", f"{path}: {vid}", vid, fields) for vid, fields in content.items()),
        lambda where, vid, fields: _labels(where, vid, fields, split=split),
    )
    return Labels([label for labels in per_video for label in labels])


def _labels(where: str, vid: str, fields: Any, *, split: str) -> list[Label]:
    if not isinstance(fields, dict) or not isinstance(fields.get("sentences"), list):
        raise UsageError("expected an object with 'duration', 'timestamps' and 'sentences'")
    duration_s = positive_in(fields, "duration")
    windows = table_in(fields, "timestamps", width=2)
    sentences = fields["sentences"]
    if len(windows) != len(sentences) or not all(isinstance(sentence, str) for sentence in sentences):
        raise UsageError(f"{len(windows)} 'timestamps' and {len(sentences)} 'sentences', expected a text for each")
    return [
        Label(where, vid, sentence, windows=((start, end),), duration_s=duration_s, split=split)
        for (start, end), sentence in zip(windows, sentences, strict=True)
    ]
