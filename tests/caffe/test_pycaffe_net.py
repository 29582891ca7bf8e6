"""pycaffe's Net beside forward and backward: any number of rows, hooks, HDF5 weights, debug_info, names."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from google.protobuf import text_format
from small_nets import input_layer, net_of, normal

import caffe
from caffe import glog
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

NET = (
    input_layer("x", 4, 3)
    + """
  layer { name: "fc1" type: "InnerProduct" bottom: "x" top: "h" inner_product_param { num_output: 5
    weight_filler { type: "gaussian" std: 1 } bias_filler { type: "constant" value: 0.1 } } }
  layer { name: "relu" type: "ReLU" bottom: "h" top: "h" }
  layer { name: "fc2" type: "InnerProduct" bottom: "h" top: "y" inner_product_param { num_output: 2
    weight_filler { type: "gaussian" std: 1 } } }
"""
)
TRAINED = NET + 'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }'


def by_hand(net: caffe.Net, x: np.ndarray) -> np.ndarray:
    (w1, b1), (w2, b2) = ([blob.data for blob in net.params[name]] for name in ("fc1", "fc2"))
    return np.maximum(x @ w1.T + b1, 0) @ w2.T + b2


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_forward_all_takes_any_number_of_rows(rows: int) -> None:
    net, x = net_of(NET), normal(rows, 3)
    out = net.forward_all(blobs=["h"], x=x)
    assert out["h"].shape == (rows, 5)
    np.testing.assert_allclose(out["y"], by_hand(net, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 9])
def test_forward_backward_all(rows: int) -> None:
    net, x, dy = net_of(NET), normal(rows, 3), normal(rows, 2, seed=1)
    values, diffs = net.forward_backward_all(diffs=["h"], x=x, y=dy)
    np.testing.assert_allclose(values["y"], by_hand(net, x), rtol=1e-5, atol=1e-6)
    (w1, b1), (w2, _) = ([blob.data for blob in net.params[name]] for name in ("fc1", "fc2"))
    np.testing.assert_allclose(diffs["x"], (dy @ w2 * (x @ w1.T + b1 > 0)) @ w1, rtol=1e-4, atol=1e-5)
    assert diffs["h"].shape == (rows, 5)


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(caffe.CaffeError, match=r"arrays of \[2, 3\] rows"):
        net_of(NET).forward_backward_all(x=normal(2, 3), y=normal(3, 2))


def test_cleared_diffs_are_so_in_arrays_that_somebody_has() -> None:
    net = net_of(TRAINED)
    net.forward(x=normal(4, 3))
    net.backward()
    diff = net.params["fc1"][0].diff
    once = diff.copy()
    assert once.any()
    net.clear_param_diffs()
    assert (diff == 0).all()
    net.backward()
    np.testing.assert_array_equal(diff, once)


def test_hooks_see_each_layer_and_may_change_it() -> None:
    net, x = net_of(NET), normal(4, 3)
    net.blobs["x"].data[...] = x
    net.forward()
    plain = net.backward(y=np.ones((4, 2), np.float32))["x"].copy()
    weight_diff = net.params["fc1"][0].diff.copy()
    net.clear_param_diffs()
    calls: list[tuple[str, int]] = []
    seen: dict[int, np.ndarray] = {}

    def after(number: int) -> None:
        calls.append(("after", number))
        top = net.top_names[net._layer_names[number]][0]
        seen[number] = net.blobs[top].data.copy()

    net.before_forward(lambda number: calls.append(("before", number)))
    net.after_forward(after)
    net.before_backward(lambda number: calls.append(("down", number)))
    net.after_backward(lambda number: calls.append(("up", number)))
    out = net.forward()["y"]
    assert calls == [(when, number) for number in range(4) for when in ("before", "after")]
    np.testing.assert_allclose(out, by_hand(net, x), rtol=1e-5, atol=1e-6)
    assert seen[1].min() < 0 <= seen[2].min()  # the same blob, before and behind the ReLU in place
    calls.clear()
    np.testing.assert_allclose(net.backward(y=np.ones((4, 2), np.float32))["x"], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.params["fc1"][0].diff, weight_diff, rtol=1e-5, atol=1e-6)
    assert calls == [(when, number) for number in (3, 2, 1, 0) for when in ("down", "up")]

    def zero(number: int) -> None:
        if number == 2:
            net.blobs["h"].data[...] = 0

    net.after_forward(zero)
    np.testing.assert_allclose(net.forward()["y"], np.tile(net.params["fc2"][1].data, (4, 1)))


def test_a_blob_of_another_shape_keeps_as_many_values() -> None:
    blob = net_of(NET).blobs["x"]
    blob.data[...], blob.diff[...] = data, diff = normal(4, 3), normal(4, 3, seed=1)
    blob.reshape(2, 6)
    assert np.array_equal(blob.data, data.reshape(2, 6))
    assert np.array_equal(blob.diff, diff.reshape(2, 6))
    blob.reshape(5, 3)
    assert blob.data.shape == blob.diff.shape == (5, 3)
    assert not blob.data.any()
    assert not blob.diff.any()


@pytest.mark.parametrize("when", ["before_forward", "after_forward", "before_backward", "after_backward"])
def test_one_callback_alone(when: str) -> None:
    net, calls = net_of(NET), []
    getattr(net, when)(calls.append)
    net.forward()
    net.backward(y=np.ones((4, 2), np.float32))
    assert sorted(calls) == [0, 1, 2, 3]


def test_weights_through_hdf5(tmp_path: Path) -> None:
    net, other = net_of(NET, seed=1), net_of(NET, seed=2)
    net.forward()
    net.backward(y=np.ones((4, 2), np.float32))
    path = tmp_path / "net.caffemodel.h5"
    net.save_hdf5(str(path), True)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data/fc1/0"][()], net.params["fc1"][0].data)
        np.testing.assert_array_equal(file["diff/fc2/1"][()], net.params["fc2"][1].diff)
    for load in (other.load_hdf5, other.copy_from):
        other.params["fc1"][0].data[...] = 0
        load(str(path))
        for name in ("fc1", "fc2"):
            for ours, theirs in zip(other.params[name], net.params[name], strict=True):
                np.testing.assert_array_equal(ours.data, theirs.data)


def test_shared_parameters_are_written_once(tmp_path: Path) -> None:
    text = input_layer("x", 2, 3) + "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" param {{ name: "w" }} '
        'inner_product_param { num_output: 3 bias_term: false weight_filler { type: "gaussian" } } }'
        for name, bottom in (("a", "x"), ("b", "a"))
    )
    net, other = net_of(text, seed=1), net_of(text, seed=2)
    net.save_hdf5(tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        assert list(file["data/a"]) == ["0"]
        assert list(file["data/b"]) == []
    other.load_hdf5(tmp_path / "w.h5")
    np.testing.assert_array_equal(other.params["b"][0].data, net.params["a"][0].data)


def test_an_hdf5_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    net, other = net_of(NET), net_of(NET.replace("num_output: 2", "num_output: 3"), seed=2)
    net.save_hdf5(tmp_path / "w.h5")
    before = other.params["fc1"][0].data.copy()
    with pytest.raises(caffe.CaffeError, match=r"w.h5: /data/fc2/0 has shape \(2, 5\); expected \(3, 5\)"):
        other.copy_from(tmp_path / "w.h5")
    np.testing.assert_array_equal(other.params["fc1"][0].data, before)


def test_debug_info_logs_mean_magnitudes() -> None:
    net = net_of(f"debug_info: true {NET}")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("caffe")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        net.blobs["x"].data[...] = normal(4, 3)
        net.forward()
        net.backward(y=np.ones((4, 2), np.float32))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    mean = np.abs(net.blobs["y"].data).mean()
    line = next(line for line in lines if line.startswith("    [Forward] Layer fc2, top blob y data: "))
    assert float(line.rsplit(" ", 1)[1]) == pytest.approx(mean, rel=1e-5)
    line = next(line for line in lines if line.startswith("    [Backward] Layer fc1, param blob 0 diff: "))
    assert float(line.rsplit(" ", 1)[1]) == pytest.approx(np.abs(net.params["fc1"][0].diff).mean(), rel=1e-5)
    values = np.concatenate([blob.data.ravel() for blobs in net.params.values() for blob in blobs])
    diffs = np.concatenate([blob.diff.ravel() for blobs in net.params.values() for blob in blobs])
    norms = [f"({n(values):.6g}, {n(diffs):.6g})" for n in (lambda v: np.abs(v).sum(), np.linalg.norm)]
    assert lines[-1] == f"    [Backward] All net params (data, diff): L1 norm = {norms[0]}; L2 norm = {norms[1]}"


def test_names_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST, 0, ["deploy"], None)
    assert net._layer_names == ["x", "fc1", "relu", "fc2"]
    assert net._blob_names == ["x", "h", "y"]
    assert (net._inputs, net._outputs) == ([0], [2])
    assert dict(net.top_names) == {"x": ["x"], "fc1": ["h"], "relu": ["h"], "fc2": ["y"]}
    assert dict(net.bottom_names) == {"x": [], "fc1": ["x"], "relu": ["h"], "fc2": ["h"]}
    assert (net._top_ids(3), net._bottom_ids(3)) == ([2], [1])
    assert [layer.type for layer in net.layers] == ["Input", "InnerProduct", "ReLU", "InnerProduct"]
    net.blobs["x"].data[...] = normal(4, 3)
    net._forward(0, 3)
    np.testing.assert_allclose(net.blobs["y"].data, by_hand(net, normal(4, 3)), rtol=1e-5, atol=1e-6)


def test_input_arrays_need_a_memory_data_layer() -> None:
    with pytest.raises(caffe.CaffeError, match=r"layer 'x' \(Input\): set_input_arrays needs a MemoryData layer"):
        net_of(NET).set_input_arrays(normal(4, 3, 1, 1), normal(4))


def test_one_process_trains() -> None:
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.has_nccl()) == (1, 0, False)
    caffe.set_solver_count(1)
    with pytest.raises(caffe.CaffeError, match="2 processes cannot train together"):
        caffe.set_solver_count(2)


def test_a_scripts_own_log_lines() -> None:
    stream = io.StringIO()
    handler = glog.log_to(stream)
    try:
        caffe.log("half of it is done")
    finally:
        glog.stop_logging(handler)
    assert re.fullmatch(r"I\d{8} [\d:.]+ \d+ test_pycaffe_net\.py:\d+\] half of it is done\n", stream.getvalue())


def test_timers_time_what_is_between_start_and_stop() -> None:
    """As the script for several GPUs does it: a timer a layer, started and stopped by hooks."""
    timer = caffe.Timer()
    assert timer.ms == 0
    start = time.perf_counter()
    timer.start()
    time.sleep(0.02)
    timer.stop()
    assert 20 <= timer.ms <= 1e3 * (time.perf_counter() - start)
    assert timer.ms == timer.ms
    net = net_of(NET)
    timers = [caffe.Timer() for _ in net.layers]
    net.before_forward(lambda layer: timers[layer].start())
    net.after_forward(lambda layer: timers[layer].stop())
    net.forward()
    assert all(timer.ms > 0 for timer in timers)


def test_one_process_exchanges_gradients_with_nobody() -> None:
    net, x, diff = net_of(NET), normal(4, 3), normal(4, 2, seed=1)
    uid = caffe.NCCL.new_uid()
    assert isinstance(uid, bytes)
    assert uid != caffe.NCCL.new_uid()
    nccl = caffe.NCCL(None, uid)
    before = net.params["fc1"][0].data.copy()
    nccl.bcast()
    net.forward(x=x)
    net.backward(y=diff)
    gradient = net.params["fc1"][0].diff.copy()
    net.clear_param_diffs()
    trained = text_format.Parse(TRAINED, NetParameter())
    solver = caffe.get_solver(SolverParameter(net_param=trained, base_lr=0.1, lr_policy="fixed"))
    solver.add_callback(nccl)
    solver.step(1)
    assert solver.iter == 1
    net.after_backward(nccl)
    net.forward(x=x)
    net.backward(y=diff)
    np.testing.assert_array_equal(net.params["fc1"][0].diff, gradient)
    np.testing.assert_array_equal(net.params["fc1"][0].data, before)


def test_a_second_init_log_takes_the_firsts_place(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        for arguments in ((0,), (0, True)):
            caffe.init_log(*arguments)
        caffe.log("once")
        assert capfd.readouterr().err.count("once") == 1
        caffe.init_log(0, False)
        caffe.log("not here")
        assert not capfd.readouterr().err
    finally:
        glog.stop_logging(glog._of_script)
    assert glog.logger.level == logging.NOTSET  # whatever handlers others have added, as pytest does


def test_old_names_of_blobs() -> None:
    net = net_of(NET)
    assert net._blobs == list(net.blobs.values())
    assert net._blob_loss_weights == [0, 0, 0]
