"""An OpenTimelineIO timeline of the hits: a track of clips, each with its media and a marker with its query and score.

The format is JSON, described at https://opentimelineio.readthedocs.io; writing it needs no package. Times are counts of frames
at the rate of each video, so that one timeline holds videos of several rates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from costl.plots.terminal_text import one_line
from costl.search.hits import Hit

if TYPE_CHECKING:
    from costl.pipeline.decode.frame_rate import FrameNumbers

BEGINNING = '{\n  "OTIO_SCHEMA": "Timeline.1",\n  "metadata": {\n    "costl": '
_MEDIA = "DEFAULT_MEDIA"


def otio_text(hits: Sequence[tuple[Hit, FrameNumbers]]) -> str:
    """The timeline as JSON, with the clips in the order of the hits. The times of a clip count from the timecode of its file."""
    queries = list(dict.fromkeys(hit.query for hit, _ in hits))
    clips = [_clip(hit, numbers) for hit, numbers in hits]
    track = _schema("Track.1", name="hits", kind="Video", children=clips)
    stack = _schema("Stack.1", name="tracks", children=[track])
    timeline = _schema(
        "Timeline.1",
        metadata={"costl": {"queries": queries}},
        name=one_line(", ".join(queries)),
        global_start_time=None,
        tracks=stack,
    )
    return json.dumps(timeline, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _clip(hit: Hit, numbers: FrameNumbers) -> dict[str, Any]:
    first, stop = numbers.span(hit.start_s, hit.end_s)
    shown = _range(numbers.start_frame + first, stop - first, numbers.rate)
    marker = _schema(
        "Marker.2",
        metadata={"costl": {"query": hit.query, "score": hit.score, "start_s": hit.start_s, "end_s": hit.end_s}},
        name=one_line(hit.query),
        color="BLUE",
        comment=f"score {hit.score:.2f}",
        marked_range=shown,
    )
    media = _schema(
        "ExternalReference.1",
        name=hit.video.name,
        available_range=_range(numbers.start_frame, numbers.frames, numbers.rate),
        target_url=hit.video.as_uri(),
    )
    return _schema(
        "Clip.2",
        name=hit.video.name,
        source_range=shown,
        markers=[marker],
        media_references={_MEDIA: media},
        active_media_reference_key=_MEDIA,
    )


def _range(first: int, frames: int, rate: Fraction) -> dict[str, Any]:
    return _schema("TimeRange.1", start_time=_time(first, rate), duration=_time(frames, rate))


def _time(frames: int, rate: Fraction) -> dict[str, Any]:
    return _schema("RationalTime.1", value=float(frames), rate=float(rate))


def _schema(schema: str, /, **values: Any) -> dict[str, Any]:
    return {"OTIO_SCHEMA": schema, **values}
