"""caffe.draw and draw_net: the graph's nodes, edges and labels, and pictures where Graphviz is installed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import pytest
from google.protobuf import text_format

import caffe
from caffe import draw
from caffe.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe.tools import draw_net as tool

pydot = pytest.importorskip("pydot")

NET = """
name: "a net"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } data_param { batch_size: 64 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } data_param { batch_size: 10 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 stride: 2 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 7 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" exclude { phase: TEST } }
layer { name: "top:5 {x}" type: "Accuracy" bottom: "fc" bottom: "label" top: "top/5 \\"x\\"" include { phase: TEST } }
"""


def net() -> NetParameter:
    return text_format.Parse(NET, NetParameter())


def layer(text: str) -> LayerParameter:
    return text_format.Parse(text, LayerParameter())


def test_nodes_and_edges() -> None:
    graph = draw.get_pydot_graph(net(), "LR", phase=caffe.TRAIN)
    assert graph.get_rankdir() == "LR"
    assert graph.get_type() == "digraph"
    nodes = {node.get_name(): node for node in graph.get_nodes()}
    layers = {'"data_Data"', '"conv_Convolution"', '"relu_ReLU"', '"pool_Pooling"', '"fc_InnerProduct"'}
    blobs = {f'"{name}_blob"' for name in ("data", "label", "conv", "pool", "fc", "loss")}
    assert set(nodes) == layers | blobs | {'"loss_SoftmaxWithLoss"'}
    assert {name: nodes[name].get_fillcolor() for name in sorted(layers)} == {
        '"conv_Convolution"': "#FF5050",
        '"data_Data"': "#6495ED",
        '"fc_InnerProduct"': "#CC33FF",
        '"pool_Pooling"': "#FF9900",
        '"relu_ReLU"': "#90EE90",  # in place
    }
    assert {nodes[name].get_shape() for name in blobs} == {"octagon"}
    assert nodes['"conv_blob"'].get_label() == '"conv"'
    edges = {(edge.get_source(), edge.get_destination(), edge.get_label()) for edge in graph.get_edges()}
    assert edges == {
        ('"data_Data"', '"data_blob"', "Batch 64"),
        ('"data_Data"', '"label_blob"', "Batch 64"),
        ('"data_blob"', '"conv_Convolution"', '""'),
        ('"conv_Convolution"', '"conv_blob"', "20"),
        ('"conv_blob"', '"relu_ReLU"', '""'),
        ('"relu_ReLU"', '"conv_blob"', '""'),
        ('"conv_blob"', '"pool_Pooling"', '""'),
        ('"pool_Pooling"', '"pool_blob"', '""'),
        ('"pool_blob"', '"fc_InnerProduct"', '""'),
        ('"fc_InnerProduct"', '"fc_blob"', "7"),
        ('"fc_blob"', '"loss_SoftmaxWithLoss"', '""'),
        ('"label_blob"', '"loss_SoftmaxWithLoss"', '""'),
        ('"loss_SoftmaxWithLoss"', '"loss_blob"', '""'),
    }
    bare = draw.get_pydot_graph(net(), "LR", label_edges=False)
    assert {edge.get_label() for edge in bare.get_edges()} == {'""'}


def test_phases() -> None:
    def boxes(phase: int | None) -> set[str]:
        nodes = draw.get_pydot_graph(net(), "TB", phase=phase).get_nodes()
        return {node.get_name().strip('"').split("_")[0] for node in nodes if node.get_shape() == "record"}

    both = {"data", "conv", "relu", "pool", "fc"}
    assert boxes(caffe.TRAIN) == both | {"loss"}
    assert boxes(caffe.TEST) == both | {r"top:5 \{x\}"}
    assert boxes(None) == both | {"loss", r"top:5 \{x\}"}
    odd = layer('name: "x" include { phase: TEST } exclude { phase: TEST }')
    with pytest.raises(caffe.CaffeError, match="'x': has include and exclude rules"):
        draw.get_pydot_graph(NetParameter(layer=[odd]), "TB", phase=caffe.TEST)
    staged = layer('name: "s" type: "ReLU" include { stage: "deploy" }')
    for phase in (caffe.TRAIN, caffe.TEST):
        assert draw.get_pydot_graph(NetParameter(layer=[staged]), "TB", phase=phase).get_nodes()


@pytest.mark.parametrize(
    ("text", "rankdir", "label"),
    [
        ('name: "r" type: "ReLU"', "LR", r'"r\n(ReLU)"'),
        ('name: "r" type: "ReLU"', "TB", '"r (ReLU)"'),
        ('name: "c" type: "Convolution" convolution_param { kernel_size: 5 stride: 2 pad: 1 }', "BT",
         '"c (Convolution) kernel size: 5 stride: 2 pad: 1"'),
        ('name: "c" type: "Deconvolution" convolution_param { kernel_size: 5 }', "LR",
         r'"c\n(Deconvolution)\nkernel size: 5\nstride: 1\npad: 0"'),
        ('name: "c" type: "Convolution" convolution_param { kernel_h: 1 kernel_w: 7 pad_w: 3 stride: 2 stride: 4 }',
         "TB", '"c (Convolution) kernel size: 1x7 stride: 2x4 pad: 0x3"'),
        ('name: "p" type: "Pooling" pooling_param { pool: MAX kernel_size: 3 stride: 2 }', "TB",
         '"p (Pooling MAX) kernel size: 3 stride: 2 pad: 0"'),
        ('name: "a|b" type: "Power"', "TB", r'"a\|b (Power)"'),
    ],
)  # fmt: skip
def test_labels(text: str, rankdir: str, label: str) -> None:
    assert draw.get_layer_label(layer(text), rankdir) == label


@pytest.mark.parametrize(
    ("kind", "params", "shown"),
    [
        ("InnerProduct", "", " lr mult: 1.0, 1.0"),
        ("InnerProduct", "param { lr_mult: 0.5 }", " lr mult: 0.5, 1.0"),
        ("Convolution", "param { lr_mult: 1 } param { lr_mult: 2 }", " lr mult: 1.0, 2.0"),
        ("InnerProduct", "param { lr_mult: 0 } param { lr_mult: 0 }", ""),
        ("Scale", "param { lr_mult: 3 }", ""),
    ],
)
def test_learning_rates_in_labels(kind: str, params: str, shown: str) -> None:
    with_rates = draw.get_layer_label(layer(f'name: "x" type: "{kind}" {params}'), "TB", display_lrm=True)
    without = draw.get_layer_label(layer(f'name: "x" type: "{kind}" {params}'), "TB")
    assert with_rates == without[:-1] + shown + '"'


def test_learning_rates_that_there_are_not() -> None:
    for text in ('name: "x" type: "Scale"', 'name: "x" type: "InnerProduct" param { } param { } param { }'):
        with pytest.raises(caffe.CaffeError, match="layer 'x'"):
            draw.get_layer_lr_mult(layer(text))


# Files


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydot, as it reads
def test_the_text_of_a_graph_needs_no_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    draw.draw_net_to_file(net(), tmp_path / "net.dot", "TB", caffe.TEST, True)
    (read,) = pydot.graph_from_dot_data((tmp_path / "net.dot").read_text())
    labels = {node.get_label() for node in read.get_nodes()}
    assert '"conv (Convolution) kernel size: 5 stride: 2 pad: 1 lr mult: 1.0, 2.0"' in labels
    assert r'"top/5 \"x\""' in labels
    assert len(read.get_edges()) == 13
    with pytest.raises(caffe.CaffeError, match="as png needs Graphviz's program dot"):
        draw.draw_net_to_file(net(), tmp_path / "net.png")
    assert [path.name for path in tmp_path.iterdir()] == ["net.dot"]


needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program dot is not installed")


@needs_graphviz
@pytest.mark.parametrize("rankdir", draw.DIRECTIONS)
def test_pictures(tmp_path: Path, rankdir: str) -> None:
    draw.draw_net_to_file(net(), tmp_path / "net.png", rankdir)
    height, width, _ = cv2.imread(str(tmp_path / "net.png")).shape
    assert (width > height) == (rankdir in ("LR", "RL"))
    assert min(width, height) > 100
    assert draw.draw_net(net(), rankdir, "svg").count(b'<g id="node') == 14


@needs_graphviz
def test_a_picture_of_no_type_that_there_is(tmp_path: Path) -> None:
    with pytest.raises(caffe.CaffeError, match=r"as xyz: dot says: .*xyz"):
        draw.draw_net_to_file(net(), tmp_path / "net.xyz")
    assert not list(tmp_path.iterdir())


def test_without_pydot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(caffe.CaffeError, match=r"needs the package pydot: .*face-emotion-net\[draw\]"):
        draw.draw_net(net(), "LR")


# The tool


def test_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A V1 net is drawn too."""
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 1 } layers { name: "fc" type: INNER_PRODUCT bottom: "x" top: "y" blobs_lr: 4 }'
    )
    arguments = [str(tmp_path / "net.prototxt"), str(tmp_path / "net.dot"), "--rankdir=BT", "--phase", "TRAIN"]
    assert tool.main([*arguments, "--display_lrm"]) == 0
    assert capsys.readouterr().out == f"Drawing net to {tmp_path}/net.dot\n"
    text = (tmp_path / "net.dot").read_text()
    assert "rankdir=BT" in text
    assert "fc (InnerProduct) lr mult: 4.0, 1.0" in text
    assert tool.main(arguments[:2]) == 0
    text = (tmp_path / "net.dot").read_text()
    assert "rankdir=LR" in text
    assert r"fc\n(InnerProduct)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "a.dot"], "nowhere: No such file"),
        (["NET", "a.dot", "--phase=train"], "--phase is 'train'; expected TRAIN, TEST or ALL"),
        (["NET", "a.dot", "--rankdir=DOWN"], "rankdir is 'DOWN'; expected one of LR, RL, TB, BT"),
        (["NET", "a"], "a: has no type of picture in its name"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    names = {"NET": str(tmp_path / "net.prototxt"), "a": str(tmp_path / "a"), "a.dot": str(tmp_path / "a.dot")}
    assert tool.main([names.get(argument, argument) for argument in arguments]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.prototxt"]
