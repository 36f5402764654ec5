"""Predictions for the queries of a split: short videos in batches, long videos in windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from costl.config import Config, Predict
from costl.data.annotations import Prediction, Query
from costl.data.batch import Batch
from costl.data.sampler import evaluation_batches, prefetch
from costl.model.build import Model
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.progress import Progress, ProgressCallback
from costl.predict.postprocess import CANDIDATES, rated_saliency, round_times, to_predictions
from costl.predict.sliding_window import ModelOutput, group_by_video, predict_windows, window_ranges
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.run_folder import MAX_WINDOW_CLIPS

BATCH_SIZE = 32


def predict_split(
    model: Model,
    queries: Sequence[Query],
    features: CacheReader,
    *,
    config: Config,
    device: torch.device,
    progress: ProgressCallback | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> list[Prediction]:
    """Predictions in the order of `queries`, without those whose video has no features.

    Saliency has one score for each two seconds of the annotated duration, whatever the feature grid. A video of more than
    `predict.window_clips` clips is predicted in windows, so that memory does not depend on its length. Of several
    processes, each takes every n-th of the batches that a single process would make: the predictions are the same, to the
    bit.
    """
    window_clips = config.predict.window_clips or MAX_WINDOW_CLIPS
    vids = set(features.video_ids)
    answerable = [query for query in queries if query.vid in vids]
    short = [query for query in answerable if features.grid(query.vid).clips <= window_clips]
    long = [query for query in answerable if features.grid(query.vid).clips > window_clips]
    report_progress = progress or (lambda _: None)
    run_model = partial(_run_model, model, device=device)
    predictions: dict[int | str, Prediction] = {}

    def add_predictions(batch_queries: Sequence[Query], output: ModelOutput) -> None:
        for query, prediction in zip(
            batch_queries, _postprocess(batch_queries, output, features, config.predict), strict=True
        ):
            predictions[prediction.qid] = _with_rated_saliency(prediction, query, features)
        report_progress(Progress("predict", len(predictions), len(answerable)))

    def report_window(done: int, total: int) -> None:
        report_progress(Progress("predict", len(predictions), len(answerable), f"window {done} of {total}"))

    by_video = sorted(short, key=lambda query: query.vid)
    own_queries = [query for number, query in enumerate(by_video) if ranks.is_assigned(number // BATCH_SIZE)]
    with ranks.all_or_none(), evaluation_mode(model):
        batches = evaluation_batches(own_queries, features, batch_size=BATCH_SIZE, patches=config.patches)
        for batch in prefetch(batches):
            add_predictions(batch.queries, run_model(batch))
        for number, video_queries in enumerate(group_by_video(long)):
            if ranks.is_assigned(number):
                output = predict_windows(
                    video_queries,
                    features,
                    run_model=run_model,
                    window_clips=window_clips,
                    patches=config.patches,
                    progress=report_window,
                )
                add_predictions(video_queries, output)
    for rank_predictions in ranks.all_gather(predictions):
        predictions.update(rank_predictions)
    return [round_times(predictions[query.qid], query.duration_s, config.predict.round_s) for query in answerable]


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode it was in before."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _run_model(model: Model, batch: Batch, *, device: torch.device) -> ModelOutput:
    outputs = model(**batch.to(device).model_inputs(), contrast=False)
    return ModelOutput(
        scores=outputs.foreground.float().sigmoid().cpu(),
        spans=outputs.spans.float().cpu(),
        position_mask=outputs.position_mask.cpu(),
        centres=outputs.centres.cpu(),
        saliency=outputs.saliency.float().cpu(),
    )


def _postprocess(
    queries: Sequence[Query], output: ModelOutput, features: CacheReader, settings: Predict
) -> list[Prediction]:
    clips = [features.grid(query.vid).clips for query in queries]
    windows = window_ranges(max(clips), settings.window_clips or MAX_WINDOW_CLIPS)
    return to_predictions(
        queries,
        scores=output.scores,
        spans=output.spans,
        position_mask=output.position_mask,
        saliency=output.saliency,
        clips=clips,
        clip_s=1 / features.fps,
        moments=settings.moments,
        nms_sigma=settings.nms_sigma,
        min_score=settings.min_score,
        # The same number for each window: one strong moment, predicted at many positions, must not crowd out the others.
        candidates=CANDIDATES * len(windows),
    )


def _with_rated_saliency(prediction: Prediction, query: Query, features: CacheReader) -> Prediction:
    saliency = rated_saliency(prediction.saliency, query, fps=features.fps)
    return Prediction(prediction.qid, prediction.query, prediction.vid, prediction.windows, saliency)
