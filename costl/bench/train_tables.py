"""What a step of training costs each model, in numbers, and the tables of it: pure, made from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

BASELINE, OURS = "cls", "costl"
PHASES = ("forward", "forward + backward")
BAR = 2.0  # times as long as with the smallest CLIP may a query take with the largest


@dataclass(frozen=True)
class Cost:
    """One phase: `seconds` of each round, peak `memory` in bytes (None where nobody can tell), `flops` of its products."""

    seconds: tuple[float, ...]
    memory: int | None
    flops: int

    @property
    def middle_s(self) -> float:
        """The median of the rounds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the way from the quickest round to the slowest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.middle_s


@dataclass(frozen=True)
class Row:
    """One model, `kind`, in one case: `queries` about `videos` videos with `tokens` a frame of `width` by `clip`."""

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
        return self.queries / self.costs[phase].middle_s

    @property
    def case(self) -> tuple[str, int]:
        """What rows must share to be compared."""
        return self.clip, self.videos


@dataclass(frozen=True)
class TrainBench:
    """Every row, those of one case together; `machine` in words, `clips` a video, `rounds` of each measurement."""

    machine: str
    clips: int
    rounds: int
    rows: tuple[Row, ...]
    exit_code = 0

    def times(self, row: Row, phase: str) -> float:
        """How many times as long as the baseline it takes in the same case."""
        return row.costs[phase].middle_s / self._baseline(row).costs[phase].middle_s

    def times_memory(self, row: Row, phase: str) -> float | None:
        """How many times as much memory as the baseline it needs in the same case."""
        ours, theirs = row.costs[phase].memory, self._baseline(row).costs[phase].memory
        return ours / theirs if ours is not None and theirs else None

    def growth(self, kind: str, videos: int, phase: str) -> float:
        """How many times as long a query takes with the last CLIP as with the first."""
        same = [row for row in self.rows if (row.kind, row.videos) == (kind, videos)]
        return same[0].rate(phase) / same[-1].rate(phase)

    def lines(self) -> list[str]:
        """For the terminal: a block for each case, a line for each model, then how a larger CLIP tells."""
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
        """Every number, for machines; `growth` by model, videos and phase."""
        kinds, videos = dict.fromkeys(row.kind for row in self.rows), dict.fromkeys(row.videos for row in self.rows)
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
        one, columns = rows[0], f"{'queries/s':>10}{'+-':>5}{'x':>7}{'MB':>8}{'x':>6}{'GFLOP':>8}"
        return [
            f"{one.clip}: {one.tokens} tokens of {one.width}, {one.queries} queries about {one.videos} videos",
            f"{'':9}{'weights':>8}" + "".join(f"  |{phase:>20}{'':24}" for phase in PHASES).rstrip(),
            f"{'':17}" + "".join(f"  |{columns}" for _ in PHASES),
            *(self._line(row) for row in rows),
        ]

    def _line(self, row: Row) -> str:
        line = f"  {row.kind:7}{row.parameters / 1e6:>7.1f}M"
        for phase, cost in row.costs.items():
            memory, times = "-", self.times_memory(row, phase)
            if cost.memory is not None:
                memory = f"{cost.memory / 1e6:.0f}"
            line += (
                f"  |{row.rate(phase):>10.4g}{cost.spread:>5.0%}{self.times(row, phase):>7.2f}{memory:>8}"
                f"{'-' if times is None else f'{times:.1f}':>6}{cost.flops / 1e9:>8.1f}"
            )
        return line

    def _growths(self) -> list[str]:
        first, last = self.rows[0].clip, self.rows[-1].clip
        if first == last:
            return []
        lines = ["", f"{OURS}, time a query with {last} over {first} (bar {BAR:g}):"]
        for videos in dict.fromkeys(row.videos for row in self.rows):
            told = ", ".join(f"{phase} {self.growth(OURS, videos, phase):.2f}" for phase in PHASES)
            lines.append(f"  {videos:>3} videos   {told}")
        return lines
