"""Fixtures that the tests share: where the reference values are, when they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference values (`FER_SHARED`, or `shared` beside the repository); skips where absent."""
    folder = Path(os.environ.get("FER_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference values at {folder} (set FER_SHARED)")
    return folder
