"""The fine world: things that change their size, against the rendered pictures, and relations that only one split asks for."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from costl.pipeline.errors import UsageError
from costl.pipeline.world import write_world
from costl.pipeline.world.corpus import true_windows
from costl.pipeline.world.render import COLOURS, SHAPES, SIZES, Thing
from costl.pipeline.world.sentences import held_out_relations
from costl.pipeline.world.tracks import AT_REST, HIDDEN, Track
from costl.pipeline.world.write_world import FINE_VIDEOS, VIDEOS, WorldSettings, write_sample

COUNTS = {"train": 12, "val": 3, "test": 4, "test_unseen": 2, "test_unseen_relation": 5}
PALETTE = ("red", "green", "blue", "yellow", "cyan")
TEXT = re.compile(r"the ([a-z ]+?) (is|can|moves|goes|travels|passes|grows|shrinks|gets|becomes)\b ?(.*?)(?: ?\bthe ([a-z ]+))?")
CONVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of", "next to": "next to"}
RIGHT, DOWN = np.array([1.0, 0.0]), np.array([0.0, 1.0])
AXES = {"left": -RIGHT, "right": RIGHT, "up": -DOWN, "down": DOWN}
AXES |= {"left of": -RIGHT, "right of": RIGHT, "above": -DOWN, "below": DOWN}
PLACES = {"on the left": -RIGHT, "on the right": RIGHT, "at the top": -DOWN, "at the bottom": DOWN}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parse(text: str) -> tuple[str, str, str, str | None]:
    """(name, verb, predicate, second name) of a sentence."""
    place = next((place for place in PLACES if text.endswith(place)), None)
    if place:
        return text.split(" is ")[0].removeprefix("the "), "is", place, None
    return TEXT.fullmatch(text).groups()


def relation(text: str) -> tuple[str, str, str] | None:
    """(relation, shape, shape) of a sentence about two things."""
    name, _, predicate, other = parse(text)
    return (predicate, name.split()[-1], other.split()[-1]) if other else None


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A fine world without its videos."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_world, "_render", lambda *_: None)
        write_sample(folder, settings=WorldSettings(videos=COUNTS, fine=True, seed=3), processes=1)
    return folder


def test_no_other_split_asks_for_an_unseen_relation_in_any_words(world):
    asked = {split: [relation(row["query"]) for row in rows(world / f"{split}.jsonl")] for split in COUNTS}
    unseen = set(asked.pop("test_unseen_relation"))
    assert None not in unseen and len(unseen) > 10
    unseen |= {(CONVERSE[name], other, one) for name, one, other in unseen}
    for split, triples in asked.items():
        assert len(set(triples)) > 2 and unseen.isdisjoint(triples), split


def test_unseen_relations_are_asked_of_things_that_training_shows(world):
    train = rows(world / "train.jsonl")
    for row in rows(world / "test_unseen_relation.jsonl"):
        assert row["kind"] in ("relation", "meeting")
        for name in (parse(row["query"])[0], parse(row["query"])[3]):
            assert any(parse(other["query"])[0].split()[-1] == name.split()[-1] for other in train)


@pytest.mark.parametrize("seed", range(5))
def test_every_shape_keeps_every_relation_and_every_pair_four_of_five(seed):
    held_out = held_out_relations(seed)
    assert held_out == held_out_relations(seed) != held_out_relations(seed + 5)
    pairs = {frozenset(triple[1:]) for triple in held_out}
    assert len(pairs) == 36
    for one in SHAPES:
        for name in CONVERSE:
            for place in (1, 2):
                assert sum(triple[0] == name and triple[place] == one for triple in held_out) <= len(SHAPES) - 2
        for other in SHAPES:
            names = {name for name, first, second in held_out if (first, second) == (one, other)}
            assert len(names) == 1 or (one == other and names == {CONVERSE[name] for name in names})
    assert min(Counter(name for name, _, _ in held_out).values()) >= 6


def test_the_drawn_sizes_are_those_that_costl_tiny_was_trained_on(world):
    objects = [thing for row in rows(world / "objects.jsonl") for thing in row["objects"]]
    changing = [thing for thing in objects if "diameters" in thing]
    assert 0.2 < len(changing) / len(objects) < 0.7
    for thing in changing:
        assert [d is None for d in thing["diameters"]] == [centre is None for centre in thing["centres"]]
        assert not set(thing["thing"].split()) & {"small", "large"}
    seen = [d for thing in changing for d in thing["diameters"] if d]
    assert SIZES["small"][0] <= min(seen) and max(seen) <= SIZES["large"][1]


def test_a_name_in_a_query_fits_no_other_thing_at_any_time(world):
    objects = {row["vid"]: row["objects"] for row in rows(world / "objects.jsonl")}
    for split in COUNTS:
        for row in rows(world / f"{split}.jsonl"):
            for name in filter(None, (parse(row["query"])[0], parse(row["query"])[3])):
                words = set(name.split())
                fitting = [
                    thing
                    for thing in objects[row["vid"]]
                    if words <= set(thing["thing"].split()) | ({"small", "large"} if "diameters" in thing else set())
                ]
                assert len(fitting) == 1 and words <= set(fitting[0]["thing"].split())


GROWING = np.array([0.09, 0.09, 0.09, 0.105, 0.125, 0.145, 0.145, 0.145, 0.13, 0.11, 0.09])
BALL = Track(Thing("", "red", "ball"), GROWING, np.full((11, 2), 0.5), np.array([AT_REST] * 9 + [HIDDEN]))
CUP = Track(Thing("small", "blue", "cup"), np.full(11, 0.1), np.full((11, 2), [0.5, 0.7]), np.array([AT_REST] * 10))
TRUE = {
    "the red ball grows": [[4, 10, 3]],
    "the ball gets larger": [[4, 10, 3]],
    "the ball becomes smaller": [[14, 18, 3]],
    "the ball is there": [[0, 18, 3]],
    "the small ball is there": [[0, 6, 3]],  # up to a diameter of 0.105
    "the large red ball is there": [[8, 16, 3]],  # from 0.130
    "the small ball grows": [[4, 6, 3]],
    "the large ball is above the cup": [[8, 16, 3]],
    "the large ball is above the large cup": None,
    "the small cup grows": None,
}


def test_a_thing_that_grows_is_called_small_and_large_while_it_is():
    assert true_windows([BALL, CUP], TRUE) == {text: windows for text, windows in TRUE.items() if windows}


class Pictures:
    """What the decoded pictures of a video show of each thing, recognised by its colour: the i-th thing has PALETTE[i].

    `area` [o t 10] in pixels and `centre` [o t 10 2] in sides, of each frame of each clip; the centre is NaN where none is seen.
    """

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float32)
        y, x = (np.mgrid[: frames.shape[1], : frames.shape[2]] + 0.5) / frames.shape[1]
        masks = np.stack([np.square(frames - np.float32(COLOURS[colour])).sum(-1) < 50**2 for colour in PALETTE])
        area = masks.sum((2, 3))
        total = np.stack([(masks * x).sum((2, 3)), (masks * y).sum((2, 3))], -1)
        centre = np.where(area[..., None] > 9, total / np.maximum(area, 1)[..., None], np.nan)
        self.area = area.reshape(len(PALETTE), -1, 10)
        self.centre = centre.reshape(len(PALETTE), -1, 10, 2)

    def in_full(self, subject: int) -> np.ndarray:
        """bool [t]: where no other thing comes near enough to hide a part of it."""
        others = np.delete(self.centre, subject, axis=0)
        distance = np.hypot(*np.moveaxis(others - self.centre[subject], -1, 0))  # NaN where one of the two is not seen
        return ~(distance < 0.17).any((0, 2))

    def true_clips(self, text: str, subject: int, partner: int | None) -> np.ndarray:
        """bool [t]: where a sentence about these things holds."""
        _, verb, predicate, _ = parse(text)
        middle = self.centre[subject, :, 4:6].mean(1)
        moved = self.centre[subject, :, 9] - self.centre[subject, :, 0]
        if verb in ("grows", "shrinks") or predicate in ("larger", "smaller"):
            growth = np.log(np.maximum(self.area[subject, :, 9], 1) / np.maximum(self.area[subject, :, 0], 1))
            return (growth if verb == "grows" or predicate == "larger" else -growth) > 0.06
        if predicate in PLACES:
            return (middle - 0.5) @ PLACES[predicate] > 0.14
        if partner is None:
            return moved @ AXES[predicate] > 0.05 if verb in ("moves", "goes", "travels") else ~np.isnan(middle[:, 0])
        offset = middle - self.centre[partner, :, 4:6].mean(1)
        if predicate == "next to":
            return np.hypot(*offset.T) < 0.26
        along, across = offset @ AXES[predicate], np.abs(offset @ AXES[predicate][::-1])
        is_moving = np.abs(moved).max(1) > 0.05 if verb in ("moves", "passes") else True
        return (along > np.maximum(across, 0.06)) & is_moving


def test_the_annotations_describe_the_rendered_pictures(tmp_path, monkeypatch):
    render = write_world._render

    def render_in_palette(path: Path, tracks: list[Track], *others: object) -> None:
        tracks = [replace(t, thing=replace(t.thing, colour=colour)) for t, colour in zip(tracks, PALETTE, strict=True)]
        render(path, tracks, *others)

    monkeypatch.setattr(write_world, "_render", render_in_palette)
    settings = WorldSettings(videos={"test": 2, "test_unseen_relation": 1}, queries=15, clips=(16, 16), fine=True, seed=18)
    write_sample(tmp_path / "w", settings=settings, processes=1)
    compared: dict[str, list[np.ndarray]] = {}
    objects = {row["vid"]: row["objects"] for row in rows(tmp_path / "w" / "objects.jsonl")}
    pictures = {vid: Pictures(tmp_path / "w" / f"{vid}.mp4") for vid in objects}
    for row in [row for split in settings.videos for row in rows(tmp_path / "w" / f"{split}.jsonl")]:
        words = [set(thing["thing"].split()) for thing in objects[row["vid"]]]
        name, _, _, other = parse(row["query"])
        subject, partner = (next(i for i in range(5) if set(n.split()) <= words[i]) if n else None for n in (name, other))
        annotated = np.isin(np.arange(16), row["relevant_clip_ids"])
        shown = pictures[row["vid"]].true_clips(row["query"], subject, partner)
        clear = pictures[row["vid"]].in_full(subject) if row["kind"] == "size" else slice(None)
        compared.setdefault(row["kind"], []).append(np.array([annotated, shown])[:, clear])
    assert set(compared) == {"presence", "place", "motion", "size", "relation", "meeting"}
    for kind, pairs in compared.items():
        annotated, shown = np.concatenate(pairs, axis=1)
        assert shown[annotated].mean() > 0.9 and shown[~annotated].mean() < 0.1, kind  # things may hide behind each other


def test_a_fine_world_has_one_more_split_and_only_a_fine_one_has_it():
    assert WorldSettings().videos == VIDEOS and sum(VIDEOS.values()) == 400
    assert WorldSettings(fine=True).videos == FINE_VIDEOS == VIDEOS | {"test_unseen_relation": 50}
    with pytest.raises(UsageError, match=r"only a fine one has the split test_unseen_relation\. Add --fine"):
        WorldSettings(videos={"train": 1, "test_unseen_relation": 1})
