"""Reads TVSum (Song et al. 2015) in the split of UMT: twenty raters rated every two seconds of fifty videos.

Ratings are from 1 to 5 and become 0 to 4, because 0 means "not rated" in this project. The query is the title of the video.
Axes: t rated clips, r raters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from costl.benchmarks.common import (
    IN_CLIPS,
    OTHER_CUT,
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
    video_items,
)
from costl.data.annotations import RATED_CLIP_S, Query, number_in, table_in, text_in
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
ROUNDED = "Durations of missing videos come from their m:ss in {name}, which may be a second off."


class _Info(NamedTuple):
    """What is known about a video besides its ratings."""

    title: str
    domain: str
    duration_s: float


def read_json(files: Files, duration_of: DurationOf) -> Annotations:
    """One object with all videos: fps, frames, domain, title, anno [t 20]."""
    return _split(parse_all(video_items(files["videos"]), _json_row))


def read_jsonl(files: Files, duration_of: DurationOf) -> Annotations:
    """`tvsum_{train,val}.jsonl`: label [t 20], and a `duration` in clips of about two seconds.

    The duration in seconds comes from the video; without it a clip counts as two seconds.
    """
    return read_splits(files, duration_of, parse=lambda values: _jsonl_row(values, duration_of, width=RATERS))


def read_sums(files: Files, duration_of: DurationOf) -> Annotations:
    """`tvsum_{train,val}_sfc.jsonl`: label [t 1], the sum of twenty ratings, and a duration in seconds."""
    annotations = read_splits(files, duration_of, parse=lambda values: _jsonl_row(values, duration_of, width=1))
    return Annotations(annotations.splits, (SUMS_ONLY,))


def read_tables(files: Files, duration_of: DurationOf) -> Annotations:
    """The dataset's own tables: a rating of every frame by every rater, and each video's title and length.

    A clip gets the rating of its middle frame: people rated in steps of two seconds.
    """
    lines = csv_items(files["info"], ("category", "video_id", "title", "length"), delimiter="\t")
    infos = dict(parse_all(lines, lambda values: _info(values, duration_of)))
    ratings_by_vid: dict[str, list[tuple[float, ...]]] = {}

    def parse_ratings(line: str) -> None:
        columns = line.split("\t")
        if len(columns) != 3:
            raise UsageError(f"{len(columns)} columns, expected 3")
        vid = columns[0]
        if vid not in infos:
            raise UsageError(f"video {vid!r} is not in {files['info'].name}")
        ratings_by_vid.setdefault(vid, []).append(_clip_ratings(columns[2].split(","), infos[vid].duration_s))

    parse_all(numbered_lines(files["ratings"]), parse_ratings)
    rows = parse_all(
        ((f"{files['ratings']}: {vid}", vid, infos[vid], by_rater) for vid, by_rater in ratings_by_vid.items()),
        _table_row,
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


def _json_row(vid: str, fields: Mapping[str, Any]) -> Row:
    duration_s = positive_in(fields, "frames") / positive_in(fields, "fps")
    ratings = table_in(fields, "anno", width=RATERS)
    return _row(vid, _Info(text_in(fields, "title"), text_in(fields, "domain"), duration_s), ratings)


def _jsonl_row(values: Mapping[str, Any], duration_of: DurationOf, *, width: int) -> Row:
    ratings = table_in(values, "label", width=width)
    if width == 1:
        ratings = tuple((total / RATERS,) for (total,) in ratings)
    clips = len(ratings)
    vid = text_in(values, "vid")
    duration = number_in(values, "duration")
    quirks: tuple[str, ...] = ()
    if duration == clips:
        duration = _duration_s(vid, duration_of, otherwise=RATED_CLIP_S * clips)
        quirks = (IN_CLIPS,)
    elif int(duration / RATED_CLIP_S) != clips:
        raise UsageError(f"'duration' is {duration:g}, expected {clips}, the number of rated clips, or their seconds")
    info = _Info(text_in(values, "query"), text_in(values, "domain"), duration)
    return _row(vid, info, ratings, quirks=quirks)


def _table_row(vid: str, info: _Info, by_rater: list[tuple[float, ...]]) -> Row:
    if len(by_rater) != RATERS or len({len(ratings) for ratings in by_rater}) > 1:
        raise UsageError(f"{len(by_rater)} rows of ratings, expected {RATERS} of equal length")
    return _row(vid, info, tuple(zip(*by_rater, strict=True)))


def _row(vid: str, info: _Info, ratings: Sequence[Sequence[float]], *, quirks: tuple[str, ...] = ()) -> Row:
    """A row from ratings [t r], 1 to 5, of every clip."""
    if not ratings:
        raise UsageError("no clip is rated")
    wrong = next((rating for clip in ratings for rating in clip if not 1 <= rating <= 5), None)
    if wrong is not None:
        raise UsageError(f"a rating is {wrong:g}, expected 1 to 5")
    duration_s = info.duration_s
    if abs(duration_s - RATED_CLIP_S * len(ratings)) > 2 * RATED_CLIP_S:
        # The ratings are of another cut of this video. Training reports that too, when it compares with the features.
        duration_s = RATED_CLIP_S * len(ratings)
        quirks = (*quirks, OTHER_CUT)
    query = Query(
        qid=vid,
        query=info.title.strip(),
        vid=vid,
        duration_s=duration_s,
        clip_ids=tuple(range(len(ratings))),
        saliency=tuple(tuple(rating - 1 for rating in clip) for clip in ratings),
        domain=info.domain,
    )
    return Row(query, quirks)


def _info(values: Mapping[str, str], duration_of: DurationOf) -> tuple[str, _Info]:
    vid = values["video_id"]
    minutes, _, seconds = values["length"].strip().partition(":")
    if not (minutes.isdecimal() and seconds.isdecimal()):
        raise UsageError(f"length is {values['length']!r}, expected minutes:seconds")
    duration_s = _duration_s(vid, duration_of, otherwise=60.0 * int(minutes) + int(seconds))
    return vid, _Info(values["title"], values["category"], duration_s)


def _duration_s(vid: str, duration_of: DurationOf, *, otherwise: float) -> float:
    try:
        return duration_of(vid)
    except VideoError:
        return otherwise


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
        Layout(files={"train": ("tvsum_train.jsonl",), "test": ("tvsum_val.jsonl",)}, read=read_jsonl),
        Layout(
            files={"ratings": ("ydata-tvsum50-anno.tsv",), "info": ("ydata-tvsum50-info.tsv",)},
            read=read_tables,
        ),
        Layout(files={"train": ("tvsum_train_sfc.jsonl",), "test": ("tvsum_val_sfc.jsonl",)}, read=read_sums),
    ),
    val_share=0.0,
    val_reason=(
        "TVSum has four training videos for each domain, too few to choose a checkpoint by: "
        "the last epoch is reported"
    ),
)
