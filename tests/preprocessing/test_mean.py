"""The mean stage against numpy and Caffe's own result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe.database import write_lmdb
from caffe.proto.caffe_pb2 import BlobProto, Datum
from preprocessing.mean import write_mean
from preprocessing.stage import StageError, sha256

ROOT = Path(__file__).resolve().parents[2]


def database(path: Path, images: np.ndarray) -> Path:
    shape = dict(zip(("channels", "height", "width"), images.shape[1:], strict=True))
    data = [Datum(data=image.tobytes(), **shape).SerializeToString() for image in images]
    write_lmdb(path, ((b"%08d_x.png" % i, datum) for i, datum in enumerate(data)))
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 1, 12, 10), dtype=np.uint8)


def test_the_mean_its_picture_and_its_manifest(tmp_path: Path, images: np.ndarray) -> None:
    db = database(tmp_path / "train lmdb", images)
    mean = write_mean(db, tmp_path / "out" / "mean.binaryproto")
    assert sorted(os.listdir(tmp_path / "out")) == ["mean.binaryproto", "mean.manifest.json", "mean.png"]
    blob = BlobProto.FromString((tmp_path / "out/mean.binaryproto").read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 1, 12, 10)
    np.testing.assert_allclose(blob.data, images.mean(0).ravel(), rtol=1e-6)
    np.testing.assert_allclose(mean, images.mean(0), rtol=1e-6)
    picture = cv2.imread(str(tmp_path / "out/mean.png"), cv2.IMREAD_UNCHANGED)
    scale = picture.shape[0] // 12
    assert picture.shape == (12 * scale, 10 * scale)
    assert picture.shape[0] >= 300
    np.testing.assert_allclose(picture[scale // 2 :: scale, scale // 2 :: scale], mean[0], atol=0.5)
    manifest = json.loads((tmp_path / "out/mean.manifest.json").read_text())
    assert manifest["counts"]["read"] == 50
    assert manifest["counts"]["mean"] == pytest.approx(images.mean(), abs=1e-4)
    assert manifest["inputs"][0]["sha256"] == sha256(db / "data.mdb")


def test_a_colour_mean_has_a_colour_picture(tmp_path: Path) -> None:
    images = np.zeros((4, 3, 8, 8), np.uint8)
    images[:, 2] = 200  # the red plane
    write_mean(database(tmp_path / "db", images), tmp_path / "mean.binaryproto")
    assert cv2.imread(str(tmp_path / "mean.png"), cv2.IMREAD_UNCHANGED)[0, 0].tolist() == [0, 0, 200]


def test_caffes_own_mean(shared: Path, tmp_path: Path) -> None:
    golden = shared / "caffe_golden"
    write_mean(golden / "train_lmdb", tmp_path / "mean.binaryproto")
    assert (tmp_path / "mean.binaryproto").read_bytes() == (golden / "train_mean.binaryproto").read_bytes()


def test_errors_leave_the_old_mean(tmp_path: Path, images: np.ndarray) -> None:
    output = tmp_path / "mean.binaryproto"
    write_mean(database(tmp_path / "good", images), output)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    write_lmdb(tmp_path / "empty", [])
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data.mdb").write_bytes(b"no database" * 1000)
    for name, message in (
        ("missing", "no data.mdb in it; expected the LMDB of the training images"),
        ("folder", "no data.mdb"),
        ("empty", "no records"),
        ("broken", "not an LMDB"),
    ):
        with pytest.raises(StageError, match=message) as caught:
            write_mean(tmp_path / name, output)
        assert name in str(caught.value)
    with pytest.raises(StageError, match=r"expected a name that ends in \.binaryproto"):
        write_mean(tmp_path / "good", tmp_path / "mean.npy")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_command(tmp_path: Path, images: np.ndarray) -> None:
    db = database(tmp_path / "db", images)
    command = [sys.executable, "-m", "preprocessing.mean", str(db), str(tmp_path / "mean.binaryproto")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"mean: 50 images, mean grey level {images.mean():.2f}")
    failed = subprocess.run([*command[:3], str(tmp_path), command[4]], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
