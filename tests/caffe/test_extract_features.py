"""extract_features: its records against the blobs of the same net run by hand."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import numpy as np
import pytest
from tiny_model import write_database

import caffe
from caffe.proto.caffe_pb2 import Datum
from caffe.tools import extract_features as tool

NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{folder}/images" backend: LMDB
  batch_size: 4 }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {{ num_output: 3 kernel_size: 3
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "relu" }}
layer {{ name: "drop" type: "Dropout" bottom: "relu" top: "relu" }}
layer {{ name: "fc" type: "InnerProduct" bottom: "relu" top: "fc" inner_product_param {{ num_output: 5
  weight_filler {{ type: "xavier" }} }} }}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a net that reads 10 images, and its weights."""
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 5), dtype=np.uint8)
    write_database(tmp_path / "images", list(images), list(range(10)))
    (tmp_path / "net.prototxt").write_text(NET.format(folder=tmp_path))
    caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST, seed=1).save(tmp_path / "weights.caffemodel")
    return tmp_path


def main(folder: Path, blobs: str, databases: str, *rest: str) -> int:
    paths = ",".join(str(folder / name) for name in databases.split(","))
    return tool.main([str(folder / "weights.caffemodel"), str(folder / "net.prototxt"), blobs, paths, *rest])


def records(path: Path) -> list[tuple[bytes, Datum]]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return [(key, Datum.FromString(value)) for key, value in transaction.cursor()]


def computed(folder: Path, batches: int, *blobs: str) -> list[np.ndarray]:
    net = caffe.Net(str(folder / "net.prototxt"), str(folder / "weights.caffemodel"), caffe.TEST)
    runs = []
    for _ in range(batches):
        out = net.forward(list(blobs))
        runs.append([out[blob].copy() for blob in blobs])
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def assert_holds(path: Path, values: np.ndarray, shape: tuple[int, int, int]) -> None:
    found = records(path)
    assert [key for key, _ in found] == [b"%010d" % i for i in range(len(values))]
    for (_, datum), expected in zip(found, values, strict=True):
        assert (datum.channels, datum.height, datum.width) == shape
        assert not datum.data
        assert not datum.HasField("label")
        np.testing.assert_array_equal(np.float32(datum.float_data), expected.ravel())


def test_the_records_are_the_blobs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(folder, "fc,relu", "fc_db,relu_db", "3", "lmdb") == 0
    fc, relu = computed(folder, 3, "fc", "relu")
    assert np.ptp(fc) > 1
    np.testing.assert_array_equal(fc[:2], fc[10:])  # the data goes round
    assert_holds(folder / "fc_db", fc, (5, 1, 1))
    assert_holds(folder / "relu_db", relu, (3, 4, 3))
    lines = [line.split("] ")[1] for line in capsys.readouterr().err.splitlines() if "extract_features.cpp" in line]
    assert lines == [
        "Using CPU",
        f"Opening dataset {folder}/fc_db",
        f"Opening dataset {folder}/relu_db",
        "Extracting Features",
        "Extracted features of 12 query images for feature blob fc",
        "Extracted features of 12 query images for feature blob relu",
        "Successfully extracted the features!",
    ]


def test_labels_and_one_database(folder: Path) -> None:
    assert main(folder, "label", "labels", "2", "lmdb", "CPU", "0") == 0
    assert_holds(folder / "labels", np.arange(8, dtype=np.float32)[:, None], (1, 1, 1))


def test_more_batches_than_wait(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(folder, "fc", "db", "260", "lmdb") == 0
    assert len(records(folder / "db")) == 1040
    assert "Extracted features of 1000 query images for feature blob fc\n" in capsys.readouterr().err


def test_leveldb(folder: Path) -> None:
    plyvel = pytest.importorskip("plyvel")
    assert main(folder, "fc", "db", "1", "leveldb") == 0
    (fc,) = computed(folder, 1, "fc")
    with plyvel.DB(str(folder / "db")) as database:
        found = list(database)
    assert [key for key, _ in found] == [b"%010d" % i for i in range(4)]
    for (_, value), expected in zip(found, fc, strict=True):
        np.testing.assert_array_equal(np.float32(Datum.FromString(value).float_data), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fc,conv2", "a,b", "1", "lmdb"], "feature blob 'conv2' is not in the network"),
        (["fc,conv", "a", "1", "lmdb"], "2 blobs for 1 databases"),
        (["fc,conv", "a,a", "1", "lmdb"], "2 blobs for 1 databases; expected as many, of different names"),
        (["fc", "images", "1", "lmdb"], "images: exists already"),
        (["fc", "a", "0", "lmdb"], "the number of batches is 0"),
        (["fc", "a", "1", "hdf5"], "the database type is 'hdf5'; expected lmdb or leveldb"),
        (["fc", "a", "1", "lmdb", "TPU"], "the mode is 'TPU'; expected CPU or GPU"),
    ],
)
def test_what_is_refused(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(folder))
    assert main(folder, *arguments) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir(folder)) == before


def test_a_net_that_fails_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ninth image has another size: two batches are computed before it is met."""
    images = [np.zeros((6, 5), np.uint8)] * 8 + [np.zeros((7, 5), np.uint8)] * 4
    write_database(folder / "other", images, [0] * 12)
    prototxt = folder / "net.prototxt"
    prototxt.write_text(prototxt.read_text().replace("/images", "/other"))
    before = sorted(os.listdir(folder))
    assert main(folder, "fc,relu", "a,b", "3", "lmdb") == 1
    assert sorted(os.listdir(folder)) == before


def test_a_database_that_fails_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two databases cannot be written after some batches: the other is not left either."""
    write = tool.writer(caffe.proto.caffe_pb2.DataParameter.LMDB)

    def fails(path: str, batches: object) -> int:
        if str(path).endswith("bad"):
            for _ in range(30):
                next(batches)  # type: ignore[call-overload]
            raise caffe.CaffeError(f"{path}: disk full")
        return write(path, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(tool, "writer", lambda kind: fails)
    before = sorted(os.listdir(folder))
    assert main(folder, "fc,relu", "good,bad", "1000000", "lmdb") == 1
    assert "bad: disk full" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir(folder)) == before
