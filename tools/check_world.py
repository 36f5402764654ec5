"""Does a sample world measure what it should? Scores an oracle that is told where every thing is at every clip.

    costl data sample dir/
    python tools/check_world.py dir/

The oracle reads each query as English, looks the things up in objects.jsonl and calls a clip true when their places say so.
What it misses, nobody could know: it sees places at the middle of the clips only, as a model does.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query, parse_jsonl
from costl.metrics.compute import compute_metrics

CLIP_S = 2.0
MOVING = 0.03  # sides per clip
QUERY = re.compile(r"the (?P<subject>.+?) (?:is|can|moves|goes|travels|passes) ?(?P<rest>.*)")
AXES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
AXES |= {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
AXES |= {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}


def answer(query: Query, objects: Sequence[Mapping[str, Any]]) -> Prediction:
    """The runs of clips in which the query is true, longest first; `objects` as objects.jsonl lists them."""
    true = np.concatenate([[0], true_clips(query.query, objects), [0]])
    edges = np.flatnonzero(np.diff(true)).reshape(-1, 2)
    runs = sorted(edges.tolist(), key=lambda run: run[0] - run[1])
    windows = [(a * CLIP_S, b * CLIP_S, 1.0 / (1 + i)) for i, (a, b) in enumerate(runs)]
    return Prediction(query.qid, query.query, query.vid, tuple(windows), tuple(map(float, true[1:-1])))


def true_clips(text: str, objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int [t]: 1 where the sentence holds."""
    name, rest, partner = parts_of(text)
    subject = _centres(named(name, objects))
    here = ~np.isnan(subject[:, 0])
    if partner is not None:
        holds = _related(rest, subject - _centres(named(partner, objects)))
        return (holds & _moving(subject).any(1) if re.search(r" (moves|passes) ", text) else holds).astype(int)
    if rest.startswith(("on the", "at the")):
        return (here & (np.nan_to_num(subject - 0.5) @ AXES[rest] > 0.14)).astype(int)
    if rest in AXES:
        return (_moving(subject) @ np.abs(AXES[rest]) * (np.nan_to_num(_step(subject)) @ AXES[rest] > 0)).astype(int)
    return here.astype(int)


def parts_of(text: str) -> tuple[str, str, str | None]:
    """The name of what a sentence is about, what it says of it, and the name of its partner where there is one."""
    parts = QUERY.fullmatch(text)
    assert parts, f"not a sentence of the sample world: {text!r}"
    subject, rest = parts["subject"], parts["rest"]
    if " the " in rest and not rest.startswith(("on the", "at the")):
        relation, partner = rest.split(" the ")
        return subject, relation, partner
    return subject, rest, None


def named(name: str, objects: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one thing that all words of the name fit."""
    (thing,) = [o for o in objects if set(name.split()) <= set(o["thing"].split())]
    return thing


def read_objects(folder: Path) -> dict[str, Any]:
    """The things of every video of a sample world, by its name."""
    rows = (json.loads(line) for line in (folder / "objects.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["vid"]: row["objects"] for row in rows}


def _centres(thing: Mapping[str, Any]) -> np.ndarray:
    """Where it is, [t 2]; NaN where it is gone."""
    return np.array([c or (np.nan, np.nan) for c in thing["centres"]], dtype=float)


def _related(relation: str, offset: np.ndarray) -> np.ndarray:
    offset = np.nan_to_num(offset, nan=9.0)  # far away
    if relation == "next to":
        return np.hypot(*offset.T) < 0.26
    dx, dy = AXES[relation]
    return (offset @ (dx, dy) > np.maximum(np.abs(offset @ (dy, dx)), 0.06)) & (np.abs(offset) < 2).all(1)


def _step(centres: np.ndarray) -> np.ndarray:
    before, after = _differences(centres)
    return np.where(np.isnan(before), after, before)


def _moving(centres: np.ndarray) -> np.ndarray:
    """bool [t 2]: it moves along x, along y; a clip moves if it does so on both its sides."""
    before, after = _differences(centres)
    smaller = np.fmin(np.abs(before), np.abs(after))
    return np.nan_to_num(smaller) > MOVING


def _differences(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gap = np.full((1, 2), np.nan)
    steps = np.diff(centres, axis=0)
    return np.concatenate([gap, steps]), np.concatenate([steps, gap])


def main(folder: Path) -> None:
    """Prints the oracle's numbers for every split of a sample world."""
    objects = read_objects(folder)
    for split in ("val", "test", "test_unseen"):
        queries = parse_jsonl((folder / f"{split}.jsonl").read_text(encoding="utf-8"), f"{split}.jsonl")
        brief = compute_metrics([answer(q, objects[q.vid]) for q in queries], queries)["brief"]
        print(split, {name: round(brief[f"MR-full-{name}"], 1) for name in ("R1@0.5", "R1@0.7", "mAP")})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
