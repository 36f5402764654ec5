"""A library of videos: indexed once, searched by sentences and pictures, without training or with a trained model."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from costl.ask.answer import check_queries
from costl.ask.model_folder import ZERO_SHOT
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import BusyError, CacheError, UsageError
from costl.pipeline.feature_store import user_folder
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.files import as_path
from costl.pipeline.formats.image_file import read_image
from costl.pipeline.library.best_videos import BestVideo, Scan
from costl.pipeline.library.cluster_scan import open_scan
from costl.pipeline.library.folder import CACHE, VECTORS, index_folder
from costl.pipeline.library.image import load_image_encoder
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.store_limit import DEFAULT_BYTES
from costl.pipeline.library.text import load_text_encoder
from costl.pipeline.library.update import LibraryFiles, read_library, update_library
from costl.pipeline.library.vectors import Vectors, open_vectors
from costl.pipeline.library.vectors_update import update_vectors
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import find_videos, printable
from costl.search.calibrate import IMAGE_SCALE, ZERO_SHOT_THRESHOLD, AbsentLevels, ElsewhereLevels, relative_sentence
from costl.search.filters import Filters
from costl.search.hits import Hit, SearchResult
from costl.search.moments import find_segments
from costl.search.ordinary import OrdinaryLevels, PictureLevels, ordinary_levels, picture_levels

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder
    from costl.pipeline.encode.text_encoder import TextEncoder
    from costl.search.second_tier import SecondTier

_SHORT_LIST = 100  # videos whose curves are cut into moments, and one more for each moment that is returned
_MOMENTS_OF_A_VIDEO = 5
SECOND_TIER_VIDEOS = 10


@dataclass(frozen=True)
class LibraryVideo:
    """A video of a library: its `name`, the path relative to the library, where it is, and when it was changed last."""

    name: str
    path: Path
    changed_s: float = 0.0


@dataclass(frozen=True)
class _Query:
    """A sentence or an image: its `name` in results, the `vector` [e] that clips are compared with, and how hits are scored.

    A level is a similarity times `logit_scale`. `run` finds the moments again.
    """

    name: str
    vector: Float[np.ndarray, "e"]
    logit_scale: float
    absent: AbsentLevels | ElsewhereLevels
    run: SecondTier | None = None


def open_library(
    path: Path | str,
    *,
    run: Path | str | None = None,
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    cluster: str | None = None,
    keep_bytes: int = DEFAULT_BYTES,
    update: bool = True,
    progress: ProgressCallback | None = None,
) -> Library:
    """Opens a folder of videos, or a cache of `costl extract`, for searching.

    A folder is indexed first: new and changed videos are extracted, which takes as long as `costl extract` (see
    `update_library`). `update=False` searches what the last update has indexed. `run` is a trained model that finds the
    moments again in the best videos. Their features are stored in the user's cache folder, at most `keep_bytes`. `cluster`
    is the address of a Dask scheduler, whose workers index and compare; `run` works on this machine.

    Raises UsageError for a folder without videos, wrong arguments, weights that are not here and a cluster that does not
    answer; CacheError for a damaged index, or one of another encoder.
    """
    scan = open_scan(cluster)
    path = as_path("path", path)
    if path.is_file() or path.suffix == ".h5":
        if model is not None:
            raise UsageError(f"model is {model!r}, but {path} is a cache, which was made with a model already.")
        library = _open_cache(path, weights, device, scan, progress)
        library.use_run(run, keep_bytes=keep_bytes)
        return library
    index = index_folder(path)
    if not update and not (index / CACHE).exists():
        raise CacheError(f"{path}: not indexed yet. Search it once with update.")
    options: dict[str, Any] = {"model": model, "weights": weights, "device": device, "workers": workers, "cluster": cluster}
    notes = []
    try:
        files = update_library(path, index, **options, progress=progress) if update else read_library(path, index)
    except BusyError:
        if not (index / CACHE).exists():
            raise
        files = read_library(path, index)
        notes.append("another search is indexing this folder. What is not indexed yet is missing here.")
    features = CacheReader(index / CACHE, files.index)
    names = files.names()
    videos = {
        key: [LibraryVideo(name, path / name, files.files[name].changed_s) for name in names.get(key, [])]
        for key in features.video_ids
    }
    given: dict[str, Any] = {"notes": notes, "device": device, "scan": scan, "progress": progress}
    library = Library(path, features, index / VECTORS, videos, files, **given)
    library.use_run(run, keep_bytes=keep_bytes)
    return library


def _open_cache(path: Path, weights: str | None, device: str, scan: Scan, progress: ProgressCallback | None) -> Library:
    features = CacheReader(path)
    if weights is not None:
        features.source["weights"] = weights
    found: dict[str, Path] = {}
    if features.videos is not None and features.videos.is_dir():
        found = {video.name: video.path for video in find_videos(features.videos, allow_none=True)}
    videos = {name: [_with_time(name, found.get(name, Path(name)))] for name in features.video_ids}
    folder = path.with_name(f"{path.name}.vectors")
    if not os.access(folder if folder.is_dir() else path.parent, os.W_OK):
        folder = user_folder() / "libraries" / digest({"cache": str(path.resolve())})[:16]
    return Library(path, features, folder, videos, None, device=device, scan=scan, progress=progress)


def _with_time(name: str, path: Path) -> LibraryVideo:
    with contextlib.suppress(OSError):
        return LibraryVideo(path.name if path.is_absolute() else name, path, path.stat().st_mtime)
    return LibraryVideo(name, path)


def _check_counts(top: int, min_score: float | None) -> None:
    if not (isinstance(top, Integral) and top >= 1):
        raise UsageError(f"top is {top!r}, expected a number of moments, 1 or more.")
    if min_score is not None and not 0 <= min_score <= 1:
        raise UsageError(f"min_score is {min_score!r}, expected a score from 0 to 1.")


def _name_images(images: Sequence[Path | str]) -> list[tuple[str, Path]]:
    """Each image with its name in results: that of its file, or its path if another file has the same name."""
    paths = [as_path("image", image) for image in images]
    uses = Counter(path.name for path in set(paths))
    return [(printable(path.name if uses[path.name] == 1 else str(path)), path) for path in paths]


def _vectors(folder: Path, features: CacheReader) -> Vectors:
    try:
        return update_vectors(folder, features)
    except BusyError:
        return open_vectors(folder)


class Library:
    """The videos of a folder or a cache, ready to be searched; `open_library` makes it. Several threads may share one.

    `path`: the folder or the cache. `files`: what the last update has found, None for a cache. `notes`: for the user.
    """

    def __init__(
        self,
        path: Path,
        features: CacheReader,
        folder: Path,
        videos: Mapping[str, Sequence[LibraryVideo]],
        files: LibraryFiles | None,
        *,
        notes: Sequence[str] = (),
        device: str,
        scan: Scan,
        progress: ProgressCallback | None,
    ):
        self.path = path
        self.notes = tuple(notes)
        self.files = files
        self._features = features
        self._folder = folder
        self._vectors = _vectors(folder, features)
        self._videos = videos
        self._device = device
        self._scan = scan
        self._progress = progress or (lambda _: None)
        self._loading = threading.Lock()
        self._run: Path | str | None = None
        self._keep_bytes = DEFAULT_BYTES
        self._second_tier: SecondTier | None = None
        self._text: TextEncoder | None = None
        self._clip: CLIPEncoder | None = None
        self._ordinary: OrdinaryLevels | None = None
        self._pictures: PictureLevels | None = None

    def __len__(self) -> int:
        """The number of videos that can be searched."""
        return len(self._vectors.keys)

    @property
    def hours(self) -> float:
        """How long all videos last together."""
        return float(self._vectors.durations_s.sum()) / 3600

    def __repr__(self) -> str:
        failed = f", {len(self.files.failed)} that cannot be read" if self.files and self.files.failed else ""
        return f"{self.path}: {len(self):,} videos, {self.hours:.1f} hours{failed}; {self._encoder_name}"

    def use_run(self, run: Path | str | None, *, keep_bytes: int = DEFAULT_BYTES) -> None:
        """Lets a trained model find the moments again in the best videos; None or "none" searches with CLIP alone.

        Raises UsageError and CacheError as `costl.load` does.
        """
        self._run = run
        self._keep_bytes = keep_bytes
        self._second_tier = None
        if run not in (None, ZERO_SHOT):
            from costl.search.second_tier import SecondTier  # imports torch

            self._second_tier = SecondTier(str(run), self._features, device=self._device, max_bytes=keep_bytes)

    def messages(self) -> list[str]:
        """What the last update has found, and which videos cannot be searched."""
        return [*(self.files.messages() if self.files else []), *self.notes]

    @property
    def _encoder_name(self) -> str:
        source = self._features.source
        return f"{source.get('model', 'unknown encoder')}, {Path(source.get('weights', '')).name}"

    @property
    def clip_s(self) -> float:
        """How long a clip lasts, in seconds."""
        return 1 / self._vectors.fps

    def reopen(self) -> Library:
        """The same folder with what has been indexed since. The towers are not loaded again. Raises as `open_library` does."""
        options: dict[str, Any] = {"run": self._run, "keep_bytes": self._keep_bytes, "device": self._device}
        library = open_library(self.path, **options, update=False, progress=self._progress)
        library._scan = self._scan
        if library._features.fingerprint == self._features.fingerprint:
            library._text, library._clip = self._text, self._clip
        return library

    def curves(self, query: str, names: Collection[str]) -> dict[str, Float[np.ndarray, "t"]]:
        """The relative cosine of a sentence with each clip of the videos with these names. Unknown names are left out."""
        indices, found = [], []
        for index, key in enumerate(self._vectors.keys):
            for video in self._videos.get(key, ()):
                if video.name in names:
                    indices.append(index)
                    found.append(video.name)
        if not found:
            return {}
        chosen = self._vectors.select(indices)
        sentences = relative_sentence(self._text_encoder().sentence_vectors([query]), self._ordinary_levels().vectors)
        return dict(zip(found, np.split(similarities(chosen, sentences)[0], chosen.starts[1:]), strict=True))

    def search(
        self,
        query: str | None = None,
        *,
        image: Path | str | None = None,
        top: int = 10,
        min_score: float | None = None,
        filters: Filters | None = None,
    ) -> SearchResult:
        """The `top` moments of the library that match a sentence or a picture file, best first; see `search_all`."""
        if (query is None) == (image is None):
            raise UsageError(f"query is {query!r} and image is {image!r}, expected one of them.")
        queries = [] if query is None else [query]
        images = [] if image is None else [image]
        return self.search_all(queries, images=images, top=top, min_score=min_score, filters=filters)[0]

    def search_all(
        self,
        queries: Sequence[str] = (),
        *,
        images: Sequence[Path | str] = (),
        top: int = 10,
        min_score: float | None = None,
        filters: Filters | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[SearchResult]:
        """One result for each query, then one for each picture file of `images`, in the same order.

        `min_score` is the lowest score of an answer. A picture is named by its file, and searched for by CLIP alone, since a
        run reads only sentences. Raises UsageError for a query without words, for a picture that `read_image` refuses, and for
        filters that no video passes.
        """
        if queries or not images:
            check_queries(queries)
        pictures = [(name, read_image(path)) for name, path in _name_images(images)]
        _check_counts(top, min_score)
        chosen, videos = self._filtered(filters or Filters())
        searched = self._sentence_queries(queries, chosen) + self._image_queries(pictures, chosen)
        results: list[SearchResult] = []
        count = SECOND_TIER_VIDEOS if all(query.run for query in searched) else _SHORT_LIST + top
        vectors = np.stack([query.vector for query in searched])
        for query, best in zip(searched, self._scan.best_videos(chosen, vectors, count), strict=True):
            if query.run is None:
                hits, threshold = self._hits(query, best, chosen, videos), ZERO_SHOT_THRESHOLD
            else:
                ordinary = self._ordinary_levels()
                hits = self._hits_again(query.run, query.name, best, chosen, videos, ordinary, progress)
                threshold = query.run.threshold(ordinary.vectors)
            results.append(self._result(query, hits, len(videos), top, threshold if min_score is None else min_score))
        return results

    def _sentence_queries(self, sentences: Sequence[str], chosen: Vectors) -> list[_Query]:
        if not sentences:
            return []
        scale = self._features.joint.logit_scale
        ordinary = self._ordinary_levels()
        absent = ordinary.absent(chosen.keys, logit_scale=scale)
        vectors = relative_sentence(self._text_encoder().sentence_vectors(sentences), ordinary.vectors)
        return [_Query(*pair, scale, absent, self._second_tier) for pair in zip(sentences, vectors, strict=True)]

    def _image_queries(self, images: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]], chosen: Vectors) -> list[_Query]:
        if not images:
            return []
        scale = IMAGE_SCALE * self._features.joint.logit_scale
        encoder = self._image_encoder()
        elsewhere = self._picture_levels().elsewhere(chosen.keys, logit_scale=scale)
        return [_Query(name, encoder.encode(pixels[None]).joint[0], scale, elsewhere) for name, pixels in images]

    def _hits(
        self, query: _Query, best: Sequence[BestVideo], chosen: Vectors, videos: Sequence[LibraryVideo]
    ) -> list[Hit]:
        """The moments of the most similar videos."""
        scale = query.logit_scale
        hits = []
        for video in best:
            index, curve = video.index, video.curve
            duration_s = float(chosen.durations_s[index])
            segments = find_segments(curve, logit_scale=scale, limit=_MOMENTS_OF_A_VIDEO, max_overlap=0.0)
            levels = np.array([curve[segment.start : segment.end].max() for segment in segments]) * scale
            for segment, score in zip(segments, query.absent.score(levels).tolist(), strict=True):
                times = min(segment.start / chosen.fps, duration_s), min(segment.end / chosen.fps, duration_s)
                hits.append(Hit(query.name, videos[index].name, videos[index].path, duration_s, *times, score))
        return hits

    def _hits_again(
        self,
        second_tier: SecondTier,
        query: str,
        best: Sequence[BestVideo],
        chosen: Vectors,
        videos: Sequence[LibraryVideo],
        ordinary: OrdinaryLevels,
        progress: ProgressCallback | None,
    ) -> list[Hit]:
        """The moments that the run finds in the most similar videos."""
        from costl.search.second_tier import Candidate  # imports torch

        candidates = []
        for video in best[:SECOND_TIER_VIDEOS]:
            index = video.index
            place = chosen.keys[index], videos[index].name, videos[index].path
            candidates.append(Candidate(*place, float(chosen.durations_s[index]), video.curve))
        return second_tier.hits(
            query,
            candidates,
            encode=self._text_encoder().encode,
            ordinary=ordinary.vectors,
            progress=progress or self._progress,
        )

    def _result(self, query: _Query, hits: Sequence[Hit], videos: int, top: int, threshold: float) -> SearchResult:
        ranked = sorted(hits, key=lambda hit: (-hit.score, hit.name, hit.start_s))
        good = [hit for hit in ranked if hit.score >= threshold]
        below = [hit for hit in ranked if hit.score < threshold]
        return SearchResult(query.name, tuple(good[:top]), tuple(below[:top]), videos, self._answered_by(query))

    def _answered_by(self, query: _Query) -> str:
        if query.run is not None:
            return f"{query.run.name}, in {SECOND_TIER_VIDEOS} videos that {self._encoder_name} puts first"
        reason = ", since a trained model reads only sentences" if self._second_tier else ""
        return f"zero-shot {self._encoder_name}{reason}"

    def _filtered(self, filters: Filters) -> tuple[Vectors, list[LibraryVideo]]:
        """The vectors of the videos that pass, and for each the first of its files that passes."""
        indices, videos = [], []
        for index, (key, duration_s) in enumerate(zip(self._vectors.keys, self._vectors.durations_s.tolist(), strict=True)):
            for video in self._videos.get(key, ()):
                if filters.accepts(video.name, changed_s=video.changed_s, duration_s=duration_s):
                    indices.append(index)
                    videos.append(video)
                    break
        if not videos:
            raise UsageError(f"{self.path}: none of {len(self):,} videos passes the filters. Leave some of them out.")
        return self._vectors if len(videos) == len(self) else self._vectors.select(indices), videos

    def _ordinary_levels(self) -> OrdinaryLevels:
        if self._ordinary is None:
            self._ordinary = ordinary_levels(
                self._folder,
                self._vectors,
                fingerprint=self._features.fingerprint,
                encode=self._text_encoder().sentence_vectors,
                scan=self._scan,
                progress=self._progress,
            )
        return self._ordinary

    def _text_encoder(self) -> TextEncoder:
        with self._loading:
            if self._text is None:
                self._text = load_text_encoder(self._features, device=self._device, report_progress=self._progress)
            return self._text

    def _picture_levels(self) -> PictureLevels:
        if self._pictures is None:
            self._pictures = picture_levels(
                self._folder,
                self._vectors,
                fingerprint=self._features.fingerprint,
                scan=self._scan,
                progress=self._progress,
            )
        return self._pictures

    def _image_encoder(self) -> CLIPEncoder:
        with self._loading:
            if self._clip is None:
                self._clip = load_image_encoder(self._features, device=self._device, report_progress=self._progress)
            return self._clip
