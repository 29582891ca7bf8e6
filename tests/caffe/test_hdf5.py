"""Caffe's HDF5 weights and solver states: the layout as h5py sees it, what comes back, and files that are broken."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe import CaffeError, hdf5

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
BIAS = np.array([-1.5, 2.0], np.float32)
SHAPES = {"ip": [(2, 3), (2,)]}


def caffe_weights(path: Path, dtype: str = "f4") -> Path:
    """A weights file with the layout that Caffe's ToHDF5 gives it, written by hand."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data/ip/0", data=WEIGHT, dtype=dtype)
        file.create_dataset("data/ip/1", data=BIAS, dtype=dtype)
        file.create_group("data/relu")
    return path


def caffe_state(path: Path) -> Path:
    """A state as Caffe writes it: integers of shape (1,), a string that ends with a 0, no additions of ours."""
    with h5py.File(path, "w") as file:
        file["iter"] = np.array([15], np.int32)
        file["current_step"] = np.array([2], np.int32)
        file["learned_net"] = np.array(b"net_iter_15.caffemodel.h5\0", "S26")
        file["history/0"] = WEIGHT
        file["history/1"] = BIAS
    return path


# Weights


def test_weights_have_caffes_layout(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    hdf5.write_weights(path, {"ip": [WEIGHT.astype(np.float64), BIAS], "relu": [], "twin": [None, BIAS]})
    with h5py.File(path) as file:
        assert set(file) == {"data"}
        assert set(file["data"]) == {"ip", "relu", "twin"}
        assert list(file["data/relu"]) == []
        assert list(file["data/twin"]) == ["1"]  # the shared parameter is its owner's
        assert file["data/ip/0"].dtype == np.float32
        np.testing.assert_array_equal(file["data/ip/0"], WEIGHT)
        np.testing.assert_array_equal(file["data/ip/1"], BIAS)


def test_diffs_are_written_of_shared_parameters_too(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    hdf5.write_weights(path, {"ip": [WEIGHT], "twin": [None]}, {"ip": [2 * WEIGHT], "twin": [3 * WEIGHT]})
    with h5py.File(path) as file:
        assert list(file["data/twin"]) == []
        np.testing.assert_array_equal(file["diff/ip/0"], 2 * WEIGHT)
        np.testing.assert_array_equal(file["diff/twin/0"], 3 * WEIGHT)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4"])
def test_caffes_weights_are_read(tmp_path: Path, dtype: str) -> None:
    found = hdf5.read_weights(caffe_weights(tmp_path / "w.h5", dtype), {**SHAPES, "absent": [(1,)], "relu": []})
    assert set(found) == {"ip", "relu"}
    assert found["relu"] == {}
    assert found["ip"][0].dtype == np.float32
    np.testing.assert_array_equal(found["ip"][0], WEIGHT.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(found["ip"][1], BIAS)


def test_integers_are_numbers_too_and_a_parameter_may_be_a_scalar(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["data/scale/0"] = np.int64(3)
    found = hdf5.read_weights(tmp_path / "w.h5", {"scale": [()]})["scale"][0]
    assert found.shape == ()
    assert found == 3


def test_layers_that_the_net_lacks_are_passed_over(tmp_path: Path) -> None:
    assert hdf5.read_weights(caffe_weights(tmp_path / "w.h5"), {"other": [(5,)]}) == {}


def test_names_with_slashes_come_back(tmp_path: Path) -> None:
    layers = {"inception": [BIAS], "inception/1x1": [WEIGHT, BIAS], "inception/3x3/reduce": [BIAS]}
    hdf5.write_weights(tmp_path / "w.h5", layers)
    shapes = {name: [array.shape for array in arrays] for name, arrays in layers.items()}
    found = hdf5.read_weights(tmp_path / "w.h5", shapes)
    assert {name: list(arrays) for name, arrays in found.items()} == {
        "inception": [0],
        "inception/1x1": [0, 1],
        "inception/3x3/reduce": [0],
    }
    np.testing.assert_array_equal(found["inception/1x1"][0], WEIGHT)


def test_a_shared_parameter_may_be_missing_and_no_other(tmp_path: Path) -> None:
    hdf5.write_weights(tmp_path / "w.h5", {"twin": [None, BIAS]})
    found = hdf5.read_weights(tmp_path / "w.h5", {"twin": [(2, 3), (2,)]}, shared={("twin", 0)})
    assert list(found["twin"]) == [1]
    with pytest.raises(CaffeError, match=r"^[^ ]*w\.h5: /data/twin/0 is missing; expected numbers of shape \(2, 3\)$"):
        hdf5.read_weights(tmp_path / "w.h5", {"twin": [(2, 3), (2,)]})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 2), (2,)], r"/data/ip/0 has shape \(2, 3\); expected \(3, 2\)"),
        ([(2, 3)], r"/data/ip/1 is no parameter of layer 'ip', which has 1"),
        ([(2, 3), (2,), (4,)], r"/data/ip/2 is missing"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, shapes: list, message: str) -> None:
    with pytest.raises(CaffeError, match=r"w\.h5: " + message):
        hdf5.read_weights(caffe_weights(tmp_path / "w.h5"), {"ip": shapes})


def test_a_claimed_size_is_not_taken_at_its_word(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("data/ip/0", shape=(1 << 40,), dtype="f4", chunks=(1024,))
    assert (tmp_path / "w.h5").stat().st_size < 1 << 16
    with pytest.raises(CaffeError, match=r"/data/ip/0 has shape \(1099511627776,\); expected \(2,\)"):
        hdf5.read_weights(tmp_path / "w.h5", {"ip": [(2,)]})


def test_other_files_than_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with pytest.raises(CaffeError, match=r"w\.h5: No such file"):
        hdf5.read_weights(path, SHAPES)
    path.write_bytes(b"name: 'net'")
    with pytest.raises(CaffeError, match=r"w\.h5: not an HDF5 file that can be read"):
        hdf5.read_weights(path, SHAPES)
    whole = caffe_weights(tmp_path / "whole.h5").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaffeError, match=r"w\.h5: not an HDF5 file that can be read"):
        hdf5.read_weights(path, SHAPES)
    with pytest.raises(CaffeError, match=r"s\.h5: /data is missing; expected a group"):
        hdf5.read_weights(caffe_state(tmp_path / "s.h5"), SHAPES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([b"a", b"b"]), r"/data/ip/1 is of type \|S1"),
        (np.array([True, False]), r"/data/ip/1 is of type bool"),
        (h5py.Empty("f4"), r"/data/ip/1 is of type float32 and shape None"),
    ],
)
def test_parameters_that_are_no_numbers(tmp_path: Path, value: object, message: str) -> None:
    with h5py.File(caffe_weights(tmp_path / "w.h5"), "a") as file:
        del file["data/ip/1"]
        file["data/ip/1"] = value
    with pytest.raises(CaffeError, match=message):
        hdf5.read_weights(tmp_path / "w.h5", SHAPES)


def test_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    with h5py.File(caffe_weights(tmp_path / "w.h5"), "a") as file:
        del file["data/ip/1"]
        h5py.h5d.create(file["data/ip"].id, b"1", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2,)))
    with pytest.raises(CaffeError, match=r"w\.h5: not an HDF5 file that can be read \(No NumPy equivalent"):
        hdf5.read_weights(tmp_path / "w.h5", SHAPES)


def test_groups_and_data_sets_in_each_others_place(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("data/ip/0")
        file["data/conv"] = BIAS
    with pytest.raises(CaffeError, match="/data/ip/0 is a group; expected numbers"):
        hdf5.read_weights(tmp_path / "w.h5", {"ip": [(2,)]})
    with pytest.raises(CaffeError, match="/data/conv is a data set; expected a group"):
        hdf5.read_weights(tmp_path / "w.h5", {"conv": [(2,)]})


@pytest.mark.parametrize("name", ["", "/ip", "ip/", "a//b", "./ip", "a\0b"])
def test_names_that_hdf5_would_change(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaffeError, match="cannot be the path of a group"):
        hdf5.write_weights(tmp_path / "w.h5", {name: [BIAS]})
    assert hdf5.read_weights(caffe_weights(tmp_path / "w.h5"), {name: [(2, 3), (2,)]}) == {}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = caffe_weights(tmp_path / "w.h5")
    before = path.read_bytes()
    with pytest.raises(CaffeError, match="layer name 'a/0' cannot be the path of a group"):
        hdf5.write_weights(path, {"a": [BIAS], "a/0": [BIAS]})
    with pytest.raises(CaffeError):
        hdf5.write_weights(path, {"ip": [WEIGHT], "": [BIAS]})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.h5"]
    with pytest.raises(CaffeError, match=r"nowhere/w\.h5: cannot be written"):
        hdf5.write_weights(tmp_path / "nowhere" / "w.h5", {})
    for name in ("w\0.h5", "no\0where/w.h5"):
        with pytest.raises(CaffeError, match="a 0 in its name"):
            hdf5.write_weights(tmp_path / name, {})


# States


def test_a_state_has_caffes_layout(tmp_path: Path) -> None:
    path = tmp_path / "s.solverstate.h5"
    hdf5.write_state(path, hdf5.State(15, "net_iter_15.caffemodel.h5", 2, [WEIGHT, BIAS]))
    with h5py.File(path) as file:
        assert file["iter"][()].tolist() == [15]
        assert file["current_step"][()].tolist() == [2]
        assert file["iter"].dtype == file["current_step"].dtype == np.int32
        learned_net = file["learned_net"].id
        kind = learned_net.get_type()
        raw = np.zeros((), f"V{kind.get_size()}")
        memory = h5py.h5t.C_S1.copy()
        memory.set_size(kind.get_size())
        learned_net.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, memory)
        # a C program finds the end of the string by its 0
        assert raw.tobytes() == b"net_iter_15.caffemodel.h5\0"
        assert (kind.get_strpad(), kind.get_cset()) == (h5py.h5t.STR_NULLTERM, h5py.h5t.CSET_ASCII)
        assert learned_net.shape == ()
        assert list(file["history"]) == ["0", "1"]
        np.testing.assert_array_equal(file["history/0"], WEIGHT)


def test_caffes_state_is_read(tmp_path: Path) -> None:
    state = hdf5.read_state(caffe_state(tmp_path / "s.h5"), [(2, 3), (2,)])
    assert (state.iteration, state.learned_net, state.current_step) == (15, "net_iter_15.caffemodel.h5", 2)
    np.testing.assert_array_equal(state.history[0], WEIGHT)
    np.testing.assert_array_equal(state.history[1], BIAS)
    assert (state.layer_states, state.loss_window) == ({}, [])


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    layers = {
        "data": {"position": 2**40, "random_state": bytes(range(256)) * 20},
        "test0/data": {"position": 3},
        "drop/1": {"random_state": b"\0\0"},
        "none": {},
    }
    written = hdf5.State(3, "ein Weg/mit Umläuten.h5", 0, [], layers, [0.5, 0.25])
    hdf5.write_state(tmp_path / "s.h5", written)
    assert hdf5.read_state(tmp_path / "s.h5", []) == written


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("iter", None, "/iter is missing; expected an integer"),
        ("current_step", None, "/current_step is missing; expected an integer"),
        ("iter", np.array([1.5]), "/iter is of type float64"),
        ("iter", np.array([1, 2]), r"/iter has shape \(2,\); expected one integer"),
        ("learned_net", np.array([4]), "/learned_net is of type int64"),
        ("history/1", None, "/history holds 1 arrays; this solver and net need 2"),
        ("history/1", np.zeros(3), r"/history/1 has shape \(3,\); expected \(2,\)"),
        ("layer_state/0/position", np.array([1]), "/layer_state/0/layer is missing; expected a string"),
        ("loss_window", np.zeros(1 << 18), "/loss_window has shape"),
        ("history", None, "/history is missing; expected a group"),
    ],
)
def test_broken_states(tmp_path: Path, name: str, value: object, message: str) -> None:
    path = caffe_state(tmp_path / "s.h5")
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(CaffeError, match=r"s\.h5: " + message):
        hdf5.read_state(path, [(2, 3), (2,)])


def test_every_cut_of_a_state_is_an_error(tmp_path: Path) -> None:
    whole = caffe_state(tmp_path / "whole.h5").read_bytes()
    path = tmp_path / "s.h5"
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(CaffeError, match=r"s\.h5: "):
            hdf5.read_state(path, [(2, 3), (2,)])
