"""Fixtures for the data stages' tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """The sample photo: 512x512 BGR, one face with its box at about 182, 64, 83 wide and 107 high."""
    image = cv2.imread(str(Path(__file__).resolve().parents[2] / "images" / "astronaut.png"))
    image.setflags(write=False)
    return image
