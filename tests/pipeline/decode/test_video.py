"""Which frame decord, the default decoder, returns for a second, compared with PyAV, which decodes every frame."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import (
    cut_without_decoding,
    decode_with_pyav,
    draw_number,
    frame_times,
    frames_on_screen,
    make_video,
    pyav_frame_numbers,
    read_number,
    read_numbers,
    set_rotation,
    variable_frame_times,
)

from costl.pipeline.decode.backends import open_video
from costl.pipeline.decode.decord_backend import DecordVideo, decord
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid

REAL_VIDEOS = Path(__file__).parents[3] / "../shared/data/videos"


def numbers_at(path: Path, wanted_s, chunk: int = 32) -> list[int]:
    with open_video(path) as video:
        return [number for frames in video.sample(wanted_s, chunk) for number in read_numbers(frames.pixels)]


def assert_same_as_pyav(path: Path, fps_values=(0.5, 1.0, 2.0, 3.7, 12.0)) -> None:
    """Centres of several grids, all frames, each frame by itself, and random times return the frames that PyAV shows."""
    times_s, numbers = pyav_frame_numbers(path)
    with open_video(path) as video:
        duration_s = video.duration_s
    for fps in fps_values:
        wanted_s = Grid(fps, duration_s).centres_s()
        assert numbers_at(path, wanted_s, chunk=5) == frames_on_screen(times_s, numbers, wanted_s), fps
    assert numbers_at(path, times_s) == numbers
    for time_s, number in zip(times_s, numbers, strict=True):
        assert numbers_at(path, [time_s]) == [number]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        wanted_s = np.sort(rng.uniform(0, duration_s, size=rng.integers(2, 9)))
        assert numbers_at(path, wanted_s, chunk=4) == frames_on_screen(times_s, numbers, wanted_s), seed


def test_a_number_can_be_read_from_its_picture():
    assert [read_number(draw_number(k, 47, 63)) for k in (0, 1, 300, 65535)] == [0, 1, 300, 65535]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "flv", "3gp"])
@pytest.mark.promise(6)
def test_a_constant_frame_rate_gives_the_frame_on_screen(tmp_path, suffix):
    assert_same_as_pyav(make_video(tmp_path / f"a.{suffix}", frame_times(45)))


@pytest.mark.promise(6)
def test_a_variable_frame_rate_is_read_by_time_not_by_index(tmp_path):
    assert_same_as_pyav(make_video(tmp_path / "a.mp4", variable_frame_times(40)))


@pytest.mark.promise(6)
def test_any_number_of_b_frames_does_not_shift_frames(tmp_path):
    for b_frames in ("0", "1", "4"):
        path = make_video(tmp_path / f"{b_frames}.mp4", frame_times(45), options={"bf": b_frames})
        assert_same_as_pyav(path, fps_values=(2.0,))


def test_key_frames_may_be_everywhere_or_only_at_the_start(tmp_path):
    for group in ("1", "3", "250"):
        path = make_video(tmp_path / f"{group}.mp4", frame_times(45), options={"g": group})
        assert_same_as_pyav(path, fps_values=(2.0,))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("b_frames", [1, 3, 4])
def test_the_leading_frames_of_an_open_group_are_exact(tmp_path, codec, b_frames):
    parameters = f"open-gop=1:keyint=12:min-keyint=12:bframes={b_frames}:scenecut=0:b-adapt=0:log-level=0"
    options = {f"{codec.removeprefix('lib')}-params": parameters}
    assert_same_as_pyav(make_video(tmp_path / "a.mp4", frame_times(61), codec=codec, options=options))


@pytest.mark.parametrize("start_s", [0.04, 0.12, 0.36, 0.4, 0.7, 1.02, 1.5])
@pytest.mark.parametrize("group", ["10", "25", "100"])
def test_a_video_cut_by_stream_copy_hides_the_frames_before_its_cut(tmp_path, start_s, group):
    whole = make_video(tmp_path / "whole.mp4", frame_times(55), options={"g": group})
    path = cut_without_decoding(whole, tmp_path / "cut.mp4", start_s)
    assert pyav_frame_numbers(path)[1][0] == round(start_s * 25)
    assert_same_as_pyav(path, fps_values=(2.0, 5.0))


@pytest.mark.parametrize("share", [0.2, 0.4, 0.55, 0.9])
@pytest.mark.promise(6)
def test_a_video_ends_where_its_edit_list_ends(tmp_path, share):
    path = make_video(tmp_path / "a.mp4", frame_times(150), options={"g": "50"})
    data = bytearray(path.read_bytes())
    length_at = data.index(b"elst") + 12
    length = struct.unpack_from(">I", data, length_at)[0]
    struct.pack_into(">I", data, length_at, int(length * share))
    path.write_bytes(data)
    with open_video(path) as video:
        assert video.duration_s == pytest.approx(6.0 * share, abs=0.001)
    assert_same_as_pyav(path, fps_values=(2.0, 5.0))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_file_without_timestamps_is_decoded_from_its_start(tmp_path, codec):
    options = {"b": "4000000"} if codec == "mpeg4" else {}
    path = make_video(tmp_path / "a.avi", frame_times(45), codec=codec, options=options, ticks=25)
    wanted_s = np.array([0.0, 0.5, 0.5, 0.9, 1.3, 1.7])
    with open_video(path) as video:
        assert video.duration_s == pytest.approx(1.8, abs=0.001)
        assert numbers_at(path, wanted_s, chunk=2) == [0, 12, 12, 22, 32, 42]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_of_one_frame_has_a_length(tmp_path, suffix):
    path = make_video(tmp_path / f"a.{suffix}", [0.0])
    with open_video(path) as video:
        assert 0 < video.duration_s < 1
        (frames,) = video.sample(Grid(0.5, video.duration_s).centres_s())
    assert read_numbers(frames.pixels) == [0] and frames.times_s.tolist() == [0.0]


def test_odd_sizes_are_returned_unchanged(tmp_path):
    path = make_video(tmp_path / "a.mp4", frame_times(20), size=(47, 63), pixel_format="yuv444p")
    with open_video(path) as video:
        assert (video.height, video.width) == (47, 63)
        assert next(video.sample([0.0, 0.1])).pixels.shape == (2, 47, 63, 3)
    assert_same_as_pyav(path, fps_values=(2.0,))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotated_video_is_returned_upright(tmp_path, turns):
    path = set_rotation(make_video(tmp_path / "a.mp4", frame_times(20), size=(96, 128)), turns)
    with open_video(path) as video:
        assert (video.height, video.width) == ((128, 96) if turns % 2 else (96, 128))
        (frames,) = video.sample([0.3])
    # A clockwise quarter turn is undone by an anticlockwise one.
    assert read_number(np.rot90(frames.pixels[0], turns)) == 7


def test_times_outside_the_video_return_its_first_and_last_frame(tmp_path):
    path = make_video(tmp_path / "a.mp4", frame_times(20))
    assert numbers_at(path, [-5.0, 0.1, 99.0, 99.0]) == [0, 2, 19, 19]


def test_frames_come_in_chunks_in_order_with_their_own_times(tmp_path):
    path = make_video(tmp_path / "a.mp4", frame_times(50))
    with open_video(path) as video:
        chunks = list(video.sample(np.arange(0.1, 1.9, 0.15), chunk=5))
        assert video.repaired == 0 and video.decoder.startswith("decord ")
    assert [len(frames.times_s) for frames in chunks] == [5, 5, 2]
    times_s = np.concatenate([frames.times_s for frames in chunks])
    assert times_s == pytest.approx(np.floor(np.arange(0.1, 1.9, 0.15) * 25 + 1e-6) / 25, abs=1e-4)


def refusal(path: Path) -> str:
    with pytest.raises(VideoError) as caught, open_video(path) as video:
        list(video.sample(Grid(2.0, video.duration_s).centres_s()))
    assert str(caught.value).startswith(path.name) and "\n" not in str(caught.value) and ".cc" not in str(caught.value)
    return str(caught.value)


def make_frames_fail(monkeypatch, missing: set[int]) -> None:
    """decord fails on these frames, as at the end of a file that declares more frames than it holds."""
    read_batch = DecordVideo._read_batch

    def read_batch_or_fail(self, wanted):
        if missing & set(wanted.tolist()):
            raise decord.DECORDLimitReachedError("recovered from nearest frames")
        return read_batch(self, wanted)

    monkeypatch.setattr(DecordVideo, "_read_batch", read_batch_or_fail)


def test_a_few_missing_frames_are_replaced_by_the_one_before(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frame_times(100))
    make_frames_fail(monkeypatch, {40, 76, 77})
    with open_video(path) as video:
        chunks = list(video.sample(np.arange(1.0, 99.0) / 25, chunk=10))
        assert video.repaired == 3
    numbers = [number for frames in chunks for number in read_numbers(frames.pixels)]
    assert numbers == [{40: 39, 76: 75, 77: 75}.get(k, k) for k in range(1, 99)]
    assert np.concatenate([frames.times_s for frames in chunks]) == pytest.approx(np.array(numbers) / 25, abs=1e-4)


def test_many_missing_frames_are_an_error(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frame_times(100))
    make_frames_fail(monkeypatch, set(range(80, 100)))
    with open_video(path) as video, pytest.raises(VideoError, match="damaged"):
        list(video.sample(np.arange(100.0) / 25))


@pytest.mark.parametrize(
    "name", ["vid1.mp4", "vid2.mp4", "nasa_13013.mp4", "v_GGSY1Qvo990.mp4", "flipping_a_pancake.mkv"]
)
def test_real_videos_give_the_same_pictures_as_pyav(name):
    path = REAL_VIDEOS / name
    if not path.exists():
        pytest.skip("the folder of real videos is missing")
    times_s, pictures = decode_with_pyav(path)
    with open_video(path) as video:
        wanted_s = Grid(2.0, video.duration_s).centres_s()
        sampled = [picture for frames in video.sample(wanted_s) for picture in frames.pixels]
    indices = frames_on_screen(times_s, range(len(times_s)), wanted_s)
    for picture, index in zip(sampled, indices, strict=True):
        # Both versions of FFmpeg convert colours alike; a neighbouring frame would differ by far more.
        assert np.abs(picture.astype(int) - pictures[index]).max() <= 3, (index, times_s[index])


def test_a_real_corrupted_video_is_refused_as_damaged():
    path = REAL_VIDEOS / "corrupted.mp4"
    if not path.exists():
        pytest.skip("the folder of real videos is missing")
    assert "damaged" in refusal(path)
