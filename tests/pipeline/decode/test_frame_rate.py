"""Frame numbers of real files: the number of the frame on screen, and the rates that cannot be counted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import (
    cut_without_decoding,
    frame_times,
    frames_on_screen,
    make_audio_only,
    make_video,
    pyav_frame_numbers,
    variable_frame_times,
)

from costl.pipeline.decode.frame_rate import FrameNumbers, read_frame_numbers
from costl.pipeline.errors import VideoError

RATES = {"23.976": Fraction(24000, 1001), "25": Fraction(25), "29.97": Fraction(30000, 1001), "60": Fraction(60)}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


def constant(path: Path, rate: Fraction, frames: int = 100, **options) -> Path:
    return make_video(path, frame_times(frames, rate), ticks=options.pop("ticks", rate.numerator), **options)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts", ".avi", "fragmented.mp4"])
def test_the_rate_is_exact_in_every_container(tmp_path, name, suffix):
    rate = RATES[name]
    more = {"codec": "mpeg4", "ticks": rate} if suffix == ".avi" else {}
    if suffix == "fragmented.mp4":
        more = {"container_options": FRAGMENTED}
    numbers = read_frame_numbers(constant(tmp_path / f"a{suffix}", rate, **more))
    assert (numbers.rate, numbers.frames, numbers.drop_frame) == (rate, 100, name == "29.97")
    assert numbers.span(0.0, 1e9) == (0, 100) and numbers.span(1e9, 2e9) == (99, 100)


SOURCES = {
    "mp4": lambda folder: constant(folder / "a.mp4", RATES["23.976"]),
    "rounded times": lambda folder: constant(folder / "a.mkv", RATES["23.976"]),
    "early sound": lambda folder: make_video(folder / "a.mkv", frame_times(60, 25, start_s=0.4), audio=True),
    "late start": lambda folder: make_video(folder / "a.mkv", frame_times(60, 25, start_s=3.0)),
    "hidden beginning": lambda folder: cut_without_decoding(
        make_video(folder / "whole.mp4", frame_times(150)), folder / "a.mp4", 1.5
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_span_begins_with_the_frame_on_screen(tmp_path, name):
    path = SOURCES[name](tmp_path)
    numbers = read_frame_numbers(path)
    times_s, shown = pyav_frame_numbers(path)
    assert numbers.frames == len(times_s)
    edges_s = np.concatenate([times_s, times_s + 0.011, times_s + 0.03]) + numbers.picture_start_s
    for start_s in edges_s.tolist():
        first, stop = numbers.span(start_s, start_s + 1e-3)
        assert [shown[first]] == frames_on_screen(times_s, shown, [start_s - numbers.picture_start_s])
        assert stop == first + 1
    for index in range(1, len(times_s)):
        assert numbers.span(0.0, times_s[index] + numbers.picture_start_s) == (0, index)


@pytest.mark.parametrize(
    ("text", "start_frame", "drop_frame"),
    [
        (None, 0, True),
        ("10:00:00:00", 1_080_000, False),
        ("10:00:00;00", 1_078_920, True),
        ("23:59:59:29", 2_591_999, False),
    ],
)
def test_the_timecode_of_the_first_frame_is_that_of_the_file(tmp_path, text, start_frame, drop_frame):
    rate = RATES["29.97"]
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        if text:
            stream.metadata["timecode"] = text
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    numbers = read_frame_numbers(tmp_path / "a.mov")
    assert (numbers.start_frame, numbers.drop_frame, numbers.rate) == (start_frame, drop_frame, rate)


REFUSED = {
    "variable": (lambda folder: make_video(folder / "a.mp4", variable_frame_times(60)), "its frame rate varies .*-r .*OUT.mp4"),
    "variable, no index": (lambda folder: make_video(folder / "a.mkv", variable_frame_times(60)), "its frame rate varies"),
    "drifting": (lambda folder: make_video(folder / "a.mp4", [k / 30 + (k > 50) / 40 for k in range(100)]), "varies"),
    "no times": (lambda folder: make_video(folder / "a.h264", frame_times(20)), "its frames have no times"),
    "sound": (lambda folder: make_audio_only(folder / "a.mp4"), "no video stream"),
    "missing": (lambda folder: folder / "a.mp4", "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_video_without_frame_numbers_is_refused(tmp_path, name):
    make, reason = REFUSED[name]
    with pytest.raises(VideoError, match=rf"^a\.\w+: .*{reason}"):
        read_frame_numbers(make(tmp_path))


def test_times_that_waver_by_less_than_half_a_frame_are_constant(tmp_path):
    rng = np.random.default_rng(0)
    times_s = np.arange(200) / 30 + rng.uniform(0, 0.012, 200)
    assert read_frame_numbers(make_video(tmp_path / "a.mp4", times_s.tolist())).rate == 30


def test_a_span_has_at_least_one_frame_and_ends_with_the_video():
    numbers = FrameNumbers(Fraction(25), 100)
    assert numbers.span(1.0, 1.0) == (25, 26) and numbers.span(1.01, 1.02) == (25, 26)
    assert numbers.span(-1.0, 0.01) == (0, 1) and numbers.span(3.99, 4.0001) == (99, 100)
