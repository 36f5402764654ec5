"""Moments and saliency of CLIP alone, from the similarity of a sentence with each frame."""

from __future__ import annotations

from costl.data.annotations import Prediction, Query
from costl.data.windowed_features import VideoFeatures
from costl.predict.postprocess import rated_saliency
from costl.search.moments import find_segments


def zero_shot_prediction(query: Query, features: VideoFeatures) -> Prediction:
    """The segments of the curve of cosines (see `find_segments`), with the best score 1; saliency is the curve itself."""
    curve = features.joint_vectors(query.vid) @ features.words(query.query).sentence
    segments = find_segments(curve, logit_scale=features.joint.logit_scale)
    clip_s, end_s = 1 / features.fps, query.duration_s
    best = max(segments[0].score, 1e-9)
    moments = tuple((min(s.start * clip_s, end_s), min(s.end * clip_s, end_s), s.score / best) for s in segments)
    return Prediction(query.qid, query.query, query.vid, moments, rated_saliency(curve.tolist(), query, fps=features.fps))
