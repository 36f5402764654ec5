"""The truth that a sample world writes beside its videos, and questions about single things drawn from it."""

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
FIELDS = 3  # of the picture, each way
MOVING = 0.04  # sides from one clip to the next; the slowest real move is twice as fast
DRAWS = 40  # tries for each question wanted: not every frame has what some questions need

Kind = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Scene:
    """The things of one video: what they are, how large (share of the side), and where at every clip, NaN while gone."""

    vid: str
    things: tuple[Kind, ...]
    diameters: np.ndarray  # [o]
    centres: np.ndarray  # [o t 2]

    def here(self, clip: int) -> list[int]:
        """The things that are in the picture."""
        return np.flatnonzero(~np.isnan(self.centres[:, clip, 0])).tolist()

    def alone(self, clip: int) -> list[int]:
        """Those of them that no other thing of this video shares colour and shape with."""
        return [i for i in self.here(clip) if self.things.count(self.things[i]) == 1]


@dataclass(frozen=True)
class Asked:
    """One question: the clips to look at, the kind of thing it names, where that thing is in each (where it is not
    there: where another is), and the answer: the number of a class, a diameter, or a step (x right, y down)."""

    vid: str
    clips: tuple[int, ...]
    kind: Kind
    places: tuple[tuple[float, float], ...]
    answer: tuple[float, ...]


def read_scenes(path: Path, features: CacheReader) -> dict[str, Scene]:
    """The scene of every video of the cache, by its name.

    Raises UsageError where there is no such file, a row is none, or its clips are not those of the cache.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}). It is the truth of a sample world, which costl data sample writes beside its "
            "videos; name it with --objects if they have moved."
        ) from error
    known = set(features.video_ids)
    scenes = {}
    for number, line in enumerate(lines, start=1):
        try:
            scene = _scene(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}:{number}: not the truth of a sample world ({error!r}). Sample it again."
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


def questions(kind: str, scenes: Sequence[Scene], *, count: int, rng: np.random.Generator) -> list[Asked]:
    """`count` questions of one kind about random clips of random scenes, or as many as can be found."""
    draw, kinds = _DRAWS[kind], sorted({thing for scene in scenes for thing in scene.things})
    found: list[Asked] = []
    for _ in range(DRAWS * count):
        scene = scenes[int(rng.integers(len(scenes)))]
        clip = int(rng.integers(scene.centres.shape[1] - 1))
        # The two answers alike often, whatever the world has more of.
        asked = draw(scene, clip, len(found) % 2 == 0, kinds, rng)
        found += [asked] if asked else []
        if len(found) == count:
            break
    return found


def _scene(row: Mapping[str, Any]) -> Scene:
    objects = row["objects"]
    centres = [[(np.nan, np.nan) if at is None else (at[0], at[1]) for at in thing["centres"]] for thing in objects]
    kinds = []
    for thing in objects:
        _, colour, shape = thing["thing"].split()
        kinds.append((colour, shape))
    diameters = np.array([float(thing["diameter"]) for thing in objects])
    return Scene(str(row["vid"]), tuple(kinds), diameters, np.array(centres, np.float64).reshape(len(objects), -1, 2))


def _which(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Asked | None:
    """A thing that is there, or a kind of thing that is in some video but not in this picture."""
    here = scene.here(clip)
    if not here:
        return None
    at = _one(here, rng)
    if true:
        return _asked(scene, clip, at, 1.0)
    kind = kinds[int(rng.integers(len(kinds)))]
    return None if kind in {scene.things[i] for i in here} else _asked(scene, clip, at, 0.0, kind=kind)


def _bound(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Asked | None:
    """The colour and the shape are both there on other things; is the thing that has both?"""
    here = scene.here(clip)
    shown = [scene.things[i] for i in here]
    if true:
        bound = [i for i in here if _carried_by_others(scene.things[i], shown)]
        return _asked(scene, clip, _one(bound, rng), 1.0) if bound else None
    pairs = [(i, j) for i in here for j in here if (scene.things[i][0], scene.things[j][1]) not in shown]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    kind = (scene.things[i][0], scene.things[j][1])
    return _asked(scene, clip, _one([i, j], rng), 0.0, kind=kind)


def _carried_by_others(kind: Kind, kinds: Sequence[Kind]) -> bool:
    others = [other for other in kinds if other != kind]
    return any(colour == kind[0] for colour, _ in others) and any(shape == kind[1] for _, shape in others)


def _where(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Asked | None:
    alone = scene.alone(clip)
    if not alone:
        return None
    at = _one(alone, rng)
    column, row = (scene.centres[at, clip] * FIELDS).clip(0, FIELDS - 1).astype(int)
    return _asked(scene, clip, at, float(row * FIELDS + column))


def _size(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Asked | None:
    alone = scene.alone(clip)
    if not alone:
        return None
    at = _one(alone, rng)
    return _asked(scene, clip, at, float(scene.diameters[at]))


def _motion(scene: Scene, clip: int, true: bool, kinds: Sequence[Kind], rng: np.random.Generator) -> Asked | None:
    """From this clip to the next; every other question is about one that moves."""
    stay = set(scene.here(clip + 1))
    steps = {i: scene.centres[i, clip + 1] - scene.centres[i, clip] for i in scene.alone(clip) if i in stay}
    fitting = [i for i, step in steps.items() if bool(np.abs(step).max() >= MOVING) == true]
    if not fitting:
        return None
    at = _one(fitting, rng)
    places = tuple(_place(scene.centres[at, c]) for c in (clip, clip + 1))
    return Asked(scene.vid, (clip, clip + 1), scene.things[at], places, _place(steps[at]))


_DRAWS: Mapping[str, Callable[[Scene, int, bool, Sequence[Kind], np.random.Generator], Asked | None]] = {
    "which": _which,
    "bound": _bound,
    "where": _where,
    "size": _size,
    "motion": _motion,
}


def _asked(scene: Scene, clip: int, at: int, answer: float, *, kind: Kind | None = None) -> Asked:
    return Asked(scene.vid, (clip,), kind or scene.things[at], (_place(scene.centres[at, clip]),), (answer,))


def _place(centre: np.ndarray) -> tuple[float, float]:
    return float(centre[0]), float(centre[1])


def _one(items: Sequence[int], rng: np.random.Generator) -> int:
    return items[int(rng.integers(len(items)))]
