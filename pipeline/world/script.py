"""What happens in a video of the sample world: where every thing is at every clip, and which sentences are true when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from costl.pipeline.world.render import Thing, is_unseen, random_diameter, random_thing

CLIP_S = 2
AT_REST, GONE = "rest", "gone"
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
PLACES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
PLACE_MARGIN = 0.14  # 'on the left' is left of the middle by at least this share of the side
NEAR = 0.26


@dataclass(frozen=True)
class Track:
    """One thing through time. `path` [t+1 2]: centre (x, y) at every clip's edges, straight between them; `state` [t]: a
    direction of DIRECTIONS while it moves, else AT_REST, or GONE."""

    thing: Thing
    diameter: float
    path: np.ndarray
    state: tuple[str, ...]

    def at(self, clip: float) -> np.ndarray | None:
        """Centre at a time counted in clips (0.5 is the middle of the first), or None where it is gone."""
        index = min(int(clip), len(self.state) - 1)
        if self.state[index] == GONE:
            return None
        return self.path[index] + (clip - index) * (self.path[index + 1] - self.path[index])

    def centres(self) -> np.ndarray:
        """Centre at the middle of every clip, [t 2], NaN where it is gone."""
        middle = (self.path[:-1] + self.path[1:]) / 2
        return np.where((np.array(self.state) == GONE)[:, None], np.nan, middle)


@dataclass(frozen=True)
class Sentence:
    """A query about `subject` that holds in `strength > 0` clips; `strength` [t] in [0, 1] says how plainly."""

    subject: Thing
    text: str
    kind: str
    strength: np.ndarray

    def windows(self) -> list[tuple[int, int]]:
        """Runs of clips in which it holds, as [first, last + 1)."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.strength > 0, [0]])))
        return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def tell(rng: np.random.Generator, *, clips: int, objects: int, hard: bool, unseen: bool) -> list[Track]:
    """The tracks of one video: a first thing and its near copies, then a second and its own, until there are `objects`.

    With `unseen` every first of a group is of a kept-back pair of colour and shape; without, nothing is.
    """
    things: list[Thing] = []
    while len(things) < objects:
        first = random_thing(rng, unseen=unseen)
        group = [first] + [_near_copy(rng, first) for _ in range(3 if hard else 2)]
        things += [t for t in dict.fromkeys(group) if t not in things and (unseen or not is_unseen(t))]
    return [_track(rng, thing, clips=clips, hard=hard) for thing in things[:objects]]


def sentences(tracks: list[Track], rng: np.random.Generator) -> Iterator[Sentence]:
    """Every sentence of the world's grammar about these tracks, each thing named by words that fit it alone."""
    names = {track.thing: _name(rng, track.thing, [t.thing for t in tracks]) for track in tracks}
    for a in tracks:
        yield from _alone(a, names[a.thing], rng)
        for b in tracks:
            if b is not a:
                yield from _together(a, b, names[a.thing], names[b.thing], rng)


def _alone(a: Track, name: str, rng: np.random.Generator) -> Iterator[Sentence]:
    centre, here = a.centres(), np.array([s != GONE for s in a.state])
    yield Sentence(
        a.thing, f"the {name} {rng.choice(['is in view', 'can be seen', 'is there'])}", "presence", 0.6 * here
    )
    for words, (axis, sign) in PLACES.items():
        yield Sentence(
            a.thing,
            f"the {name} is {words}",
            "place",
            _above_zero((sign * (centre[:, axis] - 0.5) - PLACE_MARGIN) / 0.25),
        )
    for word in DIRECTIONS:
        verb = rng.choice(["moves", "goes", "travels"])
        yield Sentence(a.thing, f"the {name} {verb} {word}", "motion", _inner(np.array([s == word for s in a.state])))


def _together(a: Track, b: Track, name: str, other: str, rng: np.random.Generator) -> Iterator[Sentence]:
    offset = a.centres() - b.centres()
    moving = np.array([s not in (AT_REST, GONE) for s in a.state])
    for words, (dx, dy) in RELATIONS.items():
        along, across = offset @ [dx, dy], abs(offset @ [dy, dx])
        plain = _above_zero((along - np.maximum(across, 0.06)) / 0.3)
        yield Sentence(a.thing, f"the {name} is {words} the {other}", "relation", plain)
        yield Sentence(
            a.thing, f"the {name} {rng.choice(['moves', 'passes'])} {words} the {other}", "meeting", plain * moving
        )
    yield Sentence(
        a.thing, f"the {name} is next to the {other}", "relation", _above_zero((NEAR - np.hypot(*offset.T)) / 0.15)
    )


def _above_zero(value: np.ndarray) -> np.ndarray:
    """Strength in (0, 1] where `value` is above zero, 0 elsewhere and where a thing is gone."""
    return np.where(np.nan_to_num(value, nan=-1.0) > 0, np.clip(0.2 + 0.8 * value, 0.2, 1.0), 0.0)


def _inner(holds: np.ndarray) -> np.ndarray:
    """1 inside a run of True, 0.5 at its two ends."""
    padded = np.concatenate([[False], holds, [False]])
    return holds * (0.5 + 0.25 * padded[:-2] + 0.25 * padded[2:])


def _name(rng: np.random.Generator, thing: Thing, others: list[Thing]) -> str:
    """Half the time the full name, else the fewest words that fit this thing and none of the others."""
    ways: tuple[Callable[[Thing], str], ...] = (
        lambda t: t.shape,
        lambda t: f"{t.colour} {t.shape}",
        lambda t: f"{t.size} {t.shape}",
        str,
    )
    if rng.random() < 0.5:
        return str(thing)
    return next(way(thing) for way in ways if sum(way(t) == way(thing) for t in others) == 1)


def _near_copy(rng: np.random.Generator, thing: Thing) -> Thing:
    """A thing that shares all but one of the attributes."""
    changed = str(rng.choice(["size", "colour", "shape"]))
    while True:
        other = random_thing(rng)
        fields = {name: getattr(other if name == changed else thing, name) for name in ("size", "colour", "shape")}
        if Thing(**fields) != thing:
            return Thing(**fields)


def _track(rng: np.random.Generator, thing: Thing, *, clips: int, hard: bool) -> Track:
    position = rng.uniform(0.1, 0.9, 2)
    path, state = [position], list[str]()
    moves = rng.random() < 0.5
    while len(state) < clips:
        length = int(rng.integers(3, 6))
        word = _free_direction(rng, position) if moves else AT_REST
        step = np.array(DIRECTIONS.get(word, (0, 0))) * _step(rng, position, word, length)
        for _ in range(length):
            position = position + step
            path.append(position)
            state.append(word)
        moves = not moves
    shown = _presence(rng, clips, always=rng.random() < (0.4 if hard else 0.55))
    seen = tuple(s if here else GONE for s, here in zip(state[:clips], shown, strict=True))
    return Track(thing, random_diameter(rng, thing) * (0.9 if hard else 1.0), np.array(path[: clips + 1]), seen)


def _free_direction(rng: np.random.Generator, position: np.ndarray) -> str:
    """A direction with room for a visible move."""
    goals = {word: position + 0.34 * np.array(step) for word, step in DIRECTIONS.items()}
    return str(rng.choice([word for word, goal in goals.items() if goal.min() >= 0.08 and goal.max() <= 0.92]))


def _step(rng: np.random.Generator, position: np.ndarray, word: str, length: int) -> float:
    """Speed in sides per clip: 0.08 to 0.13, less where the frame would end."""
    if word == AT_REST:
        return 0.0
    (axis,) = np.flatnonzero(DIRECTIONS[word])
    room = 0.93 - position[axis] if DIRECTIONS[word][axis] > 0 else position[axis] - 0.07
    return float(min(rng.uniform(0.08, 0.13), room / length))


def _presence(rng: np.random.Generator, clips: int, *, always: bool) -> np.ndarray:
    if always:
        return np.ones(clips, dtype=bool)
    shown = np.zeros(clips, dtype=bool)
    for _ in range(int(rng.integers(1, 3))):
        start = int(rng.integers(0, clips - 4))
        shown[start : start + int(rng.integers(4, 11))] = True
    return shown
