"""Measure the stages, training and prediction on this machine, beside peers in the same run, and print one table.

python bench.py [--quick] [--csv data/fer2013.csv] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import caffe
from caffe.io import read_net_parameter
from caffe.proto.caffe_pb2 import SolverParameter
from predict import Recognizer
from preprocessing.align import align
from preprocessing.extract import extract
from preprocessing.lmdb import write_databases
from preprocessing.mean import write_mean

ROOT = Path(__file__).resolve().parent
NETWORKS = ("face_emotion_net", "mini_xception")


class PlainFaceEmotionNet(nn.Module):
    """prototxt/face_emotion_net as one writes it in PyTorch: the peer of our training."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 32, 5, 2), (32, 32, 4, 1), (32, 64, 5, 2))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=p, bias=False) for i, o, k, p in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in sizes)
        self.fc1, self.fc2, self.fc3 = nn.Linear(1600, 2048), nn.Linear(2048, 1024), nn.Linear(1024, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores N×7 of faces N×1×42×42."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 3, 2, ceil_mode=True)
        x = x.flatten(1)
        for layer in (self.fc1, self.fc2):
            x = F.dropout(F.relu(layer(x)), 0.4, self.training)
        return self.fc3(x)


class Table:
    """The rows, printed as they come: what, seconds or milliseconds, rate, peer, ratio."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        print(f"{'what':<52} {'time':>10} {'rate':>16} {'peer':>28} {'peer / ours':>12}", flush=True)

    def add(self, what: str, seconds: float, count: int = 1, peer: str = "", peer_seconds: float | None = None) -> None:
        """One measurement: `seconds` for `count` items."""
        shown = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
        beside = f"{peer} {1e3 * peer_seconds:.2f} ms" if peer_seconds is not None else ""
        ratio = f"{peer_seconds / seconds:.2f}×" if peer_seconds is not None else ""
        row = [what, shown, f"{count / seconds:,.0f}/s", beside, ratio]
        self.rows.append(row)
        print(f"{row[0]:<52} {row[1]:>10} {row[2]:>16} {row[3]:>28} {row[4]:>12}", flush=True)


def alternate(rounds: int, repeats: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each piece of work, in turns, so that what else the machine does falls on all alike."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for work, found in zip(works, times, strict=True):
            for _ in range(repeats):
                start = time.perf_counter()
                work()
                found.append(time.perf_counter() - start)
    return [median(found) for found in times]


def bench_stages(table: Table, csv: Path, folder: Path) -> Path:
    """Extract, align, lmdb and mean of a CSV; returns the folder of LMDBs."""
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
    return databases


def bench_training(table: Table, database: Path, rounds: int) -> None:
    """Milliseconds an iteration at batch 64, data included, beside plain PyTorch without any data work."""
    precisions = ["FP32"]
    if caffe.context.autocast_dtype("auto", torch.device("cpu")) is not None:
        precisions.append("BF16")
    for name in NETWORKS:
        for precision in precisions:
            net = read_net_parameter(ROOT / "prototxt" / name / "train_val.prototxt")
            for layer in net.layer:
                if layer.type == "Data":
                    layer.data_param.source = str(database)
                    layer.transform_param.mean_file = str(database.parent.parent / "mean.binaryproto")
            param = SolverParameter(net_param=net, base_lr=0.01, momentum=0.9, weight_decay=5e-4, lr_policy="fixed")
            param.random_seed, param.precision = 1, SolverParameter.Precision.Value(precision)
            solver = caffe.get_solver(param)
            works: list[Callable[[], object]] = [lambda solver=solver: solver.step(1)]
            if name == "face_emotion_net":
                works.append(plain_iteration(precision == "BF16"))
            found = alternate(rounds, 6, *works)
            peer = {"peer": "plain PyTorch", "peer_seconds": found[1]} if len(found) > 1 else {}
            table.add(f"training iteration, batch 64: {name} {precision.lower()}", found[0], 64, **peer)


def plain_iteration(bfloat16: bool) -> Callable[[], object]:
    """An iteration of the same training in plain PyTorch: channels-last, autocast, fused SGD."""
    model = PlainFaceEmotionNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    images, labels = torch.randn(64, 1, 42, 42), torch.randint(7, (64,))

    def iteration() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return iteration


def bench_inference(table: Table, rounds: int) -> None:
    """The deploy nets that ship, beside OpenCV on the same files, which must give the same probabilities."""
    random = np.random.default_rng(0)
    for name in NETWORKS:
        folder = ROOT / "prototxt" / name
        files = str(folder / "deploy.prototxt"), str(folder / f"{name}.caffemodel")
        net, peer = caffe.Net(*files, caffe.TEST), cv2.dnn.readNetFromCaffe(*files)
        for batch in (1, 16, 64):
            faces = random.normal(0, 60, (batch, 1, 42, 42)).astype(np.float32)

            def ours(net: caffe.Net = net, faces: np.ndarray = faces) -> np.ndarray:
                return net.infer(data=torch.from_numpy(faces))["prob"].numpy()

            def theirs(peer: cv2.dnn.Net = peer, faces: np.ndarray = faces) -> np.ndarray:
                peer.setInput(faces)
                return peer.forward()

            difference = float(np.abs(ours() - theirs()).max())
            if difference > 1e-4:
                sys.exit(f"error: {name}: our probabilities and cv2.dnn's differ by {difference:.2g}; expected 1e-4")
            mine, other = alternate(rounds, max(64 // batch, 4), ours, theirs)
            table.add(f"inference, batch {batch}: {name}", mine, batch, "cv2.dnn", other)


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="measure the data stages on this CSV (default: the drawn sample)")
    parser.add_argument("--quick", action="store_true", help="fewer faces and repeats")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    caffe.set_mode_cpu()
    load = os.getloadavg()[0]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; ",
        end="",
    )
    print(f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}; load {load:.1f}")
    if load > 0.5:
        print("warning: other work runs on this machine; the times are too long, the ratios less so")
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        csv = arguments.csv
        if csv is None:
            csv, count = folder / "sample.csv", 500 if arguments.quick else 4000
            command = [sys.executable, "-m", "preprocessing.sample", str(csv), "--count", str(count)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        databases = bench_stages(table, csv, folder)
        rounds = 3 if arguments.quick else 8
        bench_training(table, databases / "train_lmdb", rounds)
        bench_inference(table, rounds)
        bench_prediction(table, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(table.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
