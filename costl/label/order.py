"""Which video to label next: those without labels first, then those with few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def order_to_label(names: Sequence[str], labels: Mapping[str, int]) -> list[str]:
    """The names of videos, that to label first in front. `labels` is the number of labels of each.

    An order that asks for more than coverage of the library replaces this function.
    """
    return sorted(names, key=lambda name: (labels.get(name, 0), name))
