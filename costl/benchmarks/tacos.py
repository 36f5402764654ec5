"""Reads TACoS (Regneri et al. 2013) in the split of 2D-TAN: JSONL, or one JSON object a video with times in frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from costl.benchmarks.common import (
    SPLITS,
    Annotations,
    Benchmark,
    DurationOf,
    Files,
    Layout,
    Row,
    parse_all,
    positive_in,
    read_splits,
    row_with_windows,
    video_items,
)
from costl.data.annotations import Query, table_in
from costl.pipeline.errors import UsageError

VIDEO = re.compile(r"s\d+-d\d+")
CAMERA = "-cam-002"  # in the names of the dataset's video files, but not in its annotations


def read_jsonl(files: Files, duration_of: DurationOf) -> Annotations:
    """The three splits, each a JSONL file. Raises UsageError for a file of another dataset."""
    return _checked(read_splits(files, duration_of), files)


def read_json(files: Files, duration_of: DurationOf) -> Annotations:
    """The three splits, each an object `{"s17-d69.avi": {timestamps, sentences, fps, num_frames}}`; frames become seconds."""
    splits = {split: list(chain(*parse_all(video_items(files[split]), _rows))) for split in SPLITS}
    return _checked(Annotations(splits), files)


def _rows(name: str, fields: Mapping[str, Any]) -> list[Row]:
    fps = positive_in(fields, "fps")
    duration_s = positive_in(fields, "num_frames") / fps
    frames = table_in(fields, "timestamps", width=2)
    sentences = fields.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise UsageError("'sentences' is not a list of texts")
    if len(sentences) != len(frames):
        raise UsageError(f"{len(sentences)} sentences but {len(frames)} timestamps")
    vid = name.removesuffix(".avi").removesuffix(".mp4").removesuffix(CAMERA)
    return [
        row_with_windows(
            Query(qid=f"{vid}_{number}", query=sentence.strip(), vid=vid, duration_s=duration_s),
            [(start / fps, end / fps)],
        )
        for number, (sentence, (start, end)) in enumerate(zip(sentences, frames, strict=True))
    ]


def _checked(annotations: Annotations, files: Files) -> Annotations:
    # Other datasets use the names train, val and test too. The names of the videos decide.
    for split, rows in annotations.splits.items():
        other = next((row.query.vid for row in rows if not VIDEO.match(row.query.vid)), None)
        if other is not None:
            raise UsageError(
                f"{files[split]}: has a video {other!r}, expected names like 's17-d69'. This is not TACoS."
            )
    return annotations


TACOS = Benchmark(
    name="tacos",
    title="TACoS",
    layouts=(
        Layout(files={split: (f"{split}.jsonl",) for split in SPLITS}, read=read_jsonl),
        Layout(files={split: (f"{split}.json",) for split in SPLITS}, read=read_json),
    ),
    file_suffix=CAMERA,
)
