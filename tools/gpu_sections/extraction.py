"""The speed of an extraction and of its halves, and the decoder of the GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from costl.pipeline.bench.extract import compare
from costl.pipeline.bench.extract_entrants import decode_all
from costl.pipeline.bench.measure import cost_of
from costl.pipeline.bench.videos import VideoSpec, link_copies, render_video, repeat_video
from costl.pipeline.decode.backends import open_video, resolve
from costl.pipeline.decode.pool import Chunk
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.errors import UsageError
from costl.pipeline.options import FrameOptions
from costl.pipeline.processes import cpu_cores
from costl.pipeline.videos import Video, find_videos
from gpu_sections.common import Setup

SPECS = (VideoSpec(360, 150, 6, 600), VideoSpec(720, 90, 3, 2000))
TINY_SPECS = (VideoSpec(96, 30, 2, 100),)
REPEATS = 6  # of the rendered seconds in a video: rendering takes longer than anything else
SPARSE_FPS, DENSE_FPS = 0.5, 5.0
NVDEC = "torchcodec:cuda"
MOST_GREY_LEVELS = 3.0  # by which the frames of two decoders differ on average; their conversions to RGB round differently


def render_videos(setup: Setup, *, copies: int) -> list[Video]:
    """Rendered videos, each so many times. They are rendered once for all sections."""
    specs = TINY_SPECS if setup.tiny else SPECS
    folder = setup.folder / "rendered"
    if not folder.exists():
        with ThreadPoolExecutor() as pool:
            list(pool.map(_render, specs, [folder / f"{spec.height}.mp4" for spec in specs]))
    links = Path(tempfile.mkdtemp(dir=setup.folder)) / "videos"
    return link_copies(find_videos(folder), copies * len(specs), links)


def _render(spec: VideoSpec, path: Path) -> None:
    short = path.parent.with_name("short") / path.name
    render_video(spec, short)
    path.parent.mkdir(exist_ok=True)
    repeat_video(short, path, REPEATS)


def halves(setup: Setup) -> None:
    """Every model on few frames of many videos, and on many frames of few videos."""
    from gpu_sections.encoder import models, network_of

    setup.table("model", "frames a second of video", "frames", "decode", "CLIP", "extract", "limit", "share")
    many, few = (render_videos(setup, copies=1 if setup.tiny else count) for count in (3 * cpu_cores(), cpu_cores() // 2 + 1))
    for model in models(setup):
        with setup.attempt(model):
            network, source = network_of(model)
            precision = "fp16" if setup.on_gpu else "fp32"
            encoder = CLIPEncoder(network, source=source, device=setup.device, precision=precision)
            setup.row(model, f"{SPARSE_FPS:g}", *_compare(setup, encoder, many, SPARSE_FPS))
            if not setup.tiny:
                setup.row(model, f"{DENSE_FPS:g}", *_compare(setup, encoder, few, DENSE_FPS))


def _compare(setup: Setup, encoder: CLIPEncoder, videos: Sequence[Video], fps: float) -> list[str]:
    """Frames; frames a second of decoding, CLIP, extraction and the limit; and the share of the limit."""
    options = {"fps": fps, "frame_options": FrameOptions("pyav"), "repeats": 1, "plain": False}
    with tempfile.TemporaryDirectory(dir=setup.folder) as out:
        comparison = compare(videos, encoder, Path(out), **options)
    return comparison.row("")[1:7]


def nvdec(setup: Setup) -> None:
    """The speed and the frames of the decoder of the GPU, or why it does not work here."""
    try:
        software, hardware = FrameOptions("pyav"), FrameOptions("pyav" if setup.tiny else resolve(NVDEC))
    except UsageError as error:
        setup.note(f"Left out: {error}")
        return
    videos = render_videos(setup, copies=1 if setup.tiny else cpu_cores())
    if setup.on_gpu:
        from torchcodec.decoders import VideoDecoder

        # Without NVDEC's library, or for a codec that it lacks, torchcodec decodes on the CPU.
        setup.note(f"{getattr(VideoDecoder(str(videos[0].path), device='cuda'), 'cpu_fallback', 'Fallback status: unknown')}.")
    setup.table("decoder", "frames a second of video", "frames/s")
    for options in dict.fromkeys((software, hardware)):
        for fps in (SPARSE_FPS, DENSE_FPS):
            setup.row(options.decoder, f"{fps:g}", f"{_frames_per_s(videos, fps, options):.0f}")
    results = []
    for video in {video.path.stem.partition("-")[0]: video for video in videos}.values():
        difference = _grey_levels(video.path, software, hardware)
        statement = f"{video.path.name}: the frames differ by {difference:.2f} grey levels, less than {MOST_GREY_LEVELS:g}"
        results.append((statement, difference < MOST_GREY_LEVELS))
    setup.checks(results)


def _frames_per_s(videos: Sequence[Video], fps: float, options: FrameOptions) -> float:
    frames: list[int] = []

    def count(chunk: Chunk) -> None:
        frames.append(len(chunk.times_s))

    cost = cost_of(lambda: decode_all(videos, fps=fps, frame_options=options, use=count))
    return sum(frames) / cost.wall_s


def _grey_levels(path: Path, *both: FrameOptions) -> float:
    """The mean difference of the frames of two decoders."""
    times_s = np.arange(8) + 0.5
    pictures = []
    for options in both:
        with open_video(path, options) as video:
            pictures.append(np.concatenate([frames.pixels for frames in video.sample(times_s)]).astype(float))
    return float(np.abs(pictures[0] - pictures[1]).mean())
