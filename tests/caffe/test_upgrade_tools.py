"""upgrade_net_proto_text, upgrade_net_proto_binary and upgrade_solver_proto_text: what they write, and exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import caffe
from caffe.io import blobproto_to_array, read_binary, read_text
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter, V1LayerParameter
from caffe.tools import upgrade_net_proto_binary, upgrade_net_proto_text, upgrade_solver_proto_text

OLD = """name: "café"
input: "x" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4
layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" blobs_lr: 1 blobs_lr: 2
  convolution_param { num_output: 2 kernel_size: 3 } }
"""

NEW = """name: "café"
layer { name: "input" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 2 kernel_size: 3 } }
"""


def test_net_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    old.write_text(OLD)
    assert upgrade_net_proto_text.main([str(old), str(new)]) == 0
    assert read_text(new, NetParameter()) == text_format.Parse(NEW, NetParameter())
    assert 'name: "café"' in new.read_text()
    text = capsys.readouterr().err
    assert "] Successfully upgraded file specified using deprecated V1LayerParameter\n" in text
    assert f"] Wrote upgraded NetParameter text proto to {new}\n" in text
    net = caffe.Net(str(new), caffe.TEST)
    assert net.blobs["c"].shape == (2, 2, 2, 2)


def test_net_text_of_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    old.write_text(NEW)
    assert upgrade_net_proto_text.main([str(old), str(new)]) == 0
    assert read_text(new, NetParameter()) == text_format.Parse(NEW, NetParameter())
    assert f"] File already in latest proto format: {old}\n" in capsys.readouterr().err


def test_net_text_with_settings_that_have_no_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    old.write_text('layers { layer { name: "r" type: "relu" pad: 2 } top: "r" }')
    assert upgrade_net_proto_text.main([str(old), str(new)]) == 1
    assert str(read_text(new, NetParameter())) == str(
        text_format.Parse('layer { name: "r" type: "ReLU" top: "r" }', NetParameter())
    )
    text = capsys.readouterr().err
    assert "Unknown parameter pad for layer type relu" in text
    assert "Encountered error(s) while upgrading" in text


def test_net_binary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.caffemodel", tmp_path / "new.caffemodel"
    values = np.arange(54, dtype=np.float32)
    message = NetParameter(input=["x"])
    layer = message.layers.add(name="c", type=V1LayerParameter.CONVOLUTION, bottom=["x"], top=["c"])
    layer.blobs.add(num=2, channels=3, height=3, width=3, data=values)
    layer.blobs.add(num=1, channels=1, height=1, width=2, data=[0.5, 1.5])
    old.write_bytes(message.SerializeToString())
    assert upgrade_net_proto_binary.main([str(old), str(new)]) == 0
    written = read_binary(new, NetParameter())
    assert not written.layers
    assert not written.input
    np.testing.assert_array_equal(blobproto_to_array(written.layer[0].blobs[0]).ravel(), values)
    assert f"] Wrote upgraded NetParameter binary proto to {new}\n" in capsys.readouterr().err
    assert upgrade_net_proto_binary.main([str(new), str(tmp_path / "again")]) == 0
    assert f"] File already in latest proto format: {new}\n" in capsys.readouterr().err
    assert (tmp_path / "again").read_bytes() == new.read_bytes()


def test_solver_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    old.write_text('net: "n" solver_type: NESTEROV momentum: 0.5')
    assert upgrade_solver_proto_text.main([str(old), str(new)]) == 0
    assert read_text(new, SolverParameter()) == SolverParameter(net="n", type="Nesterov", momentum=0.5)
    assert f"] Wrote upgraded SolverParameter text proto to {new}\n" in capsys.readouterr().err
    assert upgrade_solver_proto_text.main([str(new), str(tmp_path / "again")]) == 0
    assert f"] File already in latest proto format: {new}\n" in capsys.readouterr().err
    assert (tmp_path / "again").read_text() == new.read_text()


@pytest.mark.parametrize(
    ("tool", "content", "code", "message"),
    [
        (upgrade_net_proto_text, b"layers {\n type: CONV }", 2, "as NetParameter: {}:2:"),
        (upgrade_net_proto_text, b"\xff", 2, "as NetParameter: {}: not a text file"),
        (upgrade_net_proto_text, b"layers { layer { type: 'convolve' } }", 1, "{}: layer '': type 'convolve' is no"),
        (upgrade_net_proto_text, b"layers { } layer { name: 'b' }", 1, "{}: layer 'b' is a `layer`"),
        (upgrade_net_proto_binary, b"\xff", 2, "as NetParameter: {}: not a NetParameter"),
        (upgrade_solver_proto_text, b"solver_type: SDG", 2, "as SolverParameter: {}:1:"),
        (upgrade_solver_proto_text, b"solver_type: SGD type: 'SGD'", 1, "{}: solver_type and type are both given"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, tool: object, content: bytes, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(content)
    assert tool.main([str(old), str(new)]) == code  # type: ignore[attr-defined]
    assert message.format(old) in capsys.readouterr().err.splitlines()[-1]
    assert not new.exists()


@pytest.mark.parametrize("tool", [upgrade_net_proto_text, upgrade_net_proto_binary, upgrade_solver_proto_text])
def test_a_target_that_cannot_be_written(tmp_path: Path, tool: object, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").write_bytes(b"")
    assert tool.main([str(tmp_path / "old"), str(tmp_path / "no" / "new")]) == 1  # type: ignore[attr-defined]
    assert "No such file or directory" in capsys.readouterr().err.splitlines()[-1]
