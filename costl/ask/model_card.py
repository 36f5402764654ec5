"""The model card of an export: what the model is, how it was trained, its metrics, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HL mAP": "HL-min-VeryGood-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}


def model_card(config: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md for the Hub, without a date or a path. `config` is the content of config.json, `metrics` are by split."""
    sections = [
        "---\nlibrary_name: costl\nlicense: other\npipeline_tag: video-classification\n"
        "tags: [video-moment-retrieval, highlight-detection, clip, costl]\n---",
        "# CoSTL: moments of a video that a sentence describes",
        "Given a video and a sentence, this model finds the moments that the sentence describes and rates every clip "
        f"of the video. It has {config['parameters'] / 1e6:.1f} million parameters, not counting the frozen CLIP that "
        "computes its features.",
        "## Use\n\n```python\nimport costl\n\n"
        'answers = costl.load("path/of/this/folder").ask("video.mp4", ["a dog catches a ball"])\n```\n\n'
        'or `costl predict video.mp4 "a dog catches a ball" --model path/of/this/folder`. From the Hub: '
        '`costl.load("hf://user/name")`. The folder contains no pickle files, and loading it runs no code from it.',
        f"## Features\n\n{_features(config)}",
        f"## Training\n\n{_training(config['config'])}",
        f"## Numbers\n\n{_numbers(metrics)}",
        "## Limits and licence\n\n"
        "The numbers hold for videos and sentences like those of the training and evaluation data. Scores rank the moments "
        "of one query. They are not probabilities, and scores of different queries cannot be compared.\n\n"
        "These weights have no licence yet. Before you publish them, name one here that agrees with the licences of the "
        "training videos, of their annotations and of the CLIP weights.",
    ]
    return "\n\n".join(sections) + "\n"


def _features(config: Mapping[str, Any]) -> str:
    fingerprint = config["fingerprint"]
    weights = config["clip"]["weights"]
    if weights is None:
        origin = "not in this folder, give them when you load the model"
    elif weights == "clip":
        origin = "in `clip/`"
    else:
        origin = f"`{weights}` of open_clip"
    rows, columns = config["patch_grid"]
    lines = [
        f"- CLIP: `{fingerprint.get('model')}`, {origin}; sha256 of the weights `{fingerprint.get('weights')}`",
        f"- {config['fps']:g} clips a second, {rows} x {columns} patches a frame, computed in "
        f"{fingerprint.get('precision')}",
        f"- open_clip {fingerprint.get('open_clip')}, preprocessing `{fingerprint.get('preprocess')}`",
    ]
    return (
        "\n".join(lines)
        + "\n\nLoading the model with other CLIP weights is refused, because it was trained on features of these."
    )


def _training(config: Mapping[str, Any]) -> str:
    lines = [f"{section}: {json.dumps(values, sort_keys=True)}" for section, values in sorted(config.items())]
    return (
        f"Benchmark rules: `{config['data']['benchmark']}`; checkpoint selected by `{config['train']['select']}` on "
        f"`{config['train']['select_on']}`; seed {config['train']['seed']}. All settings:\n\n```\n"
        + "\n".join(lines)
        + "\n```"
    )


def _numbers(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return "None: the run was not evaluated (`costl evaluate`)."
    names = [name for name, key in COLUMNS.items() if any(key in of_split["brief"] for of_split in metrics.values())]
    head = f"| split | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
    rows = []
    for split, of_split in metrics.items():
        cells = [_cell(of_split, COLUMNS[name]) for name in names]
        rows.append(f"| {split} | {' | '.join(cells)} |")
    has_intervals = any("intervals" in of_split for of_split in metrics.values())
    legend = " In brackets: the interval that `costl evaluate` computes." if has_intervals else ""
    return f"Percent, by `costl evaluate`.{legend}\n\n{head}" + "\n".join(rows)


def _cell(metrics: Mapping[str, Any], key: str) -> str:
    value = metrics["brief"].get(key)
    interval = metrics.get("intervals", {}).get(key)
    if value is None:
        return "-"
    if not isinstance(interval, list) or len(interval) != 2:
        return f"{value:.1f}"
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
