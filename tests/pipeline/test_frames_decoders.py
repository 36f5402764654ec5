"""Every decoder gives the same frames for the same times; PyAV decoding everything, and decord, are the witnesses."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import clips
import numpy as np
import pytest

from pipeline.decoders import open_video, resolve
from pipeline.errors import UsageError
from pipeline.grid import Grid
from pipeline.how import How

REAL_VIDEOS = Path(__file__).parents[2] / "../shared/data/videos"
OTHERS = ("pyav", "torchcodec")


def here(name: str) -> str:
    """The decoder, or a skipped test where its libraries are missing."""
    try:
        return resolve(name)
    except UsageError as error:
        pytest.skip(str(error))


def pictures_at(path: Path, wanted_s, how: How, chunk: int = 7) -> tuple[np.ndarray, np.ndarray, float]:
    """(pixels, their times, the video's duration)."""
    with open_video(path, how) as video:
        wanted_s = wanted_s(video.duration_s) if callable(wanted_s) else wanted_s
        found = list(video.sample(wanted_s, chunk))
        assert video.repaired == 0 and video.decoder.startswith(how.decoder.partition(":")[0])
        assert found[0].pixels.shape[1:] == (video.height, video.width, 3)
        duration_s = video.duration_s
    return np.concatenate([f.pixels for f in found]), np.concatenate([f.times_s for f in found]), duration_s


def open_group(codec: str, b_frames: int) -> dict[str, str]:
    parameters = f"open-gop=1:keyint=12:min-keyint=12:bframes={b_frames}:scenecut=0:b-adapt=0:log-level=0"
    return {f"{codec.removeprefix('lib')}-params": parameters}


def plain(**options) -> Callable[[Path], Path]:
    suffix, times_s = options.pop("suffix", "mp4"), options.pop("times_s", clips.steady(61))
    return lambda folder: clips.make_clip(folder / f"a.{suffix}", times_s, **options)


def cut_at(start_s: float, group: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        whole = clips.make_clip(folder / "whole.mp4", clips.steady(61), options={"g": group})
        return clips.cut_without_decoding(whole, folder / "a.mp4", start_s)

    return make


def turned(turns: int) -> Callable[[Path], Path]:
    return lambda folder: clips.rotate(clips.make_clip(folder / "a.mp4", clips.steady(30), size=(96, 128)), turns)


def ends_early(folder: Path) -> Path:
    path = clips.make_clip(folder / "a.mp4", clips.steady(100), options={"g": "50"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    struct.pack_into(">I", data, at, int(struct.unpack_from(">I", data, at)[0] * 0.55))
    path.write_bytes(data)
    return path


CLIPS = {
    "steady": plain(),
    "uneven": plain(times_s=clips.uneven(40)),
    "late start": plain(times_s=clips.steady(40, start_s=1.4)),
    "one frame": plain(times_s=[0.0]),
    "no b-frames": plain(options={"bf": "0"}),
    "b-pyramid": plain(options={"bf": "5", "g": "40", "x264-params": "b-pyramid=normal:b-adapt=0"}),
    "weighted": plain(options={"bf": "3", "x264-params": "weightp=2:ref=5"}),
    "one group": plain(options={"g": "250"}),
    "key frames only": plain(options={"g": "1"}),
    "long gaps": plain(times_s=clips.steady(500), options={"g": "125"}),
    "mkv": plain(suffix="mkv"),
    "mov": plain(suffix="mov"),
    "flv": plain(suffix="flv"),
    "open groups of h264": plain(codec="libx264", options=open_group("libx264", 3)),
    "open groups of hevc": plain(codec="libx265", options=open_group("libx265", 4)),
    "cut at a key frame": cut_at(0.4, "10"),
    "cut between": cut_at(0.7, "25"),
    "cut far in": cut_at(1.5, "100"),
    "ends early": ends_early,
    "turned 90": turned(1),
    "turned 180": turned(2),
    "turned 270": turned(3),
    "odd size": plain(size=(47, 63), pixel_format="yuv444p"),
    "ten bits": plain(codec="libx265", pixel_format="yuv420p10le", options={"x265-params": "log-level=0"}),
    "full range": plain(pixel_format="yuvj420p"),
    "bt.709": plain(options={"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}),
    "mpeg-4": plain(codec="mpeg4", ticks=25_000, options={"b": "4000000"}),
    "vp9": plain(codec="libvpx-vp9", suffix="webm", options={"bf": "0", "cpu-used": "8"}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", CLIPS)
def test_every_decoder_gives_the_frames_and_the_times_of_decord(tmp_path, kind, name):
    here(name)
    path = CLIPS[kind](tmp_path)
    for fps in (0.5, 2.0, 3.7, 12.0):
        wanted_s = lambda duration_s, fps=fps: Grid(fps, duration_s).centres_s()  # noqa: E731
        pixels, times_s, duration_s = pictures_at(path, wanted_s, How("decord"))
        ours, our_times_s, our_duration_s = pictures_at(path, wanted_s, How(name))
        assert (duration_s, times_s.tolist()) == (our_duration_s, our_times_s.tolist())
        assert np.abs(pixels.astype(int) - ours).max() <= TOLERATED.get((kind, name), 0), fps


# Where decord's FFmpeg (4.1) and a newer one round differently: grey levels of 255.
TOLERATED: dict[tuple[str, str], int] = {}


@pytest.mark.parametrize("kind", [kind for kind in CLIPS if not kind.startswith("turned")])
def test_pyav_gives_any_frame_alone_and_any_walk(tmp_path, kind):
    path = CLIPS[kind](tmp_path)
    times_s, numbers = clips.shown_frames(path)
    with open_video(path, How("pyav")) as video:
        assert [n for f in video.sample(times_s) for n in clips.read_numbers(f.pixels)] == numbers
        for seed in range(30):
            rng = np.random.default_rng(seed)
            wanted_s = np.sort(rng.uniform(0, video.duration_s, size=rng.integers(1, 9)))
            found = [n for f in video.sample(wanted_s, 4) for n in clips.read_numbers(f.pixels)]
            assert found == clips.on_screen(times_s, numbers, wanted_s), seed
        assert video.repaired == 0
