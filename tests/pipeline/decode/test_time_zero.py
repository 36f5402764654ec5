"""Time 0 of a video is that of players: the start of its earliest stream, not its first picture."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import frame_times, make_video, read_numbers

from costl.pipeline.decode.backends import open_video
from costl.pipeline.options import FrameOptions

FPS = 10.0
FRAMES = 40


@dataclass(frozen=True)
class TimeCase:
    """A file whose first picture was written at `first_s`; with `audio`, sound begins at 0. The picture appears at `late_s`."""

    suffix: str
    first_s: float
    late_s: float
    codec: str = "libx264"
    audio: bool | str = True
    ticks: int = 90_000
    options: dict[str, str] = field(default_factory=dict)
    pixel_format: str = "yuv420p"


CASES = {
    "mp4": TimeCase(".mp4", 3.0, 3.0),
    "mov": TimeCase(".mov", 3.0, 3.0),
    "mkv": TimeCase(".mkv", 3.0, 3.0),
    # An MP4 without an edit list begins with its sound; B-frames delay the first picture by two frames.
    "without-edit-list": TimeCase(".mp4", 0.0, 0.2, options={"use_editlist": "0"}),
    "flv": TimeCase(".flv", 3.0, 3.0, ticks=1000),
    "webm": TimeCase(".webm", 3.0, 3.0, codec="libvpx", audio="libopus", ticks=1000),
    "mpeg4-without-b-frames": TimeCase(".mp4", 2.0, 2.0, codec="mpeg4", ticks=1000, options={"bf": "0"}),
    "a-little-late": TimeCase(".mp4", 0.3, 0.3),
    "with-the-sound": TimeCase(".mp4", 0.0, 0.0),
    "mkv-with-the-sound": TimeCase(".mkv", 0.0, 0.0),
    "late-but-silent": TimeCase(".mkv", 7.0, 0.0, audio=False),
    "late-but-silent-mp4": TimeCase(".mp4", 7.0, 0.0, audio=False),
    "webm-with-the-sound": TimeCase(".webm", 0.0, 0.0, codec="libvpx", audio="libopus", ticks=1000),
}
# The samples that an audio decoder needs to start: muxers shift the picture by them (64 ms of AAC at 16 kHz), and versions of
# FFmpeg differ in whether those of Opus (7 ms here) belong to the stream.
AUDIO_PRIMING_S = 0.07
OPUS_PRIMING_S = 0.015


@pytest.fixture(scope="module", params=CASES)
def late_video(request, tmp_path_factory) -> tuple[TimeCase, Path]:
    case = CASES[request.param]
    path = tmp_path_factory.mktemp("late") / f"late{case.suffix}"
    make_video(
        path,
        frame_times(FRAMES, FPS, case.first_s),
        codec=case.codec,
        audio=case.audio,
        ticks=case.ticks,
        container_options={key: value for key, value in case.options.items() if key != "bf"},
        options={key: value for key, value in case.options.items() if key == "bf"},
    )
    return case, path


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_times_count_from_the_earliest_stream(late_video, decoder):
    case, path = late_video
    with open_video(path, FrameOptions(decoder)) as video:
        assert abs(video.picture_start_s - case.late_s) < AUDIO_PRIMING_S
        assert abs(video.picture_start_s - _seconds_until_picture(path)) < OPUS_PRIMING_S
        assert video.duration_s == pytest.approx(video.picture_start_s + FRAMES / FPS, abs=0.11)
        wanted_s = np.arange(0.0, video.picture_start_s + FRAMES / FPS, 0.25) + 0.02
        frames = list(video.sample(wanted_s))
    numbers = read_numbers(np.concatenate([chunk.pixels for chunk in frames]))
    times_s = np.concatenate([chunk.times_s for chunk in frames])
    on_screen_s = np.maximum(wanted_s - video.picture_start_s, 0.0)
    assert numbers == np.minimum(on_screen_s * FPS + 0.02, FRAMES - 1).astype(int).tolist()
    assert (times_s >= video.picture_start_s).all()  # before the first picture its own time is stored


def test_ffprobe_shows_the_same_zero(late_video):
    if not shutil.which("ffprobe"):
        pytest.skip("no ffprobe on this machine (Debian: apt-get install ffmpeg)")
    _, path = late_video
    entries = "stream=codec_type,start_time:format=start_time"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(path)]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    (picture,) = (stream for stream in shown["streams"] if stream["codec_type"] == "video")
    expected_s = float(picture["start_time"]) - max(0.0, float(shown["format"]["start_time"]))
    with open_video(path, FrameOptions("pyav")) as video:
        assert video.picture_start_s == pytest.approx(max(0.0, expected_s), abs=OPUS_PRIMING_S)


def _seconds_until_picture(path: Path) -> float:
    """By reading all packets: the first picture's time after the earliest packet, which may lie before 0 only for sound."""
    first_s: dict[str, float] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.pts is not None:
                kind, time_s = packet.stream.type, float(packet.pts * packet.time_base)
                first_s[kind] = min(time_s, first_s.get(kind, time_s))
    return first_s["video"] - max(0.0, min(first_s.values()))
