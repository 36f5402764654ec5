"""Which sentences are true of the things in a sample video and when, and which of them become annotated queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import numpy as np

from costl.pipeline.world.render import SHAPES, SIZES, Thing, size_word
from costl.pipeline.world.tracks import AT_REST, CLIP_S, DIRECTIONS, HIDDEN, Track

POSITIONS = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
CONVERSES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of", "next to": "next to"}
SIZE_CHANGES = {1: ["grows", "gets larger", "becomes larger"], -1: ["shrinks", "gets smaller", "becomes smaller"]}
POSITION_MARGIN = 0.14  # "on the left" is left of the middle by at least this share of the frame's side
NEAR = 0.26  # "next to" is nearer than this share of the side


@dataclass(frozen=True)
class Sentence:
    """A query about `subject`, true in the clips with `strength > 0`; `strength` [t] in [0, 1] is how clearly it holds.

    `names` are the names of things in it, as it has them: that of the subject, and in some kinds that of a second thing.
    `related` is (relation, shape of the subject, shape of the second thing), or empty for a sentence about one thing.
    """

    subject: Thing
    text: str
    kind: str
    strength: np.ndarray
    names: tuple[str, ...] = ()
    related: tuple[str, ...] = ()

    def windows(self) -> list[tuple[int, int]]:
        """Runs of clips in which it holds, as [first, last + 1)."""
        return true_runs(self.strength)


def true_runs(strength: np.ndarray) -> list[tuple[int, int]]:
    """The runs of clips with `strength` [t] above zero, as [first, last + 1)."""
    edges = np.flatnonzero(np.diff(strength > 0, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class _Fact:
    """What holds of one thing, or of one thing and a second, with `strength` [t]; each of `phrases` expresses it.

    `relation` is that of the two things, or empty.
    """

    kind: str
    phrases: Sequence[str]
    strength: np.ndarray
    relation: str = ""


def describe_tracks(tracks: list[Track], rng: np.random.Generator) -> Iterator[Sentence]:
    """Every fact of the sample world's grammar about these tracks in one sentence; names of things are unambiguous."""
    things = [track.thing for track in tracks]
    names = {track.thing: _unambiguous_name(rng, track.thing, things) for track in tracks}
    for subject, partner, fact in _facts(tracks):
        phrase = str(rng.choice(fact.phrases)) if len(fact.phrases) > 1 else fact.phrases[0]
        yield _sentence(subject.thing, [names[track.thing] for track in (subject, partner) if track], phrase, fact)


def every_true_sentence(tracks: list[Track]) -> Iterator[Sentence]:
    """Every sentence of the grammar that holds in some clip, with each name and phrase, ambiguous names included.

    Where several things fit the names of a sentence, it is yielded once for each of them.
    """
    names_of = {track.thing: track_names(track).items() for track in tracks}
    for subject, partner, fact in _facts(tracks):
        if fact.strength.any():
            for named in product(*(names_of[track.thing] for track in (subject, partner) if track)):
                names = [name for name, _ in named]
                limits = [clips for _, clips in named if clips is not None]
                limited = replace(fact, strength=fact.strength * np.all(limits, axis=0)) if limits else fact
                if not limits or limited.strength.any():
                    yield from (_sentence(subject.thing, names, phrase, limited) for phrase in fact.phrases)


def held_out_relations(seed: int) -> frozenset[tuple[str, str, str]]:
    """(relation, shape of the subject, shape of the second thing) that a fine world keeps for the test of unseen relations.

    Every two shapes keep one relation, each relation equally often. The same relation in other words is kept as well: "below"
    from star to ring with "above" from ring to star.
    """
    rng = np.random.default_rng([seed, 1_000_003])  # no number of a split
    pairs = list(combinations_with_replacement(SHAPES, 2))
    relations = [*RELATIONS, "next to"]
    held_out: set[tuple[str, str, str]] = set()
    for rank, index in enumerate(rng.permutation(len(pairs))):
        relation = relations[rank % len(relations)]
        first, second = pairs[index]
        held_out |= {(relation, first, second), (CONVERSES[relation], second, first)}
    return frozenset(held_out)


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
    grades = expected_grade(sentence.strength[clip_ids, None]) + bias + rng.normal(0, 0.35, (len(clip_ids), 3))
    return {
        "query": sentence.text,
        "duration": len(sentence.strength) * CLIP_S,
        "vid": vid,
        "relevant_clip_ids": clip_ids.tolist(),
        "saliency_scores": np.clip(grades.round(), 0, 4).astype(int).tolist(),
        "relevant_windows": [[begin * CLIP_S, end * CLIP_S] for begin, end in sentence.windows()],
        "kind": sentence.kind,
    }


def expected_grade(strength: np.ndarray) -> np.ndarray:
    """The grade of clips of this strength without the bias and the noise of a rater, 1.2 to 3.8 where a sentence holds."""
    return 1.2 + 2.6 * strength


def _unambiguous_name(rng: np.random.Generator, thing: Thing, things: list[Thing]) -> str:
    """Half the time the full name, otherwise the shortest name that fits none of the other things."""
    if rng.random() < 0.5:
        return str(thing)
    return next(name for name in thing_names(thing) if sum(_may_fit(name, other) for other in things) == 1)


def _may_fit(name: str, thing: Thing) -> bool:
    """Whether the name fits the thing at some time: one that changes its size may be small or large."""
    sizes = [thing.size] if thing.size else SIZES
    return set(name.split()) <= {*sizes, thing.colour, thing.shape}


def thing_names(thing: Thing) -> list[str]:
    """All names of a thing, from its shape alone to the full name."""
    names = [thing.shape, f"{thing.colour} {thing.shape}"]
    return [*names, *(f"{thing.size} {name}" for name in names)] if thing.size else names


def track_names(track: Track) -> dict[str, np.ndarray | None]:
    """All names of a thing: None if the name always fits, bool [t] with the clips in which it fits where the size changes."""
    names: dict[str, np.ndarray | None] = dict.fromkeys(thing_names(track.thing))
    if not track.thing.size:
        words = np.array([size_word(diameter) for diameter in track.middle_diameters()])
        fitting = {size: words == size for size in SIZES if size in words}
        names |= {f"{size} {name}": clips for size, clips in fitting.items() for name in thing_names(track.thing)}
    return names


def _sentence(subject: Thing, names: Sequence[str], phrase: str, fact: _Fact) -> Sentence:
    text = " ".join([f"the {names[0]} {phrase}", *(f"the {name}" for name in names[1:])])
    related = (fact.relation, *(name.split()[-1] for name in names)) if fact.relation else ()
    return Sentence(subject, text, fact.kind, fact.strength, tuple(names), related)


def _facts(tracks: list[Track]) -> Iterator[tuple[Track, Track | None, _Fact]]:
    """(subject, second thing if there is one, fact) of each track and of each pair of tracks."""
    for track in tracks:
        for fact in _facts_of_one(track):
            yield track, None, fact
        for partner in tracks:
            if partner is not track:
                for fact in _facts_of_two(track, partner):
                    yield track, partner, fact


def _facts_of_one(track: Track) -> Iterator[_Fact]:
    """That one thing is visible, where it is, in which direction it moves, and how it changes its size."""
    centres = track.centres()
    yield _Fact("presence", ["is in view", "can be seen", "is there"], 0.6 * (track.state != HIDDEN))
    for phrase, (axis, sign) in POSITIONS.items():
        distance = sign * (centres[:, axis] - 0.5) - POSITION_MARGIN
        yield _Fact("place", [f"is {phrase}"], _strength(distance / 0.25))
    for direction in DIRECTIONS:
        phrases = [f"{verb} {direction}" for verb in ("moves", "goes", "travels")]
        yield _Fact("motion", phrases, _change_strength(track.state == direction))
    if not track.thing.size:
        growth = np.where(track.state == HIDDEN, 0, np.sign(np.diff(track.diameters)))
        for sign, phrases in SIZE_CHANGES.items():
            yield _Fact("size", phrases, _change_strength(growth == sign))


def _facts_of_two(track: Track, partner: Track) -> Iterator[_Fact]:
    """Where one thing is relative to another, at rest or moving."""
    offset = track.centres() - partner.centres()
    moving = ~np.isin(track.state, [AT_REST, HIDDEN])
    for relation, (dx, dy) in RELATIONS.items():
        along = offset @ [dx, dy]
        across = abs(offset @ [dy, dx])
        strength = _strength((along - np.maximum(across, 0.06)) / 0.3)
        yield _Fact("relation", [f"is {relation}"], strength, relation)
        yield _Fact("meeting", [f"{verb} {relation}" for verb in ("moves", "passes")], strength * moving, relation)
    nearness = (NEAR - np.hypot(*offset.T)) / 0.15
    yield _Fact("relation", ["is next to"], _strength(nearness), "next to")


def _strength(margin: np.ndarray) -> np.ndarray:
    """Strength in (0, 1] where `margin` is above zero; 0 elsewhere and where it is NaN (a thing is hidden)."""
    return np.where(np.nan_to_num(margin, nan=-1.0) > 0, np.clip(0.2 + 0.8 * margin, 0.2, 1.0), 0.0)


def _change_strength(changing: np.ndarray) -> np.ndarray:
    """1 inside a run of True, less at its two ends."""
    padded = np.pad(changing, 1)
    return changing * (0.5 + 0.25 * padded[:-2] + 0.25 * padded[2:])
