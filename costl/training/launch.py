"""Which of how many processes of one training this is, as torchrun tells each of them in its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """`rank` of `count` processes, `local` among the `beside` on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0
    beside: int = 1

    @property
    def first(self) -> bool:
        """The one that writes and speaks for all."""
        return self.rank == 0


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """What torchrun (or another launcher that sets the same variables) says; one process alone where nobody does."""
    if not all(environment.get(name) for name in NEEDED):
        return Launch()
    rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local = int(environment.get("LOCAL_RANK", rank))
    return Launch(rank, count, local, int(environment.get("LOCAL_WORLD_SIZE", count)))
