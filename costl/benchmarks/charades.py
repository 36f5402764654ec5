"""Charades-STA (Gao et al. 2017): JSONL in the layout of TVR, or the text files of the dataset with its lengths."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from costl.benchmarks.common import (
    Benchmark,
    Files,
    Layout,
    Reading,
    Row,
    Seconds,
    collect,
    lines_of,
    positive_in,
    read_text,
    read_windows,
    window_row,
)
from costl.data.annotations import Query
from costl.pipeline.errors import UsageError, VideoError

NO_LENGTHS = "no Charades_v1_train.csv and Charades_v1_test.csv beside the annotations tell how long videos are"


def read_jsonl(files: Files, seconds: Seconds) -> Reading:
    """Train and test, each a JSONL file with durations."""
    return Reading({split: read_windows(files[split]) for split in ("train", "test")})


def read_texts(files: Files, seconds: Seconds) -> Reading:
    """Train and test from lines such as `AO8RW 0.0 6.9##a person is putting a book on a shelf.`

    Durations come from the `length` columns of Charades_v1_{train,test}.csv where they are there, otherwise from the
    video files. Rows are numbered through both files, which gives them the qids of the JSONL files.
    """
    known = {vid: length for part in ("lengths", "test_lengths") for vid, length in _lengths(files.get(part)).items()}
    lines = [(split, place, line) for split in ("train", "test") for place, line in lines_of(files[split])]
    rows = collect(
        ((place, (qid, line)) for qid, (_, place, line) in enumerate(lines)),
        lambda item: _row(*item, known=known, seconds=seconds),
    )
    splits = {
        split: [row for (its, _, _), row in zip(lines, rows, strict=True) if its == split]
        for split in ("train", "test")
    }
    return Reading(splits, () if known else ("Durations come from the video files.",))


def _row(qid: int, line: str, *, known: Mapping[str, float], seconds: Seconds) -> Row:
    where, mark, sentence = line.partition("##")
    parts = where.split()
    if not mark or len(parts) != 3:
        raise UsageError(f"{line[:60]!r} is not `VIDEO START END##SENTENCE`")
    vid, start, end = parts[0], _time(parts[1]), _time(parts[2])
    duration_s = known[vid] if vid in known else _from_video(vid, seconds, known)
    return window_row(Query(qid=qid, query=sentence.strip(), vid=vid, duration_s=duration_s), [(start, end)])


def _time(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not a time in seconds")
    return value


def _from_video(vid: str, seconds: Seconds, known: Mapping[str, float]) -> float:
    try:
        return seconds(vid)
    except VideoError as error:
        why = "the Charades_v1 files beside the annotations do not name it" if known else NO_LENGTHS
        raise UsageError(f"how long is {vid}? {str(error).rstrip('.')}, and {why}") from error


def _lengths(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    # Descriptions hold line breaks in quotes, so that rows are counted, not lines.
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    pairs = collect(((f"{path}: row {n}", row) for n, row in enumerate(rows, start=1)), _length)
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
    val_why="Charades-STA has no validation split, and a checkpoint must not be chosen on the test split",
)
