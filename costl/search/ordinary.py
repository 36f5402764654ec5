"""Ordinary sentences: their vectors, and the level that each of them reaches in every video of a library.

FOLDER/ordinary-<digest>.npy    vectors float32 [x e], by the digest of encoder and sentences
FOLDER/levels.npz               digest of the settings of the features, keys of videos, levels float32 [v x]
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.files import publish
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors
from costl.pipeline.progress import Progress, ProgressCallback
from costl.search.calibrate import MIN_PAIRS, AbsentLevels, ordinary_sentences, relative_sentence

_LEVELS = "levels.npz"
_SIMILARITIES_AT_ONCE = 32_000_000  # 128 MB
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
        highest = np.max([self.of_video[key] for key in keys], axis=0)
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
    progress: ProgressCallback,
) -> OrdinaryLevels:
    """The levels in all videos of `vectors`, whose features have this fingerprint.

    Those that `folder` stores are not computed again. A folder that cannot be written costs only time.
    """
    sentences = ordinary_vectors(folder, fingerprint, encode)
    settings = digest({"features": dict(fingerprint), "sentences": hashlib.sha256(sentences.tobytes()).hexdigest()})
    known = _read(folder / _LEVELS, settings, len(sentences))
    missing = [index for index, key in enumerate(vectors.keys) if key not in known]
    if not missing:
        return OrdinaryLevels(sentences, known)
    relative = relative_sentence(sentences, sentences)
    levels = {key: known[key] for key in vectors.keys if key in known}
    for group in _groups(missing, vectors.clips, len(sentences)):
        progress(Progress("calibrate", len(levels), len(vectors.keys)))
        part = vectors.select(group)
        highest = np.maximum.reduceat(similarities(part, relative), part.starts, axis=1).T
        levels |= zip(part.keys, highest, strict=True)
    with suppress(CostlError):
        publish(folder / _LEVELS, _content(settings, levels))
    return OrdinaryLevels(sentences, levels)


def _groups(indices: Sequence[int], clips: np.ndarray, sentences: int) -> list[list[int]]:
    """The videos in groups whose similarities take little memory; at least one video each."""
    groups: list[list[int]] = [[]]
    size = 0
    for index in indices:
        if groups[-1] and size + clips[index] > _SIMILARITIES_AT_ONCE // sentences:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += int(clips[index])
    return groups


def _content(settings: str, levels: Mapping[str, Float[np.ndarray, "x"]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, digest=settings, keys=list(levels), levels=np.stack(list(levels.values())))
    return file.getvalue()


def _read(path: Path, settings: str, sentences: int) -> dict[str, Float[np.ndarray, "x"]]:
    """The stored levels; none if they are missing, damaged, or of other features or sentences."""
    with suppress(*_DAMAGED), path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        keys, levels = stored["keys"].tolist(), stored["levels"]
        if str(stored["digest"]) == settings and levels.shape == (len(keys), sentences):
            return dict(zip(keys, levels, strict=True))
    return {}
