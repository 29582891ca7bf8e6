"""Caffe's upgrade_net_proto_text: a net's prototxt of any age, written in the current form.

python -m caffe.tools.upgrade_net_proto_text OLD_PROTOTXT NEW_PROTOTXT

Exit code 2 where the file does not parse; 1 where settings had no place in the current form (the rest is written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from google.protobuf import text_format

from caffe import glog as log
from caffe.errors import CaffeError
from caffe.files import replace_bytes
from caffe.io import read_binary, read_text
from caffe.proto.caffe_pb2 import NetParameter
from caffe.tools.flags import FlagParser, run
from caffe.upgrade import net_needs_upgrade, upgrade_net


def upgrade(flags: argparse.Namespace, binary: bool) -> int:
    """Upgrade the file `flags.source` into `flags.target`, both .caffemodel or both prototxt; returns the exit code."""
    kind = "binary" if binary else "text"
    try:
        net = (read_binary if binary else read_text)(flags.source, NetParameter())
    except CaffeError as error:
        log.error("tool", f"Failed to parse input {kind} file as NetParameter: {error}")
        return 2
    complete = True
    if net_needs_upgrade(net):
        complete = upgrade_net(net, flags.source)
    else:
        log.warning("tool", f"File already in latest proto format: {flags.source}")
    data = net.SerializeToString() if binary else text_format.MessageToBytes(net, as_utf8=True)
    replace_bytes(flags.target, data)
    log.info("tool", f"Wrote upgraded NetParameter {kind} proto to {flags.target}")
    if not complete:
        log.error("tool", "Encountered error(s) while upgrading; see details above.")
    return 0 if complete else 1


def parser(prog: str, what: str) -> FlagParser:
    """The command line of a tool that upgrades `what`."""
    parser = FlagParser(prog, f"Write {what} in the current form.")
    parser.add_argument("source", metavar="IN", help="the file to read")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    command_line = parser("upgrade_net_proto_text", "a net's prototxt of any age")
    return run(command_line, lambda flags: upgrade(flags, binary=False), arguments)


if __name__ == "__main__":
    sys.exit(main())
