"""Reads Charades-STA (Gao et al. 2017): JSONL in the layout of TVR, or the text files of the dataset with its lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping

from costl.benchmarks.common import (
    Annotations,
    Benchmark,
    DurationOf,
    Files,
    Layout,
    Row,
    csv_items,
    numbered_lines,
    parse_all,
    positive_in,
    read_splits,
    row_with_windows,
)
from costl.data.annotations import Query
from costl.pipeline.errors import UsageError, VideoError

LENGTH_FILES = {"lengths": ("Charades_v1_train.csv",), "test_lengths": ("Charades_v1_test.csv",)}


def read_texts(files: Files, duration_of: DurationOf) -> Annotations:
    """Train and test from lines such as `AO8RW 0.0 6.9##a person is putting a book on a shelf.`

    Durations come from the `length` columns of Charades_v1_{train,test}.csv if these files exist, otherwise from the
    videos. Rows are numbered through both files, which gives them the qids of the JSONL files.
    """
    tables = [files[part] for part in LENGTH_FILES if part in files]
    lengths = dict(pair for path in tables for pair in parse_all(csv_items(path, ("id", "length")), _length))
    first = numbered_lines(files["train"])
    lines = [*first, *numbered_lines(files["test"])]
    rows = parse_all(
        ((where, qid, line) for qid, (where, line) in enumerate(lines)),
        lambda qid, line: _row(qid, line, lengths=lengths, duration_of=duration_of),
    )
    splits = {"train": rows[: len(first)], "test": rows[len(first) :]}
    return Annotations(splits, () if lengths else ("Durations come from the video files.",))


def _row(qid: int, line: str, *, lengths: Mapping[str, float], duration_of: DurationOf) -> Row:
    window, separator, sentence = line.partition("##")
    parts = window.split()
    if not separator or len(parts) != 3:
        raise UsageError(f"{line[:60]!r} is not `VIDEO START END##SENTENCE`")
    vid = parts[0]
    start = _time(parts[1])
    end = _time(parts[2])
    duration_s = lengths[vid] if vid in lengths else _duration_from_video(vid, duration_of)
    return row_with_windows(Query(qid=qid, query=sentence.strip(), vid=vid, duration_s=duration_s), [(start, end)])


def _time(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not a time in seconds")
    return value


def _duration_from_video(vid: str, duration_of: DurationOf) -> float:
    try:
        return duration_of(vid)
    except VideoError as error:
        raise UsageError(
            f"the duration of {vid} is unknown: {str(error).rstrip('.')}, and no Charades_v1_train.csv or Charades_v1_test.csv "
            "next to the annotations has it. Pass --videos with a folder that holds the video, or add these two files"
        ) from error


def _length(row: Mapping[str, str]) -> tuple[str, float]:
    return row["id"], positive_in(row, "length")


CHARADES = Benchmark(
    name="charades",
    title="Charades-STA",
    layouts=(
        Layout(
            files={
                "train": ("charades_sta_train_tvr_format.jsonl", "charades_train_release.jsonl"),
                "test": (
                    "charades_sta_test_tvr_format.jsonl",
                    "charades_sta_val_tvr_format.jsonl",
                    "charades_test_release.jsonl",
                ),
            },
            read=read_splits,
        ),
        Layout(
            files={"train": ("charades_sta_train.txt",), "test": ("charades_sta_test.txt",)},
            extras=LENGTH_FILES,
            read=read_texts,
        ),
    ),
    val_share=0.1,
    val_reason="Charades-STA has no validation split, and a checkpoint must not be chosen on the test split",
)
