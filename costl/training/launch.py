"""The rank of this process and the number of processes, as torchrun sets them in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """`rank` of `world_size` processes; `local_rank` of the `local_world_size` processes on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """The variables that torchrun (or another launcher) sets; a single process where they are missing."""
    if not all(environment.get(name) for name in NEEDED):
        return Launch()
    rank = int(environment["RANK"])
    world_size = int(environment["WORLD_SIZE"])
    local_rank = int(environment.get("LOCAL_RANK", rank))
    local_world_size = int(environment.get("LOCAL_WORLD_SIZE", world_size))
    return Launch(rank, world_size, local_rank, local_world_size)
