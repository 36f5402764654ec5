"""What all sections share: the lines of the page, and measurements of a device that also work on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setup:
    """Where a section computes, and the file of its lines.

    `folder` is shared by all sections. `tiny`: with small inputs, on a CPU.
    """

    device: torch.device
    folder: Path
    file: TextIO
    tiny: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU of CUDA."""
        return self.device.type == "cuda"

    def note(self, text: str) -> None:
        """Writes a paragraph."""
        self.file.write(f"\n{text}\n")

    def table(self, *header: str) -> None:
        """Begins a table; its first column is aligned to the left, all others to the right."""
        self.file.write(f"\n| {' | '.join(header)} |\n|---|{'---:|' * (len(header) - 1)}\n")

    def row(self, *cells: object) -> None:
        """Writes a row of the table, as soon as it was measured."""
        self.file.write(f"| {' | '.join(map(str, cells))} |\n")

    def checks(self, results: Iterable[tuple[str, bool]]) -> None:
        """Writes whether each of these statements is true."""
        self.file.write("\n")
        for statement, is_true in results:
            self.file.write(f"- {'passed' if is_true else '**failed**'}: {statement}\n")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """An error in the block becomes a failed check, and the section goes on."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self.checks([(f"{name}: {type(error).__name__}: {reason[:300]}", False)])

    def wait(self) -> None:
        """Waits until the device has computed everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """The time that the device needs for the work."""
        self.wait()
        started_s = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started_s

    def peak_bytes(self, work: Callable[[], object]) -> float:
        """The most memory that torch has allocated on the GPU during the work; 0 on a CPU."""
        if not self.on_gpu:
            work()
            return 0.0
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return float(torch.cuda.max_memory_allocated(self.device))


def relative_distance(values: Tensor, expected: Tensor) -> float:
    """The relative L2 distance of two tensors."""
    return float((values.double() - expected.double()).norm() / expected.double().norm())
