"""Reads YouTube Highlights (Sun et al. 2014): which windows of a video its uploader selected, in six domains.

A window has about a hundred frames and overlaps the next by half. Its `match` is 1 (selected), 0 (in between) or -1 (not
selected). The rating is (match + 1) / 2 on the scale of 0 to 4 of this project, as R2-Tuning trains on it: 4, 2 and 0.
The published metric takes match > 0 as positive, which is a rating above 2. The query is the title of the video if it is
known, otherwise the name of its domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from costl.benchmarks.common import (
    CLIPPED,
    DROPPED,
    Annotations,
    Benchmark,
    DurationOf,
    Files,
    Layout,
    Row,
    parse_all,
    positive_in,
    read_json,
    read_splits,
    row_with_windows,
    video_items,
)
from costl.data.annotations import Query, table_in, text_in
from costl.pipeline.errors import UsageError

HIGHEST_RATING = 4.0
TITLE_INDEX = 5  # in the list `info`
WITH_FEATURES = (
    "These are the videos whose features were published. youtube_anno.json with splits_umt.json has more (pass one of these "
    "two files as --annotations), and numbers on the two are not comparable."
)
DOMAIN_QUERIES = "No youtube_anno.json with titles next to the annotations: the query is the name of the domain."


def read_jsonl(files: Files, duration_of: DurationOf) -> Annotations:
    """`youtube_{train,valid}.jsonl`, with the titles of `youtube_anno.json` if it exists."""
    titles: dict[str, str] = {}
    if "titles" in files:
        titles = dict(parse_all(video_items(files["titles"]), lambda vid, fields: (vid, _title(fields))))

    def parse(values: Mapping[str, Any]) -> Row:
        vid = text_in(values, "vid")
        return _row(vid, titles.get(vid, ""), values)

    splits = read_splits(files, duration_of, parse=parse).splits
    return Annotations(splits, (WITH_FEATURES, *(() if titles else (DOMAIN_QUERIES,))))


def read_videos(files: Files, duration_of: DurationOf) -> Annotations:
    """`youtube_anno.json`, all videos by their id, and `splits_umt.json`, `{domain: {train: [id], val: [id]}}`."""
    rows = parse_all(video_items(files["videos"]), lambda vid, fields: _row(vid, _title(fields), fields))
    by_vid = {row.query.vid: row for row in rows}
    splits = read_json(files["splits"])
    named = {split: _ids(splits, part, str(files["splits"])) for split, part in (("train", "train"), ("test", "val"))}
    not_annotated = sum(vid not in by_vid for ids in named.values() for vid in ids)
    in_no_split = len(by_vid.keys() - {vid for ids in named.values() for vid in ids})
    notes = (
        f"{not_annotated} videos of {files['splits'].name} have no annotation, {in_no_split} annotated ones are in no split: "
        "left out.",
    )
    rows_by_split = {split: [by_vid[vid] for vid in ids if vid in by_vid] for split, ids in named.items()}
    return Annotations(rows_by_split, notes if not_annotated or in_no_split else ())


def _row(vid: str, title: str, fields: Mapping[str, Any]) -> Row:
    fps = positive_in(fields, "fps")
    domain = text_in(fields, "domain")
    frames = table_in(fields, "clip", width=2)
    matches = fields.get("match")
    if not isinstance(matches, list) or any(match not in (-1, 0, 1) or match is True for match in matches):
        raise UsageError("'match' is not a list of -1, 0 and 1")
    if len(matches) != len(frames):
        raise UsageError(f"{len(frames)} windows in 'clip' but {len(matches)} in 'match'")
    duration_s = positive_in(fields, "frames") / fps
    unrated = Query(qid=vid, query=title.strip() or domain, vid=vid, duration_s=duration_s, domain=domain)
    windows = [row_with_windows(unrated, [(start / fps, end / fps)]) for start, end in frames]
    rated = [(row.query.windows[0], match) for row, match in zip(windows, matches, strict=True) if row.query.windows]
    if not rated:
        raise UsageError("no window is rated")
    query = replace(
        unrated,
        clip_ids=tuple(range(len(rated))),
        rated_s=tuple(window for window, _ in rated),
        saliency=tuple(((match + 1) / 2 * HIGHEST_RATING,) for _, match in rated),
    )
    return Row(query, tuple(quirk for row in windows for quirk in row.quirks if quirk in (CLIPPED, DROPPED)))


def _title(fields: Mapping[str, Any]) -> str:
    info = fields.get("info")
    title = info[TITLE_INDEX] if isinstance(info, list) and len(info) > TITLE_INDEX else None
    return title.strip() if isinstance(title, str) else ""


def _ids(splits: Mapping[str, Any], part: str, path: str) -> list[str]:
    ids = []
    for domain, parts in splits.items():
        listed = parts.get(part) if isinstance(parts, dict) else None
        if not isinstance(listed, list) or not all(isinstance(vid, str) for vid in listed):
            raise UsageError(f"{path}: {domain}.{part} is not a list of video ids.")
        ids += listed
    return ids


YOUTUBE_HIGHLIGHTS = Benchmark(
    name="youtube-highlights",
    title="YouTube Highlights",
    layouts=(
        Layout(
            files={"train": ("youtube_train.jsonl",), "test": ("youtube_valid.jsonl",)},
            extras={"titles": ("youtube_anno.json",)},
            read=read_jsonl,
        ),
        Layout(files={"videos": ("youtube_anno.json",), "splits": ("splits_umt.json",)}, read=read_videos),
    ),
    val_share=0.1,
    val_reason="the benchmark's own `valid` is what papers report, test.jsonl here, and no checkpoint may be chosen on it",
)
