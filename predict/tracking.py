"""Which face of one frame is which of the next: a number that a face keeps through a video, by where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .recognizer import Prediction

Box = tuple[float, float, float, float]  # x, y, width, height

LONGEST_LOSS = 1.0  # seconds in which a face may be missed and is the same afterwards


class Tracker:
    """Numbers the faces in the frames of one video: 1, 2, … in the order in which they first appear.

    A face is the nearest one of the last look, or of the second before, if their centres are no further apart than
    they are large; the nearest pairs come first (as in CenterTrack, Zhou et al. 2020). Nothing else is compared: who
    leaves and comes back is new, and who stands in another's place after a cut has the other's number.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Box, float]] = {}  # by number: where and when each was seen last
        self._numbered = 0
        self._last_look = 0.0

    def number(self, predictions: Sequence[Prediction], seconds: float) -> list[Prediction]:
        """The faces of the next frame that was looked at, in their order, each with its `track`."""
        oldest = min(self._last_look, seconds - LONGEST_LOSS)
        self._known = {number: (box, seen) for number, (box, seen) in self._known.items() if seen >= oldest}
        numbers = self._same([face.box for face in predictions])
        for place, face in enumerate(predictions):
            if place not in numbers:
                self._numbered += 1
                numbers[place] = self._numbered
            self._known[numbers[place]] = face.box, seconds
        self._last_look = seconds
        return [replace(face, track=numbers[place]) for place, face in enumerate(predictions)]

    def _same(self, boxes: Sequence[Box]) -> dict[int, int]:
        """By the place of a box the number of the face that it belongs to, where there is one."""
        near = sorted(
            (distance, place, number)
            for place, box in enumerate(boxes)
            for number, (known, _) in self._known.items()
            if (distance := _distance(box, known)) <= 1
        )
        numbers: dict[int, int] = {}
        given: set[int] = set()
        for _, place, number in near:
            if place not in numbers and number not in given:
                numbers[place] = number
                given.add(number)
        return numbers


def _distance(a: Box, b: Box) -> float:
    """Of the boxes' centres, in sides of the square that is as large as the smaller box."""
    apart = math.hypot(a[0] + a[2] / 2 - b[0] - b[2] / 2, a[1] + a[3] / 2 - b[1] - b[3] / 2)
    return apart / math.sqrt(max(1.0, min(a[2] * a[3], b[2] * b[3])))
