"""Fingerprints: equal for equal settings, different for different ones, and each difference is named."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.pipeline.fingerprint import canonical_json, digest, explain_difference

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
SETTINGS = st.dictionaries(st.text(max_size=8), SCALARS, max_size=6)


@given(SETTINGS)
def test_the_order_of_the_fields_does_not_matter(settings):
    backwards = dict(reversed(list(settings.items())))
    assert canonical_json(settings) == canonical_json(backwards)
    assert digest(settings) == digest(backwards)


@given(SETTINGS, SETTINGS)
def test_a_difference_is_explained_exactly_when_the_texts_differ(old, new):
    if canonical_json(old) == canonical_json(new):
        assert explain_difference(old, new) == []
    elif not any(old.get(field, ...) == new.get(field, ...) for field in old.keys() | new.keys()):
        assert len(explain_difference(old, new)) == len(old.keys() | new.keys())


@pytest.mark.promise(4)
def test_each_field_that_differs_is_named_with_both_values():
    old = {"fps": 0.5, "model": "ViT-B-32", "same": 1}
    new = {"fps": 1.0, "model": "ViT-L-14", "same": 1}
    assert explain_difference(old, new) == [
        "fps: cache has 0.5, asked for 1.0",
        "model: cache has ViT-B-32, asked for ViT-L-14",
    ]


def test_a_field_that_only_one_side_has_is_named():
    assert explain_difference({"old": 1}, {"new": 2}) == [
        "new: cache has nothing, asked for 2",
        "old: cache has 1, asked for nothing",
    ]


def test_hashes_are_shown_by_their_first_digits():
    [line] = explain_difference({"weights": "a" * 64}, {"weights": "b" * 64})
    assert line == f"weights: cache has {'a' * 12}…, asked for {'b' * 12}…"


def test_the_digest_is_the_same_in_another_process():
    settings = {"model": "ViT-B-32", "fps": 0.5, "wörter": ["a", 1, None]}
    script = f"from costl.pipeline.fingerprint import digest; print(digest({settings!r}))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(settings)


def test_a_value_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"fps": float("nan")})
