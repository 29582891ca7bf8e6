"""Fixtures that the tests share: where the reference values are, when they are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import caffe

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread here and in the processes that tests start: the nets are so small that two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference values (`FER_SHARED`, or `shared` beside the repository); skips where absent."""
    folder = Path(os.environ.get("FER_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference values at {folder} (set FER_SHARED)")
    return folder


@pytest.fixture
def on_gpu() -> Iterator[None]:
    """GPU mode, in a float32 that is no less exact than a CPU's; skips where there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    caffe.set_mode_gpu()
    yield
    caffe.set_mode_cpu()
    torch.backends.cudnn.allow_tf32 = before
