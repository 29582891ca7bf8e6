"""Builds FER2013 CSV files for tests, with Python's own csv module."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

HEADER = ("emotion", "pixels", "Usage")


def faces(count: int, seed: int = 0) -> np.ndarray:
    """(count, 48, 48) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 48), dtype=np.uint8)


def pixels(face: np.ndarray, separator: str = " ") -> str:
    return separator.join(str(value) for value in face.ravel())


def csv_bytes(
    rows: Sequence[Sequence[object]], header: Sequence[str] = HEADER, newline: str = "\n", quote: bool = False
) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=newline, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
    writer.writerows([header, *rows])
    return text.getvalue().encode()
