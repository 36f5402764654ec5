"""Copies for the browser have the frames of the video at the times of the video, and are small."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import frame_times, make_audio_only, make_video, read_numbers, variable_frame_times

from costl.pipeline.decode.backends import open_video
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.preview import proxy
from costl.pipeline.preview.playback import read_playback
from costl.pipeline.preview.proxy import proxy_path, write_proxy


def numbers_at(path: Path, seconds: list[float]) -> list[int]:
    with open_video(path) as video:
        return read_numbers(np.concatenate([frames.pixels for frames in video.sample(seconds)]))


def file_times(path: Path) -> list[float]:
    """The times of the frames in the file, which are those of a browser."""
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.parametrize("encoder", ["libx264", "libvpx"])
@pytest.mark.parametrize(
    ("name", "times_s", "options"),
    [
        ("camera.avi", frame_times(40, fps=5), {"codec": "mpeg4", "ticks": 1000}),
        ("variable.mkv", variable_frame_times(40), {"codec": "mpeg4", "ticks": 1000, "audio": "libopus"}),
        ("late.mp4", frame_times(30, fps=10, start_s=3.0), {"audio": True}),
        ("silent.mp4", frame_times(30, fps=10, start_s=3.0), {}),
    ],
)
def test_frames_keep_their_times(tmp_path, monkeypatch, name, times_s, options, encoder):
    monkeypatch.setattr(proxy, "_ENCODERS", {encoder: proxy._ENCODERS[encoder]})
    video = make_video(tmp_path / name, times_s, **options)
    copy = write_proxy(video, tmp_path / "store")
    playback = read_playback(video)
    shown = file_times(copy)
    times = np.arange(shown[0] + 0.005, playback.duration_s, 0.0703).tolist()
    wanted = [time for time in times if min(abs(np.array(shown) - time)) > 1e-3]  # WebM counts milliseconds
    latest = [max(i for i, time in enumerate(shown) if time <= second) for second in wanted]
    assert len(wanted) > 25
    with av.open(str(copy)) as container:
        numbers = read_numbers(frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        assert bool(container.streams.audio) == bool(options.get("audio"))
    assert [numbers[i] for i in latest] == numbers_at(video, wanted)
    assert copy.suffix == {"libx264": ".mp4", "libvpx": ".webm"}[encoder]


def test_a_large_video_becomes_small_and_is_written_once(tmp_path):
    video = make_video(tmp_path / "large.mp4", frame_times(8), size=(1080, 1920))
    events = []
    copy = write_proxy(video, tmp_path / "store", progress=events.append)
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (360, 640)
    assert [(event.stage, event.done, event.total) for event in events] == [("proxy", 4, 8), ("proxy", 8, 8)]
    before = copy.read_bytes()
    assert write_proxy(video, tmp_path / "store", progress=lambda _: pytest.fail("written again")) == copy
    assert copy.read_bytes() == before
    make_video(video, frame_times(9))
    assert proxy_path(video, tmp_path / "store") != copy


def test_a_stopped_or_failed_copy_leaves_nothing(tmp_path):
    class Stop(Exception):
        pass

    def stop(_: object) -> None:
        raise Stop

    video = make_video(tmp_path / "a.avi", frame_times(20), codec="mpeg4", ticks=1000)
    with pytest.raises(Stop):
        write_proxy(video, tmp_path / "store", progress=stop)
    assert list((tmp_path / "store" / "proxies").iterdir()) == []
    stale = proxy_path(video, tmp_path / "store")
    (stale.parent / f".{stale.name}.1-ab.tmp").touch()
    assert [write_proxy(video, tmp_path / "store")] == list(stale.parent.iterdir())


def test_the_store_keeps_its_size(tmp_path):
    videos = [make_video(tmp_path / f"{number}.avi", frame_times(9), codec="mpeg4", ticks=1000) for number in range(2)]
    first, second = (write_proxy(video, tmp_path / "store", max_bytes=1) for video in videos)
    assert second.exists() and not first.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("hello"), "not a video"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: make_audio_only(path.with_suffix(".m4a")).rename(path), "no video stream"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, make, message):
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=message):
        write_proxy(tmp_path / "a.mp4", tmp_path / "store")
    with pytest.raises(VideoError, match=message):
        read_playback(tmp_path / "a.mp4")


def test_a_store_that_cannot_be_written_and_a_missing_encoder_are_named(tmp_path, monkeypatch):
    video = make_video(tmp_path / "a.avi", frame_times(9), codec="mpeg4", ticks=1000)
    (tmp_path / "store").touch()
    with pytest.raises(CostlError, match="cannot be written"):
        write_proxy(video, tmp_path / "store")
    monkeypatch.setattr(proxy, "_ENCODERS", {"no_such_encoder": (".mp4", {})})
    with pytest.raises(UsageError, match="has none of the encoders no_such_encoder"):
        write_proxy(video, tmp_path)


@pytest.mark.parametrize(("start_s", "audio", "expected_s"), [(0.0, False, 0.0), (3.0, False, 3.0), (3.0, True, 0.0)])
def test_playback_has_the_clock_of_a_browser(tmp_path, start_s, audio, expected_s):
    playback = read_playback(make_video(tmp_path / "a.mp4", frame_times(50, fps=25, start_s=start_s), audio=audio))
    assert playback.start_s == expected_s and playback.frame_s == pytest.approx(0.04, abs=0.01)
    assert playback.duration_s == pytest.approx(2.0 + (start_s if audio else 0.0), abs=0.1)
