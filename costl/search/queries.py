"""What a library is searched for: sentences and pictures as vectors, and the levels that their scores are made from."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.formats.files import as_path
from costl.pipeline.formats.image_file import read_image
from costl.pipeline.library.best_videos import Scan
from costl.pipeline.library.image import load_image_encoder
from costl.pipeline.library.text import load_text_encoder
from costl.pipeline.library.vectors import Vectors
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import printable
from costl.search.calibrate import IMAGE_SCALE, AbsentLevels, ElsewhereLevels, relative_sentence
from costl.search.ordinary import OrdinaryLevels, PictureLevels, ordinary_levels, picture_levels

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder
    from costl.pipeline.encode.text_encoder import TextEncoder
    from costl.pipeline.encode.types import SentenceTokens


@dataclass(frozen=True)
class SearchQuery:
    """A sentence or a picture: its `name` in results, the `vector` [e] that clips are compared with, and how hits are scored.

    A level is a similarity times `logit_scale`. `words` are the tokens of a sentence.
    """

    name: str
    vector: Float[np.ndarray, "e"]
    logit_scale: float
    absent: AbsentLevels | ElsewhereLevels
    words: SentenceTokens | None = None


class QueryEncoder:
    """Makes queries with the encoder of `features`, whose towers are loaded when they are needed. Threads may share one.

    The levels of ordinary sentences and of pictures in `vectors` are computed by `scan`, and stored in `folder`.
    """

    def __init__(
        self,
        features: CacheReader,
        vectors: Vectors,
        folder: Path,
        *,
        device: str,
        scan: Scan,
        progress: ProgressCallback,
    ):
        self._features = features
        self._vectors = vectors
        self._folder = folder
        self._device = device
        self._scan = scan
        self._progress = progress
        self._loading = threading.Lock()
        self._text: TextEncoder | None = None
        self._clip: CLIPEncoder | None = None
        self._ordinary: OrdinaryLevels | None = None
        self._pictures: PictureLevels | None = None

    def share_towers(self, other: QueryEncoder) -> None:
        """Uses the towers that `other` has loaded, if they are of the same encoder."""
        if other._features.fingerprint == self._features.fingerprint:
            self._text, self._clip = other._text, other._clip

    def of_sentences(self, sentences: Sequence[str], videos: Vectors) -> list[SearchQuery]:
        """A query for each sentence, to be scored in `videos`. Raises as `SentenceEncoder.encode` does."""
        if not sentences:
            return []
        scale = self._features.joint.logit_scale
        absent = self.ordinary().absent(videos.keys, logit_scale=scale)
        encoded = self._text_encoder().encode(sentences)
        vectors = self._relative(encoded)
        return [SearchQuery(*one[:2], scale, absent, one[2]) for one in zip(sentences, vectors, encoded, strict=True)]

    def of_images(self, images: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]], videos: Vectors) -> list[SearchQuery]:
        """A query for each picture and its name, to be scored in `videos`."""
        if not images:
            return []
        scale = IMAGE_SCALE * self._features.joint.logit_scale
        encoder = self._image_encoder()
        elsewhere = self._picture_levels().elsewhere(videos.keys, logit_scale=scale)
        return [SearchQuery(name, encoder.encode(pixels[None]).joint[0], scale, elsewhere) for name, pixels in images]

    def relative_vector(self, sentence: str) -> Float[np.ndarray, "1 e"]:
        """The vector of a sentence that clips are compared with."""
        return self._relative(self._text_encoder().encode([sentence]))

    def _relative(self, encoded: Sequence[SentenceTokens]) -> Float[np.ndarray, "q e"]:
        """The vectors of sentences, less what ordinary sentences share."""
        return relative_sentence(np.stack([one.sentence for one in encoded]), self.ordinary().vectors)

    def ordinary(self) -> OrdinaryLevels:
        """The levels of the ordinary sentences in all videos."""
        if self._ordinary is None:
            self._ordinary = ordinary_levels(
                self._folder,
                self._vectors,
                fingerprint=self._features.fingerprint,
                encode=lambda texts: self._text_encoder().sentence_vectors(texts),
                scan=self._scan,
                progress=self._progress,
            )
        return self._ordinary

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

    def _text_encoder(self) -> TextEncoder:
        with self._loading:
            if self._text is None:
                self._text = load_text_encoder(self._features, device=self._device, report_progress=self._progress)
            return self._text

    def _image_encoder(self) -> CLIPEncoder:
        with self._loading:
            if self._clip is None:
                self._clip = load_image_encoder(self._features, device=self._device, report_progress=self._progress)
            return self._clip


def read_images(images: Sequence[Path | str]) -> list[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """The pixels of each picture file and its name in results: that of the file, or its path if another has the same name.

    Raises UsageError as `read_image` does.
    """
    paths = [as_path("image", image) for image in images]
    uses = Counter(path.name for path in set(paths))
    return [(printable(path.name if uses[path.name] == 1 else str(path)), read_image(path)) for path in paths]
