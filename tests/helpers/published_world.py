"""A made-up benchmark as people publish them: annotations, two streams of frame features, features of the sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDE, JOINT, THINGS = 12, 16, 8
COUNTS = {"train": 40, "val": 8, "test": 24}


@dataclass(frozen=True)
class Published:
    """A folder of annotations, the folder of each stream, and that of the sentences."""

    annotations: Path
    streams: dict[str, Path]
    text: Path

    def arguments(self) -> dict:
        return {"annotations": self.annotations, "features": self.streams, "text": self.text}

    def frames(self, stream: str, name: str) -> Path:
        return self.streams[stream] / f"{name}.npz"


def publish_world(folder: Path, *, fps: float = 0.5, counts: dict[str, int] | None = None, seed: int = 0) -> Published:
    """Videos of 15 to 25 clips; in one window of each, the frames of both streams show the thing that is asked for.

    `clip` lies in one space with the sentences; `slow` shows the thing in a space of its own, under much noise.
    """
    rng = np.random.default_rng(seed)
    things, own = unit(rng.normal(size=(THINGS, JOINT))), rng.normal(size=(THINGS, WIDE))
    world = Published(folder / "annotations", {name: folder / name for name in ("slow", "clip")}, folder / "text")
    for path in (world.annotations, *world.streams.values(), world.text):
        path.mkdir(parents=True)
    qid = 0
    for split, videos in (counts or COUNTS).items():
        rows = []
        for number in range(videos):
            clips, vid = int(rng.integers(15, 26)), f"{split}_{number}"
            start = int(rng.integers(0, clips - 6))
            end = start + int(rng.integers(3, 7))
            asked, other = rng.permutation(THINGS)[:2]
            shown = np.where((np.arange(clips) >= start) & (np.arange(clips) < end), asked, other)
            save(world.frames("clip", vid), features=things[shown] + 0.1 * rng.normal(size=(clips, JOINT)))
            save(world.frames("slow", vid), features=40 * own[shown] + 40 * rng.normal(size=(clips, WIDE)))
            words = things[asked] + 0.1 * rng.normal(size=(4, JOINT))
            save(world.text / f"qid{qid}.npz", last_hidden_state=words, pooler_output=7 * things[asked])
            window = [start / fps, end / fps]
            rows.append(
                {"qid": qid, "query": f"thing {asked}, {qid}", "vid": vid, "duration": clips / fps}
                | {"relevant_windows": [window]}
            )
            qid += 1
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (world.annotations / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return world


def save(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
