"""Plots of Caffe logs: what they show is compared with values read by eye from the log or worked out by hand."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from caffe.tools.parse_log import read_log
from preprocessing.stage import StageError
from train.plot import Plotted, draw_accuracy, draw_loss, plot_log, read_curves, smooth
from train.plot import _Scale as Scale

ROOT = Path(__file__).parents[2]
TRAINING_BLUE, VALIDATION_ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def pixels_of(path: Path, rgb: tuple[int, int, int]) -> int:
    image = cv2.imread(str(path))
    assert image is not None
    return int((np.abs(image[..., ::-1].astype(int) - rgb).max(axis=2) <= 8).sum())


def make_log(
    path: Path,
    losses: dict[int, str],
    tests: dict[int, tuple[str, str]] | None = None,
    rates: dict[int, str] | None = None,
    train_accuracy: dict[int, str] | None = None,
) -> Path:
    """A log of the lines that Caffe writes, in the order in which it does: tests first, then the display."""
    prefix = "I20260101 00:00:01.000000 1 solver.cpp"
    lines = [f"{prefix}:289] Solving drawn"]
    for i in sorted({*losses, *(tests or {})}):
        if i in (tests or {}):
            accuracy, loss = tests[i]
            lines += [
                f"{prefix}:347] Iteration {i}, Testing net (#0)",
                f"{prefix}:414]     Test net output #0: accuracy = {accuracy}",
                f"{prefix}:414]     Test net output #1: loss = {loss} (* 1 = {loss} loss)",
            ]
        if i in losses:
            lines.append(f"{prefix}:239] Iteration {i} (1 iter/s, 1s/1 iters), loss = {losses[i]}")
            if train_accuracy and i in train_accuracy:
                lines.append(f"{prefix}:258]     Train net output #0: accuracy = {train_accuracy[i]}")
            if rates and i in rates:
                lines.append(f"I20260101 00:00:01.000000 1 sgd_solver.cpp:112] Iteration {i}, lr = {rates[i]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def texts(figure: object) -> str:
    axes = figure.axes[0]
    return "\n".join([t.get_text() for t in axes.texts] + [t.get_text() for t in axes.get_legend().get_texts()])


def test_real_caffes_log(shared: Path, tmp_path: Path) -> None:
    plotted = plot_log(shared / "caffe_golden/resume/full.log", tmp_path)
    assert plotted.written == [tmp_path / "loss.png", tmp_path / "accuracy.png", tmp_path / "metrics.csv"]
    assert plotted.notes == []
    assert "best 81.67% at iteration 10" in plotted.summary
    assert pixels_of(tmp_path / "loss.png", TRAINING_BLUE) > 500
    assert pixels_of(tmp_path / "loss.png", VALIDATION_ORANGE) > 500
    assert pixels_of(tmp_path / "accuracy.png", TRAINING_BLUE) == 0  # the log has no training accuracy
    assert pixels_of(tmp_path / "accuracy.png", VALIDATION_ORANGE) > 500
    # Training readings before iteration 10: 2.01496 and 0.974131; from 10 to before 20: 0.372191 and 0.495081.
    assert table(tmp_path / "metrics.csv") == [
        {"iteration": "0", "epoch": "", "learning_rate": "0.05", "train_loss": "", "val_loss": "69.4213",
         "val_accuracy": "0.15"},
        {"iteration": "10", "epoch": "", "learning_rate": "0.05", "train_loss": "1.494545", "val_loss": "0.549394",
         "val_accuracy": "0.816667"},
        {"iteration": "20", "epoch": "", "learning_rate": "0.025", "train_loss": "0.433636", "val_loss": "1.0687",
         "val_accuracy": "0.716667"},
    ]  # fmt: skip


def test_epochs_best_and_learning_rate_steps_are_marked(tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "train.log",
        {i: f"{2 - i / 400:g}" for i in range(0, 401, 50)},
        {0: ("0.1", "2"), 200: ("0.65", "1.1"), 400: ("0.6", "1.2")},
        {i: "0.01" if i < 250 else "0.001" for i in range(0, 401, 50)},
        {100: "0.5", 300: "0.9"},
    )
    curves, scale = read_curves(read_log(log)), Scale(100)
    accuracy = draw_accuracy(curves, scale)
    assert "best 65.00% at epoch 2" in texts(accuracy)
    assert "lr 0.001" in texts(accuracy)
    axes = accuracy.axes[0]
    assert axes.get_xlabel() == "epoch"
    assert axes.get_title("right") == "after epoch 4"
    assert any(list(line.get_xdata()) == [2.5, 2.5] for line in axes.lines)  # the step at iteration 250
    assert [list(line.get_ydata()) for line in axes.lines if line.get_label() == "training"] == [[0.5, 0.9]]
    assert "lowest 1.1 at epoch 2" in texts(draw_loss(curves, scale))
    plot_log(log, iterations_per_epoch=100)
    rows = table(tmp_path / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["0.0", "2.0", "4.0"]
    assert [row["train_accuracy"] for row in rows] == ["", "0.5", "0.9"]
    assert [row["learning_rate"] for row in rows] == ["0.01", "0.01", "0.001"]
    assert rows[1]["train_loss"] == "1.8125"  # the mean of 2, 1.875, 1.75 and 1.625


def test_the_net_before_its_training_is_never_the_best(tmp_path: Path) -> None:
    """By chance it may answer better than those that follow; `python -m train` chooses none but these."""
    tests = {0: ("0.2", "1"), 100: ("0.15", "1.6"), 200: ("0.18", "1.4"), 300: ("0.18", "1.5")}
    log = make_log(tmp_path / "train.log", dict.fromkeys(range(0, 301, 50), "1.5"), tests)
    curves = read_curves(read_log(log))
    assert "best 18.00% at epoch 2\n" in texts(draw_accuracy(curves, Scale(100))) + "\n"
    figure = draw_loss(curves, Scale(100))
    assert "lowest 1.4 at epoch 2\n" in texts(figure) + "\n"
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 1 < 1.6 < high, "a curve runs out of the picture"
    assert plot_log(log).summary.endswith("validation accuracy 18.00%, best 18.00% at iteration 200")
    # where there is no other test yet, none is the best
    log = make_log(tmp_path / "train.log", {0: "1.5"}, {0: ("0.2", "1")})
    curves = read_curves(read_log(log))
    assert "best" not in texts(draw_accuracy(curves, Scale(100)))
    assert "lowest" not in texts(draw_loss(curves, Scale(100)))
    assert plot_log(log).summary.endswith("validation accuracy 20.00%")


def test_tests_on_images_that_are_trained_on_validate_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = {0: ("0.2", "1"), 100: ("0.9", "0.4"), 200: ("0.8", "0.6")}
    log = make_log(tmp_path / "train.log", dict.fromkeys(range(0, 201, 50), "1.5"), tests)
    drawn: list[str] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (drawn.append(texts(self)), save(self, path)))
    for what, claimed in (("train", True), ("train+val", False)):
        (tmp_path / "settings.json").write_text(f'{{"train_on": "{what}"}}')  # as `python -m train` leaves it
        summary = plot_log(log).summary
        for text in (*drawn, summary):
            assert bool(re.search("best|lowest", text)) == claimed, text
            assert ("validation split, trained on" in text) != claimed, text
        drawn.clear()


def test_the_distance_of_tests_can_be_the_epoch(tmp_path: Path) -> None:
    tests = dict.fromkeys((0, 30, 60, 75), ("0.5", "1"))  # the last one, at the end, breaks the rhythm
    plotted = plot_log(make_log(tmp_path / "train.log", {0: "1"}, tests), iterations_per_epoch="test")
    assert [row["epoch"] for row in table(tmp_path / "metrics.csv")] == ["0.0", "1.0", "2.0", "2.5"]
    assert plotted.summary.startswith("epoch 2.5")
    plotted = plot_log(make_log(tmp_path / "train.log", {0: "1"}, {0: ("0.5", "1")}), iterations_per_epoch="test")
    assert any("fewer than two tests" in note for note in plotted.notes)
    assert table(tmp_path / "metrics.csv")[0]["epoch"] == ""


def test_many_readings_are_drawn_raw_and_smoothed(tmp_path: Path) -> None:
    noisy = {i: f"{1 + 0.5 * (-1) ** i:g}" for i in range(100)}
    figure = draw_loss(read_curves(read_log(make_log(tmp_path / "train.log", noisy))), Scale(None))
    raw, smoothed = (np.asarray(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 100)
    assert set(raw) == {0.5, 1.5}
    assert [list(line.get_xdata()) for line in figure.axes[0].lines[:2]] == [list(range(100))] * 2
    assert np.abs(smoothed[10:-10] - 1).max() < 0.05  # the alternation averages out


def test_smoothing_keeps_constants_and_leaves_gaps_out() -> None:
    assert np.allclose(smooth([3.0] * 40), 3.0)
    values = [1.0] * 10 + [math.nan] + [1.0] * 10
    result = smooth(values)
    assert math.isnan(result[10])
    assert np.allclose(np.delete(result, 10), 1.0)


def test_smooth_learning_rate_is_drawn_below(tmp_path: Path) -> None:
    log = make_log(tmp_path / "train.log", dict.fromkeys(range(30), "1"), rates={i: f"{0.99**i:g}" for i in range(30)})
    figure = draw_loss(read_curves(read_log(log)), Scale(None))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "learning rate"]
    assert figure.axes[1].lines[0].get_ydata()[1] == 0.99


def test_one_huge_first_reading_does_not_flatten_the_rest_and_is_named(tmp_path: Path) -> None:
    log = make_log(tmp_path / "train.log", {0: "900", **dict.fromkeys(range(1, 20), "1.5")})
    figure = draw_loss(read_curves(read_log(log)), Scale(None))
    assert figure.axes[0].get_ylim()[1] < 3
    assert "1 off the scale, up to 900" in texts(figure)
    drawn = [y for line in figure.axes[0].lines for y in line.get_ydata() if not math.isnan(y)]
    assert set(np.round(drawn, 9)) == {1.5}  # nor is it smoothed into its neighbours


def test_a_first_test_that_is_no_number_does_not_stain_the_training(tmp_path: Path) -> None:
    log = make_log(tmp_path / "train.log", {0: "2", 10: "1"}, {0: ("0.1", "nan"), 10: ("0.5", "1.2")})
    figure = draw_loss(read_curves(read_log(log)), Scale(None))
    assert "not a number before the training" in texts(figure)
    assert not figure.axes[0].patches  # nothing is shaded


def test_a_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "train.log", {0: "2", 10: "1", 20: "nan", 30: "nan"}, {0: ("0.1", "2"), 30: ("0.1", "nan")}
    )
    plot_log(log)
    figure = draw_loss(read_curves(read_log(log)), Scale(None))
    assert "not a number from iteration 20 on" in texts(figure)
    assert table(tmp_path / "metrics.csv")[1]["val_loss"] == "nan"


def test_an_accuracy_of_scores_that_are_no_numbers_is_none(tmp_path: Path) -> None:
    log = make_log(tmp_path / "train.log", {0: "2", 10: "1"}, {0: ("1", "nan"), 10: ("0.5", "1.2")})
    assert read_curves(read_log(log)).val_accuracy == {10: 0.5}


def test_all_losses_nan_still_makes_a_picture(tmp_path: Path) -> None:
    plot_log(make_log(tmp_path / "train.log", {0: "nan", 10: "nan"}))
    assert cv2.imread(str(tmp_path / "loss.png")) is not None


def test_a_log_without_tests_gets_its_loss_and_no_stale_accuracy(tmp_path: Path) -> None:
    (tmp_path / "accuracy.png").write_bytes(b"of an earlier log")
    plotted: Plotted = plot_log(make_log(tmp_path / "train.log", {0: "2", 10: "1"}))
    assert plotted.written == [tmp_path / "loss.png", tmp_path / "metrics.csv"]
    assert not (tmp_path / "accuracy.png").exists()
    assert any("no tests" in note for note in plotted.notes)
    assert any("no accuracy.png" in note for note in plotted.notes)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 1


def test_a_growing_log_gains_rows(tmp_path: Path) -> None:
    whole = make_log(
        tmp_path / "whole.log", dict.fromkeys(range(40), "1"), dict.fromkeys(range(0, 40, 10), ("0.5", "1"))
    )
    text, growing = whole.read_text(), tmp_path / "train.log"
    counts = []
    for part in (0.3, 0.61803, 1):  # 0.618…: in the middle of a line
        growing.write_text(text[: int(part * len(text))])
        plot_log(growing)
        counts.append(len(table(tmp_path / "metrics.csv")))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 4


def test_several_losses_add_up_by_their_weights_and_accuracy_is_a_choice(tmp_path: Path) -> None:
    log = tmp_path / "googlenet.log"
    log.write_text(
        "Iteration 0, Testing net (#0)\n"
        "    Test net output #0: loss1/loss1 = 2 (* 0.3 = 0.6 loss)\n"
        "    Test net output #1: loss1/top-1 = 0.25\n"
        "    Test net output #2: loss3/loss3 = 1 (* 1 = 1 loss)\n"
        "    Test net output #3: loss3/top-1 = 0.5\n"
        "Iteration 0, loss = 1.7\n"
    )
    plotted = plot_log(log)
    row = table(tmp_path / "metrics.csv")[0]
    assert float(row["val_loss"]) == pytest.approx(1.6)
    assert row["val_accuracy"] == "0.25"
    assert any("--accuracy chooses loss3/top-1" in note for note in plotted.notes)
    plot_log(log, accuracy="loss3/top-1")
    assert table(tmp_path / "metrics.csv")[0]["val_accuracy"] == "0.5"
    with pytest.raises(StageError, match=r"'no such'.*loss3/top-1"):
        plot_log(log, accuracy="no such")


def test_the_validation_loss_is_the_first_test_nets(tmp_path: Path) -> None:
    """As of a solver that tests on two data sets."""
    log = tmp_path / "train.log"
    log.write_text(
        "Iteration 0, Testing net (#0)\n"
        "    Test net output #0: accuracy = 0.25\n"
        "    Test net output #1: loss = 2 (* 1 = 2 loss)\n"
        "Iteration 0, Testing net (#1)\n"
        "    Test net output #0: accuracy = 0.5\n"
        "    Test net output #1: loss = 1.5 (* 1 = 1.5 loss)\n"
        "Iteration 0, loss = 1.7\n"
    )
    curves = read_curves(read_log(log))
    assert (curves.val_loss, curves.val_accuracy, curves.train_loss) == ({0: 2.0}, {0: 0.25}, {0: 1.7})


def test_a_log_without_readings_is_an_error_that_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"of before")
    (tmp_path / "train.log").write_text("I20260101 00:00:00.000000 1 solver.cpp:289] Solving nothing\n")
    with pytest.raises(StageError, match="no readings in it"):
        plot_log(tmp_path / "train.log")
    assert (tmp_path / "loss.png").read_bytes() == b"of before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.log"], "error: no.log: No such file or directory"),
        (
            ["--iterations-per-epoch", "0", "LOG"],
            "error: --iterations-per-epoch is 0; expected a number above 0, or test",
        ),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    log = make_log(tmp_path / "train.log", {0: "1"})
    arguments = [str(log) if a == "LOG" else a for a in arguments]
    run = subprocess.run(
        [sys.executable, "-m", "train.plot", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.strip() == message


def test_the_command_names_what_it_wrote(tmp_path: Path) -> None:
    log = make_log(tmp_path / "train.log", {0: "2", 10: "1"}, {0: ("0.1", "2"), 10: ("0.5", "1")})
    run = subprocess.run(
        [sys.executable, "-m", "train.plot", str(log), "--output", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "best 50.00% at iteration 10" in run.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["accuracy.png", "loss.png", "metrics.csv"]
