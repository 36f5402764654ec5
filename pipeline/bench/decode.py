"""Compares decoders by sampled frames per CPU second: CoSTL's own, and plain code for each library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.bench.decode_entrants import (
    FFMPEG,
    OURS,
    PLAIN,
    Decoder,
    FrameRequest,
    pyav,
    request_frames,
    unavailable_reason,
)
from costl.pipeline.bench.measure import cost_of
from costl.pipeline.bench.videos import VideoSet, videos_to_measure
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.progress import Progress, ProgressCallback

FPS = (0.5, 1.0, 2.0)
SECONDS = 20.0
REPEATS = 2
BAR = 0.95
# Mean difference in grey levels: two conversions of a frame to RGB differ by less, two frames of a moving picture by more.
_SAME_FRAME = 3.0
_EVERY_8TH_PIXEL = slice(None, None, 8)


@dataclass(frozen=True)
class DecoderSpeed:
    """One decoder on one set of videos (`clips`) at one `fps`: `frames` decoded in `cpu_s` CPU seconds.

    `same`: the share of its frames that are those PyAV shows at the requested times.
    """

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
    """All measurements. `notes` list decoders and videos that could not be measured."""

    rows: tuple[DecoderSpeed, ...]
    repeats: int
    notes: tuple[str, ...] = ()
    exit_code = 0

    def share(self, row: DecoderSpeed) -> float:
        """The rate of a row relative to the fastest plain library on the same videos at the same fps."""
        return row.rate / max(other.rate for other in self._same_setting(row) if not is_ours(other.decoder))

    def least_share(self) -> float:
        """The share of CoSTL's fastest decoder, in the setting (videos and fps) where this share is least."""
        ours = [row for row in self.rows if is_ours(row.decoder)]
        return min(
            max(self.share(other) for other in self._same_setting(row) if is_ours(other.decoder)) for row in ours
        )

    def lines(self) -> list[str]:
        """Tables for the terminal: a block for each set of videos, a line for each decoder."""
        lines = [
            f"Sampled frames per CPU second, processes and threads included (best of {self.repeats}), and the share of "
            "the fastest plain library:"
        ]
        for clips in dict.fromkeys(row.clips for row in self.rows):
            lines += ["", *self._block(clips)]
        lines += ["", f"Share of the fastest of ours, in the worst case: {self.least_share():.2f} (bar {BAR})."]
        return [*lines, *self.notes]

    def data(self) -> dict[str, Any]:
        """Every number, for JSON."""
        rows = [asdict(row) | {"rate": row.rate, "share": self.share(row)} for row in self.rows]
        return {"rows": rows, "least_share": self.least_share(), "repeats": self.repeats, "notes": list(self.notes)}

    def _same_setting(self, row: DecoderSpeed) -> list[DecoderSpeed]:
        return [other for other in self.rows if (other.clips, other.fps) == (row.clips, row.fps)]

    def _block(self, clips: str) -> list[str]:
        rows = [row for row in self.rows if row.clips == clips]
        rates = dict.fromkeys(row.fps for row in rows)
        lines = [f"{clips:32}" + "".join(f"{f'{fps:g} fps':>16}" for fps in rates) + f"{'same frames':>14}"]
        for decoder in dict.fromkeys(row.decoder for row in rows):
            of_decoder = [row for row in rows if row.decoder == decoder]
            cells = "".join(f"{row.rate:>10.1f}{self.share(row):>6.2f}" for row in of_decoder)
            same = sum(row.same * row.frames for row in of_decoder) / sum(row.frames for row in of_decoder)
            lines.append(f"  {decoder:30}{cells}{same:>14.0%}")
        return lines


def bench_decode(
    *,
    videos: Path | None = None,
    fps: Sequence[float] = FPS,
    seconds: float = SECONDS,
    repeats: int = REPEATS,
    quick: bool = False,
    progress: ProgressCallback | None = None,
) -> DecodeBench:
    """Measures every decoder of this machine on the videos of a folder, by default on rendered videos.

    Decodes the first `seconds` of each video at each of `fps`. Videos that a decoder cannot read are left out; `notes`
    names them. Raises UsageError for a folder without videos and for numbers that are not positive, CostlError if no
    video is left.
    """
    if repeats < 1 or not fps or min(*fps, seconds) <= 0:
        raise UsageError(
            f"repeats {repeats}, fps {list(fps)}, seconds {seconds:g}: expected at least one repeat, fps and seconds above zero."
        )
    report_progress = progress or (lambda _: None)
    sets = videos_to_measure(videos, quick=quick, world=False, report_progress=report_progress)
    every_decoder = OURS | PLAIN
    missing = {name: reason for name in every_decoder if (reason := unavailable_reason(name))}
    decoders = {name: decoder for name, decoder in every_decoder.items() if name not in missing}
    notes = [f"Not measured: {name} ({reason})." for name, reason in missing.items()]
    rows: list[DecoderSpeed] = []
    for number, video_set in enumerate(sets):
        report_progress(Progress("decode", number, len(sets), video_set.name))
        rows += _measure(video_set, decoders, fps, seconds=seconds, repeats=repeats, notes=notes)
    report_progress(Progress("decode", len(sets), len(sets)))
    return DecodeBench(tuple(rows), repeats, tuple(notes))


def is_ours(decoder: str) -> bool:
    """Whether a decoder of the table is one of CoSTL's own."""
    return decoder.startswith("ours")


def _measure(
    video_set: VideoSet,
    decoders: Mapping[str, Decoder],
    rates: Sequence[float],
    *,
    seconds: float,
    repeats: int,
    notes: list[str],
) -> list[DecoderSpeed]:
    requests: dict[float, list[FrameRequest]] = {fps: [] for fps in rates}
    same: dict[str, list[float]] = {name: [] for name in decoders}
    for video in video_set.videos:
        try:
            video_requests = [request_frames(video.path, fps, seconds) for fps in rates]
            shares = _check_frames(video_requests[-1], decoders)
        except Exception as error:  # the libraries raise errors of many types
            notes.append(f"Left out: {video.path.name} ({type(error).__name__}: {_one_line(error)}).")
            continue
        for request in video_requests:
            requests[request.fps].append(request)
        for name, share in shares.items():
            same[name].append(share)
    if not requests[rates[0]]:
        raise CostlError(f"{video_set.name}: no video that every decoder reads. {' '.join(notes)}")
    cpu_s = _cpu_seconds(requests, decoders, repeats)
    return [
        DecoderSpeed(
            clips=video_set.name,
            decoder=name,
            fps=fps,
            frames=sum(len(request.times_s) for request in requests[fps]),
            cpu_s=min(cpu_s[fps, name]),
            same=float(np.mean(same[name])),
        )
        for name in decoders
        for fps in rates
    ]


def _check_frames(request: FrameRequest, decoders: Mapping[str, Decoder]) -> dict[str, float]:
    """Each decoder's share of correct frames, which is not timed. Raises the errors of the libraries."""
    expected = _thumbnails(pyav(request))
    shares = {}
    for name, decoder in decoders.items():
        thumbnails = _thumbnails(decoder(request))
        if name != FFMPEG and len(thumbnails) != len(request.times_s):  # ffmpeg's filter counts clips differently
            raise CostlError(f"{name} returned {len(thumbnails)} frames, expected {len(request.times_s)}")
        shares[name] = _share_of_same(thumbnails, expected)
    return shares


def _thumbnails(chunks: Iterator[np.ndarray]) -> list[np.ndarray]:
    return [frame[_EVERY_8TH_PIXEL, _EVERY_8TH_PIXEL].astype(np.float32) for chunk in chunks for frame in chunk]


def _share_of_same(thumbnails: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    pairs = zip(thumbnails, expected, strict=False)
    same = [a.shape == b.shape and float(np.abs(a - b).mean()) < _SAME_FRAME for a, b in pairs]
    return sum(same) / max(1, len(expected))


def _cpu_seconds(
    requests: Mapping[float, Sequence[FrameRequest]], decoders: Mapping[str, Decoder], repeats: int
) -> dict[tuple[float, str], list[float]]:
    """CPU seconds of every repeat, by fps and decoder. Decoders take turns, so that other load affects all of them."""
    cpu_s: dict[tuple[float, str], list[float]] = {(fps, name): [] for fps in requests for name in decoders}
    for _ in range(repeats):
        for fps, name in cpu_s:
            _, cost = cost_of(partial(_run, decoders[name], requests[fps]))
            cpu_s[fps, name].append(cost.cpu_s)
    return cpu_s


def _run(decoder: Decoder, requests: Sequence[FrameRequest]) -> None:
    for request in requests:
        for _ in decoder(request):  # drops each chunk at once
            pass


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
