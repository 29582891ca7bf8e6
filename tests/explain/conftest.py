"""Fixtures of the tests of explain."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from small_face_net import DEPLOY, random_face, write_network


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The options that name a small net; `face.png` in tmp_path is a face for it."""
    deploy, weights, mean = write_network(tmp_path / "model", DEPLOY)
    cv2.imwrite(str(tmp_path / "face.png"), random_face())
    return ["--deploy", str(deploy), "--weights", str(weights), "--mean", str(mean), "--device", "cpu"]
