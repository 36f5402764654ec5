"""TVSum (Song et al. 2015) in the split of UMT: how twenty people rated every two seconds of fifty videos.

People rated from 1 to 5; this project's scale has 0 for "not rated", so that 1 to 5 becomes 0 to 4. The sentence is the
title of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from costl.benchmarks.common import (
    IN_CLIPS,
    OTHER_CUT,
    RATED_CLIP_S,
    Benchmark,
    Files,
    Layout,
    Reading,
    Row,
    Seconds,
    by_video,
    collect,
    lines_of,
    positive_in,
    read_text,
)
from costl.data.annotations import Query, number_in, parse_rows, table_in, text_in
from costl.pipeline.errors import UsageError, VideoError

PEOPLE = 20
# The video of each domain that UMT (Liu et al. 2022) and everyone after keeps for the numbers that are published.
HELD_OUT = {
    **{"BK": "Se3oxnaPsz0", "BT": "JgHubY5Vw3Y", "DS": "E11zDS9XGzg", "FM": "JKpqYvAdIsw", "GA": "Bhxk-O1Y7Ho"},
    **{"MS": "Yi4Ij2NM7U4", "PK": "cjibtmSLxQ4", "PR": "fWutDQy1nnY", "VT": "J0nA4VgnoCo", "VU": "sTEELN-vY30"},
}
SUMS_ONLY = (
    "Only the sums of the twenty ratings are known here: the numbers of the field compare with every person alone. "
    "tvsum_anno.json, tvsum_train.jsonl and tvsum_val.jsonl, or the dataset's own .tsv files have them."
)
_About = tuple[str, str, float]  # title, domain, seconds
ROUNDED = "Durations of videos that are not here come from their m:ss in {name}, which may be a second off."


def read_json(files: Files, seconds: Seconds) -> Reading:
    """One object with all videos: fps, frames, domain, title, anno [n 20]."""
    return _split(collect(by_video(files["videos"]), lambda item: _json_row(*item)))


def read_jsonl(files: Files, seconds: Seconds) -> Reading:
    """`tvsum_{train,val}.jsonl`: label [n 20], and a `duration` that counts clips of two seconds.

    The video says how many seconds they are; without it, two for each.
    """
    return _by_file(files, lambda values: _jsonl_row(values, seconds))


def read_sums(files: Files, seconds: Seconds) -> Reading:
    """`tvsum_{train,val}_sfc.jsonl`: label [n 1], the sum of twenty ratings, and a duration in seconds."""
    reading = _by_file(files, _sums_row)
    return Reading(reading.splits, (SUMS_ONLY,))


def read_tables(files: Files, seconds: Seconds) -> Reading:
    """The dataset's own tables: a rating of every frame by every person, and each video's title and length.

    A clip has the rating of the frame in its middle: people rated in steps of two seconds.
    """
    known = dict(collect(lines_of(files["info"])[1:], _info(files["info"])))
    told: dict[str, list[tuple[float, ...]]] = {}

    def take(line: str) -> str:
        vid, _, ratings = _columns(line, 3)
        if vid not in known:
            raise UsageError(f"video {vid!r} is not in {files['info'].name}")
        told.setdefault(vid, []).append(_at_clips(ratings.split(","), _length_s(vid, known[vid], seconds)))
        return vid

    collect(lines_of(files["ratings"]), take)
    rows = collect(
        ((f"{files['ratings']}: {vid}", (vid, people)) for vid, people in told.items()),
        lambda item: _table_row(item[0], item[1], known[item[0]], seconds),
    )
    reading = _split(rows)
    return Reading(reading.splits, (*reading.notes, ROUNDED.format(name=files["info"].name)))


def _split(rows: Sequence[Row]) -> Reading:
    held_out = set(HELD_OUT.values())
    test = [row for row in rows if row.query.vid in held_out]
    train = [row for row in rows if row.query.vid not in held_out]
    absent = sorted(held_out - {row.query.vid for row in test})
    notes = [f"test: the split of UMT has {len(HELD_OUT)} videos, not annotated here: {', '.join(absent)}."]
    return Reading({"train": train, "test": test}, tuple(notes if absent else ()))


def _by_file(files: Files, make: Callable[[Mapping[str, Any]], Row]) -> Reading:
    parts = {"train": files["train"], "test": files["held out"]}
    return Reading({split: parse_rows(read_text(path), str(path), make) for split, path in parts.items()})


def _json_row(vid: str, about: Mapping[str, Any]) -> Row:
    duration_s = positive_in(about, "frames") / positive_in(about, "fps")
    return _row(vid, text_in(about, "title"), text_in(about, "domain"), _people(about, "anno"), duration_s=duration_s)


def _jsonl_row(values: Mapping[str, Any], seconds: Seconds) -> Row:
    ratings = _people(values, "label")
    told, clips = number_in(values, "duration"), len(ratings)
    quirks: tuple[str, ...] = ()
    if told == clips:
        told, quirks = _seconds_of(text_in(values, "vid"), clips, seconds), (IN_CLIPS,)
    elif int(told / RATED_CLIP_S) != clips:
        raise UsageError(f"'duration' is {told:g}, expected {clips}, the number of rated clips, or their seconds")
    return _row(
        text_in(values, "vid"),
        text_in(values, "query"),
        text_in(values, "domain"),
        ratings,
        duration_s=told,
        quirks=quirks,
    )


def _sums_row(values: Mapping[str, Any]) -> Row:
    means = tuple((value / PEOPLE,) for (value,) in table_in(values, "label", width=1))
    return _row(
        text_in(values, "vid"),
        text_in(values, "query"),
        text_in(values, "domain"),
        means,
        duration_s=number_in(values, "duration"),
    )


def _table_row(vid: str, people: list[tuple[float, ...]], about: _About, seconds: Seconds) -> Row:
    if len(people) != PEOPLE or len({len(ratings) for ratings in people}) > 1:
        raise UsageError(f"{len(people)} rows of ratings, expected {PEOPLE} that are equally long")
    title, domain, _ = about
    duration_s = _length_s(vid, about, seconds)
    return _row(vid, title, domain, tuple(zip(*people, strict=True)), duration_s=duration_s)


def _row(
    vid: str,
    title: str,
    domain: str,
    ratings: Sequence[Sequence[float]],
    *,
    duration_s: float,
    quirks: tuple[str, ...] = (),
) -> Row:
    """Ratings from 1 to 5 of every clip, [n r]."""
    if not ratings:
        raise UsageError("no clip is rated")
    wrong = next((rating for clip in ratings for rating in clip if not 1 <= rating <= 5), None)
    if wrong is not None:
        raise UsageError(f"a rating is {wrong:g}, expected 1 to 5")
    if abs(duration_s - RATED_CLIP_S * len(ratings)) > 2 * RATED_CLIP_S:
        # Whatever this video is, the ratings are of another cut; training says so once more beside the features.
        duration_s, quirks = RATED_CLIP_S * len(ratings), (*quirks, OTHER_CUT)
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


def _people(about: Mapping[str, Any], name: str) -> tuple[tuple[float, ...], ...]:
    return table_in(about, name, width=PEOPLE)


def _seconds_of(vid: str, clips: int, seconds: Seconds) -> float:
    try:
        return seconds(vid)
    except VideoError:
        return RATED_CLIP_S * clips


def _info(path: Path) -> Callable[[str], tuple[str, _About]]:
    """What reads a line of the table by the names in its first one."""
    lines = lines_of(path)
    header = lines[0][1].split("\t") if lines else []
    if not {"category", "video_id", "title", "length"} <= set(header):
        raise UsageError(f"{path}:1: columns {', '.join(header)}, expected category, video_id, title, url, length.")

    def read(line: str) -> tuple[str, _About]:
        values = dict(zip(header, _columns(line, len(header)), strict=True))
        minutes, _, rest = values["length"].strip().partition(":")
        if not (minutes.isdecimal() and rest.isdecimal()):
            raise UsageError(f"length is {values['length']!r}, expected minutes:seconds")
        title = values["title"].strip()
        if len(title) > 1 and title[0] == title[-1] == '"':
            title = title[1:-1].replace('""', '"')
        return values["video_id"], (title, values["category"], 60.0 * int(minutes) + int(rest))

    return read


def _columns(line: str, count: int) -> list[str]:
    columns = line.split("\t")
    if len(columns) != count:
        raise UsageError(f"{len(columns)} columns, expected {count}")
    return columns


def _length_s(vid: str, about: _About, seconds: Seconds) -> float:
    try:
        return seconds(vid)
    except VideoError:
        return about[2]


def _at_clips(frames: Sequence[str], duration_s: float) -> tuple[float, ...]:
    """The rating in the middle of every clip, from one rating a frame."""
    clips = int(duration_s / RATED_CLIP_S)
    middles = [int((clip + 0.5) * RATED_CLIP_S * len(frames) / duration_s) for clip in range(clips)]
    try:
        ratings = [float(rating) for rating in frames]
    except ValueError as error:
        raise UsageError(f"a rating is no number ({error})") from None
    return tuple(ratings[middle] for middle in middles)


TVSUM = Benchmark(
    name="tvsum",
    title="TVSum",
    layouts=(
        # The first also tells how many seconds a video lasts.
        Layout(files={"videos": ("tvsum_anno.json", "tvsum_train_sfc.json")}, read=read_json),
        Layout(files={"train": ("tvsum_train.jsonl",), "held out": ("tvsum_val.jsonl",)}, read=read_jsonl),
        Layout(
            files={"ratings": ("ydata-tvsum50-anno.tsv",), "info": ("ydata-tvsum50-info.tsv",)},
            read=read_tables,
        ),
        Layout(files={"train": ("tvsum_train_sfc.jsonl",), "held out": ("tvsum_val_sfc.jsonl",)}, read=read_sums),
    ),
    val_share=0.0,
    val_why=(
        "TVSum has four training videos for each domain, too few to choose a checkpoint by: "
        "the last epoch is what is reported"
    ),
)
