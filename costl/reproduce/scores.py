"""The scores of a reproduction by the rules of its benchmark, from the predictions of every seed and domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.bootstrap import bootstrap_intervals
from costl.metrics.compute import measure
from costl.pipeline.errors import UsageError

Numbers = Mapping[str, float]  # the headline numbers of one seed, in percent


@dataclass(frozen=True)
class Scores:
    """`by_seed`: the headline numbers of each seed. `values`: for each number the mean over seeds of every query [b], NaN
    where a query does not count. `domains` [b] of the queries, empty texts where the benchmark has none."""

    by_seed: Sequence[Numbers]
    values: Mapping[str, np.ndarray]
    domains: Sequence[str]

    @cached_property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """The 95 % bootstrap interval of each mean over seeds, over queries; within the domains where there are some."""
        return bootstrap_intervals(self.values, groups=self.domains)


def score_seeds(
    by_seed: Sequence[Sequence[Prediction]], queries: Sequence[Query], *, benchmark: str, official: bool
) -> Scores:
    """The scores of the predictions of each seed. A query without a prediction counts 0, and is refused if `official`."""
    scored = []
    for predictions in by_seed:
        metrics, values = measure(predictions, queries, benchmark=benchmark, official=official)
        scored.append((metrics["brief"], values))
    names = [name for name in scored[0][1] if all(name in values for _, values in scored)]
    means = {name: np.mean([values[name] for _, values in scored], axis=0) for name in names}
    return Scores([numbers for numbers, _ in scored], means, [query.domain for query in queries])


def unanswered(queries: Sequence[Query], by_seed: Sequence[Sequence[Prediction]]) -> list[Query]:
    """The queries that a seed has no prediction for: their videos, or all others of their domain, have no features."""
    answered = [{p.qid for p in predictions if p.windows or p.saliency} for predictions in by_seed]
    return [query for query in queries if not all(query.qid in qids for qids in answered)]


def refuse_unlabelled(queries: Sequence[Query], source: str) -> None:
    """Raises UsageError for a test split without labels, which cannot be scored."""
    if not any(query.windows or query.clip_ids for query in queries):
        raise UsageError(
            f"{source}: the test split has no labels, so that nothing can be scored. Add the file with them: for "
            "QVHighlights highlight_test_with_gt.jsonl."
        )
