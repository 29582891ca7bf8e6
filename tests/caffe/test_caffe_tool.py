"""The `caffe` command: train, test, time and device_query, their flags, and what a signal does to a training."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_training import write_problem

import caffe
from caffe.io import blobproto_to_array, read_binary
from caffe.proto.caffe_pb2 import NetParameter, SolverState, V1LayerParameter
from caffe.tools.caffe import main

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.cuda.is_available()


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    return write_problem(tmp_path)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`caffe train` takes SIGINT and SIGHUP for its process; this one wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def change(file: Path, *settings: str) -> Path:
    """Put settings of a solver in place of those of the same names."""
    lines = file.read_text().splitlines()
    for setting in settings:
        name = setting.split(":")[0]
        lines = [line for line in lines if not line.startswith(f"{name}:")] + [setting]
    file.write_text("\n".join(lines) + "\n")
    return file


def stored(path: Path) -> dict[str, list[np.ndarray]]:
    message = read_binary(path, NetParameter())
    return {layer.name: [blobproto_to_array(blob) for blob in layer.blobs] for layer in message.layer}


def saved_weights(problem: Path, name: str, value: float) -> Path:
    net = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TRAIN)
    for blob in net.learnable_params:
        blob.data[...] = value
    net.save(problem.parent / name)
    return problem.parent / name


# train


@pytest.mark.parametrize("form", [["--solver={}"], ["-solver={}"], ["--solver", "{}"], ["-solver", "{}", "-gpu", ""]])
def test_train(problem: Path, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    change(problem, "max_iter: 4", "solver_mode: CPU")
    assert main(["train", *(part.format(problem) for part in form)]) == 0
    lines = capsys.readouterr().err
    assert "\nW" not in lines
    assert re.search(r"^I\d{8} \d\d:\d\d:\d\d\.\d{6} \d+ caffe\.cpp:197\] Use CPU\.$", lines, re.MULTILINE)
    assert "] Starting Optimization\n" in lines
    assert "] Iteration 4, loss = " in lines
    assert lines.count("] Optimization Done.") == 2
    assert read_binary(problem.parent / "snap_iter_4.solverstate", SolverState()).iter == 4


def test_finetuning_takes_the_weights_of_all_files(problem: Path) -> None:
    a, b = saved_weights(problem, "a.caffemodel", 0.25), saved_weights(problem, "b.caffemodel", 0.5)
    message = read_binary(b, NetParameter())
    del message.layer[-3:]  # without fc2, which comes from the first file then
    b.write_bytes(message.SerializeToString())
    assert not stored(b).get("fc2")
    change(problem, "max_iter: 1", "base_lr: 0")
    assert main(["train", f"--solver={problem}", f"--weights={a},{b}"]) == 0
    trained = stored(problem.parent / "snap_iter_1.caffemodel")
    assert {float(value) for blob in trained["fc2"] for value in blob.ravel()} == {0.25}
    assert {float(value) for blob in trained["fc1"] for value in blob.ravel()} == {0.5}


def test_the_command_lines_weights_replace_the_solvers(problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = saved_weights(problem, "a.caffemodel", 0.25)
    change(problem, "max_iter: 1", "base_lr: 0", 'weights: "nowhere.caffemodel"')
    assert main(["train", f"--solver={problem}", f"--weights={a}"]) == 0
    assert f"] Finetuning from {a}\n" in capsys.readouterr().err
    trained = stored(problem.parent / "snap_iter_1.caffemodel")
    assert {float(value) for blob in trained["fc1"] for value in blob.ravel()} == {0.25}


def test_old_weights_finetune(problem: Path) -> None:
    """V1 weights, as models of 2014 come."""
    net = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TRAIN)
    old = NetParameter(name="old")
    for name in ("fc1", "fc2"):
        layer = old.layers.add(name=name, type=V1LayerParameter.INNER_PRODUCT)
        for i, blob in enumerate(net.params[name]):
            rows, columns = (1, 1, *blob.shape)[-2:]
            layer.blobs.add(num=1, channels=1, height=rows, width=columns, data=[i + 0.5] * blob.count)
    (problem.parent / "old.caffemodel").write_bytes(old.SerializeToString())
    change(problem, "max_iter: 1", "base_lr: 0")
    assert main(["train", f"--solver={problem}", f"--weights={problem.parent}/old.caffemodel"]) == 0
    trained = stored(problem.parent / "snap_iter_1.caffemodel")
    for name in ("fc1", "fc2"):
        assert [set(blob.ravel().tolist()) for blob in trained[name]] == [{0.5}, {1.5}]


def test_a_snapshot_resumes(problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(problem, "max_iter: 8", "snapshot: 5")
    assert main(["train", f"--solver={problem}"]) == 0
    straight = stored(problem.parent / "snap_iter_8.caffemodel")
    (problem.parent / "snap_iter_8.caffemodel").unlink()
    capsys.readouterr()
    assert main(["train", f"--solver={problem}", f"--snapshot={problem.parent}/snap_iter_5.solverstate"]) == 0
    lines = capsys.readouterr().err
    resuming = f"] Resuming from {problem.parent}/snap_iter_5.solverstate\n"
    assert lines.index(resuming) < lines.index("] Starting Optimization\n")
    assert re.findall(r"\] Iteration (\d+) \(", lines) == ["6"]
    resumed = stored(problem.parent / "snap_iter_8.caffemodel")
    assert straight.keys() == resumed.keys()
    for name, blobs in straight.items():
        for ours, theirs in zip(blobs, resumed[name], strict=True):
            assert ours.tobytes() == theirs.tobytes(), name


def test_level_stage_and_precision(problem: Path) -> None:
    net = problem.parent / "net.prototxt"
    extra = (
        'layer { name: "extra" type: "InnerProduct" bottom: "fc2" top: "extra" '
        'include { min_level: 2 stage: "more" } inner_product_param { num_output: 1 } }'
    )
    net.write_text(net.read_text() + extra)
    change(problem, "max_iter: 1")
    for flags, kept in (([], False), (["--level=2"], False), (["--level=2", "--stage=less,more"], True)):
        assert main(["train", f"--solver={problem}", "--precision=bf16", *flags]) == 0
        assert ("extra" in stored(problem.parent / "snap_iter_1.caffemodel")) == kept


@pytest.mark.skipif(CUDA, reason="there is a GPU here, so that it is used")
def test_a_solver_that_asks_for_a_gpu_trains_without_one(problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ([], ["solver_mode: GPU"]):
        change(problem, "max_iter: 1", *mode)
        assert main(["train", f"--solver={problem}"]) == 0
        warning, device = re.findall(r"^(\w)\S+ \S+ \d+ caffe\.cpp:\d+\] (.*)$", capsys.readouterr().err, re.MULTILINE)[
            :2
        ]
        assert warning[0] == "W"
        assert "GPU" in warning[1]
        assert device == ("I", "Use CPU.")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs that are none: nets stay on the CPU. The devices that are chosen."""
    chosen: list[str] = []
    monkeypatch.setattr(caffe, "use_device", chosen.append)
    monkeypatch.setattr(caffe, "set_mode_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "Card {}".format)
    return chosen


@pytest.mark.parametrize(
    ("flags", "settings", "used", "line"),
    [
        ([], [], "cuda:0", "Using GPUs 0"),
        ([], ["device_id: 1"], "cuda:1", "Using GPUs 1"),
        (["--gpu=1"], ["solver_mode: CPU"], "cuda:1", "Using GPUs 1"),
        (["-gpu", "1,0"], [], "cuda:1", "Using GPUs 1, 0"),
        (["-gpu", "all"], [], "cuda:0", "Using GPUs 0, 1"),
    ],
)
def test_the_gpu_of_a_training(
    problem: Path,
    gpus: list[str],
    flags: list[str],
    settings: list[str],
    used: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(problem, "max_iter: 1", *settings)
    assert main(["train", f"--solver={problem}", *flags]) == 0
    text = capsys.readouterr().err
    assert gpus == [used]
    assert f"] {line}\n" in text
    assert f"] GPU {used[-1]}: Card {used[-1]}\n" in text
    assert f"\ndevice_id: {used[-1]}\n" in text
    warnings = [line for line in text.splitlines() if line.startswith("W")]
    if "," in line:
        (warning,) = warnings
        assert f"on GPU {used[-1]} alone" in warning
        assert warning.endswith("multiply the net's batch_size, or the solver's iter_size, by 2")
    else:
        assert warnings == []


def test_the_gpu_of_a_test(problem: Path, gpus: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time", f"--model={problem.parent}/net.prototxt", "--iterations=1", "--gpu=1,0"]) == 0
    assert gpus == ["cuda:1"]
    lines = re.findall(r"caffe\.cpp:\d+\] (.*GPU.*)", capsys.readouterr().err)
    assert lines == ["Not using GPU #0 for single-GPU function", "Use GPU with device ID 1", "GPU 1: Card 1"]


class Training:
    """`caffe train` in a process of its own, and what it logs."""

    def __init__(self, problem: Path, *flags: str) -> None:
        self.log = problem.parent / "log"
        with open(self.log, "w") as stream:
            command = [sys.executable, "-m", "caffe.tools.caffe", "train", f"--solver={problem}", *flags]
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=stream, stdout=stream)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def end(self) -> int:
        try:
            return self.process.wait(timeout=120)
        finally:
            self.process.kill()


def test_what_signals_do(problem: Path) -> None:
    """A hang-up makes a snapshot and the training goes on; Ctrl-C makes one and ends it; --snapshot goes on there."""
    change(problem, "max_iter: 100000000")
    training = Training(problem)
    training.wait_for("] Iteration 4 (")
    training.process.send_signal(signal.SIGHUP)
    training.wait_for("Snapshotting solver state")
    training.wait_for("] Iteration ")
    training.process.send_signal(signal.SIGINT)
    assert training.end() == 0
    text = training.log.read_text()
    assert "] Optimization stopped early." in text
    assert "Traceback" not in text
    states = {int(path.stem.rsplit("_", 1)[1]): path for path in problem.parent.glob("*.solverstate")}
    assert len(states) == 2
    last = max(states)
    assert read_binary(states[last], SolverState()).iter == last
    change(problem, f"max_iter: {last + 3}")
    resumed = Training(problem, f"--snapshot={states[last]}")
    assert resumed.end() == 0
    assert (problem.parent / f"snap_iter_{last + 3}.caffemodel").is_file()


def test_other_effects_of_signals(problem: Path) -> None:
    change(problem, "max_iter: 100000000")
    training = Training(problem, "--sigint_effect=none", "--sighup_effect=stop")
    training.wait_for("] Iteration 4 (")
    training.process.send_signal(signal.SIGINT)
    seen = max(map(int, re.findall(r"\] Iteration (\d+) \(", training.log.read_text())))
    training.wait_for(f"] Iteration {seen + 4} (")
    assert not list(problem.parent.glob("*.solverstate"))
    training.process.send_signal(signal.SIGHUP)
    assert training.end() == 0
    assert len(list(problem.parent.glob("*.solverstate"))) == 1


# test and time


def test_test(problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net_file = problem.parent / "net.prototxt"
    net = caffe.Net(str(net_file), caffe.TEST, seed=1)
    for blob, value in zip(net.params["bn"], (0.1, 1.0, 1.0), strict=True):
        blob.data[...] = value
    weights = problem.parent / "some.caffemodel"
    net.save(weights)
    assert main(["test", f"--model={net_file}", f"--weights={weights}", "-iterations", "3"]) == 0
    batches = [{name: float(value) for name, value in net.forward().items()} for _ in range(3)]
    text = capsys.readouterr().err
    lines = re.findall(r"\] (.*)", text)
    assert "Running for 3 iterations." in lines
    for i, batch in enumerate(batches):
        shown = {name: float(value) for name, value in re.findall(rf"Batch {i}, (\w+) = (\S+)", text)}
        assert shown == pytest.approx(batch, rel=1e-4)
    loss = sum(batch["loss"] for batch in batches) / 3
    accuracy = sum(batch["accuracy"] for batch in batches) / 3
    (shown_accuracy,) = (line for line in lines if line.startswith("accuracy = "))
    (shown_loss,) = (line for line in lines if line.startswith("loss = "))
    assert float(shown_accuracy.split()[2]) == pytest.approx(accuracy, rel=1e-4)
    assert [float(n) for n in re.findall(r"[\d.]+", shown_loss)] == pytest.approx([loss, 1, loss], rel=1e-4)
    (total,) = re.findall(r"\] Loss: (\S+)", text)
    assert float(total) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "layers"), [([], "data conv bn loss"), (["--phase=TEST"], "data conv bn loss accuracy")]
)
def test_time(problem: Path, flags: list[str], layers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time", f"--model={problem.parent}/net.prototxt", "--iterations=2", *flags]) == 0
    text = capsys.readouterr().err
    for name in layers.split():
        for what in ("forward", "backward"):
            (mean,) = re.findall(rf"\] +{name}\t{what}: (\S+) ms\.", text)
            assert float(mean) >= 0
    assert ("accuracy\tforward" in text) == ("accuracy" in layers)
    assert re.findall(r"Iteration: (\d+) forward-backward time: ", text) == ["1", "2"]
    for what in ("Average Forward pass", "Average Backward pass", "Average Forward-Backward", "Total Time"):
        assert float(re.findall(rf"\] {what}[^:]*: (\S+) ms\.", text)[0]) > 0
    assert text.index("*** Benchmark begins ***") < text.index("*** Benchmark ends ***")


def test_device_query(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device_query", "--gpu=all"]) == 0
    text = capsys.readouterr().err
    assert "] Querying GPUs all\n" in text
    assert ("] Device id:                     0\n" if CUDA else "] No cuda device present.\n") in text


class Driver:
    """A CUDA driver whose attributes' values are 1000 for the device and 10 for the attribute."""

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: int) -> int:  # noqa: N802 (the driver's)
        value._obj.value = 1000 * device + 10 * attribute  # type: ignore[attr-defined]
        return 0


def test_device_query_says_what_caffe_says(
    gpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = SimpleNamespace(major=9, minor=0, name="Card", total_memory=123456789)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    assert main(["device_query", "-gpu", "1"]) == 0
    lines = re.findall(r"common\.cpp:\d+\] (.*)", capsys.readouterr().err)
    assert lines == [
        "Device id:                     1",
        "Major revision number:         9",
        "Minor revision number:         0",
        "Name:                          Card",
        "Total global memory:           123456789",
        "Total shared memory per block: 1080",
        "Total registers per block:     1120",
        "Warp size:                     1100",
        "Maximum memory pitch:          1110",
        "Maximum threads per block:     1010",
        "Maximum dimension of block:    1020, 1030, 1040",
        "Maximum dimension of grid:     1050, 1060, 1070",
        "Clock rate:                    1130",
        "Total constant memory:         1090",
        "Texture alignment:             1140",
        "Concurrent copy and execution: Yes",
        "Number of multiprocessors:     1160",
        "Kernel execution timeout:      Yes",
    ]
    assert main(["device_query"]) == 0
    assert re.findall(r"Device id: +(\d)", capsys.readouterr().err) == ["0", "1"]
    assert main(["device_query", "--gpu=2"]) == 1
    assert "--gpu names 2; PyTorch finds 2 CUDA device(s)" in capsys.readouterr().err


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--solver is missing"),
        (["test", "--weights=w"], "--model is missing"),
        (["test", "--model=NET"], "--weights is missing"),
        (["time"], "--model is missing"),
        (["train", "--solver=nowhere.prototxt"], "nowhere.prototxt: No such file"),
        (["time", "--model=nowhere.prototxt"], "nowhere.prototxt: No such file"),
        (["test", "--model=NET", "--weights=nowhere.caffemodel"], "nowhere.caffemodel: No such file"),
        (["train", "--solver=SOLVER", "--snapshot=a", "--weights=b"], "both given"),
        (["train", "--solver=SOLVER", "--snapshot=nowhere.solverstate"], "nowhere.solverstate: No such file"),
        (["train", "--solver=SOLVER", "--weights=nowhere.caffemodel"], "nowhere.caffemodel: No such file"),
        (["train", "--solver=SOLVER", "--sigint_effect=quit"], "--sigint_effect is 'quit'"),
        (["train", "--solver=SOLVER", "--precision=fp8"], "--precision is 'fp8'"),
        (["train", "--solver=SOLVER", "--gpu=first"], "--gpu is 'first'"),
        (["time", "--model=NET", "--gpu=0,first"], "--gpu is '0,first'"),
        (["time", "--model=NET", "--gpu=0,"], "--gpu is '0,'"),
        (["time", "--model=NET", "--phase=train"], "--phase is 'train'"),
        (["time", "--model=NET", "--iterations=0"], "--iterations is 0; expected at least 1"),
        *(
            pytest.param(
                [*command, gpu],
                "GPU mode: PyTorch finds no CUDA device",
                marks=pytest.mark.skipif(CUDA, reason="there is a GPU here"),
            )
            for command in (["train", "--solver=SOLVER"], ["time", "--model=NET"])
            for gpu in ("--gpu=0", "--gpu=all")
        ),
    ],
)
def test_errors(problem: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    net = str(problem.parent / "net.prototxt")
    assert main([a.replace("SOLVER", str(problem)).replace("NET", net) for a in arguments]) == 1
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert not list(problem.parent.glob("snap*"))


@pytest.mark.parametrize(
    "arguments",
    [[], ["trian"], ["train", "--slover=x"], ["time", "--iterations=many"], ["train", "extra", "--solver=x"]],
)
def test_wrong_command_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("usage: caffe ")


@pytest.mark.parametrize("flag", ["--version", "-version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([flag])
    assert capsys.readouterr().out == "caffe version 1.0.0\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in ("solver", "model", "weights", "snapshot", "iterations", "gpu", "phase", "sigint_effect", "precision"):
        assert f"--{flag}" in text


def test_the_console_script_is_the_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "caffe.tools.caffe", "time", "--model=nowhere"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.match(r"E\d{8} \S+ +\d+ \S+\] nowhere: No such file", done.stderr.splitlines()[-1])
