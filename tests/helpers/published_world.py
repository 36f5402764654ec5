"""A small synthetic benchmark of published features: annotations, two streams of frame features, and text features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SLOW_WIDTH, CLIP_WIDTH, THINGS = 12, 16, 8  # channels of the streams `slow` and `clip`; things that queries name
COUNTS = {"train": 40, "val": 8, "test": 24}


@dataclass(frozen=True)
class Published:
    """The folder of annotations, the folder of each stream, and the folder of text features."""

    annotations: Path
    streams: dict[str, Path]
    text: Path

    def arguments(self) -> dict:
        return {"annotations": self.annotations, "features": self.streams, "text": self.text}

    def frames(self, stream: str, name: str) -> Path:
        return self.streams[stream] / f"{name}.npz"


def publish_world(folder: Path, *, fps: float = 0.5, counts: dict[str, int] | None = None, seed: int = 0) -> Published:
    """Writes videos of 15 to 25 clips; in one window of each, both streams show the thing that its query names.

    `clip` shares its space with the text features; `slow` shows the thing in another space, with much noise.
    """
    rng = np.random.default_rng(seed)
    things = unit(rng.normal(size=(THINGS, CLIP_WIDTH)))
    slow_things = rng.normal(size=(THINGS, SLOW_WIDTH))
    streams = {name: folder / name for name in ("slow", "clip")}
    world = Published(folder / "annotations", streams, folder / "text")
    for path in (world.annotations, *world.streams.values(), world.text):
        path.mkdir(parents=True)
    qid = 0
    for split, videos in (counts or COUNTS).items():
        rows = []
        for number in range(videos):
            clips = int(rng.integers(15, 26))
            vid = f"{split}_{number}"
            start = int(rng.integers(0, clips - 6))
            end = start + int(rng.integers(3, 7))
            named, other = rng.permutation(THINGS)[:2]
            shown = np.where((np.arange(clips) >= start) & (np.arange(clips) < end), named, other)
            clip_noise = rng.normal(size=(clips, CLIP_WIDTH))
            save(world.frames("clip", vid), features=things[shown] + 0.1 * clip_noise)
            slow_noise = rng.normal(size=(clips, SLOW_WIDTH))
            save(world.frames("slow", vid), features=40 * slow_things[shown] + 40 * slow_noise)
            words = things[named] + 0.1 * rng.normal(size=(4, CLIP_WIDTH))
            save(world.text / f"qid{qid}.npz", last_hidden_state=words, pooler_output=7 * things[named])
            row = {"qid": qid, "query": f"thing {named}, {qid}", "vid": vid, "duration": clips / fps}
            rows.append(row | {"relevant_windows": [[start / fps, end / fps]]})
            qid += 1
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (world.annotations / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return world


def save(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
