"""Does a model know that a video does not show what is asked? Scores of sentences about their own video and about another.

    python tools/finds_nothing.py test costl-quickstart/runs/costl [OTHER-RUN ...]

Each sentence is also put to the video of another one, in which nobody asked it. Told is how often the best moment (and the
best clip) of its own video is scored above that of the other, over all pairs of such answers: the area under the curve, percent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.data.splits import read_queries
from costl.predict.loaded_run import open_run


def elsewhere(queries: Sequence[Query]) -> list[Query]:
    """Every sentence, asked about a video of another one that nobody asked it about; in an order drawn once."""
    asked = {(query.vid, query.query) for query in queries}
    videos, draw, found = sorted({query.vid for query in queries}), np.random.default_rng(0), []
    for query in queries:
        other = next(vid for vid in draw.permutation(videos) if (vid, query.query) not in asked)
        found.append(replace(query, vid=str(other)))
    return found


def told_apart(own: Sequence[float], other: Sequence[float]) -> float:
    """Share of all pairs in which the first is larger, ties half, percent."""
    apart = np.subtract.outer(np.asarray(own), np.asarray(other))
    return float(100 * ((apart > 0) + 0.5 * (apart == 0)).mean())


def best(answers: Sequence[Prediction]) -> tuple[list[float], list[float]]:
    """The score of each answer's best moment, and of its best clip."""
    return [max(w[2] for w in a.windows) for a in answers], [max(a.saliency) for a in answers]


def main(split: str, *folders: str) -> None:
    """One line for each run."""
    for folder in folders:
        ready = open_run(Path(folder))
        queries = read_queries(ready.features, split)
        (moment, clip), (moment_there, clip_there) = (
            best(ready.predict(asked)) for asked in (queries, elsewhere(queries))
        )
        print(
            f"{folder}: told apart by the best moment {told_apart(moment, moment_there):.1f} %, by the best clip "
            f"{told_apart(clip, clip_there):.1f} %; median of the best moment's score {np.median(moment):.2f} and "
            f"{np.median(moment_there):.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
