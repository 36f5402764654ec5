"""What the speed of stage one is measured on: clips rendered on the spot, the sample world, or a folder of videos."""

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

from costl.pipeline.progress import Progress, Tell
from costl.pipeline.videos import Video, find_videos
from costl.pipeline.world.render import texture
from costl.pipeline.world.sample import WorldSettings, write_sample

RATE = 30
QUICK_WORLD = WorldSettings(videos={"train": 2}, queries=1, train_queries=1, clips=(12, 12), side=64)
_WORLD = WorldSettings(videos={"train": 12}, queries=1, train_queries=1)
_VERSION = 1  # of what is rendered: clips of another one are not taken from the temporary folder


@dataclass(frozen=True)
class Clips:
    """Videos measured together, and what they are called in the table."""

    name: str
    videos: tuple[Video, ...]

    def several(self, count: int, folder: Path) -> Clips:
        """At least `count` videos, each of these as often as it takes, by links in `folder`."""
        folder.mkdir(parents=True)
        rounds = -(-count // len(self.videos))
        for number in range(rounds):
            for video in self.videos:
                _link(video.path.resolve(), folder / f"{video.path.stem}-{number}{video.path.suffix}")
        return Clips(self.name, tuple(find_videos(folder)))


@dataclass(frozen=True)
class Rendering:
    """A clip to render: `height` x 16/9 pixels, so many `seconds`, a key frame every `keys` frames, `kilobits` a second."""

    height: int
    keys: int
    seconds: int
    kilobits: int

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.height}p, key frame every {self.keys}"

    @property
    def file(self) -> str:
        """What it is called on disk: all that decides its content."""
        return f"v{_VERSION}-{self.height}p-keys{self.keys}-{self.seconds}s-{self.kilobits}k.mp4"


# The bit rates are those of videos on the web.
RENDERED = tuple(
    Rendering(height, keys, seconds, kilobits)
    for height, seconds, kilobits in ((360, 40, 600), (720, 20, 2000))
    for keys in (60, 150, 250)
)
MEMORY = Rendering(360, 60, 20, 600)
QUICK = (Rendering(144, 150, 6, 150),)


def clips_to_measure(videos: Path | None, *, quick: bool, world: bool, tell: Tell) -> list[Clips]:
    """Those of the folder `videos`; without one those rendered here, kept in the temporary folder, and, with `world`,
    a few of the sample world's. Raises UsageError for a folder without videos.
    """
    if videos is not None:
        return [Clips(videos.name or str(videos), tuple(find_videos(videos)))]
    found = [Clips(one.name, (Video(path.stem, path),)) for one, path in rendered(QUICK if quick else RENDERED, tell)]
    if world:
        settings = QUICK_WORLD if quick else _WORLD
        found.append(Clips("the sample world", tuple(find_videos(_sample_world(settings, tell)))))
    return found


def rendered(wanted: Sequence[Rendering], tell: Tell) -> list[tuple[Rendering, Path]]:
    """Each with its file in the temporary folder; those that are not there yet are rendered, on all cores."""
    place = _place()
    missing = [one for one in wanted if not (place / one.file).exists()]
    done = Parallel(n_jobs=-1, return_as="generator")(delayed(_publish)(one, place) for one in missing)
    for number, _ in enumerate(done, start=1):
        tell(Progress("render", number, len(missing)))
    return [(one, place / one.file) for one in wanted]


def render(wanted: Rendering, path: Path) -> None:
    """Writes the clip: two textures that drift apart, one seen through a moving window of the other, and film grain."""
    import av

    width, height = wanted.height * 16 // 9 // 2 * 2, wanted.height
    pictures = _Scene(np.random.default_rng(wanted.keys), height, width)
    # Key frames at the asked distance and nowhere else; B-frames as x264 has them.
    options = {"preset": "fast", "threads": "1", "g": str(wanted.keys), "keyint_min": str(wanted.keys)}
    options |= {
        "sc_threshold": "0",
        "bf": "3",
        "maxrate": f"{2 * wanted.kilobits}k",
        "bufsize": f"{4 * wanted.kilobits}k",
    }
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base, stream.bit_rate = Fraction(1, RATE), wanted.kilobits * 1000
        for number in range(wanted.seconds * RATE):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures.at(number), format="rgb24")))
        container.mux(stream.encode())


def repeated(source: Path, path: Path, times: int) -> None:
    """The same video `times` times over in one file, its packets copied: a long video at the cost of a short one."""
    import av

    with av.open(str(path), "w") as output:
        copy: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                copy = copy or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, copy
                        output.mux(packet)
                offset += int(stream.duration or 0)


class _Scene:
    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self._rng, self._size = rng, (height, width)
        self._far, self._near = (texture(rng, width) for _ in range(2))
        self._drifts = rng.uniform(-3, 3, (2, 2))
        self._grain = rng.normal(0, 5, (2 * height, 2 * width, 1)).astype(np.int16)

    def at(self, number: int) -> np.ndarray:
        """Picture `number`, uint8 [h w 3]."""
        height, width = self._size
        picture = self._seen(self._far, self._drifts[0] * number)
        top = int((0.3 + 0.25 * np.sin(number / 40)) * height)
        left = int((0.3 + 0.28 * np.cos(number / 55)) * width)
        inside = slice(top, top + height // 3), slice(left, left + width // 3)
        picture[inside] = 255 - self._seen(self._near, self._drifts[1] * number)[inside]
        y, x = (int(self._rng.integers(0, side)) for side in self._size)
        grainy = picture.astype(np.int16) + self._grain[y : y + height, x : x + width]
        return np.clip(grainy, 0, 255).astype(np.uint8)

    def _seen(self, ground: np.ndarray, offset: np.ndarray) -> np.ndarray:
        height, width = self._size
        top, left = (int(step) % (2 * width) for step in offset)  # it repeats itself after two widths
        return ground[top : top + height, left : left + width].copy()


def _place() -> Path:
    place = Path(tempfile.gettempdir()) / f"costl-bench-{os.getuid() if hasattr(os, 'getuid') else 'clips'}"
    place.mkdir(exist_ok=True, mode=0o700)
    return place


def _publish(wanted: Rendering, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place) as aside:
        render(wanted, Path(aside) / wanted.file)
        os.replace(Path(aside) / wanted.file, place / wanted.file)


def _sample_world(settings: WorldSettings, tell: Tell) -> Path:
    place = _place()
    folder = place / f"world-v{_VERSION}-{settings.side}-{sum(settings.videos.values())}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=place) as aside:
            write_sample(
                Path(aside) / "world",
                settings=settings,
                progress=lambda done, total: tell(Progress("render the sample world", done, total)),
            )
            os.replace(Path(aside) / "world", folder)
    return folder


def _link(target: Path, path: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:  # a system without links
        shutil.copy(target, path)
