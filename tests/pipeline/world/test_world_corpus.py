"""corpus.jsonl: what is true in every video, against the annotations, hand-made tracks and a reader of sentences."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.data_folder import read_annotations, unread_files
from costl.pipeline.world import write_world
from costl.pipeline.world.corpus import corpus_rows, true_windows
from costl.pipeline.world.render import Thing
from costl.pipeline.world.sentences import Sentence
from costl.pipeline.world.tracks import AT_REST, HIDDEN, Track
from costl.pipeline.world.write_world import WorldSettings, write_sample

COUNTS = {"train": 5, "val": 4, "test": 6, "test_unseen": 4}
WORLDS = {
    "normal": WorldSettings(videos=COUNTS, seed=3),
    "hard": WorldSettings(videos=COUNTS, hard=True, seed=3),
    "fine": WorldSettings(videos=COUNTS | {"test_unseen_relation": 4}, fine=True, seed=3),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request, tmp_path_factory) -> Path:
    """A sample world without its videos."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_world, "_render", lambda *_: None)
        write_sample(folder, settings=WORLDS[request.param], processes=1)
    return folder


def splits(world: Path) -> list[str]:
    """The splits of a world that have annotations."""
    return [split for split in WORLDS["fine"].videos if (world / f"{split}.jsonl").exists()]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_query_has_its_annotated_windows_in_its_own_video(world):
    corpus = {(row["split"], row["sentence"]): row["videos"] for row in rows(world / "corpus.jsonl")}
    for split in splits(world):
        queries = rows(world / f"{split}.jsonl")
        for query in queries:
            windows = corpus[split, query["query"]][query["vid"]]
            assert [window[:2] for window in windows] == query["relevant_windows"]
        listed = [text for name, text in corpus if name == split and corpus[name, text]]
        assert listed == list(dict.fromkeys(query["query"] for query in queries))


RELATED = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
PLACED = {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
TEXT = re.compile(
    r"the ([a-z ]+?) (?:is in view|can be seen|is there|is (on the \w+|at the \w+)|is (\w+(?: of| to)?) the ([a-z ]+))"
)


def words_at(thing: dict, clip: int) -> set[str]:
    """The words of a thing in a clip: one that changes its size is small up to a diameter of 0.105, and large from 0.130."""
    diameter = thing.get("diameters", {clip: None})[clip] or 0.12
    return {*thing["thing"].split(), *(["small"] if diameter <= 0.105 else ["large"] if diameter >= 0.13 else [])}


def oracle(text: str, objects: list[dict]) -> list[list[int]] | None:
    """The windows of a sentence about rest, from the rounded positions of all objects; None for one about motion."""
    match = TEXT.fullmatch(text)
    if not match:
        return None
    name, place, relation, partner = match.groups()

    def holds(clip: int) -> bool:
        def fitting(name: str) -> list[dict]:
            return [thing for thing in objects if set(name.split()) <= words_at(thing, clip)]

        for one, other in product(fitting(name), fitting(partner) if partner else [None]):
            here, there = one["centres"][clip], other and other["centres"][clip]
            if here is None or one is other or (partner and there is None):
                continue
            if place:
                offset = [here[0] - 0.5, here[1] - 0.5]
                if offset[0] * PLACED[place][0] + offset[1] * PLACED[place][1] <= 0.14:
                    continue
            if relation:
                dx, dy = here[0] - there[0], here[1] - there[1]
                if relation == "next to":
                    related = (dx * dx + dy * dy) ** 0.5 < 0.26
                else:
                    along = dx * RELATED[relation][0] + dy * RELATED[relation][1]
                    across = abs(dy) if RELATED[relation][0] else abs(dx)
                    related = along > max(across, 0.06)
                if not related:
                    continue
            return True
        return False

    windows: list[list[int]] = []
    for clip in range(len(objects[0]["centres"])):
        if holds(clip):
            if windows and windows[-1][1] == 2 * clip:
                windows[-1][1] += 2
            else:
                windows.append([2 * clip, 2 * clip + 2])
    return windows


def test_a_reader_of_the_sentences_finds_the_same_truth_in_every_video(world):
    objects = {row["vid"]: row["objects"] for row in rows(world / "objects.jsonl")}
    checked = 0
    for row in rows(world / "corpus.jsonl"):
        for vid in (vid for vid in objects if vid.rpartition("_")[0] == row["split"]):
            windows = oracle(row["sentence"], objects[vid])
            if windows is not None:
                checked += bool(windows)
                assert [window[:2] for window in row["videos"].get(vid, [])] == windows, (row["sentence"], vid)
    assert checked > 100


def test_absent_sentences_come_from_other_splits_and_say_what_is_missing(world):
    things = {}
    for row in rows(world / "objects.jsonl"):
        words = {frozenset(words_at(thing, clip)) for thing in row["objects"] for clip in range(len(thing["centres"]))}
        things.setdefault(row["vid"].rpartition("_")[0], set()).update(words)
    asked = {split: {query["query"] for query in rows(world / f"{split}.jsonl")} for split in splits(world)}
    absent = [row for row in rows(world / "corpus.jsonl") if not row["videos"]]
    assert {row["split"] for row in absent} == set(asked)
    assert {row["absent"] for row in absent} == {"object", "event"}
    for row in absent:
        elsewhere = [split for split in asked if split not in ("train", row["split"])]
        assert row["sentence"] not in asked[row["split"]]
        assert any(row["sentence"] in asked[split] for split in elsewhere)
        names = re.findall(r"the ((?:small |large )?(?:\w+ )?(?:ball|box|triangle|star|cross|ring|heart|cup))", row["sentence"])
        present = all(any(set(name.split()) <= thing for thing in things[row["split"]]) for name in names)
        assert row["absent"] == ("event" if present else "object")


def track(thing: str, states: str, *, x: float = 0.5) -> Track:
    """A thing at rest (r), moving up (u) or hidden (h) in each clip; it stays where it is."""
    state = [{"r": AT_REST, "u": "up", "h": HIDDEN}[letter] for letter in states]
    edges = len(states) + 1
    return Track(Thing(*thing.split()), np.full(edges, 0.1), np.full((edges, 2), [x, 0.5]), np.array(state))


BALLS = [track("small red ball", "uurrhh"), track("large red ball", "rrrhhu", x=0.9)]
TRUE = {
    "the small red ball moves up": [[0, 4, 3]],  # strength 0.75 at both ends: 1.2 + 2.6 * 0.75 = 3.15
    "the ball goes up": [[0, 4, 3], [10, 12, 2]],  # of either ball; alone, a clip has strength 0.5
    "the red ball is there": [[0, 8, 3], [10, 12, 3]],
    "the ball is on the right": [[0, 6, 4], [10, 12, 4]],
    "the small ball is left of the red ball": [[0, 6, 4]],
    "the blue ball is there": None,
    "the small ball moves down": None,
}


def test_a_sentence_is_true_of_any_thing_that_has_the_name():
    assert true_windows(BALLS, TRUE) == {text: windows for text, windows in TRUE.items() if windows}


def test_a_sentence_has_one_row_in_each_split_that_asks_it():
    def sentence(text: str, *names: str) -> Sentence:
        return Sentence(Thing("small", "red", "ball"), text, "motion", np.ones(1), names)

    up, cup = sentence("the ball goes up", "ball"), sentence("the cup goes up", "cup")
    videos = {"val": {"val_0000": BALLS}, "test": {"test_0000": BALLS[:1]}}
    assert list(corpus_rows(videos, {"val": [up, up], "test": [cup]})) == [
        {"split": "val", "sentence": up.text, "kind": "motion", "videos": {"val_0000": TRUE["the ball goes up"]}},
        {"split": "val", "sentence": cup.text, "kind": "motion", "absent": "object", "videos": {}},
        {"split": "test", "sentence": cup.text, "kind": "motion", "videos": {}},
    ]


def test_extraction_takes_no_annotations_from_the_corpus_file(world):
    assert unread_files(world) == []
    assert set(read_annotations(world)) == set(splits(world))
