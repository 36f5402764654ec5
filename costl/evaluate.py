"""A run and a split -> predictions -> metrics, files and a picture; training validates by the same path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from costl.annotations import Prediction, Query, parse_jsonl
from costl.checkpoint import fit_weights, load_checkpoint, refuse_larger
from costl.config import Config, Predict
from costl.dataset import RATED_CLIP_S, Batch, ahead, evaluation_batches
from costl.export import write_metrics, write_parquet, write_predictions
from costl.metrics import benchmark_rules, interval_iou
from costl.model.build import Model, build_model
from costl.pictures import draw_predictions
from costl.predict import CANDIDATES, to_predictions
from costl.ranks import ALONE, Ranks
from costl.rounding import rounded
from costl.runs import LONGEST_WINDOW, Run, newest_run, open_cache, read_run
from costl.scoring import score
from costl.shots import best_moments
from costl.usable import check_usable
from costl.windows import Said, by_video, walk, windows
from pipeline.cache import CacheReader
from pipeline.errors import CacheError, UsageError, some
from pipeline.grid import Grid
from pipeline.progress import Progress, Tell

BATCH = 32
WEIGHTS = ("best", "last")
LEGACY = "legacy: chosen on test"
DRAWN = 8


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: `metrics` as `compute_metrics` lays them out, with `intervals` (none of it where the
    split has no labels), where the files are, what to know."""

    run: Path
    split: str
    folder: Path
    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def evaluate(
    run: Path | None = None,
    *,
    split: str = "test",
    cache: Path | None = None,
    official: bool = False,
    weights: str = "best",
    benchmark: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Tell | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Scores a run (by default the newest in `runs/`) on a split of its cache, on the domain that it was trained on.

    `weights`: "best" as chosen in training, or "last", the averaged weights of the last epoch. `benchmark` says whose
    rules to score by, by default the run's `data.benchmark`; `official` reproduces its published evaluator. Writes
    metrics.json (with bootstrap intervals), predictions.jsonl (the submission format), predictions.parquet and
    predictions.png to `out`, by default `eval-<split>/` in the run. A split without labels is predicted all the same;
    then there are no metrics. Raises UsageError for a missing run, split or domain and for a split whose videos all lack
    features, CacheError where the cache is not the one of the run or a file is damaged: in each case before any file is
    written, and an earlier evaluation in the folder stays as it is. Of several `ranks` each answers its share of the
    queries, once; the first scores and writes, and all get what it found.
    """
    with ranks.together():
        ready = open_run(run, cache=cache, weights=weights, device=ranks.device(device))
        queries = read_queries(ready.features, split, domain=ready.run.config.data.domain)
        benchmark_rules(benchmark or ready.run.config.data.benchmark)
    ranks.same({"run": str(ready.run.folder.resolve()), "queries": str([query.qid for query in queries])})
    predictions = ready.predict(queries, progress if ranks.first else None, ranks)
    found = None
    with ranks.together():
        if ranks.first:
            found = _written(ready, split, queries, predictions, official=official, benchmark=benchmark, out=out)
    return ranks.tell(found)


def _written(
    ready: Ready,
    split: str,
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    *,
    official: bool,
    benchmark: str | None,
    out: Path | None,
) -> Evaluation:
    """Scores the predictions and writes all files of an evaluation."""
    config, folder = ready.run.config, out or ready.run.folder / f"eval-{split}"
    benchmark = benchmark or config.data.benchmark
    rows = _a_row_each(queries, predictions)
    metrics: dict[str, Any] = {}
    notes, legacy = data_notes(split, queries, ready.features), legacy_label(config)
    if any(query.windows or query.clip_ids for query in queries):
        metrics = {"legacy": legacy} if legacy else {}
        metrics |= score(rows, queries, benchmark=benchmark, official=official, clip_s=RATED_CLIP_S)
        write_metrics(folder / "metrics.json", metrics)
        notes += [legacy] if legacy else []
    else:
        notes.append(f"{split}: no labels, so that there are predictions and no metrics.")
        (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier evaluation: they would pass for these
    write_predictions(folder / "predictions.jsonl", rows)
    write_parquet(folder / "predictions.parquet", rows)
    examples = choose_examples(queries, predictions)
    draw_predictions(
        folder / "predictions.png",
        examples,
        title=f"{split}, {ready.run.folder.name}",
        pictures=best_moments(examples, ready.features),
    )
    return Evaluation(ready.run.folder, split, folder, metrics, tuple(notes))


def _a_row_each(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[Prediction]:
    """In the order of the queries; one whose video has no features is answered with empty lists, which count 0."""
    by_qid = {prediction.qid: prediction for prediction in predictions}
    return [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]


@dataclass(frozen=True)
class Ready:
    """A run with its weights loaded, beside its cache."""

    run: Run
    features: CacheReader
    model: Model
    device: torch.device

    def predict(self, queries: Sequence[Query], progress: Tell | None = None, ranks: Ranks = ALONE) -> list[Prediction]:
        """What `predict_split` gives for these queries."""
        return predict_split(
            self.model,
            queries,
            self.features,
            config=self.run.settled,
            device=self.device,
            progress=progress,
            ranks=ranks,
        )


def open_run(
    run: Path | None = None, *, cache: Path | None = None, weights: str = "best", device: str = "auto"
) -> Ready:
    """The run, by default the newest, with its "best" or "last" weights. Raises as `evaluate` does."""
    chosen = read_run(run) if run else newest_run()
    features = open_cache(chosen, cache)
    place = pick_device(device)
    return Ready(chosen, features, load_model(chosen, features, weights=weights, device=place), place)


def load_model(run: Run, features: CacheReader, *, weights: str = "best", device: torch.device) -> Model:
    """The model of a run with its "best" or "last" weights. Raises CacheError where these do not fit."""
    found = _weights_of(run, weights)
    model = build_for(run.config, features).to(device)
    fit_weights(model, found, of=str(run.folder))
    return model


def legacy_label(config: Config) -> str:
    """What stands beside every number of a run whose weights were chosen on the test split; empty for others."""
    if config.train.select_on != "test":
        return ""
    return f"{LEGACY} (train.select_on is test), so that its numbers there are too good."


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


def rated_saliency(saliency: Sequence[float], query: Query, *, fps: float) -> tuple[float, ...]:
    """Scores of clips at `fps` -> one score for each clip that annotations rate: `query.rated_s`, or else every two
    seconds of the annotated duration.

    Each is the mean over the clips whose centre falls into it, or the nearest clip where there is none.
    """
    values, centres = np.asarray(saliency, dtype=np.float64), (np.arange(len(saliency)) + 0.5) / fps
    rated = np.array(query.rated_s or _two_seconds_each(query.duration_s))
    bounds = np.searchsorted(centres, rated)
    nearest = np.clip(np.ceil(rated.mean(axis=1) * fps - 1), 0, len(values) - 1).astype(int)
    return tuple(
        float(values[a:b].mean() if b > a else values[near]) for (a, b), near in zip(bounds, nearest, strict=True)
    )


def _two_seconds_each(duration_s: float) -> list[tuple[float, float]]:
    clips = Grid(1 / RATED_CLIP_S, duration_s).clips
    return [(i * RATED_CLIP_S, (i + 1) * RATED_CLIP_S) for i in range(clips)]


def build_for(config: Config, features: CacheReader) -> Model:
    """The untrained model of these settings for the features of this cache.

    Raises CacheError when it has no words, UsageError for a model that looks at patches where frames have none.
    """
    if config.patches and features.patch_grid == (0, 0):
        asked, instead = f"spatial.steps is {config.spatial.steps}", "Leave spatial.steps out, or at 0."
        if config.model.kind == "adapter":
            asked, instead = "model.kind is adapter", "Choose cls, or costl with spatial.steps at 0."
        raise UsageError(
            f"{asked}, but the frames in {features.path} have no patches to look at: they were imported, or extracted "
            f"with --tokens cls. {instead}"
        )
    joint = {f.name: torch.as_tensor(getattr(features.joint, f.name)) for f in fields(features.joint)}
    if not len(features.word_table()):
        raise CacheError(f"{features.path}: no annotated query. Add annotations and run costl extract again.")
    return build_model(
        config,
        clip_width=joint["projection"].shape[0],
        word_width=features.word_table().counts()["channels"],
        patch_grid=features.patch_grid,
        joint=joint,
    )


def read_queries(features: CacheReader, split: str, *, domain: str = "") -> list[Query]:
    """The queries of a split, or those of one `domain` of it.

    Raises UsageError for a split or domain that the cache does not have, for a split without any query or without any
    video that has features, and with CacheError as `check_usable` does.
    """
    if split not in features.splits:
        raise UsageError(
            f"{features.path}: no split {split!r}, only {', '.join(features.splits) or 'none'}. Add it with "
            f"costl extract --cache {features.path} --annotations {split}.jsonl"
        )
    queries = parse_jsonl(features.annotations(split), f"{split}.jsonl")
    if not queries:
        raise UsageError(f"{features.path}: split {split!r} is empty. Annotate it and run costl extract again.")
    asked = [query for query in queries if domain in ("", query.domain)]
    if not asked:
        known = ", ".join(sorted({query.domain for query in queries} - {""})) or "none"
        raise UsageError(f"{features.path}: split {split!r} has no domain {domain!r}, only {known}. Set data.domain.")
    # The labels of train serve without features, too: chance draws from their lengths. Training checks it by itself.
    if split != "train":
        _refuse_without_features(asked, features, split=split, domain=domain)
    check_usable(asked, features, split=split)
    return asked


def _refuse_without_features(queries: Sequence[Query], features: CacheReader, *, split: str, domain: str) -> None:
    """Raises UsageError where no query can be answered: every number would be 0 and say nothing about the model."""
    videos = {query.vid for query in queries}
    if videos & set(features.video_ids):
        return
    which = f"split {split!r}" + (f" in domain {domain!r}" if domain else "")
    raise UsageError(
        f"{features.path}: no video of {which} has features ({len(queries)} queries about {some(sorted(videos))}). "
        f"costl status {features.path} says why. Extract these videos, or go on without this split."
    )


def data_notes(split: str, queries: Sequence[Query], features: CacheReader) -> list[str]:
    """What a person should know before trusting a number: videos without features, durations that disagree."""
    known = set(features.video_ids)
    lost = sorted({query.vid for query in queries} - known)
    apart = {q.vid: abs(q.duration_s - features.row(q.vid).duration_s) for q in queries if q.vid in known}
    # A second clip's worth is no rounding any more: the annotation means another cut of the video.
    wrong = [vid for vid, seconds in apart.items() if seconds > max(RATED_CLIP_S, 1 / features.fps)]
    notes = []
    bare = sum(not (query.windows or query.clip_ids) for query in queries)
    if bare and split == "train":
        notes.append(
            f"{split}: {bare} of {len(queries)} queries have no label, and are learned from as wrong ones alone."
        )
    if lost:
        count = sum(query.vid not in known for query in queries)
        notes.append(
            f"{split}: {count} of {len(queries)} queries ask about videos without features ({', '.join(lost[:3])}); "
            "nothing is learned from them, and they count 0. costl status says why."
        )
    if wrong:
        worst = max(wrong, key=lambda vid: apart[vid])
        notes.append(
            f"{split}: {len(wrong)} videos are longer or shorter than their annotation says, "
            f"{worst} by {apart[worst]:.1f} s. Check that the annotation is of this very cut."
        )
    return notes


def choose_examples(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[tuple[Query, Prediction]]:
    """Up to eight queries across all outcomes: ranked by the overlap of the first moment, evenly picked."""
    by_qid = {prediction.qid: prediction for prediction in predictions}
    answered = [(query, by_qid[query.qid]) for query in queries if query.qid in by_qid]
    ranked = sorted(answered, key=lambda pair: -_overlap(*pair))
    picked = np.unique(np.linspace(0, len(ranked) - 1, min(DRAWN, len(ranked))).round().astype(int))
    return [ranked[i] for i in picked]


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that this machine does not have."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}). Try cpu or auto."
        ) from error


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


def _rated(prediction: Prediction, query: Query, features: CacheReader) -> Prediction:
    saliency = rated_saliency(prediction.saliency, query, fps=features.fps)
    return Prediction(prediction.qid, prediction.query, prediction.vid, prediction.windows, saliency)


def _weights_of(run: Run, which: str) -> dict[str, Tensor]:
    """What the model is to hold. Raises CacheError for a damaged checkpoint, and for settings of a larger model."""
    if which not in WEIGHTS:
        raise UsageError(f"weights is {which!r}, expected one of {', '.join(WEIGHTS)}.")
    weights, meta = load_checkpoint(run.folder, which)
    refuse_larger(run.config, weights, str(run.folder))
    # `last` holds all that resuming needs; validation has always scored the average.
    found = meta.get("average") if which == "last" else weights
    if not (isinstance(found, dict) and all(isinstance(one, Tensor) for one in found.values())):
        raise CacheError(f"{run.folder}: no average among its {which} weights. Use another checkpoint or train again.")
    return found


def _overlap(query: Query, prediction: Prediction) -> float:
    if not (query.windows and prediction.windows):
        return 0.0
    return float(interval_iou(np.array(prediction.windows[0][:2]), np.array(query.windows)).max())
