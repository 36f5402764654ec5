"""Every decoder returns the same frames for the same times, compared with decord and with PyAV decoding every frame."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from av.codec.codec import UnknownCodecError
from numbered_videos import (
    cut_without_decoding,
    frame_times,
    frames_on_screen,
    make_video,
    pyav_frame_numbers,
    read_number,
    read_numbers,
    set_rotation,
    variable_frame_times,
)

from costl.pipeline.decode.backends import open_video, opener, resolve
from costl.pipeline.decode.packets import read_packets
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import DECODERS, FrameOptions, ResizeTarget

REAL_VIDEOS = Path(__file__).parents[3] / "../shared/data/videos"
OTHER_DECODERS = ("pyav", "torchcodec")


def skip_if_missing(name: str) -> None:
    """Skip the test if the libraries of this decoder are missing."""
    try:
        resolve(name)
    except UsageError as error:
        pytest.skip(str(error))


def sample(path: Path, wanted_s, options: FrameOptions, chunk: int = 7) -> tuple[np.ndarray, np.ndarray, float]:
    """(pixels [t h w 3], their times [t], the video's duration). `wanted_s` may be a function of the duration."""
    with open_video(path, options) as video:
        wanted_s = wanted_s(video.duration_s) if callable(wanted_s) else wanted_s
        chunks = list(video.sample(wanted_s, chunk))
        assert video.repaired == 0 and video.decoder.split()[0] in (options.decoder, "pyav")
        assert chunks[0].pixels.shape[1:] == (video.height, video.width, 3)
        duration_s = video.duration_s
    pixels = np.concatenate([frames.pixels for frames in chunks])
    times_s = np.concatenate([frames.times_s for frames in chunks])
    return pixels, times_s, duration_s


def open_group_options(codec: str, b_frames: int) -> dict[str, str]:
    parameters = f"open-gop=1:keyint=12:min-keyint=12:bframes={b_frames}:scenecut=0:b-adapt=0:log-level=0"
    return {f"{codec.removeprefix('lib')}-params": parameters}


def plain(**options) -> Callable[[Path], Path]:
    """A function that writes a video with these options of `make_video` into a folder."""
    suffix = options.pop("suffix", "mp4")
    times_s = options.pop("times_s", frame_times(61))
    return lambda folder: make_video(folder / f"a.{suffix}", times_s, **options)


def cut_at(start_s: float, group: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        whole = make_video(folder / "whole.mp4", frame_times(61), options={"g": group})
        return cut_without_decoding(whole, folder / "a.mp4", start_s)

    return make


def rotated(turns: int) -> Callable[[Path], Path]:
    return lambda folder: set_rotation(make_video(folder / "a.mp4", frame_times(30), size=(96, 128)), turns)


def ends_early(folder: Path) -> Path:
    path = make_video(folder / "a.mp4", frame_times(100), options={"g": "50"})
    data = bytearray(path.read_bytes())
    offset = data.index(b"elst") + 12
    length = struct.unpack_from(">I", data, offset)[0]
    struct.pack_into(">I", data, offset, int(length * 0.55))
    path.write_bytes(data)
    return path


VIDEOS = {
    "constant rate": plain(),
    "variable rate": plain(times_s=variable_frame_times(40)),
    "late start": plain(times_s=frame_times(40, start_s=1.4)),
    "one frame": plain(times_s=[0.0]),
    "no b-frames": plain(options={"bf": "0"}),
    "b-pyramid": plain(options={"bf": "5", "g": "40", "x264-params": "b-pyramid=normal:b-adapt=0"}),
    "weighted": plain(options={"bf": "3", "x264-params": "weightp=2:ref=5"}),
    "one group": plain(options={"g": "250"}),
    "key frames only": plain(options={"g": "1"}),
    "long gaps": plain(times_s=frame_times(500), options={"g": "125"}),
    "mkv": plain(suffix="mkv"),
    "mov": plain(suffix="mov"),
    "flv": plain(suffix="flv"),
    "open groups of h264": plain(codec="libx264", options=open_group_options("libx264", 3)),
    "open groups of hevc": plain(codec="libx265", options=open_group_options("libx265", 4)),
    "cut at a key frame": cut_at(0.4, "10"),
    "cut between": cut_at(0.7, "25"),
    "cut far in": cut_at(1.5, "100"),
    "ends early": ends_early,
    "rotated 90": rotated(1),
    "rotated 180": rotated(2),
    "rotated 270": rotated(3),
    "odd size": plain(size=(47, 63), pixel_format="yuv444p"),
    "ten bits": plain(codec="libx265", pixel_format="yuv420p10le", options={"x265-params": "log-level=0"}),
    "full range": plain(pixel_format="yuvj420p"),
    "bt.709": plain(options={"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}),
    "mpeg-4": plain(codec="mpeg4", ticks=25_000, options={"b": "4000000"}),
    "vp9": plain(codec="libvpx-vp9", suffix="webm", options={"bf": "0", "cpu-used": "8"}),
}


@pytest.mark.parametrize("name", OTHER_DECODERS)
@pytest.mark.parametrize("kind", VIDEOS)
@pytest.mark.promise(6)
def test_every_decoder_gives_the_frames_and_times_of_decord(tmp_path, kind, name):
    skip_if_missing(name)
    path = VIDEOS[kind](tmp_path)
    for fps in (0.5, 2.0, 3.7, 12.0):
        wanted_s = lambda duration_s, fps=fps: Grid(fps, duration_s).centres_s()  # noqa: E731
        pixels, times_s, duration_s = sample(path, wanted_s, FrameOptions("decord"))
        others, other_times_s, other_duration_s = sample(path, wanted_s, FrameOptions(name))
        assert (duration_s, times_s.tolist()) == (other_duration_s, other_times_s.tolist())
        assert np.abs(pixels.astype(int) - others).max() <= TOLERATED.get((kind, name), 0), fps


@pytest.mark.parametrize("kind", VIDEOS)
def test_decord_gives_the_same_frames_if_reading_ahead_is_stopped(tmp_path, kind):
    path = VIDEOS[kind](tmp_path)
    with open_video(path, FrameOptions("decord")) as video, open_video(path, FrameOptions("decord")) as reference:
        for fps in (0.5, 3.7, 12.0):
            wanted_s = Grid(fps, video.duration_s).centres_s()
            chunks = zip(video.sample(wanted_s, 3), reference.sample(wanted_s, 3), strict=True)
            for frames, expected in chunks:
                assert frames.times_s.tolist() == expected.times_s.tolist()
                assert np.array_equal(frames.pixels, expected.pixels)
                video.stop_reading_ahead()


# Grey levels of 255 by which newer versions of FFmpeg may round differently from decord's (4.1).
TOLERATED: dict[tuple[str, str], int] = {}


@pytest.mark.parametrize("kind", [kind for kind in VIDEOS if not kind.startswith("rotated")])
def test_pyav_gives_any_single_frame_and_any_sequence(tmp_path, kind):
    path = VIDEOS[kind](tmp_path)
    times_s, numbers = pyav_frame_numbers(path)
    with open_video(path, FrameOptions("pyav")) as video:
        assert [n for f in video.sample(times_s) for n in read_numbers(f.pixels)] == numbers
        for seed in range(30):
            rng = np.random.default_rng(seed)
            wanted_s = np.sort(rng.uniform(0, video.duration_s, size=rng.integers(1, 9)))
            sampled = [n for f in video.sample(wanted_s, 4) for n in read_numbers(f.pixels)]
            assert sampled == frames_on_screen(times_s, numbers, wanted_s), seed
        assert video.repaired == 0


def sample_cheapest(path: Path, fps: float, name: str) -> tuple[list[int], np.ndarray, Grid]:
    """(numbers of the frames with sampling "cheapest", their times [t], the grid)."""
    with open_video(path, FrameOptions(name, "cheapest")) as video:
        grid = Grid(fps, video.duration_s)
        chunks = list(video.sample(video.cheapest_times_s(grid)))
    numbers = [number for frames in chunks for number in read_numbers(frames.pixels)]
    return numbers, np.concatenate([frames.times_s for frames in chunks]), grid


@pytest.mark.parametrize("name", ["decord", *OTHER_DECODERS])
@pytest.mark.parametrize(
    "kind", ["constant rate", "variable rate", "cut between", "open groups of h264", "ends early", "mkv"]
)
def test_the_cheapest_frame_of_a_clip_is_a_key_frame_if_it_has_one(tmp_path, kind, name):
    skip_if_missing(name)
    path = VIDEOS[kind](tmp_path)
    times_s, numbers = pyav_frame_numbers(path)
    packets = read_packets(path)
    key_times_s = packets.timeline.starts_s[packets.decode_from[packets.packet_of_frame] == packets.packet_of_frame]
    sampled, sampled_s, grid = sample_cheapest(path, 2.0, name)
    assert sampled == frames_on_screen(times_s, numbers, sampled_s + 1e-4)
    for clip, time_s in enumerate(sampled_s):
        begin_s, end_s = clip / 2.0 - 1e-4, (clip + 1) / 2.0 - 1e-4
        inside = times_s[(times_s >= begin_s) & (times_s < min(end_s, grid.duration_s))]
        if len(inside):
            assert begin_s <= time_s < end_s
            keys_s = [key_s for key_s in key_times_s if begin_s <= key_s < end_s and key_s >= -1e-4]
            assert not keys_s or np.abs(np.array(keys_s) - time_s).min() < 1e-4
        else:
            assert time_s == pytest.approx(times_s[times_s <= grid.centres_s()[clip] + 1e-6].max(), abs=1e-4)


def test_without_a_key_frame_the_fewest_packets_decide(tmp_path):
    path = make_video(tmp_path / "a.mp4", frame_times(100), options={"g": "250", "bf": "0"})
    # Frames 0, 25, 50 and 75 begin the clips of one second; no other frame of a clip is nearer to the only key frame.
    assert sample_cheapest(path, 1.0, "pyav")[0] == [0, 25, 50, 75]


def count_decoded_frames(path: Path, wanted_s, monkeypatch) -> int:
    """How many frames the decoder returns for these times."""
    from costl.pipeline.decode import pyav_backend

    count = 0
    frames = pyav_backend._Reader.frames

    def counting_frames(self, start, stop, *, needed):
        nonlocal count
        for frame in frames(self, start, stop, needed=needed):
            count += 1
            yield frame

    monkeypatch.setattr(pyav_backend._Reader, "frames", counting_frames)
    with open_video(path, FrameOptions("pyav")) as video:
        count = 0
        list(video.sample(wanted_s))
    return count


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_pyav_decodes_no_b_frame_and_no_group_that_is_not_needed(tmp_path, monkeypatch, codec):
    parameters = {
        f"{codec.removeprefix('lib')}-params": "bframes=3:b-adapt=0:b-pyramid=0:scenecut=0:keyint=48:min-keyint=48"
    }
    path = make_video(tmp_path / "a.mp4", frame_times(480), codec=codec, options={"g": "48", **parameters})
    # The last frames of the first and the eighth group: at most 48 packets each, of which one in four is needed.
    assert count_decoded_frames(path, [1.84, 15.28], monkeypatch) < 2 * 48 / 2


def test_a_frame_that_fails_is_replaced_by_the_one_before_and_counted(tmp_path, monkeypatch):
    from costl.pipeline.decode import pyav_backend

    path = make_video(tmp_path / "a.mp4", frame_times(100))
    frames = pyav_backend._Reader.frames
    missing_pts = {round(k * 3600) for k in (40, 76, 77)}

    def frames_without_missing(*arguments, **options):
        return (frame for frame in frames(*arguments, **options) if frame.pts not in missing_pts)

    monkeypatch.setattr(pyav_backend._Reader, "frames", frames_without_missing)
    with open_video(path, FrameOptions("pyav")) as video:
        numbers = [n for f in video.sample(np.arange(1.0, 99.0) / 25, 10) for n in read_numbers(f.pixels)]
        assert video.repaired == 3
    assert numbers == [{40: 39, 76: 75, 77: 75}.get(k, k) for k in range(1, 99)]
    missing_pts |= {round(k * 3600) for k in range(80, 100)}
    with open_video(path, FrameOptions("pyav")) as video, pytest.raises(VideoError, match="damaged"):
        list(video.sample(np.arange(100.0) / 25))


@pytest.mark.parametrize("name", ["decord", *OTHER_DECODERS])
@pytest.mark.parametrize(("turns", "size"), [(0, (67, 89)), (1, (89, 67))])
def test_a_decoder_scales_upright_frames_to_the_networks_size(tmp_path, name, turns, size):
    skip_if_missing(name)
    path = set_rotation(make_video(tmp_path / "a.mp4", frame_times(30), size=(96, 128)), turns)
    options = FrameOptions(name, resize_to=ResizeTarget("shortest", (67, 67)))
    pixels, _, _ = sample(path, [0.3], options)
    assert pixels.shape[1:3] == size and read_number(np.rot90(pixels[0], turns)) == 7
    # A decoder never enlarges frames.
    options = FrameOptions(name, resize_to=ResizeTarget("shortest", (224, 224)))
    assert sample(path, [0.3], options)[0].shape[1] in (96, 128)


def test_the_fingerprint_names_the_family_of_the_decoder():
    target = ResizeTarget("shortest", (224, 224))
    software = [FrameOptions(name).fingerprint() for name in ("decord", "pyav", "torchcodec")]
    assert software[0] == software[1] == software[2]
    assert FrameOptions("torchcodec:cuda").fingerprint()["decoder"] == "nvdec"
    assert {FrameOptions(name, resize_to=target).fingerprint()["decoder"] for name in DECODERS} == set(DECODERS)
    assert FrameOptions("pyav", "cheapest", target).fingerprint() == {
        "decoder": "pyav",
        "sampling": "cheapest",
        "resize": "decoder",
    }


def test_auto_is_the_fastest_decoder_and_failures_say_what_to_install():
    assert resolve("auto") == "pyav"
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(UsageError, match=r"decoder torchcodec does not work here: .*pip install"):
            resolve("torchcodec")
    assert opener("decord").__name__ == "DecordVideo"


@pytest.mark.parametrize("name", ["vid1.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv", "charades.mp4", "01_dog.mp4"])
def test_every_decoder_gives_the_same_frames_of_real_videos(name):
    path = REAL_VIDEOS / name
    if not path.exists():
        pytest.skip("the folder of real videos is missing")
    wanted_s = lambda duration_s: Grid(1.0, duration_s).centres_s()  # noqa: E731
    pixels, times_s, _ = sample(path, wanted_s, FrameOptions("decord"))
    others, other_times_s, _ = sample(path, wanted_s, FrameOptions("pyav"))
    assert times_s.tolist() == other_times_s.tolist() and np.array_equal(pixels, others)


BEYOND_DECORD = {
    "avi": plain(suffix="avi", ticks=25),
    "mkv": plain(suffix="mkv"),
    "flv": plain(suffix="flv"),
    "transport stream": plain(suffix="ts"),
    "mpeg-4": VIDEOS["mpeg-4"],
    "av1": plain(codec="libsvtav1", options={"bf": "0", "preset": "12"}),
    "vp9 in webm": VIDEOS["vp9"],
    "sixteen pixels wide": plain(size=(64, 16)),
}


@pytest.mark.parametrize("kind", BEYOND_DECORD)
def test_pyav_reads_what_decord_cannot_if_its_frames_are_the_same(tmp_path, kind):
    try:
        path = BEYOND_DECORD[kind](tmp_path)
    except UnknownCodecError as error:
        pytest.skip(str(error))
    times_s, numbers = pyav_frame_numbers(path)
    with open_video(path, FrameOptions("decord")) as video:
        assert video.decoder.startswith("pyav ")  # what the row of the cache records
        # An AVI shows its frames in the order in which they are decoded, whatever times FFmpeg counts for them.
        assert [n for frames in video.sample(np.sort(times_s)) for n in read_numbers(frames.pixels)] == numbers
    resized = FrameOptions("decord", resize_to=ResizeTarget("shortest", (12, 12)))
    with pytest.raises(VideoError, match=r"Extract with --decoder pyav, or convert the file: ffmpeg -i IN OUT\.mp4\.$"):
        open_video(path, resized)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("name", ["decord", "pyav"])
def test_two_recordings_in_one_file_are_refused(tmp_path, suffix, name):
    path = make_video(tmp_path / f"a.{suffix}", frame_times(100), codec="mpeg2video", ticks=25)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(VideoError, match=r"timestamps start again in the middle\. Repack it: ffmpeg -i IN -c copy OUT\.mp4\.$"):
        open_video(path, FrameOptions(name))


def test_a_picture_that_appears_late_in_an_avi_keeps_its_time(tmp_path):
    path = make_video(tmp_path / "a.avi", [0.0, *frame_times(40, start_s=3.0)], codec="mpeg4", ticks=25, options={"bf": "0"})
    with open_video(path, FrameOptions("pyav")) as video:
        assert video.duration_s == pytest.approx(4.6, abs=1e-3)
        (frames,) = video.sample([1.0, 2.9, 3.0, 3.5])
    assert read_numbers(frames.pixels) == [0, 0, 1, 13] and frames.times_s == pytest.approx([0.0, 0.0, 3.0, 3.48], abs=1e-3)
