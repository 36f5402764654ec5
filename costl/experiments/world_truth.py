"""The true objects of a sample world, as it writes them next to its videos, and questions about single objects.

Axes: o objects, t clips.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from costl.experiments.linear_probe import Kind
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.strict_json import json_lines

T = TypeVar("T")
OBJECTS = "objects.jsonl"
FIELDS = 3  # of the picture, in each direction
MOVING = 0.04  # side lengths from one clip to the next; the slowest real motion is twice as fast
TRIES = 40  # for each requested question: some questions do not apply to every frame


@dataclass(frozen=True)
class Scene:
    """The objects of one video: their kinds, and in every clip diameters (in side lengths) and positions, NaN while absent.

    An object that keeps its size has its diameter in clips in which it is absent as well.
    """

    vid: str
    kinds: tuple[Kind, ...]
    diameters: np.ndarray  # [o t]
    centres: np.ndarray  # [o t 2]

    def visible(self, clip: int) -> list[int]:
        """The objects that are in the picture."""
        return np.flatnonzero(~np.isnan(self.centres[:, clip, 0])).tolist()

    def unique(self, clip: int) -> list[int]:
        """The visible objects whose colour and shape no other object of this video has."""
        return [i for i in self.visible(clip) if self.kinds.count(self.kinds[i]) == 1]


@dataclass(frozen=True)
class Question:
    """A question about an object.

    `clips` are those to look at, `kind` is the kind of object it names, `positions` where the object is in each clip (or
    another object, if there is none of the kind). `answer` is the number of a class, a diameter, or a step (x right, y
    down).
    """

    vid: str
    clips: tuple[int, ...]
    kind: Kind
    positions: tuple[Sequence[float], ...]
    answer: tuple[float, ...]


def read_scenes(path: Path, features: CacheReader) -> dict[str, Scene]:
    """The scene of every video of the cache, by its name.

    Raises UsageError for a missing file, for a row that is not a scene, and for another number of clips than in the cache.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}). costl data sample writes this file next to the videos of a sample world. "
            "Pass its path as --objects if it has moved."
        ) from error
    scenes = {}
    for number, line in json_lines(text):
        try:
            scene = _scene(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}:{number}: not the objects of a sample world ({error!r}). Run costl data sample again."
            ) from error
        if scene.vid in features.video_ids:
            scenes[scene.vid] = scene
            clips = features.grid(scene.vid).clips
            if scene.centres.shape[1] != clips:
                raise UsageError(
                    f"{path}:{number}: {scene.centres.shape[1]} clips of two seconds, but {clips} in {features.path}. "
                    "Extract the sample world with its own fps (0.5)."
                )
    return scenes


def draw_questions(topic: str, scenes: Sequence[Scene], *, count: int, rng: np.random.Generator) -> list[Question]:
    """`count` questions on one topic about random clips of random scenes, or fewer where the scenes do not allow so many."""
    kinds = sorted({kind for scene in scenes for kind in scene.kinds})
    questions: list[Question] = []
    for _ in range(TRIES * count):
        scene = scenes[int(rng.integers(len(scenes)))]
        clip = int(rng.integers(scene.centres.shape[1] - 1))
        # Both answers equally often, however frequent they are in the world.
        draw = _Draw(scene, clip, kinds, rng, positive=len(questions) % 2 == 0)
        with contextlib.suppress(_NoQuestion):
            questions.append(getattr(draw, topic)())
        if len(questions) == count:
            break
    return questions


def _scene(row: Mapping[str, Any]) -> Scene:
    objects = row["objects"]
    centres = [[xy or (np.nan, np.nan) for xy in thing["centres"]] for thing in objects]
    kinds = []
    for thing in objects:
        *_, colour, shape = thing["thing"].split()
        kinds.append((colour, shape))
    positions = np.array(centres, np.float64).reshape(len(objects), -1, 2)
    diameters = np.empty(positions.shape[:2])
    for i, thing in enumerate(objects):
        diameters[i] = np.array(thing.get("diameters") or thing["diameter"], np.float64)
    return Scene(str(row["vid"]), tuple(kinds), diameters, positions)


class _NoQuestion(Exception):
    """The scene does not allow a question on this topic about this clip."""


@dataclass(frozen=True)
class _Draw:
    """One try to draw a question about a clip of a scene, with a method for each topic. It may raise _NoQuestion.

    `positive`: whether the answer is yes (which, bound), and whether the object moves (motion).
    """

    scene: Scene
    clip: int
    kinds: Sequence[Kind]
    rng: np.random.Generator
    positive: bool

    def which(self) -> Question:
        """Is an object of this kind visible? If not, it is of a kind that some video has, but not this picture."""
        visible = self.scene.visible(self.clip)
        index = self._choose(visible)
        if self.positive:
            return self._question(index, 1.0)
        kind = self._choose(self.kinds)
        if kind in {self.scene.kinds[i] for i in visible}:
            raise _NoQuestion
        return self._question(index, 0.0, kind)

    def bound(self) -> Question:
        """Other objects have this colour and this shape. Does one have both?"""
        visible = self.scene.visible(self.clip)
        kinds = [self.scene.kinds[i] for i in visible]
        if self.positive:
            bound = [i for i in visible if _on_other_objects(self.scene.kinds[i], kinds)]
            return self._question(self._choose(bound), 1.0)
        pairs = [(i, j) for i in visible for j in visible if (self.scene.kinds[i][0], self.scene.kinds[j][1]) not in kinds]
        i, j = self._choose(pairs)
        return self._question(self._choose([i, j]), 0.0, (self.scene.kinds[i][0], self.scene.kinds[j][1]))

    def where(self) -> Question:
        """In which of the fields of the picture is the object?"""
        index = self._choose(self.scene.unique(self.clip))
        column, row = (self.scene.centres[index, self.clip] * FIELDS).clip(0, FIELDS - 1).astype(int)
        return self._question(index, float(row * FIELDS + column))

    def size(self) -> Question:
        """What is the diameter of the object?"""
        index = self._choose(self.scene.unique(self.clip))
        return self._question(index, float(self.scene.diameters[index, self.clip]))

    def motion(self) -> Question:
        """The step from this clip to the next."""
        clips = (self.clip, self.clip + 1)
        steps = self.scene.centres[:, clips[1]] - self.scene.centres[:, clips[0]]  # NaN if the object leaves the picture
        moves = np.abs(steps).max(1) >= MOVING
        unique = self.scene.unique(self.clip)
        index = self._choose([i for i in unique if not np.isnan(steps[i, 0]) and moves[i] == self.positive])
        positions = tuple(self.scene.centres[index, list(clips)].tolist())
        return Question(self.scene.vid, clips, self.scene.kinds[index], positions, tuple(steps[index].tolist()))

    def _question(self, index: int, answer: float, kind: Kind | None = None) -> Question:
        position = self.scene.centres[index, self.clip].tolist()
        return Question(self.scene.vid, (self.clip,), kind or self.scene.kinds[index], (position,), (answer,))

    def _choose(self, items: Sequence[T]) -> T:
        if not items:
            raise _NoQuestion
        return items[int(self.rng.integers(len(items)))]


def _on_other_objects(kind: Kind, kinds: Sequence[Kind]) -> bool:
    others = [other for other in kinds if other != kind]
    return any(colour == kind[0] for colour, _ in others) and any(shape == kind[1] for _, shape in others)
