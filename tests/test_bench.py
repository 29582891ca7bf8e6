"""bench.py measures what it says: turns, medians, and peers that compute the same as we do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import bench
import caffe

ROOT = Path(__file__).resolve().parent.parent


def test_table_prints_rows_and_keeps_them(capsys: pytest.CaptureFixture[str]) -> None:
    table = bench.Table()
    table.add("slow work", 2.5)
    table.add("batch of 10", 0.004, 10, "peer", 0.006)
    table.add("slow peer", 0.5, 4, "peer", 1.25)
    assert table.rows == [
        ["slow work", "2.50 s", "0.4/s", "", ""],
        ["batch of 10", "4.00 ms", "2,500/s", "peer 6.00 ms", "1.50×"],
        ["slow peer", "500.00 ms", "8/s", "peer 1.25 s", "2.50×"],
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "what time rate peer peer / ours",
        "slow work 2.50 s 0.4/s",
        "batch of 10 4.00 ms 2,500/s peer 6.00 ms 1.50×",
        "slow peer 500.00 ms 8/s peer 1.25 s 2.50×",
    ]
    assert len({len(line) for line in lines}) == 1  # columns


def test_alternate_takes_turns_and_gives_a_median_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def work(name: str, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def run() -> None:
            order.append(name)
            now[0] += next(left)

        return run

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    # each work's first time, when it sets itself up, does not count, and neither does one interruption
    found = bench.alternate(3, 2, work("a", 50, 1, 2, 90, 1, 2, 2), work("b", 70, 5, 5, 5, 4, 6, 80))
    assert found == [2, 5]
    assert "".join(order) == "ab" + 3 * "aabb"


# a pair's weights are those of its net that sees a face once
@pytest.mark.parametrize(
    ("name", "of"), [("face_emotion_net", "face_emotion_net"), ("face_resnet16", "face_resnet16_pair")]
)
def test_the_plain_network_gives_our_answers(name: str, of: str) -> None:
    folder = ROOT / "prototxt"
    net = caffe.Net(folder / name / "deploy.prototxt", folder / of / f"{of}.caffemodel", caffe.TEST)
    images = torch.from_numpy(
        np.random.default_rng(2).normal(0, 60, (5, *net.blobs["data"].shape[1:])).astype(np.float32)
    )
    with torch.no_grad():
        theirs = bench.PlainNet(net).eval()(images).softmax(1)
    np.testing.assert_allclose(net.infer(data=images)["prob"], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", bench.PEERS)
def test_the_plain_network_gives_our_loss_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = bench.training_net(name, "FP32")
    for layer in net.layer_dict.values():
        if layer.param.type == "Dropout":  # whose random choices are not PyTorch's
            monkeypatch.setattr(layer, "forward", lambda bottoms: bottoms)
    peer = bench.PlainNet(net)
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    bench.net_passes(net)  # fills data and label
    ours = net.compute(gradient=True)
    net.propagate(keep=False)
    x, labels = (torch.tensor(net.blobs[top].data) for top in ("data", "label"))
    theirs = torch.nn.functional.cross_entropy(peer(x), labels.long(), label_smoothing=peer.label_smoothing)
    theirs.backward()
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-4)
    compared = 0
    for layer, module in peer.named_children():
        for blob, parameter in zip(net.params.get(layer, []), module.parameters(), strict=False):
            if isinstance(module, torch.nn.BatchNorm2d):
                break  # its blobs are statistics
            gradient = parameter.grad.numpy()
            # as a whole: rounding turns a ReLU here and there off or on, the more the deeper
            assert np.linalg.norm(blob.diff - gradient) < 0.05 * np.linalg.norm(gradient), layer
            compared += 1
    assert compared >= 9


def test_passes_and_iterations_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "alternate", lambda rounds, repeats, *works: [(work(), 0.02)[1] for work in works])
    table = bench.Table()
    bench.bench_passes(table, 1)
    bench.bench_training(table, 1)
    kinds = ["fp32", "bf16"] if bench.has_bfloat16() else ["fp32"]  # imitated it would take minutes
    passes = [(f"{net} {kind}", "plain PyTorch 20.00 ms") for net in bench.PEERS for kind in kinds]
    passes.insert(1, ("face_emotion_net fp32", "Caffe 1.0, OpenBLAS 134.00 ms"))
    networks = ["face_emotion_net", "mini_xception", "face_resnet", "mobilenet_v2", "mini_concat_xception_v1"]
    peer = dict.fromkeys(bench.PEERS, "plain PyTorch 20.00 ms")
    iterations = [(f"{net} {kind}", peer.get(net, "")) for net in networks for kind in kinds]
    assert [(row[0].rpartition(": ")[2], row[3]) for row in table.rows] == passes + iterations
    assert table.rows[1][4] == "6.70×"


def rows(net: str, batches: tuple[int, ...]) -> list[str]:
    """A row a batch size, and for batches one in bfloat16 where the processor has it."""
    names = []
    for batch in batches:
        names.append(f"inference, batch {batch}: {net}")
        if batch > 1 and bench.has_bfloat16():
            names.append(f"inference, batch {batch}: {net} bf16")
    return names


def test_zoo_measures_each_network_at_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ZOO", ("lenet", "cifar10_quick"))
    table = bench.Table()
    bench.bench_zoo(table, 1)
    names = [name for net in ("lenet", "cifar10_quick") for name in rows(net, (1, 16))]
    assert [row[0] for row in table.rows] == names
    assert all(row[3].startswith("cv2.dnn ") and row[4].endswith("×") for row in table.rows)


@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_another_answer_than_opencv_ends_the_run(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    class Peer:
        def setInput(self, images: np.ndarray) -> None:  # noqa: N802 (OpenCV's name)
            self.count = len(images)

        def forward(self) -> np.ndarray:
            return np.full((self.count, 7), wrong, np.float32)

    monkeypatch.setattr(cv2.dnn, "readNetFromCaffe", lambda *files: Peer())
    table = bench.Table()
    with pytest.raises(SystemExit, match=r"face_emotion_net, batch 1: our probabilities and cv2\.dnn's differ"):
        bench.bench_inference(table, 1)
    assert table.rows == []


def test_command_runs_one_part_and_writes_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, "bench.py", "--only", "inference", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    measured = json.loads(file.read_text())
    expected = [name for net in bench.NETWORKS for name in rows(net, (1, 16, 64))]
    assert [row[0] for row in measured] == expected
    assert all(row[4].endswith("×") for row in measured)
    assert all(row[0] in done.stdout for row in measured)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "inference,speed"], "'speed' is no part; expected stages, training, inference, prediction, zoo"),
        (["--device", "gpu"], "--device gpu: device 'gpu' is not known; expected auto, cpu, cuda or cuda:N"),
        (["--only", "zoo", "--csv", "faces.csv"], "--csv is for the part stages, which --only leaves out"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err
