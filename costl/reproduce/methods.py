"""The paragraph of methods: what exactly a reproduction ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from costl.config import Config
from costl.data.annotations import Query
from costl.experiments.repeat import CHOSEN_ON_VAL, LAST, LEGACY
from costl.metrics.paper_table import WITH_DOMAINS
from costl.pipeline.cache.reader import CacheReader

_RESAMPLED = (
    "Intervals are 95 % percentile bootstrap intervals over the test queries of the mean over seeds; they do not include "
    "the choice of seeds."
)


def describe_features(features: CacheReader) -> str:
    """The features of a cache in a few words, for a table."""
    if "model" not in features.source:
        return f"imported: {features.fingerprint.get('streams', 'unknown')}"
    weights = Path(features.source["weights"].rpartition("=")[2]).name
    return f"CLIP {features.source['model']} {weights}, {features.fps:g} fps"


def describe_methods(
    *,
    title: str,
    release: str,
    features: CacheReader,
    splits: Mapping[str, Sequence[Query]],
    settings: Config,
    changes: Sequence[str],
    seeds: int,
    selections: Sequence[str],
    versions: Mapping[str, str],
    official: bool,
    left_out: str,
) -> str:
    """One paragraph: versions, annotations, features, training, checkpoints, scoring, and what is missing.

    `versions` of the libraries that trained, by name. `changes` are overrides of the settings. `left_out`: a sentence about
    domains without a model, or an empty text.
    """
    own = versions.get("costl", "unknown")
    others = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "costl")
    sentences = [
        f"Methods. {title} with CoSTL {own} ({others}).",
        release,
        f"{_counts(splits)}.",
        _features(features),
        _training(settings, changes, seeds),
        *(_checkpoint(name, settings) for name in selections),
        left_out,
        _scoring(official=official),
        _missing(features, splits),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _counts(splits: Mapping[str, Sequence[Query]]) -> str:
    counts = (f"{name} {len(rows)} about {len({row.vid for row in rows})} videos" for name, rows in splits.items())
    return f"Queries: {', '.join(counts)}"


def _features(features: CacheReader) -> str:
    fingerprint = features.fingerprint
    if "model" not in features.source:
        streams = fingerprint.get("streams", "unknown")
        return f"Features: published by others, imported ({streams} channels, {features.fps:g} a second), no patches."
    patches = features.contents.token_shape[0] - 1
    tokens = f"the frame token and {patches} patch tokens" if patches else "the frame token alone"
    return (
        f"Features: {describe_features(features)} (one frame each), {tokens}, {fingerprint.get('dtype', 'float16')}, "
        f"sampling {fingerprint.get('sampling', 'centre')}, resized by the {fingerprint.get('resize', 'device')}, weights "
        f"with the sha256 {str(fingerprint.get('weights', 'unknown'))[:12]}."
    )


def _training(settings: Config, changes: Sequence[str], seeds: int) -> str:
    changed = f", changed by {', '.join(changes)}" if changes else ""
    model = ", a model for each domain" if settings.data.benchmark in WITH_DOMAINS else ""
    length = f"about {settings.train.steps} steps" if settings.train.steps else f"{settings.train.epochs} epochs at most"
    return (
        f"Training: the settings of configs/{settings.data.benchmark}.yaml{changed}{model}; seeds 0 to {seeds - 1}, "
        f"{length}, batches of {settings.train.batch_size} queries."
    )


def _checkpoint(selection: str, settings: Config) -> str:
    metric = settings.train.select
    return {
        CHOSEN_ON_VAL: f"Checkpoint: the epoch with the best {metric} on val; test chose nothing.",
        LAST: "Checkpoint: the last epoch.",
        LEGACY: f"Legacy checkpoint: the epoch with the best {metric} on test, as some papers do; its numbers are too good.",
    }[selection]


def _scoring(*, official: bool) -> str:
    rules = "the rules of the published evaluator" if official else "strict rules, by which an unanswered query counts 0"
    return f"Scores: test, {rules}; mean and standard deviation (divisor n - 1) over the seeds. {_RESAMPLED}"


def _missing(features: CacheReader, splits: Mapping[str, Sequence[Query]]) -> str:
    vids = set(features.video_ids)
    missing = {query.vid for rows in splits.values() for query in rows} - vids
    if not missing:
        return "No video is missing."
    missed = {name: sum(row.vid in missing for row in rows) for name, rows in splits.items()}
    counts = (f"{missed[name]} of {len(rows)} queries of {name}" for name, rows in splits.items())
    return f"{len(missing)} videos have no features; they are those of {', '.join(counts)}."
