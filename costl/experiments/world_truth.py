"""The true objects of a sample world, as it writes them next to its videos, and questions about single objects.

Axes: o objects, t clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError

OBJECTS = "objects.jsonl"
FIELDS = 3  # of the picture, in each direction
MOVING = 0.04  # side lengths from one clip to the next; the slowest real motion is twice as fast
TRIES = 40  # for each requested question: some questions do not apply to every frame

Kind = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Scene:
    """The objects of one video: their kinds, diameters (in side lengths), and positions at every clip, NaN while absent."""

    vid: str
    kinds: tuple[Kind, ...]
    diameters: np.ndarray  # [o]
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
    positions: tuple[tuple[float, float], ...]
    answer: tuple[float, ...]


def read_scenes(path: Path, features: CacheReader) -> dict[str, Scene]:
    """The scene of every video of the cache, by its name.

    Raises UsageError for a missing file, for a row that is not a scene, and for another number of clips than in the cache.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}). costl data sample writes this file next to the videos of a sample world. "
            "Pass its path as --objects if it has moved."
        ) from error
    known = set(features.video_ids)
    scenes = {}
    for number, line in enumerate(lines, start=1):
        try:
            scene = _scene(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}:{number}: not the objects of a sample world ({error!r}). Run costl data sample again."
            ) from error
        if scene.vid in known:
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
    draw = _DRAW[topic]
    kinds = sorted({kind for scene in scenes for kind in scene.kinds})
    questions: list[Question] = []
    for _ in range(TRIES * count):
        scene = scenes[int(rng.integers(len(scenes)))]
        clip = int(rng.integers(scene.centres.shape[1] - 1))
        # Both answers equally often, however frequent they are in the world.
        question = draw(scene, clip, len(questions) % 2 == 0, kinds, rng)
        questions += [question] if question else []
        if len(questions) == count:
            break
    return questions


def _scene(row: Mapping[str, Any]) -> Scene:
    objects = row["objects"]
    centres = [[(np.nan, np.nan) if xy is None else (xy[0], xy[1]) for xy in thing["centres"]] for thing in objects]
    kinds = []
    for thing in objects:
        _, colour, shape = thing["thing"].split()
        kinds.append((colour, shape))
    diameters = np.array([float(thing["diameter"]) for thing in objects])
    return Scene(str(row["vid"]), tuple(kinds), diameters, np.array(centres, np.float64).reshape(len(objects), -1, 2))


def _which(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Question | None:
    """Is an object of this kind visible? If not, it is of a kind that some video has, but not this picture."""
    visible = scene.visible(clip)
    if not visible:
        return None
    index = _choose(visible, rng)
    if true:
        return _question(scene, clip, index, 1.0)
    kind = kinds[int(rng.integers(len(kinds)))]
    return None if kind in {scene.kinds[i] for i in visible} else _question(scene, clip, index, 0.0, kind=kind)


def _bound(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Question | None:
    """Other objects have this colour and this shape. Does one have both?"""
    visible = scene.visible(clip)
    visible_kinds = [scene.kinds[i] for i in visible]
    if true:
        bound = [i for i in visible if _on_other_objects(scene.kinds[i], visible_kinds)]
        return _question(scene, clip, _choose(bound, rng), 1.0) if bound else None
    pairs = [(i, j) for i in visible for j in visible if (scene.kinds[i][0], scene.kinds[j][1]) not in visible_kinds]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    kind = (scene.kinds[i][0], scene.kinds[j][1])
    return _question(scene, clip, _choose([i, j], rng), 0.0, kind=kind)


def _on_other_objects(kind: Kind, kinds: Sequence[Kind]) -> bool:
    others = [other for other in kinds if other != kind]
    return any(colour == kind[0] for colour, _ in others) and any(shape == kind[1] for _, shape in others)


def _where(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Question | None:
    unique = scene.unique(clip)
    if not unique:
        return None
    index = _choose(unique, rng)
    column, row = (scene.centres[index, clip] * FIELDS).clip(0, FIELDS - 1).astype(int)
    return _question(scene, clip, index, float(row * FIELDS + column))


def _size(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Question | None:
    unique = scene.unique(clip)
    if not unique:
        return None
    index = _choose(unique, rng)
    return _question(scene, clip, index, float(scene.diameters[index]))


def _motion(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Question | None:
    """The step from this clip to the next, of a moving object if `true`."""
    still_visible = set(scene.visible(clip + 1))
    steps = {i: scene.centres[i, clip + 1] - scene.centres[i, clip] for i in scene.unique(clip) if i in still_visible}
    candidates = [i for i, step in steps.items() if bool(np.abs(step).max() >= MOVING) == true]
    if not candidates:
        return None
    index = _choose(candidates, rng)
    positions = tuple(_position(scene.centres[index, c]) for c in (clip, clip + 1))
    return Question(scene.vid, (clip, clip + 1), scene.kinds[index], positions, _position(steps[index]))


_DRAW: Mapping[str, Callable[[Scene, int, bool, Sequence[Kind], np.random.Generator], Question | None]] = {
    "which": _which,
    "bound": _bound,
    "where": _where,
    "size": _size,
    "motion": _motion,
}


def _question(scene: Scene, clip: int, index: int, answer: float, *, kind: Kind | None = None) -> Question:
    return Question(scene.vid, (clip,), kind or scene.kinds[index], (_position(scene.centres[index, clip]),), (answer,))


def _position(centre: np.ndarray) -> tuple[float, float]:
    return float(centre[0]), float(centre[1])


def _choose(items: Sequence[int], rng: np.random.Generator) -> int:
    return items[int(rng.integers(len(items)))]
