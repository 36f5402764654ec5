"""What happens in a video of the sample world: where each thing is in each clip, and which sentences are true when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from costl.pipeline.world.render import Thing, is_unseen, random_diameter, random_thing

CLIP_S = 2
AT_REST, HIDDEN = "rest", "hidden"
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
POSITIONS = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
POSITION_MARGIN = 0.14  # "on the left" is left of the middle by at least this share of the frame's side
NEAR = 0.26  # "next to" is nearer than this share of the side


@dataclass(frozen=True)
class Track:
    """One thing over the `t` clips of a video.

    `path` [t+1 2]: its centre (x, y) at the edges of the clips; it moves in straight lines between them. `state` [t]: one
    of DIRECTIONS while it moves, otherwise AT_REST or HIDDEN.
    """

    thing: Thing
    diameter: float
    path: np.ndarray
    state: tuple[str, ...]

    def at(self, time: float) -> np.ndarray | None:
        """The centre at a time in clips (0.5 is the middle of the first clip); None while it is hidden."""
        clip = min(int(time), len(self.state) - 1)
        if self.state[clip] == HIDDEN:
            return None
        return self.path[clip] + (time - clip) * (self.path[clip + 1] - self.path[clip])

    def centres(self) -> np.ndarray:
        """The centre at the middle of each clip, [t 2]; NaN while it is hidden."""
        middle = (self.path[:-1] + self.path[1:]) / 2
        return np.where((np.array(self.state) == HIDDEN)[:, None], np.nan, middle)


@dataclass(frozen=True)
class Sentence:
    """A query about `subject`, true in the clips with `strength > 0`; `strength` [t] in [0, 1] is how clearly it holds."""

    subject: Thing
    text: str
    kind: str
    strength: np.ndarray

    def windows(self) -> list[tuple[int, int]]:
        """Runs of clips in which it holds, as [first, last + 1)."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.strength > 0, [0]])))
        return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def create_tracks(rng: np.random.Generator, *, clips: int, objects: int, hard: bool, unseen: bool) -> list[Track]:
    """The tracks of one video with `objects` things, in groups of a first thing and near copies of it.

    With `unseen` the first thing of each group has one of the pairs of colour and shape that are kept for the test of
    unseen objects; otherwise no thing has.
    """
    things: list[Thing] = []
    while len(things) < objects:
        first = random_thing(rng, unseen=unseen)
        group = [first] + [_near_copy(rng, first) for _ in range(3 if hard else 2)]
        things += [t for t in dict.fromkeys(group) if t not in things and (unseen or not is_unseen(t))]
    return [_random_track(rng, thing, clips=clips, hard=hard) for thing in things[:objects]]


def describe_tracks(tracks: list[Track], rng: np.random.Generator) -> Iterator[Sentence]:
    """Every sentence of the sample world's grammar about these tracks; names of things are unambiguous."""
    things = [track.thing for track in tracks]
    names = {track.thing: _unambiguous_name(rng, track.thing, things) for track in tracks}
    for track in tracks:
        yield from _describe_one(track, names[track.thing], rng)
        for partner in tracks:
            if partner is not track:
                yield from _describe_pair(track, partner, names[track.thing], names[partner.thing], rng)


def _near_copy(rng: np.random.Generator, thing: Thing) -> Thing:
    """A thing that differs in one attribute."""
    changed = str(rng.choice(["size", "colour", "shape"]))
    while True:
        other = random_thing(rng)
        fields = {name: getattr(other if name == changed else thing, name) for name in ("size", "colour", "shape")}
        if Thing(**fields) != thing:
            return Thing(**fields)


def _random_track(rng: np.random.Generator, thing: Thing, *, clips: int, hard: bool) -> Track:
    """A track of alternating moves and rests of three to five clips each."""
    position = rng.uniform(0.1, 0.9, 2)
    path, states = [position], list[str]()
    moves = rng.random() < 0.5
    while len(states) < clips:
        length = int(rng.integers(3, 6))
        state = _possible_direction(rng, position) if moves else AT_REST
        step = np.array(DIRECTIONS.get(state, (0, 0))) * _speed(rng, position, state, length)
        for _ in range(length):
            position = position + step
            path.append(position)
            states.append(state)
        moves = not moves
    visible = _visible_clips(rng, clips, always=rng.random() < (0.4 if hard else 0.55))
    shown_states = tuple(s if is_visible else HIDDEN for s, is_visible in zip(states[:clips], visible, strict=True))
    diameter = random_diameter(rng, thing) * (0.9 if hard else 1.0)
    return Track(thing, diameter, np.array(path[: clips + 1]), shown_states)


def _possible_direction(rng: np.random.Generator, position: np.ndarray) -> str:
    """A random direction with enough room for a visible move."""
    goals = {word: position + 0.34 * np.array(step) for word, step in DIRECTIONS.items()}
    return str(rng.choice([word for word, goal in goals.items() if goal.min() >= 0.08 and goal.max() <= 0.92]))


def _speed(rng: np.random.Generator, position: np.ndarray, state: str, length: int) -> float:
    """Speed in frame sides per clip: 0.08 to 0.13, or less so that the thing stays inside the frame."""
    if state == AT_REST:
        return 0.0
    (axis,) = np.flatnonzero(DIRECTIONS[state])
    room = 0.93 - position[axis] if DIRECTIONS[state][axis] > 0 else position[axis] - 0.07
    return float(min(rng.uniform(0.08, 0.13), room / length))


def _visible_clips(rng: np.random.Generator, clips: int, *, always: bool) -> np.ndarray:
    """bool [t]: all clips with `always`, otherwise one or two runs of 4 to 10 clips."""
    if always:
        return np.ones(clips, dtype=bool)
    visible = np.zeros(clips, dtype=bool)
    for _ in range(int(rng.integers(1, 3))):
        start = int(rng.integers(0, clips - 4))
        visible[start : start + int(rng.integers(4, 11))] = True
    return visible


def _unambiguous_name(rng: np.random.Generator, thing: Thing, things: list[Thing]) -> str:
    """Half the time the full name, otherwise the shortest name that fits none of the other things."""
    if rng.random() < 0.5:
        return str(thing)
    namings: tuple[Callable[[Thing], str], ...] = (
        lambda t: t.shape,
        lambda t: f"{t.colour} {t.shape}",
        lambda t: f"{t.size} {t.shape}",
        str,
    )
    return next(naming(thing) for naming in namings if sum(naming(t) == naming(thing) for t in things) == 1)


def _describe_one(track: Track, name: str, rng: np.random.Generator) -> Iterator[Sentence]:
    """Sentences about one thing: that it is visible, where it is, and in which direction it moves."""
    thing = track.thing
    centres = track.centres()
    visible = np.array([state != HIDDEN for state in track.state])
    phrase = rng.choice(["is in view", "can be seen", "is there"])
    yield Sentence(thing, f"the {name} {phrase}", "presence", 0.6 * visible)
    for phrase, (axis, sign) in POSITIONS.items():
        distance = sign * (centres[:, axis] - 0.5) - POSITION_MARGIN
        yield Sentence(thing, f"the {name} is {phrase}", "place", _strength(distance / 0.25))
    for direction in DIRECTIONS:
        verb = rng.choice(["moves", "goes", "travels"])
        moving = np.array([state == direction for state in track.state])
        yield Sentence(thing, f"the {name} {verb} {direction}", "motion", _motion_strength(moving))


def _describe_pair(
    track: Track, partner: Track, name: str, partner_name: str, rng: np.random.Generator
) -> Iterator[Sentence]:
    """Sentences about where one thing is relative to another, at rest or moving."""
    thing = track.thing
    offset = track.centres() - partner.centres()
    moving = np.array([state not in (AT_REST, HIDDEN) for state in track.state])
    for relation, (dx, dy) in RELATIONS.items():
        along = offset @ [dx, dy]
        across = abs(offset @ [dy, dx])
        strength = _strength((along - np.maximum(across, 0.06)) / 0.3)
        yield Sentence(thing, f"the {name} is {relation} the {partner_name}", "relation", strength)
        verb = rng.choice(["moves", "passes"])
        yield Sentence(thing, f"the {name} {verb} {relation} the {partner_name}", "meeting", strength * moving)
    nearness = (NEAR - np.hypot(*offset.T)) / 0.15
    yield Sentence(thing, f"the {name} is next to the {partner_name}", "relation", _strength(nearness))


def _strength(margin: np.ndarray) -> np.ndarray:
    """Strength in (0, 1] where `margin` is above zero; 0 elsewhere and where it is NaN (a thing is hidden)."""
    return np.where(np.nan_to_num(margin, nan=-1.0) > 0, np.clip(0.2 + 0.8 * margin, 0.2, 1.0), 0.0)


def _motion_strength(moving: np.ndarray) -> np.ndarray:
    """1 inside a run of True, less at its two ends."""
    padded = np.concatenate([[False], moving, [False]])
    return moving * (0.5 + 0.25 * padded[:-2] + 0.25 * padded[2:])
