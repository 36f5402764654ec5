"""A library of videos: indexed once, searched by sentences and pictures, without training or with a trained model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from costl.ask.answer import check_queries
from costl.ask.model_folder import ZERO_SHOT
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import BusyError, CostlError, UsageError
from costl.pipeline.library.best_videos import BestVideo, Scan
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.store_limit import DEFAULT_BYTES
from costl.pipeline.library.update import LibraryFiles
from costl.pipeline.library.vectors import Vectors, open_vectors
from costl.pipeline.library.vectors_update import update_vectors
from costl.pipeline.progress import ProgressCallback
from costl.search.calibrate import ZERO_SHOT_THRESHOLD
from costl.search.filters import Filters
from costl.search.hits import Hit, SearchResult, ranked_result
from costl.search.moments import find_segments
from costl.search.queries import QueryEncoder, SearchQuery, read_images
from costl.search.run_choice import run_for_library

if TYPE_CHECKING:
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


def _check_counts(top: int, min_score: float | None) -> None:
    if not (isinstance(top, Integral) and top >= 1):
        raise UsageError(f"top is {top!r}, expected a number of moments, 1 or more.")
    if min_score is not None and not 0 <= min_score <= 1:
        raise UsageError(f"min_score is {min_score!r}, expected a score from 0 to 1.")


def _vectors(folder: Path, features: CacheReader) -> Vectors:
    try:
        return update_vectors(folder, features)
    except BusyError:
        return open_vectors(folder)


class Library:
    """The videos of a folder or a cache, ready to be searched; `open_library` makes it. Several threads may share one.

    `path`: the folder or the cache. `files`: what the last update has found, None for a cache. `notes`: for the user.
    `passed_over`: why the newest run is not used, where it was not named; otherwise empty.
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
        self._vectors = _vectors(folder, features)
        self._videos = videos
        self._device = device
        self._scan = scan
        self._progress = progress or (lambda _: None)
        self._queries = QueryEncoder(
            features, self._vectors, folder, device=device, scan=scan, progress=self._progress
        )
        self._run: Path | str | None = None
        self._keep_bytes = DEFAULT_BYTES
        self._second_tier: SecondTier | None = None
        self.passed_over = ""

    def __len__(self) -> int:
        """The number of videos that can be searched."""
        return len(self._vectors.keys)

    @property
    def hours(self) -> float:
        """How long all videos last together."""
        return float(self._vectors.durations_s.sum()) / 3600

    def __repr__(self) -> str:
        failed = f", {len(self.files.failed)} that cannot be read" if self.files and self.files.failed else ""
        return f"{self.path}: {len(self):,} videos, {self.hours:.1f} hours{failed}; {self._answered_by(self._second_tier)}"

    def use_run(self, run: Path | str | None = None, *, keep_bytes: int = DEFAULT_BYTES) -> None:
        """Lets a trained model find the moments again in the best videos; "none" searches with CLIP alone.

        By default it is the newest run that fits the library, if there is one (see `run_for_library`).
        Raises UsageError and CacheError for a named model, as `costl.load` does.
        """
        self._run = run
        self._keep_bytes = keep_bytes
        self._second_tier = None
        self.passed_over = ""
        options: dict[str, Any] = {"device": self._device, "max_bytes": keep_bytes}
        if run is None:
            self._second_tier, self.passed_over = run_for_library(self._features, **options)
        elif run != ZERO_SHOT:
            from costl.search.second_tier import SecondTier  # imports torch

            self._second_tier = SecondTier(str(run), self._features, **options)

    def messages(self) -> list[str]:
        """What the last update has found, which videos cannot be searched, and why the newest run is not used."""
        return [*(self.files.messages() if self.files else []), *self.notes, *filter(None, [self.passed_over])]

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
        from costl.search.open_library import open_library  # imports this module

        options: dict[str, Any] = {"run": self._run, "keep_bytes": self._keep_bytes, "device": self._device}
        library = open_library(self.path, **options, update=False, progress=self._progress)
        library._scan = self._scan
        library._queries.share_towers(self._queries)
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
        (row,) = similarities(chosen, self._queries.relative_vector(query))
        return dict(zip(found, np.split(row, chosen.starts[1:]), strict=True))

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
        pictures = read_images(images)
        _check_counts(top, min_score)
        chosen, videos = self._filtered(filters or Filters())
        found = self._queries.of_sentences(queries, chosen) + self._queries.of_images(pictures, chosen)
        results: list[SearchResult] = []
        count = SECOND_TIER_VIDEOS if self._second_tier and not images else _SHORT_LIST + top
        best_videos = self._scan.best_videos(chosen, np.stack([query.vector for query in found]), count)
        for query, best in zip(found, best_videos, strict=True):
            results.append(self._result(query, best, chosen, videos, top, min_score, progress or self._progress))
        return results

    def _result(
        self,
        query: SearchQuery,
        best: Sequence[BestVideo],
        chosen: Vectors,
        videos: Sequence[LibraryVideo],
        top: int,
        min_score: float | None,
        progress: ProgressCallback,
    ) -> SearchResult:
        """The moments that the run finds, or those of CLIP alone.

        A run that nobody named must not break a search: where it fails, CLIP answers alone, and a note says why.
        """
        rank = partial(ranked_result, query.name, videos=len(videos), top=top, min_score=min_score)
        second_tier = self._second_tier
        zero_shot = self._answered_by(None)
        notes: tuple[str, ...] = ()
        if second_tier is not None and query.words is None:
            zero_shot += ", since a trained model reads only sentences"
        elif second_tier is not None:
            try:
                hits = self._hits_again(second_tier, query, best, chosen, videos, progress)
                threshold = second_tier.threshold(self._queries.ordinary().vectors)
                return rank(hits, threshold, self._answered_by(second_tier))
            except CostlError as error:
                if self._run is not None:
                    raise
                notes = (f"{second_tier.name} is not used: {error}",)
                (best,) = self._scan.best_videos(chosen, query.vector[np.newaxis], _SHORT_LIST + top)
        return rank(self._hits(query, best, chosen, videos), ZERO_SHOT_THRESHOLD, zero_shot, notes)

    def _hits(
        self, query: SearchQuery, best: Sequence[BestVideo], chosen: Vectors, videos: Sequence[LibraryVideo]
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
        query: SearchQuery,
        best: Sequence[BestVideo],
        chosen: Vectors,
        videos: Sequence[LibraryVideo],
        progress: ProgressCallback,
    ) -> list[Hit]:
        """The moments that the run finds in the most similar videos."""
        from costl.search.second_tier import Candidate  # imports torch

        candidates = []
        for video in best[:SECOND_TIER_VIDEOS]:
            index = video.index
            place = chosen.keys[index], videos[index].name, videos[index].path
            candidates.append(Candidate(*place, float(chosen.durations_s[index]), video.curve))
        return second_tier.hits(query, candidates, ordinary=self._queries.ordinary().vectors, progress=progress)

    def _answered_by(self, second_tier: SecondTier | None) -> str:
        if second_tier is None:
            return f"zero-shot {self._encoder_name}"
        if len(self) <= SECOND_TIER_VIDEOS:
            return second_tier.name
        return f"{second_tier.name}, in {SECOND_TIER_VIDEOS} videos that {self._encoder_name} puts first"

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
