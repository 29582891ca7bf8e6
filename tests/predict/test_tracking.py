"""Faces keep their numbers while they move, are missed or stand close, and lose them when they leave."""

from __future__ import annotations

import math

from predict.recognizer import Prediction
from predict.tracking import Tracker

Place = tuple[float, float]  # the centre of a face


def face(place: Place, side: float = 60.0, height: float | None = None) -> Prediction:
    height = height or side
    box = (place[0] - side / 2, place[1] - height / 2, side, height)
    return Prediction(box, None, 0.99, "happy", {"happy": 1.0})


def tracks(looks: list[list[Prediction]], step: float = 0.04) -> list[list[int | None]]:
    """The numbers of the faces of each look, one every `step` seconds."""
    tracker = Tracker()
    return [[f.track for f in tracker.number(faces, look * step)] for look, faces in enumerate(looks)]


def test_numbers_go_with_the_faces_whatever_their_order() -> None:
    left, right = (100.0, 100.0), (300.0, 100.0)
    looks = [[face(left), face(right)], [face(right), face(left)], [face(right)], [face(left), face(right)]]
    assert tracks(looks) == [[1, 2], [2, 1], [2], [1, 2]]


def test_what_was_found_stays_as_it_was() -> None:
    found = face((100, 100))
    (numbered,) = Tracker().number([found], 0.0)
    assert found.track is None
    assert (numbered.box, numbered.probabilities) == (found.box, found.probabilities)


def test_a_face_that_moves_keeps_its_number() -> None:
    """Up to its own size from look to look, in any direction, also where the boxes no longer meet."""
    around = [(200 + 150 * math.cos(t), 200 + 150 * math.sin(t)) for t in [0.39 * look for look in range(40)]]
    assert math.dist(around[0], around[1]) > 57
    assert tracks([[face(place)] for place in around]) == [[1]] * 40
    further = [(200 + 150 * math.cos(t), 200 + 150 * math.sin(t)) for t in [0.41 * look for look in range(3)]]
    assert tracks([[face(place)] for place in further]) == [[1], [2], [3]]


def test_the_size_is_that_of_the_smaller_box() -> None:
    assert tracks([[face((100, 100), 60)], [face((140, 100), 90)], [face((140, 100), 41)]]) == [[1], [1], [1]]
    assert tracks([[face((100, 100), 200)], [face((150, 100), 40)]]) == [[1], [2]]
    assert tracks([[face((100, 100), 30, 120)], [face((159, 100), 30, 120)]]) == [[1], [1]]  # as a square of 60
    assert tracks([[face((100, 100), 0.0, 0.0)], [face((100, 100), 0.0, 0.0)]]) == [[1], [1]]


def test_the_nearest_pair_comes_first() -> None:
    """Two that are closer to each other than a face is large: the one that is found first is not the nearer one."""
    looks = [[face((100, 100)), face((150, 100))], [face((140, 100)), face((105, 100))]]
    assert tracks(looks) == [[1, 2], [2, 1]]
    looks = [[face((100, 100)), face((150, 100))], [face((142, 100)), face((155, 100))]]
    assert tracks(looks) == [[1, 2], [1, 2]]  # both are nearest to the second, which only the nearer one is


def test_a_missed_face_is_the_same_for_a_second_and_then_new() -> None:
    seen = [face((100, 100))]
    for missed, number in ((24, 1), (26, 2)):
        assert tracks([seen, *[[]] * missed, seen])[-1] == [number]


def test_between_looks_that_lie_far_apart_no_second_is_counted() -> None:
    seen = [face((100, 100))]
    assert tracks([seen] * 4, step=5.0) == [[1]] * 4
    assert tracks([seen, [], seen], step=5.0) == [[1], [], [2]]


def test_numbers_are_not_given_twice() -> None:
    looks = [[face((100, 100))], [face((500, 100))], *[[]] * 30, [face((100, 100)), face((500, 100))]]
    assert tracks(looks)[:2] == [[1], [2]]
    assert tracks(looks)[-1] == [3, 4]
