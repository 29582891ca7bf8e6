"""NetSpec against prototxts written by hand and read by protobuf's own text format."""

# ruff: noqa: C408 - dict(...) is how users of pycaffe write a message

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe.errors import CaffeError
from caffe.net_spec import NetSpec, Top, assign_proto, param_name_dict, to_proto
from caffe.net_spec import layers as L
from caffe.net_spec import params as P
from caffe.proto import caffe_pb2


def parse(text: str) -> caffe_pb2.NetParameter:
    return text_format.Parse(text, caffe_pb2.NetParameter())


LENET = """
layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { scale: 0.00390625 }
  data_param { source: "train_lmdb" backend: LMDB batch_size: 64 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
  inner_product_param { num_output: 500 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" loss_weight: 0.5 }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
"""


def lenet() -> NetSpec:
    n = NetSpec()
    n.data, n.label = L.Data(
        batch_size=64, backend=P.Data.LMDB, source="train_lmdb", transform_param=dict(scale=1.0 / 256), ntop=2
    )
    n.conv1 = L.Convolution(
        n.data,
        kernel_size=5,
        num_output=20,
        weight_filler=dict(type="xavier"),
        param=[dict(lr_mult=1), dict(lr_mult=2, decay_mult=0)],
    )
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n["ip1"] = L.InnerProduct(n.pool1, num_output=500, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label, loss_weight=0.5)
    n.accuracy = L.Accuracy(n.ip2, n["label"], include=dict(phase=caffe_pb2.TEST))
    return n


def test_lenet_is_the_prototxt() -> None:
    assert lenet().to_proto() == parse(LENET)


def test_to_proto_leaves_the_net_as_it_was() -> None:
    n = lenet()
    assert n.to_proto() == n.to_proto()


def test_unnamed_layers_are_numbered_by_type() -> None:
    data = L.Input(shape=dict(dim=[1, 1, 8, 8]))
    first = L.Convolution(data, num_output=2, kernel_size=3)
    second = L.Convolution(L.ReLU(first, in_place=True), num_output=3, kernel_size=[3, 1])
    assert to_proto(second) == second.to_proto()
    assert to_proto(second) == parse(
        """
        layer { name: "Input1" type: "Input" top: "Input1" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
        layer { name: "Convolution1" type: "Convolution" bottom: "Input1" top: "Convolution1"
          convolution_param { num_output: 2 kernel_size: 3 } }
        layer { name: "ReLU1" type: "ReLU" bottom: "Convolution1" top: "Convolution1" }
        layer { name: "Convolution2" type: "Convolution" bottom: "Convolution1" top: "Convolution2"
          convolution_param { num_output: 3 kernel_size: 3 kernel_size: 1 } }
        """
    )


def test_several_tops_and_none() -> None:
    n = NetSpec()
    n.data = L.Input(shape=[dict(dim=[2, 6])])
    n.left, right = L.Slice(n.data, ntop=2, slice_point=[3])
    n.silence = L.Silence(right, ntop=0)
    assert n.to_proto() == parse(
        """
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 } } }
        layer { name: "left" type: "Slice" bottom: "data" top: "left" top: "Slice1" slice_param { slice_point: 3 } }
        layer { name: "silence" type: "Silence" bottom: "Slice1" }
        """
    )


def test_a_layer_named_by_hand_keeps_its_blobs_name() -> None:
    n = NetSpec()
    n.data = L.Input(name="the input")
    assert n.to_proto() == parse('layer { name: "the input" type: "Input" top: "data" }')


def test_parameters_of_another_type_by_their_full_name() -> None:
    n = NetSpec()
    n.data = L.Input()
    n.up = L.Deconvolution(n.data, convolution_param=dict(num_output=1, kernel_size=4, stride=2))
    n.loss = L.SoftmaxWithLoss(n.up, n.data, softmax_param=dict(axis=2), loss_param={"ignore_label": 255})
    assert (
        n.to_proto().layer[1:]
        == parse(
            """
        layer { name: "up" type: "Deconvolution" bottom: "data" top: "up"
          convolution_param { num_output: 1 kernel_size: 4 stride: 2 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "up" bottom: "data" top: "loss"
          softmax_param { axis: 2 } loss_param { ignore_label: 255 } }
        """
        ).layer[:]
    )


def test_shared_weights_and_messages_as_values() -> None:
    n = NetSpec()
    n.data = L.Input(shape=caffe_pb2.BlobShape(dim=[1, 4]))
    n.one = L.InnerProduct(n.data, num_output=4, param=dict(name="w"))
    n.two = L.InnerProduct(n.one, num_output=4, param=caffe_pb2.ParamSpec(name="w"), bias_filler={})
    proto = n.to_proto()
    assert [layer.param[0].name for layer in proto.layer[1:]] == ["w", "w"]
    assert list(proto.layer[0].input_param.shape[0].dim) == [1, 4]
    assert not proto.layer[2].inner_product_param.HasField("bias_filler")  # pycaffe assigns a dict's items: none here


@pytest.mark.parametrize(
    ("type_name", "message"),
    [
        ("HDF5Data", "hdf5_data_param"),
        ("LRN", "lrn_param"),
        ("BatchNorm", "batch_norm_param"),
        ("PReLU", "prelu_param"),
    ],
)
def test_the_types_own_message_is_found(type_name: str, message: str) -> None:
    first = getattr(caffe_pb2.LayerParameter(), message).DESCRIPTOR.fields[0]
    value = (
        {"type": "constant"} if first.message_type else {"int": 1, "float": 1.0, "bool": True, "str": "x"}[_kind(first)]
    )
    layer = to_proto(getattr(L, type_name)(**{first.name: value})).layer[0]
    assert layer.HasField(message)


def _kind(field) -> str:  # type: ignore[no-untyped-def]
    return {field.CPPTYPE_FLOAT: "float", field.CPPTYPE_BOOL: "bool", field.CPPTYPE_STRING: "str"}.get(
        field.cpp_type, "int"
    )


def test_parameters_changed_after_the_call_are_written() -> None:
    n = NetSpec()
    n.data = L.Input()
    n.conv = L.Convolution(n.data, num_output=2)
    n.conv.fn.params["num_output"] = 7
    assert n.to_proto().layer[1].convolution_param.num_output == 7


def test_names_as_a_mapping() -> None:
    n = lenet()
    assert n.keys()[:3] == ["data", "label", "conv1"]
    assert all(isinstance(top, Top) for top in n.vals())
    del n["accuracy"]
    del n.loss
    assert "loss" not in n
    assert "loss" not in [layer.name for layer in n.to_proto().layer]
    assert not hasattr(n, "loss")
    with pytest.raises(KeyError):
        n["loss"]


def test_update_changes_the_layer_of_a_blob() -> None:
    n = lenet()
    n.update("conv1", dict(num_output=50, weight_filler=dict(type="msra"), propagate_down=False))
    n.update("label", dict(batch_size=1))
    net = n.to_proto()
    assert net.layer[1].convolution_param.num_output == 50
    assert net.layer[1].convolution_param.weight_filler.type == "msra"
    assert list(net.layer[1].propagate_down) == [False]
    assert net.layer[0].data_param.batch_size == 1
    with pytest.raises(CaffeError, match="'num_outputs'; did you mean num_output"):
        n.update("ip1", dict(num_outputs=3))


def test_text_is_pycaffes() -> None:
    """The running numbers as pycaffe counts them: over all layers of a type that no name was assigned to."""
    n = NetSpec()
    n.data, n.aux = L.DummyData(
        shape=[dict(dim=[10, 1, 28, 28]), dict(dim=3)], transform_param=dict(scale=0.25), ntop=2
    )
    hidden = L.InnerProduct(n.data, num_output=3, weight_filler=dict(), name="by_hand", param=[dict(lr_mult=1), {}])
    n.out = L.InnerProduct(L.ReLU(hidden, in_place=True, name="first_relu"), num_output=2)
    n.last = L.ReLU(n.out, in_place=True)
    n.more = L.Eltwise(L.ReLU(n.out), L.InnerProduct(n.out, num_output=2), operation=P.Eltwise.MAX)
    n.both = L.Python(n.last, n.more, module="layers", layer="Both", param_str="a b", in_place=True)
    L.Silence(n.aux, ntop=0)  # assigned to nothing and read by nothing: not in the net
    n.silence = L.Silence(n.aux, ntop=0)
    assert (
        str(n.to_proto())
        == """\
layer {
  name: "data"
  type: "DummyData"
  top: "data"
  top: "aux"
  transform_param {
    scale: 0.25
  }
  dummy_data_param {
    shape {
      dim: 10
      dim: 1
      dim: 28
      dim: 28
    }
    shape {
      dim: 3
    }
  }
}
layer {
  name: "by_hand"
  type: "InnerProduct"
  bottom: "data"
  top: "InnerProduct1"
  param {
    lr_mult: 1
  }
  param {
  }
  inner_product_param {
    num_output: 3
  }
}
layer {
  name: "first_relu"
  type: "ReLU"
  bottom: "InnerProduct1"
  top: "InnerProduct1"
}
layer {
  name: "out"
  type: "InnerProduct"
  bottom: "InnerProduct1"
  top: "out"
  inner_product_param {
    num_output: 2
  }
}
layer {
  name: "last"
  type: "ReLU"
  bottom: "out"
  top: "out"
}
layer {
  name: "ReLU2"
  type: "ReLU"
  bottom: "out"
  top: "ReLU2"
}
layer {
  name: "InnerProduct2"
  type: "InnerProduct"
  bottom: "out"
  top: "InnerProduct2"
  inner_product_param {
    num_output: 2
  }
}
layer {
  name: "more"
  type: "Eltwise"
  bottom: "ReLU2"
  bottom: "InnerProduct2"
  top: "more"
  eltwise_param {
    operation: MAX
  }
}
layer {
  name: "both"
  type: "Python"
  bottom: "out"
  bottom: "more"
  top: "out"
  top: "more"
  python_param {
    module: "layers"
    layer: "Both"
    param_str: "a b"
  }
}
layer {
  name: "silence"
  type: "Silence"
  bottom: "aux"
}
"""
    )


def test_numbers_of_numpy() -> None:
    data = L.Input(shape=dict(dim=list(np.array([1, 2, 8, 8]))))
    conv = L.Convolution(data, num_output=np.int64(3), kernel_size=list(np.array([3, 1])), bias_term=np.bool_(False))
    conv = L.Power(conv, scale=np.float32(0.5), loss_weight=np.float64(2))
    net = conv.to_proto()
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 2, 8, 8]
    assert (net.layer[1].convolution_param.num_output, net.layer[1].convolution_param.bias_term) == (3, False)
    assert (net.layer[2].power_param.scale, net.layer[2].loss_weight[0]) == (0.5, 2)


def test_deconvolution_takes_the_parameters_of_convolution() -> None:
    plain = L.Deconvolution(L.Input(), num_output=1, kernel_size=4)
    message = L.Deconvolution(L.Input(), convolution_param=dict(num_output=1, kernel_size=4))
    assert plain.to_proto() == message.to_proto()


def test_assign_proto() -> None:
    layer = caffe_pb2.LayerParameter()
    assign_proto(layer, "loss_weight", 2.5)
    assign_proto(layer, "loss_weight", [1, 0.5])
    assign_proto(layer, "include", [dict(phase=caffe_pb2.TEST, stage="a"), dict(stage=["b", "c"])])
    assign_proto(layer, "convolution_param", dict(kernel_size=3, weight_filler=dict(type="gaussian", std=0.5)))
    assert layer == text_format.Parse(
        """
        loss_weight: 2.5 loss_weight: 1 loss_weight: 0.5
        include { phase: TEST stage: "a" } include { stage: "b" stage: "c" }
        convolution_param { kernel_size: 3 weight_filler { type: "gaussian" std: 0.5 } }
        """,
        caffe_pb2.LayerParameter(),
    )
    with pytest.raises(CaffeError, match=r"^LayerParameter has no field 'loss_weigth'"):
        assign_proto(layer, "loss_weigth", 1)


def test_names_of_parameters_by_layer_type() -> None:
    names = param_name_dict()
    assert [names[t] for t in ("Convolution", "LRN", "HDF5Data", "PReLU")] == [
        "convolution",
        "lrn",
        "hdf5_data",
        "prelu",
    ]
    assert "Deconvolution" not in names


def test_a_chain_deeper_than_the_stack() -> None:
    top = L.Input()
    for _ in range(3000):
        top = L.ReLU(top)
    assert len(to_proto(top).layer) == 3001


def test_constants() -> None:
    assert (P.Pooling.MAX, P.Pooling.AVE, P.Pooling.FLOOR) == (0, 1, 1)
    assert P.Eltwise.SUM == 1
    assert P.Solver.BF16 == 2
    with pytest.raises(AttributeError, match=r"Pooling has no constant 'MIN'; it has: MAX, AVE"):
        _ = P.Pooling.MIN
    with pytest.raises(AttributeError, match="did you mean Pooling"):
        _ = P.Poolin


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: L.Convolutoin(x), AttributeError, "did you mean Convolution"),
        (lambda x: L.Convolution(x, num_outputs=3), CaffeError, "'num_outputs'; did you mean num_output"),
        (lambda x: L.Convolution(x, zzz=3), CaffeError, "ConvolutionParameter has axis, bias_filler"),
        (lambda x: L.Convolution(x, weight_filler=dict(typ="")), CaffeError, "FillerParameter has no field 'typ'"),
        (lambda x: L.Convolution(x, num_output="many"), CaffeError, "Convolution: num_output = 'many'"),
        (lambda x: L.Convolution(x, num_output=-1), CaffeError, "num_output = -1"),
        (lambda x: L.Convolution(x, weight_filler="xavier"), CaffeError, "expected a dict of FillerParameter's fields"),
        (lambda x: L.Pooling(x, pool=77), CaffeError, "pool = 77"),
        (lambda x: L.AbsVal(x, slope=1), CaffeError, "has no message of its own"),
        (lambda x: L.ReLU(x, ntop=-1), CaffeError, "ntop = -1"),
        (lambda x: L.Input(in_place=True), CaffeError, "in_place with 1 tops and 0 bottoms"),
        (lambda x: L.ReLU("data"), TypeError, "ReLU: bottom 0 is 'data'; expected a blob"),
        (lambda x: L.Concat(x, L.Slice(x, ntop=2)), TypeError, "Concat: bottom 1"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_where_they_are_written(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        make(L.Input())
    assert message in str(caught.value)


def test_only_blobs_can_be_named() -> None:
    n = NetSpec()
    with pytest.raises(TypeError, match="expected what one layer with one top returns"):
        n.both = L.Slice(L.Input(), ntop=2)
