"""Reads Charades-STA (Gao et al. 2017): JSONL in the layout of TVR, or the text files of the dataset with its lengths."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from costl.benchmarks.common import (
    Annotations,
    Benchmark,
    DurationOf,
    Files,
    Layout,
    Row,
    numbered_lines,
    parse_all,
    positive_in,
    read_text,
    read_windows,
    row_with_windows,
)
from costl.data.annotations import Query
from costl.pipeline.errors import UsageError, VideoError

NO_LENGTHS = "there are no Charades_v1_train.csv and Charades_v1_test.csv with durations next to the annotations"


def read_jsonl(files: Files, duration_of: DurationOf) -> Annotations:
    """Train and test, each a JSONL file with durations."""
    return Annotations({split: read_windows(files[split]) for split in ("train", "test")})


def read_texts(files: Files, duration_of: DurationOf) -> Annotations:
    """Train and test from lines such as `AO8RW 0.0 6.9##a person is putting a book on a shelf.`

    Durations come from the `length` columns of Charades_v1_{train,test}.csv if these files exist, otherwise from the
    videos. Rows are numbered through both files, which gives them the qids of the JSONL files.
    """
    lengths = {vid: length for part in ("lengths", "test_lengths") for vid, length in _lengths(files.get(part)).items()}
    lines = [(split, where, line) for split in ("train", "test") for where, line in numbered_lines(files[split])]
    rows = parse_all(
        ((where, (qid, line)) for qid, (_, where, line) in enumerate(lines)),
        lambda item: _row(*item, lengths=lengths, duration_of=duration_of),
    )
    splits = {
        split: [row for (line_split, _, _), row in zip(lines, rows, strict=True) if line_split == split]
        for split in ("train", "test")
    }
    return Annotations(splits, () if lengths else ("Durations come from the video files.",))


def _row(qid: int, line: str, *, lengths: Mapping[str, float], duration_of: DurationOf) -> Row:
    window, separator, sentence = line.partition("##")
    parts = window.split()
    if not separator or len(parts) != 3:
        raise UsageError(f"{line[:60]!r} is not `VIDEO START END##SENTENCE`")
    vid = parts[0]
    start = _time(parts[1])
    end = _time(parts[2])
    duration_s = lengths[vid] if vid in lengths else _duration_from_video(vid, duration_of, lengths)
    return row_with_windows(Query(qid=qid, query=sentence.strip(), vid=vid, duration_s=duration_s), [(start, end)])


def _time(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not a time in seconds")
    return value


def _duration_from_video(vid: str, duration_of: DurationOf, lengths: Mapping[str, float]) -> float:
    try:
        return duration_of(vid)
    except VideoError as error:
        why = "the Charades_v1 files next to the annotations do not have it" if lengths else NO_LENGTHS
        raise UsageError(f"the duration of {vid} is unknown: {str(error).rstrip('.')}, and {why}") from error


def _lengths(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    # Descriptions have line breaks within quotes. Errors therefore count rows, not lines.
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    pairs = parse_all(((f"{path}: row {n}", row) for n, row in enumerate(rows, start=1)), _length)
    return dict(pairs)


def _length(row: Mapping[str, str]) -> tuple[str, float]:
    if not row.get("id") or not row.get("length"):
        raise UsageError("no column id or length, expected the header of Charades_v1_train.csv")
    return row["id"], positive_in(row, "length")


CHARADES = Benchmark(
    name="charades",
    title="Charades-STA",
    layouts=(
        Layout(
            files={
                "train": ("charades_sta_train_tvr_format.jsonl", "charades_train_release.jsonl"),
                "test": (
                    *("charades_sta_test_tvr_format.jsonl", "charades_sta_val_tvr_format.jsonl"),
                    "charades_test_release.jsonl",
                ),
            },
            read=read_jsonl,
        ),
        Layout(
            files={"train": ("charades_sta_train.txt",), "test": ("charades_sta_test.txt",)},
            extras={"lengths": ("Charades_v1_train.csv",), "test_lengths": ("Charades_v1_test.csv",)},
            read=read_texts,
        ),
    ),
    val_share=0.1,
    val_reason="Charades-STA has no validation split, and a checkpoint must not be chosen on the test split",
)
