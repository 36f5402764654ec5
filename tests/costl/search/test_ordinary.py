"""Ordinary sentences: their vectors are stored, and a tokenizer may not know some. Pictures are compared with other videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from costl.pipeline.errors import UsageError
from costl.pipeline.library.best_videos import LocalScan
from costl.pipeline.library.vectors import Vectors
from costl.search.calibrate import ordinary_sentences
from costl.search.ordinary import PictureLevels, ordinary_vectors, picture_levels

FINGERPRINT = {"model": "a", "weights": "b", "fps": 0.5}


def encoder(known: int):
    """Encodes the first `known` ordinary sentences, and refuses the others as a tokenizer does; counts its calls."""
    sentences = ordinary_sentences()
    calls: list[int] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        indices = [sentences.index(text) for text in texts]
        if max(indices) >= known:
            raise UsageError("the tokenizer knows no word of it.")
        return np.array([[index, 1.0] for index in indices], np.float32)

    return encode, calls


@pytest.mark.parametrize("known", [20, 100, 209])
def test_sentences_that_the_tokenizer_does_not_know_are_left_out(tmp_path, known):
    encode, calls = encoder(known)
    vectors = ordinary_vectors(tmp_path, FINGERPRINT, encode)
    assert vectors[:, 0].tolist() == list(range(known))
    before = len(calls)
    np.testing.assert_array_equal(ordinary_vectors(tmp_path, FINGERPRINT, encode), vectors)
    assert len(calls) == before, "the stored vectors were not used"
    ordinary_vectors(tmp_path, FINGERPRINT | {"fps": 1.0}, encode)
    assert len(calls) == before, "frames do not change the vectors of sentences"
    ordinary_vectors(tmp_path, FINGERPRINT | {"weights": "c"}, encode)
    assert len(calls) > before, "other weights give other vectors"


def test_an_encoder_that_does_not_read_english_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"knows 19 of 209 ordinary English sentences"):
        ordinary_vectors(tmp_path, FINGERPRINT, encoder(19)[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"x" * 200])
def test_damaged_vectors_are_encoded_again(tmp_path, content):
    encode, _ = encoder(209)
    expected = ordinary_vectors(tmp_path, FINGERPRINT, encode)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    np.testing.assert_array_equal(ordinary_vectors(tmp_path, FINGERPRINT, encode), expected)


def library(clips: Sequence[int], *, seed: int = 0) -> Vectors:
    """Videos with these numbers of clips and random vectors of length one."""
    values = np.random.default_rng(seed).normal(size=(sum(clips), 8))
    array = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
    counts = np.array(clips, np.int64)
    keys = tuple(f"v{number}" for number in range(len(clips)))
    return Vectors(array, keys, counts.cumsum() - counts, counts, 2.0 * counts, 0.5)


def levels_of(folder, vectors: Vectors) -> PictureLevels:
    return picture_levels(folder, vectors, fingerprint=FINGERPRINT, scan=LocalScan(), progress=lambda _: None)


def test_the_pictures_of_a_small_library_are_its_clips(tmp_path):
    """Each of the seven clips, compared by hand with the clips of the two other videos."""
    vectors = library([2, 4, 1])
    elsewhere = levels_of(tmp_path, vectors).elsewhere(vectors.keys, logit_scale=50.0)
    owner = np.repeat([0, 1, 2], [2, 4, 1])
    cosines = vectors.array.astype(np.float64) @ vectors.array.astype(np.float64).T
    expected = np.where(owner[:, None] == owner, -np.inf, cosines).max(axis=1)
    np.testing.assert_allclose(np.sort(elsewhere.levels), np.sort(50 * expected), atol=1e-3)


def test_only_the_chosen_videos_are_compared(tmp_path):
    vectors = library([2, 4, 1])
    elsewhere = levels_of(tmp_path, vectors).elsewhere(["v0"], logit_scale=1.0)
    expected = (vectors.array[2:].astype(np.float64) @ vectors.array[:2].T.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(np.sort(elsewhere.levels), np.sort(expected), atol=1e-4)


def test_a_single_video_has_no_pictures_elsewhere(tmp_path):
    vectors = library([5])
    assert len(levels_of(tmp_path, vectors).elsewhere(["v0"], logit_scale=50.0).levels) == 0


def test_a_large_library_gives_the_middle_picture_of_each_of_100_videos(tmp_path):
    vectors = library([3] * 150)
    levels = levels_of(tmp_path, vectors)
    own = [np.isinf(row).sum() for row in levels.of_video.values()]
    assert sorted(own) == [0] * 50 + [1] * 100
    first = levels.of_video["v0"]
    middles = (vectors.array[1::3].astype(np.float64) @ vectors.array[:3].T.astype(np.float64)).max(axis=1)
    nearest = np.abs(first[np.isfinite(first), None] - middles).min(axis=1)
    assert nearest.max() < 1e-5


def test_stored_levels_of_pictures_are_used_until_the_library_changes(tmp_path, monkeypatch):
    vectors = library([3] * 5)
    expected = levels_of(tmp_path, vectors)
    with monkeypatch.context() as patch:
        patch.setattr(LocalScan, "highest", lambda *_: pytest.fail("compared again"))
        again = levels_of(tmp_path, vectors)
    for key in vectors.keys:
        np.testing.assert_array_equal(again.of_video[key], expected.of_video[key])
    (tmp_path / "pictures.npz").write_bytes(b"PK damaged")
    np.testing.assert_array_equal(levels_of(tmp_path, vectors).of_video["v0"], expected.of_video["v0"])
    other = library([3] * 5, seed=1)
    assert not np.array_equal(levels_of(tmp_path, other).of_video["v0"], expected.of_video["v0"])
