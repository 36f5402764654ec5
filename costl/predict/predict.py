"""Predictions for the queries of a split: short videos in batches, long videos in windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch

from costl.config import Config, Predict
from costl.data.annotations import Prediction, Query
from costl.data.batch import model_inputs
from costl.data.loader import prefetch
from costl.data.windowed_features import VideoFeatures
from costl.model.build import Model
from costl.model.inputs import ModelInputs
from costl.pipeline.progress import Progress, ProgressCallback
from costl.predict.postprocess import ModelOutput, rated_saliency, to_predictions
from costl.predict.sliding_window import predict_windows, window_ranges
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.run_folder import MAX_WINDOW_CLIPS

BATCH_SIZE = 32
LONG_BATCH_SIZE = 8  # about the same long video; the patches of a window are in memory once for each query


def predict_split(
    model: Model,
    queries: Sequence[Query],
    features: VideoFeatures,
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
    by_video = sorted(answerable, key=lambda query: query.vid)
    short = [query for query in by_video if features.grid(query.vid).clips <= window_clips]
    long = [query for query in by_video if features.grid(query.vid).clips > window_clips]
    short_batches = _divide(short, BATCH_SIZE)[ranks.rank :: ranks.world_size]
    long_videos = [list(group) for _, group in groupby(long, key=lambda query: query.vid)]
    long_batches = [batch for video in long_videos for batch in _divide(video, LONG_BATCH_SIZE)]
    report_progress = progress or (lambda _: None)
    run_model = partial(_run_model, model, device=device)
    predictions: dict[int | str, Prediction] = {}

    def add_predictions(batch: Sequence[Query], output: ModelOutput) -> None:
        predictions.update(_postprocess(batch, output, features, config.predict))
        report_progress(Progress("predict", len(predictions), len(answerable)))

    def report_window(done: int, total: int) -> None:
        report_progress(Progress("predict", len(predictions), len(answerable), f"window {done} of {total}"))

    with ranks.all_or_none(), evaluation_mode(model):
        read = (model_inputs(batch, features, patches=config.patches) for batch in short_batches)
        with closing(prefetch(read)) as inputs:
            for batch, batch_inputs in zip(short_batches, inputs, strict=True):
                add_predictions(batch, run_model(batch_inputs))
        for batch in long_batches[ranks.rank :: ranks.world_size]:
            output = predict_windows(
                batch,
                features,
                run_model=run_model,
                window_clips=window_clips,
                patches=config.patches,
                progress=report_window,
            )
            add_predictions(batch, output)
    for rank_predictions in ranks.all_gather(predictions):
        predictions.update(rank_predictions)
    return [predictions[query.qid] for query in answerable]


def _divide(queries: Sequence[Query], size: int) -> list[Sequence[Query]]:
    return [queries[start : start + size] for start in range(0, len(queries), size)]


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


def _run_model(model: Model, inputs: ModelInputs, *, device: torch.device) -> ModelOutput:
    outputs = model(inputs.to(device))
    return ModelOutput(
        scores=outputs.foreground.float().sigmoid().cpu(),
        spans=outputs.spans.float().cpu(),
        position_mask=outputs.position_mask.cpu(),
        centres=outputs.centres.cpu(),
        saliency=outputs.saliency.float().cpu(),
    )


def _postprocess(
    queries: Sequence[Query], output: ModelOutput, features: VideoFeatures, settings: Predict
) -> dict[int | str, Prediction]:
    """The predictions by qid."""
    clips = [features.grid(query.vid).clips for query in queries]
    windows = window_ranges(max(clips), settings.window_clips or MAX_WINDOW_CLIPS)
    predictions = to_predictions(
        queries, output, settings, clips=clips, clip_s=1 / features.fps, windows=len(windows)
    )
    by_qid: dict[int | str, Prediction] = {}
    for query, prediction in zip(queries, predictions, strict=True):
        by_qid[query.qid] = replace(prediction, saliency=rated_saliency(prediction.saliency, query, fps=features.fps))
    return by_qid
