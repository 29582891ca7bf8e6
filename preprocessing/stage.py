"""What every stage shares: all-or-nothing outputs, the manifest, progress, and errors without a traceback.

A stage writes into a temporary path beside its target and renames it at the end, so that a kill or a full disk
leaves the old output or none, never half of a new one.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
DAY = 24 * 3600  # seconds
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a file
_calls: Counter[Path] = Counter()  # of `temporary`, by folder
_given: set[str] = set()  # names of this process


class StageError(Exception):
    """Bad input or a bad argument: the message says what is wrong, where, and what was expected."""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_output(source: Path, output: Path) -> None:
    """The output folder is replaced as a whole, so it must be a stage's own, or new, and not hold the input.

    Raises StageError where it is not.
    """
    inside, outside = source.resolve(), output.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise StageError(f"{output}: overlaps with the input {source}; expected another folder")
    if output.is_dir():
        if any(output.iterdir()) and not (output / "manifest.json").is_file():
            raise StageError(
                f"{output}: a folder that this stage did not write (no manifest.json); expected a new name"
            )
    elif output.exists():
        raise StageError(f"{output}: a file; expected a folder")


def temporary(target: Path, kind: str = "partial") -> Path:
    """A path beside `target`, of the same suffix, that no other process and no other call has.

    Makes the folder that they lie in. What killed processes have left there is cleared at the first, second, fourth,
    eighth, … call of a process for that folder, which may hold many files.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent.resolve()
    _calls[folder] += 1
    if _calls[folder].bit_count() == 1:
        for entry in list(os.scandir(folder)):
            match = re.fullmatch(r"\.(?:partial|old)-([0-9a-f]+)-(\d+)-[0-9a-f]+(\..*)?", entry.name)
            if match and entry.name not in _given and _is_left(Path(entry.path), match[1], int(match[2])):
                with suppress(OSError):  # another process may be clearing it
                    _remove(Path(entry.path))
    name = f".{kind}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{target.suffix}"
    _given.add(name)
    return target.parent / name


@cache
def _machine() -> str:
    """Where the numbers of processes mean the same: a name for this machine and container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return hashlib.blake2b(f"{platform.node()} {space}".encode(), digest_size=4).hexdigest()


def _is_left(path: Path, machine: str, process: int) -> bool:
    """Whether what a process was writing is written no more: it runs no more, or elsewhere and was silent for a day."""
    if machine != _machine():
        try:
            return time.time() - path.stat().st_mtime > DAY
        except OSError:
            return False
    if process == os.getpid():  # an earlier process had this one's number
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        pass
    return False


@contextmanager
def _naming(target: Path, partial: Path) -> Iterator[None]:
    """An error of writing names `target`: Python names no file where the disk is full, and `partial` nobody knows."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL or str(error.filename).startswith(str(partial)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


@contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an error.

    On an error the temporary folder is removed and `target` stays as it was. Of processes that replace the same folder
    at the same time, the one that ends last has its own there.
    """
    target = Path(target)
    partial, old = temporary(target), temporary(target, "old")
    try:
        with _naming(target, partial):
            partial.mkdir()
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    while True:
        with suppress(FileNotFoundError):  # there is none, or another process has just taken it away
            target.rename(old)
        try:
            partial.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process has put its own there
                raise
            _remove(old)
    _remove(old)


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, of the same suffix, that takes its place when the block ends without an error."""
    target = Path(target)
    partial = temporary(target)
    try:
        with _naming(target, partial):
            yield partial
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as f:
        digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced or written to; None where there is no such file.

    Not its number, which some network file systems give anew each time.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


class Stage:
    """Counts and times one run of a stage, writes its manifest and its one summary line.

    Parameters
    ----------
    name: the stage's name, as Make's target calls it.
    inputs: files whose SHA-256 goes into the manifest (for a folder of images: its `manifest.json`).
    settings: the options that decide what the output is (seed, size, …), as JSON values.
    """

    def __init__(self, name: str, inputs: Iterable[Path] = (), settings: dict[str, Any] | None = None) -> None:
        self.name = name
        self.inputs = [Path(p) for p in inputs]
        self._versions = {path: _version(path) for path in self.inputs}
        # those of now: a training takes hours, at whose end they may be others
        self._hashes = {path: sha256(path) for path in self.inputs if path.is_file()}
        self.settings = dict(settings or {})
        self.counts: dict[str, Any] = {}
        self.rejected: list[dict[str, Any]] = []  # one entry a rejected record: where it stands, and why
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.perf_counter() - self._start

    def check_inputs(self) -> None:
        """Raise StageError where an input is another file than when the stage began: what was read may be of both."""
        for path, before in self._versions.items():
            if _version(path) != before:
                raise StageError(f"{path}: changed while {self.name} was reading; run it again when nothing writes it")

    def write_manifest(self, path: Path) -> None:
        """Write the manifest as JSON to `path` (inside the stage's temporary folder, or a `replace_file` path)."""
        packages: dict[str, str | None] = {}
        for package in ("torch", "numpy", "opencv-python-headless", "lmdb"):
            try:
                packages[package] = version(package)
            except PackageNotFoundError:
                packages[package] = None
        manifest = {
            "stage": self.name,
            "settings": self.settings,
            "inputs": [{"file": str(p), "sha256": self._hashes.get(p) or sha256(p)} for p in self.inputs],
            "counts": self.counts,
            "rejected": self.rejected,
            "seconds": round(self.seconds, 3),
            "versions": {"python": platform.python_version(), **packages},
        }
        Path(path).write_text(json.dumps(manifest, indent=1) + "\n")

    def summary(self, text: str) -> None:
        """Print the stage's one line for people: `NAME: TEXT (S s)`."""
        print(f"{self.name}: {text} ({self.seconds:.1f} s)", flush=True)


def progress(iterable: Iterable[T], total: int | None, label: str, unit: str = "it") -> Iterable[T]:
    """`iterable` behind a progress bar on a terminal; elsewhere as it is (the summary line says what was done)."""
    return tqdm(iterable, total=total, desc=label, unit=unit, disable=not sys.stderr.isatty(), leave=False)


def worker_count(workers: int | None) -> int:
    """How many threads or processes a stage takes: `--workers`, by default one for each core.

    Raises StageError for fewer than 1.
    """
    if workers is None:
        return os.cpu_count() or 1
    if workers < 1:
        raise StageError(f"--workers is {workers}; expected 1 or more")
    return workers


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device auto|cpu|cuda|cuda:N`, default auto: a GPU where there is one."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def run_main(main: Callable[[], int | None]) -> None:
    """Run a stage's `main` and exit: 1 with the message and no traceback on bad input, 130 on Ctrl-C."""
    try:
        code = main()
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: what was not finished is not there", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
