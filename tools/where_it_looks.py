"""Compares the patches that a model attends to with the positions of the objects of a sample world; prints R1@0.5 by kind.

    costl quickstart
    python tools/where_it_looks.py costl-quickstart/videos costl-quickstart/runs/costl test test_unseen

A patch counts as on an object if it overlaps the square around it. Only frames of true moments count in which the object
is visible, and for its partner (the second object of a sentence) only those in which both are.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from check_world import diameters, find_object, parse_sentence, read_objects

from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.metrics.compute import compute_metrics
from costl.predict.attention_maps import AttentionMaps, clip_attention_maps
from costl.predict.loaded_run import LoadedRun, open_run

Thing = Mapping[str, Any]
Hit = tuple[str, float]


def covered_patches(thing: Thing, clip: int, side: int) -> np.ndarray | None:
    """bool [p]: the patches that the object overlaps in the middle of a clip; None where it is not visible."""
    centre = thing["centres"][clip]
    if centre is None:
        return None
    edge = np.arange(side) / side
    reach = diameters(thing)[clip] / 2
    x, y = ((edge < c + reach) & (edge + 1 / side > c - reach) for c in centre)
    return (y[:, None] & x).ravel()


def hits(query: Query, clips: Sequence[int], maps: AttentionMaps, things: Sequence[Thing], side: int) -> Iterator[Hit]:
    """(name of a measurement, 1 or 0) for every measurement of every frame."""
    name, _, partner_name = parse_sentence(query.query)
    subject = find_object(name, things)
    partner = find_object(partner_name, things) if partner_name else None
    others = [thing for thing in things if thing is not subject]
    for row, clip in enumerate(clips):
        on_subject = covered_patches(subject, clip, side)
        if on_subject is None:
            continue
        best = maps.share[row].argmax()
        short_list = maps.short_list[row]
        mean_attention = (maps.word_weights[row][:, None] * maps.attention[row]).sum(0)
        covered = [covered_patches(other, clip, side) for other in others]
        on_others = np.any([patches for patches in covered if patches is not None] or [0 * on_subject], axis=0)
        yield "coarse step: best patch on the object", on_subject[best]
        yield "... on another object", on_others[best] and not on_subject[best]
        yield "short list has a patch on the object", (on_subject & short_list).any()
        yield "fine step: best patch, mean over words", on_subject[mean_attention.argmax()]
        yield "by chance", on_subject.mean()
        on_partner = covered_patches(partner, clip, side) if partner else None
        if partner_name and on_partner is not None:
            yield "short list has a patch on the partner", (on_partner & short_list).any()
            first = maps.words.index(name.split()[-1])
            last = len(maps.words) - 1 - maps.words[::-1].index(partner_name.split()[-1])
            yield "subject's noun on the subject", on_subject[maps.attention[row, first].argmax()]
            yield "partner's noun on the partner", on_partner[maps.attention[row, last].argmax()]


def print_hits(run: LoadedRun, queries: Sequence[Query], objects: Mapping[str, Sequence[Thing]]) -> None:
    """Prints the share of frames with a hit for each measurement."""
    side = run.features.patch_grid[0]
    values_by_name = defaultdict[str, list[float]](list)
    for query in queries:
        clips = list(query.clip_ids)
        maps = clip_attention_maps(run.model, query, clips, run.features)
        for name, hit in hits(query, clips, maps, objects[query.vid], side):
            values_by_name[name].append(float(hit))
    for name, values in values_by_name.items():
        print(f"  {name:<38}{100 * np.mean(values):6.1f} % of {len(values)}")


def print_recall_by_kind(run: LoadedRun, queries: Sequence[Query], kinds: Mapping[Any, str]) -> None:
    """Prints R1@0.5 of the queries of each kind."""
    predictions = dict(zip(queries, run.predict(queries), strict=True))
    for kind in sorted(set(kinds.values())):
        of_kind = [query for query in queries if kinds[query.qid] == kind]
        brief = compute_metrics([predictions[query] for query in of_kind], of_kind)["brief"]
        print(f"  R1@0.5 of {kind:<28}{brief['MR-full-R1@0.5']:6.1f} % of {len(of_kind)}")


def main(videos: Path, run_folder: Path, *splits: str) -> None:
    """Prints both tables for every split; `videos` is the folder of the sample world."""
    objects = read_objects(videos)
    run = open_run(run_folder)
    for split in splits:
        queries = read_queries(run.features, split)
        print(split)
        rows = map(json.loads, (videos / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        print_recall_by_kind(run, queries, {row["qid"]: row["kind"] for row in rows})
        if run.run.config.spatial.steps == 2:
            print_hits(run, queries, objects)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
