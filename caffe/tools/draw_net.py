"""Caffe's draw_net: a prototxt as a picture of its layers and blobs.

python -m caffe.tools.draw_net [--rankdir LR] [--phase TRAIN|TEST|ALL] [--display_lrm] PROTOTXT PICTURE

PICTURE is a .png, .svg, .pdf, … that Graphviz makes, or a .dot file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from caffe.draw import DIRECTIONS, draw_net_to_file
from caffe.errors import CaffeError
from caffe.io import read_net_parameter
from caffe.proto.caffe_pb2 import TEST, TRAIN
from caffe.tools.flags import FlagParser, run

PHASES = {"TRAIN": TRAIN, "TEST": TEST, "ALL": None}


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("draw_net", "Draw a net as a graph of its layers and blobs.")
    parser.add_argument("input_net_proto_file", metavar="PROTOTXT")
    parser.add_argument("output_image_file", metavar="PICTURE")
    parser.flag("rankdir", "LR", f"the direction: {', '.join(DIRECTIONS)} (left to right, …, bottom to top)")
    parser.flag("phase", "ALL", "which layers: those of TRAIN, of TEST, or ALL")
    parser.flag("display_lrm", False, "show the multipliers of the learning rates")
    return parser


def draw(flags: argparse.Namespace) -> None:
    """Run the tool."""
    if flags.phase not in PHASES:
        raise CaffeError(f"--phase is {flags.phase!r}; expected TRAIN, TEST or ALL")
    net = read_net_parameter(flags.input_net_proto_file)
    print(f"Drawing net to {flags.output_image_file}")
    draw_net_to_file(net, flags.output_image_file, flags.rankdir, PHASES[flags.phase], flags.display_lrm)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
