"""Outputs that several processes replace at the same time, and what killed ones leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocessing.stage import DAY, Stage, StageError, _machine, replace_directory, replace_file, sha256

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


# begins to replace a file and a folder, says so, and waits
HOLDER = """
import sys, time
from pathlib import Path
from preprocessing.stage import replace_directory, replace_file

folder = Path(sys.argv[1])
with replace_directory(folder / "made") as partial, replace_file(folder / "a b.txt") as file:
    (partial / "half").touch()
    file.write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def test_what_a_killed_process_left_is_cleared_and_what_another_writes_is_not(tmp_path: Path) -> None:
    killed, running = hold(tmp_path), hold(tmp_path)
    killed.kill()
    killed.wait()
    try:
        assert len(list(tmp_path.iterdir())) == 4
        # as another process number 1 in another container would name it, today and two days ago
        foreign = [tmp_path / f".partial-{machine}-1-00000000" for machine in ("00000000", "11111111")]
        for path in foreign:
            path.mkdir()
        os.utime(foreign[1], (time.time() - 2 * DAY,) * 2)
        with replace_file(tmp_path / "a b.txt") as ours, replace_file(tmp_path / "a b.txt") as again:
            assert again != ours
            for path in (ours, again):
                path.write_text("whole")
        left = sorted(path.name for path in tmp_path.iterdir())
        assert len(left) == 4, left
        assert {"a b.txt", foreign[0].name} < set(left)
        assert sum(f"-{running.pid}-" in name for name in left) == 2
    finally:
        running.kill()
        running.wait()


def test_a_process_with_the_number_of_the_one_that_was_killed(tmp_path: Path) -> None:
    """As the first process of a container has, time and again."""
    left = tmp_path / f".partial-{_machine()}-{os.getpid()}-00000000"
    left.mkdir()
    with replace_directory(tmp_path / "made") as partial:
        (partial / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_names_as_long_as_names_may_be(tmp_path: Path) -> None:
    name = 251 * "n" + ".txt"
    with replace_file(tmp_path / name) as partial:
        partial.write_text("written")
    assert (tmp_path / name).read_text() == "written"


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_folder_where_the_file_is_to_be(tmp_path: Path) -> None:
    """The error names the file alone, and nothing is left beside the folder."""
    target = tmp_path / "file.txt"
    target.mkdir()
    with pytest.raises(IsADirectoryError, match=r"'[^']*file\.txt'$"), replace_file(target) as partial:
        partial.write_text("new")
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("replace", [replace_directory, replace_file])
def test_a_full_disk_is_an_error_that_names_the_output(tmp_path: Path, replace: Callable) -> None:
    def write_too_much() -> None:
        with open("/dev/full", "w") as f:  # as any file on a full disk
            f.write("text")

    with pytest.raises(OSError, match="No space left on device") as caught, replace(tmp_path / "made"):
        write_too_much()
    assert caught.value.filename == str(tmp_path / "made")
    with pytest.raises(FileNotFoundError) as caught, replace(tmp_path / "made"):
        (tmp_path / "input").read_text()
    assert caught.value.filename == str(tmp_path / "input")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("change", ["written to", "replaced", "removed"])
def test_an_input_that_changes_while_a_stage_reads_is_an_error(tmp_path: Path, change: str) -> None:
    file, other = tmp_path / "manifest.json", tmp_path / "other.json"
    for seconds, path in enumerate((file, other)):
        path.write_text("old")
        os.utime(path, (seconds, seconds))
    stage = Stage("align", [file, tmp_path / "none.json"])
    file.read_text()
    stage.check_inputs()
    if change == "written to":
        file.write_text("new one")
    elif change == "replaced":
        other.replace(file)
    else:
        file.unlink()
    with pytest.raises(StageError, match=r"manifest\.json: changed while align was reading; run it again"):
        stage.check_inputs()


def test_an_input_that_changes_while_its_sha256_is_taken_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.csv"
    file.write_text("old")

    def slow(path: Path) -> str:
        digest = sha256(path)
        path.write_text("new one")
        return digest

    monkeypatch.setattr("preprocessing.stage.sha256", slow)
    stage = Stage("extract", [file])
    with pytest.raises(StageError, match=r"large\.csv: changed while extract was reading"):
        stage.check_inputs()
