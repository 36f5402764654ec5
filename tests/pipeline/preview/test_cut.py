"""Excerpts and frames for people: an excerpt shows what was on screen in its time, with its sound."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import (
    cut_without_decoding,
    decode_with_pyav,
    frame_times,
    frames_on_screen,
    make_audio_only,
    make_video,
    pyav_frame_numbers,
    read_numbers,
    set_rotation,
    variable_frame_times,
)

from costl.pipeline.errors import VideoError
from costl.pipeline.preview.cut import browser_start_s, cut, frames_at

SOURCES = {
    "constant rate": lambda folder: make_video(folder / "a.mp4", frame_times(150)),
    "variable rate": lambda folder: make_video(folder / "a.mp4", variable_frame_times(60)),
    "late start": lambda folder: make_video(folder / "a.mkv", frame_times(150, start_s=3.0)),
    "hidden beginning": lambda folder: cut_without_decoding(
        make_video(folder / "whole.mp4", frame_times(200)), folder / "a.mp4", 1.5
    ),
    "no timestamps": lambda folder: make_video(folder / "a.avi", frame_times(150), codec="mpeg4", ticks=25),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 1.0), (1.3, 2.5), (2.02, 4.0), (4.9, 99.0)])
def test_a_cut_shows_what_was_on_screen_and_begins_at_its_start(tmp_path, name, start_s, end_s):
    source = SOURCES[name](tmp_path)
    times_s, numbers = pyav_frame_numbers(source)
    cut(source, tmp_path / "out" / "cut.mp4", start_s=start_s, end_s=end_s)
    cut_times_s, cut_numbers = pyav_frame_numbers(tmp_path / "out" / "cut.mp4")
    assert cut_numbers == frames_on_screen(times_s, numbers, start_s + cut_times_s + 1e-4)
    end_s = min(end_s, times_s[-1])
    assert cut_times_s[0] == 0 and cut_times_s[-1] == pytest.approx(end_s - start_s, abs=0.1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cut.mp4"]


def test_sound_is_cut_to_the_same_time_as_the_pictures(tmp_path):
    source = _with_beep(tmp_path / "a.mp4", beep_s=2.5)
    cut(source, tmp_path / "cut.mp4", start_s=2.0, end_s=4.0)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        frames = list(container.decode(audio=0))
    sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[0]
    times_s = np.concatenate([frame.time + np.arange(frame.samples) / 16_000 for frame in frames])
    loud_s = times_s[np.abs(sound) > 0.2]
    assert 0.45 < loud_s.min() < 0.55 and 0.55 < loud_s.max() < 0.7  # from 0.5 s of the cut on, for 0.1 s
    assert times_s[0] == pytest.approx(0.0, abs=0.1) and times_s[-1] == pytest.approx(2.0, abs=0.1)


def test_a_rotated_video_is_cut_upright(tmp_path):
    source = set_rotation(make_video(tmp_path / "a.mp4", frame_times(50), size=(96, 128)), 1)
    cut(source, tmp_path / "cut.mp4", start_s=0.4, end_s=1.0)
    _, pictures = decode_with_pyav(tmp_path / "cut.mp4")
    (expected,) = frames_at(source, [0.42], height=128)
    assert pictures[0].shape == expected.shape == (128, 96, 3)
    assert np.abs(pictures[0].astype(int) - expected).mean() < 12


def test_frames_are_those_on_screen_and_scaled(tmp_path):
    source = make_video(tmp_path / "a.mp4", frame_times(100))
    times_s, numbers = pyav_frame_numbers(source)
    wanted = [0.0, 0.5, 1.99, 3.9, 80.0]
    shown = read_numbers(frames_at(source, wanted, height=48))
    assert shown[:4] == frames_on_screen(times_s, numbers, wanted[:4])
    assert shown[4] == 99
    assert frames_at(source, [1.0], height=24)[0].shape == (24, 32, 3)


def test_a_file_without_a_video_is_refused_with_a_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    make_audio_only(tmp_path / "sound.mp4")
    for name, part in (("empty", "empty"), ("text", "not a video"), ("sound", "no video stream")):
        with pytest.raises(VideoError, match=part):
            browser_start_s(tmp_path / f"{name}.mp4")
        with pytest.raises(VideoError, match=part):
            cut(tmp_path / f"{name}.mp4", tmp_path / "cut.mp4", start_s=0.0, end_s=1.0)
    assert browser_start_s(make_video(tmp_path / "a.mkv", frame_times(25, start_s=3.0))) == pytest.approx(3.0)
    assert not (tmp_path / "cut.mp4").exists()


def _with_beep(path: Path, beep_s: float) -> Path:
    """Six seconds of pictures, with a tone of a tenth of a second at `beep_s`."""
    make_video(path.with_name("silent.mp4"), frame_times(150))
    with av.open(str(path.with_name("silent.mp4"))) as source, av.open(str(path), "w") as target:
        pictures = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=16_000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                target.mux(packet)
        times = np.arange(6 * 16_000) / 16_000
        wave = np.where((times >= beep_s) & (times < beep_s + 0.1), np.sin(times * 2 * np.pi * 800), 0).astype(
            np.float32
        )
        for start in range(0, len(wave) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("look", [lambda path: frames_at(path, [0.1], height=48), browser_start_s], ids=["frames", "start"])
def test_a_file_that_goes_while_it_is_opened_is_named(tmp_path, monkeypatch, look):
    """It is removed at each moment at which Python looks at it."""
    path = tmp_path / "a.mp4"
    at = looks = -1

    def removing(function):
        def remove_first(file, *args, **options):
            nonlocal looks
            looks += str(file) == str(path)
            if str(file) == str(path) and looks == at:
                path.unlink()
            return function(file, *args, **options)

        return remove_first

    whole = make_video(tmp_path / "whole.mp4", frame_times(5))
    monkeypatch.setattr("builtins.open", removing(open))
    monkeypatch.setattr(Path, "stat", removing(Path.stat))
    while looks >= at:
        shutil.copy(whole, path)
        at, looks = at + 1, -1
        with suppress(VideoError):
            look(path)
    assert at > 2
