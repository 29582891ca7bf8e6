"""Command lines as gflags reads them in Caffe's tools: --flag, -flag, --flag=value, --flag value, --noflag."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def _boolean(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"{text!r}; expected true or false")
    return text.lower() in TRUE


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser for a tool of Caffe's: flags by `flag`, positional arguments by `add_argument`.

    A wrong command line ends the tool with exit code 1, as gflags does.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self._booleans: dict[str, bool] = {}

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
        return self.parse_intermixed_args([*map(self._plain, arguments[:end]), *arguments[end:]])

    def _plain(self, argument: str) -> str:
        """One argument in argparse's spelling: two dashes, and a value for a boolean."""
        name = argument.lstrip("-")
        dashes = len(argument) - len(name)
        if dashes not in (1, 2):
            return argument
        if "=" in name:
            return f"--{name}" if name.split("=")[0] in self._booleans else argument
        if name in self._booleans:
            return f"--{name}=true" if self._booleans[name] else f"--{name}"
        if name.startswith("no") and self._booleans.get(name[2:]):
            return f"--{name[2:]}=false"
        return argument

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: {message}\n")
