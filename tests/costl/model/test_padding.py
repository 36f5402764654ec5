"""A query gets the same outputs in any batch as in a batch of one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import batch_of_one, close, random_inputs, run, small_model

lengths = st.lists(st.integers(1, 24), min_size=1, max_size=4)


@pytest.mark.promise(14)
@settings(max_examples=max(10, settings.default.max_examples // 10))
@given(lengths, st.data(), st.sampled_from([0.0, 50.0]))
def test_padding_changes_no_output_for_any_lengths(clips, data, garbage):
    more = data.draw(st.lists(st.integers(0, len(clips) - 1), max_size=3), label="queries about the same videos")
    # A batch holds only the videos of its queries.
    queries = [(video, data.draw(st.integers(1, 9), label="words")) for video in (*range(len(clips)), *more)]
    model, inputs = small_model(), random_inputs(clips, queries, garbage=garbage)
    batched = run(model, inputs)
    for row, (video, _) in enumerate(queries):
        single, real = run(model, batch_of_one(inputs, row)), batched.position_mask[row]
        assert real.sum() == single.position_mask.sum()
        for name in ("foreground", "spans"):
            assert close(getattr(batched, name)[row, real], getattr(single, name)[0]), name
        assert close(batched.saliency[row, : clips[video]], single.saliency[0])
