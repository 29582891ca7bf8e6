"""The `caffe` command: train, test, time and device_query, with the flags and the log of Caffe's own.

python -m caffe.tools.caffe train --solver=solver.prototxt [--snapshot=X.solverstate | --weights=X.caffemodel,…]
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
import time
from collections.abc import Sequence

import torch

import caffe
from caffe import glog as log
from caffe.io import read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter
from caffe.solver import output_text
from caffe.tools.flags import FlagParser, run

EFFECTS = {"stop": "stop", "snapshot": "snapshot", "none": None}

# what device_query shows: Caffe's label, and the numbers of the driver's attributes (CUdevice_attribute)
DEVICE_ATTRIBUTES = {
    "Total shared memory per block": (8,),
    "Total registers per block": (12,),
    "Warp size": (10,),
    "Maximum memory pitch": (11,),
    "Maximum threads per block": (1,),
    "Maximum dimension of block": (2, 3, 4),
    "Maximum dimension of grid": (5, 6, 7),
    "Clock rate": (13,),
    "Total constant memory": (9,),
    "Texture alignment": (14,),
    "Concurrent copy and execution": (15,),
    "Number of multiprocessors": (16,),
    "Kernel execution timeout": (17,),
}
YES_OR_NO = ("Concurrent copy and execution", "Kernel execution timeout")


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("caffe", "Train, test and time networks. Commands: train, test, time, device_query.")
    parser.add_argument("--version", "-version", action="version", version=f"caffe version {caffe.__version__}")
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.flag("solver", "", "train: the solver prototxt")
    parser.flag("model", "", "test, time: the net's prototxt")
    parser.flag("weights", "", "train, test: .caffemodel files to start from, separated by commas")
    parser.flag("snapshot", "", "train: the .solverstate to go on from")
    parser.flag("iterations", 50, "test, time: how many")
    parser.flag("gpu", "", "GPUs by number, separated by commas, or all; the first one is used (default: the solver's)")
    parser.flag("phase", "", "time: TRAIN or TEST (default TRAIN)")
    parser.flag("level", 0, "the net's level")
    parser.flag("stage", "", "the net's stages, separated by commas")
    parser.flag("sigint_effect", "stop", "train: what Ctrl-C does: stop, snapshot or none")
    parser.flag("sighup_effect", "snapshot", "train: what a hang-up does: stop, snapshot or none")
    parser.flag("precision", "", "auto, fp32, bf16 or fp16 (ours; default: the solver's, else fp32)")
    return parser


def required(flags: argparse.Namespace, name: str) -> str:
    """A flag's value.

    Raises CaffeError where the command needs it and it is not given.
    """
    if not getattr(flags, name):
        raise caffe.CaffeError(f"caffe {flags.command}: --{name} is missing")
    return str(getattr(flags, name))


def listed(value: str) -> list[str]:
    """The parts of a flag's value that are separated by commas."""
    return [part for part in value.split(",") if part]


def gpus_of(gpu: str) -> list[int]:
    """The numbers of the GPUs that --gpu names. Raises CaffeError where it names none, or all where there is none."""
    if gpu == "all":
        caffe.set_mode_gpu()
        return list(range(torch.cuda.device_count()))
    numbers = gpu.split(",") if gpu else []
    if not all(number.isdigit() for number in numbers):
        raise caffe.CaffeError(f"--gpu is {gpu!r}; expected all, or numbers separated by commas")
    return [int(number) for number in numbers]


def use_gpu(number: int) -> None:
    """GPU mode on a device, whose name is logged. Raises CaffeError where it is not there."""
    caffe.use_device(f"cuda:{number}")
    log.info("caffe.cpp:280", f"GPU {number}: {torch.cuda.get_device_name(number)}")


def choose_device(flags: argparse.Namespace) -> None:
    """CPU or GPU mode for commands that Caffe runs on one device."""
    gpus = gpus_of(flags.gpu)
    for unused in reversed(gpus[1:]):
        log.info("caffe.cpp:266", f"Not using GPU #{unused} for single-GPU function")
    if gpus:
        log.info("caffe.cpp:275", f"Use GPU with device ID {gpus[0]}")
        use_gpu(gpus[0])
    else:
        log.info("caffe.cpp:284", "Use CPU.")
        caffe.set_mode_cpu()


def choose_training_device(flags: argparse.Namespace, param: SolverParameter) -> None:
    """CPU or GPU mode as --gpu, or else the solver, says; the solver's device_id becomes what is used.

    A solver's mode is GPU unless it says otherwise. Where there is no GPU it trains on the CPU, with a warning.
    """
    gpus = gpus_of(flags.gpu)
    if not flags.gpu and param.solver_mode == SolverParameter.GPU:
        if torch.cuda.is_available():
            gpus = [param.device_id]
        else:
            log.warning("caffe.cpp:192", "The solver's mode is GPU, and PyTorch finds none: it trains on the CPU")
    if not gpus:
        log.info("caffe.cpp:197", "Use CPU.")
        caffe.set_mode_cpu()
        return
    log.info("caffe.cpp:204", f"Using GPUs {', '.join(map(str, gpus))}")
    if len(gpus) > 1:
        log.warning(
            "caffe.cpp:204",
            f"Training runs on GPU {gpus[0]} alone. In Caffe {len(gpus)} GPUs train on a batch each: for the same "
            f"training multiply the net's batch_size, or the solver's iter_size, by {len(gpus)}",
        )
    use_gpu(gpus[0])
    param.device_id = gpus[0]


def train(flags: argparse.Namespace) -> None:
    """Train a net from a solver prototxt, from given weights or a snapshot."""
    source = required(flags, "solver")
    if flags.snapshot and flags.weights:
        raise caffe.CaffeError("caffe train: --snapshot and --weights are both given; expected one")
    for name in ("sigint_effect", "sighup_effect"):
        if getattr(flags, name) not in EFFECTS:
            raise caffe.CaffeError(f"--{name} is {getattr(flags, name)!r}; expected stop, snapshot or none")
    param = read_solver_parameter(source)
    param.train_state.level = flags.level
    param.train_state.stage.extend(listed(flags.stage))
    if flags.precision:
        if flags.precision.upper() not in SolverParameter.Precision.keys():  # noqa: SIM118 (an enum, not a dict)
            raise caffe.CaffeError(f"--precision is {flags.precision!r}; expected auto, fp32, bf16 or fp16")
        param.precision = SolverParameter.Precision.Value(flags.precision.upper())
    if flags.snapshot or flags.weights:
        param.ClearField("weights")  # the command line's are meant
    choose_training_device(flags, param)
    solver = caffe.get_solver(param)
    for name, number in (("sigint_effect", signal.SIGINT), ("sighup_effect", signal.SIGHUP)):
        effect = EFFECTS[getattr(flags, name)]
        signal.signal(number, lambda *_, effect=effect: setattr(solver, "requested", effect))
    if flags.snapshot:
        log.info("caffe.cpp:235", f"Resuming from {flags.snapshot}")
        solver.restore(flags.snapshot)
    for weights in listed(flags.weights):
        log.info("caffe.cpp:155", f"Finetuning from {weights}")
        for net in (solver.net, *solver.test_nets):
            net.copy_from(weights)
    log.info("caffe.cpp:239", "Starting Optimization")
    solver.solve()
    log.info("caffe.cpp:250", "Optimization Done.")


def make_net(flags: argparse.Namespace, phase: int) -> caffe.Net:
    """The net of --model, with --weights."""
    if flags.iterations < 1:
        raise caffe.CaffeError(f"--iterations is {flags.iterations}; expected at least 1")
    precision, stages = flags.precision or "fp32", listed(flags.stage)
    net = caffe.Net(flags.model, phase=phase, level=flags.level, stages=stages, precision=precision)
    for weights in listed(flags.weights):
        net.copy_from(weights)
    return net


def test(flags: argparse.Namespace) -> None:
    """Score a net on `iterations` batches of its data layer."""
    required(flags, "model")
    required(flags, "weights")
    choose_device(flags)
    net = make_net(flags, caffe.TEST)
    log.info("caffe.cpp:281", f"Running for {flags.iterations} iterations.")
    sums: dict[tuple[str, int], float] = {}
    loss = 0.0
    for iteration in range(flags.iterations):
        loss += float(net.compute(gradient=False))
        for name in net.outputs:
            for i, value in enumerate(net.blobs[name].data.ravel().tolist()):
                sums[name, i] = sums.get((name, i), 0.0) + value
                log.info("caffe.cpp:304", f"Batch {iteration}, {name} = {log.number(value)}")
    log.info("caffe.cpp:309", f"Loss: {log.number(loss / flags.iterations)}")
    for (name, _), total in sums.items():
        log.info("caffe.cpp:321", output_text(name, total / flags.iterations, net.blob_loss_weights[name]))


def time_net(flags: argparse.Namespace) -> None:
    """Time the forward and backward pass, layer by layer and together."""
    required(flags, "model")
    if flags.phase not in ("", "TRAIN", "TEST"):
        raise caffe.CaffeError(f"--phase is {flags.phase!r}; expected TRAIN or TEST")
    choose_device(flags)
    net = make_net(flags, caffe.TEST if flags.phase == "TEST" else caffe.TRAIN)
    synchronize = torch.cuda.synchronize if net.device.type == "cuda" else lambda: None

    def milliseconds(work: object, *arguments: object, **settings: object) -> float:
        synchronize()
        start = time.perf_counter()
        work(*arguments, **settings)  # type: ignore[operator]
        synchronize()
        return 1e3 * (time.perf_counter() - start)

    log.info("caffe.cpp:354", "Performing Forward")
    log.info("caffe.cpp:358", f"Initial loss: {log.number(float(net.compute()))}")
    log.info("caffe.cpp:359", "Performing Backward")
    net.propagate()
    log.info("caffe.cpp:367", "*** Benchmark begins ***")
    log.info("caffe.cpp:368", f"Testing for {flags.iterations} iterations.")
    count = len(net.layers)
    forward, backward, together, back = [0.0] * count, [0.0] * count, 0.0, 0.0
    for i in range(flags.iterations):
        for number in range(count):
            forward[number] += milliseconds(net.compute, number, number)
        for number in reversed(range(count)):
            backward[number] += milliseconds(net.propagate, number, number)
        net.clear_param_diffs()
        ahead = milliseconds(net.compute)
        behind = milliseconds(net.propagate, blob_diffs=False, keep=False)
        together, back = together + ahead, back + behind
        log.info("caffe.cpp:395", f"Iteration: {i + 1} forward-backward time: {log.number(ahead + behind)} ms.")
        net.clear_param_diffs()
    log.info("caffe.cpp:402", "Average time per layer: ")
    for number, layer in enumerate(net.layers):
        for what, sums in (("forward", forward), ("backward", backward)):
            mean = log.number(sums[number] / flags.iterations)
            log.info("caffe.cpp:405", f"{layer.name:>10}\t{what}: {mean} ms.")
    mean_forward, mean_backward = together / flags.iterations, back / flags.iterations
    log.info("caffe.cpp:412", f"Average Forward pass: {log.number(mean_forward)} ms.")
    log.info("caffe.cpp:414", f"Average Backward pass: {log.number(mean_backward)} ms.")
    log.info("caffe.cpp:416", f"Average Forward-Backward: {log.number(mean_forward + mean_backward)} ms.")
    log.info("caffe.cpp:418", f"Total Time: {log.number(together + back)} ms.")
    log.info("caffe.cpp:419", "*** Benchmark ends ***")


def device_query(flags: argparse.Namespace) -> None:
    """Say what the GPUs that --gpu names are like (default: all)."""
    log.info("caffe.cpp:138", f"Querying GPUs {flags.gpu or 'all'}")
    if not torch.cuda.is_available():
        log.info("common.cpp:177", "No cuda device present.")
        return
    driver = ctypes.CDLL("libcuda.so.1")
    for number in gpus_of(flags.gpu or "all"):
        if number >= torch.cuda.device_count():
            raise caffe.CaffeError(f"--gpu names {number}; PyTorch finds {torch.cuda.device_count()} CUDA device(s)")
        p = torch.cuda.get_device_properties(number)
        values = {
            "Device id": number,
            "Major revision number": p.major,
            "Minor revision number": p.minor,
            "Name": p.name,
            "Total global memory": p.total_memory,
        }
        for label, attributes in DEVICE_ATTRIBUTES.items():
            numbers = [_device_attribute(driver, number, attribute) for attribute in attributes]
            yes = "Yes" if numbers[0] else "No"
            values[label] = yes if label in YES_OR_NO else ", ".join(map(str, numbers))
        for label, value in values.items():
            log.info("common.cpp:177", f"{label + ':':<31}{value}")


def _device_attribute(driver: ctypes.CDLL, device: int, attribute: int) -> int:
    """What cuDeviceGetAttribute says of a device, for which torch has initialised the driver."""
    value = ctypes.c_int()
    status = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if status:
        raise caffe.CaffeError(f"device {device}: the CUDA driver answers error {status} for attribute {attribute}")
    return value.value


COMMANDS = {"train": train, "test": test, "time": time_net, "device_query": device_query}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), lambda flags: COMMANDS[flags.command](flags), arguments)


if __name__ == "__main__":
    sys.exit(main())
