"""Pseudo-labels: sentences of the training split, with the moments that CLIP alone finds for them in other videos.

A few labels would let the model forget what CLIP knows of all other sentences. Trained on pseudo-labels beside them, it
keeps that (pseudo-labelling after Lee 2013; the labels are of a frozen teacher, as in distillation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from costl.data.annotations import Query, Window
from costl.data.windowed_features import VideoFeatures
from costl.search.moments import Segment, find_segments

CANDIDATES = 4  # sentences for each pseudo-label, of which that with the clearest moment is taken
KEPT_SHARE = 0.5  # of a sentence's segments, those with at least this share of the best score are its moments


@dataclass(frozen=True)
class PseudoLabels:
    """What pseudo-labels are drawn from: sentences [n e] in the joint space, and videos with the sentences of their labels."""

    features: VideoFeatures
    texts: Sequence[str]
    sentences: Float[np.ndarray, "n e"]
    own_texts: Mapping[str, frozenset[str]]

    def draw(self, count: int, generator: torch.Generator) -> list[Query]:
        """At most `count` queries with moments, each about a random video; fewer where some are drawn twice."""
        vids = list(self.own_texts)
        drawn: dict[tuple[str, str], Query] = {}
        for i in torch.randint(len(vids), (count,), generator=generator).tolist():
            candidates = torch.randint(len(self.texts), (CANDIDATES,), generator=generator).tolist()
            query = self._label(f"pseudo-label {len(drawn)}", vids[i], candidates)
            if query is not None:
                drawn.setdefault((query.vid, query.query), query)
        return list(drawn.values())

    def _label(self, qid: str, vid: str, candidates: Sequence[int]) -> Query | None:
        """The candidate with the best segment, and its moments. None if all candidates are labels of the video already."""
        others = [i for i in dict.fromkeys(candidates) if self.texts[i] not in self.own_texts[vid]]
        if not others:
            return None
        curves = self.features.joint_vectors(vid) @ self.sentences[others].T
        logit_scale = self.features.joint.logit_scale
        segments = [find_segments(curve, logit_scale=logit_scale) for curve in curves.T]
        best = max(range(len(others)), key=lambda i: segments[i][0].score)
        end_s = self.features.grid(vid).duration_s
        fps = self.features.fps
        windows = tuple((start / fps, min(end / fps, end_s)) for start, end in _apart(segments[best]))
        return Query(qid, self.texts[others[best]], vid, end_s, windows=windows)


def pseudo_labels(queries: Sequence[Query], features: VideoFeatures, unlabelled: Sequence[str]) -> PseudoLabels:
    """Draws for the sentences of `queries`, in their videos and in those that are `unlabelled`."""
    texts = list(dict.fromkeys(query.query for query in queries))
    own_texts: dict[str, set[str]] = {vid: set() for vid in unlabelled}
    for query in queries:
        own_texts.setdefault(query.vid, set()).add(query.query)
    return PseudoLabels(
        features,
        texts,
        np.stack([features.words(text).sentence for text in texts]),
        {vid: frozenset(own) for vid, own in own_texts.items()},
    )


def _apart(segments: Sequence[Segment]) -> list[Window]:
    """The best segments, in clips, without those that overlap a better one, in the order of time."""
    kept: list[Window] = []
    for start, end, score in segments:
        is_apart = all(end <= other_start or start >= other_end for other_start, other_end in kept)
        if is_apart and score >= KEPT_SHARE * segments[0].score:
            kept.append((start, end))
    return sorted(kept)
