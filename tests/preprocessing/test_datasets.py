"""The readers of FER2013's CSV and of trees of images: what they accept, what they refuse, and what they say."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fer_csv import HEADER, csv_bytes, faces, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_folders

from preprocessing.datasets import CsvReader, Rows, is_blank, list_faces, tree_classes
from preprocessing.stage import StageError


def read(path: Path) -> Rows:
    """All rows of a small CSV."""
    with CsvReader(path) as reader:
        parts = [reader.parse(batch) for batch in reader.batches()]
    return Rows(
        lines=np.concatenate([part.lines for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        splits=np.concatenate([part.splits for part in parts]),
        pixels=np.concatenate([part.pixels for part in parts]),
        rejected=[reject for part in parts for reject in part.rejected],
    )


def read_bytes(folder: Path, data: bytes) -> Rows:
    path = folder / "faces.csv"
    path.write_bytes(data)
    return read(path)


LAYOUTS = {
    "plain": {},
    "CRLF": {"newline": "\r\n"},
    "quoted": {"quote": True},
    "quoted, CRLF": {"quote": True, "newline": "\r\n"},
    "icml_face_data": {"header": ("emotion", " Usage", " pixels")},
    "other case, one more column": {"header": ("", "USAGE", "Emotion", "PIXELS")},
}


@given(
    seed=st.integers(0, 2**32 - 1),
    layout=st.sampled_from(sorted(LAYOUTS)),
    bom=st.booleans(),
    ended=st.booleans(),
    separators=st.lists(st.sampled_from([" ", "  ", " \t"]), min_size=3, max_size=3),
    few_levels=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_whatever_the_layout_the_pixels_are_those_of_the_csv(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    layout: str,
    bom: bool,
    ended: bool,
    separators: list[str],
    few_levels: bool,
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 12 if few_levels else 256, (3, 48, 48), dtype=np.uint8)  # one digit, and all lengths
    labels, splits = rng.integers(0, 7, 3), rng.integers(0, 3, 3)
    options = LAYOUTS[layout]
    names = ("Training", "PublicTest", "PrivateTest")
    rows = []
    for image, label, split, separator in zip(images, labels, splits, separators, strict=True):
        fields = {"emotion": label, "usage": names[split], "pixels": pixels(image, separator), "": "7 é"}
        rows.append([fields[name.strip().lower()] for name in options.get("header", HEADER)])
    data = csv_bytes(rows, **options)
    data = (b"\xef\xbb\xbf" if bom else b"") + (data if ended else data.rstrip(b"\r\n"))
    found = read_bytes(tmp_path_factory.mktemp("csv"), data)
    assert found.rejected == []
    np.testing.assert_array_equal(found.pixels, images)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.splits, splits)
    assert found.lines.tolist() == [2, 3, 4]


GOOD = pixels(faces(1)[0])
REST = GOOD.split(" ", 1)[1]  # without the first pixel
LAST = GOOD.rsplit(" ", 1)[0]  # without the last one

BAD_ROWS = {
    "a pixel too few": (f"0,{REST},Training", "2303 pixels; expected 2304 (48x48)"),
    "a pixel too many": (f"0,{GOOD} 7,Training", "2305 pixels; expected 2304 (48x48)"),
    "no pixels": ("0,,Training", "0 pixels; expected 2304"),
    "above 255": (f"0,256 {REST},Training", "pixel 1 is '256'; expected an integer of 0..255"),
    "negative": (f"0,{LAST} -1,Training", "pixel 2304 is '-1'"),
    "a fraction": (f"0,12.5 {REST},Training", "pixel 1 is '12.5'"),
    "an exponent": (f"0,1e3 {REST},Training", "pixel 1 is '1e3'"),
    "a sign": (f"0,+5 {REST},Training", "pixel 1 is '+5'"),
    "four digits": (f"0,0012 {REST},Training", "pixel 1 is '0012'"),
    "underscore": (f"0,1_0 {REST},Training", "pixel 1 is '1_0'"),
    "nan": (f"0,nan {REST},Training", "pixel 1 is 'nan'"),
    "other digits": (f"0,٣ {REST},Training", "0xd9 at byte 1 of"),
    "label 7": (f"7,{GOOD},Training", "label '7'; expected 0..6"),
    "label -1": (f"-1,{GOOD},Training", "label '-1'; expected 0..6"),
    "label 1.0": (f"1.0,{GOOD},Training", "label '1.0'; expected 0..6"),
    "no label": (f",{GOOD},Training", "label ''; expected 0..6"),
    "usage": (f"0,{GOOD},Testing", "usage 'Testing'; expected Training, PublicTest, PrivateTest"),
    "two fields": (f"0,{GOOD}", "2 fields; expected 3"),
    "four fields": (f"0,{GOOD},Training,1", "4 fields; expected 3"),
    "open quote": (f'0,"{GOOD},Training', "broken quotes"),
    "text after a quote": (f'0,"{GOOD}"x,Training', "broken quotes"),
    "NUL": (f"0,{GOOD},Train\0ing", "NUL byte at byte"),
    "NUL within quotes": (f'0,"{GOOD}","Train\0ing"', "NUL byte"),
    "NUL as a separator": (f"0,{GOOD.replace(' ', chr(0), 1)},Training", "pixel 1 is"),
    "10 MB": ("0," + "1 " * 5_000_000 + ",Training", "longer than 65536 bytes"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    bad, reason = BAD_ROWS[case]
    image = faces(2)
    rows = ["emotion,pixels,Usage", f"3,{pixels(image[0])},Training", bad, f"4,{pixels(image[1])},PrivateTest", ""]
    found = read_bytes(tmp_path, "\n".join(rows).encode())
    (line, text), *more = found.rejected
    assert line == 3
    assert reason in text
    assert more == []
    assert found.lines.tolist() == [2, 4]
    assert found.labels.tolist() == [3, 4]
    assert found.splits.tolist() == [0, 2]
    np.testing.assert_array_equal(found.pixels, image)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, csv_bytes([[1, GOOD, "Training"]]) + b"2," + GOOD.encode() + b",Tr\xe9ining\n")
    assert found.rejected[0][0] == 3
    assert "byte 0xe9" in found.rejected[0][1]
    assert "is not ASCII" in found.rejected[0][1]


@pytest.mark.parametrize("length", [3, 5000, len(GOOD) + 3, len(GOOD) + 8])
def test_a_cut_off_last_row_is_said_to_be_one(tmp_path: Path, length: int) -> None:
    row = f"0,{GOOD},Training".encode()
    found = read_bytes(tmp_path, csv_bytes([[1, GOOD, "Training"]]) + row[:length])
    assert [line for line, _ in found.rejected] == [3]
    assert "is it cut off?" in found.rejected[0][1]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, csv_bytes([[1, GOOD, "Training"]]) + b"\n\r\n" + f"2,{GOOD},Training\n\n".encode())
    assert found.lines.tolist() == [2, 5]
    assert found.rejected == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "the file is empty; expected a header with the columns emotion, pixels, Usage"),
        (b"emotion,pixels\n", "no column 'Usage' in 'emotion, pixels'"),
        (b"emotion;pixels;Usage\n", "no column 'emotion' in 'emotion;pixels;Usage'"),
        (b"emotion;pixels;Usage\n", "the columns emotion, pixels, Usage, commas between them"),
        (b"emotion,pixels,Usage,usage\n", "column 'Usage' stands 2 times"),
        (b"emotion,emotion,pixels,Usage\n", "column 'emotion' stands 2 times"),
        ("emotion,pixels,Usage\n".encode("utf-16"), "row 1: not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "row 1: not UTF-8 text"),
        (b'"emotion,pixels,Usage\n', "row 1: not UTF-8 text in CSV format"),
        (b"x" * 100_000, "row 1: longer than 65536 bytes"),
        (b"0,1 2 3,Training\n", "no column 'emotion'"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(StageError) as error:
        read_bytes(tmp_path, header)
    assert message in str(error.value)
    assert "faces.csv" in str(error.value)


def test_an_endless_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "endless.csv"
    path.write_bytes(csv_bytes([[1, GOOD, "Training"]]))
    with open(path, "r+b") as f:
        f.truncate(256 << 20)  # NUL bytes to the end, without taking room on the disk
    tracemalloc.start()
    try:
        found = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert found.lines.tolist() == [2]
    assert [line for line, _ in found.rejected] == [3]


def archive(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2", "w"])
@pytest.mark.parametrize("member", ["fer2013/fer2013.csv", "fer2013.csv", "./icml_face_data.csv"])
def test_the_csv_inside_an_archive_is_read(tmp_path: Path, member: str, mode: str) -> None:
    image = faces(20)
    data = csv_bytes([[i % 7, pixels(face), "Training"] for i, face in enumerate(image)])
    members = {"fer2013/README": b"what it is", "fer2013/._fer2013.csv": b"\0\1", member: data, "z.csv": b"x"}
    found = read(archive(tmp_path / "fer2013.tar.gz", members, mode))
    np.testing.assert_array_equal(found.pixels, image)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2", "w"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9])
def test_a_cut_off_archive_is_refused(tmp_path: Path, mode: str, share: float) -> None:
    data = csv_bytes([[0, pixels(face), "Training"] for face in faces(40)])
    path = archive(tmp_path / "fer2013.tar.gz", {"fer2013/fer2013.csv": data}, mode)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(20, int(len(whole) * share))])
    with pytest.raises(StageError, match=r"fer2013\.tar\.gz"):
        read(path)


def test_an_archive_damaged_within_is_refused(tmp_path: Path) -> None:
    data = csv_bytes([[0, pixels(face), "Training"] for face in faces(40)])
    path = archive(tmp_path / "fer2013.tar.gz", {"fer2013.csv": data})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 2000] = bytes(2000)
    path.write_bytes(whole)
    try:
        rejected = read(path).rejected  # damage that still inflates shows in the rows
    except StageError as error:
        rejected = [(0, str(error))]
    assert rejected


def test_archives_without_the_csv_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no fer2013\.csv or icml_face_data\.csv"):
        read(archive(tmp_path / "a.tar.gz", {"train.csv": b"emotion,pixels\n"}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("fer2013.csv", b"emotion,pixels,Usage\n")
    with pytest.raises(StageError, match="zip archive; unpack it"):
        read(tmp_path / "a.zip")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"emotion,pixels,Usage\n" * 100))
    with pytest.raises(StageError, match=r"not a readable tar archive, .*; expected fer2013\.tar\.gz or the CSV"):
        read(tmp_path / "a.csv.gz")


def test_blank_faces_have_one_grey_level_but_for_noise() -> None:
    stack = np.stack([np.full((48, 48), level, np.uint8) for level in (0, 127, 255, 255, 0)])
    stack[2, 5, 5] -= 4
    stack[3, 5, 5] -= 5
    stack[4, 7, 7] = 255
    assert is_blank(stack).tolist() == [True, True, True, False, False]


# ---- trees of images ------------------------------------------------------------------------------------------------


def test_faces_of_a_tree_are_listed_by_split_emotion_and_number(tmp_path: Path) -> None:
    files = ["Training/3_happy/00010.png", "Training/3_happy/99999.png", "Training/3_happy/100000.png"]
    files += ["Training/4_sad/00002.png", "PublicTest/0_angry/00001.png"]
    make_folders(tmp_path)
    for file in [*files, "Training/3_happy/notes.txt", "align.png"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = list_faces(tmp_path)
    assert [face.file for face in found] == files
    assert [face.label for face in found] == [3, 3, 3, 4, 0]
    assert [face.split for face in found] == ["Training"] * 4 + ["PublicTest"]


def test_a_tree_without_faces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no such folder"):
        list_faces(tmp_path / "none")
    with pytest.raises(StageError, match="no faces"):
        list_faces(tmp_path)
    make_folders(tmp_path)
    with pytest.raises(StageError, match="no faces; expected Training/0_angry"):
        list_faces(tmp_path)


def test_the_classes_of_a_tree_are_those_of_its_folders_in_label_order(tmp_path: Path) -> None:
    names = tuple("abcdefghijk")  # 10_k comes after 9_j
    make_folders(tmp_path, names)
    (tmp_path / "Training" / "notes").mkdir()
    assert tree_classes(tmp_path) == names
    (tmp_path / "Training" / "10_k" / "00001.png").touch()
    assert [face.label for face in list_faces(tmp_path)] == [10]


@pytest.mark.parametrize("folder", ["8_late", "0_other", "7_happy"])
def test_labels_with_a_gap_or_two_names_are_refused(tmp_path: Path, folder: str) -> None:
    make_folders(tmp_path)
    (tmp_path / "PublicTest" / folder).mkdir()
    with pytest.raises(StageError, match=rf"its folders are .*{folder}.*; expected one for each label from 0 on"):
        tree_classes(tmp_path)


def test_the_label_of_contempt_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes([[7, GOOD, "Training"], [8, GOOD, "Training"]]))
    with CsvReader(tmp_path / "a.csv", contempt=True) as reader:
        (rows,) = [reader.parse(batch) for batch in reader.batches()]
    assert rows.labels.tolist() == [7]
    assert rows.rejected == [(3, "label '8'; expected 0..7")]
