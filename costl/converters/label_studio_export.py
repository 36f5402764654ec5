"""Writes rows as tasks for Label Studio, so that moments can be seen and changed on its timeline of frames."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from costl.benchmarks.common import to_row
from costl.converters.layouts.label_studio import ROWS, TYPE
from costl.converters.times import window_to_frames
from costl.data.annotations import Query

LABEL = "moment"
# The configuration of a project for these tasks. The sentence of a region is its text.
CONFIG = f"""<View>
  <Video name="video" value="$video" framerate="$fps"/>
  <TimelineLabels name="timeline" toName="video">
    <Label value="{LABEL}"/>
  </TimelineLabels>
  <TextArea name="sentence" toName="video" perRegion="true" editable="true" maxSubmissions="1"/>
</View>
"""


def to_label_studio(
    queries: Iterable[Query | Mapping[str, Any]],
    *,
    rate_of: Callable[[str], Fraction],
    address_of: Callable[[str], str],
    kind: Literal["annotations", "predictions"] = "annotations",
) -> list[dict[str, Any]]:
    """A task of Label Studio for each video, for `json.dump`, with a region for each window of its rows.

    `queries` may be rows of the project's JSONL, of which each field comes back, also one that a `Query` does not have.
    `rate_of` has the frames a second of a video, `address_of` its address for Label Studio, which ends in the name of its
    file. `kind`: whether the regions are finished, or proposals. A window becomes the frames that it shows. Each task also
    holds its rows, so that `costl prepare` reads those that were not changed back exactly: times, ratings and qids. CONFIG
    is the configuration of the project. Raises UsageError for a row that is not possible.
    """
    by_video: dict[str, list[tuple[Query, Mapping[str, Any]]]] = defaultdict(list)
    for query in queries:
        pair = (query, to_row(query)) if isinstance(query, Query) else (Query.from_row(query), query)
        by_video[pair[0].vid].append(pair)
    return [
        _task(rows, address=address_of(vid), rate=rate_of(vid), kind=kind)
        for vid, rows in by_video.items()
    ]


def _task(
    rows: Sequence[tuple[Query, Mapping[str, Any]]], *, address: str, rate: Fraction, kind: str
) -> dict[str, Any]:
    results = [result for query, _ in rows for window in query.windows for result in _region(query, window, rate)]
    source = {"model_version": "costl"} if kind == "predictions" else {}
    return {
        "data": {"video": address, "fps": float(rate), ROWS: [dict(row) for _, row in rows]},
        kind: [{**source, "result": results}],
    }


def _region(query: Query, window: tuple[float, float], rate: Fraction) -> list[dict[str, Any]]:
    """The two results of a region: its frames, counted from 1, and its sentence."""
    first, last = window_to_frames(window, rate)
    ranges = [{"start": first + 1, "end": last + 1}]
    region = {"id": _region_id(query, window), "to_name": "video", "origin": "manual"}
    timeline = {"from_name": "timeline", "type": TYPE, "value": {"ranges": ranges, TYPE: [LABEL]}}
    sentence = {"from_name": "sentence", "type": "textarea", "value": {"ranges": ranges, "text": [query.query]}}
    return [{**region, **timeline}, {**region, **sentence}]


def _region_id(query: Query, window: tuple[float, float]) -> str:
    """Ten letters and digits, the same in every export."""
    return hashlib.sha256(f"{query.vid}\0{query.qid!r}\0{window}".encode(errors="surrogateescape")).hexdigest()[:10]
