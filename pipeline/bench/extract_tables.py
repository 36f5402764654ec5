"""One race of extraction against its limits, in numbers, and the tables of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from costl.pipeline.bench.measure import Cost

BAR = 0.9


@dataclass(frozen=True)
class Race:
    """`frames` of `videos`, sampled at `fps`: what each half alone takes for all of them, and what all of it takes.

    `decode` in extraction's own processes, `forward` of prepared frames through the network, `extract` from end to end
    with writing. `shared`: both halves need the same `cores`. `imitated`: `extract` with a stand-in for the network that
    sleeps n / `rate` seconds. `plain`: the straightforward way, for `plain_frames`.
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
        """The least time for all frames: that of the slower half, and where both share the cores, until these have done
        the CPU seconds of both."""
        halves = max(self.decode.wall_s, self.forward.wall_s)
        return max(halves, (self.decode.cpu_s + self.forward.cpu_s) / self.cores) if self.shared else halves

    @property
    def ratio(self) -> float:
        """How near extraction comes to its limit, 1 at it."""
        return self.limit_s / self.extract.wall_s

    @property
    def of_forward(self) -> float:
        """Extraction's frames a second as a share of the network's alone."""
        return self.forward.wall_s / self.extract.wall_s

    @property
    def imitated_ratio(self) -> float | None:
        """The same with the stand-in, which leaves the cores to decoding: its limit is the slower half."""
        if self.imitated is None:
            return None
        return max(self.decode.wall_s, self.frames / self.rate) / self.imitated.wall_s

    @property
    def times_faster(self) -> float | None:
        """Extraction's frames a second over those of the straightforward way."""
        if self.plain is None:
            return None
        return self.per_second(self.extract) * self.plain.wall_s / self.plain_frames

    def per_second(self, cost: Cost) -> float:
        """Frames a second of something that took `cost` for all frames."""
        return self.frames / cost.wall_s

    def data(self) -> dict[str, Any]:
        """Every number, for machines: costs in seconds for all frames."""
        derived = ("limit_s", "ratio", "of_forward", "imitated_ratio", "times_faster")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def table(races: Sequence[Race], repeats: int) -> list[str]:
    """For the terminal: the halves and the whole, then the imitated accelerator, then the straightforward way."""
    blocks = [_halves([race for race in races if race.model == model], repeats) for model in _models(races)]
    blocks += [_imitated([race for race in races if race.imitated])] if any(race.imitated for race in races) else []
    blocks += [_plain([race for race in races if race.plain])] if any(race.plain for race in races) else []
    return "\n\n".join(blocks).split("\n")


def _models(races: Sequence[Race]) -> list[str]:
    return list(dict.fromkeys(race.model for race in races))


def _halves(races: Sequence[Race], repeats: int) -> str:
    one = races[0]
    limit = (
        "the limit is the slower half, or what both halves' CPU seconds take on all cores, which they share"
        if one.shared
        else f"the limit is the slower half (bar {BAR})"
    )
    lines = [
        f"{one.model} on {one.device}, batches of {one.batch}, {one.cores} cores, {one.fps:g} fps, decoder {one.decoder};",
        f"{limit}.",
        f"Sampled frames a second (CPU ms a frame), best of {repeats}:",
        f"{'':30}{'frames':>8}{'decode alone':>18}{'CLIP alone':>18}{'end to end':>18}{'limit':>9}{'ratio':>7}{'of CLIP':>9}",
    ]
    for race in races:
        cells = "".join(_cell(race, cost) for cost in (race.decode, race.forward, race.extract))
        limit_rate = race.frames / race.limit_s
        lines.append(
            f"{race.clips:30}{race.frames:>8}{cells}{limit_rate:>9.1f}{race.ratio:>7.2f}{race.of_forward:>9.2f}"
        )
    return "\n".join(lines)


def _cell(race: Race, cost: Cost) -> str:
    return f"{f'{race.per_second(cost):.1f} ({1000 * cost.cpu_s / race.frames:.1f})':>18}"


def _imitated(races: Sequence[Race]) -> str:
    lines = [
        "An imitated accelerator (a stand-in for CLIP that sleeps; no network runs), so that decoding has the cores;",
        f"frames a second, the limit is the slower half (bar {BAR}):",
        f"{'':30}{'decode alone':>18}{'stand-in alone':>18}{'end to end':>18}{'ratio':>7}",
    ]
    for race in races:
        assert race.imitated is not None
        rates = (race.per_second(race.decode), race.rate, race.per_second(race.imitated))
        lines.append(f"{race.clips:30}" + "".join(f"{rate:>18.1f}" for rate in rates) + f"{race.imitated_ratio:>7.2f}")
    return "\n".join(lines)


def _plain(races: Sequence[Race]) -> str:
    lines = [
        "The straightforward way (decord, PIL, a batch a video, one process) makes the same tokens; frames a second:",
        f"{'':30}{'model':>28}{'straightforward':>18}{'ours':>9}{'times faster':>14}",
    ]
    for race in races:
        assert race.plain is not None
        rates = f"{race.plain_frames / race.plain.wall_s:>18.1f}{race.per_second(race.extract):>9.1f}"
        lines.append(f"{race.clips:30}{race.model:>28}{rates}{race.times_faster:>14.1f}")
    return "\n".join(lines)
