"""HDF5Data and HDF5Output against files that h5py writes and reads; files that are broken."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from data_nets import assert_resumes, assert_same, batches, data_net
from google.protobuf import text_format
from small_nets import input_layer, normal

import caffe
from caffe.proto.caffe_pb2 import NetParameter

# HDF5Data


def write_files(folder: Path, counts: list[int], **settings: object) -> Path:
    """Files of so many rows, numbered through in `label`; `data` is 2×3 values that begin with ten times the number."""
    first = 0
    for i, count in enumerate(counts):
        labels = np.arange(first, first + count)
        with h5py.File(folder / f"{i}.h5", "w") as file:
            values = 10 * labels[:, None, None] + np.arange(6).reshape(2, 3)
            file.create_dataset("data", data=values.astype(np.float32), **settings)
            file.create_dataset("label", data=labels, **settings)
        first += count
    (folder / "list.txt").write_text("".join(f"{folder}/{i}.h5\n" for i in range(len(counts))))
    return folder / "list.txt"


def hdf5_data(source: Path, settings: str = "", batch: int = 4) -> str:
    return f'type: "HDF5Data" hdf5_data_param {{ source: "{source}" batch_size: {batch} {settings} }}'


def labels_of(net: caffe.Net, count: int) -> list[int]:
    """The labels of the next batches; each row's data belongs to its label."""
    labels = []
    for data, label in batches(net, count):
        np.testing.assert_array_equal(data[:, 0, 0], 10 * label)
        np.testing.assert_array_equal(data - data[:, :1, :1], np.broadcast_to(np.arange(6).reshape(2, 3), data.shape))
        labels += label.astype(int).tolist()
    return labels


@pytest.mark.parametrize("counts", [[10], [3, 4, 1, 2], [9, 1]])
@pytest.mark.parametrize("batch", [1, 4, 23])
def test_rows_come_file_after_file_and_from_the_first_again(tmp_path: Path, counts: list[int], batch: int) -> None:
    net = data_net(hdf5_data(write_files(tmp_path, counts), batch=batch))
    assert (net.blobs["data"].shape, net.blobs["label"].shape) == ((batch, 2, 3), (batch,))
    assert labels_of(net, 7) == [i % 10 for i in range(7 * batch)]


def test_tops_are_the_data_sets_of_their_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/pairs"] = normal(5, 2)
        file["half"] = normal(5, 1, 3, 2, 2).astype(np.float16)
        file["whole"] = np.arange(5, dtype=np.uint8)
    (tmp_path / "list.txt").write_text(f" {tmp_path}/x.h5 ")
    net = data_net(hdf5_data(tmp_path / "list.txt", batch=5), tops=("half", "deep/pairs", "whole"))
    ((half, pairs, whole),) = batches(net, 1)
    np.testing.assert_array_equal(half, normal(5, 1, 3, 2, 2).astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(pairs, normal(5, 2))
    assert whole.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("counts", [[10], [3, 4, 1, 2]])
def test_shuffling_mixes_files_and_rows_but_leaves_no_row_out(tmp_path: Path, counts: list[int]) -> None:
    layer = hdf5_data(write_files(tmp_path, counts), "shuffle: true", batch=5)
    labels = labels_of(data_net(layer), 8)
    rounds = [tuple(labels[i : i + 10]) for i in range(0, 40, 10)]
    assert all(sorted(each) == list(range(10)) for each in rounds)
    assert len(set(rounds)) == 4
    bounds = np.cumsum([0, *counts])
    for each in rounds:  # the rows of a file stay together
        files = [int(np.searchsorted(bounds, label, side="right")) for label in each]
        assert len([i for i in range(9) if files[i] != files[i + 1]]) == len(counts) - 1
    assert labels_of(data_net(layer), 8) == labels
    assert labels_of(data_net(layer, seed=2), 8) != labels


@pytest.mark.parametrize("settings", ["", "shuffle: true"])
@pytest.mark.parametrize("counts", [[7], [3, 4, 1, 2]])
def test_hdf5_data_goes_on_from_a_state(tmp_path: Path, counts: list[int], settings: str) -> None:
    layer = hdf5_data(write_files(tmp_path, counts), settings, batch=3)
    assert_resumes(layer)
    assert_resumes(layer, before=0)


def test_compressed_files(tmp_path: Path) -> None:
    source = write_files(tmp_path, [2000], chunks=True, compression="gzip")
    assert labels_of(data_net(hdf5_data(source)), 2) == list(range(8))


def spoil(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", None, "1.h5: /label is missing; expected numbers"),
        ("label", np.zeros(3), "1.h5: /label has 3 rows; /data has 2"),
        ("data", np.zeros((2, 3, 2)), r"1.h5: /data has rows of shape \(3, 2\); those of .*0.h5 have \(2, 3\)"),
        ("label", np.array([b"a", b"b"]), r"1.h5: /label is of type \|S1"),
        ("label", np.float32(3), r"1.h5: /label has shape \(\); expected rows"),
        ("data", np.zeros((0, 2, 3)), r"1.h5: /data has shape \(0, 2, 3\); expected rows"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, name: str, value: object, message: str) -> None:
    source = write_files(tmp_path, [2, 2])
    spoil(tmp_path / "1.h5", name, value)
    with pytest.raises(caffe.CaffeError, match=rf"layer 'data' \(HDF5Data\): .*list\.txt: .*{message}"):
        data_net(hdf5_data(source))


def test_lists_and_files_that_are_broken(tmp_path: Path) -> None:
    source = write_files(tmp_path, [2, 2])
    with pytest.raises(caffe.CaffeError, match="has a transform_param; HDF5Data does not transform"):
        data_net(hdf5_data(source) + " transform_param { scale: 2 }")
    with pytest.raises(caffe.CaffeError, match="batch_size is 0"):
        data_net(hdf5_data(source, batch=0))
    (tmp_path / "1.h5").write_text("no HDF5")
    with pytest.raises(caffe.CaffeError, match=r"list\.txt: .*1\.h5: not an HDF5 file that can be read"):
        data_net(hdf5_data(source))
    (tmp_path / "1.h5").unlink()
    with pytest.raises(caffe.CaffeError, match=r"list\.txt: .*1\.h5: No such file"):
        data_net(hdf5_data(source))
    source.write_text("\n")
    with pytest.raises(caffe.CaffeError, match=r"list\.txt: lists no file"):
        data_net(hdf5_data(source))
    source.unlink()
    with pytest.raises(caffe.CaffeError, match=r"list\.txt: No such file"):
        data_net(hdf5_data(source))


def test_a_claimed_size_is_not_taken_at_its_word(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file.create_dataset("data", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/0.h5\n")
    with pytest.raises(caffe.CaffeError, match=r"/data has shape \(1048576, 1048576\), far more than is in the file"):
        data_net(hdf5_data(tmp_path / "list.txt"), tops=("data",))


def test_a_file_that_changes_under_the_net(tmp_path: Path) -> None:
    source = write_files(tmp_path, [2, 2])
    net = data_net(hdf5_data(source, batch=2))
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file["data"], file["label"] = np.zeros((3, 2, 3)), np.zeros(3)
    (tmp_path / "new.h5").replace(tmp_path / "1.h5")
    batches(net, 1)
    with pytest.raises(caffe.CaffeError, match=r"layer 'data' .*1\.h5: has changed since the net was made"):
        batches(net, 1)


# HDF5Output


def output_net(path: Path | str, *shapes: tuple) -> caffe.Net:
    inputs = "".join(input_layer(f"x{i}", *shape) for i, shape in enumerate(shapes))
    bottoms = " ".join(f'bottom: "x{i}"' for i in range(len(shapes)))
    layer = f'layer {{ name: "out" type: "HDF5Output" {bottoms} hdf5_output_param {{ file_name: "{path}" }} }}'
    return caffe.Net(text_format.Parse(inputs + layer, NetParameter()), phase=caffe.TEST)


def test_output_has_caffes_layout_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_text("something old")
    net = output_net(path, (2, 3, 4), (2,))
    with h5py.File(path) as file:
        assert list(file) == []
    written = [(normal(2, 3, 4, seed=i), np.float32([i, -i])) for i in range(3)]
    for data, label in written:
        net.blobs["x0"].data[...], net.blobs["x1"].data[...] = data, label
        assert set(net.forward()) <= {"x0", "x1"}
    with h5py.File(path) as file:
        assert set(file) == {"data", "label"}
        assert file["data"].dtype == file["label"].dtype == np.float32
        np.testing.assert_array_equal(file["data"], np.concatenate([data for data, _ in written])[..., None])
        np.testing.assert_array_equal(
            file["label"], np.concatenate([label for _, label in written]).reshape(6, 1, 1, 1)
        )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    net = output_net(tmp_path / "out.h5", (4, 2, 3, 1), (4, 1, 1, 1))
    net.blobs["x0"].data[...] = normal(4, 2, 3, 1)
    net.forward()
    (tmp_path / "list.txt").write_text(f"{tmp_path}/out.h5")
    ((data, label),) = batches(data_net(hdf5_data(tmp_path / "list.txt")), 1)
    assert_same([[data, label]], [[normal(4, 2, 3, 1), np.zeros((4, 1, 1, 1), np.float32)]])


def test_output_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    for shapes, message in (
        (((2, 3), (3, 1)), "the bottoms have 2 and 3 rows; expected as many"),
        (((2, 1, 1, 1, 1), (2,)), r"bottom 'x0' has shape \(2, 1, 1, 1, 1\); expected at most 4 axes"),
        (((2,),), "has 1 bottoms"),
    ):
        with pytest.raises(caffe.CaffeError, match=rf"layer 'out' \(HDF5Output\).*{message}"):
            output_net(path, *shapes)
        assert not path.exists()
    with pytest.raises(caffe.CaffeError, match="file_name is not given"):
        output_net("", (2,), (2,))
    with pytest.raises(caffe.CaffeError, match=r"layer 'out' .*nowhere/out\.h5: cannot be written"):
        output_net(tmp_path / "nowhere" / "out.h5", (2,), (2,))
    net = output_net(path, (2, 3), (2,))
    net.forward()
    net.blobs["x0"].reshape(2, 4)
    with pytest.raises(caffe.CaffeError, match=r"out\.h5: /data has rows of shape \(3, 1, 1\); these have \(4, 1, 1\)"):
        net.forward()
