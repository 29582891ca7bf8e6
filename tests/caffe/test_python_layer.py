"""Layers that scripts write as classes derived from caffe.Layer, in the manner of the scripts of 2016."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from small_nets import input_layer, net_of, normal

import caffe
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

SCRIPT = '''
import json
import numpy as np
import caffe


class EuclideanLossLayer(caffe.Layer):
    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("Need two inputs to compute distance.")

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise Exception("Inputs must have the same dimension.")
        self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.diff**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        for i in range(2):
            if not propagate_down[i]:
                continue
            sign = 1 if i == 0 else -1
            bottom[i].diff[...] = sign * self.diff / bottom[i].num


class BatchLoader(caffe.Layer):
    """Points of a line and their values; another number of them each time."""

    def setup(self, bottom, top):
        params = json.loads(self.param_str)
        self.batch_size, self.random = params["batch_size"], np.random.RandomState(params["seed"])
        self.offset, self.calls = 0.0, 0
        top[0].reshape(self.batch_size, 1)
        top[1].reshape(self.batch_size, 1)

    def set_offset(self, offset):
        self.offset = offset

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        self.calls += 1
        x = self.random.randn(self.batch_size + self.calls % 3, 1)
        for blob, values in ((top[0], x), (top[1], 3 * x - 2 + self.offset)):
            blob.reshape(*values.shape)
            blob.data[...] = values

    def backward(self, top, propagate_down, bottom):
        pass


class ScaleLayer(caffe.Layer):
    """y = a * x + b, both learned, one for all."""

    def setup(self, bottom, top):
        self.blobs.add_blob(1)
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = 0.5
        self.adds = json.loads(self.param_str or "true")

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.blobs[0].data * bottom[0].data + self.blobs[1].data

    def backward(self, top, propagate_down, bottom):
        gradients = (top[0].diff * bottom[0].data).sum(), top[0].diff.sum()
        for blob, gradient in zip(self.blobs, gradients):
            if self.adds:
                blob.diff[...] += gradient
            else:
                blob.diff[...] = gradient
        if propagate_down[0]:
            bottom[0].diff[...] = self.blobs[0].data * top[0].diff


class Cube(caffe.Layer):
    """Works on its blob in place or not."""

    def setup(self, bottom, top):
        self.seen = []

    def reshape(self, bottom, top):
        self.seen.append(bottom[0].shape)
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        self.x = bottom[0].data.copy()
        top[0].data[...] = self.x**3

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = 3 * self.x**2 * top[0].diff


class SumAndProduct(caffe.Layer):
    def setup(self, bottom, top):
        self.asked = []

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
        top[1].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + bottom[1].data
        top[1].data[...] = bottom[0].data * bottom[1].data

    def backward(self, top, propagate_down, bottom):
        self.asked.append(list(propagate_down))
        for i in (0, 1):
            if propagate_down[i]:
                bottom[i].diff[...] = top[0].diff + top[1].diff * bottom[1 - i].data


class Facts(caffe.Layer):
    """Says what it is told; its top is filled once."""

    def setup(self, bottom, top):
        self.told = (self.param_str, self.param_str_, self.phase, self.type, len(bottom), len(top))
        self.forwards = 0
        top[0].reshape(2)
        top[0].data[...] = 7

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        self.forwards += 1


class Recorder(caffe.Layer):
    def setup(self, bottom, top):
        self.records = []

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        self.records.append((bottom[0].data.copy(), bottom[0].num, bottom[0].channels, bottom[0].count))


class Oddity(Exception):
    pass


class Fails(caffe.Layer):
    def setup(self, bottom, top):
        self.fail("setup")

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
        self.fail("reshape")

    def forward(self, bottom, top):
        self.fail("forward")

    def backward(self, top, propagate_down, bottom):
        self.fail("backward")

    def fail(self, where):
        if self.param_str == where:
            raise Oddity(where + " went wrong")


class NoForward(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(1)


class NotALayer(object):
    def __init__(self, param):
        pass
'''


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The script as the module `layers_of_2016` on the path."""
    name = "layers_of_2016"
    (tmp_path / f"{name}.py").write_text(SCRIPT)
    (tmp_path / "broken_layers.py").write_text("import caffe\nimport surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in (name, "broken_layers"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return name


def python_layer(layer: str, bottoms: str, tops: str, param_str: str = "", more: str = "", name: str = "py") -> str:
    """A Python layer's text; bottoms and tops are names with spaces between."""
    blobs = " ".join([*(f'bottom: "{b}"' for b in bottoms.split()), *(f'top: "{t}"' for t in tops.split())])
    return (
        f'layer {{ name: "{name}" type: "Python" {blobs} {more} python_param {{ module: "layers_of_2016" '
        f"layer: \"{layer}\" param_str: '{param_str}' }} }}\n"
    )


def weighted(net: caffe.Net, names: list[str], **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Forward, then backward from random diffs of the outputs; the diffs of `names`, copied."""
    out = net.forward(**inputs)
    net.clear_param_diffs()
    net.backward(**{name: normal(*value.shape, seed=9) for name, value in out.items()})
    return {name: net.blobs[name].diff.copy() for name in names}


# As part of a net


def test_a_loss_written_in_python() -> None:
    x, y = normal(4, 3), normal(4, 3, seed=1)
    inputs = input_layer("x", 4, 3) + input_layer("y", 4, 3)
    net = net_of(inputs + python_layer("EuclideanLossLayer", "x y", "loss", more="loss_weight: 1"))
    assert net.blobs["loss"].shape == (1,)
    loss = net.forward(x=x, y=y)["loss"]
    np.testing.assert_allclose(loss, [((x - y) ** 2).sum() / 8], rtol=1e-6)
    net.backward()
    np.testing.assert_allclose(net.blobs["x"].diff, (x - y) / 4, rtol=1e-6)
    np.testing.assert_allclose(net.blobs["y"].diff, (y - x) / 4, rtol=1e-6)
    direction, step = np.sign(normal(4, 3, seed=2)), 1e-2
    slope = (net.forward(x=x + step * direction, y=y)["loss"] - net.forward(x=x - step * direction, y=y)["loss"]) / (
        2 * step
    )
    np.testing.assert_allclose(slope, ((x - y) / 4 * direction).sum(), rtol=1e-3)


def solver_of(layers: str, **settings: Any) -> caffe.Solver:
    param = SolverParameter(base_lr=0.05, lr_policy="fixed", momentum=0.9, max_iter=100, random_seed=3, **settings)
    param.net_param.CopyFrom(text_format.Parse(layers, NetParameter()))
    return caffe.get_solver(param)


LOADER = python_layer("BatchLoader", "", "x y", '{"batch_size": 5, "seed": 4}', name="loader")
PRODUCT = (
    'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "p" inner_product_param { num_output: 1 '
    'weight_filler { type: "gaussian" } } }'
)
PYTHON_LOSS = python_layer("EuclideanLossLayer", "p y", "loss", more="loss_weight: 1", name="loss")
BUILT_IN_LOSS = 'layer { name: "loss" type: "EuclideanLoss" bottom: "p" bottom: "y" top: "loss" }'


def test_data_and_loss_in_python_train_as_the_built_in_loss_does() -> None:
    ours, built_in = solver_of(LOADER + PRODUCT + PYTHON_LOSS), solver_of(LOADER + PRODUCT + BUILT_IN_LOSS)
    for solver in (ours, built_in):
        solver.step(150)
    for mine, theirs in zip(ours.net.params["ip"], built_in.net.params["ip"], strict=True):
        np.testing.assert_allclose(mine.data, theirs.data, rtol=1e-5)
    weight, bias = (blob.data.item() for blob in ours.net.params["ip"])
    assert abs(weight - 3) < 0.05
    assert abs(bias + 2) < 0.05
    assert ours.net.blobs["x"].shape == (5 + 150 % 3, 1)
    assert float(ours.net.blobs["loss"].data[0]) < 1e-3


def test_scripts_reach_their_object_through_the_net() -> None:
    solver = solver_of(LOADER + PRODUCT + PYTHON_LOSS)
    solver.net.layers[0].set_offset(100)
    solver.net.layers[0].batch_size = 11
    solver.step(1)
    assert solver.net.blobs["x"].shape == (12, 1)
    np.testing.assert_allclose(solver.net.blobs["y"].data, 3 * solver.net.blobs["x"].data + 98, rtol=1e-5)
    assert solver.net.layers[0].calls == 1
    assert type(solver.net.layers[0].instance).__name__ == "BatchLoader"
    with pytest.raises(AttributeError, match="'BatchLoader' object has no attribute 'nothing'"):
        _ = solver.net.layers[0].nothing


@pytest.mark.parametrize("adds", ["true", "false"])
@pytest.mark.parametrize("iter_size", [1, 3])
def test_parameters_learn(adds: str, iter_size: int) -> None:
    """A script that overwrites the diffs, as many do, has with iter_size the last batch's gradient, as in Caffe."""
    net = LOADER + python_layer("ScaleLayer", "x", "p", adds) + BUILT_IN_LOSS
    solver = solver_of(net, iter_size=iter_size)
    assert [blob.data.item() for blob in solver.net.params["py"]] == [0.5, 0]
    gradients: list[np.ndarray] = []
    a, b, velocity = 0.5, 0.0, np.zeros(2)

    random = np.random.RandomState(4)
    for step in range(4):
        gradients = []
        for call in range(step * iter_size + 1, (step + 1) * iter_size + 1):
            x = random.randn(5 + call % 3, 1).astype(np.float32).astype(np.float64)
            error = (a * x + b - (3 * x - 2)) / len(x)
            gradients.append(np.array([(error * x).sum(), error.sum()]))
        total = sum(gradients) if adds == "true" else gradients[-1]
        velocity = 0.9 * velocity + 0.05 * total / iter_size
        a, b = np.array([a, b]) - velocity
        solver.step(1)
        np.testing.assert_allclose([blob.data.item() for blob in solver.net.params["py"]], [a, b], rtol=1e-4)


def test_parameters_are_shared_saved_and_frozen(tmp_path: Path) -> None:
    shared = 'param { name: "a" } param { name: "b" }'
    layers = python_layer("ScaleLayer", "x", "y", more=shared, name="one") + python_layer(
        "ScaleLayer", "y", "z", more=shared, name="two"
    )
    net = net_of(input_layer("x", 2, 2) + layers)
    assert net.params["one"][0] is net.params["two"][0]
    x = normal(2, 2)
    diffs = weighted(net, ["x"], x=x)
    w = normal(2, 2, seed=9)
    np.testing.assert_allclose(diffs["x"], 0.25 * w, rtol=1e-6)
    # z = a (a x + b) + b
    np.testing.assert_allclose(net.params["one"][0].diff, [(w * 2 * 0.5 * x).sum()], rtol=1e-5)
    np.testing.assert_allclose(net.params["one"][1].diff, [(w * 1.5).sum()], rtol=1e-5)
    net.params["one"][0].data[...] = 4
    net.save(tmp_path / "w.caffemodel")
    other = net_of(input_layer("x", 2, 2) + layers)
    other.copy_from(tmp_path / "w.caffemodel")
    np.testing.assert_allclose(other.forward(x=x)["z"], 16 * x, rtol=1e-6)
    frozen = net_of(input_layer("x", 2, 2) + python_layer("ScaleLayer", "x", "y", more="param { lr_mult: 0 }"))
    weighted(frozen, ["x"], x=x)
    assert frozen.params["py"][1].diff.item() == pytest.approx(float(w.sum()), rel=1e-5)


def test_a_test_net_has_the_training_nets_parameters() -> None:
    net = LOADER + python_layer("ScaleLayer", "x", "p") + BUILT_IN_LOSS
    solver = solver_of(net, test_iter=[1], test_interval=1000, test_initialization=False)
    solver.step(5)
    solver.test_all()
    assert solver.test_nets[0].layers[1].blobs[0].data == solver.net.layers[1].blobs[0].data != 0.5


@pytest.mark.parametrize("in_place", [True, False])
def test_a_layer_in_place(in_place: bool) -> None:
    """y = relu(x)³, z = exp(y): what the ReLU passed on is not lost to its own gradient."""
    relu = 'layer { name: "relu" type: "ReLU" bottom: "x" top: "r" }'
    exp = f'layer {{ name: "exp" type: "Exp" bottom: "{"r" if in_place else "y"}" top: "z" }}'
    net = net_of(input_layer("x", 3, 4) + relu + python_layer("Cube", "r", "r" if in_place else "y") + exp)
    x = normal(3, 4) * 0.7
    diffs = weighted(net, ["x"], x=x)
    positive = np.maximum(x, 0)
    np.testing.assert_allclose(net.blobs["z"].data, np.exp(positive**3), rtol=1e-5)
    expected = normal(3, 4, seed=9) * np.exp(positive**3) * 3 * positive**2
    np.testing.assert_allclose(diffs["x"], expected, rtol=1e-5)


def test_several_bottoms_and_tops_and_what_is_asked_for() -> None:
    inputs = input_layer("a", 2, 3) + input_layer("b", 2, 3)
    a, b, w = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=9)
    net = net_of(inputs + python_layer("SumAndProduct", "a b", "s p"))
    diffs = weighted(net, ["a", "b"], a=a, b=b)
    np.testing.assert_allclose(diffs["a"], w + w * b, rtol=1e-6)
    np.testing.assert_allclose(diffs["b"], w + w * a, rtol=1e-6)
    asked = "propagate_down: true propagate_down: false loss_weight: 1 loss_weight: 1"
    one = net_of(inputs + python_layer("SumAndProduct", "a b", "s p", more=asked), backward=False)
    diffs = weighted(one, ["a", "b"], a=a, b=b)
    np.testing.assert_allclose(diffs["a"], w + w * b, rtol=1e-6)
    assert not diffs["b"].any()
    assert [*net.layers[2].asked, *one.layers[2].asked] == [[True, True], [True, False]]
    twice = net_of(inputs + python_layer("SumAndProduct", "a a", "s p"))
    np.testing.assert_allclose(weighted(twice, ["a"], a=a, b=b)["a"], 2 * (w + w * a), rtol=1e-6)


def test_reshape_is_called_before_each_forward_pass() -> None:
    net = net_of(input_layer("x", 2, 3) + python_layer("Cube", "x", "y"))
    net.forward()
    net.forward()
    assert net.layers[1].seen == [(2, 3)] * 3  # once when the net was made
    net.blobs["x"].reshape(4, 1, 5)
    net.reshape()
    assert net.blobs["y"].shape == (4, 1, 5)
    x = normal(4, 1, 5)
    np.testing.assert_allclose(net.forward(x=x)["y"], x**3, rtol=1e-6)
    assert net.layers[1].seen[3:] == [(4, 1, 5)] * 2


def test_inference_and_bfloat16() -> None:
    product = 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "h" inner_product_param { num_output: 8 ' \
              'weight_filler { type: "xavier" } } }'  # fmt: skip
    layers = input_layer("x", 4, 16) + product + python_layer("Cube", "h", "y")
    exact, rough = net_of(layers), net_of(layers, precision="bf16")
    x = normal(4, 16)
    diffs, rough_diffs = weighted(exact, ["x"], x=x), weighted(rough, ["x"], x=x)
    assert rough.blobs["y"].data.dtype == np.float32
    np.testing.assert_allclose(rough.blobs["y"].data, exact.blobs["y"].data, atol=0.1)
    np.testing.assert_allclose(rough_diffs["x"], diffs["x"], atol=0.2)
    inferred = exact.infer(x=exact.blobs["x"].tensor())["y"].numpy()
    np.testing.assert_allclose(inferred, exact.blobs["y"].data, atol=1e-5)
    np.testing.assert_allclose(weighted(exact, ["x"], x=x)["x"], diffs["x"], rtol=1e-6)  # inference left no trace


def test_what_a_layer_is_told_and_that_its_top_stays() -> None:
    net = net_of(python_layer("Facts", "", "y", "some: text"), phase=caffe.TRAIN)
    for _ in range(3):
        assert net.forward()["y"].tolist() == [7, 7]
        net.blobs["y"].data[...] = 0
    assert net.layers[0].told == ("some: text", "some: text", caffe.TRAIN, "Python", 0, 1)
    assert net.layers[0].forwards == 3
    assert net_of(python_layer("Facts", "", "y")).layers[0].told[2] == caffe.TEST


def test_a_layer_without_tops() -> None:
    net = net_of(input_layer("x", 2, 3, 4) + python_layer("Recorder", "x", ""))
    x = normal(2, 3, 4)
    net.forward(x=x)
    ((seen, *facts),) = net.layers[1].records
    np.testing.assert_array_equal(seen, x)
    assert facts == [2, 3, 24]


# Scripts that go wrong


@pytest.mark.parametrize("where", ["setup", "reshape", "forward", "backward"])
def test_exceptions_reach_the_caller_as_they_are(where: str, script: str) -> None:
    layers = input_layer("x", 2) + python_layer("Fails", "x", "y", where)
    with pytest.raises(Exception, match=f"{where} went wrong") as caught:  # noqa: PT012
        net = net_of(layers)
        assert where in ("forward", "backward")
        net.forward()
        net.backward()
    assert type(caught.value) is sys.modules[script].Oddity
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [f"in {where} of layer 'py' (Python, layers_of_2016.Fails)"]


def test_a_method_that_is_missing() -> None:
    net = net_of(input_layer("x", 2) + python_layer("NoForward", "x", "y"))
    with pytest.raises(NotImplementedError, match=r"a method forward\(self, bottom, top\)"):
        net.forward()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("module", "no_such_module", "there is no module 'no_such_module'; expected it in a folder of sys.path"),
        ("module", "layers_of_2016.deeper", "there is no module 'layers_of_2016.deeper'"),
        ("module", "", "has module '' and layer 'Cube'"),
        ("layer", "", "has module 'layers_of_2016' and layer ''"),
        ("layer", "Cubes", "'Cubes' in module 'layers_of_2016' is None; expected a class derived from caffe.Layer"),
        ("layer", "NotALayer", "'NotALayer' in module .* is <class .*expected a class derived from caffe.Layer"),
        ("layer", "np", "'np' in module .* is <module .*expected a class"),
    ],
)
def test_layers_that_are_not_there(setting: str, value: str, message: str) -> None:
    param = text_format.Parse(input_layer("x", 2) + python_layer("Cube", "x", "y"), NetParameter())
    setattr(param.layer[1].python_param, setting, value)
    with pytest.raises(caffe.CaffeError, match=rf"layer 'py' \(Python\): .*{message}"):
        caffe.Net(param, phase=caffe.TEST)


def test_what_a_module_cannot_import_is_its_own_error() -> None:
    param = text_format.Parse(input_layer("x", 2) + python_layer("Cube", "x", "y"), NetParameter())
    param.layer[1].python_param.module = "broken_layers"
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        caffe.Net(param, phase=caffe.TEST)


def test_the_documents_layer_of_another_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "caffe.md").read_text().split("### Layers of another Caffe")[1]
    script, layer = page.split("```python\n")[1].split("```\n")[0::2][:2]
    (tmp_path / "ssd_layers.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    net = net_of(input_layer("x", 2, 3, 4, 5) + layer)
    x, diff = normal(2, 3, 4, 5), normal(2, 4, 5, 3, seed=1)
    y = net.forward(x=x)["y"]
    np.testing.assert_array_equal(y, x.transpose(0, 2, 3, 1))
    net.blobs["y"].diff[...] = diff
    np.testing.assert_array_equal(net.backward()["x"], diff.transpose(0, 3, 1, 2))


def test_a_caffemodel_of_another_caffe_fills_the_parameters_of_a_python_layer(tmp_path: Path) -> None:
    """By the layer's name, whatever its type was, and whatever settings it had that Caffe 1.0 does not know."""
    text = 'layer { name: "py" type: "Affine" blobs { shape { dim: 1 } data: 3 } blobs { shape { dim: 1 } data: 4 } }'
    weights = text_format.Parse(text, NetParameter())
    weights.layer[0].MergeFromString(b"\x82\x0d\x02\x08\x07")  # field 208, a message
    (tmp_path / "x.caffemodel").write_bytes(weights.SerializeToString())
    net = net_of(input_layer("x", 2, 3) + python_layer("ScaleLayer", "x", "y"))
    net.copy_from(tmp_path / "x.caffemodel")
    assert [float(blob.data[0]) for blob in net.params["py"]] == [3, 4]
