"""The numbers of one comparison of extraction with its limits, and the tables of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from costl.pipeline.bench.measure import Cost

BAR = 0.9


@dataclass(frozen=True)
class Comparison:
    """The costs of extracting `frames` of `videos` at `fps`, for one model and one set of videos (`clips`).

    `decode`: decoding alone, in extraction's own processes. `forward`: the network alone, on prepared frames. `extract`:
    extraction from end to end. `shared`: decoding and network share the same `cores`. `imitated`: `extract` with an
    imitated accelerator of `rate` frames a second. `plain`: the straightforward way, on `plain_frames` frames.
    """

    clips: str
    model: str
    device: str
    batch: int
    fps: float
    decoder: str
    videos: int
    frames: int
    cores: int
    shared: bool
    decode: Cost
    forward: Cost
    extract: Cost
    imitated: Cost | None = None
    rate: float = 0.0
    plain: Cost | None = None
    plain_frames: int = 0

    @property
    def limit_s(self) -> float:
        """The least possible time for all frames: that of the slower half.

        If both halves share the cores, it is at least the CPU seconds of both divided by the cores.
        """
        slower_half_s = max(self.decode.wall_s, self.forward.wall_s)
        if not self.shared:
            return slower_half_s
        return max(slower_half_s, (self.decode.cpu_s + self.forward.cpu_s) / self.cores)

    @property
    def ratio(self) -> float:
        """The limit relative to the time of extraction: 1 if extraction is as fast as possible."""
        return self.limit_s / self.extract.wall_s

    @property
    def of_forward(self) -> float:
        """Extraction's frames a second relative to the network alone."""
        return self.forward.wall_s / self.extract.wall_s

    @property
    def imitated_ratio(self) -> float | None:
        """`ratio` with the imitated accelerator, which leaves all cores to decoding: its limit is the slower half."""
        if self.imitated is None:
            return None
        return max(self.decode.wall_s, self.frames / self.rate) / self.imitated.wall_s

    @property
    def times_faster(self) -> float | None:
        """Extraction's frames a second relative to the straightforward way."""
        if self.plain is None:
            return None
        return self.per_second(self.extract) * self.plain.wall_s / self.plain_frames

    def per_second(self, cost: Cost) -> float:
        """Frames a second at `cost` for all frames."""
        return self.frames / cost.wall_s

    def data(self) -> dict[str, Any]:
        """Every number, for JSON. Costs are in seconds for all frames."""
        derived = ("limit_s", "ratio", "of_forward", "imitated_ratio", "times_faster")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def table(comparisons: Sequence[Comparison], repeats: int) -> list[str]:
    """The lines of all tables: each half and the whole by model, the imitated accelerator, and the straightforward way."""
    models = dict.fromkeys(row.model for row in comparisons)
    blocks = [_halves([row for row in comparisons if row.model == model], repeats) for model in models]
    imitated = [row for row in comparisons if row.imitated]
    if imitated:
        blocks.append(_imitated(imitated))
    plain = [row for row in comparisons if row.plain]
    if plain:
        blocks.append(_plain(plain))
    return "\n\n".join(blocks).split("\n")


def _halves(rows: Sequence[Comparison], repeats: int) -> str:
    first = rows[0]
    limit = (
        "the limit is the slower half, or what both halves' CPU seconds take on all cores, which they share"
        if first.shared
        else f"the limit is the slower half (bar {BAR})"
    )
    lines = [
        f"{first.model} on {first.device}, batches of {first.batch}, {first.cores} cores, {first.fps:g} fps, "
        f"decoder {first.decoder};",
        f"{limit}.",
        f"Sampled frames a second (CPU ms a frame), best of {repeats}:",
        f"{'':30}{'frames':>8}{'decode alone':>18}{'CLIP alone':>18}{'end to end':>18}{'limit':>9}{'ratio':>7}{'of CLIP':>9}",
    ]
    for row in rows:
        cells = "".join(_cell(row, cost) for cost in (row.decode, row.forward, row.extract))
        limit_rate = row.frames / row.limit_s
        lines.append(f"{row.clips:30}{row.frames:>8}{cells}{limit_rate:>9.1f}{row.ratio:>7.2f}{row.of_forward:>9.2f}")
    return "\n".join(lines)


def _cell(row: Comparison, cost: Cost) -> str:
    return f"{f'{row.per_second(cost):.1f} ({1000 * cost.cpu_s / row.frames:.1f})':>18}"


def _imitated(rows: Sequence[Comparison]) -> str:
    lines = [
        "An imitated accelerator (a stand-in for CLIP that sleeps; no network runs), so that decoding has the cores;",
        f"frames a second, the limit is the slower half (bar {BAR}):",
        f"{'':30}{'decode alone':>18}{'stand-in alone':>18}{'end to end':>18}{'ratio':>7}",
    ]
    for row in rows:
        assert row.imitated is not None
        rates = (row.per_second(row.decode), row.rate, row.per_second(row.imitated))
        lines.append(f"{row.clips:30}" + "".join(f"{rate:>18.1f}" for rate in rates) + f"{row.imitated_ratio:>7.2f}")
    return "\n".join(lines)


def _plain(rows: Sequence[Comparison]) -> str:
    lines = [
        "The straightforward way (decord, PIL, a batch a video, one process) makes the same tokens; frames a second:",
        f"{'':30}{'model':>28}{'straightforward':>18}{'ours':>9}{'times faster':>14}",
    ]
    for row in rows:
        assert row.plain is not None
        rates = f"{row.plain_frames / row.plain.wall_s:>18.1f}{row.per_second(row.extract):>9.1f}"
        lines.append(f"{row.clips:30}{row.model:>28}{rates}{row.times_faster:>14.1f}")
    return "\n".join(lines)
