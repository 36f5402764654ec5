"""Decoders side by side: sampled frames per CPU second, ours beside the plain use of each library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.bench.clips import Clips, clips_to_measure
from costl.pipeline.bench.decode_entrants import FFMPEG, OURS, PLAIN, Decoder, Wanted, pyav, wanted_of, why_not_here
from costl.pipeline.bench.measure import cost_of
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.progress import Progress, Tell

FPS = (0.5, 1.0, 2.0)
SECONDS = 20.0
REPEATS = 2
BAR = 0.95
_SAME = 3.0  # grey levels on average: two conversions to RGB differ by less, pictures with motion between them by more
_THUMB = slice(None, None, 8)


@dataclass(frozen=True)
class Row:
    """One decoder on one set of clips at one `fps`: `frames` in `cpu_s`, `same` the share of them that are the very
    pictures PyAV shows at those times."""

    clips: str
    decoder: str
    fps: float
    frames: int
    cpu_s: float
    same: float

    @property
    def rate(self) -> float:
        """Sampled frames per CPU second."""
        return self.frames / self.cpu_s


@dataclass(frozen=True)
class DecodeBench:
    """What was measured; `notes` say what could not be."""

    rows: tuple[Row, ...]
    repeats: int
    notes: tuple[str, ...] = ()
    exit_code = 0

    def share(self, row: Row) -> float:
        """A row's rate as a share of the fastest plain library on the same clips at the same frames a second."""
        return row.rate / max(other.rate for other in self._beside(row) if not is_ours(other.decoder))

    def least_share(self) -> float:
        """That of our fastest decoder, on the clips where it does worst."""
        ours = [row for row in self.rows if is_ours(row.decoder)]
        return min(max(self.share(other) for other in self._beside(row) if is_ours(other.decoder)) for row in ours)

    def lines(self) -> list[str]:
        """For the terminal: a block for each set of clips, a line for each decoder."""
        lines = [
            f"Sampled frames per CPU second, processes and threads included (best of {self.repeats}), and the share of "
            "the fastest plain library:"
        ]
        for clips in dict.fromkeys(row.clips for row in self.rows):
            lines += ["", *self._block(clips)]
        lines += ["", f"Ours, the fastest of them where it does worst: {self.least_share():.2f} (bar {BAR})."]
        return [*lines, *self.notes]

    def data(self) -> dict[str, Any]:
        """Every number, for machines."""
        rows = [asdict(row) | {"rate": row.rate, "share": self.share(row)} for row in self.rows]
        return {"rows": rows, "least_share": self.least_share(), "repeats": self.repeats, "notes": list(self.notes)}

    def _beside(self, row: Row) -> list[Row]:
        return [other for other in self.rows if (other.clips, other.fps) == (row.clips, row.fps)]

    def _block(self, clips: str) -> list[str]:
        rows = [row for row in self.rows if row.clips == clips]
        rates = dict.fromkeys(row.fps for row in rows)
        lines = [f"{clips:32}" + "".join(f"{f'{fps:g} fps':>16}" for fps in rates) + f"{'same frames':>14}"]
        for decoder in dict.fromkeys(row.decoder for row in rows):
            mine = [row for row in rows if row.decoder == decoder]
            cells = "".join(f"{row.rate:>10.1f}{self.share(row):>6.2f}" for row in mine)
            same = sum(row.same * row.frames for row in mine) / sum(row.frames for row in mine)
            lines.append(f"  {decoder:30}{cells}{same:>14.0%}")
        return lines


def bench_decode(
    *,
    videos: Path | None = None,
    fps: Sequence[float] = FPS,
    seconds: float = SECONDS,
    repeats: int = REPEATS,
    quick: bool = False,
    progress: Tell | None = None,
) -> DecodeBench:
    """Measures every decoder that is here on the videos of a folder, by default on clips rendered for it.

    Of each video the first `seconds`, at each of `fps`. Videos that any decoder cannot read are left out, by name.
    Raises UsageError for a folder without videos and for what cannot be meant, CostlError when no video is left.
    """
    if repeats < 1 or not fps or min(*fps, seconds) <= 0:
        raise UsageError(
            f"repeats {repeats}, fps {list(fps)}, seconds {seconds:g}: expected a repeat at least, the rest above zero."
        )
    tell = progress or (lambda _: None)
    sets = clips_to_measure(videos, quick=quick, world=False, tell=tell)
    everyone = OURS | PLAIN
    missing = {name: why for name in everyone if (why := why_not_here(name))}
    decoders = {name: decoder for name, decoder in everyone.items() if name not in missing}
    notes = [f"Not measured: {name} ({why})." for name, why in missing.items()]
    rows: list[Row] = []
    for number, clips in enumerate(sets):
        tell(Progress("decode", number, len(sets), clips.name))
        rows += _measure(clips, decoders, fps, seconds=seconds, repeats=repeats, notes=notes)
    tell(Progress("decode", len(sets), len(sets)))
    return DecodeBench(tuple(rows), repeats, tuple(notes))


def is_ours(decoder: str) -> bool:
    """Whether a decoder of the table is the one that `costl extract` uses."""
    return decoder.startswith("ours")


def _measure(
    clips: Clips,
    decoders: Mapping[str, Decoder],
    rates: Sequence[float],
    *,
    seconds: float,
    repeats: int,
    notes: list[str],
) -> list[Row]:
    work: dict[float, list[Wanted]] = {fps: [] for fps in rates}
    same: dict[str, list[float]] = {name: [] for name in decoders}
    for video in clips.videos:
        try:
            wanted = [wanted_of(video.path, fps, seconds) for fps in rates]
            shares = _look(wanted[-1], decoders)
        except Exception as error:  # whatever these libraries raise
            notes.append(f"Left out: {video.path.name} ({type(error).__name__}: {_short(error)}).")
            continue
        for one in wanted:
            work[one.fps].append(one)
        for name, share in shares.items():
            same[name].append(share)
    if not work[rates[0]]:
        raise CostlError(f"{clips.name}: no video that every decoder reads. {' '.join(notes)}")
    cpu_s: dict[tuple[float, str], list[float]] = {(fps, name): [] for fps in rates for name in decoders}
    for _ in range(repeats):  # in turn, so that what else the machine does falls on all
        for fps, name in cpu_s:
            _, cost = cost_of(partial(_run, decoders[name], work[fps]))
            cpu_s[fps, name].append(cost.cpu_s)
    return [
        Row(
            clips=clips.name,
            decoder=name,
            fps=fps,
            frames=sum(len(wanted.times_s) for wanted in work[fps]),
            cpu_s=min(cpu_s[fps, name]),
            same=float(np.mean(same[name])),
        )
        for name in decoders
        for fps in rates
    ]


def _run(decoder: Decoder, work: Sequence[Wanted]) -> None:
    for wanted in work:
        for _ in decoder(wanted):  # looked at by nobody, and let go at once
            pass


def _look(wanted: Wanted, decoders: Mapping[str, Decoder]) -> dict[str, float]:
    """Each decoder's share of the right pictures, found before anything is timed. Raises what they raise."""
    right = _thumbs(pyav(wanted))
    shares = {}
    for name, decoder in decoders.items():
        found = _thumbs(decoder(wanted))
        if name != FFMPEG and len(found) != len(wanted.times_s):  # its filter counts clips in its own way
            raise CostlError(f"{name} gives {len(found)} frames where {len(wanted.times_s)} were asked for")
        shares[name] = _share_of_same(found, right)
    return shares


def _thumbs(chunks: Iterator[np.ndarray]) -> list[np.ndarray]:
    return [picture[_THUMB, _THUMB].astype(np.float32) for chunk in chunks for picture in chunk]


def _share_of_same(found: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    pairs = zip(found, right, strict=False)
    same = [a.shape == b.shape and float(np.abs(a - b).mean()) < _SAME for a, b in pairs]
    return sum(same) / max(1, len(right))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
