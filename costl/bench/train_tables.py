"""The measured costs of a training step of each model, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

BASELINE, OURS = "cls", "costl"
PHASES = ("forward", "forward + backward")
BAR = 2.0  # the time of a query with the largest encoder relative to the smallest should not exceed this


@dataclass(frozen=True)
class Cost:
    """One phase: `seconds` of each round, peak `memory` in bytes (None if unknown), `flops` of its matrix products."""

    seconds: tuple[float, ...]
    memory: int | None
    flops: int

    @property
    def median_s(self) -> float:
        """The median of the rounds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range of the rounds, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median_s


@dataclass(frozen=True)
class Row:
    """One model, `kind`, in one case: `queries` about `videos` videos with `tokens` of `width` a frame from the encoder
    `clip`."""

    kind: str
    clip: str
    tokens: int
    width: int
    queries: int
    videos: int
    parameters: int
    costs: Mapping[str, Cost]

    def rate(self, phase: str) -> float:
        """Queries a second."""
        return self.queries / self.costs[phase].median_s

    @property
    def case(self) -> tuple[str, int]:
        """Encoder and number of videos. Only rows of one case are compared."""
        return self.clip, self.videos


@dataclass(frozen=True)
class TrainBench:
    """Every row, grouped by case; a description of the machine, `clips` of a video, `rounds` of each measurement."""

    machine: str
    clips: int
    rounds: int
    rows: tuple[Row, ...]
    exit_code = 0

    def times(self, row: Row, phase: str) -> float:
        """The time relative to the baseline in the same case."""
        return row.costs[phase].median_s / self._baseline(row).costs[phase].median_s

    def times_memory(self, row: Row, phase: str) -> float | None:
        """The peak memory relative to the baseline in the same case, None if unknown."""
        memory = row.costs[phase].memory
        baseline_memory = self._baseline(row).costs[phase].memory
        return memory / baseline_memory if memory is not None and baseline_memory else None

    def growth(self, kind: str, videos: int, phase: str) -> float:
        """The time of a query with the last encoder relative to the first."""
        same = [row for row in self.rows if (row.kind, row.videos) == (kind, videos)]
        return same[0].rate(phase) / same[-1].rate(phase)

    def lines(self) -> list[str]:
        """For the terminal: a block for each case, a line for each model, then the growth with a larger encoder."""
        lines = [
            f"{self.machine}.",
            f"{self.rows[0].queries} queries a batch, {self.clips} clips a video, medians of {self.rounds} rounds in turn; "
            f"+-: half the range; x: times as much as {BASELINE}.",
            "MB: peak memory with the batch, the weights and their gradients; GFLOP: of all matrix products.",
        ]
        for case in dict.fromkeys(row.case for row in self.rows):
            lines += ["", *self._block([row for row in self.rows if row.case == case])]
        return [*lines, *self._growths()]

    def data(self) -> dict[str, Any]:
        """Every number as JSON-compatible values; `growth` by model, videos and phase."""
        kinds = dict.fromkeys(row.kind for row in self.rows)
        videos = dict.fromkeys(row.videos for row in self.rows)
        return {
            "machine": self.machine,
            "clips": self.clips,
            "rounds": self.rounds,
            "rows": [asdict(row) | {"phases": self._phases(row)} for row in self.rows],
            "growth": {k: {str(v): {p: self.growth(k, v, p) for p in PHASES} for v in videos} for k in kinds},
            "bar": BAR,
        }

    def _phases(self, row: Row) -> dict[str, dict[str, float | None]]:
        return {
            phase: {
                "queries_per_s": row.rate(phase),
                "spread": cost.spread,
                "times": self.times(row, phase),
                "times_memory": self.times_memory(row, phase),
            }
            for phase, cost in row.costs.items()
        }

    def _baseline(self, row: Row) -> Row:
        return next(other for other in self.rows if other.case == row.case and other.kind == BASELINE)

    def _block(self, rows: Sequence[Row]) -> list[str]:
        first = rows[0]
        columns = f"{'queries/s':>10}{'+-':>5}{'x':>7}{'MB':>8}{'x':>6}{'GFLOP':>8}"
        return [
            f"{first.clip}: {first.tokens} tokens of {first.width}, {first.queries} queries about {first.videos} videos",
            f"{'':9}{'weights':>8}" + "".join(f"  |{phase:>20}{'':24}" for phase in PHASES).rstrip(),
            f"{'':17}" + "".join(f"  |{columns}" for _ in PHASES),
            *(self._line(row) for row in rows),
        ]

    def _line(self, row: Row) -> str:
        line = f"  {row.kind:7}{row.parameters / 1e6:>7.1f}M"
        for phase, cost in row.costs.items():
            memory = "-" if cost.memory is None else f"{cost.memory / 1e6:.0f}"
            times_memory = self.times_memory(row, phase)
            line += (
                f"  |{row.rate(phase):>10.4g}{cost.spread:>5.0%}{self.times(row, phase):>7.2f}{memory:>8}"
                f"{'-' if times_memory is None else f'{times_memory:.1f}':>6}{cost.flops / 1e9:>8.1f}"
            )
        return line

    def _growths(self) -> list[str]:
        first, last = self.rows[0].clip, self.rows[-1].clip
        if first == last:
            return []
        lines = ["", f"{OURS}, time a query with {last} over {first} (bar {BAR:g}):"]
        for videos in dict.fromkeys(row.videos for row in self.rows):
            growths = ", ".join(f"{phase} {self.growth(OURS, videos, phase):.2f}" for phase in PHASES)
            lines.append(f"  {videos:>3} videos   {growths}")
        return lines
