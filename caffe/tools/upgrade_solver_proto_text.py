"""Caffe's upgrade_solver_proto_text: a solver's prototxt with `solver_type`, written with `type`.

python -m caffe.tools.upgrade_solver_proto_text OLD_PROTOTXT NEW_PROTOTXT

Exit code 2 where the file does not parse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from google.protobuf import text_format

from caffe import glog as log
from caffe.errors import CaffeError
from caffe.files import replace_bytes
from caffe.io import read_text
from caffe.proto.caffe_pb2 import SolverParameter
from caffe.tools.flags import run
from caffe.tools.upgrade_net_proto_text import parser
from caffe.upgrade import upgrade_solver


def upgrade(flags: argparse.Namespace) -> int:
    """Run the tool; returns the exit code."""
    try:
        solver = read_text(flags.source, SolverParameter())
    except CaffeError as error:
        log.error("tool", f"Failed to parse input text file as SolverParameter: {error}")
        return 2
    if not upgrade_solver(solver, flags.source):
        log.warning("tool", f"File already in latest proto format: {flags.source}")
    replace_bytes(flags.target, text_format.MessageToBytes(solver, as_utf8=True))
    log.info("tool", f"Wrote upgraded SolverParameter text proto to {flags.target}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser("upgrade_solver_proto_text", "a solver's prototxt of any age"), upgrade, arguments)


if __name__ == "__main__":
    sys.exit(main())
