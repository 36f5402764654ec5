"""Which sentences of a sample video become queries, and how three raters grade its clips."""

from __future__ import annotations

import numpy as np

from costl.pipeline.world.sentences import Sentence
from costl.pipeline.world.tracks import CLIP_S


def choose_queries(sentences: list[Sentence], count: int, rng: np.random.Generator) -> list[Sentence]:
    """Up to `count` queries, all kinds equally likely.

    Each is true for half the video at most, in one to three windows of at least two clips.
    """

    def is_usable(sentence: Sentence) -> bool:
        lengths = [end - begin for begin, end in sentence.windows()]
        return 1 <= len(lengths) <= 3 and min(lengths) >= 2 and sum(lengths) <= len(sentence.strength) / 2

    usable = [s for s in sentences if is_usable(s)]
    chosen: list[Sentence] = []
    while usable and len(chosen) < count:
        kind = rng.choice(sorted({s.kind for s in usable}))
        of_kind = [s for s in usable if s.kind == kind]
        chosen.append(of_kind[int(rng.integers(len(of_kind)))])
        usable.remove(chosen[-1])
    return chosen


def annotate(sentence: Sentence, vid: str, clips: int, rng: np.random.Generator) -> dict:
    """A QVHighlights row. Three raters, each with a bias, grade each true clip 0 to 4 by the strength of the sentence."""
    clip_ids = np.flatnonzero(sentence.strength > 0)
    bias = rng.choice([-0.7, 0.0, 0.4], 3)
    grades = 1.2 + 2.6 * sentence.strength[clip_ids, None] + bias + rng.normal(0, 0.35, (len(clip_ids), 3))
    return {
        "query": sentence.text,
        "duration": clips * CLIP_S,
        "vid": vid,
        "relevant_clip_ids": clip_ids.tolist(),
        "saliency_scores": np.clip(grades.round(), 0, 4).astype(int).tolist(),
        "relevant_windows": [[begin * CLIP_S, end * CLIP_S] for begin, end in sentence.windows()],
        "kind": sentence.kind,
    }
