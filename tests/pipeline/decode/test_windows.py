"""Windows of a video consist of the very frames that sampling the whole video gives for the same clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numbered_videos import cut_without_decoding, frame_times, make_video, read_numbers, variable_frame_times

from costl.pipeline.decode.pool import Chunk, Decoded, Failed, decode_videos
from costl.pipeline.decode.worker import DecodeSettings
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions
from costl.pipeline.videos import Video

FPS = 2.0
TIMES_S = frame_times(200, 12.5)  # 16 seconds, 32 clips
MPEG4 = {"codec": "mpeg4", "options": {"q:v": "2"}, "ticks": 25}
# The first two overlap, the last one is as long as the video, or longer.
WINDOWS = (range(3), range(2, 6), range(13, 17), range(24, 60))
KINDS = {
    "mp4": lambda path: make_video(path, TIMES_S),
    "late.mp4": lambda path: make_video(path, frame_times(120, 12.5, 6.1), audio=True),
    "varying.mp4": lambda path: make_video(path, variable_frame_times(150)),
    "varying.mkv": lambda path: make_video(path, variable_frame_times(150), ticks=1000),
    "edited.mp4": lambda path: cut_without_decoding(make_video(path.with_name("uncut.mov"), TIMES_S), path, 1.5),
    "mkv": lambda path: make_video(path, TIMES_S, ticks=1000),
    "ts": lambda path: make_video(path, TIMES_S),
    "avi": lambda path: make_video(path, frame_times(400, 25.0), **MPEG4),
    "part.mp4": lambda path: make_video(path, frame_times(193, 12.5)),  # ends within a clip
}
Sampled = tuple[np.ndarray, np.ndarray, Decoded]


def sample(videos: list[Video], sampling: str) -> dict[str, Sampled]:
    """The pixels, the times and the end of each video."""
    settings = DecodeSettings(fps=FPS, frame_options=FrameOptions(sampling=sampling))
    chunks: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {video.id: [] for video in videos}
    ends: dict[str, Decoded | Failed] = {}
    with decode_videos(videos, settings, processes=1) as events:
        for event in events:
            if isinstance(event, Chunk):
                chunks[event.video_id].append((event.pixels.copy(), event.times_s))
                event.release()
            else:
                ends[event.video_id] = event
    failed = [end for end in ends.values() if isinstance(end, Failed)]
    assert not failed, failed
    return {name: (*map(np.concatenate, zip(*chunks[name], strict=True)), ends[name]) for name in chunks}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: make(folder / f"{kind.partition('.')[0]}.{kind.rpartition('.')[2]}") for kind, make in KINDS.items()}


@pytest.fixture(scope="module", params=["centre", "cheapest"])
def sampled(paths, request) -> dict[str, Sampled]:
    whole = [Video(kind, path) for kind, path in paths.items()]
    windows = [Video(f"{kind} in windows", path, windows=WINDOWS) for kind, path in paths.items()]
    return sample([*whole, *windows], request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_the_frames_of_the_whole_video(sampled, kind):
    pixels, times_s, whole = sampled[kind]
    own_pixels, own_times_s, windows = sampled[f"{kind} in windows"]
    count = Grid(FPS, whole.duration_s).clips
    clips = [clip for clip in range(count) if any(clip in window for window in WINDOWS)]
    assert len(pixels) == count > 24 and len(clips) < count
    assert len(set(read_numbers(own_pixels))) > len(clips) / 2  # the frames differ
    np.testing.assert_array_equal(own_pixels, pixels[clips])
    np.testing.assert_array_equal(own_times_s, times_s[clips])
    assert windows.clips == len(clips)
    assert (windows.duration_s, windows.picture_start_s) == (whole.duration_s, whole.picture_start_s)


def test_nothing_is_decoded_after_the_last_window(paths, tmp_path):
    """AVI is decoded from the start. Here the second half of the pictures is damaged."""
    content = bytearray(paths["avi"].read_bytes())
    for begin in range(len(content) // 2, content.index(b"idx1") - 100, 100):
        content[begin : begin + 40] = bytes(40)
    damaged = tmp_path / "damaged.avi"
    damaged.write_bytes(content)
    pixels, _, _ = sample([Video("whole", paths["avi"])], "centre")["whole"]
    own, _, _ = sample([Video("window", damaged, windows=(range(4, 8),))], "centre")["window"]
    np.testing.assert_array_equal(own, pixels[4:8])
    with pytest.raises(AssertionError, match="damaged"):
        sample([Video("whole", damaged)], "centre")


def test_a_window_after_the_end_is_refused(paths):
    with pytest.raises(AssertionError, match=r"mp4\.mp4: ends at 16\.0 s, before a part of it that is needed\."):
        sample([Video("late", paths["mp4"], windows=(range(4), range(32, 40)))], "centre")
