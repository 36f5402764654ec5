"""Does a model look where it should? Its best patches beside the places of the sample world's things, and R1@0.5 by kind.

    costl quickstart
    python tools/where_it_looks.py costl-quickstart/videos costl-quickstart/runs/costl test test_unseen

A patch counts as on a thing when its square meets the square around it. Frames are those of true moments, in which the thing
(and where one is asked about, its partner) is in view.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from check_world import named, parts_of, read_objects

from costl.data.annotations import Query
from costl.data.splits import read_queries
from costl.metrics.compute import compute_metrics
from costl.predict.attention_maps import Looks, looks_at
from costl.predict.loaded_run import Ready, open_run

Thing = Mapping[str, Any]
Hit = tuple[str, float]


def covered(thing: Thing, clip: int, side: int) -> np.ndarray | None:
    """bool [p]: the patches that the thing meets in the middle of a clip; None where it is gone."""
    centre = thing["centres"][clip]
    if centre is None:
        return None
    edge = np.arange(side) / side
    x, y = ((edge < c + thing["diameter"] / 2) & (edge + 1 / side > c - thing["diameter"] / 2) for c in centre)
    return (y[:, None] & x).ravel()


def hits(query: Query, clips: Sequence[int], seen: Looks, things: Sequence[Thing], side: int) -> Iterator[Hit]:
    """Every answer of every frame, 1 or 0, by what was asked."""
    name, _, other = parts_of(query.query)
    subject, partner = named(name, things), named(other, things) if other else None
    others = [thing for thing in things if thing is not subject]
    for row, clip in enumerate(clips):
        here = covered(subject, clip, side)
        if here is None:
            continue
        best, short_list = seen.share[row].argmax(), seen.chosen[row]
        mixed = (seen.heard[row][:, None] * seen.attention[row]).sum(0)
        elsewhere = np.any([c for o in others if (c := covered(o, clip, side)) is not None] or [0 * here], axis=0)
        yield "step one's best patch on the thing", here[best]
        yield "... on another thing", elsewhere[best] and not here[best]
        yield "short list touches the thing", (here & short_list).any()
        yield "step two's best patch, words mixed", here[mixed.argmax()]
        yield "by chance", here.mean()
        there = covered(partner, clip, side) if partner else None
        if other and there is not None:
            yield "short list touches the partner", (there & short_list).any()
            first = seen.words.index(name.split()[-1])
            last = len(seen.words) - 1 - seen.words[::-1].index(other.split()[-1])
            yield "subject's noun on the subject", here[seen.attention[row, first].argmax()]
            yield "partner's noun on the partner", there[seen.attention[row, last].argmax()]


def look(ready: Ready, queries: Sequence[Query], objects: Mapping[str, Sequence[Thing]]) -> None:
    """Prints the share of frames for each question."""
    found, side = defaultdict[str, list[float]](list), ready.features.patch_grid[0]
    for query in queries:
        clips = list(query.clip_ids)
        for name, hit in hits(
            query, clips, looks_at(ready.model, query, clips, ready.features), objects[query.vid], side
        ):
            found[name].append(float(hit))
    for name, values in found.items():
        print(f"  {name:<38}{100 * np.mean(values):6.1f} % of {len(values)}")


def by_kind(ready: Ready, queries: Sequence[Query], kinds: Mapping[Any, str]) -> None:
    """Prints R1@0.5 of the queries of each kind."""
    rows = dict(zip(queries, ready.predict(queries), strict=True))
    for kind in sorted(set(kinds.values())):
        some = [query for query in queries if kinds[query.qid] == kind]
        brief = compute_metrics([rows[query] for query in some], some)["brief"]
        print(f"  R1@0.5 of {kind:<28}{brief['MR-full-R1@0.5']:6.1f} % of {len(some)}")


def main(videos: Path, run: Path, *splits: str) -> None:
    """Prints both for every split; `videos` is the folder of the sample world."""
    objects, ready = read_objects(videos), open_run(run)
    for split in splits:
        queries = read_queries(ready.features, split)
        print(split)
        rows = map(json.loads, (videos / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        by_kind(ready, queries, {row["qid"]: row["kind"] for row in rows})
        if ready.run.config.spatial.steps == 2:
            look(ready, queries, objects)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
