"""Folds that share no person, and the validation split that is held out: properties, and a case by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.folds import deal_folds, hold_out, split_of_fold
from preprocessing.layouts import Item
from preprocessing.stage import StageError


def items_of(persons: dict[str, dict[str, int]]) -> list[Item]:
    """The images of each person, so many of each emotion."""
    return [
        Item(f"{person}/{emotion}{i}.png", None, emotion, person)
        for person, counts in persons.items()
        for emotion, count in counts.items()
        for i in range(count)
    ]


def test_by_hand() -> None:
    # two folds; A is the largest and goes first. B has A's emotion, so it adds less to the other fold; C then adds less
    # to B's, which is the smaller one; D, of the same emotion as C, to A's.
    persons = {"D": {"sad": 2}, "C": {"sad": 2}, "B": {"happy": 3}, "A": {"happy": 4}}
    assert deal_folds(items_of(persons), 2) == {"A": 1, "B": 2, "C": 2, "D": 1}


@given(seed=st.integers(0, 10_000), count=st.integers(30, 120))
@settings(deadline=None, max_examples=20)
def test_each_person_has_one_fold_and_the_folds_are_alike(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    # as in CK+: one to six sequences a person, of three frames and different emotions
    persons = {
        f"S{i:03d}": {f"e{emotion}": 3 for emotion in rng.permutation(7)[: rng.integers(1, 7)]} for i in range(count)
    }
    items = items_of(persons)
    dealt = deal_folds(items)
    assert dealt.keys() == persons.keys()
    assert set(dealt.values()) == set(range(1, 11))
    sizes = [sum(dealt[item.person or ""] == fold for item in items) for fold in range(1, 11)]
    assert max(sizes) - min(sizes) <= 18  # no more than the images of one person
    for emotion in range(7):
        counts = [
            sum(item.emotion == f"e{emotion}" and dealt[item.person or ""] == fold for item in items)
            for fold in range(1, 11)
        ]
        assert max(counts) - min(counts) <= 9  # three sequences
    shuffled = [items[i] for i in rng.permutation(len(items))]
    assert deal_folds(shuffled) == dealt


def test_fewer_persons_than_folds() -> None:
    with pytest.raises(StageError, match="3 persons with a label; expected 10 or more"):
        deal_folds(items_of({name: {"sad": 1} for name in "ABC"}))


def test_over_all_folds_each_one_tests_and_validates_once() -> None:
    for fold in range(1, 11):
        splits = [split_of_fold(fold, test) for test in range(1, 11)]
        assert (splits.count("PrivateTest"), splits.count("PublicTest")) == (1, 1)
        assert splits[fold - 1] == "PrivateTest"
        assert splits[fold - 2] == "PublicTest"  # the test fold before it; for fold 1 that is 10


@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=4), other=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_tenth_of_each_class_is_held_out(counts: list[int], other: int) -> None:
    items = [Item(f"{label}/{i}", "Training", str(label)) for label, count in enumerate(counts) for i in range(count)]
    tests = [Item(f"test/{i}", "PrivateTest", "0") for i in range(other)]
    found = hold_out([*items, *tests])
    assert [item._replace(split=None) for item in found] == [item._replace(split=None) for item in [*items, *tests]]
    assert sum(item.split == "PrivateTest" for item in found) == other
    for label, count in enumerate(counts):
        held_out = sum(item.split == "PublicTest" and item.emotion == str(label) for item in found)
        assert abs(held_out - count / 10) <= (0.5 if count >= 10 else 1)
        assert held_out >= (count > 1)
        assert held_out < max(count, 1)
    without = hold_out([item for item in items if item.emotion == "0"])  # what one class holds changes no other
    assert without == [item for item in found if item.emotion == "0" and item.split != "PrivateTest"]


@pytest.mark.parametrize(
    ("split", "happy", "sad"),
    [("PublicTest", {"12", "15", "16"}, {"1", "8", "22"}), ("PrivateTest", {"0", "11", "13"}, {"2", "3", "7"})],
)
def test_the_images_that_are_held_out_are_always_the_same(split: str, happy: set[str], sad: set[str]) -> None:
    """Others would let a net that was trained before be tested on what it was trained on."""
    items = [Item(str(number), "Training", emotion) for emotion in ("happy", "sad") for number in range(30)]
    moved = [item for item in hold_out(items, split) if item.split == split]
    assert {item.file for item in moved if item.emotion == "happy"} == happy
    assert {item.file for item in moved if item.emotion == "sad"} == sad
