"""Caffe's upgrade_net_proto_binary: a .caffemodel of any age, written in the current form.

python -m caffe.tools.upgrade_net_proto_binary OLD_CAFFEMODEL NEW_CAFFEMODEL

Exit codes as upgrade_net_proto_text's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from caffe.tools.flags import run
from caffe.tools.upgrade_net_proto_text import parser, upgrade


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    command_line = parser("upgrade_net_proto_binary", "a .caffemodel of any age")
    return run(command_line, lambda flags: upgrade(flags, binary=True), arguments)


if __name__ == "__main__":
    sys.exit(main())
