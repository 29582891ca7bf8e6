"""kill -9 while a data stage puts its output in place: the old output stands or none, and the next run is right.

Kills in the middle of the work of extract and lmdb are in those stages' own tests, those of training in the driver's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_model import write_database

from preprocessing.align import align
from preprocessing.datasets import EMOTION_FOLDERS, SPLITS
from preprocessing.extract import extract
from preprocessing.lmdb import write_databases
from preprocessing.mean import write_mean

ROOT = Path(__file__).resolve().parent.parent

# runs a module that is killed when an operation is about to be done on a path of that name
KILLER = """
import builtins, fnmatch, os, pathlib, runpy, shutil, signal, sys

operation, name, module = sys.argv[1:4]
del sys.argv[1:4]

def kill_at(owner, attribute, which):
    function = getattr(owner, attribute)

    def call(*arguments, **settings):
        path = arguments[which]
        reads = attribute == "open" and not {"w", "wb"}.intersection(arguments[1:2])
        if not reads and isinstance(path, (str, os.PathLike)) and fnmatch.fnmatchcase(os.path.basename(path), name):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)

    setattr(owner, attribute, call)

if operation == "rename":
    kill_at(pathlib.Path, "rename", 0)
elif operation == "replace":
    kill_at(os, "replace", 1)
elif operation == "write":
    kill_at(builtins, "open", 0)
elif operation == "rmtree":
    kill_at(shutil, "rmtree", 0)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def write_csv(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = ["emotion,pixels,Usage"]
    for i in range(9):
        pixels = " ".join(map(str, random.integers(0, 256, 48 * 48)))
        rows.append(f"{i % 7},{pixels},{SPLITS[i % 3]}")
    path.write_text("\n".join(rows) + "\n")


def write_images(path: Path, seed: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    random = np.random.default_rng(seed)
    for i in range(6):
        folder = path / SPLITS[i % 3] / EMOTION_FOLDERS[i % 7]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i:05d}.png"), random.integers(0, 256, (24, 24), dtype=np.uint8))


def write_train_lmdb(path: Path, seed: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    random = np.random.default_rng(seed)
    write_database(path, list(random.integers(0, 256, (5, 8, 8), dtype=np.uint8)), [0] * 5)


# a stage: its module, its input and how that is made, its output, and how it is run
Stage = tuple[str, str, Callable[[Path, int], None], str, Callable[[Path, Path], object]]
STAGES: dict[str, Stage] = {
    "extract": ("preprocessing.extract", "faces.csv", write_csv, "images", extract),
    "align": ("preprocessing.align", "images", write_images, "aligned", lambda a, b: align(a, b, device="cpu")),
    "lmdb": ("preprocessing.lmdb", "images", write_images, "lmdb", write_databases),
    "mean": ("preprocessing.mean", "train_lmdb", write_train_lmdb, "mean.binaryproto", write_mean),
}  # fmt: skip


def contents(path: Path) -> dict[str, object]:
    """What an output holds, by name; of a manifest only what does not differ between runs."""
    found: dict[str, object] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []:
        if file.is_file():
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            found[name] = json.loads(file.read_text())["counts"] if name == "manifest.json" else file.read_bytes()
    return found


@pytest.mark.parametrize(
    ("stage", "operation", "name", "left"),
    [
        ("extract", "rename", "images", "old"),  # all is written, nothing is moved yet
        ("extract", "rename", ".partial-*", "nothing"),  # the old output is out of the way, the new not in place
        ("extract", "rmtree", ".old-*", "new"),  # only the old output is still to be cleared
        ("align", "write", "00004.png", "old"),  # in the middle of the work
        ("align", "rename", ".partial-*", "nothing"),
        ("lmdb", "rename", ".partial-*", "nothing"),
        ("mean", "replace", "mean.png", "old"),
        ("mean", "replace", "mean.binaryproto", "old"),  # the picture and the manifest are new, the mean is not
    ],
)
def test_killed(tmp_path: Path, stage: str, operation: str, name: str, left: str) -> None:
    module, source_name, make, output_name, run = STAGES[stage]
    source, output, fresh = tmp_path / source_name, tmp_path / output_name, tmp_path / "fresh" / output_name
    make(source, 0)
    run(source, output)
    old = contents(output)
    make(source, 1)
    run(source, fresh)
    new = contents(fresh)
    assert old.keys() == new.keys()
    assert old != new

    command = [sys.executable, "-c", KILLER, operation, name, module, str(source), str(output)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert contents(output) == {"old": old, "new": new, "nothing": {}}[left]

    run(source, output)
    assert contents(output) == new
    beside = {"mean.png", "mean.manifest.json"} if stage == "mean" else set()
    left_there = {path.name for path in tmp_path.iterdir()}
    assert left_there == {source_name, "fresh", output_name, *beside}, "something partial is left"
    if stage == "mean":
        assert (tmp_path / "mean.png").read_bytes() == (tmp_path / "fresh" / "mean.png").read_bytes()
