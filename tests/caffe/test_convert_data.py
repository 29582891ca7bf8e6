"""convert_mnist_data and convert_cifar_data: their databases against the files' bytes, and files that are wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import lmdb
import numpy as np
import pytest

from caffe.proto.caffe_pb2 import Datum
from caffe.tools import convert_cifar_data, convert_mnist_data


def read(path: Path) -> list[tuple[bytes, Datum]]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return [(bytes(key), Datum.FromString(bytes(value))) for key, value in transaction.cursor()]


IMAGES = struct.pack(">4I", 2051, 3, 2, 4) + bytes(range(24))
LABELS = struct.pack(">2I", 2049, 3) + bytes([7, 0, 255])


def convert_mnist(folder: Path, images: bytes, labels: bytes, *flags: str) -> int:
    for name, data in (("images", images), ("labels", labels)):
        (folder / name).write_bytes(data)
    names = [str(folder / name) for name in ("images", "labels", "made")]
    return convert_mnist_data.main([*names, *flags])


def test_mnist(tmp_path: Path) -> None:
    assert convert_mnist(tmp_path, IMAGES, LABELS, "--backend=lmdb") == 0
    records = read(tmp_path / "made")
    assert [key for key, _ in records] == [b"00000000", b"00000001", b"00000002"]
    assert [datum.label for _, datum in records] == [7, 0, 255]
    assert {(datum.channels, datum.height, datum.width) for _, datum in records} == {(1, 2, 4)}
    assert b"".join(datum.data for _, datum in records) == bytes(range(24))


@pytest.mark.parametrize(
    ("images", "labels", "flags", "message"),
    [
        (LABELS, LABELS, [], "images: begins with [2049]; expected 2051"),
        (IMAGES, IMAGES, [], "labels: begins with [2051]; expected 2049"),
        (
            gzip.compress(IMAGES),
            LABELS,
            [],
            "images: begins with [529205248]; expected 2051, as MNIST's files of images; it",
        ),
        (b"", LABELS, [], "images: begins with []; expected 2051"),
        (IMAGES[:15], LABELS, [], "images: 15 bytes; expected a header of 16"),
        (IMAGES[:-1], LABELS, [], "images: 23 bytes behind the header; expected 3 × 2 × 4"),
        (IMAGES, LABELS + b"1", [], "labels: 4 bytes behind the header; expected 3"),
        (IMAGES, struct.pack(">2I", 2049, 2) + b"12", [], "labels: 2 labels; expected 3"),
        (IMAGES, LABELS, ["--backend=sqlite"], "--backend is 'sqlite'; expected lmdb or leveldb"),
    ],
)
def test_wrong_mnist_files(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: bytes,
    labels: bytes,
    flags: list[str],
    message: str,
) -> None:
    assert convert_mnist(tmp_path, images, labels, *flags) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


@pytest.fixture
def cifar(tmp_path: Path) -> dict[str, np.ndarray]:
    """The files' records, label and pixels, two a file."""
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    records = {name: random.integers(0, 256, (2, 3073), np.uint8) for name in names}
    for name, values in records.items():
        (tmp_path / name).write_bytes(values.tobytes())
    return records


def test_cifar(tmp_path: Path, cifar: dict[str, np.ndarray]) -> None:
    assert convert_cifar_data.main([str(tmp_path), str(tmp_path), "lmdb"]) == 0
    train, test = (read(tmp_path / f"cifar10_{split}_lmdb") for split in ("train", "test"))
    assert [key for key, _ in train] == [b"%05d" % number for number in range(10)]
    assert [key for key, _ in test] == [b"00000", b"00001"]
    for records, names in ((train, list(cifar)[:5]), (test, list(cifar)[5:])):
        for (_, datum), record in zip(records, np.concatenate([cifar[name] for name in names]), strict=True):
            assert (datum.channels, datum.height, datum.width) == (3, 32, 32)
            assert bytes([datum.label]) + datum.data == record.tobytes()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test_batch.bin", None, "test_batch.bin: "),
        ("data_batch_4.bin", b"", "data_batch_4.bin: 0 bytes; expected records of 3073"),
        ("data_batch_4.bin", bytes(3074), "data_batch_4.bin: 3074 bytes; expected records of 3073"),
    ],
)
def test_wrong_cifar_files(
    tmp_path: Path,
    cifar: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
    name: str,
    data: bytes | None,
    message: str,
) -> None:
    (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
    assert convert_cifar_data.main([str(tmp_path), str(tmp_path), "lmdb"]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("cifar10_*"))
