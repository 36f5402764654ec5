"""A zoo of videos, made on the spot: every animal with its maker, the decoders it is for, and the row it must end as.

`ZOO` is the list to read. A maker writes one file (or what only looks like one) at the path it is given.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import videos as clips

Make = Callable[[Path], object]
DECODERS = ("decord", "pyav", "torchcodec")
OK, EITHER = "ok", "either"
DAMAGED = r"damaged, cannot be decoded between"
TRUNCATED = "truncated, the file ends before its data does"
NO_INDEX = "truncated, it has no index"
NO_FILE = "not a regular file"
NO_VIDEO = "not a video that can be opened"


@dataclass(frozen=True)
class Animal:
    """One file of the zoo and what becomes of it: `status` of its row, a fragment of the `reason` where it has no features.

    `encoder` is what the maker needs; `unless` names decoders that cannot read it, with their own reason.
    """

    name: str
    make: Make
    status: str = OK
    reason: str = ""
    encoder: str = "libx264"
    unless: tuple[tuple[str, str], ...] = ()

    def expected(self, decoder: str) -> tuple[str, str]:
        """(status, fragment of the reason) with this decoder."""
        other = dict(self.unless).get(decoder)
        return ("failed", other) if other else (self.status, self.reason)


# Makers of whole videos


def clip(times_s: list[float] | None = None, **options) -> Make:
    return lambda path: clips.make_clip(path, clips.steady(60) if times_s is None else times_s, **options)


def turned(turns: int) -> Make:
    return lambda path: clips.rotate(clips.make_clip(path, clips.steady(40), size=(96, 128)), turns)


def cut_by_edit_list(start_s: float, group: int) -> Make:
    def make(path: Path) -> None:
        whole = clips.make_clip(path.with_suffix(".whole"), clips.steady(60), options={"g": str(group)}, form="mp4")
        clips.cut_without_decoding(whole, path, start_s)
        whole.unlink()

    return make


def ends_early(path: Path) -> None:
    """The edit list shows only the first 55 % of what is there."""
    clips.make_clip(path, clips.steady(60))
    patch(path, b"elst", 12, lambda ticks: int(ticks * 0.55))


def two_streams(path: Path) -> None:
    """The film second, and first a small one whose pictures have other numbers."""
    sizes = [(32, 32), (48, 64)]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"preset": "veryfast"}) for _ in sizes]
        for stream, (height, width) in zip(streams, sizes, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(60):
            for stream, (height, width) in zip(streams, sizes, strict=True):
                painted = clips.paint(number + (300 if stream is streams[0] else 0), height, width)
                frame = av.VideoFrame.from_ndarray(painted, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def over_reported_mp4(path: Path) -> None:
    """Every place of the header that counts promises four times the frames and the length."""
    clips.make_clip(path, clips.steady(60))
    for box, at in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20), (b"stts", 8)):
        patch(path, box, at + 4, lambda value: value * 4)


def over_reported_avi(path: Path) -> None:
    clips.make_clip(path, clips.steady(60), codec="mpeg4", options={"b": "4000000"}, ticks=25)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, 6000)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 6000)
    path.write_bytes(data)


def patch(path: Path, box: bytes, at: int, change: Callable[[int], int]) -> None:
    """Changes a 32-bit number `at` bytes behind the four letters of a box."""
    data = bytearray(path.read_bytes())
    place = data.index(box) + at
    struct.pack_into(">I", data, place, change(struct.unpack_from(">I", data, place)[0]))
    path.write_bytes(data)


# Makers of damage


def holding(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def damaged(change: Callable[[bytes], bytes], frames: int = 150, **options) -> Make:
    def make(path: Path) -> None:
        whole = clips.make_clip(path, clips.steady(frames), **options)
        path.write_bytes(change(whole.read_bytes()))

    return make


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def blanked(data: bytes) -> bytes:
    """A thousand bytes in the middle are gone."""
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 1000 + data[middle + 1000 :]


def flipped(seed: int, below: int | None = None) -> Callable[[bytes], bytes]:
    """Eight bytes are others; with `below`, all of them at the start."""

    def change(data: bytes) -> bytes:
        dice, changed = np.random.default_rng(seed), bytearray(data)
        for place in dice.integers(0, below or len(data), size=8):
            changed[place] ^= int(dice.integers(1, 256))
        return bytes(changed)

    return change


FASTSTART = {"movflags": "faststart"}
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nsteady.mp4\n#EXT-X-ENDLIST\n"


# What only looks like a file


def folder(path: Path) -> None:
    path.mkdir()
    clips.make_clip(path / "inside.mp4", clips.steady(5))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere.mp4")


def link_to_a_film(path: Path) -> None:
    clips.make_clip(path.with_suffix(".film"), clips.steady(30), form="mp4")
    path.symlink_to(path.with_suffix(".film").name)


def pipe(path: Path) -> None:
    os.mkfifo(path)


LACKS_AV1 = (("decord", "no video stream that decord"),)
NEEDS_TIMES = (("torchcodec", "no timestamps, which torchcodec needs"),)
OPEN_GROUPS = "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:b-adapt=0:log-level=0"

# In the order of their names an extraction meets no twenty failures in a row, which would stop it.
ZOO = (
    # whole, each in its own way
    Animal("steady.mp4", clip()),
    Animal("in-mov.mov", clip()),
    Animal("in-flv.flv", clip()),
    Animal("uneven.mp4", clip(clips.uneven(40))),
    Animal("uneven-in-mkv.mkv", clip(clips.uneven(40, seed=1))),
    Animal("one-frame.mp4", clip([0.0])),
    Animal("one-frame-in-mkv.mkv", clip([0.0])),
    Animal("b-frames-none.mp4", clip(options={"bf": "0"})),
    Animal("b-frames-5.mp4", clip(options={"bf": "5", "g": "40", "x264-params": "b-pyramid=normal:b-adapt=0"})),
    Animal("open-groups.mp4", clip(options={"x264-params": OPEN_GROUPS})),
    Animal("one-group.mp4", clip(options={"g": "250"})),
    Animal("turned-090.mp4", turned(1)),
    Animal("turned-180.mp4", turned(2)),
    Animal("turned-270.mp4", turned(3)),
    Animal("odd-63x47.mp4", clip(size=(47, 63), pixel_format="yuv444p")),
    Animal("ten-bits.mp4", clip(codec="libx265", pixel_format="yuv420p10le", options={"x265-params": "log-level=0"}),
           encoder="libx265"),
    Animal("hevc.mp4", clip(codec="libx265", options={"x265-params": OPEN_GROUPS}), encoder="libx265"),
    Animal("vp9.webm", clip(codec="libvpx-vp9", options={"bf": "0", "cpu-used": "8"}), encoder="libvpx-vp9"),
    Animal("av1.mp4", clip(codec="libsvtav1", options={"bf": "0", "preset": "12"}), encoder="libsvtav1",
           unless=LACKS_AV1),
    Animal("mpeg4.mp4", clip(codec="mpeg4", ticks=25_000, options={"b": "4000000"}), encoder="mpeg4"),
    Animal("without-times.avi", clip(ticks=25), unless=NEEDS_TIMES),
    Animal("two-streams.mp4", two_streams),
    Animal("with-sound.mp4", clip(audio=True)),
    Animal("late-start.mp4", clip(clips.steady(40, start_s=1.4))),
    Animal("late-start-in-mkv.mkv", clip(clips.steady(40, start_s=1.4))),
    Animal("edits-at-a-key-frame.mp4", cut_by_edit_list(0.4, 10)),
    Animal("edits-between-key-frames.mp4", cut_by_edit_list(0.7, 25)),
    Animal("edits-far-in.mp4", cut_by_edit_list(1.5, 100)),
    Animal("edits-end-early.mp4", ends_early),
    Animal("over-reported.mp4", over_reported_mp4),
    Animal("over-reported-in-avi.avi", over_reported_avi, unless=NEEDS_TIMES),
    # names
    Animal("ein Vidéo mit Namen.mp4", clip()),
    Animal("日本語 🐈.mp4", clip()),
    Animal("line\nbreak.mp4", clip()),
    Animal("-leading --dash.mp4", clip()),
    Animal("quote' \"and;$(touch x)`.mp4", clip()),
    Animal("100%25.mp4", clip()),
    Animal(os.fsdecode(b"not \xff UTF-8.mp4"), clip(), "failed", "its name is not valid UTF-8"),
    Animal("UPPER.MP4", clip(form="mp4")),
    Animal("link.mp4", link_to_a_film),
    # no video at all
    Animal("empty.mp4", holding(b""), "failed", "empty (0 bytes)"),
    Animal("text.mp4", holding(b"hello, I am not a video at all"), "failed", "its content is text"),
    Animal("playlist.mp4", holding(PLAYLIST), "failed", "its content is text"),
    Animal("noise.mp4", holding(np.random.default_rng(0).bytes(5000)), "failed", NO_VIDEO),
    Animal("sound-only.mp4", clips.make_sound_only, "failed", "no video stream"),
    Animal("transport.ts", clip(), "failed", "an MPEG transport stream"),
    Animal("folder.mp4", folder, "failed", NO_FILE),
    Animal("pipe.mp4", pipe, "failed", NO_FILE),
    Animal("loop.mp4", link_to_itself, "failed", "Too many levels of symbolic links"),
    Animal("dangling.mp4", link_to_nothing, "failed", "a link to nothing"),
    # cut and broken
    *(Animal(f"cut-last-{share:.0%}.mp4", damaged(cut(share)), "failed", TRUNCATED) for share in (0.02, 0.3, 0.7, 0.95)),
    Animal("without-an-index.mp4", damaged(lambda data: data[: data.index(b"moov") - 4]), "failed", NO_INDEX),
    *(Animal(f"cut-first-{share:.0%}.mp4", damaged(cut(share), container_options=FASTSTART), "failed", TRUNCATED)
      for share in (0.6, 0.8, 0.99)),
    *(Animal(f"cut-in-mkv-{share:.0%}.mkv", damaged(cut(share)), "failed", TRUNCATED) for share in (0.1, 0.5, 0.7, 0.99)),
    Animal("cut-in-webm.webm", damaged(cut(0.6), frames=40, codec="libvpx-vp9", options={"bf": "0", "cpu-used": "8"}), "failed",
           TRUNCATED, encoder="libvpx-vp9"),
    Animal("cut-in-avi.avi", damaged(cut(0.6), codec="mpeg4", options={"b": "4000000"}, ticks=25), "failed", TRUNCATED),
    Animal("blanked.mp4", damaged(blanked, frames=300), "failed", DAMAGED),
    # features or one sentence, as the decoder can or cannot; neither hangs, crashes or takes the others with it
    *(Animal(f"flipped-first-{seed:02}.mp4", damaged(flipped(seed, 3000), 60, container_options=FASTSTART), EITHER)
      for seed in range(6)),
    *(Animal(f"flipped-{seed:02}.mp4", damaged(flipped(seed), 60), EITHER) for seed in range(6)),
    *(Animal(f"flipped-in-mkv-{seed:02}.mkv", damaged(flipped(seed), 60), EITHER) for seed in range(4)),
)  # fmt: skip


def populate(home: Path) -> dict[str, Animal]:
    """Makes every animal whose encoder is at hand in `home`; -> the animals by their file's name."""
    home.mkdir(parents=True)
    there = [animal for animal in ZOO if can_encode(animal.encoder)]
    for animal in there:
        animal.make(home / animal.name)
    return {animal.name: animal for animal in there}


def can_encode(codec: str) -> bool:
    try:
        return bool(av.Codec(codec, "w"))
    except av.codec.codec.UnknownCodecError:
        return False


def right_times_s(times_s: np.ndarray, wanted_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """When the frames on screen at `wanted_s` began, and half of how long each stays, given when all frames begin [n]."""
    which = np.maximum(np.searchsorted(times_s, wanted_s + 1e-6, side="right") - 1, 0)
    stays_s = np.diff(times_s, append=times_s[-1] + 0.04)
    return times_s[which], stays_s[which] / 2


def shown_s(path: Path) -> np.ndarray:
    """When each frame that is shown begins, seconds since the first, by PyAV decoding all of them in their order.

    A container without times counts its frames.
    """
    with av.open(str(path)) as container:
        stream = clips.largest(container)
        frames = list(container.decode(stream))
        if "avi" in container.format.name:
            return np.arange(len(frames)) / float(stream.average_rate)
    times_s = np.array([float(frame.pts * frame.time_base) for frame in frames])
    return times_s - times_s[0]


def probed_s(path: Path) -> np.ndarray:
    """The same by ffprobe."""
    show = ("-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "json")
    found = subprocess.run(["ffprobe", "-v", "error", *show, "--", path], capture_output=True, check=True, text=True)
    frames = json.loads(found.stdout)["frames"]
    times_s = np.array([float(frame["best_effort_timestamp_time"]) for frame in frames])
    return times_s - times_s[0]


def skip_without(decoder: str) -> None:
    from costl.pipeline.decode.backends import resolve
    from costl.pipeline.errors import UsageError

    try:
        resolve(decoder)
    except UsageError as error:
        pytest.skip(str(error))
