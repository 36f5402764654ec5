"""Splits by video: from a hash, stable when videos are added, and never empty without need."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.converters.splits import FEW, choose_splits

VIDS = [f"V{number:04}" for number in range(1000)]


@pytest.mark.parametrize(
    ("videos", "counts"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (19, (13, 3, 3))],
)
def test_a_few_videos_have_exact_shares(videos, counts):
    for seed in range(20):
        chosen = Counter(choose_splits(VIDS[:videos], share=0.15, seed=seed).values())
        assert (chosen["train"], chosen["val"], chosen["test"]) == counts


@given(st.lists(st.text(min_size=1), min_size=3, unique=True, max_size=60), st.integers(0, 99))
def test_no_split_is_empty_from_three_videos_on(vids, seed):
    chosen = choose_splits(vids, share=0.15, seed=seed)
    assert chosen.keys() == set(vids) and set(chosen.values()) == {"train", "val", "test"}


def test_adding_videos_moves_no_others():
    chosen = choose_splits(VIDS[:FEW], share=0.15, seed=0)
    for videos in range(FEW + 1, 200):
        before, chosen = chosen, choose_splits(VIDS[:videos], share=0.15, seed=0)
        assert before.items() <= chosen.items()


def test_shares_are_those_that_were_named_and_the_seed_changes_them():
    counts = Counter(choose_splits(VIDS, share=0.15, seed=0).values())
    assert 120 < counts["val"] < 180 and 120 < counts["test"] < 180
    assert choose_splits(VIDS, share=0.15, seed=1) != choose_splits(VIDS, share=0.15, seed=0)
    assert set(choose_splits(VIDS, share=0.0, seed=0).values()) == {"train"}
    assert set(choose_splits(VIDS, share=0.15, seed=0, with_test=False).values()) == {"train", "val"}


def test_a_given_test_split_stays_and_validation_comes_from_training(convert, write):
    rows = [f"{vid},1,2,{vid},train" for vid in ("holiday", "Garden")] + ["k.1,1,2,c,test"]
    converted = convert(write(**{"a.csv": "\n".join(["video,start,end,text,split", *rows])}))
    assert {split: len(rows) for split, rows in converted.splits.items()} == {"train": 1, "val": 1, "test": 1}
    assert converted.splits["test"][0].vid == "k.1"
    note = "Splits: as the labels give them; val: 1 training videos held out (share 0.15, seed 0)."
    assert note in converted.messages


def test_the_choice_is_printed(convert, write):
    rows = "".join(f"{vid},1,2,{vid}\n" for vid in ("holiday", "Garden", "k.1"))
    converted = convert(write(**{"train.csv": f"video,start,end,text\n{rows}"}), "--seed", "3", "--val-share", "0.2")
    note = "Splits: by video, 1 train, 1 val, 1 test (share 0.2 each for val and test, seed 3). Below 20 videos"
    assert note in converted.messages
