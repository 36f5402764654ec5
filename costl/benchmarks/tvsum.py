"""Reads TVSum (Song et al. 2015) in the split of UMT: twenty raters rated every two seconds of fifty videos.

Ratings are from 1 to 5 and become 0 to 4, because 0 means "not rated" in this project. The query is the title of the video.
Axes: t rated clips, r raters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from costl.benchmarks.common import (
    IN_CLIPS,
    OTHER_CUT,
    RATED_CLIP_S,
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
    video_items,
)
from costl.data.annotations import Query, number_in, parse_rows, table_in, text_in
from costl.pipeline.errors import UsageError, VideoError

RATERS = 20
# The test videos of UMT (Liu et al. 2022) by domain, on which all later papers report their numbers.
HELD_OUT = {
    **{"BK": "Se3oxnaPsz0", "BT": "JgHubY5Vw3Y", "DS": "E11zDS9XGzg", "FM": "JKpqYvAdIsw", "GA": "Bhxk-O1Y7Ho"},
    **{"MS": "Yi4Ij2NM7U4", "PK": "cjibtmSLxQ4", "PR": "fWutDQy1nnY", "VT": "J0nA4VgnoCo", "VU": "sTEELN-vY30"},
}
SUMS_ONLY = (
    "Only the sums of the twenty ratings are known here: published numbers compare with each rater separately. "
    "tvsum_anno.json, tvsum_train.jsonl and tvsum_val.jsonl, or the dataset's own .tsv files have all ratings."
)
_Info = tuple[str, str, float]  # title, domain, seconds
ROUNDED = "Durations of missing videos come from their m:ss in {name}, which may be a second off."


def read_json(files: Files, duration_of: DurationOf) -> Annotations:
    """One object with all videos: fps, frames, domain, title, anno [t 20]."""
    return _split(parse_all(video_items(files["videos"]), lambda item: _json_row(*item)))


def read_jsonl(files: Files, duration_of: DurationOf) -> Annotations:
    """`tvsum_{train,val}.jsonl`: label [t 20], and a `duration` in clips of about two seconds.

    The duration in seconds comes from the video; without it a clip counts as two seconds.
    """
    return _read_splits(files, lambda values: _jsonl_row(values, duration_of))


def read_sums(files: Files, duration_of: DurationOf) -> Annotations:
    """`tvsum_{train,val}_sfc.jsonl`: label [t 1], the sum of twenty ratings, and a duration in seconds."""
    annotations = _read_splits(files, _sums_row)
    return Annotations(annotations.splits, (SUMS_ONLY,))


def read_tables(files: Files, duration_of: DurationOf) -> Annotations:
    """The dataset's own tables: a rating of every frame by every rater, and each video's title and length.

    A clip gets the rating of its middle frame: people rated in steps of two seconds.
    """
    infos = dict(parse_all(numbered_lines(files["info"])[1:], _info_parser(files["info"])))
    ratings_by_vid: dict[str, list[tuple[float, ...]]] = {}

    def parse_ratings(line: str) -> None:
        vid, _, ratings = _columns(line, 3)
        if vid not in infos:
            raise UsageError(f"video {vid!r} is not in {files['info'].name}")
        duration_s = _duration_s(vid, infos[vid], duration_of)
        ratings_by_vid.setdefault(vid, []).append(_clip_ratings(ratings.split(","), duration_s))

    parse_all(numbered_lines(files["ratings"]), parse_ratings)
    rows = parse_all(
        ((f"{files['ratings']}: {vid}", (vid, by_rater)) for vid, by_rater in ratings_by_vid.items()),
        lambda item: _table_row(item[0], item[1], infos[item[0]], duration_of),
    )
    annotations = _split(rows)
    return Annotations(annotations.splits, (*annotations.notes, ROUNDED.format(name=files["info"].name)))


def _split(rows: Sequence[Row]) -> Annotations:
    held_out = set(HELD_OUT.values())
    test = [row for row in rows if row.query.vid in held_out]
    train = [row for row in rows if row.query.vid not in held_out]
    missing = sorted(held_out - {row.query.vid for row in test})
    notes = [f"test: the split of UMT has {len(HELD_OUT)} videos, not annotated here: {', '.join(missing)}."]
    return Annotations({"train": train, "test": test}, tuple(notes if missing else ()))


def _read_splits(files: Files, parse: Callable[[Mapping[str, Any]], Row]) -> Annotations:
    paths = {"train": files["train"], "test": files["held out"]}
    return Annotations({split: parse_rows(read_text(path), str(path), parse) for split, path in paths.items()})


def _json_row(vid: str, fields: Mapping[str, Any]) -> Row:
    duration_s = positive_in(fields, "frames") / positive_in(fields, "fps")
    ratings = table_in(fields, "anno", width=RATERS)
    return _row(vid, text_in(fields, "title"), text_in(fields, "domain"), ratings, duration_s=duration_s)


def _jsonl_row(values: Mapping[str, Any], duration_of: DurationOf) -> Row:
    ratings = table_in(values, "label", width=RATERS)
    clips = len(ratings)
    duration = number_in(values, "duration")
    quirks: tuple[str, ...] = ()
    if duration == clips:
        duration = _duration_of_clips(text_in(values, "vid"), clips, duration_of)
        quirks = (IN_CLIPS,)
    elif int(duration / RATED_CLIP_S) != clips:
        raise UsageError(f"'duration' is {duration:g}, expected {clips}, the number of rated clips, or their seconds")
    return _row(
        text_in(values, "vid"),
        text_in(values, "query"),
        text_in(values, "domain"),
        ratings,
        duration_s=duration,
        quirks=quirks,
    )


def _sums_row(values: Mapping[str, Any]) -> Row:
    means = tuple((value / RATERS,) for (value,) in table_in(values, "label", width=1))
    return _row(
        text_in(values, "vid"),
        text_in(values, "query"),
        text_in(values, "domain"),
        means,
        duration_s=number_in(values, "duration"),
    )


def _table_row(vid: str, by_rater: list[tuple[float, ...]], info: _Info, duration_of: DurationOf) -> Row:
    if len(by_rater) != RATERS or len({len(ratings) for ratings in by_rater}) > 1:
        raise UsageError(f"{len(by_rater)} rows of ratings, expected {RATERS} of equal length")
    title, domain, _ = info
    duration_s = _duration_s(vid, info, duration_of)
    return _row(vid, title, domain, tuple(zip(*by_rater, strict=True)), duration_s=duration_s)


def _row(
    vid: str,
    title: str,
    domain: str,
    ratings: Sequence[Sequence[float]],
    *,
    duration_s: float,
    quirks: tuple[str, ...] = (),
) -> Row:
    """A row from ratings [t r], 1 to 5, of every clip."""
    if not ratings:
        raise UsageError("no clip is rated")
    wrong = next((rating for clip in ratings for rating in clip if not 1 <= rating <= 5), None)
    if wrong is not None:
        raise UsageError(f"a rating is {wrong:g}, expected 1 to 5")
    if abs(duration_s - RATED_CLIP_S * len(ratings)) > 2 * RATED_CLIP_S:
        # The ratings are of another cut of this video. Training reports that too, when it compares with the features.
        duration_s = RATED_CLIP_S * len(ratings)
        quirks = (*quirks, OTHER_CUT)
    query = Query(
        qid=vid,
        query=title.strip(),
        vid=vid,
        duration_s=duration_s,
        clip_ids=tuple(range(len(ratings))),
        saliency=tuple(tuple(rating - 1 for rating in clip) for clip in ratings),
        domain=domain,
    )
    return Row(query, quirks)


def _duration_of_clips(vid: str, clips: int, duration_of: DurationOf) -> float:
    try:
        return duration_of(vid)
    except VideoError:
        return RATED_CLIP_S * clips


def _info_parser(path: Path) -> Callable[[str], tuple[str, _Info]]:
    """A function that parses a line of the table by the column names in its first line."""
    lines = numbered_lines(path)
    header = lines[0][1].split("\t") if lines else []
    if not {"category", "video_id", "title", "length"} <= set(header):
        raise UsageError(f"{path}:1: columns {', '.join(header)}, expected category, video_id, title, url, length.")

    def parse(line: str) -> tuple[str, _Info]:
        values = dict(zip(header, _columns(line, len(header)), strict=True))
        minutes, _, seconds = values["length"].strip().partition(":")
        if not (minutes.isdecimal() and seconds.isdecimal()):
            raise UsageError(f"length is {values['length']!r}, expected minutes:seconds")
        title = values["title"].strip()
        if len(title) > 1 and title[0] == title[-1] == '"':
            title = title[1:-1].replace('""', '"')
        return values["video_id"], (title, values["category"], 60.0 * int(minutes) + int(seconds))

    return parse


def _columns(line: str, count: int) -> list[str]:
    columns = line.split("\t")
    if len(columns) != count:
        raise UsageError(f"{len(columns)} columns, expected {count}")
    return columns


def _duration_s(vid: str, info: _Info, duration_of: DurationOf) -> float:
    try:
        return duration_of(vid)
    except VideoError:
        return info[2]


def _clip_ratings(frames: Sequence[str], duration_s: float) -> tuple[float, ...]:
    """The rating of the middle frame of every clip, from one rating a frame."""
    clips = int(duration_s / RATED_CLIP_S)
    middles = [int((clip + 0.5) * RATED_CLIP_S * len(frames) / duration_s) for clip in range(clips)]
    try:
        ratings = [float(rating) for rating in frames]
    except ValueError as error:
        raise UsageError(f"a rating is not a number ({error})") from None
    return tuple(ratings[middle] for middle in middles)


TVSUM = Benchmark(
    name="tvsum",
    title="TVSum",
    layouts=(
        # The preferred layout has the duration of the videos in seconds too.
        Layout(files={"videos": ("tvsum_anno.json", "tvsum_train_sfc.json")}, read=read_json),
        Layout(files={"train": ("tvsum_train.jsonl",), "held out": ("tvsum_val.jsonl",)}, read=read_jsonl),
        Layout(
            files={"ratings": ("ydata-tvsum50-anno.tsv",), "info": ("ydata-tvsum50-info.tsv",)},
            read=read_tables,
        ),
        Layout(files={"train": ("tvsum_train_sfc.jsonl",), "held out": ("tvsum_val_sfc.jsonl",)}, read=read_sums),
    ),
    val_share=0.0,
    val_reason=(
        "TVSum has four training videos for each domain, too few to choose a checkpoint by: "
        "the last epoch is reported"
    ),
)
