"""Outputs that several processes replace at the same time, and what killed ones leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.stage import replace_directory, replace_file

ROOT = Path(__file__).resolve().parents[2]

# replaces a file and a folder many times by what is 50,000 times the same number
WRITER = """
import sys
from pathlib import Path
from preprocessing.stage import replace_directory, replace_file

folder, number = Path(sys.argv[1]), sys.argv[2]
for _ in range(150):
    with replace_file(folder / "file.txt") as partial:
        partial.write_text(50_000 * number)
    with replace_directory(folder / "made") as partial:
        for name in ("a", "b"):
            (partial / name).write_text(number)
"""


def test_processes_that_replace_the_same_output(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), number], cwd=ROOT, stderr=subprocess.PIPE)
        for number in "123"
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors.decode()) == (0, "")
    text = (tmp_path / "file.txt").read_text()
    assert text in [50_000 * number for number in "123"]
    assert (tmp_path / "made/a").read_text() == (tmp_path / "made/b").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "made"]


def test_what_a_killed_process_left_is_cleared_and_what_another_writes_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with replace_file(tmp_path / "a b.txt") as ours:
        (tmp_path / f".partial.{ended.pid}-0.a b.txt").write_text("left")
        (tmp_path / f".partial.{ended.pid}-0.other.txt").write_text("of another output")
        with replace_file(tmp_path / "a b.txt") as again:
            assert again != ours
            again.write_text("second")
        ours.write_text("first")
    assert (tmp_path / "a b.txt").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".partial.{ended.pid}-0.other.txt", "a b.txt"]


def test_an_error_leaves_the_old_output(tmp_path: Path) -> None:
    with replace_directory(tmp_path / "made") as partial:
        (partial / "old").touch()

    def stop(folder: Path) -> None:
        (folder / "new").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError), replace_directory(tmp_path / "made") as partial:
        stop(partial)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
