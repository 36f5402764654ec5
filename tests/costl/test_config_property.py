"""All accepted settings work: the model is built, trains on a batch, and predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from costl.config import KINDS, PRECISIONS, SELECTABLE, Config, load_config
from costl.config_files import BENCHMARKS
from costl.data.annotations import Query
from costl.data.batch import collate
from costl.data.queries import read_queries
from costl.data.sampler import plan_epoch
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.strict_yaml import read_yaml
from costl.predict.predict import predict_split
from costl.training.state import TrainingState, fresh_state
from costl.training.step import make_objective, train_step

CPU = torch.device("cpu")

# Ordinary values and the limits of the accepted ranges that run fast.
# `compile` takes minutes; `workers` and `tensorboard` do not affect a step. They have tests of their own.
ORDINARY: dict[str, dict[str, list[Any]]] = {
    "data": {"benchmark": [*BENCHMARKS]},
    "model": {
        "kind": [*KINDS],
        "width": [12, 24, 60],
        "heads": [1, 2, 3, 4, 12],
        "dropout": [0.0, 0.1, 0.99],
        "input_dropout": [0.0, 0.3, 0.99],
    },
    "spatial": {"steps": [0, 1, 2], "clip_prior": [True, False], "top_k": [1, 4, 10**9]},
    "temporal": {
        "layers": [0, 1, 2],
        "strides": [[1], [1, 2], [1, 2, 4, 8]],
        "null_tokens": [0, 1, 4],
        "kernel": [1, 5],
    },
    "loss": {name: [0.0, 1e-6, 1.0, 1000.0] for name in ("focal", "iou", "saliency", "wrong_query", "contrast")},
    "train": {
        "seed": [0, 2**32 - 1],
        "epochs": [1, 60, 10**9],
        "batch_size": [1, 2, 3, 10**9],
        "learning_rate": [1e-300, 5e-4, 1.0],
        "weight_decay": [0.0, 1e-4, 1.0],
        "warmup_steps": [0, 1, 200, 10**9],
        "clip_norm": [5e-324, 1.0, 1e300],
        "ema": [0.0, 0.999, 1 - 2**-53],
        "steps": [None, 1, 10**9],
        "validate_every": [1, 10**9],
        "patience": [1, 10**9],
        "splice": [None, 0.0, 0.5, 1.0],
        "pseudo_labels": [None, 0, 60],
        "folds": [0, 3, 1000],
        "select": [*SELECTABLE],
        "select_on": ["val", "test"],
        "threads": [None, 1, 1024],
        "workers": [0, 256],
        "bucket_batches": [1, 3, 10**9],
        "precision": [*PRECISIONS],
    },
    "predict": {
        "moments": [1, 10, 10**9],
        "nms_sigma": [5e-324, 0.5, 1e300],
        "min_score": [0.0, 0.5, 1.0],
        "round_s": [0.0, 0.001, 2.0, 1e300],
        "window_clips": [None, 8, 12, 10**9],
    },
}
# Values of every type that often break programs; load_config must refuse those that break this one.
ODD_NUMBERS = [-1, 0, 1, 2, 3, 4, 5, 9, 16, 64, 1023, 1024, 10**9, 10**9 + 1, 2**31, 2**63, 10**400, 10**5000]
ODD_FLOATS = [
    -1.0,
    -0.0,
    5e-324,
    1e-300,
    1e-40,
    1e-9,
    1.0 - 2**-53,
    1.5,
    10.0,
    1e6,
    1e30,
    1e39,
    1e300,
    math.inf,
    math.nan,
]
DOUBLED = [2**i for i in range(70)]
ODD_LISTS = [[], [1], [2], [1, 1], [1, 3], [2, 1], [-1], DOUBLED[:10], DOUBLED[:11], DOUBLED]
ODD_OTHERS = [None, True, "", "auto", "COSTL", "\ud800", {}, [0]]
ODD = [*ODD_NUMBERS, *ODD_FLOATS, *ODD_LISTS, *ODD_OTHERS]
NAMES = [(section, name) for section, fields in Config().to_dict().items() for name in fields]
NOT_TRIED = {("train", "tensorboard")}


@st.composite
def layers(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Ordinary settings, up to two of which are replaced by odd ones."""
    layer = {
        section: {name: draw(st.sampled_from(values)) for name, values in fields.items()}
        for section, fields in ORDINARY.items()
    }
    for section, name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        if (section, name) not in NOT_TRIED:
            layer[section][name] = draw(st.sampled_from(ODD))
    return layer


@dataclass(frozen=True)
class Task:
    """A cache, a few training queries, the same without labels, and a few queries to predict."""

    features: CacheReader
    labelled: list[Query]
    unlabelled: list[Query]
    val: list[Query]


@pytest.fixture(scope="module")
def task(world) -> Task:
    features = CacheReader(world.cache)
    of_three_videos = [query for query in read_queries(features, "train") if query.vid[-1] in "012"]
    labelled = of_three_videos[::7]
    assert len({query.vid for query in labelled}) == 3
    unlabelled = [replace(query, windows=(), clip_ids=(), saliency=()) for query in labelled]
    return Task(features, labelled, unlabelled, read_queries(features, "val")[::9])


def one_step(config: Config, task: Task, queries: list[Query]) -> TrainingState:
    """The state after the first batch."""
    threads = torch.get_num_threads()
    state = fresh_state(config, task.features, CPU)
    torch.set_num_threads(threads)  # a thousand threads would be slow on a few cores
    first, *_ = plan_epoch(
        queries,
        task.features,
        batch_size=config.train.batch_size,
        negative_pairs=config.loss.wrong_query > 0,
        generator=state.shuffle_generator,
        bucket_batches=config.train.bucket_batches,
    )
    batch = collate(first.queries, task.features, patches=config.patches, negative_pairs=first.negative_pairs)
    state.model.train()
    train_step(state, make_objective(state, config), batch, config, progress=0.5)
    return state


def check_accepted(config: Config, task: Task, queries: list[Query]) -> None:
    """Trains one step with finite losses, and predicts every query."""
    state = one_step(config, task, queries)
    assert all(map(math.isfinite, state.epoch_progress.means().values()))
    for model in (state.model, state.ema_model):
        predictions = predict_split(model, task.val, task.features, config=config, device=CPU)
        assert all(prediction.windows and prediction.saliency for prediction in predictions)
    brief = compute_metrics(predictions, task.val, benchmark=config.data.benchmark)["brief"]
    assert all(map(math.isfinite, brief.values()))


def check(layer: dict[str, dict[str, Any]], task: Task, *, unlabelled: bool) -> bool:
    """Returns whether the settings are accepted; fails if they are and do not work."""
    try:
        config = load_config(layer)
    except UsageError as error:
        assert str(error)
        return False
    check_accepted(config, task, task.unlabelled if unlabelled else task.labelled)
    return True


def small(*overrides: str) -> dict[str, dict[str, Any]]:
    """Fast settings with these changes, not validated."""
    layer = {section: dict(fields) for section, fields in CHEAP.items()}
    for override in overrides:
        name, _, value = override.partition("=")
        section, _, key = name.partition(".")
        layer.setdefault(section, {})[key] = read_yaml(value)
    return layer


CHEAP: dict[str, dict[str, Any]] = {"model": {"width": 12, "heads": 2}, "temporal": {"layers": 1, "strides": [1, 2]}}
ONLY_IOU = [f"loss.{name}=0" for name in ("focal", "saliency", "wrong_query", "contrast")]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


# Settings that earlier versions accepted, and that then failed.
@example(small("model.width=9", "model.heads=3"), False)
@example(small("model.kind=cls", "model.width=9", "model.heads=3"), False)
@example(small("model.kind=adapter", "train.precision=float16"), False)
@example(small("model.dropout=0.99999", "train.precision=float16"), False)
@example(small("temporal.null_tokens=9223372036854775808"), False)
@example(small("loss.focal=1e39"), False)
@example(small("train.learning_rate=1e9", "train.warmup_steps=0"), False)
@example(small("train.weight_decay=1e30", "train.warmup_steps=0"), False)
@example(small(f"train.epochs={10**400}"), False)
@example(small("predict.round_s=5e-324"), False)
@example(small(*ONLY_IOU), True)
@example(small(*ONLY_IOU, "train.precision=float16"), True)
@settings(max_examples=40, suppress_health_check=SLOW, phases=[Phase.explicit, Phase.generate])
@given(layers(), st.booleans())
def test_accepted_settings_train_and_predict(task, layer, unlabelled):
    check(layer, task, unlabelled=unlabelled)


@pytest.mark.long
@settings(max_examples=1000, suppress_health_check=SLOW)
@given(layers(), st.booleans())
def test_accepted_settings_train_and_predict_long(task, layer, unlabelled):
    check(layer, task, unlabelled=unlabelled)
