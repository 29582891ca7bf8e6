"""A trained net as an ONNX file; Caffe has no such tool.

python -m caffe.tools.export_onnx DEPLOY_PROTOTXT CAFFEMODEL ONNX_FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from caffe.net import Net
from caffe.onnx import save_onnx
from caffe.proto.caffe_pb2 import TEST
from caffe.tools.flags import FlagParser, run


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("export_onnx", "Write a trained net as an ONNX file.")
    parser.add_argument("deploy", metavar="DEPLOY_PROTOTXT")
    parser.add_argument("weights", metavar="CAFFEMODEL", help="or .caffemodel.h5")
    parser.add_argument("onnx_file", metavar="ONNX_FILE")
    return parser


def export(flags: argparse.Namespace) -> None:
    """Run the tool."""
    net = Net(flags.deploy, flags.weights, TEST)
    save_onnx(net, flags.onnx_file)
    shapes = [f"{name} {'×'.join(map(str, ('N', *net.blobs[name].shape[1:])))}" for name in (*net.inputs, *net.outputs)]
    print(f"{flags.onnx_file}: {', '.join(shapes[: len(net.inputs)])} → {', '.join(shapes[len(net.inputs) :])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), export, arguments)


if __name__ == "__main__":
    sys.exit(main())
