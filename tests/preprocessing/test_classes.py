"""classes.txt: names of a data set's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.classes import CLASSES_FILE, default_classes, read_classes, write_classes
from preprocessing.datasets import EMOTIONS
from preprocessing.stage import StageError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path, ["bored", "très content", "happy"])
    assert (tmp_path / CLASSES_FILE).read_text(encoding="utf-8") == "bored\ntrès content\nhappy\n"
    assert read_classes(tmp_path) == ("bored", "très content", "happy")


def test_a_folder_without_names_has_none(tmp_path: Path) -> None:
    assert read_classes(tmp_path) is None


def test_what_no_file_names_is_named_by_its_count() -> None:
    assert default_classes(7) == EMOTIONS
    assert default_classes(8) == (*EMOTIONS, "contempt")
    assert default_classes(3) == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"happy\n\nsad\n", "line 2: ''"),
        (b"happy\nsad\nhappy\n", "line 3: 'happy'"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / CLASSES_FILE).write_bytes(content)
    with pytest.raises(StageError, match=message) as error:
        read_classes(tmp_path)
    assert str(tmp_path / CLASSES_FILE) in str(error.value)
