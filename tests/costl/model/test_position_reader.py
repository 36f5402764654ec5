"""The position reader learns what it is for: how two heads are placed, and how one moves; padding changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.temporal import PositionReader

WIDTH, CLIPS, QUERIES = 16, 12, 64


def left_of(positions: Tensor, direction: Tensor) -> Tensor:
    """Whether the first head is left of the second one, or right of it where the direction is 1."""
    return (positions[..., 2] - positions[..., 0]) * direction[:, None] > 0


def goes_left(positions: Tensor, direction: Tensor) -> Tensor:
    """Whether the first head was farther to the right a clip ago, or to the left."""
    before = F.pad(positions[:, :-1, 0], (1, 0))
    return (before - positions[..., 0]) * direction[:, None] > 0


def passes_left(positions: Tensor, direction: Tensor) -> Tensor:
    """Both at once."""
    return left_of(positions, direction) & goes_left(positions, direction)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(positions of two heads [b t 4], texts [b d], the direction that each text is about [b])."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn(QUERIES, CLIPS, 4, generator=generator)
    direction = 2.0 * torch.randint(0, 2, (QUERIES,), generator=generator) - 1
    return positions, direction[:, None] * torch.linspace(-1, 1, WIDTH), direction


@pytest.mark.parametrize("truth", [left_of, goes_left, passes_left])
def test_it_learns_how_two_heads_are_placed_and_how_one_moves(truth):
    torch.manual_seed(0)
    reader = PositionReader(position_width=4, width=WIDTH, kernel=5)
    head = nn.Linear(WIDTH, 1)
    optimizer = torch.optim.AdamW([*reader.parameters(), *head.parameters()], 5e-3)
    mask = torch.ones(QUERIES, CLIPS, dtype=torch.bool)

    def logits(seed: int) -> tuple[Tensor, Tensor]:
        positions, text, direction = batch(seed)
        return head(reader(positions, mask, text))[..., 0], truth(positions, direction)

    for step in range(300):
        scores, right = logits(step)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(scores, right.float()).backward()
        optimizer.step()
    with torch.no_grad():
        scores, right = logits(10_000)
    assert ((scores > 0) == right).float().mean() > 0.9


def test_padding_changes_no_real_clip():
    torch.manual_seed(0)
    reader = PositionReader(position_width=4, width=WIDTH, kernel=5)
    positions, text, _ = batch(0)
    mask = torch.arange(CLIPS).expand(QUERIES, -1) < 7
    noise = torch.where(mask[..., None], positions, 100 * torch.randn_like(positions))
    with torch.no_grad():
        one, other = reader(positions, mask, text), reader(noise, mask, text)
    torch.testing.assert_close(one[mask], other[mask])
