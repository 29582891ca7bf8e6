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
from caffe.tools.scripts import run


def export(options: argparse.Namespace) -> None:
    """Run the tool. Raises CaffeError."""
    net = Net(options.deploy, options.weights, TEST)
    save_onnx(net, options.onnx_file)
    inputs, outputs = (
        ", ".join(f"{name} {'×'.join(map(str, ('N', *net.blobs[name].shape[1:])))}" for name in names)
        for names in (net.inputs, net.outputs)
    )
    print(f"{options.onnx_file}: {inputs} → {outputs}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("export_onnx", description="Write a trained net as an ONNX file.")
    parser.add_argument("deploy", metavar="DEPLOY_PROTOTXT", help="the net, as it predicts")
    parser.add_argument("weights", metavar="CAFFEMODEL", help="its weights, also .caffemodel.h5")
    parser.add_argument("onnx_file", metavar="ONNX_FILE", help="the file to write")
    return run("export_onnx", export, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
