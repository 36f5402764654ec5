"""Every decoder gives the same frames for the same times; PyAV decoding everything, and decord, are the witnesses."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import videos as clips

from costl.pipeline.decode.backends import FASTEST_FIRST, open_video, opener, resolve
from costl.pipeline.decode.packets import read_packets
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import DECODERS, How, Target

REAL_VIDEOS = Path(__file__).parents[3] / "../shared/data/videos"
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
@pytest.mark.promise(6)
def test_every_decoder_gives_the_frames_and_the_times_of_decord(tmp_path, kind, name):
    here(name)
    path = CLIPS[kind](tmp_path)
    for fps in (0.5, 2.0, 3.7, 12.0):
        wanted_s = lambda duration_s, fps=fps: Grid(fps, duration_s).centres_s()  # noqa: E731
        pixels, times_s, duration_s = pictures_at(path, wanted_s, How("decord"))
        ours, our_times_s, our_duration_s = pictures_at(path, wanted_s, How(name))
        assert (duration_s, times_s.tolist()) == (our_duration_s, our_times_s.tolist())
        assert np.abs(pixels.astype(int) - ours).max() <= TOLERATED.get((kind, name), 0), fps


@pytest.mark.parametrize("kind", CLIPS)
def test_decord_gives_the_same_frames_when_it_rests_between_chunks(tmp_path, kind):
    path = CLIPS[kind](tmp_path)
    with open_video(path, How("decord")) as video, open_video(path, How("decord")) as restless:
        for fps in (0.5, 3.7, 12.0):
            wanted_s = Grid(fps, video.duration_s).centres_s()
            for ours, theirs in zip(video.sample(wanted_s, 3), restless.sample(wanted_s, 3), strict=True):
                assert ours.times_s.tolist() == theirs.times_s.tolist()
                assert np.array_equal(ours.pixels, theirs.pixels)
                video.rest()


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


def cheapest(path: Path, fps: float, name: str) -> tuple[list[int], np.ndarray, Grid]:
    with open_video(path, How(name, "cheapest")) as video:
        grid = Grid(fps, video.duration_s)
        found = list(video.sample(video.cheapest_s(grid)))
    numbers = [number for frames in found for number in clips.read_numbers(frames.pixels)]
    return numbers, np.concatenate([frames.times_s for frames in found]), grid


@pytest.mark.parametrize("name", ["decord", *OTHERS])
@pytest.mark.parametrize("kind", ["steady", "uneven", "cut between", "open groups of h264", "ends early", "mkv"])
def test_the_cheapest_frame_begins_in_its_clip_and_is_the_key_frame_where_there_is_one(tmp_path, kind, name):
    here(name)
    path = CLIPS[kind](tmp_path)
    times_s, numbers = clips.shown_frames(path)
    packets = read_packets(path)
    keys_s = packets.timeline.starts_s[np.isin(packets.order, np.flatnonzero(packets.keys))]
    found, found_s, grid = cheapest(path, 2.0, name)
    assert found == clips.on_screen(times_s, numbers, found_s + 1e-4)
    for clip, at_s in enumerate(found_s):
        begin_s, end_s = clip / 2.0 - 1e-4, (clip + 1) / 2.0 - 1e-4
        inside = times_s[(times_s >= begin_s) & (times_s < min(end_s, grid.duration_s))]
        if len(inside):
            assert begin_s <= at_s < end_s
            keyed = [key_s for key_s in keys_s if begin_s <= key_s < end_s and key_s >= -1e-4]
            assert not keyed or np.abs(np.array(keyed) - at_s).min() < 1e-4
        else:
            assert at_s == pytest.approx(times_s[times_s <= grid.centres_s()[clip] + 1e-6].max(), abs=1e-4)


def test_without_a_key_frame_the_fewest_packets_decide(tmp_path):
    path = clips.make_clip(tmp_path / "a.mp4", clips.steady(100), options={"g": "250", "bf": "0"})
    # Frames 0, 25, 50, 75 begin the clips of a second, and nothing within a clip is nearer to the only key frame.
    assert cheapest(path, 1.0, "pyav")[0] == [0, 25, 50, 75]


def decoded_packets(path: Path, wanted_s, monkeypatch) -> int:
    """How many frames the decoder gives back before the colours of any are converted."""
    from costl.pipeline.decode import pyav_backend as av_video

    count = 0
    frames = av_video._Reader.frames

    def counted(self, start, stop, *, needed):
        nonlocal count
        for frame in frames(self, start, stop, needed=needed):
            count += 1
            yield frame

    monkeypatch.setattr(av_video._Reader, "frames", counted)
    with open_video(path, How("pyav")) as video:
        count = 0
        list(video.sample(wanted_s))
    return count


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_pyav_decodes_neither_b_frames_that_nobody_needs_nor_groups_that_nobody_wants(tmp_path, monkeypatch, codec):
    parameters = {
        f"{codec.removeprefix('lib')}-params": "bframes=3:b-adapt=0:b-pyramid=0:scenecut=0:keyint=48:min-keyint=48"
    }
    path = clips.make_clip(tmp_path / "a.mp4", clips.steady(480), codec=codec, options={"g": "48", **parameters})
    # The last frames of the first and of the eighth group: at most 48 packets each, of which one in four is needed.
    assert decoded_packets(path, [1.84, 15.28], monkeypatch) < 2 * 48 / 2


def test_a_frame_that_does_not_come_is_replaced_by_the_one_before_and_counted(tmp_path, monkeypatch):
    from costl.pipeline.decode import pyav_backend as av_video

    path = clips.make_clip(tmp_path / "a.mp4", clips.steady(100))
    frames = av_video._Reader.frames
    lost = {round(k * 3600) for k in (40, 76, 77)}
    monkeypatch.setattr(
        av_video._Reader,
        "frames",
        lambda *a, **b: (f for f in frames(*a, **b) if f.pts not in lost),
    )
    with open_video(path, How("pyav")) as video:
        numbers = [n for f in video.sample(np.arange(1.0, 99.0) / 25, 10) for n in clips.read_numbers(f.pixels)]
        assert video.repaired == 3
    assert numbers == [{40: 39, 76: 75, 77: 75}.get(k, k) for k in range(1, 99)]
    lost |= {round(k * 3600) for k in range(80, 100)}
    with open_video(path, How("pyav")) as video, pytest.raises(VideoError, match="damaged"):
        list(video.sample(np.arange(100.0) / 25))


@pytest.mark.parametrize("name", ["decord", *OTHERS])
@pytest.mark.parametrize(("turns", "size"), [(0, (67, 89)), (1, (89, 67))])
def test_a_decoder_scales_upright_frames_to_the_size_that_the_network_wants(tmp_path, name, turns, size):
    here(name)
    path = clips.rotate(clips.make_clip(tmp_path / "a.mp4", clips.steady(30), size=(96, 128)), turns)
    how = How(name, resize_to=Target("shortest", (67, 67)))
    pixels, _, _ = pictures_at(path, [0.3], how)
    assert pixels.shape[1:3] == size and clips.read_number(np.rot90(pixels[0], turns)) == 7
    # What would only grow is left to the device.
    assert pictures_at(path, [0.3], How(name, resize_to=Target("shortest", (224, 224))))[0].shape[1] in (96, 128)


def test_the_fingerprint_tells_families_apart_and_not_decoders():
    target = Target("shortest", (224, 224))
    assert How("decord").fingerprint() == How("pyav").fingerprint() == How("torchcodec").fingerprint()
    assert How("torchcodec:cuda").fingerprint()["decoder"] == "nvdec"
    assert {How(name, resize_to=target).fingerprint()["decoder"] for name in DECODERS} == set(DECODERS)
    assert How("pyav", "cheapest", target).fingerprint() == {
        "decoder": "pyav",
        "sampling": "cheapest",
        "resize": "decoder",
    }


def test_auto_is_the_first_that_works_and_what_does_not_says_what_to_install(monkeypatch):
    assert resolve("auto") == FASTEST_FIRST[0]
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(UsageError, match=r"decoder torchcodec does not work here: .*pip install"):
            resolve("torchcodec")
    with pytest.raises(UsageError, match="expected one of decord, pyav"):
        resolve("opencv")
    assert opener("decord").__name__ == "DecordVideo"


@pytest.mark.parametrize("name", ["vid1.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv", "charades.mp4", "01_dog.mp4"])
def test_real_videos_give_every_decoder_the_same_frames(name):
    path = REAL_VIDEOS / name
    if not path.exists():
        pytest.skip(f"no real video at {path}")
    wanted_s = lambda duration_s: Grid(1.0, duration_s).centres_s()  # noqa: E731
    pixels, times_s, _ = pictures_at(path, wanted_s, How("decord"))
    ours, our_times_s, _ = pictures_at(path, wanted_s, How("pyav"))
    assert times_s.tolist() == our_times_s.tolist() and np.array_equal(pixels, ours)
