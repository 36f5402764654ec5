"""Extraction from end to end beside its two halves alone, beside the straightforward way, and its peak memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from costl.pipeline.bench.clips import MEMORY, Clips, clips_to_measure, rendered
from costl.pipeline.bench.extract_entrants import (
    MOST_BATCHES,
    Imitated,
    PlainTask,
    as_clip,
    decode_alone,
    decode_events,
    encode_alone,
    extract_all,
    full_batches,
    plain_extract,
    plain_task,
)
from costl.pipeline.bench.extract_tables import Race, table
from costl.pipeline.bench.measure import Cost, best, can_see_memory, cost_of
from costl.pipeline.bench.memory import Memory, bench_memory
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import resolve
from costl.pipeline.decode.pool import Chunk, Decoded
from costl.pipeline.encode.clip import Clip, load_clip, pick_device
from costl.pipeline.encode.weights import Source
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import How
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.run.encoder_thread import usual_batch
from costl.pipeline.run.engine import cores
from costl.pipeline.videos import Video
from costl.pipeline.world.sample import TINY_CLIP

MODEL = "ViT-B-32"
REPEATS = 2
# Relative L2 of tokens: PIL rounds one pixel in 10,000 otherwise, and other batches take other paths in the device.
TOLERANCE = {"fp32": 0.01, "fp16": 0.01, "bf16": 0.05}
_VIDEOS_A_CORE = 3
_AS_FAST_AS_DECODING = 4.0  # the imitated accelerator, unless its rate is given; a real one is faster still
_LEAST_S, _LEAST_QUICK_S = 1.0, 0.05


@dataclass(frozen=True)
class ExtractBench:
    """The races, the memory (None where it was not measured), and `notes` on what was left out."""

    races: tuple[Race, ...]
    memory: Memory | None
    repeats: int
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """For the terminal."""
        memory = ["", *self.memory.lines()] if self.memory else []
        return [*table(self.races, self.repeats), *memory, *(["", *self.notes] if self.notes else [])]

    def data(self) -> dict[str, Any]:
        """Every number, for machines."""
        return {
            "races": [race.data() for race in self.races],
            "memory": self.memory.data() if self.memory else None,
            "repeats": self.repeats,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Course:
    """What is raced over: videos that decode, when their frames are shown, and some of them ready for the network."""

    name: str
    videos: tuple[Video, ...]
    times_s: dict[str, np.ndarray]
    batches: list[Tensor]
    plain: dict[str, PlainTask] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return sum(len(times_s) for times_s in self.times_s.values())


def bench_extract(
    *,
    videos: Path | None = None,
    models: Sequence[str] = (),
    weights: str | None = None,
    fps: float = 0.5,
    device: str = "auto",
    decoder: str = "auto",
    batch: int | None = None,
    rate: float | None = None,
    repeats: int = REPEATS,
    quick: bool = False,
    folder: Path | None = None,
    progress: Tell | None = None,
) -> ExtractBench:
    """Measures on the videos of a folder; by default on clips rendered for it and on the sample world's.

    `models` are open_clip's names, `decoder` is as in `extract`; without `weights` theirs are random, which costs the same
    time. On a CPU an imitated accelerator of `rate` frames a second runs as well. What is extracted goes to a temporary
    folder in `folder`. Raises UsageError for what cannot be meant, CostlError when tokens differ from those of the
    straightforward way.
    """
    _check(repeats=repeats, batch=batch, rate=rate)
    if quick and not (models or weights):
        models, weights = (TINY_CLIP.name,), str(TINY_CLIP)
    names = models or (MODEL,)
    _check_models(names, weights, device)
    how, tell = How(resolve(decoder)), progress or (lambda _: None)
    sets = clips_to_measure(videos, quick=quick, world=True, tell=tell)
    bench = _Bench(
        fps=fps, how=how, batch=batch, rate=rate, repeats=repeats, quick=quick, own_clips=videos is None, tell=tell
    )
    races: list[Race] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if videos is None:
            count = 2 if quick else _VIDEOS_A_CORE * cores()
            sets = [clips.several(count, Path(place) / "videos" / str(i)) for i, clips in enumerate(sets)]
        bench.steps = len(names) * len(sets)
        for name in names:
            clip = _clip(name, weights, device)
            for clips in sets:
                with tempfile.TemporaryDirectory(dir=place) as aside:
                    races.append(bench.race(clips, clip, Path(aside), model=name if weights else clip.name))
    notes = list(dict.fromkeys(bench.notes))
    if quick or not can_see_memory():
        why = "it takes longer than --quick may" if quick else "this system does not tell that of other processes"
        return ExtractBench(tuple(races), None, repeats, (*notes, f"Peak memory was not measured: {why}."))
    return ExtractBench(tuple(races), _memory(folder, how, tell), repeats, tuple(notes))


@dataclass
class _Bench:
    """The settings that all races share, what they have to say, and how far they are."""

    fps: float
    how: How
    batch: int | None
    rate: float | None
    repeats: int
    quick: bool
    own_clips: bool
    tell: Tell
    steps: int = 1
    notes: list[str] = field(default_factory=list)
    _done: int = 0

    def race(self, clips: Clips, clip: Clip, place: Path, *, model: str) -> Race:
        """All of it on one set of clips with one model, in turn, so that what else the machine does falls on all."""
        batch = self.batch or usual_batch(clip)
        self._say(clips.name, clip, "a first look")
        course = self._look(clips, clip, batch)
        on_cpu = clip.device.type == "cpu"
        costs: dict[str, list[Cost]] = {}
        rate = self.rate or 0.0
        for number in range(self.repeats):
            self._say(clips.name, clip, f"{number + 1} of {self.repeats}")
            decode, forward = self._halves(course, clip)
            rate = rate or _AS_FAST_AS_DECODING * course.frames / decode.wall_s
            found = {"decode": decode, "forward": forward}
            encoders = {"extract": clip} | ({"imitated": as_clip(Imitated(clip, rate=rate))} if on_cpu else {})
            for name, encoder in encoders.items():
                out = place / f"{name}-{number}" / "feats.h5"
                _, found[name] = cost_of(
                    partial(extract_all, course.videos, encoder, out, fps=self.fps, how=self.how, batch=batch)
                )
            for name, cost in found.items():
                costs.setdefault(name, []).append(cost)
        plain_frames, plain = self._plainly(course, clip, place)
        self._done += 1
        self._say(clips.name, clip, "done")
        return Race(
            clips=clips.name,
            model=model,
            device=f"{_device_name(clip)} {clip.precision}",
            batch=batch,
            fps=self.fps,
            decoder=self.how.decoder,
            videos=len(course.videos),
            frames=course.frames,
            cores=cores(),
            shared=on_cpu,
            **{name: best(several) for name, several in costs.items()},
            rate=rate if on_cpu else 0.0,
            plain=plain,
            plain_frames=plain_frames,
        )

    def _halves(self, course: _Course, clip: Clip) -> tuple[Cost, Cost]:
        """Decoding all frames, and their forward pass."""
        _, decode = cost_of(partial(decode_alone, course.videos, fps=self.fps, how=self.how, processes=cores()))
        least_s = _LEAST_QUICK_S if self.quick else _LEAST_S
        done, forward = cost_of(partial(encode_alone, clip, course.batches, least_s=least_s))
        return decode, forward.times(course.frames / done)

    def _look(self, clips: Clips, clip: Clip, batch: int) -> _Course:
        """Decodes everything once: what fails is left out of every race, and the files are in memory for all alike."""
        times_s: dict[str, list[np.ndarray]] = {video.id: [] for video in clips.videos}
        good: set[str] = set()
        images: list[Tensor] = []
        for event in decode_events(clips.videos, self.fps, self.how, cores()):
            if isinstance(event, Chunk):
                times_s[event.video_id].append(np.array(event.times_s))
                if sum(map(len, images)) < MOST_BATCHES * batch:
                    images.append(clip.prepare(event.pixels))
                event.release()
            elif isinstance(event, Decoded):
                good.add(event.video_id)
            else:
                self.notes.append(f"Left out: {event.reason}")
        videos = tuple(video for video in clips.videos if video.id in good)
        if not videos:
            raise CostlError(f"{clips.name}: no video that can be decoded. {' '.join(self.notes)}")
        found = {video.id: np.concatenate(times_s[video.id]) for video in videos}
        return _Course(clips.name, videos, found, full_batches(images, batch), self._plain_tasks(videos, found))

    def _plain_tasks(self, videos: Sequence[Video], times_s: dict[str, np.ndarray]) -> dict[str, PlainTask]:
        tasks = {}
        for video in videos:
            try:
                tasks[video.id] = plain_task(video.path, times_s[video.id])
            except Exception as error:  # decord's, of which there are several
                self.notes.append(f"The straightforward way cannot read {video.path.name} ({str(error)[:80]}).")
        return tasks

    def _plainly(self, course: _Course, clip: Clip, place: Path) -> tuple[int, Cost | None]:
        """Once: it is raced for how many times, not for how many per cent."""
        self._say(course.name, clip, "the straightforward way")
        folder = place / "plain"
        folder.mkdir()
        try:
            frames, cost = cost_of(partial(plain_extract, course.plain, clip, folder))
        except CostlError as error:
            if self.own_clips:
                raise
            self.notes.append(f"{course.name}: no race with the straightforward way. {error}")
            return 0, None
        self._compare(course, clip, CacheReader(place / "extract-0" / "feats.h5"), folder)
        return frames, cost

    def _compare(self, course: _Course, clip: Clip, ours: CacheReader, folder: Path) -> None:
        for video in course.videos:
            if video.id not in course.plain:
                continue
            theirs = np.load(folder / f"{video.id}.npy", allow_pickle=False).astype(np.float32)
            error = _relative(np.asarray(ours.tokens(video.path.stem), np.float32), theirs)
            if error > TOLERANCE[clip.precision]:
                told = f"{video.path.name}: tokens differ by {error:.3f} from those of the straightforward way"
                if self.own_clips:
                    raise CostlError(f"{told}: this was no fair race.")
                self.notes.append(f"{told}, since decord alone gives other frames of it.")

    def _say(self, clips: str, clip: Clip, what: str) -> None:
        self.tell(Progress("extract", self._done, self.steps, f"{clips}, {clip.name}: {what}"))


def _check(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise UsageError(f"{name} is {number}, expected a number above zero.")


def _check_models(names: Sequence[str], weights: str | None, device: str) -> None:
    """Before anything is rendered."""
    pick_device(device)
    for name in names:
        if weights is None and name.replace("/", "-") not in open_clip.list_models():
            raise UsageError(f"no open_clip model is called {name!r}, expected a name such as {MODEL}.")


def _clip(name: str, weights: str | None, device: str) -> Clip:
    if weights is not None:
        return load_clip(name, weights, device=device)
    place, name = pick_device(device), name.replace("/", "-")
    torch.manual_seed(0)
    network = open_clip.create_model(name, load_weights=False).eval().requires_grad_(False)
    source = Source(f"{name}, random weights", name, Path())
    return Clip(network, source=source, device=place, precision="fp16" if place.type == "cuda" else "fp32")


def _device_name(clip: Clip) -> str:
    return torch.cuda.get_device_name(clip.device) if clip.device.type == "cuda" else clip.device.type


def _memory(folder: Path | None, how: How, tell: Tell) -> Memory:
    ((_, path),) = rendered([MEMORY], tell)
    return bench_memory(Video(path.stem, path), fps=2.0, decoder=how.decoder, folder=folder, tell=tell)


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
