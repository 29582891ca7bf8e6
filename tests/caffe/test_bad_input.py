"""What fuzzing found: files and settings that were another error than the documented one, or took all memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from google.protobuf import text_format
from small_nets import net_of, one_layer

import caffe
from caffe.files import read_bytes
from caffe.io import array_to_blobproto, blobproto_to_array, load_mean, read_net_parameter
from caffe.proto.caffe_pb2 import BlobProto, SolverParameter, SolverState
from caffe.solver import learning_rate


@pytest.fixture
def solver() -> caffe.Solver:
    """Of a net with a random layer and one parameter."""
    text = 'base_lr: 0.1 lr_policy: "fixed" type: "Adam" net_param {' + "".join(
        [
            'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } } }',
            'layer { name: "drop" type: "Dropout" bottom: "x" top: "x" }',
            'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" '
            "  inner_product_param { num_output: 1 bias_term: false } }",
            'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 } }',
        ]
    )
    return caffe.get_solver(text_format.Parse(text, SolverParameter()))


def state_of(solver: caffe.Solver) -> SolverState:
    return SolverState(iter=2, history=[array_to_blobproto(np.zeros(h.shape)) for h in solver.history])


# Files


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Data" data_param { source: "a\\0b" backend: LMDB batch_size: 1 }',
        'type: "Data" data_param { source: "a\\0b" backend: LEVELDB batch_size: 1 }',
        'type: "ImageData" image_data_param { source: "a\\0b" batch_size: 1 }',
        'type: "HDF5Data" hdf5_data_param { source: "a\\0b" batch_size: 1 }',
        'type: "WindowData" window_data_param { source: "a\\0b" batch_size: 1 } transform_param { crop_size: 1 }',
        'type: "MemoryData" memory_data_param { batch_size: 1 channels: 1 height: 1 width: 1 } '
        'transform_param { mean_file: "a\\0b" }',
    ],
)
def test_a_0_in_a_name(layer: str) -> None:
    with pytest.raises(caffe.CaffeError, match=r"layer 'data' \(\w+\): .*embedded null"):
        net_of(f'layer {{ name: "data" top: "a" top: "b" {layer} }}')


def test_a_0_in_the_name_of_an_output() -> None:
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer' \(HDF5Output\): .*a 0 in its name"):
        one_layer('type: "HDF5Output" hdf5_output_param { file_name: "a\\0b" }', (1, 2), (1, 2), tops=())


@pytest.mark.parametrize("reader", [load_mean, read_net_parameter, read_bytes])
def test_a_device_without_an_end(reader) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(caffe.CaffeError, match="it is a device; expected a file"):
        reader("/dev/zero")


def test_a_blob_of_no_values_and_absurd_sizes() -> None:
    blob = BlobProto(num=2**31 - 1, channels=2**31 - 1, height=2**31 - 1, width=0)
    with pytest.raises(caffe.CaffeError, match=r"the shape \(2147483647, .*; a blob has at most 2147483647 values"):
        blobproto_to_array(blob)


@pytest.mark.filterwarnings("error")
def test_doubles_that_no_float_holds() -> None:
    blob = BlobProto(double_data=[1e300, -1e300, 2])
    blob.shape.dim.append(3)
    assert blobproto_to_array(blob).tolist() == [np.inf, -np.inf, 2]


# Settings


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        ('type: "BatchNorm"', (), r"bottom 'x0' is a scalar; expected N×C×…"),
        ('type: "InnerProduct" inner_product_param { num_output: 2 weight_filler { type: "xavier" } }', (1, 0),
         r"filler 'xavier': the shape \(2, 0\) has no values"),
        ('type: "BatchNorm" batch_norm_param { eps: -inf }', (1, 2), "eps is -inf; expected at least 0"),
        ('type: "BatchNorm" batch_norm_param { eps: nan }', (1, 2), "eps is nan; expected at least 0"),
        ('type: "Bias" bias_param { filler { type: "uniform" min: -3e38 max: 3e38 } }', (1, 2), "finite numbers"),
        ('type: "Bias" bias_param { filler { type: "uniform" max: inf } }', (1, 2), "max inf; expected finite numbers"),
        ('type: "Bias" bias_param { filler { type: "uniform" max: nan } }', (1, 2), "max nan; expected finite numbers"),
        ('type: "Bias" bias_param { filler { type: "gaussian" std: nan } }', (1, 2), "std nan is .* no number"),
    ],
)  # fmt: skip
def test_settings_that_no_layer_can_have(layer: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer' \(\w+\): .*{message}"):
        one_layer(layer, shape)


@pytest.mark.parametrize("fraction", ["nan", "inf", "1e38", "-inf"])
def test_a_share_of_windows_that_is_none(fraction: str) -> None:
    layer = f'type: "WindowData" window_data_param {{ source: "none" batch_size: 9 fg_fraction: {fraction} }}'
    with pytest.raises(caffe.CaffeError, match=r"fg_fraction is .*; expected 0 to 1"):
        net_of(f'layer {{ name: "data" top: "a" top: "b" {layer} transform_param {{ crop_size: 9 }} }}')


def test_batches_read_ahead_without_end() -> None:
    layer = 'type: "HDF5Data" hdf5_data_param { source: "none" batch_size: 1 } data_param { prefetch: 4294967295 }'
    with pytest.raises(caffe.CaffeError, match="prefetch is 4294967295; expected at most 1000"):
        net_of(f'layer {{ name: "data" top: "a" {layer} }}')


def test_a_scalar_that_the_gaussian_filler_thins_out() -> None:
    layer = 'type: "Bias" bias_param { axis: 0 num_axes: 0 filler { type: "gaussian" sparse: 1 std: 1 } }'
    assert one_layer(layer, (2,)).params["layer"][0].shape == ()


def test_a_batch_norm_without_eps() -> None:
    net = one_layer('type: "BatchNorm" batch_norm_param { eps: 0 }', (3, 1), phase=caffe.TRAIN)
    net.blobs["x0"].data[...] = [[1], [2], [3]]
    np.testing.assert_allclose(net.forward()["y"].ravel(), np.array([-1, 0, 1]) / np.sqrt(2 / 3), rtol=1e-6)


def test_three_bottoms_of_a_loss_that_differ() -> None:
    with pytest.raises(caffe.CaffeError, match=r"bottoms 'x0' \(3, 2\) and 'x1' \(4, 2\) differ in axis 0"):
        one_layer('type: "ContrastiveLoss"', (3, 2), (4, 2), (3,))


# Solvers


@pytest.mark.parametrize(
    ("settings", "iteration", "expected"),
    [
        ('lr_policy: "exp" gamma: 3e38', 2**31 - 1, np.inf),
        ('lr_policy: "exp" gamma: -3e38', 2**31 - 1, -np.inf),
        ('lr_policy: "inv" gamma: -1 power: 1', 1, np.inf),
        ('lr_policy: "inv" gamma: -1 power: 0.5', 9, np.nan),
        ('lr_policy: "poly" max_iter: 1 power: -1', 1, np.inf),
        ('lr_policy: "step" stepsize: 1 gamma: 1e30', 99, np.inf),
        ('lr_policy: "multistep" stepvalue: 1 stepvalue: 1 gamma: 2', 5, 4),
    ],
)  # fmt: skip
def test_rates_beyond_all_numbers(settings: str, iteration: int, expected: float) -> None:
    param = text_format.Parse(f"base_lr: 1 {settings}", SolverParameter())
    np.testing.assert_equal(learning_rate(param, iteration), float(expected))


@pytest.mark.parametrize("momentum", ["momentum: 1", "momentum2: 2", "momentum: nan"])
def test_adam_with_a_momentum_of_1_or_more(solver: caffe.Solver, momentum: str) -> None:
    param = SolverParameter()
    param.CopyFrom(solver.param)
    made = caffe.get_solver(text_format.Merge(momentum, param))
    made.step(2)
    assert made.iter == 2


@pytest.mark.parametrize("settings", ["debug_info: true", "clip_gradients: 1"])
def test_a_net_that_learns_nothing(settings: str) -> None:
    param = text_format.Parse(f'base_lr: 1 lr_policy: "fixed" display: 1 {settings}', SolverParameter())
    param.net_param.force_backward = param.net_param.debug_info = True
    made = caffe.get_solver(param)
    made.step(2)
    assert made.iter == 2


def test_a_test_of_no_batches(solver: caffe.Solver) -> None:
    """As in Caffe it has no outputs."""
    param = SolverParameter(test_iter=[0], test_interval=1, test_compute_loss=True)
    param.MergeFrom(solver.param)
    made = caffe.get_solver(param)
    made.step(1)
    assert made.test(0) == {}


@pytest.mark.parametrize("random_state", [b"", b"abc", b"\xff" * 5056])
def test_a_random_state_that_is_none(solver: caffe.Solver, tmp_path: Path, random_state: bytes) -> None:
    state = state_of(solver)
    state.layer_state.add(layer="drop", random_state=random_state)
    (tmp_path / "s.solverstate").write_bytes(state.SerializeToString())
    before = solver.net.states()
    with pytest.raises(caffe.CaffeError, match=r"layer 'drop' \(Dropout\): the snapshot's random state is"):
        solver.restore(tmp_path / "s.solverstate")
    assert (solver.iter, solver.net.states()) == (0, before)


def test_weights_that_are_missing_leave_all_as_it_was(solver: caffe.Solver, tmp_path: Path) -> None:
    state = state_of(solver)
    state.learned_net = "missing.caffemodel"
    drop = solver.net.layer_dict["drop"]
    solver.net.forward()
    other = caffe.get_solver(solver.param).net.layer_dict["drop"].state()
    state.layer_state.add(layer="drop", **other)
    (tmp_path / "s.solverstate").write_bytes(state.SerializeToString())
    before = drop.state()
    assert before != other
    with pytest.raises(caffe.CaffeError, match=r"its weights missing\.caffemodel are neither there nor beside it"):
        solver.restore(tmp_path / "s.solverstate")
    assert drop.state() == before


def test_a_state_of_a_negative_iteration(solver: caffe.Solver, tmp_path: Path) -> None:
    state = state_of(solver)
    state.iter = -1  # after which Adam would divide by 1 − momentum^0
    (tmp_path / "s.solverstate").write_bytes(state.SerializeToString())
    with pytest.raises(caffe.CaffeError, match=r"s\.solverstate: iter is -1; expected at least 0"):
        solver.restore(tmp_path / "s.solverstate")


def data_layer(tmp_path: Path) -> caffe.Net:
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["rows"] = np.arange(3.0)
    (tmp_path / "list").write_text(f"{tmp_path}/rows.h5")
    settings = f'hdf5_data_param {{ source: "{tmp_path}/list" batch_size: 2 shuffle: true }}'
    return net_of(f'layer {{ name: "data" type: "HDF5Data" top: "rows" {settings} }}')


def test_a_position_beyond_all_rounds(tmp_path: Path) -> None:
    """It seeds the shuffling, by a number of 32 bits."""
    layer = data_layer(tmp_path)
    layer.layers[0].set_state({**layer.layers[0].state(), "position": 2**64 - 1})
    layer.forward()
    assert set(layer.blobs["rows"].data.tolist()) <= {0, 1, 2}


def test_a_state_without_a_position(tmp_path: Path) -> None:
    layer = data_layer(tmp_path).layers[0]
    with pytest.raises(caffe.CaffeError, match=r"layer 'data' \(HDF5Data\): the snapshot has no position for it"):
        layer.set_state({"random_state": layer.state()["random_state"]})
