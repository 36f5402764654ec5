"""Predictions for the queries of a split: batches through the model, long videos in windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from costl.config import Config, Predict
from costl.data.annotations import Prediction, Query
from costl.data.batch import Batch, ahead, evaluation_batches
from costl.model.build import Model
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.progress import Progress, Tell
from costl.predict.postprocess import CANDIDATES, rated_saliency, rounded, to_predictions
from costl.predict.sliding_window import Said, by_video, walk, windows
from costl.training.distributed import ALONE, Ranks
from costl.training.run_folder import LONGEST_WINDOW

BATCH = 32


def predict_split(
    model: Model,
    queries: Sequence[Query],
    features: CacheReader,
    *,
    config: Config,
    device: torch.device,
    progress: Tell | None = None,
    ranks: Ranks = ALONE,
) -> list[Prediction]:
    """Predictions in the order of `queries`, without those whose video has no features.

    Saliency is one score for each two seconds of the annotated duration, whatever the feature grid. A video of more
    than `predict.window_clips` clips is walked in windows of so many: memory does not depend on its length. Of several
    processes each takes every n-th of the batches that one alone would make, so that all get what it would, to the bit.
    """
    known, size = set(features.video_ids), config.predict.window_clips or LONGEST_WINDOW
    asked = [query for query in queries if query.vid in known]
    whole = [query for query in asked if features.grid(query.vid).clips <= size]
    long = [query for query in asked if features.grid(query.vid).clips > size]
    tell, patches = progress or (lambda _: None), config.patches
    ask = partial(_ask, model, device=device)
    found: dict[int | str, Prediction] = {}

    def note(some: Sequence[Query], said: Said) -> None:
        predictions = _predictions(some, said, features, config.predict)
        found.update({p.qid: _rated(p, q, features) for p, q in zip(predictions, some, strict=True)})
        tell(Progress("predict", len(found), len(asked)))

    def walked(done: int, total: int) -> None:
        tell(Progress("predict", len(found), len(asked), f"window {done} of {total}"))

    mine = [query for number, query in enumerate(sorted(whole, key=lambda q: q.vid)) if ranks.owns(number // BATCH)]
    with ranks.together(), at_rest(model):
        for batch in ahead(evaluation_batches(mine, features, batch_size=BATCH, patches=patches)):
            note(batch.queries, ask(batch))
        for number, some in enumerate(by_video(long)):
            if ranks.owns(number):
                note(some, walk(some, features, ask=ask, size=size, patches=patches, tell=walked))
    for others in ranks.gather(found):
        found.update(others)
    return [rounded(found[query.qid], query.duration_s, config.predict.round_s) for query in asked]


@contextmanager
def at_rest(model: Model) -> Iterator[None]:
    """Evaluation mode without gradients; the model comes back in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _ask(model: Model, batch: Batch, *, device: torch.device) -> Said:
    outputs = model(**batch.to(device).model_inputs(), matching=False)
    return Said(
        scores=outputs.foreground.float().sigmoid().cpu(),
        spans=outputs.spans.float().cpu(),
        positions=outputs.positions.cpu(),
        centres=outputs.centres.cpu(),
        saliency=outputs.saliency.float().cpu(),
    )


def _predictions(queries: Sequence[Query], said: Said, features: CacheReader, settings: Predict) -> list[Prediction]:
    clips = [features.grid(query.vid).clips for query in queries]
    return to_predictions(
        queries,
        scores=said.scores,
        spans=said.spans,
        positions=said.positions,
        saliency=said.saliency,
        clips=clips,
        clip_s=1 / features.fps,
        moments=settings.moments,
        nms_sigma=settings.nms_sigma,
        min_score=settings.min_score,
        # As many from each window: else one strong moment, found at many positions, would crowd out the rest of an hour.
        candidates=CANDIDATES * len(windows(max(clips), settings.window_clips or LONGEST_WINDOW)),
    )


def _rated(prediction: Prediction, query: Query, features: CacheReader) -> Prediction:
    saliency = rated_saliency(prediction.saliency, query, fps=features.fps)
    return Prediction(prediction.qid, prediction.query, prediction.vid, prediction.windows, saliency)
