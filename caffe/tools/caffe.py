"""The `caffe` command: train, test, time and device_query, with the flags and the log of Caffe's own.

python -m caffe.tools.caffe train --solver=solver.prototxt [--snapshot=X.solverstate | --weights=X.caffemodel,…]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

import torch

import caffe
from caffe import log
from caffe.io import read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter
from caffe.tools.convert_imageset import run
from caffe.tools.flags import FlagParser

EFFECTS = {"stop": "stop", "snapshot": "snapshot", "none": None}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = FlagParser("caffe", "Train, test and time networks. Commands: train, test, time, device_query.")
    parser.add_argument("command", choices=("train", "test", "time", "device_query"))
    parser.flag("solver", "", "train: the solver prototxt")
    parser.flag("model", "", "test, time: the net's prototxt")
    parser.flag("weights", "", "train, test: .caffemodel files to start from, separated by commas")
    parser.flag("snapshot", "", "train: the .solverstate to go on from")
    parser.flag("iterations", 50, "test, time: how many")
    parser.flag("gpu", "", "the GPU's number, or all (one is used); default: as the solver says, else the CPU")
    parser.flag("phase", "", "time: TRAIN or TEST (default TRAIN)")
    parser.flag("level", 0, "the net's level")
    parser.flag("stage", "", "the net's stages, separated by commas")
    parser.flag("sigint_effect", "stop", "train: what Ctrl-C does: stop, snapshot or none")
    parser.flag("sighup_effect", "snapshot", "train: what a hang-up does: stop, snapshot or none")
    parser.flag("precision", "", "auto, fp32, bf16 or fp16 (ours; default: the solver's, else fp32)")
    return parser.parse(arguments)


def required(flags: argparse.Namespace, name: str) -> str:
    """A flag's value.

    Raises CaffeError where the command needs it and it is not given.
    """
    if not getattr(flags, name):
        raise caffe.CaffeError(f"caffe {flags.command}: --{name} is missing")
    return str(getattr(flags, name))


def set_device(gpu: str, solver: SolverParameter | None = None) -> None:
    """GPU mode where --gpu, or else the solver, asks for it and there is one."""
    if gpu:
        number = gpu.split(",")[0]
        if number != "all" and not number.isdigit():
            raise caffe.CaffeError(f"--gpu is {gpu!r}; expected a number or all")
        if "," in gpu or (gpu == "all" and torch.cuda.device_count() > 1):
            log.warning("caffe.cpp:222", "One GPU is used; training on several is not supported")
        caffe.use_device(f"cuda:{0 if number == 'all' else number}")
    elif solver is not None and solver.HasField("solver_mode") and solver.solver_mode == SolverParameter.GPU:
        if torch.cuda.is_available():
            caffe.use_device(f"cuda:{solver.device_id}")
        else:
            log.warning("caffe.cpp:200", "The solver asks for a GPU; there is none, so the CPU is used")
            caffe.set_mode_cpu()
    else:
        caffe.set_mode_cpu()
    log.info("caffe.cpp:197", "Use CPU." if caffe.current_device().type == "cpu" else f"Using {caffe.current_device()}")


def train(flags: argparse.Namespace) -> None:
    """Train a net from a solver prototxt, from given weights or a snapshot."""
    param = read_solver_parameter(required(flags, "solver"))
    if flags.snapshot and flags.weights:
        raise caffe.CaffeError("caffe train: --snapshot and --weights are both given; expected one")
    param.train_state.level = flags.level
    param.train_state.stage.extend(stage for stage in flags.stage.split(",") if stage)
    if flags.precision:
        if flags.precision.upper() not in SolverParameter.Precision.keys():  # noqa: SIM118 (an enum, not a dict)
            raise caffe.CaffeError(f"--precision is {flags.precision!r}; expected auto, fp32, bf16 or fp16")
        param.precision = SolverParameter.Precision.Value(flags.precision.upper())
    set_device(flags.gpu, param)
    solver = caffe.get_solver(param)
    for name, number in (("sigint_effect", signal.SIGINT), ("sighup_effect", signal.SIGHUP)):
        effect = getattr(flags, name)
        if effect not in EFFECTS:
            raise caffe.CaffeError(f"--{name} is {effect!r}; expected stop, snapshot or none")
        signal.signal(number, lambda *_, effect=effect: setattr(solver, "requested", EFFECTS[effect]))
    for weights in filter(None, flags.weights.split(",")):
        log.info("caffe.cpp:155", f"Finetuning from {weights}")
        solver.net.copy_from(weights)
    log.info("caffe.cpp:239", "Starting Optimization")
    solver.solve(flags.snapshot or None)
    log.info("caffe.cpp:250", "Optimization Done.")


def make_net(flags: argparse.Namespace, phase: int) -> caffe.Net:
    stages = [stage for stage in flags.stage.split(",") if stage]
    net = caffe.Net(
        required(flags, "model"), phase=phase, level=flags.level, stages=stages, precision=flags.precision or "fp32"
    )
    for weights in filter(None, flags.weights.split(",")):
        net.copy_from(weights)
    return net


def test(flags: argparse.Namespace) -> None:
    """Score a net on `iterations` batches of its data layer."""
    required(flags, "weights")
    set_device(flags.gpu)
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
        mean, weight = total / flags.iterations, net.blob_loss_weights[name]
        scaled = f" (* {log.number(weight)} = {log.number(weight * mean)} loss)" if weight else ""
        log.info("caffe.cpp:321", f"{name} = {log.number(mean)}{scaled}")


def time_net(flags: argparse.Namespace) -> None:
    """Time the forward and backward pass, layer by layer and together."""
    set_device(flags.gpu)
    if flags.phase not in ("", "TRAIN", "TEST"):
        raise caffe.CaffeError(f"--phase is {flags.phase!r}; expected TRAIN or TEST")
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
    for what, total in (("Forward", together), ("Backward", back), ("Forward-Backward", together + back)):
        log.info("caffe.cpp:412", f"Average {what} pass: {log.number(total / flags.iterations)} ms.")
    log.info("caffe.cpp:418", f"Total Time: {log.number(together + back)} ms.")
    log.info("caffe.cpp:419", "*** Benchmark ends ***")


def device_query(flags: argparse.Namespace) -> None:
    """Say which GPUs there are."""
    count = torch.cuda.device_count()
    if not count:
        log.info("caffe.cpp:138", "No CUDA device; nets are computed on the CPU")
    for number in range(count):
        p = torch.cuda.get_device_properties(number)
        log.info(
            "common.cpp:177",
            f"Device id: {number}, name: {p.name}, capability: {p.major}.{p.minor}, "
            f"memory: {p.total_memory} bytes, multiprocessors: {p.multi_processor_count}",
        )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    flags = parse_arguments(arguments)
    if flags.iterations < 1:
        print(f"caffe: --iterations is {flags.iterations}; expected at least 1", file=sys.stderr)
        return 1
    command = {"train": train, "test": test, "time": time_net, "device_query": device_query}[flags.command]
    return run(lambda: command(flags))


def console() -> None:
    """The entry point of the console script."""
    sys.exit(main())


if __name__ == "__main__":
    console()
