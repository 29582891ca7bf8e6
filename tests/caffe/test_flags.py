"""Command lines as gflags takes them, and the logs of glog's flags, in all of Caffe's tools."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from caffe import glog as log
from caffe.errors import CaffeError
from caffe.tools.flags import FlagParser, run

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    "caffe",
    "compute_image_mean",
    "convert_imageset",
    "draw_net",
    "extract_features",
    "parse_log",
    "upgrade_net_proto_binary",
    "upgrade_net_proto_text",
    "upgrade_solver_proto_text",
]


def parser() -> FlagParser:
    parser = FlagParser("tool", "A tool.")
    parser.flag("count", 5, "a number")
    parser.flag("text", "", "a text")
    parser.flag("on", False, "a switch")
    parser.add_argument("file", nargs="?")
    return parser


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {"count": 5, "text": "", "on": False, "file": None}),
        ("--count=3 --text=a --on x", {"count": 3, "text": "a", "on": True, "file": "x"}),
        ("-count 3 -text a -on x", {"count": 3, "text": "a", "on": True, "file": "x"}),
        ("x --count -3 --text -on", {"count": -3, "text": "-on", "on": False, "file": "x"}),
        ("--text --count --count 4", {"text": "--count", "count": 4}),
        ("--on=false --on x --noon", {"on": False, "file": "x"}),
        ("--on=T --text=a=b", {"on": True, "text": "a=b"}),
        ("--text= --on=0", {"text": "", "on": False}),
        ("--count 1 --count=2", {"count": 2}),
        ("--on -- x", {"on": True, "file": "x"}),
    ],
)
def test_command_lines(line: str, expected: dict[str, object]) -> None:
    flags = vars(parser().parse(line.split()))
    assert {name: flags[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--count=many", "--count: invalid int value: 'many'"),
        ("--count", "--count: expected one argument"),
        ("--on=maybe", "--on: 'maybe'; expected true or false"),
        ("--nocount", "unrecognized arguments: --nocount"),
        ("--noon=true", "unrecognized arguments: --noon=true"),
        ("--coun=3", "unrecognized arguments: --coun=3"),
        ("a b", "unrecognized arguments: b"),
    ],
)
def test_wrong_command_lines(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse(line.split())
    assert caught.value.code == 1
    usage, error = capsys.readouterr().err.splitlines()[0], capsys.readouterr()
    assert usage.startswith("usage: tool ")
    with pytest.raises(SystemExit):
        parser().parse(line.split())
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tool: error: ")
    assert error.endswith(message)


# What a run gives


@pytest.mark.parametrize(
    ("result", "code"), [(None, 0), (0, 0), (2, 2), (CaffeError("odd"), 1), (OSError(2, "gone", "f"), 1)]
)
def test_exit_codes(result: int | Exception | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def tool(flags: argparse.Namespace) -> int | None:
        if isinstance(result, Exception):
            raise result
        return result

    assert run(parser(), tool, []) == code
    error = capsys.readouterr().err
    if isinstance(result, Exception):
        assert re.fullmatch(rf"E\d{{8}} [\d:.]+ \d+ tool\] {re.escape(str(result))}\n", error)
    else:
        assert error == ""


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def tool(flags: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert run(parser(), tool, []) == 130
    assert capsys.readouterr().err == ""


def chatter(flags: argparse.Namespace) -> None:
    log.info("a.cpp:1", "one")
    log.warning("a.cpp:2", "two")
    raise CaffeError("three")


@pytest.mark.parametrize(("level", "said"), [(0, "one two three"), (1, "two three"), (2, "three"), (3, ""), (9, "")])
def test_minloglevel(level: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parser(), chatter, [f"--minloglevel={level}"]) == 1
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == said.split()
    assert run(parser(), chatter, []) == 1  # the level is the run's alone
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_log_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    assert run(parser(), chatter, ["--log_dir", str(folder), "--alsologtostderr"]) == 1
    shown = capsys.readouterr().err
    assert (folder / "tool.INFO").is_symlink()
    (written,) = folder.glob("tool.*.log.INFO.*")
    assert written.name.endswith(f".{os.getpid()}")
    lines = (folder / "tool.INFO").read_text().splitlines(keepends=True)
    assert lines[0].startswith("Log file created at: ")
    assert lines[1].startswith("Running on machine: ")
    assert "".join(lines[3:]) == shown
    assert run(parser(), chatter, ["--log_dir", str(folder)]) == 1  # the link goes to the new one
    assert (folder / "tool.INFO").resolve() in folder.glob("tool.*.log.INFO.*")


def test_logtostderr_writes_no_file(tmp_path: Path) -> None:
    assert run(parser(), chatter, ["--log_dir", str(tmp_path / "logs"), "--logtostderr=1"]) == 1
    assert os.listdir(tmp_path) == []


# The tools


def test_console_scripts_have_caffes_names() -> None:
    table = (ROOT / "pyproject.toml").read_text().split("[project.scripts]\n")[1].split("\n\n")[0]
    for name in TOOLS:
        assert f'{name} = "caffe.tools.{name}:main"' in table.splitlines()


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_says_how_it_is_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tool = importlib.import_module(f"caffe.tools.{name}")
    assert f"python -m caffe.tools.{name} " in tool.__doc__
    with pytest.raises(SystemExit) as caught:
        tool.main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


def test_a_tool_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "caffe.tools.upgrade_net_proto_text"]
    done = subprocess.run([*command, "nowhere", str(tmp_path / "new")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nowhere: No such file" in done.stderr
    assert not os.listdir(tmp_path)
