"""What was found inside a cache, said in words for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_BARS = " ▁▂▃▄▅▆▇█"
_UNITS = (("GB", 9), ("MB", 6), ("kB", 3))

Section = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Inspection:
    """`facts` as JSON takes them, by section; `table` says them in words."""

    facts: Mapping[str, Any]
    sections: tuple[Section, ...]

    def table(self) -> str:
        """For the terminal: a heading for each section, a line for each fact."""
        width = max(len(name) for _, lines in self.sections for name, _ in lines) + 2
        told: list[str] = []
        for heading, lines in self.sections:
            told += ["", heading] if told else [heading]
            told += [f"  {name:{width}}{value}".rstrip() for name, value in lines]
        return "\n".join(told)


def cache_sections(facts: Mapping[str, Any]) -> Iterator[Section]:
    """The facts of a whole cache in words."""
    made, videos, sizes, there, words = (facts[name] for name in ("made", "videos", "sizes", "there", "words"))
    form = "one packed file" if facts["packed"] else "an index with its parts beside it"
    yield (
        facts["cache"],
        (
            ("format", f"{facts['format']}, {form}"),
            ("size", ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())),
        ),
    )
    rows, columns = made["patch_grid"]
    patches = f"the frame's and {rows} x {columns} patches" if rows else "the frame's alone"
    space = f"{made['joint_channels']} channels, temperature {made['logit_scale']:.4g}"
    stored = ", ".join(f"{name} {one['dtype']} {one['shape']}" for name, one in facts["stored"].items())
    yield (
        "Features",
        (
            ("model", made["model"] or "not known"),
            ("weights", f"{made['weights'] or 'not known'}{_place_text(there['weights'])}"),
            ("sampling", f"{made['fps']:g} clips a second, {1 / made['fps']:g} s each"),
            ("tokens", f"{made['tokens_per_clip']} a clip ({patches}), {made['channels']} channels"),
            ("stored", stored or "nothing that can be read"),
            ("joint space", space if made["joint_known"] else "not known"),
        ),
    )
    yield "Videos", tuple(_video_lines(videos, there))
    yield (
        "Annotations",
        tuple(
            (name, f"{one['rows']} rows, {one['queries']} queries, {one['videos']} videos{_lost(one)}")
            for name, one in facts["splits"].items()
        )
        or (("splits", "none"),),
    )
    cut = f", {words['cut']} longer than the model reads" if words["cut"] else ""
    yield (
        "Words",
        (("queries", f"{words['queries']} of {words['tokens']} tokens, {words['channels']} channels{cut}"),),
    )
    if facts["settings"]:
        yield "Settings of training that came with the videos", (("", json.dumps(facts["settings"])),)
    yield (
        f"Fingerprint {facts['digest']}",
        tuple(
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in sorted(facts["fingerprint"].items())
        ),
    )


def video_sections(facts: Mapping[str, Any]) -> Iterator[Section]:
    """The facts of one video in words."""
    row, times, tokens = facts["row"], facts["times"], facts["tokens"]
    yield (
        f"{row['name']} in {facts['cache']}",
        tuple((name, f"{value}") for name, value in row.items() if name not in ("name", "reason")),
    )
    yield (
        "Times",
        (
            ("first, last", f"{times['first_s']:.3f} s, {times['last_s']:.3f} s of {row['duration_s']:.3f} s"),
            ("largest gap", f"{times['largest_gap_s']:.3f} s, {times['repeated']} frames shown twice"),
            (
                "from clip centres",
                f"{times['mean_distance_s']:.3f} s on average, {times['largest_distance_s']:.3f} s at most",
            ),
        ),
    )
    patch = "no patches" if tokens["patch_norm"] is None else f"{tokens['patch_norm']:.3f} of a patch"
    what = "frame" if tokens["patch_norm"] is None else "patch"
    yield (
        "Tokens",
        (
            ("finite", "all" if tokens["finite"] else "NOT ALL: extract this video again"),
            ("mean norm", f"{tokens['frame_norm']:.3f} of the frame's token, {patch}"),
            (f"{what} norms", f"{tokens['least']:.2f} [{bars(tuple(tokens['histogram']))}] {tokens['most']:.2f}"),
        ),
    )
    yield (
        "Bytes",
        tuple(
            (label, f"{one['dtype']} {one['shape']}: {one['bytes']} bytes at {one['offset']} of {one['file']}")
            for label, one in facts["arrays"].items()
        ),
    )


def bars(counts: tuple[int, ...]) -> str:
    """A small histogram in one line of text; a bin that holds anything is seen."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def size_text(size_bytes: int) -> str:
    """Bytes for a person."""
    for unit, power in _UNITS:
        if size_bytes >= 10**power:
            return f"{size_bytes / 10**power:.1f} {unit}"
    return f"{size_bytes} bytes"


def _video_lines(videos: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "with features",
        f"{videos['with_features']}, {videos['hours']:.2f} hours, {videos['clips']} clips",
    )
    if videos["without"]:
        yield "without", ", ".join(f"{count} {status}" for status, count in sorted(videos["without"].items()))
    decoders = ", ".join(f"{name or 'not known'} ({count})" for name, count in sorted(videos["decoders"].items()))
    yield "decoded by", f"{decoders or 'nothing'}, {videos['repaired_frames']} frames repaired"
    if there["videos_folder"] is not None:
        yield "files", f"{there['videos_folder']}: {there['videos']} of {videos['with_features']} are there"


def _place_text(there: bool | None) -> str:
    return {None: "", True: " (there)", False: " (no longer there)"}[there]


def _lost(split: Mapping[str, int]) -> str:
    return f", {split['without_features']} of them without features" if split["without_features"] else ""
