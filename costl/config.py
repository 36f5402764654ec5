"""The settings of stage two as frozen dataclasses, loaded from layers of YAML, mappings and `a.b=c` overrides."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costl.config_files import BENCHMARKS, Layer, read_layer
from costl.pipeline.errors import UsageError, suggest
from costl.pipeline.formats.strict_json import abbreviated
from costl.pipeline.formats.strict_yaml import is_number, read_yaml, write_yaml

# The metrics that can choose a checkpoint: every headline number of `costl.metrics.compute`.
SELECTABLE = (
    *(f"MR-full-R{rank}@{iou}" for rank in (1, 5) for iou in (0.3, 0.5, 0.7)),
    *("MR-full-mAP", "MR-full-mAP@0.5", "MR-full-mAP@0.75", "MR-full-mIoU"),
    *("MR-long-mAP", "MR-middle-mAP", "MR-short-mAP"),
    *(f"HL-min-{grade}-{metric}" for grade in ("Fair", "Good", "VeryGood") for metric in ("mAP", "Hit1")),
    *("HL-top5-mAP", "HL-mAP"),
)
KINDS = ("costl", "cls", "adapter")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DROPOUT = 0.1  # `model.dropout` where it is None; few training queries have twice as much

# More than any training needs. A number of hundreds of digits would fail later, where it becomes a float or a size.
_MAX_COUNT = 10**9
_MAX_WIDTH = 16384  # one matrix of the model then takes a gigabyte
_MAX_STRIDE = 512  # clips; prediction reads no more clips at once (MAX_WINDOW_CLIPS)

# The length of training is given by one of them: the one that is set last.
_ALTERNATIVES = {"epochs": "steps", "steps": "epochs"}

# Settings of earlier versions, and what to do instead. Settings that a run or a cache stores may still have them.
REMOVED = {
    "temporal.top_down": "Leave it out: adding coarse scales to finer ones brought no gain.",
    "loss.quality": "Leave it out: the score of a moment is always trained to predict its IoU.",
    "train.accumulate": "For a batch that does not fit, start several processes with torchrun, or set train.batch_size lower.",
    "train.compile": "Leave it out: compiling brought no gain.",
}


def _setting(default: Any, is_valid: Callable[[Any], bool], expected: str) -> Any:
    """A field with a default, and the values that are valid for it, in code and in words."""
    return field(default=default, metadata={"is_valid": is_valid, "expected": expected})


def _above_zero(default: Any, maximum: int = _MAX_COUNT) -> Any:
    return _setting(default, lambda value: 0 < value <= maximum, f"above zero and at most {maximum}")


def _from_zero(default: Any, maximum: int = _MAX_COUNT) -> Any:
    return _setting(default, lambda value: 0 <= value <= maximum, f"from 0 to {maximum}")


def _one_of(default: str, names: tuple[str, ...]) -> Any:
    return _setting(default, lambda name: name in names, f"one of {', '.join(names)}")


def _dropout(default: float | None) -> Any:
    # The remaining values are scaled by 1 / (1 - dropout), which overflows float16 when dropout is close to 1.
    return _setting(default, lambda probability: 0 <= probability <= 0.99, "from 0 to 0.99")


def _weight(default: float) -> Any:
    # Only the ratios of weights matter. The gradient of a larger weight overflows float16, a smaller one vanishes in float32.
    return _setting(default, lambda weight: weight == 0 or 1e-6 <= weight <= 1000, "0, or from 0.000001 to 1000")


def _are_strides(strides: tuple[int, ...]) -> bool:
    """Whether each is twice the one before: a convolution of stride 2 makes each scale from the finer one."""
    doubled = tuple(2**i for i in range(_MAX_STRIDE.bit_length()))
    return len(strides) > 0 and strides == doubled[: len(strides)]


@dataclass(frozen=True)
class Data:
    """The benchmark whose rules the metrics follow, and one of its domains ("" for all)."""

    benchmark: str = _one_of("qvhighlights", BENCHMARKS)
    domain: str = ""


@dataclass(frozen=True)
class Model:
    """The kind of model, and the sizes that all its parts share."""

    kind: str = _one_of("costl", KINDS)
    width: int = _above_zero(256, _MAX_WIDTH)
    heads: int = _above_zero(8, 1024)
    dropout: float | None = _dropout(None)
    input_dropout: float = _dropout(0.3)


@dataclass(frozen=True)
class Spatial:
    """The text-driven image encoder."""

    steps: int = _setting(2, lambda steps: steps in (0, 1, 2), "0, 1 or 2")
    clip_prior: bool = True
    top_k: int = _above_zero(32)


@dataclass(frozen=True)
class Temporal:
    """The multi-scale temporal module."""

    layers: int = _from_zero(2, 64)
    strides: tuple[int, ...] = _setting(
        (1, 2, 4, 8), _are_strides, f"1, 2, 4, ... each twice the one before, up to {_MAX_STRIDE}"
    )
    null_tokens: int = _from_zero(4, 1024)
    kernel: int = _setting(
        5,
        lambda kernel: 0 < kernel < 1024 and kernel % 2 == 1,
        "odd, so that it has a middle, above zero and below 1024",
    )


@dataclass(frozen=True)
class Loss:
    """The weight of each loss; 0 turns it off."""

    focal: float = _weight(1.0)
    iou: float = _weight(1.0)
    saliency: float = _weight(0.5)
    wrong_query: float = _weight(0.5)
    contrast: float = _weight(1.0)


@dataclass(frozen=True)
class Train:
    """The training loop."""

    seed: int = _setting(0, lambda seed: 0 <= seed < 2**32, "0 or more and below 2^32")
    epochs: int | None = _above_zero(None)
    steps: int | None = _above_zero(None)
    batch_size: int = _above_zero(32)
    learning_rate: float = _above_zero(5e-4, 1)  # AdamW changes every weight by about this much in a step
    weight_decay: float = _setting(1e-4, lambda decay: decay >= 0, "zero or more")
    warmup_steps: int = _from_zero(200)
    clip_norm: float = _setting(1.0, lambda norm: norm > 0, "above zero")
    ema: float = _setting(0.999, lambda decay: 0 <= decay < 1, "0 or more and below 1")
    validate_every: int = _above_zero(1)
    patience: int = _above_zero(15)
    select: str = _one_of("MR-full-mAP", SELECTABLE)
    select_on: str = _setting(
        "val", lambda split: split in ("val", "test"), "val, or test, as some papers do; numbers are then labelled"
    )
    folds: int = _from_zero(3, 1000)
    threads: int | None = _above_zero(None, 1024)
    workers: int = _from_zero(0, 256)
    bucket_batches: int = _above_zero(1)
    splice: float | None = _setting(None, lambda share: 0 <= share <= 1, "from 0 to 1")
    pseudo_labels: int | None = _from_zero(None)
    precision: str = _one_of("auto", PRECISIONS)
    tensorboard: bool = False


@dataclass(frozen=True)
class Predict:
    """How predictions are made from the outputs of the model."""

    moments: int = _above_zero(10)
    nms_sigma: float = _setting(0.5, lambda sigma: sigma > 0, "above zero")
    min_score: float = _setting(0.0, lambda score: 0 <= score <= 1, "from 0 to 1")
    round_s: float | None = _setting(None, lambda unit_s: unit_s == 0 or unit_s >= 0.001, "0, or 0.001 and more")
    window_clips: int | None = _setting(
        None,
        lambda clips: 8 <= clips <= _MAX_COUNT and clips % 4 == 0,
        f"a multiple of 4, at least 8 and at most {_MAX_COUNT}",
    )


@dataclass(frozen=True)
class Config:
    """All settings. `Config()` is `configs/default.yaml`."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    spatial: Spatial = field(default_factory=Spatial)
    temporal: Temporal = field(default_factory=Temporal)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    predict: Predict = field(default_factory=Predict)

    @property
    def patches(self) -> bool:
        """Whether the model reads the patches of a frame; if not, only the frame token is read from the cache."""
        return self.model.kind == "adapter" or (self.model.kind == "costl" and self.spatial.steps > 0)

    def to_dict(self) -> dict[str, Any]:
        """The sections as dicts of plain values (a tuple becomes a list), for YAML and JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def to_yaml(self) -> str:
        """The settings as YAML; `load_config` reads an equal Config from it."""
        return write_yaml(self.to_dict())


def load_config(*layers: Layer, overrides: Iterable[str] = (), stored: bool = False) -> Config:
    """The defaults, changed by each layer in turn (a YAML file or a mapping), then by `section.name=value` overrides.

    A layer names only the settings that it changes. A file may also be the bare name of a benchmark, or the costl.yaml of a
    data folder, of which the `train` section is read. Mappings, and with `stored` files as well, are what a cache, a run or
    an export stored: they may have `REMOVED` settings of earlier versions. Raises UsageError that lists all problems at
    once: unknown names (with the nearest valid name), wrong types, values out of range, and values that contradict each
    other.
    """
    problems: list[str] = []
    merged: dict[str, dict[str, Any]] = {}
    for source, content in _named_layers(layers, overrides, problems):
        if stored or source == _STORED:
            content = _without_removed(source, content, problems)
        for section, key, value in _valid_settings(source, content, problems):
            merged.setdefault(section, {})[key] = value
            if section == "train" and key in _ALTERNATIVES and value is not None:
                merged[section][_ALTERNATIVES[key]] = None
    sections = {name: _section_type(name)(**values) for name, values in merged.items()}
    config = dataclasses.replace(Config(), **sections)
    problems += _range_problems(config)
    if problems:
        raise UsageError("\n".join(problems))
    return config


_STORED = "settings"  # the name of a mapping in messages


def _named_layers(layers: Iterable[Layer], overrides: Iterable[str], problems: list[str]) -> Iterator[tuple[str, Any]]:
    for layer in layers:
        if isinstance(layer, Path):
            yield str(layer), read_layer(layer, problems)
        else:
            yield _STORED, layer
    for override in overrides:
        yield f"--set {override}", _parse_override(override, problems)


def _without_removed(source: str, content: Any, problems: list[str]) -> Any:
    """The settings without those that this version does not have and that change nothing about a trained model."""
    if not isinstance(content, Mapping):
        return content
    kept = dict(content)
    for name in REMOVED:
        section, key = name.split(".")
        values = kept.get(section)
        if isinstance(values, Mapping) and key in values:
            kept[section] = {other: values[other] for other in values if other != key}
            if name == "temporal.top_down" and values[key] is not False:
                problems.append(f"{source}: {name} is true, a model that this version cannot build. Version 0.1 reads it.")
    return kept


def _parse_override(override: str, problems: list[str]) -> Any:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        problems.append(f"--set {override}: expected section.name=value, for example train.epochs=20.")
        return {}
    try:
        return {section: {key: read_yaml(text)}}
    except ValueError:
        problems.append(f"--set {override}: {text!r} is not a YAML value.")
        return {}


def _valid_settings(source: str, layer: Any, problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """The settings of one layer with a valid name and type; adds the others to `problems`."""
    if not isinstance(layer, Mapping):
        problems.append(f"{source}: found {abbreviated(layer)}, expected sections such as 'train:'.")
        return
    for section, values in layer.items():
        if section not in _types(Config):
            hint = suggest(_key_text(section), list(_types(Config)))
            problems.append(f"{source}: unknown section {abbreviated(section)}. {hint}")
        elif not isinstance(values, Mapping):
            problems.append(f"{source}: {section} is {abbreviated(values)}, expected names and values below it.")
        else:
            yield from _section_settings(source, section, values, problems)


def _section_settings(
    source: str, section: str, values: Mapping[str, Any], problems: list[str]
) -> Iterator[tuple[str, str, Any]]:
    types_by_key = _types(_section_type(section))
    for key, value in values.items():
        name = f"{section}.{_key_text(key)}"
        if name in REMOVED:
            problems.append(f"{source}: {name} is no setting any more. {REMOVED[name]}")
            continue
        if key not in types_by_key:
            problems.append(f"{source}: unknown setting {name}. {suggest(_key_text(key), list(types_by_key))}")
            continue
        try:
            yield section, key, _convert(value, types_by_key[key])
        except TypeError as error:
            hint = _quotes_hint(source, value)
            problems.append(f"{source}: {name} is {abbreviated(value)}, expected {error}.{hint}")


def _key_text(key: Any) -> str:
    """A key for an error message; YAML keys need not be strings."""
    return key if isinstance(key, str) else abbreviated(key)


def _quotes_hint(source: str, value: Any) -> str:
    if not (isinstance(value, str) and is_number(value)):
        return ""
    # A cache stores the costl.yaml of its videos, in which earlier versions read 1e-4 as a string.
    return " Leave out the quotes" + ("; for a cache, run costl extract again." if source == _STORED else ".")


@functools.cache
def _types(cls: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def _section_type(section: str) -> Any:
    return _types(Config)[section]


def _convert(value: Any, expected: Any) -> Any:
    """The value converted to the type of the setting. The message of the TypeError names the expected type."""
    if isinstance(expected, types.UnionType):  # only `X | None` occurs
        return None if value is None else _convert(value, expected.__args__[0])
    if typing.get_origin(expected) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError("a list of whole numbers")
        return tuple(_convert(item, expected.__args__[0]) for item in value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise TypeError("a number") from None
    if type(value) is not expected:
        raise TypeError({int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[expected])
    return value


def _range_problems(config: Config) -> list[str]:
    """Values out of range; without these, values that contradict each other."""
    out_of_range: list[str] = []
    for section, settings in vars(config).items():
        for setting in dataclasses.fields(settings):
            value = getattr(settings, setting.name)
            finite = not isinstance(value, float) or math.isfinite(value)
            if setting.metadata and value is not None and not (finite and setting.metadata["is_valid"](value)):
                expected = setting.metadata["expected"]
                out_of_range.append(f"{section}.{setting.name} is {abbreviated(value)}, expected {expected}.")
    checks = () if out_of_range else (_uneven_width, _overshooting_decay, _no_loss, _no_comparison)
    return out_of_range or [problem for check in checks if (problem := check(config))]


def _uneven_width(config: Config) -> str:
    width = config.model.width
    heads = config.model.heads
    step = math.lcm(2, heads)  # a position encoding has pairs of a sine and a cosine
    if not width % step:
        return ""
    below = width - width % step
    near = " or ".join(str(number) for number in (below, below + step) if 0 < number <= _MAX_WIDTH)
    return f"model.width is {width}, expected an even number and a multiple of model.heads ({heads}), such as {near}."


def _overshooting_decay(config: Config) -> str:
    rate = config.train.learning_rate
    decay = config.train.weight_decay
    if not rate * decay > 1:
        return ""
    return (
        f"train.weight_decay is {decay!r}, expected at most {1 / rate:g} with train.learning_rate at {rate!r}: "
        "a step reduces every weight by their product."
    )


def _no_loss(config: Config) -> str:
    if _weighted(config.loss):
        return ""
    return "loss: every weight is 0, expected at least one above zero, or there is nothing to learn."


def _no_comparison(config: Config) -> str:
    weighted = _weighted(config.loss)
    if config.train.batch_size > 1 or not weighted or weighted & {"focal", "iou", "saliency"}:
        return ""
    names = " and ".join(f"loss.{name}" for name in sorted(weighted))
    return (
        f"train.batch_size is 1, expected 2 or more, or there is nothing to learn: {names} compares the videos of a batch, "
        "and every other weight is 0."
    )


def _weighted(loss: Loss) -> set[str]:
    """The names of the losses with a weight above zero."""
    return {name for name, weight in vars(loss).items() if weight}
