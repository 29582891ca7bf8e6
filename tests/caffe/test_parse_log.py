"""Logs as Caffe writes them: the expected values are read by eye from the logs, not computed."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from caffe.tools.parse_log import parse_log, read_log

OLD_LOG = """\
Log file created at: 2015/03/09 16:31:40
Running on machine: lab
Log line format: [IWEF]mmdd hh:mm:ss.uuuuuu threadid file:line] msg
I0309 16:31:40.000000 20055 solver.cpp:48] Initializing solver from parameters:
I0309 16:31:50.500000 20055 solver.cpp:280] Solving LeNet
I0309 16:31:50.500001 20055 solver.cpp:281] Learning Rate Policy: inv
I0309 16:31:50.600000 20055 solver.cpp:338] Iteration 0, Testing net (#0)
I0309 16:31:51.500000 20055 solver.cpp:406]     Test net output #0: accuracy = 0.0986
I0309 16:31:51.500100 20055 solver.cpp:406]     Test net output #1: loss = 2.38405 (* 1 = 2.38405 loss)
I0309 16:31:51.600000 20055 solver.cpp:229] Iteration 0, loss = 2.4201
I0309 16:31:51.700000 20055 solver.cpp:245]     Train net output #0: loss = 2.4201 (* 1 = 2.4201 loss)
I0309 16:31:51.700100 20055 sgd_solver.cpp:106] Iteration 0, lr = 0.01
I0309 16:31:55.600000 20055 solver.cpp:229] Iteration 100, loss = 1e-05
I0309 16:31:55.700000 20055 solver.cpp:245]     Train net output #0: loss = 1e-05 (* 1 = 1e-05 loss)
I0309 16:31:55.700100 20055 sgd_solver.cpp:106] Iteration 100, lr = 0.00992565
"""


def write(folder: Path, text: str, name: str = "train.log") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_log_of_caffe_1_0(shared: Path) -> None:
    train, test = parse_log(shared / "caffe_golden/resume/full.log")
    assert [(r["NumIters"], r["loss"]) for r in train] == [
        (0, 2.01496),
        (5, 0.974131),
        (10, 0.372191),
        (15, 0.495081),
        (20, 0.594244),
    ]
    assert [r["LearningRate"] for r in train] == [0.05, 0.05, 0.025, 0.025, 0.0125]
    assert [(r["NumIters"], r["accuracy"], r["loss"]) for r in test] == [
        (0, 0.15, 69.4213),
        (10, 0.816667, 0.549394),
        (20, 0.716667, 1.0687),
    ]
    # "Solving golden" at 50.157122, the first test output at 50.157634, the last training output at 50.161335
    assert test[0]["Seconds"] == pytest.approx(0.000512, abs=1e-9)
    assert train[-1]["Seconds"] == pytest.approx(0.004213, abs=1e-9)


def test_displayed_losses_include_the_last_and_the_net_has_a_name(shared: Path) -> None:
    log = read_log(shared / "caffe_golden/resume/resumed.log")
    assert log.loss == {15: 0.430801, 20: 0.708165, 25: 0.320919}
    assert log.name == "golden"
    assert log.weights == {"loss": 1.0}


def test_a_loss_that_training_weighs_otherwise_has_the_tests_weight(tmp_path: Path) -> None:
    lines = [
        "Iteration 0, Testing net (#0)", "    Test net output #0: loss = 2 (* 1 = 2 loss)",
        "Iteration 0, loss = 1.7", "    Train net output #0: loss = 2 (* 0.1 = 0.2 loss)",
        "    Train net output #1: soft = 3 (* 0.5 = 1.5 loss)",
    ]  # fmt: skip
    assert read_log(write(tmp_path, "\n".join(lines) + "\n")).weights == {"loss": 1, "soft": 0.5}
    assert read_log(write(tmp_path, "\n".join(lines[2:] + lines[:2]) + "\n")).weights == {"loss": 1, "soft": 0.5}


def test_resumed_run_in_the_same_file_replaces_what_it_ran_again(shared: Path, tmp_path: Path) -> None:
    folder = shared / "caffe_golden/resume"
    both = write(tmp_path, (folder / "full.log").read_text() + (folder / "resumed.log").read_text())
    train, test = parse_log(both)
    assert [(r["NumIters"], r["loss"]) for r in train] == [
        (0, 2.01496),
        (5, 0.974131),
        (10, 0.372191),
        (15, 0.430801),
        (20, 0.708165),
    ]
    assert [r["accuracy"] for r in test] == [0.15, 0.816667, 0.733333]


def test_readings_of_an_abandoned_run_do_not_outlive_the_resume(tmp_path: Path) -> None:
    lines = [f"Iteration {i}, loss = {i}.5\nTrain net output #0: loss = {i}.5\n" for i in (0, 10, 20, 30, 40)]
    again = ["Iteration 20, loss = 7\nTrain net output #0: loss = 7\n"]
    train, _ = parse_log(write(tmp_path, "".join(lines + again)))
    assert [(r["NumIters"], r["loss"]) for r in train] == [(0, 0.5), (10, 10.5), (20, 7.0)]


def test_old_log_without_a_year_or_a_rate(tmp_path: Path) -> None:
    train, test = parse_log(write(tmp_path, OLD_LOG))
    assert [(r["NumIters"], r["loss"], r["LearningRate"]) for r in train] == [
        (0, 2.4201, 0.01),
        (100, 1e-5, 0.00992565),
    ]
    assert [r["Seconds"] for r in train] == [pytest.approx(1.2), pytest.approx(5.2)]
    assert test == [
        {"NumIters": 0, "Seconds": pytest.approx(1.0), "LearningRate": 0.01, "accuracy": 0.0986, "loss": 2.38405}
    ]


@pytest.mark.parametrize(
    ("before", "after", "file_year", "seconds"),
    [
        ("1231 23:59:50.000000", "0101 00:00:20.000000", 2022, 30),
        ("0228 23:59:50.000000", "0301 00:00:20.000000", 2023, 30),
        ("0228 23:59:50.000000", "0301 00:00:20.000000", 2024, 86430),
        ("0228 23:59:50.000000", "0229 00:00:20.000000", 2023, 30),  # a copy whose own year had no such day
    ],
)
def test_seconds_over_the_ends_of_years_and_february(
    tmp_path: Path, before: str, after: str, file_year: int, seconds: int
) -> None:
    log = write(
        tmp_path,
        f"I{before} 7 solver.cpp:280] Solving a net\nI{after} 7 solver.cpp:229] Iteration 0, loss = 1\n"
        f"I{after} 7 solver.cpp:245]     Train net output #0: loss = 1 (* 1 = 1 loss)\n",
    )
    moment = datetime(file_year, 6, 1).timestamp()
    os.utime(log, (moment, moment))
    train, _ = parse_log(log)
    assert train[0]["Seconds"] == seconds


@pytest.mark.parametrize(
    "kept", range(1, len("I0309 16:31:55.600000 20055 solver.cpp:229] Iteration 100, loss = 1e-05"))
)
def test_a_log_cut_off_in_its_last_line_loses_that_line_only(tmp_path: Path, kept: int) -> None:
    whole = OLD_LOG[: OLD_LOG.index("I0309 16:31:55.600000")]
    cut = OLD_LOG[len(whole) :][:kept]
    assert "\n" not in cut
    assert read_log(write(tmp_path, whole + cut)) == read_log(write(tmp_path, whole, "whole.log"))


def test_a_number_cut_off_by_the_next_run_is_no_reading(tmp_path: Path) -> None:
    whole = "Iteration 1, loss = 3.5\nTrain net output #0: loss = 3.5\n"
    text = whole + "Iteration 2, loss = 3.1I20260101 00:00:00.000000 1 caffe.cpp:197] Use CPU.\n"
    log = read_log(write(tmp_path, text))
    assert log.loss == {1: 3.5}
    assert [r["NumIters"] for r in log.train] == [1]


def test_losses_that_are_no_numbers(tmp_path: Path) -> None:
    text = "".join(
        f"Iteration {i} (5 iter/s, 0.2s/1 iters), loss = {value}\n"
        f"    Train net output #0: loss = {value} (* 1 = {value} loss)\n"
        for i, value in enumerate(("1.5", "nan", "-nan", "inf"))
    )
    train, _ = parse_log(write(tmp_path, text))
    assert train[0]["loss"] == 1.5
    assert math.isnan(train[1]["loss"])
    assert math.isnan(train[2]["loss"])
    assert train[3]["loss"] == math.inf
    assert math.isnan(train[0]["Seconds"])  # no line has a time


def test_several_test_nets_and_outputs_of_several_elements(tmp_path: Path) -> None:
    text = """\
I20260102 03:04:05.000000 1 solver.cpp:289] Solving two
I20260102 03:04:06.000000 1 solver.cpp:347] Iteration 50, Testing net (#0)
I20260102 03:04:06.100000 1 solver.cpp:414]     Test net output #0: accuracy = 0.5
I20260102 03:04:06.200000 1 solver.cpp:414]     Test net output #1: per_class = 0.25
I20260102 03:04:06.200000 1 solver.cpp:414]     Test net output #2: per_class = 0.75
I20260102 03:04:06.300000 1 solver.cpp:347] Iteration 50, Testing net (#1)
I20260102 03:04:06.400000 1 solver.cpp:414]     Test net output #0: accuracy = 0.4
"""
    _, test = parse_log(write(tmp_path, text))
    assert len(test) == 1
    assert {k: v for k, v in test[0].items() if k not in ("Seconds", "LearningRate")} == {
        "NumIters": 50,
        "accuracy": 0.5,
        "per_class": 0.25,
        "per_class[1]": 0.75,
        "accuracy#1": 0.4,
    }


def test_the_command_writes_caffes_two_files(shared: Path, tmp_path: Path) -> None:
    log = shared / "caffe_golden/resume/full.log"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "caffe.tools.parse_log",
            str(log),
            str(tmp_path / "out"),
            "--verbose",
            "--delimiter",
            ";",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.splitlines() == [f"Wrote {tmp_path}/out/full.log.train", f"Wrote {tmp_path}/out/full.log.test"]
    with open(tmp_path / "out/full.log.train", newline="") as f:
        rows = list(csv.reader(f, delimiter=";"))
    assert rows[0] == ["NumIters", "Seconds", "LearningRate", "loss"]
    assert rows[3][0] == "10.0"  # as Caffe writes it
    assert [float(v) for v in rows[3]] == [10, pytest.approx(0.002408), 0.025, 0.372191]
    with open(tmp_path / "out/full.log.test", newline="") as f:
        rows = list(csv.reader(f, delimiter=";"))
    assert rows[0] == ["NumIters", "Seconds", "LearningRate", "accuracy", "loss"]
    assert len(rows) == 4


def test_a_missing_log_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "caffe.tools.parse_log", "no.log", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: no.log: No such file")
