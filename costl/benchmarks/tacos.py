"""TACoS (Regneri et al. 2013) in the split of 2D-TAN: JSONL, or one JSON object for each video with times in frames."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costl.benchmarks.common import (
    Benchmark,
    Files,
    Layout,
    Reading,
    Row,
    Seconds,
    by_video,
    collect,
    positive_in,
    read_windows,
    window_row,
)
from costl.data.annotations import Query, table_in
from costl.pipeline.errors import UsageError

SPLITS = ("train", "val", "test")
VIDEO = re.compile(r"s\d+-d\d+")
CAMERA = "-cam-002"  # the dataset's own video files carry the camera in their names, its annotations do not


def read_jsonl(files: Files, seconds: Seconds) -> Reading:
    """The three splits, each a JSONL file. Raises UsageError for a file that is of something else."""
    return Reading({split: _checked(read_windows(files[split]), files[split]) for split in SPLITS})


def read_json(files: Files, seconds: Seconds) -> Reading:
    """The three splits, each an object `{"s17-d69.avi": {timestamps, sentences, fps, num_frames}}`, frames to seconds."""
    return Reading({split: _checked(_read_videos(files[split]), files[split]) for split in SPLITS})


def stems(vid: str) -> Sequence[str]:
    """What the file of a video may be called, without suffix."""
    return vid, vid + CAMERA


def _read_videos(path: Path) -> list[Row]:
    return [row for rows in collect(by_video(path), lambda item: _rows(*item)) for row in rows]


def _rows(name: str, about: Mapping[str, Any]) -> list[Row]:
    fps = positive_in(about, "fps")
    duration_s = positive_in(about, "num_frames") / fps
    frames, sentences = table_in(about, "timestamps", width=2), about.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise UsageError("'sentences' is not a list of texts")
    if len(sentences) != len(frames):
        raise UsageError(f"{len(sentences)} sentences but {len(frames)} timestamps")
    vid = name.removesuffix(".avi").removesuffix(".mp4").removesuffix(CAMERA)
    return [
        window_row(
            Query(qid=f"{vid}_{number}", query=sentence.strip(), vid=vid, duration_s=duration_s),
            [(start / fps, end / fps)],
        )
        for number, (sentence, (start, end)) in enumerate(zip(sentences, frames, strict=True))
    ]


def _checked(rows: list[Row], path: Path) -> list[Row]:
    # The names train, val and test are anybody's, so that the videos must say whose they are.
    other = next((row.query.vid for row in rows if not VIDEO.match(row.query.vid)), None)
    if other is not None:
        raise UsageError(f"{path}: speaks of a video {other!r}, expected names like 's17-d69'. This is not TACoS.")
    return rows


TACOS = Benchmark(
    name="tacos",
    title="TACoS",
    layouts=(
        Layout(files={split: (f"{split}.jsonl",) for split in SPLITS}, read=read_jsonl),
        Layout(files={split: (f"{split}.json",) for split in SPLITS}, read=read_json),
    ),
    stems=stems,
)
