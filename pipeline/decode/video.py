"""What all decoders share: the `OpenVideo` interface, `Timeline` (which frame is on screen when), and checks before opening.

`backends.open_video` opens a video; the decoders are in `*_backend.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from costl.pipeline.decode.mp4 import declared_bytes, edit_list_duration_s, read_moov
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.videos import read_failure

MAX_DURATION_S = 48 * 3600.0
MAX_REPAIRED_SHARE = 0.05  # share of the wanted frames that may be replaced by the frame before
CHUNK_FRAMES = 32
TRUNCATED = "truncated, the file ends before its data does. Download it again or remove it."

Picture = tuple[int, np.ndarray]  # (index of the frame that was decoded, uint8 RGB [h w 3])


@dataclass(frozen=True)
class Frames:
    """Decoded frames: `pixels` uint8 RGB [t h w 3], and the seconds `times_s` float64 [t] at which each comes on screen."""

    pixels: np.ndarray
    times_s: np.ndarray

    def __post_init__(self) -> None:
        pixels, times_s = self.pixels, self.times_s
        assert pixels.ndim == 4 and pixels.shape[3] == 3 and pixels.dtype == np.uint8, pixels.shape
        assert times_s.dtype == np.float64 and times_s.shape == pixels.shape[:1], times_s.shape
        assert np.isfinite(times_s).all() and (np.diff(times_s) >= 0).all(), "times must be finite and in order"


class OpenVideo(Protocol):
    """An open video. Time 0 is the time 0 of players: the start of the container, which is that of its earliest stream.

    The first frame appears at `picture_start_s`, above 0 where the sound begins earlier, and the last one ends at `duration_s`.
    `height` and `width` are those of the returned frames, after rotation. `repaired` counts the frames that could not be
    decoded and were replaced by the frame before. `backends.open_video` opens a video and closes it.
    """

    decoder: str
    picture_start_s: float
    duration_s: float
    height: int
    width: int
    repaired: int

    def close(self) -> None:
        """Free the decoder and everything it has read ahead."""

    def stop_reading_ahead(self) -> None:
        """Stop decoding ahead. Call it between two chunks when the next one will not be taken soon."""

    def cheapest_times_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that costs least to decode (`packets.Packets.cheapest_times_s`)."""

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK_FRAMES) -> Iterator[Frames]:
        """The frames on screen at `wanted_s` (rising seconds [t]), at most `chunk` at a time.

        Times outside the video get its first or last frame. Raises VideoError when a frame cannot be decoded; a few
        (`MAX_REPAIRED_SHARE`) are replaced by the frame before and counted in `repaired`.
        """


@dataclass(frozen=True)
class Timeline:
    """Which of the `f` frames of a file is on screen when. Frames, hidden ones included, are numbered by their times."""

    path: Path
    starts_s: np.ndarray  # [f], counted from the container's start
    first: int
    last: int
    duration_s: float
    without_timestamps: bool  # then frame k is the k-th frame that the decoder returns
    time_resolution_s: float  # times are stored as float32: smaller differences count as equal

    @property
    def picture_start_s(self) -> float:
        """When the first visible frame appears."""
        return float(self.starts_s[self.first])

    def indices_at(self, wanted_s: Sequence[float] | np.ndarray) -> np.ndarray:
        """The last frame that begins at or before each wanted time (which must rise), int [t]."""
        wanted_s = np.asarray(wanted_s, dtype=np.float64)
        indices = np.searchsorted(self.starts_s, wanted_s + self.time_resolution_s, side="right") - 1
        assert (np.diff(indices) >= 0).all(), "wanted times must rise"
        return np.clip(indices, self.first, self.last)

    def sample(
        self,
        wanted_s: Sequence[float] | np.ndarray,
        chunk: int,
        decode: Callable[[np.ndarray, int], Iterator[Picture]],
    ) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, at most `chunk` at a time.

        `decode` is called once, with the distinct frame indices, which rise, and the number of frames that it may replace
        by the frame before. It gives a picture for each of them, in order.
        """
        indices = self.indices_at(wanted_s)
        pictures = decode(np.unique(indices), allowed_repairs(len(indices)))
        last_index = -1
        for begin in range(0, len(indices), chunk):
            rows: list[Picture] = []
            for index in indices[begin : begin + chunk].tolist():
                if index != last_index:
                    last_index = index
                    picture = next(pictures)
                rows.append(picture)
            decoded, pixels = zip(*rows, strict=True)
            yield Frames(np.stack(pixels), self.starts_s[list(decoded)])

    def damaged_error(self, indices: Iterable[int]) -> VideoError:
        """The error for a file in which some of the frames `indices` cannot be decoded."""
        seconds = self.starts_s[list(indices)]
        return VideoError(
            f"{self.path.name}: damaged, cannot be decoded between {seconds.min():.1f} s and {seconds.max():.1f} s. "
            "Replace the file or remove it."
        )


def build_timeline(
    path: Path, starts_s: np.ndarray, ends_s: np.ndarray, rate: float, *, picture_start_s: float = 0.0
) -> Timeline:
    """The timeline of a file from the times [f] of its frames in order, rounded to float32 as every decoder does.

    The times may count from anywhere. In the timeline the first visible frame appears at `picture_start_s`.
    Where times are not finite, frames are counted at `rate` frames a second. Raises VideoError for a video that never
    shows a frame, has neither times nor a rate, or is longer than `MAX_DURATION_S`.
    """
    count = len(starts_s)
    without_timestamps = not (np.abs(starts_s) < 1e9).all()
    if without_timestamps:
        if not 0 < rate < 1e4:
            raise VideoError(f"{path.name}: neither timestamps nor a frame rate. Convert it: ffmpeg -i IN OUT.mp4.")
        starts_s = np.arange(count) / rate
        ends_s = (np.arange(count) + 1) / rate
    time_resolution_s = 1e-6 + 2 * float(np.spacing(np.float32(max(-starts_s[0], ends_s[-1]))))
    first = int(np.searchsorted(starts_s, -time_resolution_s))
    if first == count:
        raise VideoError(f"{path.name}: its edit list hides every frame. Convert it: ffmpeg -i IN OUT.mp4.")
    starts_s, ends_s = starts_s - starts_s[first], ends_s - starts_s[first]
    duration_s = picture_start_s + _duration_s(starts_s[first:], ends_s[-1], edit_list_duration_s(path))
    starts_s += picture_start_s
    if duration_s > MAX_DURATION_S:
        hours, limit = duration_s / 3600, MAX_DURATION_S / 3600
        raise VideoError(f"{path.name}: {hours:.0f} hours by its timestamps, at most {limit:.0f} are read. Cut it.")
    last = max(first, int(np.searchsorted(starts_s, duration_s - time_resolution_s)) - 1)
    return Timeline(path, starts_s, first, last, duration_s, without_timestamps, time_resolution_s)


def _duration_s(starts_s: np.ndarray, last_end_s: float, edit_list_s: float | None) -> float:
    """When the last frame ends. Where the file does not give its length, it lasts as long as the median frame."""
    gaps = np.diff(starts_s)
    # The edit list is exact; the length that FFmpeg reports for the last packet depends on its version.
    if edit_list_s and edit_list_s <= starts_s[-1] + 2 * gaps.max(initial=0.0):
        return edit_list_s
    if last_end_s <= starts_s[-1]:
        last_end_s = starts_s[-1] + (np.median(gaps) if (gaps > 0).any() else 0.04)
    return float(min(last_end_s, edit_list_s or np.inf))


def allowed_repairs(wanted: int) -> int:
    """How many of `wanted` frames may be replaced by the frame before."""
    return max(1, int(MAX_REPAIRED_SHARE * wanted))


def refuse_unsafe(path: Path) -> None:
    """Raise VideoError for a file that FFmpeg must not open, or for which it would only report "error reading"."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path.name}: not a regular file. Replace it by a video, or remove it.")
        with open(path, "rb") as file:
            head = file.read(400)
        declared = declared_bytes(path)
        os.fspath(path.absolute()).encode()
    except UnicodeError as error:
        raise VideoError(f"{path.name}: its name is not valid UTF-8. Rename it.") from error
    except FileNotFoundError as error:
        if path.is_symlink():
            raise VideoError(f"{path.name}: a broken link. Restore its target or remove the link.") from error
        raise VideoError(f"{path.name}: no such file. Check its name.", status="error") from error  # the disk is gone
    except OSError as error:
        raise read_failure(path, error) from error
    if not head:
        raise VideoError(f"{path.name}: empty (0 bytes). Download it again or remove it.")
    # FFmpeg would open the files and addresses that a playlist lists, whatever the suffix of its name.
    if head.startswith((b"#EXTM3U", b"ffconcat")) or (_is_text(head[:16]) and not head.startswith(b"RIFF")):
        raise VideoError(f"{path.name}: not a video, its content is text. Replace it by a video, or remove it.")
    if status.st_size < declared:
        raise VideoError(f"{path.name}: {TRUNCATED}")


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)


def open_failure_reason(
    path: Path, default: str = "not a video that can be opened. Replace the file or remove it."
) -> str:
    """Why a decoder could not open a file: the end of an error message. `default` unless an MP4 lacks its index.

    Raises VideoError as `refuse_unsafe` does if the file was removed meanwhile.
    """
    try:
        with open(path, "rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
    except OSError:
        refuse_unsafe(path)
        raise
    if is_mp4 and not read_moov(path):
        return "truncated, it has no index (moov box). Download it again or remove it."
    return default
