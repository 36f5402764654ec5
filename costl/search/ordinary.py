"""Ordinary sentences in a library: their vectors, and the level that each of them reaches in every video.

FOLDER/ordinary.npz    digest of encoder and sentences, vectors float32 [x e], keys of videos, levels float32 [v x]
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from costl.pipeline.errors import CostlError
from costl.pipeline.formats.files import publish
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors
from costl.pipeline.progress import Progress, ProgressCallback
from costl.search.calibrate import AbsentLevels, ordinary_sentences, relative_sentence

_FILE = "ordinary.npz"
_SIMILARITIES_AT_ONCE = 32_000_000  # 128 MB


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


def ordinary_levels(
    folder: Path,
    vectors: Vectors,
    *,
    encoder: str,
    encode: Callable[[Sequence[str]], Float[np.ndarray, "x e"]],
    progress: ProgressCallback,
) -> OrdinaryLevels:
    """The levels in all videos of `vectors`; those that `folder` stores are not computed again.

    `encoder` is the digest of the encoder's settings, `encode` gives the vectors of sentences. A folder that cannot be written
    costs only time.
    """
    sentences = ordinary_sentences()
    digest = hashlib.sha256("\n".join([encoder, *sentences]).encode()).hexdigest()
    stored = _read(folder / _FILE, digest)
    known = stored.of_video if stored else {}
    sentence_vectors = stored.vectors if stored else encode(sentences)
    missing = [index for index, key in enumerate(vectors.keys) if key not in known]
    if not missing:
        return OrdinaryLevels(sentence_vectors, known)
    relative = relative_sentence(sentence_vectors, sentence_vectors)
    levels = {key: known[key] for key in vectors.keys if key in known}
    for group in _groups(missing, vectors.clips, len(sentences)):
        progress(Progress("calibrate", len(levels), len(vectors.keys)))
        part = vectors.select(group)
        highest = np.maximum.reduceat(similarities(part, relative), part.starts, axis=1).T
        levels |= zip(part.keys, highest, strict=True)
    result = OrdinaryLevels(sentence_vectors, levels)
    with suppress(CostlError):
        publish(folder / _FILE, _content(digest, result))
    return result


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


def _content(digest: str, levels: OrdinaryLevels) -> bytes:
    file = io.BytesIO()
    keys = list(levels.of_video)
    np.savez(file, digest=digest, vectors=levels.vectors, keys=keys, levels=np.stack([levels.of_video[key] for key in keys]))
    return file.getvalue()


def _read(path: Path, digest: str) -> OrdinaryLevels | None:
    """The stored levels; None if they are missing, damaged, or of another encoder or other sentences."""
    damaged = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with suppress(*damaged), path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        if str(stored["digest"]) == digest:
            vectors, levels = stored["vectors"], stored["levels"]
            if len(stored["keys"]) == len(levels) and levels.shape[1] == len(vectors):
                return OrdinaryLevels(vectors, dict(zip(stored["keys"].tolist(), levels, strict=True)))
    return None
