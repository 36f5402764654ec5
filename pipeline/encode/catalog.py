"""The models of open_clip: their sizes, what an hour of video costs with each, and their weights.

models.json holds the sizes of the models that open_clip 3.3 has, because building 144 networks takes half a minute. Models
that are not in it, such as those of a later release, are built without values.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from costl.pipeline.data_folder import ExtractSettings
from costl.pipeline.device import default_precision, pick_device
from costl.pipeline.encode.names import model_names, model_tags
from costl.pipeline.errors import UsageError, suggest
from costl.pipeline.formats.table import table
from costl.pipeline.options import MODEL
from costl.pipeline.progress import Progress, ProgressCallback

_SIZES = Path(__file__).with_name("models.json")
_BYTES = 2  # of a number in float16, the default format of tokens
_MANY = 3  # models that are measured without a warning
_MEASURE_S, _REPEATS = 2.0, 3
_BATCH = {"cpu": 8}  # frames at once; 64 on other devices
_SMALL_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class ModelSize:
    """`image_size` (height, width) of the input; `grid` (rows, columns) of the patches; `width` of a token; parameters in
    millions, None for a text tower that open_clip has not itself."""

    image_size: tuple[int, int]
    grid: tuple[int, int]
    width: int
    image_millions: float
    text_millions: float | None

    @property
    def megabytes_an_hour(self) -> float:
        """The size of the features of an hour of video with the default settings."""
        frames = 3600 * ExtractSettings.fps
        return (1 + self.grid[0] * self.grid[1]) * self.width * _BYTES * frames / 1e6


@dataclass(frozen=True)
class ListedModel:
    """A model, the tags of its weights, and the milliseconds of a frame on this machine if they were measured."""

    name: str
    size: ModelSize
    weights: tuple[str, ...]
    milliseconds: float | None = None

    def data(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        size = asdict(self.size) | {"megabytes_an_hour": round(self.size.megabytes_an_hour, 1)}
        return {"name": self.name, **size, "weights": list(self.weights), "milliseconds_a_frame": self.milliseconds}

    def row(self) -> list[str]:
        """The cells of the table."""
        size = self.size
        text = "" if size.text_millions is None else f"{size.text_millions:.0f}"
        cells = [self.name, " x ".join(map(str, size.image_size)), " x ".join(map(str, size.grid)), str(size.width)]
        cells += [f"{size.image_millions:.0f}", text, f"{size.megabytes_an_hour:.0f}"]
        if self.milliseconds is not None:
            cells += [f"{self.milliseconds:.1f}", f"{self.milliseconds * 3.6 * ExtractSettings.fps:.0f}"]
        return [*cells, f"{len(self.weights)} tags" if len(self.weights) > 1 else "".join(self.weights) or "none"]


@dataclass(frozen=True)
class ModelList:
    """The models that a pattern names."""

    models: tuple[ListedModel, ...]
    exit_code = 0

    def data(self) -> list[dict[str, Any]]:
        """One dictionary for each model."""
        return [model.data() for model in self.models]

    def lines(self) -> list[str]:
        """A table, and for a single model the tags of its weights."""
        header = ["model", "input", "patches", "width", "image M", "text M", "MB/hour"]
        if any(model.milliseconds is not None for model in self.models):
            header += ["ms/frame", "s/hour"]
        lines = table([*header, "weights"], [model.row() for model in self.models])
        tags = ", ".join(self.models[0].weights) if len(self.models) == 1 else ""
        return lines + textwrap.wrap(f"weights: {tags}", 100) if tags else lines


def list_models(
    pattern: str = "", *, measure: bool = False, device: str = "auto", progress: ProgressCallback | None = None
) -> ModelList:
    """The models of open_clip whose name contains `pattern`, or the one that has exactly this name.

    With `measure`, the image tower of each is timed on `device` with random weights, which take the same time. Raises
    UsageError for a pattern that no name contains, and for a device that cannot be used.
    """
    report_progress = progress or (lambda _: None)
    names = model_names()
    chosen = [pattern] if pattern in names else [name for name in names if pattern.lower() in name.lower()]
    if not chosen:
        raise UsageError(f"no model of open_clip has {pattern!r} in its name. {suggest(pattern, names)}")
    models = [ListedModel(name, size, tuple(model_tags(name) or ())) for name, size in _sizes(chosen)]
    if measure:
        if len(models) > _MANY:
            message = f"{len(models)} models are measured, some of them with gigabytes of weights. Name one: {MODEL}."
            report_progress(Progress("measure", 0, len(models), message=message))
        for number, model in enumerate(models):
            report_progress(Progress("measure", number, len(models), model.name))
            models[number] = replace(model, milliseconds=_milliseconds(model, device))
        report_progress(Progress("measure", len(models), len(models)))
    return ModelList(tuple(models))


def _sizes(names: list[str]) -> Iterator[tuple[str, ModelSize]]:
    known = json.loads(_SIZES.read_text(encoding="utf-8"))
    for name in names:
        if name in known:
            image_size, grid, width, image, text = known[name]
            yield name, ModelSize(tuple(image_size), tuple(grid), width, image, text)
        else:
            yield name, build_size(name)


def build_size(name: str) -> ModelSize:
    """The size of a model, from a network without values (on the meta device)."""
    import open_clip
    import torch

    config = open_clip.get_model_config(name)
    with torch.device("meta"), torch.inference_mode():
        visual = _image_tower(name)
        sides = visual.image_size
        height, width = sides if isinstance(sides, (tuple, list)) else (sides, sides)
        output = visual.forward_intermediates(torch.empty(1, 3, height, width), indices=1, intermediates_only=True)
        channels, rows, columns = output["image_intermediates"][0].shape[1:]
        text = None
        if "hf_model_name" not in config["text_cfg"]:
            small = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
            text = open_clip.CustomTextCLIP(config["embed_dim"], small, config["text_cfg"]).text
    return ModelSize(
        (height, width), (rows, columns), channels, _millions(visual), None if text is None else _millions(text)
    )


def _image_tower(name: str) -> Any:
    import open_clip

    config = open_clip.get_model_config(name)
    quick_gelu = config.get("quick_gelu", False)
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], _SMALL_TEXT, quick_gelu=quick_gelu).visual.eval()


def _millions(network: Any) -> float:
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)


def _milliseconds(model: ListedModel, device_name: str) -> float:
    """The time of one frame in a full batch, the fastest of a few."""
    import torch

    device = pick_device(device_name)
    half = default_precision(device.type) == "fp16"
    dtype = torch.float16 if half else torch.float32
    tower = _image_tower(model.name).to(device, dtype)
    images = torch.rand(_BATCH.get(device.type, 64), 3, *model.size.image_size).to(device, dtype)
    times: list[float] = []
    started = time.perf_counter()
    with torch.inference_mode():
        while len(times) < 1 + _REPEATS or time.perf_counter() - started < _MEASURE_S:
            begin = time.perf_counter()
            tower(images)[0].sum().cpu()  # which waits for a GPU
            times.append(time.perf_counter() - begin)
    return 1000 * min(times[1:]) / len(images)
