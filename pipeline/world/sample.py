"""Writes the sample world to a folder: H.264 videos, annotations in QVHighlights format, the settings and the small CLIP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from costl.pipeline.errors import UsageError
from costl.pipeline.world import script as story
from costl.pipeline.world.render import Placed, draw, is_unseen, texture

RATE = 5  # frames a second of the rendered videos
TINY_CLIP = Path(__file__).parent / "costl-tiny"
# Without x264's mbtree, whose output changes from run to run: the same settings shall give the same bytes.
ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
SETTINGS = """\
# Settings of this folder; `costl extract` reads them, flags win over them.
extract:
  weights: clip     # a folder in open_clip's own layout beside this file
  fps: 0.5          # clips a second: one for every two seconds, as in QVHighlights
train:              # how this world is best learned on two cores; `costl train` takes it from the cache
  model: {width: 128, input_dropout: 0.1}
  train: {epochs: 6, batch_size: 24, learning_rate: 0.002, warmup_steps: 100, ema: 0.99}
"""


@dataclass(frozen=True)
class WorldSettings:
    """Size and difficulty of a sample world. `videos`: how many per split; `queries`: how many a video, and
    `train_queries` in the train split; `hard`: eight things, smaller, with more near copies."""

    videos: dict[str, int] = field(default_factory=lambda: {"train": 240, "val": 40, "test": 70, "test_unseen": 50})
    queries: int = 5
    train_queries: int = 15
    clips: tuple[int, int] = (24, 32)
    side: int = 160
    hard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.videos.values()) < 1
            or min(self.queries, self.train_queries) < 1
            or self.side < 64
            or not 12 <= self.clips[0] <= self.clips[1]
        ):
            raise UsageError(
                f"sample world: {self} cannot be drawn. Expected at least one video a split, one query a video, "
                "12 clips and a side of 64 pixels."
            )


def write_sample(
    folder: Path,
    *,
    settings: WorldSettings | None = None,
    processes: int = -1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Renders the world into `folder`: videos, {split}.jsonl, objects.jsonl (where each thing is at every clip: for
    diagnostics, never read by extraction), costl.yaml and clip/. The same settings give the same bytes.

    Raises UsageError where the folder holds other files than an earlier sample.
    """
    settings = settings or WorldSettings()
    if folder.exists() and any(folder.iterdir()) and not (folder / "objects.jsonl").exists():
        raise UsageError(f"{folder}: holds files that are no sample world. Choose an empty or new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (
        folder / "objects.jsonl"
    ).touch()  # the sign of a sample world, from the start: one that was interrupted can be redone
    jobs = [(split, i) for split, count in settings.videos.items() for i in range(count)]
    results = Parallel(n_jobs=processes, return_as="generator")(
        delayed(_write_video)(folder, settings, split, i) for split, i in jobs
    )
    rows: dict[str, list[dict]] = {split: [] for split in settings.videos}
    objects = []
    for done, ((split, _), (queries, tracks)) in enumerate(zip(jobs, results, strict=True), start=1):
        rows[split] += queries
        objects.append(tracks)
        if progress:
            progress(done, len(jobs))
    for number, (split, queries) in enumerate(rows.items(), start=1):
        numbered = [{"qid": 10_000 * number + i, **query} for i, query in enumerate(queries)]
        _write_lines(folder / f"{split}.jsonl", numbered)
    _write_lines(folder / "objects.jsonl", objects)
    shutil.copytree(TINY_CLIP, folder / "clip", dirs_exist_ok=True)
    (folder / "costl.yaml").write_text(SETTINGS, encoding="utf-8")


def _write_video(folder: Path, settings: WorldSettings, split: str, index: int) -> tuple[list[dict], dict]:
    """Invents, annotates and renders one video; returns its query rows and its objects row."""
    rng = np.random.default_rng([settings.seed, list(settings.videos).index(split), index])
    unseen, vid = split == "test_unseen", f"{split}_{index:04d}"
    count = settings.train_queries if split == "train" else settings.queries
    chosen: list[story.Sentence] = []
    while len(chosen) < count:  # a story that cannot carry the queries is told anew
        clips = int(rng.integers(settings.clips[0], settings.clips[1] + 1))
        tracks = story.tell(rng, clips=clips, objects=8 if settings.hard else 5, hard=settings.hard, unseen=unseen)
        true = [s for s in story.sentences(tracks, rng) if is_unseen(s.subject) == unseen]
        chosen = _choose(true, count, rng)
    _render(folder / f"{vid}.mp4", tracks, clips, settings.side, rng)
    objects = [
        {
            "thing": str(t.thing),
            "diameter": round(t.diameter, 4),
            "centres": [None if np.isnan(x) else [round(float(x), 4), round(float(y), 4)] for x, y in t.centres()],
        }
        for t in tracks
    ]
    return [_annotate(s, vid, clips, rng) for s in chosen], {"vid": vid, "objects": objects}


def _choose(sentences: list[story.Sentence], count: int, rng: np.random.Generator) -> list[story.Sentence]:
    """Queries of all kinds alike, each true for half the video at most, in one to three windows of at least two clips."""

    def fits(sentence: story.Sentence) -> bool:
        lengths = [b - a for a, b in sentence.windows()]
        return 1 <= len(lengths) <= 3 and min(lengths) >= 2 and sum(lengths) <= len(sentence.strength) / 2

    usable = [s for s in sentences if fits(s)]
    chosen: list[story.Sentence] = []
    while usable and len(chosen) < count:
        kind = rng.choice(sorted({s.kind for s in usable}))
        same = [s for s in usable if s.kind == kind]
        chosen.append(same[int(rng.integers(len(same)))])
        usable.remove(chosen[-1])
    return chosen


def _annotate(sentence: story.Sentence, vid: str, clips: int, rng: np.random.Generator) -> dict:
    """A QVHighlights row; three raters, each with a temper of their own, grade each clip 0 to 4 by how plainly it holds."""
    ids = np.flatnonzero(sentence.strength > 0)
    temper = rng.choice([-0.7, 0.0, 0.4], 3)
    grades = 1.2 + 2.6 * sentence.strength[ids, None] + temper + rng.normal(0, 0.35, (len(ids), 3))
    return {
        "query": sentence.text,
        "duration": clips * story.CLIP_S,
        "vid": vid,
        "relevant_clip_ids": ids.tolist(),
        "saliency_scores": np.clip(grades.round(), 0, 4).astype(int).tolist(),
        "relevant_windows": [[a * story.CLIP_S, b * story.CLIP_S] for a, b in sentence.windows()],
        "kind": sentence.kind,
    }


def _render(path: Path, tracks: list[story.Track], clips: int, side: int, rng: np.random.Generator) -> None:
    import av  # only this function writes video

    ground, drift = texture(rng, side), rng.uniform(-3, 3, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=ENCODER)
        stream.width = stream.height = side
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, RATE)
        for index in range(clips * story.CLIP_S * RATE):
            clip = (index + 0.5) / (story.CLIP_S * RATE)
            places = [(t, t.at(clip)) for t in tracks]
            things = [Placed(t.thing, float(p[0]), float(p[1]), t.diameter) for t, p in places if p is not None]
            pixels = draw(ground, things, offset=(drift[0] * index, drift[1] * index))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
