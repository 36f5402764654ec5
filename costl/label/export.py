"""The labels as tasks for Label Studio, with the addresses of its local files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

from costl.converters.label_studio_export import to_label_studio
from costl.converters.times import parse_rate
from costl.label.rows import Label
from costl.label.videos import LabelVideos
from costl.pipeline.errors import UsageError, VideoError

# And a path relative to the folder that Label Studio serves. That is the one around the folder of the videos, since it
# refuses to take the served folder itself as the storage of a project.
_LOCAL_FILES = "/data/local-files/?d="
_OTHER_RATE = Fraction(25)  # of a video that is not here, or whose rate varies; Label Studio counts by what a task states


def label_studio_text(labels: Sequence[Label], videos: LabelVideos) -> str:
    """The JSON of a task for each labelled video, with every field of its labels."""
    by_vid = {video.vid: video for video in videos.all}
    video_of = {str(label.row["vid"]): by_vid.get(label.video) for label in labels}

    def rate_of(vid: str) -> Fraction:
        video = video_of[vid]
        return _stated_rate(video.path) if video else _OTHER_RATE

    def address_of(vid: str) -> str:
        video = video_of[vid]
        return _LOCAL_FILES + quote(f"{videos.folder.name}/{video.name if video else vid}".lstrip("/"))

    tasks = to_label_studio((label.row for label in labels), rate_of=rate_of, address_of=address_of)
    return json.dumps(tasks, ensure_ascii=False, indent=1)


def _stated_rate(path: Path) -> Fraction:
    """The frames a second of a video with three decimals, as a task states them."""
    from costl.pipeline.decode.frame_rate import read_frame_numbers  # loads PyAV

    try:
        return parse_rate(f"{float(read_frame_numbers(path).rate):.3f}")
    except (UsageError, VideoError):
        return _OTHER_RATE
