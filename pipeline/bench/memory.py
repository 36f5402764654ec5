"""Peak memory of an extraction, processes included, as videos get longer and more: it must not grow with either."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from costl.pipeline.bench.clips import Clips, repeated
from costl.pipeline.bench.measure import peak_memory
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.videos import Video
from costl.pipeline.world.sample import TINY_CLIP

LONGER, MORE = 20, 4
PROCESSES = 2

# An extraction of its own, in a process of its own, with the small CLIP: what else memory holds would hide its growth.
_ALONE = f"""
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
    """Peak bytes of an extraction of one short video and of one `LONGER` times as long, of a few videos and of `MORE`
    times as many."""

    short: float
    long: float
    few: float
    many: float
    few_videos: int

    def lines(self) -> list[str]:
        """For the terminal."""
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
        """Bytes and ratios, for machines."""
        return vars(self) | {"longer": self.long / self.short, "more": self.many / self.few}


def bench_memory(source: Video, *, fps: float, decoder: str, folder: Path | None = None, tell: Tell) -> Memory:
    """Four extractions of `source` at `fps`: once, repeated within its file, and linked under many names."""
    few = 2 * PROCESSES
    with tempfile.TemporaryDirectory(dir=folder) as place:
        root = Path(place)
        long = root / "long.mp4"
        repeated(source.path, long, LONGER)
        clips = Clips("", (source,))
        kinds = {
            "short": clips.several(1, root / "short"),
            "long": Clips("", (Video("long", long),)).several(1, root / "long"),
            "few": clips.several(few, root / "few"),
            "many": clips.several(MORE * few, root / "many"),
        }
        peaks = {}
        for number, name in enumerate(kinds):
            tell(Progress("memory", number, len(kinds), name))
            out = root / "out" / name / "feats.h5"
            command = [sys.executable, "-c", _ALONE, str(root / name), str(out), str(TINY_CLIP), str(fps), decoder]
            peaks[name] = peak_memory(command, cwd=Path(__file__).parents[2])
    tell(Progress("memory", len(kinds), len(kinds)))
    return Memory(**peaks, few_videos=few)
