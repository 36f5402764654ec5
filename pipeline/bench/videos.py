"""The videos that stage one is measured on: rendered ones, the sample world, or a folder of videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import Video, find_videos
from costl.pipeline.world.render import texture
from costl.pipeline.world.write_world import WorldSettings, write_sample

FRAME_RATE = 30
QUICK_WORLD = WorldSettings(videos={"train": 2}, queries=1, train_queries=1, clips=(12, 12), side=64)
WORLD = WorldSettings(videos={"train": 12}, queries=1, train_queries=1)


@dataclass(frozen=True)
class VideoSpec:
    """A 16:9 video to render, `height` pixels high, with a key frame every `keyframe_interval` frames."""

    height: int
    keyframe_interval: int
    seconds: int
    kbit_per_s: int

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.height}p, key frame every {self.keyframe_interval}"


# The bit rates are those of videos on the web.
DEFAULT_VIDEOS = tuple(
    VideoSpec(height, keyframe_interval, seconds, kbit_per_s)
    for height, seconds, kbit_per_s in ((360, 40, 600), (720, 20, 2000))
    for keyframe_interval in (60, 150, 250)
)
MEMORY_VIDEO = VideoSpec(360, 60, 20, 600)
QUICK_VIDEOS = (VideoSpec(144, 150, 6, 150),)


def videos_to_measure(
    videos: Path | None, folder: Path, *, quick: bool, report_progress: ProgressCallback
) -> dict[str, list[Video]]:
    """The videos of the folder `videos` by its name, or else videos that are rendered into `folder`, by their settings.

    `quick` renders small ones. Raises UsageError for a folder without videos.
    """
    if videos is not None:
        return {videos.name or str(videos): find_videos(videos)}
    specs = QUICK_VIDEOS if quick else DEFAULT_VIDEOS
    paths = [folder / str(number) / "video.mp4" for number in range(len(specs))]
    jobs = (delayed(render_video)(spec, path) for spec, path in zip(specs, paths, strict=True))
    for number, _ in enumerate(Parallel(n_jobs=-1, return_as="generator")(jobs), start=1):
        report_progress(Progress("render", number, len(specs)))
    return {spec.name: find_videos(path.parent) for spec, path in zip(specs, paths, strict=True)}


def sample_world(folder: Path, *, quick: bool) -> list[Video]:
    """A few videos of the sample world, rendered into `folder`; small ones if `quick`."""
    write_sample(folder, settings=QUICK_WORLD if quick else WORLD)
    return find_videos(folder)


def link_copies(videos: list[Video], count: int, folder: Path) -> list[Video]:
    """At least `count` videos: links to these in the new `folder`, the same number of links to each."""
    folder.mkdir(parents=True)
    for number in range(-(-count // len(videos))):
        for video in videos:
            os.link(video.path, folder / f"{video.path.stem}-{number}{video.path.suffix}")
    return find_videos(folder)


def render_video(spec: VideoSpec, path: Path) -> None:
    """Writes a video of a drifting texture with film grain."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    # Key frames at exactly this interval, and B-frames as x264 has them by default.
    options = {
        "preset": "fast",
        "threads": "1",
        "g": str(spec.keyframe_interval),
        "keyint_min": str(spec.keyframe_interval),
        "sc_threshold": "0",
        "bf": "3",
        "maxrate": f"{2 * spec.kbit_per_s}k",
        "bufsize": f"{4 * spec.kbit_per_s}k",
    }
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.height = spec.height
        stream.width = spec.height * 16 // 9 // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)
        stream.bit_rate = spec.kbit_per_s * 1000
        for pixels in _frames(spec.seconds * FRAME_RATE, stream.height, stream.width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def repeat_video(source: Path, path: Path, times: int) -> None:
    """Writes a video that shows `source` several times over. Copies its packets, so that nothing is encoded again."""
    import av

    with av.open(str(path), "w") as output:
        output_stream: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                output_stream = output_stream or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts += offset
                        packet.dts += offset
                        packet.stream = output_stream
                        output.mux(packet)
                offset += int(stream.duration or 0)


def _frames(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """The frames of a rendered video, uint8 [y x 3] each: a drifting texture of varying brightness, with film grain."""
    rng = np.random.default_rng(0)
    background = texture(rng, width)  # three widths long, repeats after two
    grain = rng.normal(0, 5, (2 * height, 2 * width, 1)).astype(np.int16)
    for number in range(count):
        top = 5 * number % (2 * width)
        left = 3 * number % (2 * width)
        y, x = rng.integers(0, (height, width))
        picture = background[top : top + height, left : left + width] + grain[y : y + height, x : x + width]
        brightness = 7 * number % 41 - 20  # makes each frame differ clearly from its neighbours
        yield np.clip(picture + brightness, 0, 255).astype(np.uint8)
