"""Wilson's interval and ROC curves: against the formula, all pairs, and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from explain.scores import area_under, corners, roc_curve, wilson_interval


def test_wilsons_interval_of_known_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for correct, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (7, 10), (2457, 3589), (3589, 3589)])
def test_wilsons_ends_are_where_the_score_test_is_at_its_limit(correct: int, count: int) -> None:
    share, z = correct / count, 1.959963984540054
    for end in wilson_interval(correct, count):  # |p̂ - p| = z √(p (1 - p) / n)
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), abs=1e-7)
    low, high = wilson_interval(correct, count)
    mirrored = wilson_interval(count - correct, count)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_wilsons_ends_are_shares() -> None:
    """By rounding the formula gives a little less than 0 of 21, and more than 1 of 11."""
    for count in range(1, 60):
        assert 0 <= wilson_interval(0, count)[0] < 1e-15
        assert 1 - 1e-15 < wilson_interval(count, count)[1] <= 1


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (1, 0), (2, 1), (-1, 3)])
def test_counts_that_are_none(correct: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"correct is {correct} of {count}"):
        wilson_interval(correct, count)


def test_a_roc_curve_with_ties_by_hand() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    positive = np.array([True, True, False, False, True])
    false, true = roc_curve(scores, positive)
    assert false.tolist() == [0, 0, 1, 1]
    assert true.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    # pairs: 0.9 beats both; 0.5 ties with both; 0.1 loses to both: (2 + 1 + 0) / 6
    assert area_under(false, true) == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_the_area_is_the_share_of_pairs(levels: int) -> None:
    random = np.random.default_rng(levels)
    for _ in range(20):
        scores = random.integers(0, levels, 40) / levels
        positive = np.append(random.random(38) < 0.3, [True, False])
        difference = scores[positive][:, None] - scores[~positive][None]
        expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
        curve = roc_curve(scores, positive)
        assert area_under(*curve) == pytest.approx(expected, abs=1e-12)
        assert area_under(*corners(*curve)) == pytest.approx(expected, abs=1e-12)
        for false, true in zip(*curve, strict=True):  # each point is a threshold's
            rates = [((scores[~positive] >= t).mean(), (scores[positive] >= t).mean()) for t in [*scores, 2]]
            assert min(abs(false - f) + abs(true - t) for f, t in rates) < 1e-12


def test_the_ends_of_separable_and_reversed_scores() -> None:
    positive = np.array([True, True, False])
    assert area_under(*roc_curve(np.array([3, 2, 1]), positive)) == 1
    assert area_under(*roc_curve(np.array([1, 2, 3]), positive)) == 0
    assert area_under(*roc_curve(np.zeros(3), positive)) == 0.5
    for same in (np.ones(3, bool), np.zeros(3, bool)):
        with pytest.raises(ValueError, match="expected at least one of each"):
            roc_curve(np.arange(3), same)


def test_corners_leave_out_what_lies_inside_of_a_line() -> None:
    x, y = np.array([0, 0, 0, 1, 2, 3.0]), np.array([0, 1, 2, 2, 2, 3.0])
    kept = corners(x, y)
    assert [each.tolist() for each in kept] == [[0, 0, 2, 3], [0, 2, 2, 3]]
    assert [each.tolist() for each in corners(x[:2], y[:2])] == [[0, 0], [0, 1]]
    assert [each.tolist() for each in corners(x[:3], y[:3])] == [[0, 0], [0, 2]]
