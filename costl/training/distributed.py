"""The processes of one training that torchrun started: values and errors that they share, and tensors that they sum.

Python objects (settings, errors, predictions) go through gloo; the tensors of a step go through NCCL when they are on
GPUs. All processes must make the same calls in the same order.
"""

from __future__ import annotations

import gc
import socket
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch

# This module keeps the process group that exists when it is imported, and with it gloo's threads, which may abort the
# process when the interpreter ends. Every optimizer imports it. Here it is imported before there is a group.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch import distributed as dist

from costl.pipeline.errors import CostlError, UsageError
from costl.training.launch import read_launch

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # for another process: the main one may be writing to a slow disk


class ProcessLostError(CostlError):
    """Another process of the training has ended or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work; a single process by default, for which every call here is free.

    It is process `rank` of `world_size`, and `local_rank` of the `local_world_size` processes on this machine. `tensors` is
    the process group that sums tensors, None for the default group.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    tensors: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process for the option `--device name`: on GPUs, each process of a machine has its own.

        Raises UsageError when there are fewer GPUs than processes, or when `name` is one GPU for all of them.
        """
        if self.world_size == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if ":" in name and self.local_world_size > 1:
            raise UsageError(
                f"--device {name} names one device for the {self.local_world_size} processes of a machine. Leave it "
                "out, or give --device cuda: each process then takes its own GPU."
            )
        if name in ("auto", "cuda") and torch.cuda.is_available():
            if self.local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"{self.local_world_size} processes on {socket.gethostname()}, which has "
                    f"{torch.cuda.device_count()} GPUs. Start one process for each GPU (torchrun --nproc_per_node=gpu), or "
                    "train with --device cpu."
                )
            return f"cuda:{self.local_rank}"
        return name

    def for_device(self, device: torch.device) -> Ranks:
        """The same, ready to sum tensors on `device`. Raises UsageError when the processes differ in the kind of device."""
        if self.world_size == 1:
            return self
        self.require_same({"kind of device": device.type})
        if device.type != "cuda":
            return self
        torch.cuda.set_device(device)
        with self.translate_errors():
            return replace(self, tensors=dist.new_group(backend="nccl", timeout=TIMEOUT))

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are averaged over the processes; a single process has it unchanged."""
        if self.world_size == 1:
            return module
        with self.translate_errors():
            # Weights are unused in a batch without moments, and with a loss of weight 0.
            return nn.parallel.DistributedDataParallel(module, process_group=self.tensors, find_unused_parameters=True)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """The block succeeds in all processes or fails in all: a CostlError of one process is raised in every process."""
        if self.world_size == 1:
            yield
            return
        error: CostlError | None = None
        try:
            yield
        except ProcessLostError:
            raise
        except CostlError as caught:
            error = caught
        errors = self.all_gather(error)
        failed_rank = next((rank for rank, other in enumerate(errors) if other is not None), None)
        if failed_rank is not None:
            raise self._shared_error(errors, failed_rank)

    def _shared_error(self, errors: list[CostlError | None], failed_rank: int) -> CostlError:
        error = errors[failed_rank]
        assert error is not None
        if failed_rank > 0:  # the cause may be the machine of that process
            error.args = (f"process {failed_rank} of {self.world_size}: {error}",)
        error.reported = not self.is_main
        return error

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raises UsageError that names the first fact that differs between processes, and the process it differs in."""
        for rank, others in enumerate(self.all_gather(dict(facts))):
            for name in facts:
                if others[name] != facts[name]:
                    error = UsageError(
                        f"processes {self.rank} and {rank} of {self.world_size} disagree about the {name}. Start all of them "
                        "with the same command, versions, cache and run."
                    )
                    error.reported = not self.is_main
                    raise error

    def broadcast(self, value: T | None) -> T:
        """The `value` of the main process, in every process."""
        main_value = self.all_gather(value if self.is_main else None)[0]
        assert main_value is not None, "the main process has a value"
        return main_value

    def all_gather(self, value: T) -> list[T]:
        """The value of every process, by rank; values must be picklable."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.translate_errors():
            dist.all_gather_object(values, value)
        return values

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes, in place; the same bits in each process."""
        if self.world_size > 1:
            with self.translate_errors():
                dist.all_reduce(tensor, group=self.tensors)
        return tensor

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raises ProcessLostError for an error of a call in the block that needs the other processes."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if self.world_size == 1 or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0][:120]
            lost = ProcessLostError(
                f"another of the {self.world_size} processes has ended or cannot be reached ({reason}). If it printed a "
                "reason, see above. Finished steps are saved: continue with --resume, under torchrun again."
            )
            lost.reported = not self.is_main
            raise lost from error


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group() -> Iterator[Ranks]:
    """The processes that torchrun started, connected until the block ends; without torchrun, this single process.

    Raises ProcessLostError when the others cannot be reached.
    """
    launch = read_launch()
    if launch.world_size == 1:
        yield SINGLE_PROCESS
        return
    ranks = Ranks(**vars(launch))
    with ranks.translate_errors():
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield ranks
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # what still uses the group would keep its threads alive until the interpreter ends
        dist.destroy_process_group()
