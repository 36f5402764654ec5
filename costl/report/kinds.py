"""The scores of each kind of query, and the average precision of the highlights of each query."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from costl.metrics.compute import measure
from costl.metrics.paper_table import Numbers, paper_columns
from costl.report.query import Item

PRECISIONS = ("HL-min-VeryGood-mAP", "HL-top5-mAP", "HL-mAP")  # of QVHighlights, TVSum, YouTube Highlights


@dataclass(frozen=True)
class Kinds:
    """For each kind of query the number of its `queries`, and its `scores` in percent by metric.

    `columns` has the name of each metric of the table by its key in `scores`. It is empty if no query has a kind.
    """

    columns: dict[str, str]
    queries: dict[str, int]
    scores: dict[str, Numbers]


def score_kinds(items: Sequence[Item], *, benchmark: str, official: bool) -> tuple[Kinds, list[Item]]:
    """The scores of each kind of query by the rules of `benchmark`, and the items with their `precision`.

    Raises UsageError as `compute_metrics` does.
    """
    queries = Counter(sorted(item.kind for item in items))
    scores = {}
    precision: dict[int | str, float] = {}
    for kind in queries:
        of_kind = [item for item in items if item.kind == kind]
        answers = [item.answer for item in of_kind if item.answer]
        metrics, values = measure(answers, [item.query for item in of_kind], benchmark=benchmark, official=official)
        scores[kind] = metrics["brief"]
        precisions = next((values[name] for name in PRECISIONS if name in values), [math.nan] * len(of_kind))
        precision |= {item.query.qid: float(value) for item, value in zip(of_kind, precisions, strict=True) if value >= 0}
    first = next(iter(scores.values()))
    columns = {key: name for name, key in paper_columns(benchmark, first).items()} if any(queries) else {}
    return Kinds(columns, queries, scores), [replace(item, precision=precision.get(item.query.qid)) for item in items]
