"""The model card of an export: what the model is, what it was trained on, its numbers, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CELLS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HL mAP": "HL-min-VeryGood-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}


def model_card(about: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md for the Hub: `about` as config.json holds it, `metrics` of `evaluate` by split. No date, no path."""
    return (
        "\n\n".join(
            [
                "---\nlibrary_name: costl\nlicense: other\npipeline_tag: video-classification\n"
                "tags: [video-moment-retrieval, highlight-detection, clip, costl]\n---",
                "# CoSTL: moments of a video that a sentence describes",
                "Given a video and a sentence, this model finds the moments that the sentence describes and rates every clip "
                f"of the video. It has {about['parameters'] / 1e6:.1f} million parameters, besides the frozen CLIP that makes "
                "its features.",
                "## Use\n\n```python\nimport costl\n\n"
                'answers = costl.load("path/of/this/folder").ask("video.mp4", ["a dog catches a ball"])\n```\n\n'
                'or `costl predict video.mp4 "a dog catches a ball" --model path/of/this/folder`. From the Hub: '
                '`costl.load("hf://user/name")`. Nothing in this folder is a pickle, and no code of it is run.',
                f"## Features\n\n{_features(about)}",
                f"## Training\n\n{_training(about['config'])}",
                f"## Numbers\n\n{_numbers(metrics)}",
                "## Limits and licence\n\n"
                "Numbers hold for videos and sentences like those it was trained and evaluated on. Scores rank moments of one "
                "query; they are no probabilities and should not be compared between queries.\n\n"
                "No licence was chosen for these weights: whoever publishes them has to name one here, in keeping with the "
                "licences of the training videos, of their annotations and of the CLIP weights.",
            ]
        )
        + "\n"
    )


def _features(about: Mapping[str, Any]) -> str:
    made, clip = about["fingerprint"], about["clip"]
    weights = {None: "not in this folder, to be given when loading", "clip": "in `clip/`"}.get(
        clip["weights"], f"`{clip['weights']}` of open_clip"
    )
    rows, columns = about["patch_grid"]
    lines = [
        f"- CLIP: `{made.get('model')}`, {weights}; sha256 of the weights `{made.get('weights')}`",
        f"- {about['fps']:g} clips a second, {rows} x {columns} patches a frame, computed in {made.get('precision')}",
        f"- open_clip {made.get('open_clip')}, preprocessing `{made.get('preprocess')}`",
    ]
    return (
        "\n".join(lines)
        + "\n\nOther weights are refused when the model is loaded: features of another CLIP mean nothing."
    )


def _training(config: Mapping[str, Any]) -> str:
    lines = [f"{section}: {json.dumps(values, sort_keys=True)}" for section, values in sorted(config.items())]
    return (
        f"Benchmark rules: `{config['data']['benchmark']}`; checkpoint chosen by `{config['train']['select']}` on "
        f"`{config['train']['select_on']}`; seed {config['train']['seed']}. All settings:\n\n```\n"
        + "\n".join(lines)
        + "\n```"
    )


def _numbers(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return "None: the run was not evaluated (`costl evaluate`)."
    names = [name for name, key in CELLS.items() if any(key in found["brief"] for found in metrics.values())]
    head = f"| split | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
    rows = [
        f"| {split} | {' | '.join(_cell(found, CELLS[name]) for name in names)} |" for split, found in metrics.items()
    ]
    told = any("intervals" in found for found in metrics.values())
    how = " In brackets: the interval that `costl evaluate` gives." if told else ""
    return f"Percent, by `costl evaluate`.{how}\n\n{head}" + "\n".join(rows)


def _cell(found: Mapping[str, Any], key: str) -> str:
    value, interval = found["brief"].get(key), found.get("intervals", {}).get(key)
    if value is None:
        return "-"
    pair = interval if isinstance(interval, list) and len(interval) == 2 else None
    return f"{value:.1f}" + (f" [{pair[0]:.1f}, {pair[1]:.1f}]" if pair else "")
