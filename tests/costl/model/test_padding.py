"""Whatever the company it is asked in, a sentence gets the answer that it gets alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import alone, close, random_inputs, run, small_model

lengths = st.lists(st.integers(1, 24), min_size=1, max_size=4)


@pytest.mark.promise(14)
@settings(max_examples=max(10, settings.default.max_examples // 10))
@given(lengths, st.data(), st.sampled_from([0.0, 50.0]))
def test_padding_changes_no_answer_whatever_the_lengths(clips, data, garbage):
    more = data.draw(st.lists(st.integers(0, len(clips) - 1), max_size=3), label="asked again")
    # A batch holds the videos that are asked about, and no other.
    asked = [(video, data.draw(st.integers(1, 9), label="words")) for video in (*range(len(clips)), *more)]
    model, inputs = small_model(), random_inputs(clips, asked, garbage=garbage)
    together = run(model, inputs)
    for row, (video, _) in enumerate(asked):
        single, real = run(model, alone(inputs, row)), together.positions[row]
        assert real.sum() == single.positions.sum()
        for name in ("foreground", "spans"):
            assert close(getattr(together, name)[row, real], getattr(single, name)[0]), name
        assert close(together.saliency[row, : clips[video]], single.saliency[0])
