"""The videos that stage one is measured on: rendered ones, the sample world, or a folder of videos."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
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
_WORLD = WorldSettings(videos={"train": 12}, queries=1, train_queries=1)
_VERSION = 1  # of the rendered content: stored files of another version are not used


@dataclass(frozen=True)
class VideoSet:
    """Videos that are measured together, and their name in the table."""

    name: str
    videos: tuple[Video, ...]

    def link_copies(self, count: int, folder: Path) -> VideoSet:
        """At least `count` videos: links to these in the new `folder`, the same number of links to each."""
        folder.mkdir(parents=True)
        copies = -(-count // len(self.videos))
        for number in range(copies):
            for video in self.videos:
                _link(video.path.resolve(), folder / f"{video.path.stem}-{number}{video.path.suffix}")
        return VideoSet(self.name, tuple(find_videos(folder)))


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

    @property
    def file(self) -> str:
        """The file name. It contains everything that decides the content."""
        return f"v{_VERSION}-{self.height}p-keys{self.keyframe_interval}-{self.seconds}s-{self.kbit_per_s}k.mp4"


# The bit rates are those of videos on the web.
DEFAULT_VIDEOS = tuple(
    VideoSpec(height, keyframe_interval, seconds, kbit_per_s)
    for height, seconds, kbit_per_s in ((360, 40, 600), (720, 20, 2000))
    for keyframe_interval in (60, 150, 250)
)
MEMORY_VIDEO = VideoSpec(360, 60, 20, 600)
QUICK_VIDEOS = (VideoSpec(144, 150, 6, 150),)


def videos_to_measure(
    folder: Path | None, *, quick: bool, world: bool, report_progress: ProgressCallback
) -> list[VideoSet]:
    """The videos of `folder`, or else rendered videos, which stay in the temporary folder for the next call.

    `world` adds a few videos of the sample world to rendered ones. Raises UsageError for a folder without videos.
    """
    if folder is not None:
        return [VideoSet(folder.name or str(folder), tuple(find_videos(folder)))]
    rendered = render_all(QUICK_VIDEOS if quick else DEFAULT_VIDEOS, report_progress)
    sets = [VideoSet(spec.name, (Video(path.stem, path),)) for spec, path in rendered]
    if world:
        settings = QUICK_WORLD if quick else _WORLD
        sets.append(VideoSet("the sample world", tuple(find_videos(_sample_world(settings, report_progress)))))
    return sets


def render_all(specs: Sequence[VideoSpec], report_progress: ProgressCallback) -> list[tuple[VideoSpec, Path]]:
    """Each spec with its file in the temporary folder. Renders the files that do not exist yet, on all cores."""
    folder = _temporary_folder()
    missing = [spec for spec in specs if not (folder / spec.file).exists()]
    finished = Parallel(n_jobs=-1, return_as="generator")(delayed(_render_into)(folder, spec) for spec in missing)
    for number, _ in enumerate(finished, start=1):
        report_progress(Progress("render", number, len(missing)))
    return [(spec, folder / spec.file) for spec in specs]


def render_video(spec: VideoSpec, path: Path) -> None:
    """Writes a video of two drifting textures, one of them inside a moving window, with film grain."""
    import av

    height = spec.height
    width = spec.height * 16 // 9 // 2 * 2
    scene = _Scene(np.random.default_rng(spec.keyframe_interval), height, width)
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
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)
        stream.bit_rate = spec.kbit_per_s * 1000
        for number in range(spec.seconds * FRAME_RATE):
            frame = av.VideoFrame.from_ndarray(scene.frame(number), format="rgb24")
            container.mux(stream.encode(frame))
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


class _Scene:
    """The frames of a rendered video. Consecutive frames must be drawn in order, since each takes random grain."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self._rng = rng
        self._size = (height, width)
        self._background = texture(rng, width)
        self._foreground = texture(rng, width)
        self._drifts = rng.uniform(-3, 3, (2, 2))
        self._grain = rng.normal(0, 5, (2 * height, 2 * width, 1)).astype(np.int16)

    def frame(self, number: int) -> np.ndarray:
        """Frame `number`, uint8 [y x 3]."""
        height, width = self._size
        picture = self._crop(self._background, self._drifts[0] * number)
        top = int((0.3 + 0.25 * np.sin(number / 40)) * height)
        left = int((0.3 + 0.28 * np.cos(number / 55)) * width)
        window = slice(top, top + height // 3), slice(left, left + width // 3)
        picture[window] = 255 - self._crop(self._foreground, self._drifts[1] * number)[window]
        y, x = (int(self._rng.integers(0, side)) for side in self._size)
        grainy = picture.astype(np.int16) + self._grain[y : y + height, x : x + width]
        return np.clip(grainy, 0, 255).astype(np.uint8)

    def _crop(self, image: np.ndarray, offset: np.ndarray) -> np.ndarray:
        height, width = self._size
        top, left = (int(step) % (2 * width) for step in offset)  # the texture repeats after two widths
        return image[top : top + height, left : left + width].copy()


def _temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"costl-bench-{os.getuid() if hasattr(os, 'getuid') else 'clips'}"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _render_into(folder: Path, spec: VideoSpec) -> None:
    """Renders to another folder first, so that `folder` never holds an incomplete file."""
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        render_video(spec, Path(unfinished) / spec.file)
        os.replace(Path(unfinished) / spec.file, folder / spec.file)


def _sample_world(settings: WorldSettings, report_progress: ProgressCallback) -> Path:
    parent = _temporary_folder()
    folder = parent / f"world-v{_VERSION}-{settings.side}-{sum(settings.videos.values())}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=parent) as unfinished:
            write_sample(
                Path(unfinished) / "world",
                settings=settings,
                progress=lambda done, total: report_progress(Progress("render the sample world", done, total)),
            )
            os.replace(Path(unfinished) / "world", folder)
    return folder


def _link(target: Path, path: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:  # a system without links
        shutil.copy(target, path)
