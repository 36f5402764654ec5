"""Which sentences are true of the things in a sample video and when, and which of them become annotated queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from costl.pipeline.world.render import Thing
from costl.pipeline.world.tracks import AT_REST, CLIP_S, DIRECTIONS, HIDDEN, Track

POSITIONS = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
POSITION_MARGIN = 0.14  # "on the left" is left of the middle by at least this share of the frame's side
NEAR = 0.26  # "next to" is nearer than this share of the side


@dataclass(frozen=True)
class Sentence:
    """A query about `subject`, true in the clips with `strength > 0`; `strength` [t] in [0, 1] is how clearly it holds."""

    subject: Thing
    text: str
    kind: str
    strength: np.ndarray

    def windows(self) -> list[tuple[int, int]]:
        """Runs of clips in which it holds, as [first, last + 1)."""
        edges = np.flatnonzero(np.diff(self.strength > 0, prepend=False, append=False)).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))


def describe_tracks(tracks: list[Track], rng: np.random.Generator) -> Iterator[Sentence]:
    """Every sentence of the sample world's grammar about these tracks; names of things are unambiguous."""
    things = [track.thing for track in tracks]
    names = {track.thing: _unambiguous_name(rng, track.thing, things) for track in tracks}
    for track in tracks:
        yield from _describe_one(track, names[track.thing], rng)
        for partner in tracks:
            if partner is not track:
                yield from _describe_pair(track, partner, names[track.thing], names[partner.thing], rng)


def choose_queries(sentences: list[Sentence], count: int, rng: np.random.Generator) -> list[Sentence]:
    """Up to `count` queries, all kinds equally likely.

    Each is true for half the video at most, in one to three windows of at least two clips.
    """

    def is_usable(sentence: Sentence) -> bool:
        lengths = [end - begin for begin, end in sentence.windows()]
        return 1 <= len(lengths) <= 3 and min(lengths) >= 2 and sum(lengths) <= len(sentence.strength) / 2

    usable = [s for s in sentences if is_usable(s)]
    chosen: list[Sentence] = []
    while usable and len(chosen) < count:
        kind = rng.choice(sorted({s.kind for s in usable}))
        of_kind = [s for s in usable if s.kind == kind]
        chosen.append(of_kind[int(rng.integers(len(of_kind)))])
        usable.remove(chosen[-1])
    return chosen


def annotate(sentence: Sentence, vid: str, rng: np.random.Generator) -> dict:
    """A QVHighlights row. Three raters, each with a bias, grade each true clip 0 to 4 by the strength of the sentence."""
    clip_ids = np.flatnonzero(sentence.strength > 0)
    bias = rng.choice([-0.7, 0.0, 0.4], 3)
    grades = 1.2 + 2.6 * sentence.strength[clip_ids, None] + bias + rng.normal(0, 0.35, (len(clip_ids), 3))
    return {
        "query": sentence.text,
        "duration": len(sentence.strength) * CLIP_S,
        "vid": vid,
        "relevant_clip_ids": clip_ids.tolist(),
        "saliency_scores": np.clip(grades.round(), 0, 4).astype(int).tolist(),
        "relevant_windows": [[begin * CLIP_S, end * CLIP_S] for begin, end in sentence.windows()],
        "kind": sentence.kind,
    }


def _unambiguous_name(rng: np.random.Generator, thing: Thing, things: list[Thing]) -> str:
    """Half the time the full name, otherwise the shortest name that fits none of the other things."""
    if rng.random() < 0.5:
        return str(thing)
    names = [_names(t) for t in things]
    return next(name for i, name in enumerate(_names(thing)) if sum(other[i] == name for other in names) == 1)


def _names(thing: Thing) -> list[str]:
    return [thing.shape, f"{thing.colour} {thing.shape}", f"{thing.size} {thing.shape}", str(thing)]


def _describe_one(track: Track, name: str, rng: np.random.Generator) -> Iterator[Sentence]:
    """Sentences about one thing: that it is visible, where it is, and in which direction it moves."""
    thing = track.thing
    centres = track.centres()
    phrase = rng.choice(["is in view", "can be seen", "is there"])
    yield Sentence(thing, f"the {name} {phrase}", "presence", 0.6 * (track.state != HIDDEN))
    for phrase, (axis, sign) in POSITIONS.items():
        distance = sign * (centres[:, axis] - 0.5) - POSITION_MARGIN
        yield Sentence(thing, f"the {name} is {phrase}", "place", _strength(distance / 0.25))
    for direction in DIRECTIONS:
        verb = rng.choice(["moves", "goes", "travels"])
        yield Sentence(thing, f"the {name} {verb} {direction}", "motion", _motion_strength(track.state == direction))


def _describe_pair(
    track: Track, partner: Track, name: str, partner_name: str, rng: np.random.Generator
) -> Iterator[Sentence]:
    """Sentences about where one thing is relative to another, at rest or moving."""
    thing = track.thing
    offset = track.centres() - partner.centres()
    moving = ~np.isin(track.state, [AT_REST, HIDDEN])
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
    padded = np.pad(moving, 1)
    return moving * (0.5 + 0.25 * padded[:-2] + 0.25 * padded[2:])
