"""A step repeated in several threads gives the same gradients to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from costl.bench.train import Candidate, Shape, synthetic_batch
from costl.config import KINDS

# Large enough for torch to use both threads; each video has eight queries.
SHAPE = Shape("shared", (3, 3), 192, 512, 128, queries=32, clips=28)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.promise(11)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit_of_a_gradient_from_one_time_to_the_next(two_threads, kind):
    batch = synthetic_batch(SHAPE, 4, patches=SHAPE.config(kind).patches)
    candidate = Candidate(kind, SHAPE, batch, torch.device("cpu"))

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)  # of dropout
        candidate.backward()
        named = candidate.model.named_parameters()
        return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}

    first = gradients()
    for _ in range(2):
        again = gradients()
        assert [name for name in first if not torch.equal(first[name], again[name])] == []
