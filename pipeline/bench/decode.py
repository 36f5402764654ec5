"""Compares decoders by sampled frames per CPU second: CoSTL's own, and plain code for each library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from costl.pipeline.bench.decode_entrants import (
    PLAIN,
    Decoder,
    FrameRequest,
    available_decoders,
    pyav,
    request_frames,
)
from costl.pipeline.bench.measure import measure
from costl.pipeline.bench.videos import videos_to_measure
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.table import table
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import Video

# Mean difference in grey levels: two conversions of a frame to RGB differ by less, two frames of a moving picture by more.
_SAME_FRAME = 3.0
_EVERY_8TH_PIXEL = slice(None, None, 8)


def bench_decode(
    *,
    videos: Path | None = None,
    fps: Sequence[float] = (0.5, 1.0, 2.0),
    seconds: float = 20.0,
    repeats: int = 2,
    quick: bool = False,
    progress: ProgressCallback | None = None,
) -> list[str]:
    """A table for each set of videos: every decoder that works on this machine, on a folder or else on rendered videos.

    Decodes the first `seconds` of each video at each of `fps`; the least of `repeats` counts. Raises UsageError for a folder
    without videos and for numbers that are not positive, CostlError for a video that cannot be read.
    """
    if repeats < 1 or not fps or min(*fps, seconds) <= 0:
        raise UsageError(
            f"repeats {repeats}, fps {list(fps)}, seconds {seconds:g}: expected at least one repeat, fps and seconds above zero."
        )
    report_progress = progress or (lambda _: None)
    decoders = available_decoders()
    lines = [f"Sampled frames per CPU second, one thread, best of {repeats}; share: of the fastest plain library."]
    lines += [f"Not measured, because it does not work here: {name}." for name in PLAIN if name not in decoders]
    with tempfile.TemporaryDirectory() as folder:
        sets = videos_to_measure(videos, Path(folder), quick=quick, report_progress=report_progress)
        for number, (name, video_set) in enumerate(sets.items()):
            report_progress(Progress("decode", number, len(sets), name))
            rates, same = measure_decoders(video_set, decoders, fps, seconds=seconds, repeats=repeats)
            lines += ["", *decode_table(name, rates, same)]
        report_progress(Progress("decode", len(sets), len(sets)))
    return lines


def measure_decoders(
    videos: Sequence[Video], decoders: Mapping[str, Decoder], fps: Sequence[float], *, seconds: float, repeats: int
) -> tuple[dict[tuple[float, str], float], dict[str, float]]:
    """Sampled frames per CPU second by fps and decoder, and the share of frames that are those of PyAV by decoder.

    Raises CostlError for a video that cannot be read.
    """
    requests = {rate: [request_frames(video.path, rate, seconds) for video in videos] for rate in fps}
    shares = [same_frames(request, decoders) for request in requests[fps[-1]]]
    works = {(rate, name): partial(_run, decoder, requests[rate]) for rate in fps for name, decoder in decoders.items()}
    costs = measure(works, repeats=repeats)
    frames = {rate: sum(len(request.times_s) for request in requests[rate]) for rate in fps}
    rates = {(rate, name): frames[rate] / cost.cpu_s for (rate, name), cost in costs.items()}
    return rates, {name: float(np.mean([share[name] for share in shares])) for name in decoders}


def same_frames(request: FrameRequest, decoders: Mapping[str, Decoder]) -> dict[str, float]:
    """Each decoder's share of frames that are those PyAV shows at the requested times. Raises the errors of the libraries."""
    expected = _thumbnails(pyav(request))
    shares = {}
    for name, decoder in decoders.items():
        pairs = zip(_thumbnails(decoder(request)), expected, strict=True)
        shares[name] = float(np.mean([np.abs(a - b).mean() < _SAME_FRAME for a, b in pairs]))
    return shares


def decode_table(name: str, rates: Mapping[tuple[float, str], float], same: Mapping[str, float]) -> list[str]:
    """A line for each decoder: its rate at each fps, and this rate relative to the fastest plain library."""
    header = [name]
    rows = {decoder: [decoder] for decoder in same}
    for fps in dict.fromkeys(fps for fps, _ in rates):
        header += [f"{fps:g} fps", "share"]
        fastest_plain = max(rate for key, rate in rates.items() if key[0] == fps and key[1] in PLAIN)
        for decoder, row in rows.items():
            row += [f"{rates[fps, decoder]:.1f}", f"{rates[fps, decoder] / fastest_plain:.2f}"]
    header.append("same frames")
    return table(header, [[*row, f"{same[decoder]:.0%}"] for decoder, row in rows.items()])


def _thumbnails(chunks: Iterator[np.ndarray]) -> list[np.ndarray]:
    return [frame[_EVERY_8TH_PIXEL, _EVERY_8TH_PIXEL].astype(np.float32) for chunk in chunks for frame in chunk]


def _run(decoder: Decoder, requests: Sequence[FrameRequest]) -> None:
    for request in requests:
        for _ in decoder(request):  # drops each chunk at once
            pass
