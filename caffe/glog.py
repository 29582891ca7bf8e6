"""Caffe's log: glog's line format, so that the scripts that were written for Caffe's logs read ours.

Everything goes to Python's logger `caffe`. As a library the engine is quiet; a tool calls `log_to`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from datetime import datetime
from typing import TextIO

logger = logging.getLogger("caffe")
logger.propagate = False
logger.addHandler(logging.NullHandler())


class GlogFormatter(logging.Formatter):
    """`I20261120 23:19:50.154336 13309 solver.cpp:239] message`: level, date, time, thread, place."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%Y%m%d %H:%M:%S.%f")
        place = getattr(record, "place", f"{record.filename}:{record.lineno}")
        return f"{record.levelname[0]}{time} {threading.get_native_id() or os.getpid()} {place}] {record.getMessage()}"


def info(place: str, message: str) -> None:
    """Log `message` as Caffe does at `place` (`solver.cpp:239`)."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(message, extra={"place": place})


def warning(place: str, message: str) -> None:
    """The same as a warning."""
    logger.warning(message, extra={"place": place})


def error(place: str, message: str) -> None:
    """The same as an error."""
    logger.error(message, extra={"place": place})


class WholeLog(logging.StreamHandler[TextIO]):
    """A log into a file without gaps: a line that cannot be written is an OSError, which names and closes the file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with suppress(OSError):
            self.stream.close()
        raise OSError(error.errno, error.strerror, self.stream.name) from None


def log_to(stream: TextIO | None = None, whole: bool = False) -> logging.Handler:
    """Send the log to `stream` (default: standard error); returns the handler, for `stop_logging`.

    `whole`: as WholeLog does; else a line that cannot be written is a traceback on standard error, and no more.
    """
    handler = WholeLog(stream) if stream and whole else logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(GlogFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def log(message: str) -> None:
    """Log a message of a script's own; pycaffe's."""
    caller = sys._getframe(1)
    info(f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}", message)


_of_script: logging.Handler | None = None  # `init_log`'s


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Send the log to standard error from a level on: 0 all, 1 warnings, 2 errors; pycaffe's. The last call counts.

    Without `stderr`, only errors go there.
    """
    global _of_script
    if _of_script is not None:
        stop_logging(_of_script)
    _of_script = log_to()
    logger.setLevel({0: logging.INFO, 1: logging.WARNING}.get(level, logging.ERROR) if stderr else logging.ERROR)


def stop_logging(handler: logging.Handler) -> None:
    """Undo `log_to`."""
    logger.removeHandler(handler)
    if not any(isinstance(other.formatter, GlogFormatter) for other in logger.handlers):  # others' may be there too
        logger.setLevel(logging.NOTSET)


def number(value: float) -> str:
    """A number as C++ streams print it: six significant digits."""
    return f"{value:.6g}"
