"""The model card of an export: what the model is, how it was trained, its metrics, and how to load it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from costl.pipeline.formats.table import table

COLUMNS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HL mAP": "HL-min-VeryGood-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
_CARD = """\
---
library_name: costl
license: other
pipeline_tag: video-classification
tags: [video-moment-retrieval, highlight-detection, clip, costl]
---

# CoSTL: moments of a video that a sentence describes

Given a video and a sentence, this model finds the moments that the sentence describes and rates every clip of the video. \
It has {millions:.1f} million parameters, not counting the frozen CLIP that computes its features.

## Use

```python
import costl

answers = costl.load("path/of/this/folder").ask("video.mp4", ["a dog catches a ball"])
```

or `costl predict video.mp4 "a dog catches a ball" --model path/of/this/folder`. From the Hub: \
`costl.load("hf://user/name")`. The folder contains no pickle files, and loading it runs no code from it.

## Features

- CLIP: `{fingerprint[model]}`, {origin}; sha256 of the weights `{fingerprint[weights]}`
- {fps:g} clips a second, {patch_grid[0]} x {patch_grid[1]} patches a frame, computed in {fingerprint[precision]}
- open_clip {fingerprint[open_clip]}, preprocessing `{fingerprint[preprocess]}`

Loading the model with other CLIP weights is refused, because it was trained on features of these.

## Training

Benchmark rules: `{data[benchmark]}`; checkpoint selected by `{train[select]}` on `{train[select_on]}`; seed {train[seed]}. \
All settings:

```
{settings}
```

## Numbers

{metrics}

## Limits and licence

The numbers hold for videos and sentences like those of the training and evaluation data. Scores rank the moments of one \
query. They are not probabilities, and scores of different queries cannot be compared.

These weights have no licence yet. Before you publish them, name one here that agrees with the licences of the training \
videos, of their annotations and of the CLIP weights.
"""


def model_card(config: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md for the Hub, without a date or a path. `config` is the content of config.json, `metrics` are by split."""
    settings = config["config"]
    weights = config["clip"]["weights"]
    origins = {None: "not in this folder, give them when you load the model", "clip": "in `clip/`"}
    return _CARD.format(
        fingerprint=defaultdict(lambda: "unknown", config["fingerprint"]),
        fps=config["fps"],
        patch_grid=config["patch_grid"],
        data=settings["data"],
        train=settings["train"],
        millions=config["parameters"] / 1e6,
        origin=origins.get(weights, f"`{weights}` of open_clip"),
        settings="\n".join(f"{name}: {json.dumps(section, sort_keys=True)}" for name, section in sorted(settings.items())),
        metrics=_metrics_table(metrics),
    )


def _metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return "None: the run was not evaluated (`costl evaluate`)."
    names = [name for name, key in COLUMNS.items() if any(key in of_split["brief"] for of_split in metrics.values())]
    rows = [[split, *(_cell(of_split, COLUMNS[name]) for name in names)] for split, of_split in metrics.items()]
    has_intervals = any("intervals" in of_split for of_split in metrics.values())
    legend = " In brackets: the interval that `costl evaluate` computes." if has_intervals else ""
    return "\n".join([f"Percent, by `costl evaluate`.{legend}", "", *table(["split", *names], rows)])


def _cell(metrics: Mapping[str, Any], key: str) -> str:
    value = metrics["brief"].get(key)
    if value is None:
        return "-"
    low, high = metrics.get("intervals", {}).get(key) or (None, None)
    return f"{value:.1f}" if low is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"
