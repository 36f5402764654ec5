"""What happens in a video of the sample world: where each thing is in each clip, and which sentences are true when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from costl.pipeline.world.render import SIZES, PlacedThing, Thing, is_unseen, random_diameter, random_thing

CLIP_S = 2
AT_REST, HIDDEN = "rest", "hidden"
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


@dataclass(frozen=True)
class Track:
    """One thing over the `t` clips of a video.

    `diameters` [t+1] and `path` [t+1 2]: its diameter and its centre (x, y) at the edges of the clips. Both change evenly
    between them. `state` [t]: one of DIRECTIONS while it moves, otherwise AT_REST or HIDDEN.
    """

    thing: Thing
    diameters: np.ndarray
    path: np.ndarray
    state: np.ndarray

    def at(self, time: float) -> PlacedThing | None:
        """The thing at a time in clips (0.5 is the middle of the first clip); None while it is hidden."""
        clip = int(time)
        if self.state[clip] == HIDDEN:
            return None
        x, y = self.path[clip] + (time - clip) * (self.path[clip + 1] - self.path[clip])
        diameter = self.diameters[clip] + (time - clip) * (self.diameters[clip + 1] - self.diameters[clip])
        return PlacedThing(self.thing, x, y, diameter)

    def centres(self) -> np.ndarray:
        """The centre at the middle of each clip, [t 2]; NaN while it is hidden."""
        middle = (self.path[:-1] + self.path[1:]) / 2
        return np.where((self.state == HIDDEN)[:, None], np.nan, middle)

    def middle_diameters(self) -> np.ndarray:
        """The diameter at the middle of each clip, [t]; NaN while it is hidden."""
        middle = (self.diameters[:-1] + self.diameters[1:]) / 2
        return np.where(self.state == HIDDEN, np.nan, middle)


def create_tracks(
    rng: np.random.Generator, *, clips: int, objects: int, hard: bool, unseen: bool, fine: bool = False
) -> list[Track]:
    """The tracks of one video with `objects` things, in groups of a first thing and near copies of it.

    With `unseen` the first thing of each group has one of the pairs of colour and shape that are kept for the test of
    unseen objects; otherwise no thing has. With `fine` some things change their size.
    """
    things: list[Thing] = []
    while len(things) < objects:
        first = random_thing(rng, unseen=unseen)
        group = [first] + [_near_copy(rng, first) for _ in range(3 if hard else 2)]
        things += [t for t in dict.fromkeys(group) if t not in things and (unseen or not is_unseen(t))]
    tracks = [_random_track(rng, thing, clips=clips, hard=hard) for thing in things[:objects]]
    return _change_sizes(rng, tracks) if fine else tracks


def _near_copy(rng: np.random.Generator, thing: Thing) -> Thing:
    """A thing that differs in one attribute."""
    changed = str(rng.choice(["size", "colour", "shape"]))
    while True:
        copy = replace(thing, **{changed: getattr(random_thing(rng), changed)})
        if copy != thing:
            return copy


def _random_track(rng: np.random.Generator, thing: Thing, *, clips: int, hard: bool) -> Track:
    """A track of alternating moves and rests of three to five clips each."""
    position = rng.uniform(0.1, 0.9, 2)
    path = [position]
    states: list[str] = []
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
    always_visible = rng.random() < (0.4 if hard else 0.55)
    visible = np.ones(clips, dtype=bool) if always_visible else _visible_clips(rng, clips)
    diameter = random_diameter(rng, thing) * (0.9 if hard else 1.0)
    diameters = np.full(clips + 1, diameter)
    return Track(thing, diameters, np.array(path[: clips + 1]), np.where(visible, states[:clips], HIDDEN))


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


def _visible_clips(rng: np.random.Generator, clips: int) -> np.ndarray:
    """bool [t]: one or two runs of 4 to 10 clips."""
    visible = np.zeros(clips, dtype=bool)
    for _ in range(int(rng.integers(1, 3))):
        start = int(rng.integers(0, clips - 4))
        visible[start : start + int(rng.integers(4, 11))] = True
    return visible


def _change_sizes(rng: np.random.Generator, tracks: list[Track]) -> list[Track]:
    """The tracks, where three in four things with a colour and shape of their own change their size.

    Others cannot: where a video has two red balls, "the large red ball" would name both while one of them changes.
    """
    counts = Counter((track.thing.colour, track.thing.shape) for track in tracks)
    changed: list[Track] = []
    for track in tracks:
        thing = track.thing
        if counts[thing.colour, thing.shape] == 1 and rng.random() < 0.75:
            diameters = _changing_diameters(rng, len(track.state))
            track = replace(track, thing=replace(thing, size=""), diameters=diameters)
        changed.append(track)
    return changed


def _changing_diameters(rng: np.random.Generator, clips: int) -> np.ndarray:
    """Diameters [t+1] of a thing that grows and shrinks between small and large, and keeps its size in between.

    Each takes three to five clips. The two sizes come from the outer halves of SIZES, so that costl-tiny knows them and a
    change is at least 0.045 of the side.
    """
    smallest, largest = SIZES["small"][0], SIZES["large"][1]
    now, then = rng.permutation([rng.uniform(smallest, smallest + 0.01), rng.uniform(largest - 0.01, largest)]).tolist()
    diameters = [now]
    changes = rng.random() < 0.5
    while len(diameters) <= clips:
        length = int(rng.integers(3, 6))
        diameters += np.linspace(now, then if changes else now, length + 1)[1:].tolist()
        if changes:
            now, then = then, now
        changes = not changes
    return np.array(diameters[: clips + 1])
