"""A collection of good, damaged and fake videos: how each is written, and the row of the cache that extraction must give.

`CASES` is the list to read. Each case writes one file, folder, pipe or link at a path.
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
from numbered_videos import (
    cut_without_decoding,
    draw_number,
    frame_times,
    largest_video_stream,
    make_audio_only,
    make_video,
    set_rotation,
    variable_frame_times,
)

Writer = Callable[[Path], object]
DECODERS = ("decord", "pyav", "torchcodec")
OK, EITHER = "ok", "either"
DAMAGED = "damaged, cannot be decoded between"
TRUNCATED = "truncated, the file ends before its data does"
NO_INDEX = "truncated, it has no index"
NOT_A_FILE = "not a regular file"
NOT_A_VIDEO = "not a video that can be opened"


@dataclass(frozen=True)
class VideoCase:
    """One file of the collection: the `status` of its row, and a fragment of its `reason` if it has no features.

    `encoder` is the codec that `write` needs.
    """

    name: str
    write: Writer
    status: str = OK
    reason: str = ""
    encoder: str = "libx264"


# Good videos


def video(times_s: list[float] | None = None, **options) -> Writer:
    return lambda path: make_video(path, frame_times(60) if times_s is None else times_s, **options)


def rotated(turns: int) -> Writer:
    return lambda path: set_rotation(make_video(path, frame_times(40), size=(96, 128)), turns)


def cut_by_edit_list(start_s: float, group: int) -> Writer:
    def write(path: Path) -> None:
        options = {"g": str(group)}
        whole = make_video(path.with_suffix(".whole"), frame_times(60), options=options, container_format="mp4")
        cut_without_decoding(whole, path, start_s)
        whole.unlink()

    return write


def ends_early(path: Path) -> None:
    """The edit list shows only the first 55 % of the frames."""
    make_video(path, frame_times(60))
    patch(path, b"elst", 12, lambda ticks: int(ticks * 0.55))


def two_streams(path: Path) -> None:
    """The second stream is the main video; the first is smaller and has other frame numbers."""
    sizes = [(32, 32), (48, 64)]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"preset": "veryfast"}) for _ in sizes]
        for stream, (height, width) in zip(streams, sizes, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(60):
            for stream, (height, width) in zip(streams, sizes, strict=True):
                pixels = draw_number(number + (300 if stream is streams[0] else 0), height, width)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def declares_too_much_mp4(path: Path) -> None:
    """Every count and length in the header is four times too large."""
    make_video(path, frame_times(60))
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20), (b"stts", 8)):
        patch(path, box, offset + 4, lambda value: value * 4)


def declares_too_much_avi(path: Path) -> None:
    """The headers declare 6000 frames instead of 60."""
    make_video(path, frame_times(60), codec="mpeg4", options={"b": "4000000"}, ticks=25)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, 6000)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 6000)
    path.write_bytes(data)


def patch(path: Path, box: bytes, offset: int, change: Callable[[int], int]) -> None:
    """Change the 32-bit number `offset` bytes after the start of a box's four letters."""
    data = bytearray(path.read_bytes())
    position = data.index(box) + offset
    value = struct.unpack_from(">I", data, position)[0]
    struct.pack_into(">I", data, position, change(value))
    path.write_bytes(data)


# Damaged videos


def content(data: bytes) -> Writer:
    return lambda path: path.write_bytes(data)


def damaged(change: Callable[[bytes], bytes], frames: int = 150, **options) -> Writer:
    def write(path: Path) -> None:
        whole = make_video(path, frame_times(frames), **options)
        path.write_bytes(change(whole.read_bytes()))

    return write


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def overwritten(data: bytes) -> bytes:
    """A thousand bytes in the middle are overwritten."""
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 1000 + data[middle + 1000 :]


def flipped(seed: int, below: int | None = None) -> Callable[[bytes], bytes]:
    """Eight bytes are changed; with `below`, only in the first `below` bytes."""

    def change(data: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        changed = bytearray(data)
        for position in rng.integers(0, below or len(data), size=8):
            changed[position] ^= int(rng.integers(1, 256))
        return bytes(changed)

    return change


FASTSTART = {"movflags": "faststart"}
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nsteady.mp4\n#EXT-X-ENDLIST\n"


# Not regular files


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def broken_link(path: Path) -> None:
    path.symlink_to("missing.mp4")


def link_to_a_video(path: Path) -> None:
    make_video(path.with_suffix(".target"), frame_times(30), container_format="mp4")
    path.symlink_to(path.with_suffix(".target").name)


def pipe(path: Path) -> None:
    os.mkfifo(path)


OPEN_GROUPS = "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:b-adapt=0:log-level=0"

# Sorted by name, fewer than twenty failures follow each other; more would stop the extraction.
CASES = (
    # good videos of different kinds
    VideoCase("steady.mp4", video()),
    VideoCase("in-mov.mov", video()),
    VideoCase("in-flv.flv", video()),
    VideoCase("in-ts.ts", video()),
    VideoCase("variable-rate.mp4", video(variable_frame_times(40))),
    VideoCase("variable-rate-in-mkv.mkv", video(variable_frame_times(40, seed=1))),
    VideoCase("one-frame.mp4", video([0.0])),
    VideoCase("one-frame-in-mkv.mkv", video([0.0])),
    VideoCase("b-frames-none.mp4", video(options={"bf": "0"})),
    VideoCase("b-frames-5.mp4", video(options={"bf": "5", "g": "40", "x264-params": "b-pyramid=normal:b-adapt=0"})),
    VideoCase("open-groups.mp4", video(options={"x264-params": OPEN_GROUPS})),
    VideoCase("one-group.mp4", video(options={"g": "250"})),
    VideoCase("rotated-090.mp4", rotated(1)),
    VideoCase("rotated-180.mp4", rotated(2)),
    VideoCase("rotated-270.mp4", rotated(3)),
    VideoCase("odd-63x47.mp4", video(size=(47, 63), pixel_format="yuv444p")),
    VideoCase("ten-bits.mp4", video(codec="libx265", pixel_format="yuv420p10le", options={"x265-params": "log-level=0"}),
              encoder="libx265"),
    VideoCase("hevc.mp4", video(codec="libx265", options={"x265-params": OPEN_GROUPS}), encoder="libx265"),
    VideoCase("vp9.webm", video(codec="libvpx-vp9", options={"bf": "0", "cpu-used": "8"}), encoder="libvpx-vp9"),
    VideoCase("av1.mp4", video(codec="libsvtav1", options={"bf": "0", "preset": "12"}), encoder="libsvtav1"),
    VideoCase("mpeg4.mp4", video(codec="mpeg4", ticks=25_000, options={"b": "4000000"}), encoder="mpeg4"),
    VideoCase("without-times.avi", video(ticks=25)),
    VideoCase("two-streams.mp4", two_streams),
    VideoCase("with-sound.mp4", video(audio=True)),
    VideoCase("late-start.mp4", video(frame_times(40, start_s=1.4))),
    VideoCase("late-start-in-mkv.mkv", video(frame_times(40, start_s=1.4))),
    VideoCase("edits-at-a-key-frame.mp4", cut_by_edit_list(0.4, 10)),
    VideoCase("edits-between-key-frames.mp4", cut_by_edit_list(0.7, 25)),
    VideoCase("edits-far-in.mp4", cut_by_edit_list(1.5, 100)),
    VideoCase("edits-end-early.mp4", ends_early),
    VideoCase("declares-too-much.mp4", declares_too_much_mp4),
    VideoCase("declares-too-much-in-avi.avi", declares_too_much_avi),
    # names
    VideoCase("ein Vidéo mit Namen.mp4", video()),
    VideoCase("日本語 🐈.mp4", video()),
    VideoCase("line\nbreak.mp4", video()),
    VideoCase("-leading --dash.mp4", video()),
    VideoCase("quote' \"and;$(touch x)`.mp4", video()),
    VideoCase("100%25.mp4", video()),
    VideoCase(os.fsdecode(b"not \xff UTF-8.mp4"), video(), "failed", "its name is not valid UTF-8"),
    VideoCase("UPPER.MP4", video(container_format="mp4")),
    VideoCase("link.mp4", link_to_a_video),
    # not videos
    VideoCase("empty.mp4", content(b""), "failed", "empty (0 bytes)"),
    VideoCase("text.mp4", content(b"hello, I am not a video at all"), "failed", "its content is text"),
    VideoCase("playlist.mp4", content(PLAYLIST), "failed", "its content is text"),
    VideoCase("noise.mp4", content(np.random.default_rng(0).bytes(5000)), "failed", NOT_A_VIDEO),
    VideoCase("sound-only.mp4", make_audio_only, "failed", "no video stream"),
    VideoCase("pipe.mp4", pipe, "failed", NOT_A_FILE),
    VideoCase("loop.mp4", link_to_itself, "failed", "Too many levels of symbolic links"),
    VideoCase("dangling.mp4", broken_link, "failed", "a broken link"),
    # truncated and damaged
    *(VideoCase(f"cut-last-{share:.0%}.mp4", damaged(cut(share)), "failed", TRUNCATED) for share in (0.02, 0.3, 0.7, 0.95)),
    VideoCase("without-an-index.mp4", damaged(lambda data: data[: data.index(b"moov") - 4]), "failed", NO_INDEX),
    *(VideoCase(f"cut-first-{share:.0%}.mp4", damaged(cut(share), container_options=FASTSTART), "failed", TRUNCATED)
      for share in (0.6, 0.8, 0.99)),
    *(VideoCase(f"cut-in-mkv-{share:.0%}.mkv", damaged(cut(share)), "failed", TRUNCATED) for share in (0.1, 0.5, 0.7, 0.99)),
    VideoCase("cut-in-webm.webm", damaged(cut(0.6), frames=40, codec="libvpx-vp9", options={"bf": "0", "cpu-used": "8"}),
              "failed", TRUNCATED, encoder="libvpx-vp9"),
    VideoCase("cut-in-avi.avi", damaged(cut(0.6), codec="mpeg4", options={"b": "4000000"}, ticks=25), "failed", TRUNCATED),
    VideoCase("overwritten.mp4", damaged(overwritten, frames=300), "failed", DAMAGED),
    # features or a reason, depending on the decoder; no hang, no crash, no effect on other videos
    *(VideoCase(f"flipped-first-{seed:02}.mp4", damaged(flipped(seed, 3000), 60, container_options=FASTSTART), EITHER)
      for seed in range(6)),
    *(VideoCase(f"flipped-{seed:02}.mp4", damaged(flipped(seed), 60), EITHER) for seed in range(6)),
    *(VideoCase(f"flipped-in-mkv-{seed:02}.mkv", damaged(flipped(seed), 60), EITHER) for seed in range(4)),
)  # fmt: skip


def write_collection(folder: Path) -> dict[str, VideoCase]:
    """Write every case whose encoder is available into `folder`; returns them by file name."""
    folder.mkdir(parents=True)
    cases = [case for case in CASES if can_encode(case.encoder)]
    for case in cases:
        case.write(folder / case.name)
    return {case.name: case for case in cases}


def can_encode(codec: str) -> bool:
    try:
        return bool(av.Codec(codec, "w"))
    except av.codec.codec.UnknownCodecError:
        return False


def expected_times_s(times_s: np.ndarray, wanted_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(begin of the frame on screen at each wanted time, half of its length), from the begins `times_s` of all frames."""
    indices = frame_indices_at(times_s, wanted_s)
    lengths_s = np.diff(times_s, append=times_s[-1] + 0.04)
    return times_s[indices], lengths_s[indices] / 2


def frame_indices_at(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """The index of the frame on screen at each wanted time, from the begins `times_s` of all frames."""
    return np.maximum(np.searchsorted(times_s, wanted_s + 1e-6, side="right") - 1, 0)


def pyav_times_s(path: Path) -> np.ndarray:
    """When each visible frame begins, in seconds since the first; PyAV decodes them all.

    The frames of an AVI, which stores no times, are counted at its frame rate.
    """
    with av.open(str(path)) as container:
        stream = largest_video_stream(container)
        frames = list(container.decode(stream))
        if "avi" in container.format.name:
            return np.arange(len(frames)) / float(stream.average_rate)
    times_s = np.array([float(frame.pts * frame.time_base) for frame in frames])
    return times_s - times_s[0]


def ffprobe_times_s(path: Path) -> np.ndarray:
    """When each visible frame begins, in seconds since the first, as ffprobe gives it.

    For an AVI, ffprobe derives the times from the packets. It gives none for the frames that the decoder returns after the
    last packet; these follow at the frame rate.
    """
    entries = "stream=avg_frame_rate:frame=best_effort_timestamp_time"
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", "--", path]
    output = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    frames = output["frames"]
    times = [float(frame["best_effort_timestamp_time"]) for frame in frames if "best_effort_timestamp_time" in frame]
    missing = frames[len(times) :]
    assert not any("best_effort_timestamp_time" in frame for frame in missing), f"{path}: a time is missing in between"
    assert not missing or path.suffix == ".avi", f"{path}: ffprobe gives no time for {len(missing)} frames"
    frame_s = float(1 / Fraction(output["streams"][0]["avg_frame_rate"]))
    times += [times[-1] + k * frame_s for k in range(1, len(missing) + 1)]
    return np.array(times) - times[0]


def skip_without(decoder: str) -> None:
    from costl.pipeline.decode.backends import resolve
    from costl.pipeline.errors import UsageError

    try:
        resolve(decoder)
    except UsageError as error:
        pytest.skip(str(error))
