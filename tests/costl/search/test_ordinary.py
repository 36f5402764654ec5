"""Ordinary sentences: their vectors are stored, and a tokenizer may not know some of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from costl.pipeline.errors import UsageError
from costl.search.calibrate import ordinary_sentences
from costl.search.ordinary import ordinary_vectors

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
