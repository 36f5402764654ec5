"""YouTube Highlights (Sun et al. 2014): which windows of a video its uploader picked, in six domains.

A window of about a hundred frames, overlapping the next by half, is `match` 1 (picked), 0 (in between) or -1 (not). The
rating is (match + 1) / 2 on this project's scale of 0 to 4, as R2-Tuning trains on it: 4, 2 and 0. Positive, in the
metric of the field, is match > 0, which is a rating above 2. The sentence is the title of the video where it is known,
the word for its domain otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costl.benchmarks.common import (
    CLIPPED,
    EMPTY,
    OUTSIDE,
    REVERSED,
    Benchmark,
    Files,
    Layout,
    Reading,
    Row,
    Seconds,
    by_video,
    collect,
    positive_in,
    read_json,
    read_text,
    window_row,
)
from costl.data.annotations import Query, Window, parse_rows, table_in, text_in
from costl.pipeline.errors import UsageError

HIGHEST = 4.0  # of this project's ratings
TITLE_INDEX = 5  # of the list `info`
WITH_FEATURES = (
    "These are the videos whose features were published. youtube_anno.json with splits_umt.json has more (--annotations "
    "with one of these two files takes them), and numbers on the two are not comparable."
)
DOMAIN_WORDS = "No youtube_anno.json beside the annotations tells titles: the query is the word for the domain."


def read_jsonl(files: Files, seconds: Seconds) -> Reading:
    """`youtube_{train,valid}.jsonl`; the titles from `youtube_anno.json` where it is there."""
    titles = {} if "titles" not in files else dict(collect(by_video(files["titles"]), lambda i: (i[0], _title(i[1]))))

    def make(values: Mapping[str, Any]) -> Row:
        vid = text_in(values, "vid")
        return _row(vid, titles.get(vid, ""), values)

    splits = {
        split: parse_rows(read_text(files[part]), str(files[part]), make)
        for split, part in (("train", "train"), ("test", "held out"))
    }
    return Reading(splits, (WITH_FEATURES, *(() if titles else (DOMAIN_WORDS,))))


def read_videos(files: Files, seconds: Seconds) -> Reading:
    """`youtube_anno.json`, all videos by their id, and `splits_umt.json`, `{domain: {train: [id], val: [id]}}`."""
    rows = collect(by_video(files["videos"]), lambda item: _row(item[0], _title(item[1]), item[1]))
    by_vid = {row.query.vid: row for row in rows}
    splits = read_json(files["splits"])
    named = {split: _ids(splits, part, str(files["splits"])) for split, part in (("train", "train"), ("test", "val"))}
    lost = sum(vid not in by_vid for ids in named.values() for vid in ids)
    spare = len(by_vid.keys() - {vid for ids in named.values() for vid in ids})
    notes = (
        f"{lost} videos of {files['splits'].name} have no annotation, {spare} annotated ones are in no split: left out.",
    )
    found = {split: [by_vid[vid] for vid in ids if vid in by_vid] for split, ids in named.items()}
    return Reading(found, notes if lost or spare else ())


def _row(vid: str, title: str, about: Mapping[str, Any]) -> Row:
    fps, domain = positive_in(about, "fps"), text_in(about, "domain")
    frames, matches = table_in(about, "clip", width=2), about.get("match")
    if not isinstance(matches, list) or any(match not in (-1, 0, 1) or match is True for match in matches):
        raise UsageError("'match' is not a list of -1, 0 and 1")
    if len(matches) != len(frames):
        raise UsageError(f"{len(frames)} windows in 'clip' but {len(matches)} in 'match'")
    duration_s = positive_in(about, "frames") / fps
    bare = Query(qid=vid, query=title.strip() or domain, vid=vid, duration_s=duration_s, domain=domain)
    rated, quirks = _rated(bare, [(start / fps, end / fps) for start, end in frames], matches)
    if not rated:
        raise UsageError("no window is rated")
    query = Query(
        **vars(bare)
        | {
            "clip_ids": tuple(range(len(rated))),
            "rated_s": tuple(window for window, _ in rated),
            "saliency": tuple(((match + 1) / 2 * HIGHEST,) for _, match in rated),
        }
    )
    return Row(query, quirks)


def _rated(query: Query, windows: list[Window], matches: list[int]) -> tuple[list[tuple[Window, int]], tuple[str, ...]]:
    """The usable windows, each with its match, and what was put right."""
    rows = [(window_row(query, [window]), match) for window, match in zip(windows, matches, strict=True)]
    quirks = tuple(quirk for row, _ in rows for quirk in row.quirks if quirk in (CLIPPED, REVERSED, EMPTY, OUTSIDE))
    return [(row.query.windows[0], match) for row, match in rows if row.query.windows], quirks


def _title(about: Mapping[str, Any]) -> str:
    info = about.get("info")
    title = info[TITLE_INDEX] if isinstance(info, list) and len(info) > TITLE_INDEX else None
    return title.strip() if isinstance(title, str) else ""


def _ids(splits: Mapping[str, Any], part: str, place: str) -> list[str]:
    ids = []
    for domain, parts in splits.items():
        listed = parts.get(part) if isinstance(parts, dict) else None
        if not isinstance(listed, list) or not all(isinstance(vid, str) for vid in listed):
            raise UsageError(f"{place}: {domain}.{part} is not a list of video ids.")
        ids += listed
    return ids


YOUTUBE_HIGHLIGHTS = Benchmark(
    name="youtube-highlights",
    title="YouTube Highlights",
    layouts=(
        Layout(
            files={"train": ("youtube_train.jsonl",), "held out": ("youtube_valid.jsonl",)},
            extras={"titles": ("youtube_anno.json",)},
            read=read_jsonl,
        ),
        Layout(files={"videos": ("youtube_anno.json",), "splits": ("splits_umt.json",)}, read=read_videos),
    ),
    val_share=0.1,
    val_why="the benchmark's own `valid` is what papers report, test.jsonl here, and no checkpoint may be chosen on it",
)
