"""Pictures that stages make for people: rows of faces with their labels beside them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from preprocessing.datasets import SIZE

LABEL_WIDTH = 110
GAP = 2
GREY = 235


def montage(rows: Sequence[tuple[str, Sequence[np.ndarray]]], zoom: int = 1) -> np.ndarray:
    """Rows of faces, each after its label: (height, width) uint8.

    rows: (label, faces) with faces (48, 48) uint8; a label may have several lines.  zoom: pixels a pixel of a face.
    """
    side = SIZE * zoom
    columns = max([len(faces) for _, faces in rows], default=0)
    image = np.full((len(rows) * (side + GAP) + GAP, LABEL_WIDTH + columns * (side + GAP)), GREY, np.uint8)
    for row, (label, faces) in enumerate(rows):
        top = GAP + row * (side + GAP)
        lines = label.split("\n")
        for i, line in enumerate(lines):
            baseline = top + side // 2 + 5 + round((i - (len(lines) - 1) / 2) * 16)
            cv2.putText(image, line, (8, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0, 1, cv2.LINE_AA)
        for column, face in enumerate(faces):
            left = LABEL_WIDTH + column * (side + GAP)
            image[top : top + side, left : left + side] = cv2.resize(
                face, (side, side), interpolation=cv2.INTER_NEAREST if zoom == 1 else cv2.INTER_CUBIC
            )
    return image
