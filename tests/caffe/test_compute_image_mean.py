"""compute_image_mean against Caffe's own result and against numpy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe.database import write_leveldb, write_lmdb
from caffe.errors import CaffeError
from caffe.io import load_mean
from caffe.proto.caffe_pb2 import Datum
from caffe.tools import compute_image_mean as tool


def database(path: Path, data: list[Datum]) -> Path:
    write_lmdb(path, ((b"%08d_x" % i, datum.SerializeToString()) for i, datum in enumerate(data)))
    return path


def pixels(image: np.ndarray) -> Datum:
    channels, height, width = image.shape
    return Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=0)


@pytest.mark.parametrize("name", ["train_lmdb", "train_encoded_lmdb"])
def test_the_same_file_as_caffe(shared: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    golden = shared / "caffe_golden"
    assert tool.main([str(golden / name), str(tmp_path / "mean.binaryproto")]) == 0
    assert "] Processed 160 files.\n" in capfd.readouterr().err
    assert (tmp_path / "mean.binaryproto").read_bytes() == (golden / "train_mean.binaryproto").read_bytes()


def test_colour_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 3, 4, 5), dtype=np.uint8)
    db = database(tmp_path / "db", [pixels(image) for image in images])
    assert tool.main(["-backend", "lmdb", str(db), str(tmp_path / "mean.binaryproto")]) == 0
    mean = load_mean(tmp_path / "mean.binaryproto")
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, (images.sum(0) / 700).astype(np.float32))
    log = capfd.readouterr().err
    assert "Number of channels: 3" in log
    assert f"mean_value channel [2]: {images[:, 2].mean():.6g}" in log


def test_without_a_file_it_is_said_alone(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(shared / "caffe_golden/train_lmdb")]) == 0
    log = capfd.readouterr().err
    assert "mean_value channel [0]: " in log
    assert "Write to" not in log


def test_encoded_images_keep_their_channels(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    encoded = [cv2.imencode(".png", picture)[1].tobytes() for picture in (image, 255 - image)]
    db = database(tmp_path / "db", [Datum(data=data, encoded=True) for data in encoded])
    mean, count = tool.compute_image_mean(db)
    assert count == 2
    np.testing.assert_array_equal(mean, np.full((3, 6, 7), 127.5, np.float32))


def test_float_data(tmp_path: Path) -> None:
    db = database(
        tmp_path / "db", [Datum(channels=1, height=1, width=2, float_data=values) for values in ([0.5, -1], [1, 3])]
    )
    np.testing.assert_array_equal(tool.compute_image_mean(db)[0], [[[0.75, 1.0]]])


def test_images_of_different_sizes(tmp_path: Path) -> None:
    sizes = [(1, 4, 4)] * 300 + [(1, 4, 5)]
    db = database(tmp_path / "db", [pixels(np.zeros(size, np.uint8)) for size in sizes])
    with pytest.raises(CaffeError, match=r"record '00000300_x' has the shape \(1, 4, 5\); expected \(1, 4, 4\)"):
        tool.compute_image_mean(db)


@pytest.mark.parametrize("make", ["missing", "empty", "other"])
def test_what_is_no_database_of_images(tmp_path: Path, make: str, capfd: pytest.CaptureFixture[str]) -> None:
    if make == "empty":
        write_lmdb(tmp_path / "db", [])
    elif make == "other":
        write_lmdb(tmp_path / "db", [(b"key", b"\xff\xff\xff")])
    assert tool.main([str(tmp_path / "db"), str(tmp_path / "mean.binaryproto")]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("E")
    assert str(tmp_path / "db") in error
    assert not (tmp_path / "mean.binaryproto").exists()


def test_leveldb_has_the_same_mean(tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    images = np.random.default_rng(2).integers(0, 256, (9, 3, 4, 5), dtype=np.uint8)
    write_leveldb(tmp_path / "db", ((b"%d" % i, pixels(image).SerializeToString()) for i, image in enumerate(images)))
    assert tool.main(["--backend=leveldb", str(tmp_path / "db"), str(tmp_path / "mean.binaryproto")]) == 0
    np.testing.assert_array_equal(load_mean(tmp_path / "mean.binaryproto"), (images.sum(0) / 9).astype(np.float32))


def test_a_backend_that_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--backend=hdf5", "db"]) == 1
    assert "--backend is 'hdf5'; expected lmdb or leveldb" in capfd.readouterr().err
