"""What Caffe's tools have in common: command lines as gflags reads them, logs as glog writes them, exit codes.

Flags: --flag, -flag, --flag=value, --flag value, --noflag. The log goes to standard error, and with --log_dir to a file
too. Exit codes: 0; 1 where a tool cannot do its work (the log ends with a line `E… tool] what is wrong`) and for a
wrong command line (its usage and `TOOL: error: what is wrong`); 130 after Ctrl-C; others where a tool's text says so.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn, TextIO

from caffe import glog as log
from caffe.errors import CaffeError

TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
LEVELS = (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)  # by --minloglevel


def _boolean(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"{text!r}; expected true or false")
    return text.lower() in TRUE


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser for a tool of Caffe's: flags by `flag`, positional arguments by `add_argument`.

    The flags of glog that scripts give to Caffe's tools are there as well. A wrong command line ends the tool with exit
    code 1, as gflags does.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self._booleans: dict[str, bool] = {}
        self.flag("log_dir", "", "a folder for a log file, PROGRAM.HOST.USER.log.INFO.TIME.ID, and a link PROGRAM.INFO")
        self.flag("minloglevel", 0, "what to log: 0 all, 1 warnings, 2 errors")
        self.flag("logtostderr", False, "log to standard error alone, not to --log_dir")
        self.flag("alsologtostderr", True, "log to standard error, as is always done")

    def flag(self, name: str, default: bool | int | str, help: str) -> None:
        """Declare a flag; its type is that of its default."""
        shown = str(default).lower() if isinstance(default, bool) else default
        text = f"{help} (default: {shown})" if default != "" else help
        kind = _boolean if isinstance(default, bool) else type(default)
        self._booleans[name] = isinstance(default, bool)
        self.add_argument(
            f"--{name}", default=default, type=kind, metavar="BOOL" if self._booleans[name] else None, help=text
        )

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `arguments` (default: the command line's)."""
        arguments = sys.argv[1:] if arguments is None else arguments
        end = arguments.index("--") if "--" in arguments else len(arguments)
        return self.parse_intermixed_args([*self._plain(arguments[:end]), *arguments[end:]])

    def _plain(self, arguments: Sequence[str]) -> Iterator[str]:
        """The arguments in argparse's spelling: flags with two dashes and their value behind `=`."""
        rest = iter(arguments)
        for argument in rest:
            name, equals, _ = argument.lstrip("-").partition("=")
            dashes = len(argument) - len(argument.lstrip("-"))
            if dashes not in (1, 2):
                yield argument
            elif name in self._booleans and equals:
                yield f"--{argument[dashes:]}"
            elif name in self._booleans:
                value = "true" if self._booleans[name] else next(rest, None)  # also one that begins with a dash
                yield f"--{name}" if value is None else f"--{name}={value}"
            elif name.startswith("no") and self._booleans.get(name[2:]) and not equals:
                yield f"--{name[2:]}=false"
            else:
                yield argument

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: {message}\n")


def run(
    parser: FlagParser, tool: Callable[[argparse.Namespace], int | None], arguments: Sequence[str] | None = None
) -> int:
    """Parse a command line (default: the process's) and run a tool with it, logging; returns the exit code.

    Parameters
    ----------
    tool: gets the flags. Its CaffeError or OSError is logged, and the exit code 1; else it is what the tool returns,
        None being 0.
    """
    flags = parser.parse(arguments)
    with _logging(flags, parser.prog):
        try:
            return tool(flags) or 0
        except (CaffeError, OSError) as error:
            log.error("tool", str(error))
            return 1
        except KeyboardInterrupt:
            return 130


@contextmanager
def _logging(flags: argparse.Namespace, program: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(log.stop_logging, log.log_to())
        if flags.log_dir and not flags.logtostderr:
            stream = stack.enter_context(_log_file(Path(flags.log_dir), program))
            stack.callback(log.stop_logging, log.log_to(stream))
        log.logger.setLevel(LEVELS[min(max(flags.minloglevel, 0), 3)])
        yield


def _log_file(folder: Path, program: str) -> TextIO:
    """A new log file as glog names and begins it; the folder is made where it is missing."""
    now, host, user = datetime.now(), socket.gethostname(), os.environ.get("USER", "invalid-user")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{program}.{host}.{user}.log.INFO.{now:%Y%m%d-%H%M%S}.{os.getpid()}"
    stream = open(path, "w", encoding="utf-8")  # noqa: SIM115 (the caller closes it)
    stream.write(
        f"Log file created at: {now:%Y/%m/%d %H:%M:%S}\n"
        f"Running on machine: {host}\n"
        "Log line format: [IWEF]yyyymmdd hh:mm:ss.uuuuuu threadid file:line] msg\n"
    )
    link = folder / f"{program}.INFO"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    return stream
