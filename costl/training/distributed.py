"""The processes of one training, started by torchrun: what they tell each other, and how all end when one does.

Words and numbers of the person's (settings, errors, predictions) go through gloo, tensors of a step through NCCL where
they are on GPUs. Every call here is made by all processes, in the same order.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch

# Its functions take the group that is there when it is imported as a default, which keeps gloo's threads alive until the
# interpreter ends, where they may abort the process. Whoever builds an optimiser imports it; here it finds no group yet.
import torch.distributed.nn.functional
from torch import Tensor
from torch import distributed as dist

from costl.pipeline.errors import CostlError, UsageError
from costl.training.launch import Launch, launched

T = TypeVar("T")
LONGEST_WAIT = timedelta(minutes=30)  # for another process: the first one may be writing to a slow disk


class LostError(CostlError):
    """Another process of the training has ended, or cannot be reached any more."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work; alone by default, when every call here is free.

    `tensors` is the process group that sums tensors, None: the default one.
    """

    launch: Launch = field(default_factory=Launch)
    tensors: Any = None

    @property
    def count(self) -> int:
        """How many there are."""
        return self.launch.count

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return self.launch.rank

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks for all."""
        return self.launch.first

    def owns(self, number: int) -> bool:
        """Whether piece `number` of a work that all share is for this process."""
        return number % self.count == self.rank

    def device(self, name: str) -> str:
        """The device of this process where a person asked for `name`: on GPUs one for each process of a machine.

        Raises UsageError where there are fewer GPUs than processes, or one GPU was named for all.
        """
        if self.count == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if ":" in name and self.launch.beside > 1:
            raise UsageError(
                f"--device {name} names one device for the {self.launch.beside} processes of a machine. Leave it out, or "
                "give --device cuda: each takes a GPU of its own."
            )
        if name in ("auto", "cuda") and torch.cuda.is_available():
            if self.launch.local >= torch.cuda.device_count():
                raise UsageError(
                    f"{self.launch.beside} processes on {socket.gethostname()}, which has {torch.cuda.device_count()} "
                    "GPUs. Start one for each GPU (torchrun --nproc_per_node=gpu), or train with --device cpu."
                )
            return f"cuda:{self.launch.local}"
        return name

    def on(self, device: torch.device) -> Ranks:
        """The same, ready to sum tensors on `device`. Raises UsageError where the processes' kinds of device differ."""
        if self.count == 1:
            return self
        self.same({"kind of device": device.type})
        if device.type != "cuda":
            return self
        torch.cuda.set_device(device)
        with _reached(self):
            return replace(self, tensors=dist.new_group(backend="nccl", timeout=LONGEST_WAIT))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside has worked for all or for none: a CostlError of one process is raised in every one."""
        if self.count == 1:
            yield
            return
        error: CostlError | None = None
        try:
            yield
        except LostError:
            raise
        except CostlError as caught:
            error = caught
        errors = self.gather(error)
        failed = next((rank for rank, found in enumerate(errors) if found is not None), None)
        if failed is not None:
            raise self._of_all(errors, failed)

    def _of_all(self, errors: list[CostlError | None], failed: int) -> CostlError:
        error = errors[failed]
        assert error is not None
        if failed > 0:  # a matter of the machine that this one is on
            error.args = (f"process {failed} of {self.count}: {error}",)
        error.told = not self.first
        return error

    def same(self, facts: Mapping[str, str]) -> None:
        """Raises UsageError that names the first of these that is not the same in all processes, and in which."""
        for rank, others in enumerate(self.gather(dict(facts))):
            for name in facts:
                if others[name] != facts[name]:
                    error = UsageError(
                        f"processes {self.rank} and {rank} of {self.count} disagree about the {name}. Start all of them "
                        "with the same command, versions, cache and run."
                    )
                    error.told = not self.first
                    raise error

    def tell(self, value: T | None) -> T:
        """The first process's `value`, in all of them."""
        told = self.gather(value if self.first else None)[0]
        assert told is not None, "the first process says something"
        return told

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; any that can be pickled."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _reached(self):
            dist.all_gather_object(values, value)
        return values

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place; the same bits in each."""
        if self.count > 1:
            with _reached(self):
                dist.all_reduce(tensor, group=self.tensors)
        return tensor


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, until the work inside is done; this one alone where it did not.

    Raises LostError when the others cannot be reached.
    """
    launch = launched()
    if launch.count == 1:
        yield ALONE
        return
    ranks = Ranks(launch)
    with _reached(ranks):
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _reached(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        lost = LostError(
            f"another of the {ranks.count} processes has ended or cannot be reached ({str(error).splitlines()[0][:120]}). "
            "If it said why, that is above. What was finished is kept: go on with --resume, under torchrun again."
        )
        lost.told = not ranks.first
        raise lost from error
