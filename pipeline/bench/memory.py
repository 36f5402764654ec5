"""Peak memory of an extraction and its processes, for longer videos and for more videos. It must not grow with either."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from costl.pipeline.bench.measure import peak_memory
from costl.pipeline.bench.videos import VideoSet, repeat_video
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import Video
from costl.pipeline.world.write_world import TINY_CLIP

LONGER = 20
MORE = 4
PROCESSES = 2

# Runs in its own process with the small CLIP: anything else in memory would hide the growth.
_EXTRACT_SCRIPT = f"""
import sys
from pathlib import Path
from costl.pipeline.extract import extract
videos, out, weights, fps, decoder = sys.argv[1:]
report = extract(Path(videos), out=Path(out), annotations={{}}, weights=weights, fps=float(fps), device="cpu",
                 decoder=decoder, workers={PROCESSES})
sys.exit("; ".join(row.reason for row in report.failed) or None)
"""


@dataclass(frozen=True)
class Memory:
    """Peak bytes of extractions: of one short video, of one `LONGER` times as long, of a few videos, and of `MORE` times
    as many."""

    short: float
    long: float
    few: float
    many: float
    few_videos: int

    def lines(self) -> list[str]:
        """A table of MB for the terminal."""
        rows = (
            ("one video", f"{LONGER} times as long", self.short, self.long),
            (f"{self.few_videos} videos", f"{MORE} times as many", self.few, self.many),
        )
        lines = ["Peak memory of an extraction, its processes included, MB:"]
        lines += [
            f"  {less:12}{a / 1e6:>8.0f}   {more:18}{b / 1e6:>8.0f}   {b / a:>6.2f} times as much"
            for less, more, a, b in rows
        ]
        return lines

    def data(self) -> dict[str, float]:
        """Bytes and ratios, for JSON."""
        return vars(self) | {"longer": self.long / self.short, "more": self.many / self.few}


def bench_memory(
    source: Video, *, fps: float, decoder: str, folder: Path | None = None, report_progress: ProgressCallback
) -> Memory:
    """Runs four extractions of `source` at `fps`: one file, one long file that repeats it, and few and many links to it."""
    few = 2 * PROCESSES
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary)
        long = root / "long.mp4"
        repeat_video(source.path, long, LONGER)
        short_set = VideoSet("", (source,))
        long_set = VideoSet("", (Video("long", long),))
        cases = {
            "short": short_set.link_copies(1, root / "short"),
            "long": long_set.link_copies(1, root / "long"),
            "few": short_set.link_copies(few, root / "few"),
            "many": short_set.link_copies(MORE * few, root / "many"),
        }
        peaks = {}
        for number, name in enumerate(cases):
            report_progress(Progress("memory", number, len(cases), name))
            out = root / "out" / name / "feats.h5"
            command = [
                sys.executable,
                "-c",
                _EXTRACT_SCRIPT,
                str(root / name),
                str(out),
                str(TINY_CLIP),
                str(fps),
                decoder,
            ]
            peaks[name] = peak_memory(command, cwd=Path(__file__).parents[2])
    report_progress(Progress("memory", len(cases), len(cases)))
    return Memory(**peaks, few_videos=few)
