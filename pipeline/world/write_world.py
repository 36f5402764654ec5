"""Writes the sample world to a folder: H.264 videos, annotations in QVHighlights format, settings and the small CLIP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import refuse_overwrite
from costl.pipeline.world.corpus import corpus_rows
from costl.pipeline.world.render import draw, is_unseen, texture
from costl.pipeline.world.sentences import Sentence, annotate, choose_queries, describe_tracks, held_out_relations
from costl.pipeline.world.tracks import CLIP_S, Track, create_tracks

UNSEEN_OBJECTS, UNSEEN_RELATIONS = "test_unseen", "test_unseen_relation"
VIDEOS = {"train": 240, "val": 40, "test": 70, UNSEEN_OBJECTS: 50}
FINE_VIDEOS = VIDEOS | {UNSEEN_RELATIONS: 50}
FRAME_RATE = 5  # frames a second of the rendered videos
TINY_CLIP = Path(__file__).parent / "costl-tiny"
# Without x264's mbtree, whose output varies from run to run: the same settings must give the same bytes.
ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
SETTINGS = """\
# Settings of this folder; `costl extract` reads them, flags win over them.
extract:
  weights: clip     # a folder in open_clip's own layout beside this file
  fps: 0.5          # clips a second: one for every two seconds, as in QVHighlights
train:              # how this world is best learned on two cores; `costl train` takes it from the cache
  model: {width: 128, input_dropout: 0.1}
  train: {steps: 900, batch_size: 24, learning_rate: 0.002, warmup_steps: 100, ema: 0.99}
"""


@dataclass(frozen=True)
class WorldSettings:
    """Size and difficulty of a sample world.

    `videos`: videos per split, by default VIDEOS, or FINE_VIDEOS with `fine`; `queries`: queries per video, `train_queries`
    in the train split; `clips`: the smallest and the largest number of clips per video; `hard`: eight smaller things with
    more near copies instead of five; `fine`: some things grow and shrink, and UNSEEN_RELATIONS asks for relations that no
    other split asks of the same two shapes. Raises UsageError for values that cannot be drawn.
    """

    videos: dict[str, int] = field(default_factory=dict)
    queries: int = 5
    train_queries: int = 15
    clips: tuple[int, int] = (24, 32)
    side: int = 160
    hard: bool = False
    fine: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.videos:
            object.__setattr__(self, "videos", dict(FINE_VIDEOS if self.fine else VIDEOS))
        counts = [*self.videos.values(), self.queries, self.train_queries]
        if min(counts) < 1 or self.side < 64 or not 12 <= self.clips[0] <= self.clips[1]:
            raise UsageError(
                f"sample world: {self} cannot be drawn. Expected at least one video per split, one query per video, "
                "12 clips and a side of 64 pixels."
            )
        if UNSEEN_RELATIONS in self.videos and not self.fine:
            raise UsageError(f"sample world: only a fine one has the split {UNSEEN_RELATIONS}. Add --fine, or leave it out.")


def write_sample(
    folder: Path,
    *,
    settings: WorldSettings | None = None,
    processes: int = -1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write videos, {split}.jsonl, objects.jsonl, corpus.jsonl, costl.yaml and clip/ into `folder`.

    The same settings give the same bytes. objects.jsonl lists where each thing is in each clip, for diagnostics, and
    corpus.jsonl in which videos each sentence is true (see `corpus_rows`), to evaluate search. Extraction reads neither.
    `progress` is called with the number of finished videos and of all. Raises UsageError if the folder holds files that are
    not a sample world.
    """
    settings = settings or WorldSettings()
    folder = folder.absolute()  # joblib may use a process again that was started in another working folder
    objects_file = folder / "objects.jsonl"
    refuse_overwrite(objects_file, is_ours=lambda content: content.startswith(b'{"vid": "') and b'"thing": ' in content)
    if folder.exists() and any(folder.iterdir()) and not objects_file.exists():
        raise UsageError(f"{folder}: holds files that are not a sample world. Choose an empty or new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    # It marks the folder as a sample world from the start, so that an interrupted one can be written again.
    objects_file.touch()
    object_rows: list[dict] = []
    tracks_of: dict[str, dict[str, list[Track]]] = {}
    queries_of: dict[str, list[Sentence]] = {}
    for number, (split, count) in enumerate(settings.videos.items(), start=1):
        videos = Parallel(n_jobs=processes, return_as="generator")(
            delayed(_write_video)(folder, settings, split, i) for i in range(count)
        )
        query_rows: list[dict] = []
        tracks_of[split] = {}
        queries_of[split] = []
        for vid, tracks, queries, rows in videos:
            query_rows += rows
            object_rows.append(_object_row(vid, tracks))
            tracks_of[split][vid] = tracks
            queries_of[split] += queries
            if progress:
                progress(len(object_rows), sum(settings.videos.values()))
        _write_lines(folder / f"{split}.jsonl", [{"qid": 10_000 * number + i, **row} for i, row in enumerate(query_rows)])
    _write_lines(objects_file, object_rows)
    _write_lines(folder / "corpus.jsonl", corpus_rows(tracks_of, queries_of))
    shutil.copytree(TINY_CLIP, folder / "clip", dirs_exist_ok=True)
    (folder / "costl.yaml").write_text(SETTINGS, encoding="utf-8")


def _write_video(
    folder: Path, settings: WorldSettings, split: str, index: int
) -> tuple[str, list[Track], list[Sentence], list[dict]]:
    """Create, annotate and render one video; returns (its name, its tracks, its queries, their rows)."""
    rng = np.random.default_rng([settings.seed, list(settings.videos).index(split), index])
    unseen = split == UNSEEN_OBJECTS
    held_out = held_out_relations(settings.seed) if settings.fine else frozenset[tuple[str, ...]]()
    vid = f"{split}_{index:04d}"
    count = settings.train_queries if split == "train" else settings.queries
    chosen: list[Sentence] = []
    while len(chosen) < count:  # tracks with too few usable sentences are replaced
        clips = int(rng.integers(settings.clips[0], settings.clips[1] + 1))
        objects = 8 if settings.hard else 5
        tracks = create_tracks(rng, clips=clips, objects=objects, hard=settings.hard, unseen=unseen, fine=settings.fine)
        sentences = [
            sentence
            for sentence in describe_tracks(tracks, rng)
            if is_unseen(sentence.subject) == unseen and (sentence.related in held_out) == (split == UNSEEN_RELATIONS)
        ]
        chosen = choose_queries(sentences, count, rng)
    _render(folder / f"{vid}.mp4", tracks, clips, settings.side, rng)
    return vid, tracks, chosen, [annotate(s, vid, rng) for s in chosen]


def _object_row(vid: str, tracks: list[Track]) -> dict:
    """The row of objects.jsonl. A thing that changes its size has `diameters`, one a clip, in place of `diameter`."""
    objects = [
        {
            "thing": str(t.thing),
            **_diameters(t),
            "centres": [None if np.isnan(x) else [round(x, 4), round(y, 4)] for x, y in t.centres().tolist()],
        }
        for t in tracks
    ]
    return {"vid": vid, "objects": objects}


def _diameters(track: Track) -> dict:
    if track.thing.size:
        return {"diameter": round(float(track.diameters[0]), 4)}
    return {"diameters": [None if np.isnan(d) else round(d, 4) for d in track.middle_diameters().tolist()]}


def _render(path: Path, tracks: list[Track], clips: int, side: int, rng: np.random.Generator) -> None:
    import av  # only this function writes video

    background = texture(rng, side)
    drift = rng.uniform(-3, 3, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=ENCODER)
        stream.width = stream.height = side
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FRAME_RATE)
        for index in range(clips * CLIP_S * FRAME_RATE):
            time_clips = (index + 0.5) / (CLIP_S * FRAME_RATE)
            things = [thing for track in tracks if (thing := track.at(time_clips))]
            pixels = draw(background, things, offset=tuple(drift * index))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
