"""A short run of the fuzzer in tests/fuzz: its seeds and changes of them; only CaffeError may come out of a reader."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the fuzzer's limits are read from /proc", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fuzz"))
import fuzz_readers

CHANGES = 12  # of each seed


@pytest.fixture(scope="module", autouse=True)
def cleared_afterwards() -> Iterator[None]:
    yield
    shutil.rmtree(fuzz_readers.folder(), ignore_errors=True)
    fuzz_readers.folder.cache_clear()


@pytest.mark.parametrize("name", list(fuzz_readers.TARGETS))
def test_only_documented_errors(name: str) -> None:
    """A target lets CaffeError pass as an answer; whatever else its reader raises fails the test."""
    paths = fuzz_readers.seeds(name)
    assert paths
    for path in paths:
        data = path.read_bytes()
        fuzz_readers.TARGETS[name](data)
        for seed in range(CHANGES):
            fuzz_readers.TARGETS[name](fuzz_readers.changed(name, data, seed))
