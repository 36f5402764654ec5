"""A store of features of single videos, by content: each video is extracted once, whatever its file is called.

FOLDER/<settings>/<content>.h5 and .h5.parts/            a cache of one video, with the tokens of its queries
FOLDER/<settings>/<content>.windows.h5 and .h5.parts/    a cache of windows of a long video, each as a video of its own
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.words import stored_words
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.backends import FASTEST
from costl.pipeline.encode.reload import reload_encoder
from costl.pipeline.errors import CacheError, VideoError
from costl.pipeline.fingerprint import digest
from costl.pipeline.library.store_limit import DEFAULT_BYTES, mark_used, remove_least_used
from costl.pipeline.options import FrameOptions, RunOptions, TokenFormat
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.queries import encode_new, encode_queries
from costl.pipeline.run.engine import cache_contents, extract_into, has_frames_of_today
from costl.pipeline.videos import Video, content_hash, file_stamp, window_name

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

_MAX_QUERIES = 512  # per video; the oldest are removed first


@dataclass(kw_only=True)
class FeatureStore:
    """Features made with the settings of `fingerprint` by the CLIP of `model` and `weights`; threads may share a store.

    One video is extracted at a time, and stored videos do not wait for it. CLIP is loaded on `device` when there is
    something to encode, and refused unless its fingerprint is the same. `owner` names the model that was trained on such
    features, for error messages. `workers`: decode processes. `max_bytes`: the size of all features in `folder`, above which
    those that were not used for the longest time are removed. Raises UsageError for another number than one from 1 on,
    CacheError for a fingerprint of features that costl did not extract.
    """

    folder: Path
    fingerprint: Mapping[str, Any]
    model: str
    weights: str
    device: str
    owner: str
    workers: int | None = None
    max_bytes: int = DEFAULT_BYTES

    def __post_init__(self) -> None:
        if not {"model", "weights", "preprocess", "precision", "fps"} <= self.fingerprint.keys():
            raise CacheError(
                f"{self.owner} was trained on features that were not made here ({', '.join(sorted(self.fingerprint))}), so "
                "no video can be turned into such features. Train on a cache of costl extract."
            )
        # A model reads the last layer only, also of an old cache that has several.
        one_layer = replace(TokenFormat.from_fields(self.fingerprint), layers=1)
        # Weights and preprocessing are compared by content, so another release of open_clip is accepted. Its features
        # still get a folder of their own.
        self.fingerprint = {**self.fingerprint, **asdict(one_layer), "open_clip": version("open_clip_torch")}
        self.folder = self.folder / digest(self.fingerprint)[:16]
        self._run_options = RunOptions(workers=self.workers)
        self._encoder: CLIPEncoder | None = None
        self._loading, self._extracting = threading.Lock(), threading.Lock()
        self._of_video: dict[Path, threading.Lock] = {}
        self._hashes: dict[tuple[Any, ...], str] = {}

    def features(
        self, video: Path, queries: Sequence[str], *, progress: ProgressCallback | None = None
    ) -> tuple[CacheReader, str]:
        """(cache, the video's name in it) with the features of the video and the tokens of `queries`, extracted if missing.

        The name is that of the file when it was extracted. Raises VideoError for a video that cannot be used, UsageError
        for a query without a word or weights that cannot be loaded, CacheError for the weights of another CLIP or a folder
        that cannot be written.
        """
        features = self._features(Video(self._content_hash(video), video), queries, progress)
        return features, features.video_ids[0]

    def window_features(
        self, video: Path, queries: Sequence[str], windows: Sequence[range], *, progress: ProgressCallback | None = None
    ) -> CacheReader:
        """The features of these windows of a video, ranges of its clips, each as a video called `window_name(window)`.

        Only missing windows are decoded. A frame is the one that `features` has for the same clip. Times in the cache
        count from the start of the video, durations are those of the windows. Windows that reach past the end of the video
        are cut there. Raises as `features` does, and VideoError for a window that begins after the end.
        """
        return self._features(Video(self._content_hash(video), video, windows=tuple(windows)), queries, progress)

    def _features(self, video: Video, queries: Sequence[str], progress: ProgressCallback | None) -> CacheReader:
        path = self.folder / (f"{video.id}.windows.h5" if video.windows else f"{video.id}.h5")
        with self._of_video.setdefault(path, threading.Lock()):
            stored = _stored_queries(path, video)
            if stored is None or not set(queries) <= stored:
                self._extract(path, video, list(queries), progress or (lambda _: None))
                remove_least_used(self.folder.parent, self.max_bytes, keep=path)
            mark_used(path)
            return CacheReader(path)

    def sentence_vectors(self, texts: Sequence[str], *, progress: ProgressCallback | None = None) -> np.ndarray:
        """The sentences in the joint space, float32 [x e], of length one. Loads CLIP. Raises as `features` does."""
        sentences = encode_new(self._load(progress or (lambda _: None)), list(texts), lambda _: None)
        return np.stack([sentences[text].sentence for text in texts])

    def _content_hash(self, video: Path) -> str:
        """The hash of the file, which is read again only if its size or times have changed."""
        key = (video, file_stamp(video))
        if key not in self._hashes:
            self._hashes[key] = content_hash(video)
        return self._hashes[key]

    def _extract(self, path: Path, video: Video, queries: list[str], report_progress: ProgressCallback) -> None:
        encoder = self._load(report_progress)
        contents = cache_contents(encoder, self.fingerprint)
        # Sentences first: a query that cannot be used is refused before the video is decoded.
        earlier = [query for query in stored_words(path) if query not in queries]
        kept = [*earlier[-_MAX_QUERIES:], *queries]
        sentences = encode_queries(encoder, kept, path, report_progress, fill_batches=False)
        with CacheWriter(path, contents, sentences) as writer:
            missing = _without_stored(video, writer)
            if missing is not None:
                if self._extracting.locked():
                    report_progress(Progress("wait", 0, 0, video.path.name))
                with self._extracting:
                    rows = extract_into(
                        writer,
                        [missing],
                        encoders=[encoder],
                        fps=contents.fps,
                        frame_options=self._frame_options(encoder, windows=bool(video.windows)),
                        run_options=self._run_options,
                        report_progress=report_progress,
                    )
                for row in rows:
                    if not row.ok:
                        raise VideoError(row.reason, status=row.status)
                    if row.content_hash != video.id:
                        raise VideoError(f"{video.path}: was changed while it was read. Ask again.", status="changed")
            writer.write_index()

    def _frame_options(self, encoder: CLIPEncoder, *, windows: bool) -> FrameOptions:
        """The options of the fingerprint; for windows with the fastest decoder, if its frames are the same."""
        options = FrameOptions.from_fingerprint(self.fingerprint, encoder.preprocess.resize_target)
        fastest = replace(options, decoder=FASTEST)
        return fastest if windows and fastest.fingerprint() == options.fingerprint() else options

    def _load(self, report_progress: ProgressCallback) -> CLIPEncoder:
        with self._loading:
            if self._encoder is None:
                self._encoder = reload_encoder(
                    self.fingerprint,
                    self.model,
                    self.weights,
                    owner=self.owner,
                    device=self.device,
                    report_progress=report_progress,
                )
            return self._encoder


def _without_stored(video: Video, writer: CacheWriter) -> Video | None:
    """`video` with those of its windows that are not stored yet; None if nothing is missing. The writer takes what is stored."""
    if not video.windows:
        row = writer.reuse_if_unchanged(video.id, video.id)
        return None if row is not None and has_frames_of_today(row, video.path) else video
    names = [part.stem for part in sorted(writer.parts.glob("*.h5"))]
    stored = {name for name in names if writer.reuse_if_unchanged(name, video.id)}
    missing = tuple(window for window in video.windows if window_name(window) not in stored)
    return replace(video, windows=missing) if missing else None


def _stored_queries(path: Path, video: Video) -> set[str] | None:
    """The queries whose tokens are stored with the complete features of `video`; None if they must be extracted.

    Removes a damaged cache without asking, because it can be made again.
    """
    if not path.exists():
        return None
    try:
        features = CacheReader(path)
        names = [window_name(window) for window in video.windows] or features.video_ids
        if not set(names) <= set(features.video_ids):
            return None
        for name in names:
            features.times_s(name)
            features.tokens(name, clips=[0])
            if not has_frames_of_today(features.row(name), video.path):
                return None
        return set(stored_words(path))
    except CacheError:
        path.unlink(missing_ok=True)
    return None


def user_folder() -> Path:
    """The platform's folder for files of this user that a program can make again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "costl" / "Cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/costl").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "costl"
