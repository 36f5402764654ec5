"""Codecs in containers: the sampled frames are those that a plain decode of the whole file gives, compared by their content.

The long test writes every combination that ffmpeg can write, and prints a table:

    COSTL_FIGURES=1 python -m pytest tests/pipeline/decode/test_codecs.py -n 0 -m long
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import draw_number, read_number, read_numbers

from costl.pipeline.decode.backends import open_video
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
SECONDS, RATE, HEIGHT, WIDTH = 14, 25, 144, 176  # H.263 has few sizes
DECODERS = ("decord", "pyav")
RATE_3M = "-b:v 3M"
ENCODERS = {
    "H.264": "libx264 -preset veryfast -bf 0",
    "H.264, B-frames": "libx264 -preset veryfast -bf 3",
    "H.264, open groups": "libx264 -preset veryfast -x264-params open-gop=1:bframes=3:b-adapt=0:scenecut=0",
    "HEVC": "libx265 -preset ultrafast -x265-params log-level=0:bframes=0",
    "HEVC, B-frames": "libx265 -preset ultrafast -x265-params log-level=0:bframes=3:open-gop=1",
    "MPEG-4": f"mpeg4 {RATE_3M} -bf 0",
    "MPEG-4, B-frames": f"mpeg4 {RATE_3M} -bf 2",
    "Xvid": "libxvid -q:v 3 -mbd rd -bf 0",
    "Xvid, B-frames": "libxvid -q:v 3 -bf 2",  # with -mbd it writes damaged key frames
    "MS MPEG-4 v2": f"msmpeg4v2 {RATE_3M}",
    "MS MPEG-4 v3": f"msmpeg4 {RATE_3M}",
    "WMV1": f"wmv1 {RATE_3M}",
    "WMV2": f"wmv2 {RATE_3M}",
    "H.263": f"h263 {RATE_3M}",
    "H.263+": f"h263p {RATE_3M}",
    "Sorenson": f"flv {RATE_3M}",
    "MPEG-1": f"mpeg1video {RATE_3M} -bf 0",
    "MPEG-1, B-frames": f"mpeg1video {RATE_3M} -bf 2",
    "MPEG-2": f"mpeg2video {RATE_3M} -bf 0",
    "MPEG-2, B-frames": f"mpeg2video {RATE_3M} -bf 2",
    "VP8": f"libvpx {RATE_3M} -deadline realtime -cpu-used 8 -auto-alt-ref 0",
    "VP8, hidden frames": f"libvpx {RATE_3M} -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16",
    "VP9": f"libvpx-vp9 {RATE_3M} -deadline realtime -cpu-used 8",
    "VP9, hidden frames": f"libvpx-vp9 {RATE_3M} -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16",
    # Not libsvtav1: its version 1.4 deadlocks now and then on a busy machine.
    "AV1": f"libaom-av1 {RATE_3M} -usage realtime -cpu-used 8",
    "AV1, hidden frames": f"libaom-av1 {RATE_3M} -cpu-used 8",
    "Theora": f"libtheora {RATE_3M}",
    "Motion JPEG": f"mjpeg {RATE_3M} -pix_fmt yuvj420p",
    "ProRes": "prores_ks -pix_fmt yuv422p10le",
    "FFV1": "ffv1",
    "HuffYUV": "huffyuv -pix_fmt yuv422p",
    "SVQ1": "svq1 -pix_fmt yuv410p",
    "RealVideo": f"rv20 {RATE_3M}",
    "Snow": f"snow {RATE_3M} -strict -2",
    "Cinepak": "cinepak -pix_fmt rgb24",
    "raw": "rawvideo",
}
# .mpeg is .mpg, .mts is .m2ts, .m4v is .mp4, .divx is .avi.
SUFFIXES = ("mp4", "mov", "3gp", "mkv", "webm", "avi", "mpg", "vob", "ts", "m2ts", "flv", "wmv", "ogv")
SOUND = {"webm": "libvorbis", "ogv": "libvorbis", "wmv": "wmav2", "avi": "mp2", "mpg": "mp2", "vob": "mp2"}
# kind, suffix, frames between key frames, with sound, options of the container
SAMPLES = [
    ("H.264", "mkv", 250, False, ""),
    ("H.264", "flv", 250, True, ""),
    ("H.264, B-frames", "wmv", 25, False, ""),
    ("H.264, open groups", "wmv", 250, True, ""),
    ("H.264, open groups", "avi", 250, False, ""),
    ("H.264, B-frames", "ts", 250, True, ""),
    ("WMV2", "wmv", 12, True, ""),
    ("Xvid, B-frames", "mp4", 25, False, ""),
    ("Xvid, B-frames", "mov", 250, False, ""),
    ("Xvid, B-frames", "mkv", 250, False, ""),
    ("Xvid, B-frames", "avi", 250, True, ""),
    ("H.263+", "mkv", 250, False, ""),
    ("H.263+", "avi", 25, False, ""),
    ("MPEG-4", "mpg", 25, True, ""),
    ("MPEG-2, B-frames", "mpg", 250, True, ""),
    ("MPEG-2, B-frames", "m2ts", 25, True, ""),
    ("AV1", "mp4", 250, False, ""),
    ("VP8", "webm", 250, True, ""),
    ("VP8", "webm", 250, False, "-live 1"),
    ("Theora", "ogv", 25, False, ""),
    ("Sorenson", "flv", 25, False, ""),
]  # fmt: skip


@functools.cache
def pictures() -> bytes:
    """Grey pictures that show their numbers."""
    return b"".join(draw_number(number, HEIGHT, WIDTH)[..., 0].tobytes() for number in range(SECONDS * RATE))


def write_with_ffmpeg(path: Path, kind: str, group: int, sound: bool, container_options: str = "") -> bool:
    """Write numbered pictures; False if this ffmpeg has no such encoder or the container cannot hold the codec."""
    source = f"-f rawvideo -pix_fmt gray -s {WIDTH}x{HEIGHT} -r {RATE} -i pipe:0"
    source += f" -f lavfi -i sine=d={SECONDS} -c:a {SOUND.get(path.suffix[1:], 'aac')}" if sound else ""
    encoder = ENCODERS[kind] if "-pix_fmt" in ENCODERS[kind] else f"{ENCODERS[kind]} -pix_fmt yuv420p"
    encoder += f" -g {group} -threads 1 {container_options}"
    command = ["ffmpeg", "-v", "error", *source.split(), "-c:v", *encoder.split(), str(path)]
    return subprocess.run(command, input=pictures(), capture_output=True, check=False).returncode == 0


def plain_decode(path: Path) -> tuple[np.ndarray, list[int]]:
    """(seconds since the first picture [f], the number in each picture) of the whole file, in the order of the times.

    An AVI stores no display times: there the decoder's order is that of the pictures. So it is where times are missing.
    """
    with av.open(str(path)) as container:
        frames = [(frame.time, read_number(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]
        keeps_order = container.format.name == "avi"
    if any(time_s is None for time_s, _ in frames):
        frames = [(index / RATE, number) for index, (_, number) in enumerate(frames)]
    times_s, numbers = zip(*(frames if keeps_order else sorted(frames)), strict=True)
    return np.sort(times_s) - min(times_s), list(numbers)


def check(path: Path, decoder: str, times_s: np.ndarray, numbers: list[int]) -> str:
    """Compare sampled frames with those of `plain_decode`; returns the library that decoded them."""
    for fps in (0.5, 1.0, 2.0):
        with open_video(path, FrameOptions(decoder)) as video:
            wanted_s = Grid(fps, video.duration_s).centres_s()
            chunks = list(video.sample(wanted_s))
            assert video.repaired == 0
        sampled = [number for frames in chunks for number in read_numbers(frames.pixels)]
        sampled_s = np.concatenate([frames.times_s for frames in chunks])
        starts_s = times_s + video.picture_start_s  # see test_time_zero.py
        # A millisecond, to which many containers round, decides about pictures that begin just there.
        shown = [_on_screen(starts_s, wanted_s + rounding_s) for rounding_s in (1e-3, -1e-3)]
        expected = [[numbers[index] for index in indices] for indices in shown]
        assert all(number in both for number, *both in zip(sampled, *expected, strict=True)), (path.name, decoder, fps)
        errors_s = np.abs([starts_s[indices] - sampled_s for indices in shown]).min(0)
        assert errors_s.max() <= 0.5 / RATE, (path.name, decoder, fps)
    return video.decoder.split()[0]


def _on_screen(starts_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """The index of the last picture that begins at or before each wanted time, 0 before the first one."""
    return np.maximum(np.searchsorted(starts_s, wanted_s, side="right") - 1, 0)


@pytest.mark.promise(6)
@pytest.mark.parametrize(
    ("kind", "suffix", "group", "sound", "container_options"), SAMPLES, ids=str
)
def test_sampled_frames_are_those_of_a_plain_decode(tmp_path, kind, suffix, group, sound, container_options):
    path = tmp_path / f"a.{suffix}"
    if not write_with_ffmpeg(path, kind, group, sound, container_options):
        pytest.skip(f"this ffmpeg does not write {kind} into .{suffix}")
    reference = plain_decode(path)
    for decoder in DECODERS:
        check(path, decoder, *reference)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ENCODERS)
def test_every_codec_in_every_container(tmp_path, kind, report_figure):
    results: dict[str, list[str]] = {}
    for suffix, (group, sound) in itertools.product(SUFFIXES, ((12, True), (250, False))):
        path = tmp_path / f"{group}-{sound}.{suffix}"
        if write_with_ffmpeg(path, kind, group, sound):
            results.setdefault(suffix, []).append(_outcome(path))
        path.unlink(missing_ok=True)
    cells = [f".{suffix}: {len(outcomes)} {' or '.join(sorted(set(outcomes)))}" for suffix, outcomes in results.items()]
    report_figure(f"{kind}: " + "; ".join(cells))


def _outcome(path: Path) -> str:
    """Which library decodes a file if decord is asked for; "refused" where both decoders refuse it."""
    try:
        reference = plain_decode(path)
    except (av.FFmpegError, IndexError):
        for decoder in DECODERS:
            with pytest.raises(VideoError), open_video(path, FrameOptions(decoder)) as video:
                list(video.sample(Grid(2.0, video.duration_s).centres_s()))
        return "refused"
    try:
        used, _ = [check(path, decoder, *reference) for decoder in DECODERS]
        return used
    except VideoError as error:
        assert path.suffix == ".vob" and "damaged" in str(error), error  # H.263+ is not made for it: pictures are missing
        return "refused"
