"""One video -> `Frames`: pixels with their true times, each the picture on screen at a wanted second.

decord is fast and honours rotation, but it returns wrong frames without a word in five cases, each met here:

    frame rate varies            frames are found by their timestamps, never by index = time x rate
    clip begins before its cut   the hidden frames count in the index but never come out: indices are shifted (`_plan`)
    clip ends before its data    asking past the edit list returns earlier frames: `edit_list_s` says where to stop
    open group of pictures       the frames shown just before a key frame are only reachable from the group before
    no timestamps (most .avi)    seeking lands anywhere: such files are read from the start, frame by frame
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np

from pipeline.editlist import edit_list_s, moov
from pipeline.errors import VideoError

LONGEST_S = 48 * 3600.0
WORST_REPAIRED = 0.05  # share of the wanted frames that may be replaced by their predecessor
_CHUNK = 32
# After a seek into an open group, decord counts wrong up to two frames past the key frame's place on screen, which is
# as many frames later as there are B-frames in a row (3 and 4 by default in x264 and x265).
_LEADING = 8
_DECODER_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)


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


class VideoFile:
    """An open video. Time 0 is the first frame a player shows, `duration_s` is where the last one goes away.

    `height` and `width` are those of the picture on screen (rotation applied). Raises VideoError, in one plain
    sentence, for anything that is not a whole video. Close it soon: decord reads ahead without a bound.
    """

    decoder = f"decord {decord.__version__}"

    def __init__(self, path: Path):
        self.repaired = 0  # frames that could not be decoded and were replaced by their predecessor
        self._path = path
        self._reader: decord.VideoReader | None = None
        _look_at(path)
        self._open()
        self._timeline = _timeline(self._decord(), path)
        self.duration_s = self._timeline.duration_s
        # An empty batch has the shape of the frames and decodes none.
        self.height, self.width = (int(side) for side in self._decord().get_batch([]).shape[1:3])

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder and everything it has read ahead. May be called twice."""
        self._reader = None

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = _CHUNK) -> Iterator[Frames]:
        """The frames on screen at `wanted_s` (rising seconds [t]), at most `chunk` at a time, at their own size.

        Times outside the video get its first or last frame. Raises VideoError when a frame cannot be decoded; a few
        (`WORST_REPAIRED`) are replaced by the frame before and counted in `repaired`.
        """
        indices = self._timeline.index_at(np.asarray(wanted_s, dtype=np.float64))
        assert (np.diff(indices) >= 0).all(), "wanted times must rise"
        allowed = max(1, int(WORST_REPAIRED * len(indices)))
        pictures = self._walk(indices, chunk) if self._timeline.from_start_only else self._seek(indices, chunk, allowed)
        for shown, pixels in pictures:
            yield Frames(pixels, self._timeline.starts_s[shown])

    def _decord(self) -> decord.VideoReader:
        assert self._reader is not None, "this VideoFile is closed"
        return self._reader

    def _open(self) -> None:
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # The least tolerance that is not none: decord raises as soon as it would give one frame for another.
            self._reader = decord.VideoReader(os.path.abspath(self._path), num_threads=1, fault_tol=1e-9)
        except (*_DECODER_ERRORS, AssertionError, UnicodeError) as error:
            raise VideoError(f"{self._path.name}: {_why_not_opened(self._path, error)}") from error

    def _seek(self, indices: np.ndarray, chunk: int, allowed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(frame numbers [n], pixels [n h w 3]) chunk by chunk, by way of the key frames."""
        last, picture = -1, np.empty(0, dtype=np.uint8)
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            try:
                # Never back: a second look at the same frame costs a whole group, and in a cut clip finds another one.
                unseen = wanted[wanted > last]
                pixels = self._batch(unseen, last) if len(unseen) else np.empty((0, *picture.shape), dtype=np.uint8)
                if len(unseen) < len(wanted):
                    pixels = np.concatenate([np.stack([picture] * (len(wanted) - len(unseen))), pixels])
                last, picture = int(wanted[-1]), pixels[-1].copy()
            except decord.DECORDLimitReachedError:
                wanted, pixels = self._one_by_one(wanted, allowed)
                self._open()
                last = -1
            except _DECODER_ERRORS as error:
                raise VideoError(self._damaged(wanted)) from error
            yield wanted, pixels

    def _batch(self, wanted: np.ndarray, last: int) -> np.ndarray:
        unique, places = np.unique(wanted, return_inverse=True)
        requests, kept = self._timeline.plan(unique.tolist(), last)
        pixels = self._decord().get_batch(requests).asnumpy()
        ours = np.asarray(kept)[places]
        return pixels if len(ours) == len(pixels) and (np.diff(ours) == 1).all() else pixels[ours]

    def _one_by_one(self, wanted: np.ndarray, allowed: int) -> tuple[np.ndarray, np.ndarray]:
        """Each frame by itself; one that does not come is replaced by the nearest before it that does."""
        shown, pixels = [], []
        for index in wanted.tolist():
            for candidate in range(index, self._timeline.first - 1, -1):
                self._open()  # a reader that has failed once keeps failing
                try:
                    pixels.append(self._batch(np.array([candidate]), -1)[0])
                except decord.DECORDLimitReachedError as error:
                    self.repaired += candidate == index
                    if self.repaired > allowed or index - candidate > allowed:
                        raise VideoError(self._damaged(wanted)) from error
                except _DECODER_ERRORS as error:
                    raise VideoError(self._damaged(wanted)) from error
                else:
                    shown.append(candidate)
                    break
        return np.array(shown), np.stack(pixels)

    def _walk(self, indices: np.ndarray, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same for files that cannot be sought in: decode every frame from the start, keep the wanted ones."""
        self._open()
        picture, decoded = None, self._timeline.first
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            pixels = np.empty((len(wanted), self.height, self.width, 3), dtype=np.uint8)
            for row, index in enumerate(wanted.tolist()):
                try:
                    while decoded <= index:
                        picture = self._decord().next()
                        decoded += 1
                except (*_DECODER_ERRORS, StopIteration) as error:
                    raise VideoError(self._damaged(wanted)) from error
                assert picture is not None, "frame numbers start at the first shown frame"
                pixels[row] = picture.asnumpy()
            yield wanted, pixels

    def _damaged(self, wanted: np.ndarray) -> str:
        begin_s, end_s = self._timeline.starts_s[wanted[[0, -1]]]
        return (
            f"{self._path.name}: damaged, cannot be decoded between {begin_s:.1f} s and {end_s:.1f} s. "
            "Replace the file or remove it."
        )


@dataclass(frozen=True)
class _Timeline:
    """Which frame is on screen when. Frame numbers are decord's: all frames of the file in the order of their times."""

    starts_s: np.ndarray  # [n], 0 at the first shown frame, negative before it
    first: int
    last: int
    duration_s: float
    keys: np.ndarray
    from_start_only: bool
    grain_s: float  # decord gives times as float32: closer than this they are equal

    def index_at(self, wanted_s: np.ndarray) -> np.ndarray:
        """The last frame that begins at or before each wanted time, int [t]."""
        return np.clip(np.searchsorted(self.starts_s, wanted_s + self.grain_s, side="right") - 1, self.first, self.last)

    def plan(self, indices: Sequence[int], last: int) -> tuple[list[int], list[int]]:
        """What to ask decord for (rising) frame numbers: its numbers, and where in its answer ours are.

        `last` is the number this reader gave before, -1 for none.
        """
        requests: list[int] = []
        kept: list[int] = []
        # Up to here decord counts the frames that come out, from 0; after it all that are in the file.
        second = int(self.keys[self.keys > 0].min(initial=len(self.starts_s))) if self.first else 0
        group = self._key_before(last)
        for index in indices:
            key = self._key_before(index)
            hidden = self.first if index < second + _LEADING and index - self.first < second - 1 else 0
            if not hidden and key > max(second, group) and index - key < _LEADING:
                requests.append(key - 1)
            requests.append(index - hidden)
            kept.append(len(requests) - 1)
            group = key
        return requests, kept

    def _key_before(self, index: int) -> int:
        return int(self.keys[max(0, np.searchsorted(self.keys, index, side="right") - 1)]) if len(self.keys) else 0


def _timeline(reader: decord.VideoReader, path: Path) -> _Timeline:
    count = len(reader)
    keys = np.asarray(reader.get_key_indices(), dtype=np.int64)
    starts_s, ends_s = reader.get_frame_timestamp(range(count)).astype(np.float64).T
    # A missing timestamp comes out as some -1e17 s.
    if counted := not (np.abs(starts_s) < 1e9).all():
        rate = reader.get_avg_fps()
        if not 0 < rate < 1e4:
            raise VideoError(f"{path.name}: neither timestamps nor a frame rate. Convert it: ffmpeg -i IN OUT.mp4.")
        starts_s, ends_s = np.arange(count) / rate, (np.arange(count) + 1) / rate
    grain_s = 1e-6 + 2 * float(np.spacing(np.float32(max(-starts_s[0], ends_s[-1]))))
    first = int(np.searchsorted(starts_s, -grain_s))
    if first == count:
        raise VideoError(f"{path.name}: its edit list hides every frame. Convert it: ffmpeg -i IN OUT.mp4.")
    starts_s, ends_s = starts_s - starts_s[first], ends_s - starts_s[first]
    duration_s = min(_end_s(starts_s[first:], ends_s[-1]), edit_list_s(path) or np.inf)
    if duration_s > LONGEST_S:
        hours, most = duration_s / 3600, LONGEST_S / 3600
        raise VideoError(f"{path.name}: {hours:.0f} hours by its timestamps, at most {most:.0f} are read. Cut it.")
    last = max(first, int(np.searchsorted(starts_s, duration_s - grain_s)) - 1)
    hidden_key = bool(((keys > 0) & (keys <= first)).any())
    return _Timeline(starts_s, first, last, duration_s, keys, counted or hidden_key, grain_s)


def _end_s(starts_s: np.ndarray, last_end_s: float) -> float:
    """When the last frame goes away; where the file does not say, it stays as long as the others did."""
    if last_end_s > starts_s[-1]:
        return float(last_end_s)
    gaps = np.diff(starts_s)
    return float(starts_s[-1] + (np.median(gaps) if (gaps > 0).any() else 0.04))


def _look_at(path: Path) -> None:
    """Refuse what FFmpeg must not be shown, or would only answer with 'error reading'."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path.name}: not a regular file. Remove it from the folder.")
        with open(path, "rb") as file:
            head = file.read(400)
    except FileNotFoundError as error:
        raise VideoError(f"{path.name}: no such file.") from error
    except OSError as error:
        raise VideoError(f"{path.name}: cannot be read ({error.strerror}).") from error
    if not head:
        raise VideoError(f"{path.name}: empty (0 bytes). Download it again or remove it.")
    # A playlist by another name would have FFmpeg open the files and addresses it lists.
    if head.startswith((b"#EXTM3U", b"ffconcat")) or (_is_text(head[:16]) and not head.startswith(b"RIFF")):
        raise VideoError(f"{path.name}: not a video, its content is text. Remove it from the folder.")
    if _is_transport_stream(head):
        raise VideoError(
            f"{path.name}: an MPEG transport stream, in which decord cannot seek to the right frame. "
            "Repack it without loss: ffmpeg -i IN.ts -c copy OUT.mp4."
        )


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)


def _is_transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes that begin with 'G'; in .m2ts each has four bytes before it."""
    pairs = [head[begin : begin + size + 1 : size] for begin, size in ((0, 188), (4, 192))]
    return b"GG" in pairs


def _why_not_opened(path: Path, error: BaseException) -> str:
    said = str(error)
    if "cannot find video stream" in said:
        return f"no video stream that {VideoFile.decoder} can decode (sound only, or a codec it lacks such as AV1)."
    if "av_read_frame failed" in said:
        return "truncated, the file ends before its data does. Download it again or remove it."
    if isinstance(error, UnicodeError):
        return "its name is not valid UTF-8. Rename it."
    with open(path, "rb") as file:
        is_mp4 = file.read(8)[4:] == b"ftyp"
    if is_mp4 and not moov(path):
        return "truncated, it has no index (moov box). Download it again or remove it."
    return "not a video that can be opened. Replace the file or remove it."
