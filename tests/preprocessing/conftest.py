"""Fixtures for the data stages' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """The sample photo: 512x512 BGR, one face with its box at about 182, 64, 83 wide and 107 high."""
    image = cv2.imread(str(Path(__file__).resolve().parents[2] / "images" / "astronaut.png"))
    image.setflags(write=False)
    return image


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: on a busy machine several wait for each other far longer than these small nets compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
