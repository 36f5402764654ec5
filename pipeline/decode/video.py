"""One video -> `Frames`: pixels with their true times, each the picture on screen at a wanted second.

What every decoder shares is here: what a caller may ask of an open video (`OpenVideo`), which frame is on screen when
(`Timeline`), and what no decoder is shown. `decoders.open_video` opens one; `*_video.py` are the decoders themselves.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from costl.pipeline.decode.mp4 import edit_list_s, moov, promised_bytes
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid

LONGEST_S = 48 * 3600.0
WORST_REPAIRED = 0.05  # share of the wanted frames that may be replaced by their predecessor
CHUNK = 32
TRUNCATED = "truncated, the file ends before its data does. Download it again or remove it."
BAD_NAME = "its name is not valid UTF-8. Rename it."


@dataclass(frozen=True)
class Frames:
    """Pictures with the seconds at which they come on screen: `pixels` uint8 [t h w 3], `times_s` float64 [t]."""

    pixels: np.ndarray
    times_s: np.ndarray

    def __post_init__(self) -> None:
        pixels, times_s = self.pixels, self.times_s
        assert pixels.ndim == 4 and pixels.shape[3] == 3 and pixels.dtype == np.uint8, pixels.shape
        assert times_s.dtype == np.float64 and times_s.shape == pixels.shape[:1], times_s.shape
        assert np.isfinite(times_s).all() and (np.diff(times_s) >= 0).all(), "times must be finite and in order"


class OpenVideo(Protocol):
    """An open video. Time 0 is the first frame a player shows, `duration_s` is where the last one goes away.

    `height` and `width` are those of the pictures that come (rotation applied). `repaired` counts the frames that could
    not be decoded and were replaced by their predecessor. Opening raises VideoError, in one plain sentence, for
    anything that is not a whole video. Close it soon, and let it `rest` while its frames wait.
    """

    decoder: str
    duration_s: float
    height: int
    width: int
    repaired: int

    def __enter__(self) -> OpenVideo:
        """Itself; leaving the context closes it."""

    def __exit__(self, *_: object) -> None:
        """Close it."""

    def close(self) -> None:
        """Free the decoder and everything it has read ahead. May be called twice."""

    def rest(self) -> None:
        """Called between two chunks when the next one will not be taken soon: nothing may be decoded ahead meanwhile."""

    def cheapest_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that costs least to decode (`packets.Packets.cheapest_s`)."""

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK) -> Iterator[Frames]:
        """The frames on screen at `wanted_s` (rising seconds [t]), at most `chunk` at a time.

        Times outside the video get its first or last frame. Raises VideoError when a frame cannot be decoded; a few
        (`WORST_REPAIRED`) are replaced by the frame before and counted in `repaired`.
        """


@dataclass(frozen=True)
class Timeline:
    """Which frame is on screen when. Frames are numbered in the order of their times, hidden ones included."""

    starts_s: np.ndarray  # [n], 0 at the first shown frame, negative before it
    first: int
    last: int
    duration_s: float
    counted: bool  # without timestamps: the k-th frame that comes out is number k
    grain_s: float  # times are kept as float32: closer than this they are equal

    def index_at(self, wanted_s: Sequence[float] | np.ndarray) -> np.ndarray:
        """The last frame that begins at or before each wanted time (which must rise), int [t]."""
        wanted_s = np.asarray(wanted_s, dtype=np.float64)
        found = np.searchsorted(self.starts_s, wanted_s + self.grain_s, side="right") - 1
        assert (np.diff(found) >= 0).all(), "wanted times must rise"
        return np.clip(found, self.first, self.last)


def timeline(path: Path, starts_s: np.ndarray, ends_s: np.ndarray, rate: float) -> Timeline:
    """From the times [n] of all frames in their order, as every decoder rounds them (float32); `rate` where they are
    not finite. Raises VideoError for a video that never shows a frame, or one of absurd length.
    """
    count = len(starts_s)
    if counted := not (np.abs(starts_s) < 1e9).all():
        if not 0 < rate < 1e4:
            raise VideoError(f"{path.name}: neither timestamps nor a frame rate. Convert it: ffmpeg -i IN OUT.mp4.")
        starts_s, ends_s = np.arange(count) / rate, (np.arange(count) + 1) / rate
    grain_s = 1e-6 + 2 * float(np.spacing(np.float32(max(-starts_s[0], ends_s[-1]))))
    first = int(np.searchsorted(starts_s, -grain_s))
    if first == count:
        raise VideoError(f"{path.name}: its edit list hides every frame. Convert it: ffmpeg -i IN OUT.mp4.")
    starts_s, ends_s = starts_s - starts_s[first], ends_s - starts_s[first]
    duration_s = _end_s(starts_s[first:], ends_s[-1], edit_list_s(path))
    if duration_s > LONGEST_S:
        hours, most = duration_s / 3600, LONGEST_S / 3600
        raise VideoError(f"{path.name}: {hours:.0f} hours by its timestamps, at most {most:.0f} are read. Cut it.")
    last = max(first, int(np.searchsorted(starts_s, duration_s - grain_s)) - 1)
    return Timeline(starts_s, first, last, duration_s, counted, grain_s)


def allowed_repairs(wanted: int) -> int:
    """How many of so many frames may be replaced by their predecessor."""
    return max(1, int(WORST_REPAIRED * wanted))


def damaged(path: Path, begin_s: float, end_s: float) -> VideoError:
    """The error for frames between these seconds that do not come."""
    return VideoError(
        f"{path.name}: damaged, cannot be decoded between {begin_s:.1f} s and {end_s:.1f} s. "
        "Replace the file or remove it."
    )


def _end_s(starts_s: np.ndarray, last_end_s: float, edit_s: float | None) -> float:
    """When the last frame goes away; where the file does not say, it stays as long as the others did."""
    gaps = np.diff(starts_s)
    # The edit list is exact; what FFmpeg makes of the last packet's length depends on its version.
    if edit_s and edit_s <= starts_s[-1] + 2 * gaps.max(initial=0.0):
        return edit_s
    if last_end_s <= starts_s[-1]:
        last_end_s = starts_s[-1] + (np.median(gaps) if (gaps > 0).any() else 0.04)
    return float(min(last_end_s, edit_s or np.inf))


def look_at(path: Path) -> None:
    """Refuse what FFmpeg must not be shown, or would only answer with 'error reading'."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path.name}: not a regular file. Remove it from the folder.")
        with open(path, "rb") as file:
            head = file.read(400)
        path.name.encode()
    except UnicodeError as error:
        raise VideoError(f"{path.name}: {BAD_NAME}") from error
    except FileNotFoundError as error:
        what = "a link to nothing. Put its video back or remove the link." if path.is_symlink() else "no such file."
        raise VideoError(f"{path.name}: {what}") from error
    except OSError as error:
        raise VideoError(f"{path.name}: cannot be read ({error.strerror}).") from error
    if not head:
        raise VideoError(f"{path.name}: empty (0 bytes). Download it again or remove it.")
    # A playlist by another name would have FFmpeg open the files and addresses it lists.
    if head.startswith((b"#EXTM3U", b"ffconcat")) or (_is_text(head[:16]) and not head.startswith(b"RIFF")):
        raise VideoError(f"{path.name}: not a video, its content is text. Remove it from the folder.")
    if status.st_size < promised_bytes(path):
        raise VideoError(f"{path.name}: {TRUNCATED}")
    if _is_transport_stream(head):
        raise VideoError(
            f"{path.name}: an MPEG transport stream, in which no decoder seeks to the right frame. "
            "Repack it without loss: ffmpeg -i IN.ts -c copy OUT.mp4."
        )


def why_no_video(path: Path, otherwise: str = "not a video that can be opened. Replace the file or remove it.") -> str:
    """The end of a sentence about a file that no decoder could open, or in which it found no pictures (`otherwise`)."""
    with open(path, "rb") as file:
        is_mp4 = file.read(8)[4:] == b"ftyp"
    if is_mp4 and not moov(path):
        return "truncated, it has no index (moov box). Download it again or remove it."
    return otherwise


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)


def _is_transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes that begin with 'G'; in .m2ts each has four bytes before it."""
    pairs = [head[begin : begin + size + 1 : size] for begin, size in ((0, 188), (4, 192))]
    return b"GG" in pairs
