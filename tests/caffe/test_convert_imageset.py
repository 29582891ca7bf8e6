"""convert_imageset against Caffe's own databases, and against OpenCV and lmdb on images drawn here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from caffe.database import write_leveldb, write_lmdb
from caffe.errors import CaffeError
from caffe.proto.caffe_pb2 import Datum
from caffe.tools import convert_imageset as tool

ROOT = Path(__file__).resolve().parents[2]


def records(path: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return list(transaction.cursor())


def data(path: Path) -> dict[str, Datum]:
    return {key.decode(): Datum.FromString(value) for key, value in records(path)}


def draw(path: Path, seed: int = 0, height: int = 12, width: int = 10, channels: int = 3) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a space in its name: three colour images and list.txt."""
    folder = tmp_path / "my images"
    for number, name in enumerate(("a/one.png", "a/two words.png", "b.png")):
        draw(folder / name, number)
    (tmp_path / "list.txt").write_text("a/one.png 3\na/two words.png 0\nb.png -1\n")
    return folder


def convert(images: Path, *flags: str, root: str | None = None) -> Path:
    db = images.parent / "db"
    tool.convert(tool.parser().parse([*flags, root or str(images), str(images.parent / "list.txt"), str(db)]))
    return db


def run(images: Path, *flags: str) -> int:
    """The command; its exit code."""
    return tool.main([*flags, str(images), str(images.parent / "list.txt"), str(images.parent / "db")])


@pytest.mark.parametrize(
    ("database", "flags"),
    [("{}_lmdb", []), ("{}_encoded_lmdb", ["--encoded", "--encode_type=png"]), ("{}_encoded_lmdb", ["-encoded"])],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_bytes_as_caffe(shared: Path, tmp_path: Path, split: str, database: str, flags: list[str]) -> None:
    golden = shared / "caffe_golden"
    arguments = ["--gray", *flags, f"{golden}/images/", f"{golden}/images/{split}.txt", str(tmp_path / "db")]
    assert tool.main(arguments) == 0
    assert records(tmp_path / "db") == records(golden / database.format(split))


def test_colour_images_are_stored_plane_by_plane(images: Path) -> None:
    found = data(convert(images))
    assert list(found) == ["00000000_a/one.png", "00000001_a/two words.png", "00000002_b.png"]
    assert [datum.label for datum in found.values()] == [3, 0, -1]
    for key, datum in found.items():
        assert (datum.channels, datum.height, datum.width, datum.encoded) == (3, 12, 10, False)
        pixels = np.frombuffer(datum.data, np.uint8).reshape(3, 12, 10)
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), cv2.imread(str(images / key[9:])))


def test_gray_and_resize(images: Path) -> None:
    datum = data(convert(images, "--gray", "--resize_width", "7", "--resize_height=5"))["00000002_b.png"]
    expected = cv2.resize(cv2.imread(str(images / "b.png"), cv2.IMREAD_GRAYSCALE), (7, 5))
    assert (datum.channels, datum.height, datum.width) == (1, 5, 7)
    assert datum.data == expected.tobytes()


def test_the_root_folders_slash_is_optional(images: Path) -> None:
    first = records(convert(images, root=f"{images}/"))
    os.rename(images.parent / "db", images.parent / "first")
    assert records(convert(images, root=str(images))) == first


def test_encoded_files_are_stored_as_they_are(images: Path) -> None:
    for key, datum in data(convert(images, "--encoded")).items():
        assert datum.encoded
        assert datum.data == (images / key[9:]).read_bytes()


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG"])
def test_a_jpeg_is_not_encoded_as_jpg_again(images: Path, name: str) -> None:
    draw(images / name)
    (images.parent / "list.txt").write_text(f"{name} 1\n")
    (datum,) = data(convert(images, "--encoded", "--encode_type=JPG")).values()
    assert datum.data == (images / name).read_bytes()


def test_encode_type_and_resize_encode_again(images: Path) -> None:
    found = data(convert(images, "--encode_type=bmp", "--resize_width=4", "--resize_height=4"))
    for key, datum in found.items():
        assert datum.encoded
        assert (datum.channels, datum.height, datum.width) == (3, 4, 4)
        assert datum.data.startswith(b"BM")
        decoded = cv2.imdecode(np.frombuffer(datum.data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded, cv2.resize(cv2.imread(str(images / key[9:])), (4, 4)))


def test_an_encoding_that_opencv_lacks(images: Path) -> None:
    with pytest.raises(CaffeError, match="cannot encode as 'xyz'"):
        convert(images, "--encoded", "--encode_type=xyz")
    assert not (images.parent / "db").exists()


def test_shuffle_is_a_permutation_that_the_seed_decides(images: Path) -> None:
    lines = [tool.Line(f"{i}.png", i) for i in range(100)]
    assert tool.shuffled(lines, 1) == tool.shuffled(lines, 1)
    assert tool.shuffled(lines, 1) != tool.shuffled(lines, 2)
    assert sorted(tool.shuffled(lines, 1), key=lambda line: line.label) == lines
    order = tool.shuffled(tool.read_list(images.parent / "list.txt"), 5)
    found = data(convert(images, "--shuffle", "--seed=5"))
    assert [(key[9:], datum.label) for key, datum in found.items()] == order


def test_threads_keep_the_order(tmp_path: Path) -> None:
    lines = [tool.Line(f"{i}.png", i) for i in range(5 * tool.BATCH_IMAGES + 7)]
    for line in lines:
        draw(tmp_path / line.file, line.label, 3, 3)
    one = list(tool.read_images(tmp_path, lines, workers=1))
    assert list(tool.read_images(tmp_path, lines, workers=5)) == one
    assert [record.file for record in one] == [line.file for line in lines]


def test_unreadable_files_are_logged_and_left_out(images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (images / "a/one.png").write_bytes((images / "a/one.png").read_bytes()[:100])
    with open(images.parent / "list.txt", "a") as f:
        f.write("missing.png 1\nempty.png 2\nb.png 4\n")
    (images / "empty.png").touch()
    assert run(images) == 0
    assert list(data(images.parent / "db")) == ["00000001_a/two words.png", "00000002_b.png", "00000005_b.png"]
    errors = [line for line in capfd.readouterr().err.splitlines() if "Could not open or find file" in line]
    assert [line[0] for line in errors] == ["E"] * 3
    for line, file in zip(errors, ("a/one.png", "missing.png", "empty.png"), strict=True):
        assert file in line


def test_a_device_is_no_image(images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Some have no end."""
    (images.parent / "list.txt").write_text("null 1\nb.png 4\n")
    (images / "null").symlink_to(os.devnull)
    assert run(images) == 0
    assert list(data(images.parent / "db")) == ["00000001_b.png"]
    assert "file null (it is a device; expected a file)" in capfd.readouterr().err
    with pytest.raises(CaffeError, match=f"{os.devnull}: it is a device"):
        tool.read_list(os.devnull)


def test_check_size_names_the_image(images: Path) -> None:
    draw(images / "b.png", height=11)
    with pytest.raises(CaffeError, match=r"b\.png has 3 channels of 10x11 pixels; expected 3 channels of 10x12 pixels"):
        convert(images, "--check_size")
    assert sorted(os.listdir(images.parent)) == ["list.txt", "my images"]
    assert len(records(convert(images))) == 3


def test_check_size_passes_over_what_is_no_image(images: Path) -> None:
    (images / "a/one.png").write_bytes(b"")
    assert list(data(convert(images, "--check_size"))) == ["00000001_a/two words.png", "00000002_b.png"]


def test_a_database_is_not_overwritten(images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = records(convert(images))
    assert run(images, "--gray") == 1
    assert "exists already" in capfd.readouterr().err
    assert records(images.parent / "db") == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 1\n\nb.png\n", r"line 3: 'b.png'; expected FILE LABEL"),
        ("a.png one\n", r"line 1: 'a.png one'; expected FILE LABEL"),
        ("a.png 3000000000\n", r"line 1: .*; expected FILE LABEL"),
        ("7\n", r"line 1: '7'; expected FILE LABEL"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(CaffeError, match=message):
        tool.read_list(tmp_path / "list.txt")


def test_lists_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a b.png 1\r\n\r\n caf\xe9.png \t2")
    assert tool.read_list(tmp_path / "list.txt") == [("a b.png", 1), (" " + os.fsdecode(b"caf\xe9.png"), 2)]
    assert tool.key(12, os.fsdecode(b"caf\xe9.png")) == b"00000012_caf\xe9.png"
    with pytest.raises(CaffeError, match=r"nowhere\.txt: No such file"):
        tool.read_list(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    "flags",
    [
        ["--gray", "--resize_height=4", "--resize_width=6"],
        ["-gray", "-resize_height", "4", "-resize_width", "6"],
        ["--gray=true", "--resize_height", "4", "-resize_width=6"],
        ["--nogray", "--gray=1", "--resize_height=9", "--resize_height=4", "--resize_width=6"],
    ],
)
def test_flags_as_gflags_reads_them(images: Path, flags: list[str]) -> None:
    datum = data(convert(images, *flags))["00000002_b.png"]
    assert (datum.channels, datum.height, datum.width) == (1, 4, 6)


@pytest.mark.parametrize("flags", [[], ["--nogray"], ["-gray=false"], ["--gray", "--nogray"], ["--gray=F"]])
def test_flags_that_are_off(images: Path, flags: list[str]) -> None:
    assert data(convert(images, *flags))["00000002_b.png"].channels == 3


@pytest.mark.parametrize(
    "arguments",
    [["--grey", "a", "b", "c"], ["a", "b"], ["--resize_width=wide", "a", "b", "c"], ["--gray=maybe", "a", "b", "c"]],
)
def test_wrong_command_lines_exit_with_1(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments)
    assert caught.value.code == 1
    assert "usage: convert_imageset" in capfd.readouterr().err


def test_flags_may_follow_the_arguments(images: Path) -> None:
    assert tool.main([str(images), str(images.parent / "list.txt"), "--gray", str(images.parent / "db")]) == 0
    assert data(images.parent / "db")["00000002_b.png"].channels == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--backend=hdf5", "--backend is 'hdf5'; expected lmdb"), ("--resize_width=5", "expected both above 0")],
)
def test_what_is_not_supported(images: Path, flag: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(images, flag) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("E")
    assert message in error


def test_leveldb_holds_the_same_records(images: Path, tmp_path: Path) -> None:
    plyvel = pytest.importorskip("plyvel")
    expected = records(convert(images, "--gray"))
    os.rename(images.parent / "db", images.parent / "as_lmdb")
    assert run(images, "--gray", "-backend", "leveldb") == 0
    with plyvel.DB(str(images.parent / "db")) as database:
        assert list(database) == expected
    assert run(images, "--gray", "-backend", "leveldb") == 1  # it exists
    assert sorted(os.listdir(images.parent)) == ["as_lmdb", "db", "list.txt", "my images"]


def test_leveldb_is_all_or_nothing(images: Path) -> None:
    pytest.importorskip("plyvel")
    draw(images / "b.png", height=11)
    with pytest.raises(CaffeError, match=r"b\.png has 3 channels"):
        convert(images, "--backend=leveldb", "--check_size")
    assert sorted(os.listdir(images.parent)) == ["list.txt", "my images"]
    with pytest.raises(CaffeError, match="expected keys that ascend"):
        write_leveldb(images.parent / "db", [(b"2", b""), (b"1", b"")])
    assert sorted(os.listdir(images.parent)) == ["list.txt", "my images"]


def test_leveldb_without_its_package(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(CaffeError, match=r"needs the package plyvel: pip install 'face-emotion-net\[leveldb\]'"):
        convert(images, "--backend=leveldb")


def test_large_databases_grow_and_stay_small_on_disk(tmp_path: Path) -> None:
    values = [os.urandom(100_000) for _ in range(600)]
    items = [(b"%08d" % i, value) for i, value in enumerate(values)]
    assert write_lmdb(tmp_path / "db", iter(items)) == 600
    assert records(tmp_path / "db") == items
    assert os.listdir(tmp_path / "db") == ["data.mdb"]
    assert (tmp_path / "db/data.mdb").stat().st_size < 1.1 * 60_000_000


@pytest.mark.parametrize(
    ("keys", "message"), [([b"2", b"1"], "keys that ascend"), ([b"1", b"1"], "ascend"), ([b"x" * 512], "512 bytes")]
)
def test_keys_that_a_database_cannot_take(tmp_path: Path, keys: list[bytes], message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        write_lmdb(tmp_path / "db", [(key, b"value") for key in keys])
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_killed_halfway_there_is_no_database(images: Path) -> None:
    os.mkfifo(images / "pipe.png")  # reading it waits forever
    (images.parent / "list.txt").write_text("b.png 1\n" * 2000 + "pipe.png 0\n")
    command = [sys.executable, "-m", "caffe.tools.convert_imageset", str(images), "list.txt", "db"]
    process = subprocess.Popen(
        command, cwd=images.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    partial = images.parent / ".db.partial" / "data.mdb"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 0) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (images.parent / "db").exists()

    (images.parent / "list.txt").write_text("b.png 1\n")
    done = subprocess.run(command, cwd=images.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"A total of 1 images." in done.stderr
    assert list(data(images.parent / "db")) == ["00000000_b.png"]
    assert not partial.parent.exists()
