"""Checks that a sample world can be solved: scores an oracle that knows where each thing is in each clip.

    costl data sample dir/
    python tools/check_world.py dir/

The oracle parses each query, looks the things up in objects.jsonl and marks the clips in which their positions make the
query true. It only knows the positions at the middle of each clip, as a model does, so its scores are an upper limit.
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
MIN_SPEED = 0.03  # frame sides per clip
MIN_GROWTH = 0.002  # of the diameter, in frame sides per clip
VERBS = "is|can|moves|goes|travels|passes|grows|shrinks|gets|becomes"
QUERY = re.compile(rf"the (?P<subject>.+?) (?P<verb>{VERBS}) ?(?P<predicate>.*)")
AXES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
AXES |= {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
AXES |= {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}


def predict(query: Query, objects: Sequence[Mapping[str, Any]]) -> Prediction:
    """The runs of clips in which the query is true, longest first; `objects` as objects.jsonl lists them."""
    is_true = true_clips(query.query, objects)
    padded = np.concatenate([[0], is_true, [0]])
    edges = np.flatnonzero(np.diff(padded)).reshape(-1, 2)
    runs = sorted(edges.tolist(), key=lambda run: run[0] - run[1])
    windows = [(begin * CLIP_S, end * CLIP_S, 1.0 / (1 + rank)) for rank, (begin, end) in enumerate(runs)]
    return Prediction(query.qid, query.query, query.vid, tuple(windows), tuple(map(float, is_true)))


def true_clips(text: str, objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int [t]: 1 where the sentence is true."""
    name, predicate, partner = parse_sentence(text)
    thing = find_object(name, objects)
    centres = _centres(thing)
    if predicate in ("larger", "smaller"):
        growth = diameters(thing)[:, None] * (1 if predicate == "larger" else -1)
        return (_moves(growth, MIN_GROWTH) & (_step(growth) > 0)).ravel().astype(int)
    visible = ~np.isnan(centres[:, 0])
    if partner is not None:
        related = _is_related(predicate, centres - _centres(find_object(partner, objects)))
        if re.search(r" (moves|passes) ", text):
            related &= _is_moving(centres).any(1)
        return related.astype(int)
    if predicate.startswith(("on the", "at the")):
        distance = np.nan_to_num(centres - 0.5) @ AXES[predicate]
        return (visible & (distance > 0.14)).astype(int)
    if predicate in AXES:
        moves_along_axis = _is_moving(centres) @ np.abs(AXES[predicate])
        in_direction = np.nan_to_num(_step(centres)) @ AXES[predicate] > 0
        return (moves_along_axis * in_direction).astype(int)
    return visible.astype(int)


def parse_sentence(text: str) -> tuple[str, str, str | None]:
    """(name of the thing that a sentence is about, predicate, name of a second thing or None); "grows" is "larger"."""
    match = QUERY.fullmatch(text)
    assert match, f"not a sentence of the sample world: {text!r}"
    subject, predicate = match["subject"], match["predicate"]
    if " the " in predicate and not predicate.startswith(("on the", "at the")):
        relation, partner = predicate.split(" the ")
        return subject, relation, partner
    return subject, {"grows": "larger", "shrinks": "smaller"}.get(match["verb"], predicate), None


def find_object(name: str, objects: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The only object that has all words of the name."""
    (thing,) = [candidate for candidate in objects if set(name.split()) <= set(candidate["thing"].split())]
    return thing


def read_objects(folder: Path) -> dict[str, Any]:
    """The objects of each video of a sample world, by the video's name."""
    rows = (json.loads(line) for line in (folder / "objects.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["vid"]: row["objects"] for row in rows}


def diameters(thing: Mapping[str, Any]) -> np.ndarray:
    """Its diameter in each clip, [t]; NaN while it is hidden, if it changes its size."""
    return np.broadcast_to(np.array(thing.get("diameters") or thing["diameter"], dtype=float), len(thing["centres"]))


def _centres(thing: Mapping[str, Any]) -> np.ndarray:
    """Its centre (x, y) in each clip, [t 2]; NaN while it is hidden."""
    return np.array([centre or (np.nan, np.nan) for centre in thing["centres"]], dtype=float)


def _is_related(relation: str, offset: np.ndarray) -> np.ndarray:
    """bool [t]: whether the offset [t 2] between two things fits the relation."""
    offset = np.nan_to_num(offset, nan=9.0)  # a hidden thing counts as far away
    if relation == "next to":
        return np.hypot(*offset.T) < 0.26
    dx, dy = AXES[relation]
    along = offset @ (dx, dy)
    across = np.abs(offset @ (dy, dx))
    both_visible = (np.abs(offset) < 2).all(1)
    return (along > np.maximum(across, 0.06)) & both_visible


def _step(values: np.ndarray) -> np.ndarray:
    """The move from the clip before, [t k]; in the first visible clip the move to the next."""
    before, after = _differences(values)
    return np.where(np.isnan(before), after, before)


def _is_moving(centres: np.ndarray) -> np.ndarray:
    """bool [t 2]: whether it moves along x and along y, both from the clip before and to the next."""
    return _moves(centres, MIN_SPEED)


def _moves(values: np.ndarray, least: float) -> np.ndarray:
    """bool [t k]: whether values [t k] change by more than `least`, both from the clip before and to the next."""
    before, after = _differences(values)
    smaller = np.fmin(np.abs(before), np.abs(after))
    return np.nan_to_num(smaller) > least


def _differences(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(move from the clip before, move to the next clip), [t k] each; NaN where there is none."""
    missing = np.full_like(values[:1], np.nan)
    steps = np.diff(values, axis=0)
    return np.concatenate([missing, steps]), np.concatenate([steps, missing])


def main(folder: Path) -> None:
    """Print the oracle's metrics for each split of a sample world."""
    objects = read_objects(folder)
    for split in ("val", "test", "test_unseen", "test_unseen_relation"):
        if not (folder / f"{split}.jsonl").exists():
            continue
        queries = parse_jsonl((folder / f"{split}.jsonl").read_text(encoding="utf-8"), f"{split}.jsonl")
        brief = compute_metrics([predict(query, objects[query.vid]) for query in queries], queries)["brief"]
        print(split, {name: round(brief[f"MR-full-{name}"], 1) for name in ("R1@0.5", "R1@0.7", "mAP")})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
