"""Compares the scores of sentences on their own video with those on another video, which does not show them.

    python tools/finds_nothing.py test costl-quickstart/runs/costl [OTHER-RUN ...]

Each sentence is also paired with a video that it is not annotated for. The result is how often the best moment (and the best
clip) of an own video scores above that of another video, over all pairs: the area under the ROC curve, in percent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.data.queries import read_queries
from costl.predict.loaded_run import open_run


def with_other_videos(queries: Sequence[Query]) -> list[Query]:
    """Every sentence with a random video that it is not annotated for. The choice is the same in each call."""
    annotated = {(query.vid, query.query) for query in queries}
    videos = sorted({query.vid for query in queries})
    rng = np.random.default_rng(0)
    pairs = []
    for query in queries:
        other = next(vid for vid in rng.permutation(videos) if (vid, query.query) not in annotated)
        pairs.append(replace(query, vid=str(other)))
    return pairs


def area_under_curve(own: Sequence[float], other: Sequence[float]) -> float:
    """The percentage of all pairs in which the score of the own video is larger; ties count half."""
    difference = np.subtract.outer(np.asarray(own), np.asarray(other))
    return float(100 * ((difference > 0) + 0.5 * (difference == 0)).mean())


def best_scores(predictions: Sequence[Prediction]) -> tuple[list[float], list[float]]:
    """The score of the best moment and of the best clip of each prediction."""
    moments = [max(window[2] for window in prediction.windows) for prediction in predictions]
    clips = [max(prediction.saliency) for prediction in predictions]
    return moments, clips


def main(split: str, *folders: str) -> None:
    """One line for each run."""
    for folder in folders:
        run = open_run(Path(folder))
        queries = read_queries(run.features, split)
        own_moments, own_clips = best_scores(run.predict(queries))
        other_moments, other_clips = best_scores(run.predict(with_other_videos(queries)))
        print(
            f"{folder}: own above other video in {area_under_curve(own_moments, other_moments):.1f} % by the best moment, "
            f"in {area_under_curve(own_clips, other_clips):.1f} % by the best clip; median score of the best moment "
            f"{np.median(own_moments):.2f} and {np.median(other_moments):.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
