"""FER2013's names, the reader of its CSV (also inside Kaggle's archive), and the stages' own tree of images.

The layouts of other data sets are in `layouts/`. Everything is read as a stream or a listing; no reader holds a data
set in memory.
"""

from __future__ import annotations

import csv
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import cv2
import numpy as np

from preprocessing.stage import StageError

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SPLITS = ("Training", "PublicTest", "PrivateTest")
EMOTION_FOLDERS = tuple(f"{label}_{emotion}" for label, emotion in enumerate(EMOTIONS))
_CLASS_FOLDER = re.compile(r"(0|[1-9][0-9]*)_(.+)")
SIZE = 48  # a face is SIZE x SIZE grey levels
PIXELS = SIZE * SIZE

BATCH_ROWS = 16  # rows parsed together: enough for whole-array arithmetic, and all of it stays in the processor's cache
BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 1 << 16  # a plain row has at most 9,300 bytes; beyond this it is not a row
BLANK_RANGE = 4  # grey levels between the darkest and the brightest pixel of a blank face: one level, and JPEG's noise
COLUMNS = ("emotion", "pixels", "Usage")
PNG_LEVEL = 1  # zlib's fastest: level 9 saves 3 % of such small files


def class_folders(classes: Sequence[str]) -> tuple[str, ...]:
    """The folders of a tree's classes, in the order of their labels: `0_angry`, …."""
    return tuple(f"{label}_{name}" for label, name in enumerate(classes))


class Face(NamedTuple):
    """One face of a tree of images: `file` is its path relative to the tree's folder, with '/'."""

    file: str
    split: str
    label: int


def tree_classes(tree: Path) -> tuple[str, ...]:
    """The names of a tree's classes, in the order of their labels: those of its folders `SPLIT/LABEL_NAME`.

    A split may lack folders that another one has; the stages write all of them, empty ones too. Raises StageError when
    the tree is missing or has no such folder, when a label from 0 on has none, and when a label has two names or a name
    two labels.
    """
    tree = Path(tree)
    if not tree.is_dir():
        raise StageError(f"{tree}: no such folder; expected the images that extract or align writes")
    folders = {path.name for split in SPLITS for path in (tree / split).glob("*_*") if path.is_dir()}
    named = sorted((int(match[1]), match[2]) for match in map(_CLASS_FOLDER.fullmatch, folders) if match)
    example = f"{SPLITS[0]}/{EMOTION_FOLDERS[0]}/NNNNN.png and so on"
    if not named:
        raise StageError(f"{tree}: no faces; expected {example}")
    names = [name for _, name in named]
    if [label for label, _ in named] != list(range(len(named))) or len(set(names)) != len(names):
        shown = ", ".join(f"{label}_{name}" for label, name in named)
        raise StageError(f"{tree}: its folders are {shown}; expected one for each label from 0 on, as in {example}")
    return tuple(names)


def list_faces(tree: Path) -> list[Face]:
    """The faces of a tree that `extract` or `align` wrote, by split, then class, then number.

    Raises StageError when the folder is missing or holds no face, and for folders that `tree_classes` refuses.
    """
    tree = Path(tree)
    faces = []
    folders = class_folders(tree_classes(tree))
    for split in SPLITS:
        for label, folder in enumerate(folders):
            path = tree / split / folder
            names = [name for name in os.listdir(path) if name.endswith(".png")] if path.is_dir() else []
            names.sort(key=lambda name: (len(name), name))
            faces += [Face(f"{split}/{folder}/{name}", split, label) for name in names]
    if not faces:
        raise StageError(f"{tree}: no faces; expected {SPLITS[0]}/{folders[0]}/NNNNN.png and so on")
    return faces


def make_tree(folder: Path, classes: Sequence[str]) -> None:
    """Make the folders of a tree in an empty one: `Training/0_angry`, …."""
    for split in SPLITS:
        for class_folder in class_folders(classes):
            (folder / split / class_folder).mkdir(parents=True)


def read_grey(path: str | Path) -> np.ndarray:
    """An image of a tree, uint8 height×width. Raises StageError for what is none, OSError where it cannot be read."""
    with open(path, "rb") as f:
        data = np.frombuffer(f.read(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if len(data) else None
    if image is None:
        raise StageError(f"{path}: not a readable image; expected a PNG file, as extract writes it")
    return image


def write_grey(path: str | Path, image: np.ndarray) -> None:
    """Write an image of a tree, uint8 height×width, as a PNG file. Raises OSError where the disk is full."""
    _, data = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL))
    with open(path, "wb") as f:  # not cv2.imwrite, which says nothing but False when the disk is full
        f.write(data.data)


def is_blank(faces: np.ndarray) -> np.ndarray:
    """Which of the (n, height, width) uint8 faces show nothing: (n,) bool."""
    return faces.max((1, 2)) - faces.min((1, 2)) <= BLANK_RANGE


# ---------------------------------------------------------------------------------------------------------------------
# The CSV
# ---------------------------------------------------------------------------------------------------------------------

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)  # what reading a damaged archive may raise


class Line(NamedTuple):
    """One line of the file: its number, counted from 1, and its bytes, or None when longer than MAX_ROW_BYTES."""

    number: int
    data: bytes | None


@dataclass
class Rows:
    """A batch of rows: those that are right as arrays, the others with their reasons.

    lines: (n,) int64, each row's line in the file, counted from 1.
    labels: (n,) uint8, 0..6 (0..7 where the reader takes contempt).  splits: (n,) uint8, indices into SPLITS.
    pixels: (n, 48, 48) uint8.
    rejected: (line, reason) of every bad row, in the order of the file.
    """

    lines: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    pixels: np.ndarray
    rejected: list[tuple[int, str]]


class CsvReader:
    """Reads FER2013's CSV in batches: `fer2013.csv`, `icml_face_data.csv`, or either inside a tar archive.

    Columns are found by name (spaces around it and case do not matter), in any order; further columns are ignored.
    Quoted fields, CRLF line ends, a UTF-8 byte-order mark, blank lines, and more than one space between pixels are
    allowed. Use as a context manager; `batches` reads in one thread, `parse` may run in several.

    contempt: take the label 7 as well, as the CSV form of CK+ has it.

    Raises StageError when the file is no such CSV; a bad row is not an exception but an entry in `Rows.rejected`.
    """

    def __init__(self, path: Path, contempt: bool = False) -> None:
        self.path = Path(path)
        self._labels = {str(label).encode(): label for label in range(len(EMOTIONS) + contempt)}
        self._unended = 0  # number of a last line that has no line end

    def __enter__(self) -> CsvReader:
        with ExitStack() as stack:
            self._lines = self._read_lines(self._open(stack))
            self._read_header()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack) -> IO[bytes]:
        """The CSV's bytes: the file itself, or the first CSV of a known name inside an archive."""
        file = stack.enter_context(open(self.path, "rb"))  # noqa: SIM115 - the stack closes it
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            raise StageError(f"{self.path}: a zip archive; unpack it and give the CSV or the folder in it")
        if not (head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or head[257:262] == b"ustar"):
            return file
        try:
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r|*"))  # noqa: SIM115 - as above
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in ("fer2013.csv", "icml_face_data.csv"):
                    stream = archive.extractfile(member)
                    assert stream is not None  # a regular file always has one
                    return stream
        except _DAMAGED as error:
            raise StageError(
                f"{self.path}: not a readable tar archive, or cut off: {error}; expected fer2013.tar.gz or the CSV"
            ) from error
        raise StageError(f"{self.path}: no fer2013.csv or icml_face_data.csv in this archive")

    def _read_lines(self, stream: IO[bytes]) -> Iterator[Line]:
        """The file's lines without their ends; of a line that is too long only the beginning is ever held."""
        number, rest, too_long = 0, b"", False
        while True:
            try:
                block = stream.read(BLOCK_BYTES)
            except _DAMAGED as error:
                raise StageError(
                    f"{self.path}: the archive is damaged or cut off in row {number + 1}: {error}"
                ) from error
            if not block:
                break
            parts = block.split(b"\n")
            parts[0] = rest + parts[0]
            rest = parts.pop()
            for part in parts:
                number += 1
                yield Line(number, None if too_long or len(part) > MAX_ROW_BYTES else part)
                too_long = False
            if len(rest) > MAX_ROW_BYTES:
                rest, too_long = b"", True
        if rest or too_long:
            self._unended = number + 1
            yield Line(number + 1, None if too_long else rest)

    def _read_header(self) -> None:
        expected = "expected a header with the columns emotion, pixels, Usage, commas between them"
        line = next(self._lines, None)
        if line is None:
            raise StageError(f"{self.path}: the file is empty; {expected}")
        if line.data is None:
            raise StageError(f"{self.path}, row 1: longer than {MAX_ROW_BYTES} bytes; {expected}")
        try:
            text = line.data.decode("utf-8-sig")
            names = [name.strip() for name in next(csv.reader([text.rstrip("\r")], strict=True), [])]
        except (UnicodeDecodeError, csv.Error) as error:
            raise StageError(f"{self.path}, row 1: not UTF-8 text in CSV format ({error}); {expected}") from error
        shown = ", ".join(names)
        shown = shown if len(shown) <= 80 else shown[:80] + "…"
        positions = []
        for column in COLUMNS:
            found = [i for i, name in enumerate(names) if name.lower() == column.lower()]
            if len(found) != 1:
                problem = f"column {column!r} stands {len(found)} times" if found else f"no column {column!r}"
                raise StageError(f"{self.path}, row 1: {problem} in {shown!r}; {expected}")
            positions += found
        self._columns = len(names)
        self._emotion, self._pixels, self._usage = positions

    def batches(self) -> Iterator[list[Line]]:
        """The rows after the header, without blank lines, in lists of up to BATCH_ROWS lines for `parse`."""
        batch: list[Line] = []
        for line in self._lines:
            if line.data is not None and not line.data.strip():
                continue
            batch.append(line)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch

    def parse(self, batch: list[Line]) -> Rows:
        """Check and convert a batch of lines."""
        rejected: list[tuple[int, str]] = []
        lines, labels, splits, texts = [], [], [], []
        for number, data in batch:
            try:
                label, split, text = self._split_row(data)
            except ValueError as error:
                rejected.append((number, str(error)))
                continue
            lines.append(number)
            labels.append(label)
            splits.append(split)
            texts.append(text)
        pixels = _parse_plain(texts)
        if pixels is None:  # some row is not plain: take them one by one
            pixels, good = np.empty((len(texts), PIXELS), np.uint8), np.ones(len(texts), bool)
            for i, text in enumerate(texts):
                try:
                    plain = _parse_plain([text])
                    pixels[i] = _parse_any(text) if plain is None else plain[0]
                except ValueError as error:
                    rejected.append((lines[i], str(error)))
                    good[i] = False
        else:
            good = np.ones(len(texts), bool)
        rejected.sort()
        if rejected and rejected[-1][0] == self._unended:
            rejected[-1] = (self._unended, f"{rejected[-1][1]} (the file ends within this row: is it cut off?)")
        return Rows(
            lines=np.array(lines, np.int64)[good],
            labels=np.array(labels, np.uint8)[good],
            splits=np.array(splits, np.uint8)[good],
            pixels=pixels[good].reshape(-1, SIZE, SIZE),
            rejected=rejected,
        )

    def _split_row(self, data: bytes | None) -> tuple[int, int, bytes]:
        """Label, index of the split, and the text of the pixels; ValueError with the reason for a bad row."""
        if data is None:
            raise ValueError(f"longer than {MAX_ROW_BYTES} bytes; expected {PIXELS} pixels, at most 9,300 bytes")
        fields = data.split(b",") if b'"' not in data else _split_quoted(data)
        if len(fields) != self._columns:
            raise ValueError(f"{len(fields)} fields; expected {self._columns}, as in the header{_encoding_note(data)}")
        emotion, usage = fields[self._emotion].strip(), fields[self._usage].strip()
        label, split = self._labels.get(emotion), _SPLITS.get(usage)
        if label is None:
            raise ValueError(f"label {_show(emotion)}; expected 0..{len(self._labels) - 1}{_encoding_note(data)}")
        if split is None:
            raise ValueError(f"usage {_show(usage)}; expected {', '.join(SPLITS)}{_encoding_note(data)}")
        return label, split, fields[self._pixels].strip()


_SPLITS = {split.encode(): index for index, split in enumerate(SPLITS)}
_PIXEL = re.compile(rb"[0-9]{1,3}")


def _show(text: bytes) -> str:
    """A field for an error message: short, and every byte that is not printable ASCII escaped."""
    shown = ascii(text[:40].decode("latin-1"))
    return shown + ("…" if len(text) > 40 else "")


def _encoding_note(data: bytes) -> str:
    """Says so when a row holds bytes that no row should have."""
    if b"\0" in data:
        return f" (NUL byte at byte {data.index(0) + 1} of the row)"
    try:
        data.decode("ascii")
    except UnicodeDecodeError as error:
        return f" (byte 0x{data[error.start]:02x} at byte {error.start + 1} of the row is not ASCII)"
    return ""


def _split_quoted(data: bytes) -> list[bytes]:
    if b"\0" in data:
        raise ValueError(f"a NUL byte{_encoding_note(data)}; expected plain text")
    try:
        fields = next(csv.reader([data.decode("latin-1").rstrip("\r")], strict=True))
    except csv.Error as error:
        raise ValueError(f"broken quotes ({error}); expected a quote at both ends of a field") from error
    return [field.encode("latin-1") for field in fields]


def _parse_plain(texts: list[bytes]) -> np.ndarray | None:
    """The pixels of many rows at once: (n, 2304) uint8, or None unless every row is plain and right.

    Plain: 2304 numbers of one to three digits, 0..255, with one space between them. All digits of the batch are
    converted by whole-array arithmetic: a number ends before each space, its digits are the one to three bytes there.
    """
    if not texts:
        return np.empty((0, PIXELS), np.uint8)
    data = np.frombuffer(b"  " + b" ".join(texts) + b" ", np.uint8)  # two more in front, so that end - 3 is an index
    spaces = np.flatnonzero(data == ord(" "))
    ends, digits = spaces[2:], np.diff(spaces[1:]) - 1
    if len(ends) != len(texts) * PIXELS or digits.min() < 1 or digits.max() > 3:
        return None
    row_ends = 2 + np.cumsum([len(text) + 1 for text in texts]) - 1
    if not np.array_equal(ends[PIXELS - 1 :: PIXELS], row_ends):
        return None
    values = data - np.uint8(ord("0"))
    values[spaces] = 0
    if values.max() > 9:
        return None
    total = values.take(ends - 1).astype(np.uint16)
    total += values.take(ends - 2) * np.uint8(10)
    total += values.take(ends - 3) * np.uint16(100) * (digits == 3)
    return total.astype(np.uint8).reshape(-1, PIXELS) if total.max() <= 255 else None


def _parse_any(text: bytes) -> np.ndarray:
    """The pixels of one row that is not plain, or ValueError with the first thing that is wrong with it."""
    tokens = text.split()
    for position, token in enumerate(tokens, 1):
        if not _PIXEL.fullmatch(token) or int(token) > 255:
            raise ValueError(
                f"pixel {position} is {_show(token)}; expected an integer of 0..255{_encoding_note(token)}"
            )
    if len(tokens) != PIXELS:
        raise ValueError(f"{len(tokens)} pixels; expected {PIXELS} ({SIZE}x{SIZE})")
    return np.array([int(token) for token in tokens], np.uint8)
