"""Read a Caffe training log into tables, one of training readings and one of test readings, with Caffe's interface.

    python -m caffe.tools.parse_log LOGFILE OUTPUT_DIR [--verbose] [--delimiter ,]

writes OUTPUT_DIR/LOGFILE.train and OUTPUT_DIR/LOGFILE.test: a header `NumIters,Seconds,LearningRate,<outputs>` and
one line a reading, as Caffe's `tools/extra/parse_log.py` does.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

Row = dict[str, float]

NUMBER = r"[-+]?(?:nan|inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
END = r"(?=[\s,)]|$)"  # a number that runs into other text was cut off by the end of an earlier run
TIME = re.compile(r"[IWEF](?P<year>\d{4})?(?P<month>\d\d)(?P<day>\d\d) (?P<clock>\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*\s")
SOLVING = re.compile(r"\] Solving(?: (?P<name>\S.*))?$")
ITERATION = re.compile(r"Iteration (?P<iteration>\d+)(?=[ ,])(?P<rest>.*)$")
DISPLAYED = re.compile(rf", loss = (?P<loss>{NUMBER}){END}", re.IGNORECASE)
LEARNING_RATE = re.compile(rf"^, lr = (?P<rate>{NUMBER}){END}", re.IGNORECASE)
TESTING = re.compile(r"^, Testing net \(#(?P<net>\d+)\)")
OUTPUT = re.compile(
    rf"(?P<phase>Train|Test) net output #\d+: (?P<name>\S+) = (?P<value>{NUMBER}){END}"
    rf"(?: \(\* (?P<weight>{NUMBER}) = )?",
    re.IGNORECASE,
)


@dataclass
class Log:
    """What a Caffe log says of a run, in the order of iterations.

    Attributes
    ----------
    name: the net's name, from the line `Solving NAME`; empty where the log has none.
    train, test: one row a reading, with `NumIters`, `Seconds`, `LearningRate` and one key an output blob.
    loss: iteration -> the training loss displayed there (all loss layers together, averaged over the solver's
        `average_loss` iterations).
    learning_rate: iteration -> the learning rate of that iteration's update.
    weights: output name -> the loss weight printed with it, for the outputs that are losses; in tests, where training
        has another.
    """

    name: str = ""
    train: list[Row] = field(default_factory=list)
    test: list[Row] = field(default_factory=list)
    loss: dict[int, float] = field(default_factory=dict)
    learning_rate: dict[int, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


class _Clock:
    """Seconds since the line `Solving …`. Dates of older logs have no year: the year of the file stands in for it."""

    def __init__(self, year: int) -> None:
        self.year = year
        self.start: datetime | None = None
        self.now: datetime | None = None

    def read(self, line: str) -> None:
        match = TIME.match(line)
        if match is None:
            return
        month, day = int(match["month"]), int(match["day"])
        year = int(match["year"] or self.year)
        if not match["year"] and (month, day) == (2, 29) and self.year % 4:
            self._move_to_leap_year()
            year = self.year
        layout = "%Y-%m-%d %H:%M:%S.%f" if "." in match["clock"] else "%Y-%m-%d %H:%M:%S"
        try:
            time = datetime.strptime(f"{year:04}-{month:02}-{day:02} {match['clock']}", layout)
            if not match["year"] and self.now is not None and (self.now - time).days > 180:  # past New Year's Eve
                self.year += 1
                time = time.replace(year=self.year)
        except ValueError:  # not a date: the line only looks like one of glog's
            return
        self.now = time

    def _move_to_leap_year(self) -> None:
        years = self.year % 4
        self.year -= years
        self.start = self.start and self.start.replace(year=self.start.year - years)
        self.now = self.now and self.now.replace(year=self.now.year - years)

    @property
    def seconds(self) -> float:
        """NaN where no line so far had a time."""
        if self.now is None:
            return math.nan
        self.start = self.start or self.now
        return (self.now - self.start).total_seconds()


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines that end in a newline: the last one of a log being written may stop in the middle of a number."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as f:
        for line in f:
            if line.endswith("\n"):
                yield line.rstrip("\r\n")


class _Reader:
    """Reads a log line by line, of which it knows where it stands.

    year: of dates that have none.

    Attributes
    ----------
    log: what was read, but for the rows.
    rows: of each phase, `Train` and `Test`: iteration -> row.
    """

    def __init__(self, year: int) -> None:
        self.log = Log()
        self.rows: dict[str, dict[int, Row]] = {"Train": {}, "Test": {}}
        self._clock = _Clock(year)
        self._iteration, self._test_net = -1, 0
        self._seen: dict[tuple[str, str], int] = {}  # (phase, output) -> elements read of it in this reading
        self._tested: set[str] = set()  # losses that a test has
        self._started: set[str] = set()  # phases with a row begun since the iteration number last changed

    def read(self, line: str) -> None:
        """Take in the next line."""
        self._clock.read(line)
        if solving := SOLVING.search(line):
            self.log.name = solving["name"] or self.log.name
            self._clock.start = self._clock.start or self._clock.now
        elif match := ITERATION.search(line):
            self._go_to(int(match["iteration"]))
            self._read_iteration(match["rest"])
        elif self._iteration >= 0 and (match := OUTPUT.search(line)):
            self._read_output(match)

    def _go_to(self, iteration: int) -> None:
        """From here on the log tells of this iteration, and of later ones it has told nothing."""
        if iteration < self._iteration:
            tables: list[dict[int, Any]] = [*self.rows.values(), self.log.loss, self.log.learning_rate]
            for readings in tables:
                for later in [i for i in readings if i >= iteration]:
                    del readings[later]
        if iteration != self._iteration:
            self._started.clear()
        self._iteration = iteration
        self._seen.clear()

    def _read_iteration(self, rest: str) -> None:
        """What stands behind `Iteration N`."""
        if displayed := DISPLAYED.search(rest):
            self.log.loss[self._iteration] = float(displayed["loss"])
            self._started.discard("Train")
        elif rate := LEARNING_RATE.match(rest):
            self.log.learning_rate[self._iteration] = float(rate["rate"])
        elif testing := TESTING.match(rest):
            self._test_net = int(testing["net"])
            if self._test_net == 0:
                self._started.discard("Test")

    def _read_output(self, match: re.Match[str]) -> None:
        """A line of OUTPUT: a value of the row, and of a loss the weight."""
        phase = match["phase"].capitalize()
        rows = self.rows[phase]
        if phase not in self._started:
            rows[self._iteration] = {
                "NumIters": self._iteration,
                "Seconds": self._clock.seconds,
                "LearningRate": math.nan,
            }
            self._started.add(phase)
        name = match["name"] + (f"#{self._test_net}" if phase == "Test" and self._test_net else "")
        element = self._seen.get((phase, name), 0)
        self._seen[phase, name] = element + 1
        rows[self._iteration][f"{name}[{element}]" if element else name] = float(match["value"])
        if match["weight"] and (phase == "Test" or name not in self._tested):
            self.log.weights[name] = float(match["weight"])
            self._tested.update([name] if phase == "Test" else [])


def read_log(path: str | Path) -> Log:
    """Read a log written by any Caffe, whole or still being written, of one run or of several appended.

    Where the iterations go back (a run resumed from an earlier snapshot, into the same file), what the abandoned
    run said of the iterations from there on is dropped: the later readings are the history of the weights.
    Lines that are cut off or are not Caffe's are passed over.

    A learning rate is that of the row's own iteration for training, and the last one used before for tests, NaN
    where the log names none. (Caffe's script gives training rows the rate of the display before, being printed
    after the outputs.) Outputs of further test nets are named `NAME#1`, `NAME#2`; further elements of an output
    that is no single number `NAME[1]`, `NAME[2]`.

    Raises
    ------
    OSError: the file cannot be read.
    """
    path = Path(path)
    reader = _Reader(datetime.fromtimestamp(path.stat().st_mtime).year)
    for line in _whole_lines(path):
        reader.read(line)
    log, rows = reader.log, reader.rows
    log.train, log.test = ([rows[phase][i] for i in sorted(rows[phase])] for phase in ("Train", "Test"))
    _fill_learning_rates(log)
    return log


def _fill_learning_rates(log: Log) -> None:
    """Training rows take their own iteration's rate; tests the last before, the first one for a test before all."""
    known = sorted(log.learning_rate)
    for row in log.train:
        row["LearningRate"] = log.learning_rate.get(int(row["NumIters"]), math.nan)
    for row in log.test:
        earlier = [i for i in known if i < row["NumIters"]] or known[:1]
        if earlier:
            row["LearningRate"] = log.learning_rate[earlier[-1]]


def parse_log(path: str | Path) -> tuple[list[Row], list[Row]]:
    """The training and the test readings of a Caffe log, each a list of rows in the order of iterations.

    A row is a dictionary with `NumIters` (int), `Seconds` since the start, `LearningRate` and the value of every
    output; see `read_log` for what holds for resumed and unfinished logs.

    Raises
    ------
    OSError: the file cannot be read.
    """
    log = read_log(path)
    return log.train, log.test


def columns(rows: Iterable[Row]) -> list[str]:
    """All keys of the rows, in the order in which they first stand."""
    return list(dict.fromkeys(key for row in rows for key in row))


def save_csv_files(
    logfile: str | Path,
    output_dir: str | Path,
    train_rows: list[Row],
    test_rows: list[Row],
    delimiter: str = ",",
    verbose: bool = False,
) -> tuple[Path, Path]:
    """Write OUTPUT_DIR/LOGFILE.train and .test (a file of no bytes where there are no rows); return their paths."""
    folder, name = Path(output_dir), Path(logfile).name
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{name}.train", folder / f"{name}.test"
    for path, rows in zip(written, (train_rows, test_rows), strict=True):
        with open(path, "w", newline="") as f:
            writer = csv.DictWriter(f, fieldnames=columns(rows), delimiter=delimiter, lineterminator="\n")
            if rows:
                writer.writeheader()
                writer.writerows({**row, "NumIters": float(row["NumIters"])} for row in rows)  # 0.0, as Caffe's
        if verbose:
            print(f"Wrote {path}")
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command: Caffe's arguments, exit code 1 with a message where the log cannot be read."""
    parser = argparse.ArgumentParser(
        prog="parse_log",
        description="Parse a Caffe training log into two CSV files, LOGFILE.train and LOGFILE.test.",
    )
    parser.add_argument("logfile_path", help="the log that caffe train wrote")
    parser.add_argument("output_dir", help="the folder for the two files (made where missing)")
    parser.add_argument("--verbose", action="store_true", help="say which files were written")
    parser.add_argument("--delimiter", default=",", help="column delimiter in the files (default: %(default)r)")
    args = parser.parse_args(arguments)
    if len(args.delimiter) != 1:
        parser.error(f"--delimiter is {args.delimiter!r}; expected one character")
    try:
        train_rows, test_rows = parse_log(args.logfile_path)
        save_csv_files(
            args.logfile_path, args.output_dir, train_rows, test_rows, delimiter=args.delimiter, verbose=args.verbose
        )
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
