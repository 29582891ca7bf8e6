"""Measure this machine: the data stages, training, inference and prediction, beside peers in the same run; one table.

    python bench.py [--only PART,PART] [--quick] [--csv data/fer2013.csv] [--json FILE] [--device cpu]

The parts: `stages` makes a data set from a CSV; `training` is forward and backward passes beside plain PyTorch, and
whole iterations; `inference` is the networks that ship, beside OpenCV's `cv2.dnn` on the same files; `prediction` is
faces and photos through `predict`; `zoo` is the networks of prototxt/zoo, with random weights, beside `cv2.dnn`. With
`--device cuda` it is the training alone, since the other peers compute on the processor. Work
and peer take turns, and the median counts; where both give probabilities, these must agree. The one peer that does not
run here is Caffe 1.0, whose time is a constant.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import caffe
from caffe.database import write_lmdb
from caffe.io import array_to_datum, read_net_parameter, save_mean
from caffe.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from caffe.solver import Solver
from predict import Recognizer
from preprocessing.align import align
from preprocessing.extract import extract
from preprocessing.lmdb import write_databases
from preprocessing.mean import write_mean

ROOT = Path(__file__).resolve().parent
NETWORKS = ("face_emotion_net", "mini_xception")
PEERS = ("face_emotion_net", "face_resnet", "mobilenet_v2", "mini_concat_xception_v1")  # those beside plain PyTorch
ZOO = ("lenet", "cifar10_quick", "alexnet", "googlenet", "resnet18", "mobilenet")
PARTS = ("stages", "training", "inference", "prediction", "zoo")
IN_A_ROW = 10  # iterations that a GPU is given at once
CAFFE_SECONDS = 0.134  # Caffe 1.0's forward and backward pass of FaceEmotionNet, batch 64, OpenBLAS on 2 cores
# by how much our probabilities may differ from a peer's, as a part of the largest; bfloat16 has eight bits
TOLERANCES = {"": 1e-4, " bf16": 0.2}


class PlainNet(nn.Module):
    """The layers of one of our nets, with its weights, as one writes them in PyTorch: the peer of our training.

    Those of the types below, from the blob `data` to the scores, which the last, a SoftmaxWithLoss or a Softmax, takes.
    """

    def __init__(self, net: caffe.Net) -> None:
        super().__init__()
        self.steps: list[tuple[nn.Module, list[str], str]] = []  # a module, its bottoms and its top
        layers = [layer.param for layer in net.layer_dict.values() if layer.param.type != "Input"]
        self.scores, self.shape = layers[-1].bottom[0], net.blobs["data"].shape
        self.label_smoothing = layers[-1].loss_param.label_smoothing
        for param, behind in pairwise(layers):
            if param.type == "Scale":
                continue  # nn.BatchNorm2d's own, in front of it
            module = self.module(net, param)
            self.add_module(param.name, module)
            blobs = [torch.tensor(blob.data) for blob in net.params.get(param.name, [])]
            with torch.no_grad():
                if isinstance(module, nn.BatchNorm2d):
                    mean, variance, total = blobs
                    if total:
                        module.running_mean.copy_(mean / total)
                        module.running_var.copy_(variance / total)
                    blobs = [torch.tensor(blob.data) for blob in net.params[behind.name]]  # the Scale's
                for parameter, blob in zip(module.parameters(), blobs, strict=True):
                    parameter.copy_(blob)
            self.steps.append((module, list(param.bottom), param.top[0]))

    @staticmethod
    def module(net: caffe.Net, param: LayerParameter) -> nn.Module:
        """One layer's module; KeyError for a type that the peer has not."""
        channels = net.blobs[param.bottom[0]].shape[1]
        if param.type == "Convolution":
            p = param.convolution_param
            kernel, pad, stride = (
                [*values, default][0] for values, default in ((p.kernel_size, 1), (p.pad, 0), (p.stride, 1))
            )
            return nn.Conv2d(channels, p.num_output, kernel, stride, pad, groups=p.group, bias=p.bias_term)
        if param.type == "InnerProduct":
            inputs = math.prod(net.blobs[param.bottom[0]].shape[1:])
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, param.inner_product_param.num_output))
        if param.type == "Pooling" and param.pooling_param.global_pooling:
            return nn.AdaptiveAvgPool2d(1)
        if param.type == "Pooling":
            p = param.pooling_param
            return nn.MaxPool2d(p.kernel_size, p.stride, p.pad, ceil_mode=True)
        simple = {
            "BatchNorm": partial(nn.BatchNorm2d, channels),
            "ReLU": partial(nn.ReLU, inplace=True),
            "Dropout": partial(nn.Dropout, param.dropout_param.dropout_ratio),
            "Eltwise": Sum,
            "Concat": Join,
            "Flatten": nn.Flatten,
        }
        return simple[param.type]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores N×7 of faces N×1×H×W."""
        blobs = {"data": x}
        for module, bottoms, top in self.steps:
            blobs[top] = module(*(blobs[bottom] for bottom in bottoms))
        return blobs[self.scores]


class Sum(nn.Module):
    """An Eltwise that adds."""

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor:
        return sum(bottoms[1:], bottoms[0])


class Join(nn.Module):
    """A Concat along the channels."""

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor:
        return torch.cat(bottoms, 1)


def duration(seconds: float) -> str:
    """A time as the table has it."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


class Table:
    """The rows, printed as they come: what, seconds or milliseconds, rate, peer, ratio."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self._print(["what", "time", "rate", "peer", "peer / ours"])

    def _print(self, row: Sequence[str]) -> None:
        print("{:<56} {:>10} {:>12} {:>30} {:>11}".format(*row), flush=True)

    def add(self, what: str, seconds: float, count: int = 1, peer: str = "", peer_seconds: float | None = None) -> None:
        """One measurement: `seconds` for `count` items."""
        rate = count / seconds
        beside = f"{peer} {duration(peer_seconds)}" if peer_seconds is not None else ""
        ratio = f"{peer_seconds / seconds:.2f}×" if peer_seconds is not None else ""
        self.rows.append([what, duration(seconds), f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s", beside, ratio])
        self._print(self.rows[-1])


def alternate(rounds: int, repeats: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each piece of work, in turns, so that what else the machine does falls on all alike.

    A GPU is given several in a row, as a training gives them, and waited for at their end.
    """
    device = caffe.current_device()
    in_a_row = IN_A_ROW if device.type == "cuda" else 1
    finish = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        for _ in range(in_a_row):
            work()
    finish()
    for _ in range(rounds):
        for work, found in zip(works, times, strict=True):
            for _ in range(repeats):
                start = time.perf_counter()
                for _ in range(in_a_row):
                    work()
                finish()
                found.append((time.perf_counter() - start) / in_a_row)
    return [median(found) for found in times]


def bench_stages(table: Table, csv: Path, folder: Path) -> None:
    """Extract, align, lmdb and mean of a CSV."""
    images, aligned, databases = folder / "images", folder / "aligned", folder / "lmdb"

    def timed(what: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        with redirect_stdout(StringIO()):  # the stage's own summary line
            work()
        table.add(what, time.perf_counter() - start, count)

    with open(csv, "rb") as f:
        count = sum(1 for _ in f) - 1
    timed(f"extract, {count:,} faces", lambda: extract(csv, images))
    timed("align: detection, alignment, files", lambda: align(images, aligned))
    timed("lmdb", lambda: write_databases(aligned, databases))
    timed("mean", lambda: write_mean(databases / "train_lmdb", folder / "mean.binaryproto"))


def precisions() -> Iterator[str]:
    """float32, and bfloat16 where the device multiplies it."""
    yield "FP32"
    if has_bfloat16():
        yield "BF16"


def bench_passes(table: Table, rounds: int) -> None:
    """Forward and backward pass at batch 64: what Net costs, or gains, beside plain PyTorch."""
    for network in PEERS:
        for precision in precisions():
            net = training_net(network, precision)
            ours, plain = net_passes(net), plain_passes(PlainNet(net), precision == "BF16")
            what = f"forward and backward, batch 64: {network} {precision.lower()}"
            mine, other = alternate(rounds, 6, ours, plain)
            table.add(what, mine, 64, "plain PyTorch", other)
            measured = (network, precision, net.device.type)
            if measured == ("face_emotion_net", "FP32", "cpu"):  # what it was measured with
                table.add(what, mine, 64, "Caffe 1.0, OpenBLAS", CAFFE_SECONDS)


def net_passes(net: caffe.Net) -> Callable[[], object]:
    """The passes by Net, as the solver calls it, on a batch that is there already."""
    net.blobs["data"].data[...] = np.random.default_rng(0).standard_normal(net.blobs["data"].shape)
    net.blobs["label"].data[...] = np.arange(64) % 7

    def passes() -> None:
        net.clear_param_diffs()
        net.compute(gradient=True)
        net.propagate(keep=False)

    return passes


def training_net(network: str, precision: str) -> caffe.Net:
    """A network as it trains, but without the data layers, and without the accuracy, which PyTorch has not."""
    trained = read_net_parameter(ROOT / "prototxt" / network / "train_val.prototxt")
    crop = next(layer.transform_param.crop_size for layer in trained.layer if layer.type == "Data")
    param = NetParameter(name=trained.name)
    inputs = param.layer.add(name="data", type="Input", top=["data", "label"]).input_param
    inputs.shape.add(dim=[64, 1, crop, crop])
    inputs.shape.add(dim=[64])
    param.layer.extend(layer for layer in trained.layer if layer.type not in ("Data", "Accuracy"))
    return caffe.Net(param, caffe.TRAIN, precision=precision, seed=1)


def plain_passes(model: PlainNet, bfloat16: bool) -> Callable[[], object]:
    """The passes in plain PyTorch: channels-last, autocast."""
    device = caffe.current_device()
    model.to(device, memory_format=torch.channels_last)
    images, labels = torch.randn(model.shape, device=device), torch.arange(64, device=device) % 7

    def passes() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(images), labels, label_smoothing=model.label_smoothing)
        model.zero_grad(set_to_none=True)
        loss.backward()

    return passes


def bench_training(table: Table, rounds: int) -> None:
    """Milliseconds an iteration at batch 64, data included, beside plain PyTorch without any data work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_noise(folder)
        for network in dict.fromkeys(NETWORKS + PEERS):
            for precision in precisions():
                solver = make_solver(network, precision, folder)
                works: list[Callable[[], object]] = [partial(solver.step, 1)]
                if network in PEERS:
                    works.append(plain_iteration(PlainNet(training_net(network, precision)), precision == "BF16"))
                mine, *other = alternate(rounds, 6, *works)
                what = f"training iteration, batch 64: {network} {precision.lower()}"
                table.add(what, mine, 64, "plain PyTorch", *other)


def write_noise(folder: Path) -> None:
    """An LMDB of 1,024 images of FER2013's size, and a mean for them: how long an iteration takes is as with faces."""
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1, 48, 48), np.uint8)
    records = ((b"%08d" % i, array_to_datum(image, i % 7).SerializeToString()) for i, image in enumerate(pixels))
    write_lmdb(folder / "train_lmdb", records)
    save_mean(folder / "mean.binaryproto", np.full((1, 48, 48), 127.5, np.float32))


def make_solver(network: str, precision: str, data: Path) -> Solver:
    """A solver that trains one of our networks on what `write_noise` wrote."""
    net = read_net_parameter(ROOT / "prototxt" / network / "train_val.prototxt")
    for layer in net.layer:
        if layer.type == "Data":
            layer.data_param.source = str(data / "train_lmdb")
            layer.transform_param.mean_file = str(data / "mean.binaryproto")
    param = SolverParameter(net_param=net, base_lr=0.01, momentum=0.9, weight_decay=5e-4, lr_policy="fixed")
    param.random_seed, param.precision = 1, SolverParameter.Precision.Value(precision)
    return caffe.get_solver(param)


def plain_iteration(model: PlainNet, bfloat16: bool) -> Callable[[], object]:
    """An iteration of the same training in plain PyTorch: the passes, then fused SGD."""
    passes = plain_passes(model, bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)

    def iteration() -> None:
        passes()
        optimizer.step()

    return iteration


def bench_inference(table: Table, rounds: int) -> None:
    """The deploy nets that ship, at batch 1, 16 and 64."""
    for name in NETWORKS:
        folder = ROOT / "prototxt" / name
        compare_inference(table, folder / "deploy.prototxt", folder / f"{name}.caffemodel", name, (1, 16, 64), rounds)


def bench_zoo(table: Table, rounds: int) -> None:
    """The usual Caffe networks, with random weights, at batch 1 and 16."""
    for name in ZOO:
        prototxt = ROOT / "prototxt" / "zoo" / f"{name}.prototxt"
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / f"{name}.caffemodel"
            write_random_weights(prototxt, weights)
            compare_inference(table, prototxt, weights, name, (1, 16), rounds)


def has_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    return caffe.context.autocast_dtype("auto", caffe.current_device()) is not None


def compare_inference(
    table: Table, prototxt: Path, weights: Path, name: str, batches: Sequence[int], rounds: int
) -> None:
    """A row a batch size, and one in bfloat16 for batches where the processor has it: our inference beside OpenCV's.

    Exits where the probabilities differ.
    """
    random = np.random.default_rng(0)
    peer = cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
    nets = {"": caffe.Net(prototxt, weights, caffe.TEST)}
    if has_bfloat16():
        nets[" bf16"] = caffe.Net(prototxt, weights, caffe.TEST, precision="bf16")
    for batch in batches:
        images = random.normal(0, 60, (batch, *nets[""].blobs["data"].shape[1:])).astype(np.float32)

        def theirs(images: np.ndarray = images) -> np.ndarray:
            peer.setInput(images)
            return peer.forward()

        expected = theirs()
        for precision, net in nets.items():
            if precision and batch == 1:
                continue

            def ours(net: caffe.Net = net, images: np.ndarray = images) -> np.ndarray:
                return net.infer(data=torch.from_numpy(images))["prob"].numpy()

            difference = float(np.abs(ours() - expected).max() / expected.max())
            if not difference <= TOLERANCES[precision]:
                sys.exit(
                    f"error: {name}, batch {batch}{precision}: our probabilities and cv2.dnn's differ by "
                    f"{difference:.2g} of the largest; expected {TOLERANCES[precision]} at most"
                )
            mine, other = alternate(rounds, max(max(batches) // batch, 3), ours, theirs)
            table.add(f"inference, batch {batch}: {name}{precision}", mine, batch, "cv2.dnn", other)


def write_random_weights(prototxt: Path, weights: Path, seed: int = 0) -> None:
    """Write a .caffemodel of random weights for a deploy net, under which it is as lively as a trained one.

    Convolutions and inner products are drawn as He et al. do (arXiv 1502.01852), BatchNorm's statistics are those of
    one random image, and the last layer is scaled so that the scores of that image have a standard deviation of 1: the
    probabilities are neither all alike nor all but one 0.
    """
    random = np.random.default_rng(seed)
    net = caffe.Net(prototxt, caffe.TRAIN, seed=seed)  # TRAIN: BatchNorm takes the batch's statistics, and keeps them
    for name, blobs in net.params.items():
        kind, shape = net.layer_dict[name].type, blobs[0].shape
        if kind == "BatchNorm":
            continue
        if kind == "Scale":
            blobs[0].data[...] = random.uniform(0.5, 1.5, shape)
        else:
            blobs[0].data[...] = random.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[1:]))
        for blob in blobs[1:]:
            blob.data[...] = random.normal(0, 0.1, blob.shape)
    net.blobs["data"].data[...] = random.normal(0, 60, net.blobs["data"].shape)
    net.forward()
    scores = net.layers[-1].param.bottom[0]
    last = next(layer for layer in net.layers if scores in layer.param.top)
    for blob in last.blobs:
        blob.data[...] /= net.blobs[scores].data.std()
    net.save(weights)


def bench_prediction(table: Table, rounds: int) -> None:
    """A cropped face, a 640×480 photo with one face, and the command from start to answer."""
    astronaut = cv2.imread(str(ROOT / "images" / "astronaut.png"))
    photo = np.zeros((480, 640, 3), np.uint8)
    photo[:, 80:560] = cv2.resize(astronaut, (480, 480), interpolation=cv2.INTER_AREA)
    crop = cv2.cvtColor(cv2.resize(astronaut[50:180, 170:280], (48, 48)), cv2.COLOR_BGR2GRAY)
    face, detect = Recognizer(face="none"), Recognizer()
    if len(detect.predict(photo)) != 1:
        sys.exit("error: images/astronaut.png on 640×480: expected one face")
    one, whole = alternate(rounds, 4, lambda: face.predict(crop), lambda: detect.predict(photo))
    table.add("prediction of a cropped face", one)
    table.add("prediction of a 640×480 photo with one face", whole)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "predict", "images/astronaut.png", "--output", folder]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        table.add("python -m predict photo.png, from command to answer", time.perf_counter() - start)


def parts(text: str) -> list[str]:
    """The parts named in `--only`."""
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is no part; expected {', '.join(PARTS)}")
    return names


def draw_sample(csv: Path, count: int) -> Path:
    """Draw the built-in sample, in a process of its own: it forks workers, which goes badly among PyTorch's threads."""
    command = [sys.executable, "-m", "preprocessing.sample", str(csv), "--count", str(count)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return csv


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=parts, default=PARTS, metavar="PART,PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--csv", type=Path, help="measure the data stages on this CSV (default: the drawn sample)")
    parser.add_argument("--quick", action="store_true", help="fewer faces and repeats")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, or cuda:N, for the training (default: cpu)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    if arguments.csv and "stages" not in arguments.only:
        parser.error("--csv is for the part stages, which --only leaves out")
    try:
        on_gpu = caffe.use_device(arguments.device).type == "cuda"
    except caffe.CaffeError as error:
        parser.error(f"--device {arguments.device}: {error}")
    if on_gpu and arguments.only != ["training"]:
        parser.error("--device cuda is for --only training: the peers of the other parts compute on the processor")
    load = os.getloadavg()[0]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; ",
        end="",
    )
    if on_gpu:
        print(f"{torch.cuda.get_device_name(caffe.current_device())}; ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}; load {load:.1f}")
    if load > 0.5:
        print("warning: other work runs on this machine; the times are too long, the ratios less so")
    table, rounds = Table(), 3 if arguments.quick else 8
    if "stages" in arguments.only:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            csv = arguments.csv or draw_sample(folder / "sample.csv", 500 if arguments.quick else 4000)
            bench_stages(table, csv, folder)
    if "training" in arguments.only:
        bench_passes(table, rounds)
        bench_training(table, rounds)
    if "inference" in arguments.only:
        bench_inference(table, rounds)
    if "prediction" in arguments.only:
        bench_prediction(table, rounds)
    if "zoo" in arguments.only:
        bench_zoo(table, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(table.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
