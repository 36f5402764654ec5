"""Ordinary sentences and pictures of the library: the level that each of them reaches in every video.

FOLDER/ordinary-<digest>.npy    vectors of the sentences, float32 [x e], by the digest of encoder and sentences
FOLDER/levels.npz               digest of the settings of the features, keys of videos, levels of the sentences float32 [v x]
FOLDER/pictures.npz             the same with levels of the pictures
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.files import publish
from costl.pipeline.library.best_videos import Scan
from costl.pipeline.library.vectors import Vectors
from costl.pipeline.progress import Progress, ProgressCallback
from costl.search.calibrate import MIN_PAIRS, AbsentLevels, ElsewhereLevels, ordinary_sentences, relative_sentence

_LEVELS = "levels.npz"
_PICTURE_LEVELS = "pictures.npz"
_PICTURES = 100  # of different videos, if there are so many
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # that numpy raises for damaged files
Encode = Callable[[Sequence[str]], Float[np.ndarray, "x e"]]


@dataclass(frozen=True)
class OrdinaryLevels:
    """What ordinary sentences reach in the videos of a library.

    `vectors`: the sentences in the joint space, float32 [x e]. `of_video`: by key of the video, the highest relative cosine of
    each sentence with a clip of the video, float32 [x].
    """

    vectors: Float[np.ndarray, "x e"]
    of_video: dict[str, Float[np.ndarray, "x"]]

    def absent(self, keys: Sequence[str], *, logit_scale: float) -> AbsentLevels:
        """The distribution of the levels of sentences that nothing in these videos fits."""
        highest = reduce(np.maximum, (self.of_video[key] for key in keys))  # unlike a stack of all, it takes no memory
        return AbsentLevels.of(highest * logit_scale)


def ordinary_vectors(folder: Path, fingerprint: Mapping[str, Any], encode: Encode) -> Float[np.ndarray, "x e"]:
    """The vectors of the ordinary sentences by the encoder of features with this fingerprint; encoded once for each `folder`.

    A folder that cannot be written costs only time. Raises UsageError for an encoder that does not read English.
    """
    sentences = ordinary_sentences()
    encoder = {name: fingerprint.get(name) for name in ("model", "weights")}
    path = folder / f"ordinary-{digest({'encoder': encoder, 'sentences': sentences})[:16]}.npy"
    with suppress(*_DAMAGED), path.open("rb") as file:
        vectors = np.load(file, allow_pickle=False)
        if vectors.ndim == 2 and MIN_PAIRS <= len(vectors) <= len(sentences) and np.isfinite(vectors).all():
            return np.asarray(vectors, np.float32)
    vectors = _encode_known(sentences, encode)
    content = io.BytesIO()
    np.save(content, vectors)
    with suppress(CostlError):
        publish(path, content.getvalue())
    return vectors


def _encode_known(sentences: Sequence[str], encode: Encode) -> Float[np.ndarray, "x e"]:
    """The vectors of the sentences without those of which the tokenizer knows no word: they are in English.

    Raises UsageError if it knows too few.
    """
    try:
        return encode(sentences)
    except UsageError:
        known = []
        for sentence in sentences:
            with suppress(UsageError):
                known.append(encode([sentence])[0])
    if len(known) < MIN_PAIRS:
        raise UsageError(
            f"The tokenizer of this encoder knows {len(known)} of {len(sentences)} ordinary English sentences, and scores need "
            f"{MIN_PAIRS}. Choose an encoder that reads English."
        )
    return np.stack(known)


def ordinary_levels(
    folder: Path,
    vectors: Vectors,
    *,
    fingerprint: Mapping[str, Any],
    encode: Encode,
    scan: Scan,
    progress: ProgressCallback,
) -> OrdinaryLevels:
    """The levels in all videos of `vectors`, whose features have this fingerprint, by `scan`.

    Those that `folder` stores are not computed again. A folder that cannot be written costs only time.
    """
    sentences = ordinary_vectors(folder, fingerprint, encode)
    settings = digest({"features": dict(fingerprint), "sentences": hashlib.sha256(sentences.tobytes()).hexdigest()})
    relative = relative_sentence(sentences, sentences)
    return OrdinaryLevels(sentences, _highest(folder / _LEVELS, settings, vectors, relative, scan, progress))


@dataclass(frozen=True)
class PictureLevels:
    """What pictures of a library reach in its videos.

    `of_video`: by key of the video, the highest cosine of each picture with a clip of the video, float32 [x]; -inf for the
    pictures that are from it.
    """

    of_video: dict[str, Float[np.ndarray, "x"]]

    def elsewhere(self, keys: Sequence[str], *, logit_scale: float) -> ElsewhereLevels:
        """The levels that the pictures reach in those of these videos that they are not from."""
        highest = np.max([self.of_video[key] for key in keys], axis=0)
        return ElsewhereLevels(highest[np.isfinite(highest)] * logit_scale, logit_scale)


def picture_levels(
    folder: Path, vectors: Vectors, *, fingerprint: Mapping[str, Any], scan: Scan, progress: ProgressCallback
) -> PictureLevels:
    """The levels of a sample of clips of `vectors` in all its videos, stored and computed as `ordinary_levels` does."""
    pictures, owners = _sample_pictures(vectors)
    settings = digest({"features": dict(fingerprint), "pictures": hashlib.sha256(pictures.tobytes()).hexdigest()})
    levels = _highest(folder / _PICTURE_LEVELS, settings, vectors, pictures, scan, progress)
    return PictureLevels({key: np.where(owners == key, -np.inf, levels[key]) for key in vectors.keys})


def _sample_pictures(vectors: Vectors) -> tuple[Float[np.ndarray, "x e"], np.ndarray]:
    """The vectors of the pictures, and the key of the video that each is from, str [x].

    Videos are chosen by a hash of their keys, so that a new video in a large library seldom changes the sample.
    """
    hashes = [zlib.crc32(key.encode(errors="backslashreplace")) for key in vectors.keys]
    order = np.argsort(hashes, kind="stable").tolist()
    each = -(-_PICTURES // len(order))
    chosen = {
        index: np.unique((np.arange(each) + 0.5) * int(vectors.clips[index]) // each).astype(np.int64)
        for index in order[:_PICTURES]
    }
    pictures = np.concatenate([vectors.of(index)[positions] for index, positions in chosen.items()])
    owners = np.concatenate([np.repeat(vectors.keys[index], len(positions)) for index, positions in chosen.items()])
    return pictures.astype(np.float32), owners


def _highest(
    path: Path,
    settings: str,
    vectors: Vectors,
    queries: Float[np.ndarray, "x e"],
    scan: Scan,
    progress: ProgressCallback,
) -> dict[str, Float[np.ndarray, "x"]]:
    """By key of the video, the highest similarity of each query with a clip of it. The file `path` stores them."""
    known = _read(path, settings, len(queries))
    missing = [index for index, key in enumerate(vectors.keys) if key not in known]
    if not missing:
        return known
    levels = {key: known[key] for key in vectors.keys if key in known}
    stored = len(levels)
    part = vectors.select(missing)
    highest = scan.highest(part, queries, lambda done: progress(Progress("calibrate", stored + done, len(vectors.keys))))
    levels |= zip(part.keys, highest, strict=True)
    with suppress(CostlError):
        publish(path, _content(settings, levels))
    return levels


def _content(settings: str, levels: Mapping[str, Float[np.ndarray, "x"]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, digest=settings, keys=list(levels), levels=np.stack(list(levels.values())))
    return file.getvalue()


def _read(path: Path, settings: str, queries: int) -> dict[str, Float[np.ndarray, "x"]]:
    """The stored levels; none if they are missing, damaged, or of other features or queries."""
    with suppress(*_DAMAGED), path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        keys, levels = stored["keys"].tolist(), stored["levels"]
        if str(stored["digest"]) == settings and levels.shape == (len(keys), queries):
            return dict(zip(keys, levels, strict=True))
    return {}
