"""DummyData, MemoryData and Data against arrays made by hand; LevelDBs; what is drawn, and going on from a state."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import plyvel
import pytest
from data_nets import assert_resumes, assert_same, batches, chw, data_net, picture

import caffe
from caffe.io import DatumReader, save_mean
from caffe.layers import data as data_layers
from caffe.layers.prefetch import Ahead
from caffe.proto.caffe_pb2 import Datum

# DummyData


def dummy(settings: str) -> str:
    return f'type: "DummyData" dummy_data_param {{ {settings} }}'


def test_dummy_data_has_shapes_and_fillers_one_a_top() -> None:
    settings = (
        "shape { dim: 2 dim: 3 } shape { dim: 4 } shape { } "
        'data_filler { type: "constant" value: 2.5 } data_filler { type: "uniform" min: 3 max: 4 } data_filler { }'
    )
    net = data_net(dummy(settings), tops=("a", "b", "c"))
    ((a, b, c),) = batches(net, 1)
    assert (a.shape, b.shape, c.shape) == ((2, 3), (4,), ())
    assert (a == 2.5).all()
    assert ((b >= 3) & (b <= 4)).all()
    assert c == 0


def test_dummy_data_in_its_older_form() -> None:
    net = data_net(dummy("num: 2 num: 5 channels: 3 height: 4 height: 1 width: 1"), tops=("a", "b"))
    assert (net.blobs["a"].shape, net.blobs["b"].shape) == ((2, 3, 4, 1), (5, 3, 1, 1))
    assert not any(array.any() for array in batches(net, 1)[0])


def test_dummy_data_draws_anew_but_for_constants() -> None:
    settings = 'shape { dim: 400 } data_filler { type: "gaussian" mean: 7 std: 2 }'
    net = data_net(dummy(settings + ' data_filler { type: "constant" }'), tops=("drawn", "kept"))
    ((_, kept),) = batches(net, 1)
    assert not kept.any()
    net.blobs["kept"].data[...] = 3  # what a user puts there stays
    (first, kept), (second, again) = batches(net, 2)
    assert (kept == 3).all()
    assert (again == 3).all()
    assert not (first == second).any()
    for drawn in (first, second):
        assert abs(drawn.mean() - 7) < 0.5
        assert abs(drawn.std() - 2) < 0.3


def test_dummy_data_by_seed_and_from_a_state() -> None:
    layer = dummy('shape { dim: 3 } data_filler { type: "gaussian" }')
    first = batches(data_net(layer, tops=("a",), seed=3), 3)
    assert_same(batches(data_net(layer, tops=("a",), seed=3), 3), first)
    assert not np.array_equal(batches(data_net(layer, tops=("a",), seed=4), 1)[0][0], first[0][0])
    assert_resumes(layer, tops=("a",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "has 0 shape for 3 tops"),
        ("shape { dim: 1 } shape { dim: 1 }", "has 2 shape for 3 tops; expected 1 or one a top"),
        ("shape { dim: 1 } data_filler { } data_filler { }", "has 2 data_filler for 3 tops"),
        ("num: 1 channels: 1 height: 1", "has 0 width for 3 tops"),
        ("num: 1 num: 2 channels: 1 height: 1 width: 1", "has 2 num for 3 tops"),
        ("num: 1 channels: 1 height: 1 width: 1 shape { dim: 1 }", "has `shape` and its older form"),
        ("shape { dim: 2 dim: -1 }", r"a size is negative in \(2, -1\)"),
        ('shape { dim: 2 } data_filler { type: "gausian" }', "'gausian' is not known"),
        ('shape { dim: 2 } data_filler { type: "constant" sparse: 1 }', "sparse is for the gaussian filler only"),
    ],
)
def test_dummy_data_that_does_not_fit(settings: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=f"layer 'data' \\(DummyData\\).*{message}"):
        data_net(dummy(settings), tops=("a", "b", "c"))


# MemoryData

MEMORY = 'type: "MemoryData" memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 }'


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.arange(count * 60, dtype=np.float32).reshape(count, 3, 4, 5)
    return data, np.arange(count, dtype=np.float32)


@pytest.mark.parametrize("label_shape", [(6,), (6, 1, 1, 1)])
def test_memory_data_goes_round(label_shape: tuple) -> None:
    net = data_net(MEMORY)
    assert (net.blobs["data"].shape, net.blobs["label"].shape) == ((2, 3, 4, 5), (2,))
    data, labels = rows(6)
    net.layers[0].set_input_arrays(data, labels.reshape(label_shape))
    expected = [[data[i : i + 2], labels[i : i + 2].reshape(2, 1, 1, 1)] for i in (0, 2, 4, 0)]
    assert_same(batches(net, 4), expected)
    net.layers[0].set_input_arrays(data[2:4], labels[2:4])  # from its own first row
    assert_same(batches(net, 2), [expected[1], expected[1]])


def test_memory_data_reads_the_callers_array_and_does_not_write_into_it() -> None:
    net = data_net(MEMORY)
    data, labels = rows(2)
    net.layers[0].set_input_arrays(data, labels)
    batches(net, 1)
    net.blobs["data"].data[...] = -1
    assert data[0, 0, 0, 1] == 1
    data[...] = 9
    assert (batches(net, 1)[0][0] == 9).all()


def test_memory_data_goes_on_from_a_state() -> None:
    net, other = data_net(MEMORY), data_net(MEMORY)
    assert net.layers[0].state()["position"] == 0  # a snapshot may be taken before there are rows
    for each in (net, other):
        each.layers[0].set_input_arrays(*rows(6))
    batches(net, 2)
    other.layers[0].set_state(net.layers[0].state())
    assert_same(batches(other, 2), batches(net, 2))


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (np.zeros((2, 3, 4, 5)), np.zeros(2, "f4"), "data is float64, in C order; expected float32 in C order"),
        (np.zeros((5, 4, 3, 2), "f4").T, np.zeros(2, "f4"), "data is float32, not in C order"),
        (np.zeros((2, 3, 5, 4), "f4"), np.zeros(2, "f4"), r"data has shape \(2, 3, 5, 4\); expected \(N, 3, 4, 5\)"),
        (np.zeros((2, 60), "f4"), np.zeros(2, "f4"), r"data has shape \(2, 60\)"),
        (np.zeros((2, 3, 4, 5), "f4"), np.zeros(4, "f4"), r"labels has shape \(4,\); expected \(2,\)"),
        (np.zeros((2, 3, 4, 5), "f4"), np.zeros((2, 1), "f4"), r"labels has shape \(2, 1\)"),
        (np.zeros((3, 3, 4, 5), "f4"), np.zeros(3, "f4"), "has 3 rows; expected a multiple of batch_size 2"),
        (np.zeros((0, 3, 4, 5), "f4"), np.zeros(0, "f4"), "has 0 rows"),
    ],
)
def test_arrays_that_memory_data_refuses(data: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=f"layer 'data' \\(MemoryData\\).*{message}"):
        data_net(MEMORY).layers[0].set_input_arrays(data, labels)


def test_memory_data_without_data_says_what_is_missing() -> None:
    with pytest.raises(caffe.CaffeError, match=r"expected net\.set_input_arrays"):
        data_net(MEMORY).forward()
    with pytest.raises(caffe.CaffeError, match=r"are \(2, 3, 0, 5\); expected at least 1 each"):
        data_net('type: "MemoryData" memory_data_param { batch_size: 2 channels: 3 width: 5 }')


def test_memory_data_transforms_what_is_added() -> None:
    net = data_net(MEMORY + " transform_param { scale: 0.5 mean_value: 10 }")
    layer = net.layers[0]
    images = [picture(4, 5, seed=i) for i in range(4)]
    layer.add_images(images, [3, 1, 4, 1])
    expected = [(chw(image).astype(np.float32) - 10) * 0.5 for image in images]
    ((first, labels),) = batches(net, 1)
    np.testing.assert_array_equal(first, expected[:2])
    assert labels.ravel().tolist() == [3, 1]
    with pytest.raises(caffe.CaffeError, match="add_datums: the rows that were added before are not yet read"):
        layer.add_datums([Datum(), Datum()])
    ((second, _),) = batches(net, 1)
    np.testing.assert_array_equal(second, expected[2:])
    datums = [Datum(channels=3, height=4, width=5, data=chw(image).tobytes(), label=7) for image in images[:1]]
    datums.append(Datum(encoded=True, data=cv2.imencode(".png", images[1])[1].tobytes(), label=8))
    layer.add_datums(datums)
    ((third, labels),) = batches(net, 1)
    np.testing.assert_array_equal(third, expected[:2])
    assert labels.ravel().tolist() == [7, 8]


def test_memory_data_crops_what_is_added() -> None:
    net = data_net('type: "MemoryData" memory_data_param { batch_size: 2 channels: 1 height: 3 width: 3 } '
                   "transform_param { crop_size: 3 }")  # fmt: skip
    images = [picture(5, 7, 1), picture(8, 4, 1, seed=1)]
    net.layers[0].add_images(images, [0, 1])
    ((found, _),) = batches(net, 1)
    np.testing.assert_array_equal(found[0, 0], images[0][1:4, 2:5])
    np.testing.assert_array_equal(found[1, 0], images[1][2:5, 0:3])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([picture(4, 5)] * 3, [1, 2, 3], "add_images: has 3 rows; expected a multiple of batch_size 2"),
        ([picture(4, 5)] * 2, [1], "2 images and 1 labels"),
        ([picture(4, 5), picture(5, 4)], [1, 2], r"an image has shape \(3, 5, 4\) when transformed"),
        ([picture(4, 5, 1)] * 2, [1, 2], r"an image has shape \(1, 4, 5\)"),
        ([picture(4, 5).astype(np.int64)] * 2, [1, 2], "an image is int64"),
        ([], [], "has 0 rows"),
    ],
)
def test_images_that_memory_data_refuses(images: list, labels: list, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=f"layer 'data' \\(MemoryData\\).*{message}"):
        data_net(MEMORY).layers[0].add_images(images, labels)


# Data


def encoded(image: np.ndarray, label: int = 0, extension: str = ".png") -> Datum:
    return Datum(encoded=True, data=cv2.imencode(extension, image)[1].tobytes(), label=label)


def raw(image: np.ndarray, label: int = 0) -> Datum:
    planes = chw(image)
    channels, height, width = planes.shape
    return Datum(channels=channels, height=height, width=width, data=planes.tobytes(), label=label)


def write_lmdb(path: Path, datums: list[Datum]) -> Path:
    path.mkdir()
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for i, datum in enumerate(datums):
            transaction.put(b"%08d" % i, datum.SerializeToString())
    return path


def write_leveldb(path: Path, datums: list[Datum]) -> Path:
    database = plyvel.DB(str(path), create_if_missing=True)
    for i, datum in reversed(list(enumerate(datums))):  # the order is the keys', not that of writing
        database.put(b"%08d" % i, datum.SerializeToString())
    database.close()
    return path


def data(source: Path, settings: str = "", transform: str = "", backend: str = "LMDB", batch: int = 4) -> str:
    return (
        f'type: "Data" transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: {batch} backend: {backend} {settings} }}'
    )


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is small enough to be kept in memory."""
    monkeypatch.setattr(data_layers, "RESIDENT_BYTES", 0)


@pytest.fixture
def golden(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "golden"
    shutil.copytree(shared / "caffe_golden", copy, ignore=shutil.ignore_patterns("layers", "solver", "resume"))
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("case", ["plain", "mean", "mean_value_scale", "center_crop", "encoded", "wraps_around"])
@pytest.mark.usefixtures("streamed")
def test_what_is_read_ahead_agrees_with_caffe(golden: Path, case: str) -> None:
    values = np.load(golden / "data" / "values.npz")
    net = caffe.Net(f"data/{case}.prototxt", caffe.TEST)
    assert net.layers[0].images is None
    expected = [[values[f"{case}/{batch}/{top}"] for top in ("data", "label")] for batch in range(2)]
    for ours, theirs in zip(batches(net, 2), expected, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_what_is_read_ahead_is_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefetch: int) -> None:
    source = write_lmdb(tmp_path / "db", [raw(picture(9, 8, seed=i), i) for i in range(10)])
    layer = data(source, f"prefetch: {prefetch}", "crop_size: 5 mirror: true mean_value: 3")
    kept = batches(data_net(layer, phase=caffe.TRAIN), 12)
    monkeypatch.setattr(data_layers, "RESIDENT_BYTES", 0)
    assert_same(batches(data_net(layer, phase=caffe.TRAIN), 12), kept)
    assert_resumes(layer)
    assert_resumes(layer, before=0)


def test_leveldb_is_read_like_lmdb(tmp_path: Path) -> None:
    datums = [encoded(picture(9, 8, seed=i), i) for i in range(10)]
    leveldb = data(write_leveldb(tmp_path / "leveldb", datums), backend="LEVELDB")
    expected = batches(data_net(data(write_lmdb(tmp_path / "lmdb", datums))), 6)
    first, second = data_net(leveldb), data_net(leveldb)  # two nets, though LevelDB lets itself be opened once
    assert_same(batches(first, 6), expected)
    assert_same(batches(second, 6), expected)


@pytest.mark.usefixtures("streamed")
def test_leveldb_is_read_ahead(tmp_path: Path) -> None:
    datums = [raw(picture(9, 8, seed=i), i) for i in range(5)]
    layer = data(write_leveldb(tmp_path / "leveldb", datums), backend="LEVELDB")
    found = batches(data_net(layer), 3)
    assert np.concatenate([labels for _, labels in found]).tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]
    np.testing.assert_array_equal(found[1][0][2], chw(picture(9, 8, seed=1)))
    assert_resumes(layer)


def test_leveldb_is_the_backend_that_caffe_takes_by_default(tmp_path: Path) -> None:
    source = write_leveldb(tmp_path / "leveldb", [raw(picture(4, 4))])
    batches(data_net(f'type: "Data" data_param {{ source: "{source}" batch_size: 1 }}'), 1)


def test_leveldb_without_plyvel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_leveldb(tmp_path / "leveldb", [raw(picture(4, 4))])
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(caffe.CaffeError, match=r"layer 'data' .*leveldb: .*plyvel.*face-emotion-net\[leveldb\]"):
        data_net(data(source, backend="LEVELDB"))


def test_folders_that_are_no_leveldb_are_left_alone(tmp_path: Path) -> None:
    other = write_lmdb(tmp_path / "lmdb", [raw(picture(4, 4))])
    before = sorted(os.listdir(other))
    with pytest.raises(caffe.CaffeError, match=r"lmdb: not a LevelDB .*it is an LMDB: expected `backend: LMDB`"):
        data_net(data(other, backend="LEVELDB"))
    assert sorted(os.listdir(other)) == before
    with pytest.raises(caffe.CaffeError, match=r"nowhere: not a LevelDB that can be opened \(CURRENT: No such file"):
        data_net(data(tmp_path / "nowhere", backend="LEVELDB"))
    assert not (tmp_path / "nowhere").exists()
    empty = write_leveldb(tmp_path / "empty", [])
    with pytest.raises(caffe.CaffeError, match="empty: the database has no records"):
        data_net(data(empty, backend="LEVELDB"))


def test_a_leveldb_that_is_broken(tmp_path: Path) -> None:
    source = write_leveldb(tmp_path / "leveldb", [raw(picture(40, 40, seed=i)) for i in range(9)])
    (log,) = source.glob("*.log")  # where the records are until LevelDB sorts them into a table
    written = bytearray(log.read_bytes())
    written[len(written) // 2] ^= 1
    log.write_bytes(written)
    with pytest.raises(caffe.CaffeError, match=r"leveldb: not a LevelDB that can be read \(Corruption"):
        data_net(data(source, backend="LEVELDB"))
    (source / "CURRENT").write_text("MANIFEST-999999\n")
    with pytest.raises(caffe.CaffeError, match=r"leveldb: not a LevelDB that can be read \("):
        data_net(data(source, backend="LEVELDB"))


def test_images_of_several_sizes_are_cropped_one_by_one(tmp_path: Path) -> None:
    images = [picture(8, 9), picture(6, 6, seed=1), picture(15, 7, seed=2), picture(7, 12, seed=3)]
    source = write_lmdb(tmp_path / "db", [encoded(image, i) for i, image in enumerate(images)])
    ((found, labels),) = batches(
        data_net(data(source, transform="crop_size: 6 mean_value: 1 mean_value: 2 mean_value: 3")), 1
    )
    assert labels.tolist() == [0, 1, 2, 3]
    corners = [(1, 1), (0, 0), (4, 0), (0, 3)]
    for image, crop, (y, x) in zip(images, found, corners, strict=True):
        expected = chw(image[y : y + 6, x : x + 6]).astype(np.float32) - np.float32([1, 2, 3])[:, None, None]
        np.testing.assert_array_equal(crop, expected)
    assert_resumes(data(source, transform="crop_size: 6 mirror: true"))
    with pytest.raises(caffe.CaffeError, match=r"images of shape \(3, 6, 6\) and \(3, 8, 9\) in one batch"):
        data_net(data(source)).forward()
    with pytest.raises(caffe.CaffeError, match=r"crop_size 7 is larger than the images of 6×6"):
        data_net(data(source, transform="crop_size: 7")).forward()


def test_a_batch_of_one_takes_the_images_as_they_come(tmp_path: Path) -> None:
    images = [picture(8, 9), picture(6, 6, seed=1)]
    net = data_net(data(write_lmdb(tmp_path / "db", [encoded(image) for image in images]), batch=1))
    for image in [*images, images[0]]:
        ((found, _),) = batches(net, 1)
        np.testing.assert_array_equal(found[0], chw(image))
        assert net.blobs["data"].shape == (1, 3, *image.shape[:2])


def test_random_crops_are_windows_of_the_image_minus_those_of_the_mean(tmp_path: Path) -> None:
    image, mean = picture(9, 8), picture(9, 8, seed=1).astype(np.float32)
    save_mean(tmp_path / "mean.binaryproto", chw(mean))
    source = write_lmdb(tmp_path / "db", [raw(image)])
    settings = f'crop_size: 6 mirror: true scale: 0.25 mean_file: "{tmp_path}/mean.binaryproto"'
    net = data_net(data(source, transform=settings, batch=64), phase=caffe.TRAIN)
    whole = (chw(image).astype(np.float32) - chw(mean)) * 0.25
    windows = {
        (y, x, step): whole[:, y : y + 6, x : x + 6][:, :, ::step]
        for y in range(4)
        for x in range(3)
        for step in (1, -1)
    }
    seen = set()
    for crop in np.concatenate([found for found, _ in batches(net, 4)]):
        matches = [place for place, window in windows.items() if np.array_equal(window, crop)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(windows)  # 256 draws of 24


@pytest.mark.parametrize("force", ["force_color: true", "force_gray: true", ""])
def test_encoded_images_as_they_are_forced(tmp_path: Path, force: str) -> None:
    colour, grey = picture(6, 6), picture(6, 6, 1, seed=1)
    for name, image in (("colour", colour), ("grey", grey)):
        source = write_lmdb(tmp_path / name, [encoded(image)])
        flags = {"": cv2.IMREAD_UNCHANGED, "force_color: true": cv2.IMREAD_COLOR}.get(force, cv2.IMREAD_GRAYSCALE)
        expected = chw(cv2.imdecode(cv2.imencode(".png", image)[1], flags))
        ((found, _),) = batches(data_net(data(source, transform=force, batch=1)), 1)
        np.testing.assert_array_equal(found[0], expected)
    older = data_net(data(tmp_path / "grey", "force_encoded_color: true", batch=1))
    assert older.blobs["data"].shape == (1, 3, 6, 6)
    with pytest.raises(caffe.CaffeError, match="force_color and force_gray are both set"):
        data_net(data(tmp_path / "grey", transform="force_color: true force_gray: true"))


def test_rand_skip_begins_within_the_first_records(tmp_path: Path) -> None:
    source = write_lmdb(tmp_path / "db", [raw(picture(4, 4), i) for i in range(6)])
    starts = {batches(data_net(data(source, "rand_skip: 4", batch=1), seed=seed), 1)[0][1][0] for seed in range(40)}
    assert starts == {0, 1, 2, 3}
    net = data_net(data(source, "rand_skip: 1000", batch=6))  # more than there are: it goes round
    assert sorted(batches(net, 1)[0][1]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("streamed")
def test_a_broken_record_names_its_key_and_is_met_again(tmp_path: Path) -> None:
    datums = [raw(picture(4, 4), i) for i in range(6)]
    datums[5] = Datum(encoded=True, data=b"\x89PNG")
    net = data_net(data(write_lmdb(tmp_path / "db", datums)))
    batches(net, 1)
    for _ in range(2):
        with pytest.raises(caffe.CaffeError, match=r"layer 'data' \(Data\): .*db: record '00000005': encoded Datum"):
            net.forward()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ('mean_file: "m" mean_value: 1', "mean_file and mean_value are both given"),
        ("mean_value: 1 mean_value: 2", "has 2 mean_value; expected 1 or 3"),
        ('mean_file: "MEAN"', r"the mean's shape is \(1, 4, 4\); the images' is \(3, 4, 4\)"),
        ("crop_size: 5", "crop_size 5 is larger than the images of 4×4"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, transform: str, message: str) -> None:
    save_mean(tmp_path / "mean.binaryproto", np.zeros((1, 4, 4), np.float32))
    source = write_lmdb(tmp_path / "db", [raw(picture(4, 4))])
    transform = transform.replace("MEAN", str(tmp_path / "mean.binaryproto"))
    with pytest.raises(caffe.CaffeError, match=f"layer 'data' \\(Data\\): .*{message}"):
        data_net(data(source, transform=transform))
    with pytest.raises(caffe.CaffeError, match="batch_size is 0; expected at least 1"):
        data_net(data(source, batch=0))


# What reads ahead


def test_ahead_gives_all_in_order_and_makes_no_more_than_asked() -> None:
    made = []

    def items() -> object:
        for i in range(1000):
            made.append(i)
            yield i

    ahead = Ahead(items(), 3)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    ahead.close()
    assert len(made) <= 13
    assert made == list(range(len(made)))


@pytest.mark.parametrize("resident", [True, False])
def test_a_script_may_have_the_lmdb_open_beside_the_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    """Before the net and after it, though the LMDB library opens an LMDB once in a process."""
    if not resident:
        monkeypatch.setattr(data_layers, "RESIDENT_BYTES", 0)
    source = write_lmdb(tmp_path / "db", [encoded(picture(9, 8, seed=i), i) for i in range(6)])
    with lmdb.open(str(source), readonly=True) as env, env.begin() as transaction:
        labels = [caffe.io.caffe_pb2.Datum.FromString(value).label for _, value in transaction.cursor()]
        net = data_net(data(source))
    (first,) = batches(net, 1)
    with lmdb.open(str(source), map_size=1 << 26) as env, env.begin() as transaction:
        assert transaction.stat()["entries"] == 6
        (second,) = batches(net, 1)
    assert [*first[1], *second[1]] == [*labels, *labels[:2]]


@pytest.mark.parametrize("records", [4, 9])
def test_an_lmdb_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    """With fewer or more records: there is no place for these in what was made for those that there were."""
    source = write_lmdb(tmp_path / "db", [raw(picture(4, 4, seed=i), i) for i in range(6)])
    reader = DatumReader(source)
    monkeypatch.setattr(data_layers, "RESIDENT_BYTES", 0)
    net = data_net(data(source))
    shutil.rmtree(source)
    write_lmdb(source, [raw(picture(4, 4, seed=i), i) for i in range(records)])
    expected = rf"db: has {records} records, and had 6 when it was opened"
    for read in (reader.read_all, reader.keys, lambda: reader.soft_labels(9)):
        with pytest.raises(caffe.CaffeError, match=expected):
            read()
    with pytest.raises(caffe.CaffeError, match=expected):
        batches(net, 9)


def test_threads_end_with_their_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_layers, "RESIDENT_BYTES", 0)
    source = write_lmdb(tmp_path / "db", [encoded(picture(9, 8, seed=i), i) for i in range(10)])
    gc.collect()
    before = set(threading.enumerate())
    for _ in range(30):
        batches(data_net(data(source)), 2)
    deadline = time.monotonic() + 60
    while threads := set(threading.enumerate()) - before:  # what a thread still does keeps its net alive
        assert time.monotonic() < deadline, threads
        time.sleep(0.05)
        gc.collect()
