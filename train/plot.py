"""Draw loss.png and accuracy.png from a Caffe training log, finished or still being written, and tabulate its tests.

python -m train.plot train.log [--output DIR] [--iterations-per-epoch 449]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from caffe.tools.parse_log import Log, Row, read_log
from preprocessing.stage import StageError, replace_file, run_main

# Okabe and Ito's palette (2008): told apart with every kind of colour blindness, and by lightness in print.
TRAINING, VALIDATION = "#0072B2", "#D55E00"
GREY = "#666666"
SMOOTH_FROM = 12  # fewer readings than this are drawn as they are, with markers
MAX_STEPS = 8  # more changes of the learning rate than this are a curve, drawn below, and no steps
OFF_SCALE = 5  # a reading this many times above nine tenths of all would flatten the others: it is left off, and named
NICE = [1, 2, 5, 10]  # distances of ticks


@dataclass
class Curves:
    """What the plots show: per curve, iterations and values; a curve without readings is empty.

    `train_loss` holds the displayed training loss, `val_loss` the sum of the first test net's loss outputs times their
    weights. Where training has losses that tests lack, as one by teachers, `train_loss` is that of the tests' losses
    alone, batch by batch, so that the two can be compared. `train_accuracy` and `val_accuracy` hold the output called
    `accuracy_name` (a fraction, 0..1). `trained_on` says whether the tests are of images that are trained on
    (`--train-on train+val`): then they validate nothing, and none is the best.
    """

    name: str
    last_iteration: int
    learning_rate: dict[int, float]
    train_loss: dict[int, float]
    val_loss: dict[int, float]
    accuracy_name: str | None
    train_accuracy: dict[int, float]
    val_accuracy: dict[int, float]
    other_accuracies: list[str] = field(default_factory=list)
    trained_on: bool = False

    @property
    def tests(self) -> str:
        """What the curve of the tests is called."""
        return "validation split, trained on" if self.trained_on else "validation"


def _weighted_loss(row: Row, weights: dict[str, float]) -> float | None:
    """The loss of one row: its loss outputs times their weights; None where it has none.

    Of a test of several nets, that of the first: what the others put out has a # in its name.
    """
    own = {name: value for name, value in row.items() if "#" not in name}
    parts = [own[name] * weight for name, weight in weights.items() if name in own]
    if not parts:  # a log too old to print weights
        parts = [value for name, value in own.items() if "loss" in name.lower()]
    return sum(parts) if parts else None


def _accuracy_names(rows: Iterable[Row], weights: dict[str, float]) -> list[str]:
    """Outputs that are accuracies by name, the plainest first: `accuracy`, then others of `acc`, then `top-N`."""
    names = dict.fromkeys(name for row in rows for name in row)
    kinds = (lambda n: n == "accuracy", lambda n: "acc" in n, lambda n: "top-" in n or "top_" in n or n[-4:-1] == "top")
    ranked = [name for kind in kinds for name in names if kind(name.lower()) and name not in weights]
    return list(dict.fromkeys(ranked))


def _train_loss(log: Log) -> dict[int, float]:
    """The displayed training loss; that of the losses that tests have, where training has more."""
    tested = {name: weight for name, weight in log.weights.items() if any(name in row for row in log.test)}
    if not tested or not any(name in row for row in log.train for name in log.weights.keys() - tested):
        return dict(sorted(log.loss.items()))
    sums = {int(row["NumIters"]): _weighted_loss(row, tested) for row in log.train}
    return {i: loss for i, loss in sums.items() if loss is not None}


def read_curves(log: Log, accuracy: str | None = None) -> Curves:
    """Pick from a log what the plots show.

    Parameters
    ----------
    log: as `caffe.tools.parse_log.read_log` returns it.
    accuracy: the output to draw as accuracy; default the first that is called so.

    Raises
    ------
    StageError: the log has no output of the name `accuracy`.
    """
    rows = log.test + log.train
    names = _accuracy_names(rows, log.weights)
    if accuracy is not None and not any(accuracy in row for row in rows):
        raise StageError(f"--accuracy is {accuracy!r}; the log's outputs are {', '.join(_outputs(rows)) or 'none'}")
    chosen = accuracy or (names[0] if names else None)
    val_loss = {int(row["NumIters"]): _weighted_loss(row, log.weights) for row in log.test}
    # scores that are no numbers, as deep nets have before the training, all count as right in Caffe's Accuracy
    no_numbers = {i for i, loss in val_loss.items() if loss is not None and math.isnan(loss)}
    tested = [row for row in log.test if int(row["NumIters"]) not in no_numbers]
    return Curves(
        name=log.name,
        last_iteration=max([*log.loss, *(int(row["NumIters"]) for row in rows)], default=0),
        learning_rate=dict(sorted(log.learning_rate.items())),
        train_loss=_train_loss(log),
        val_loss={i: loss for i, loss in val_loss.items() if loss is not None},
        accuracy_name=chosen,
        train_accuracy={int(row["NumIters"]): row[chosen] for row in log.train if chosen in row} if chosen else {},
        val_accuracy={int(row["NumIters"]): row[chosen] for row in tested if chosen in row} if chosen else {},
        other_accuracies=[name for name in names if name != chosen],
    )


def _outputs(rows: Iterable[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in ("NumIters", "Seconds", "LearningRate")]


def smooth(values: Sequence[float]) -> np.ndarray:
    """A running mean with Gaussian weights (standard deviation: 1/150 of all readings, at least one); NaN are left out.

    At the ends the weights that remain are normalised, so that a constant stays constant.
    """
    y = np.asarray(values, float)
    sigma = max(1.0, len(y) / 150)
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    known = np.isfinite(y)
    total = np.convolve(np.where(known, y, 0.0), kernel)[reach : reach + len(y)]
    weight = np.convolve(known.astype(float), kernel)[reach : reach + len(y)]
    return np.where(known, total / np.maximum(weight, 1e-300), np.nan)


@dataclass
class _Scale:
    """Iterations to the x axis: epochs where their length is known."""

    iterations_per_epoch: float | None

    def __call__(self, iterations: Iterable[float]) -> np.ndarray:
        return np.asarray(list(iterations), float) / (self.iterations_per_epoch or 1)

    @property
    def label(self) -> str:
        return "epoch" if self.iterations_per_epoch else "iteration"

    def text(self, iteration: float) -> str:
        if not self.iterations_per_epoch:
            return f"iteration {iteration:,.0f}"
        epoch = iteration / self.iterations_per_epoch
        return f"epoch {epoch:.0f}" if abs(epoch - round(epoch)) < 0.05 else f"epoch {epoch:.1f}"


def _steps(learning_rate: dict[int, float]) -> list[tuple[int, float]]:
    """(iteration, rate) where the learning rate is first seen and where it is another than before."""
    steps: list[tuple[int, float]] = []
    for iteration, rate in learning_rate.items():
        if not steps or steps[-1][1] != rate:
            steps.append((iteration, rate))
    return steps


def _draw_learning_rate(axes: Axes, panel: Axes | None, curves: Curves, scale: _Scale) -> None:
    """Mark the steps of the learning rate by lines, their rates above the frame; a smooth one as a panel below."""
    steps = _steps(curves.learning_rate)
    if panel is not None:
        panel.plot(scale(curves.learning_rate), list(curves.learning_rate.values()), color=GREY, linewidth=1.5)
        panel.set_yscale("log" if min(curves.learning_rate.values()) > 0 else "linear")
        panel.set_ylabel("learning rate")
        return
    labelled = -math.inf
    left, right = axes.get_xlim()
    for number, (iteration, rate) in enumerate(steps):
        x = float(scale([iteration])[0])
        if number:
            axes.axvline(x, color=GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        place = (x - left) / (right - left)
        if place - labelled > 0.11 and 0 <= place <= 0.95:  # a label is about a tenth of the axis wide
            axes.text(
                x, 1.012, f"lr {rate:g}", transform=axes.get_xaxis_transform(), color=GREY, fontsize=9, va="bottom"
            )
            labelled = place


def _frame(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))


def _figure(curves: Curves, scale: _Scale, title: str) -> tuple[Figure, Axes, Axes | None]:
    figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
    panel: Axes | None = None
    if len(_steps(curves.learning_rate)) > MAX_STEPS:
        axes, panel = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _frame(panel)
    else:
        axes = figure.subplots()
    _frame(axes)
    axes.set_xlim(0, max(float(scale([curves.last_iteration])[0]), 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=NICE, integer=True))
    (panel or axes).set_xlabel(scale.label)
    name = f"{curves.name}: " if curves.name else ""
    axes.set_title(f"{name}{title}", loc="left", fontsize=14, fontweight="bold", pad=20)
    axes.set_title(f"after {scale.text(curves.last_iteration)}", loc="right", fontsize=10, color=GREY, pad=20)
    return figure, axes, panel


def _draw_curve(axes: Axes, scale: _Scale, readings: dict[int, float], color: str, label: str, order: int) -> None:
    """Raw readings thin and pale with their smoothed curve on top; a few readings as they are, with markers."""
    x, y = scale(readings), np.array(list(readings.values()))
    if len(readings) < SMOOTH_FROM:
        axes.plot(x, y, color=color, linewidth=2, marker="o", markersize=5, label=label, zorder=order)
        return
    axes.plot(x, y, color=color, linewidth=0.8, alpha=0.35, zorder=order - 2)
    axes.plot(x, smooth(list(y)), color=color, linewidth=2.2, label=f"{label}, smoothed (pale: as read)", zorder=order)


def _finite(*curves: dict[int, float]) -> np.ndarray:
    values = np.array([value for curve in curves for value in curve.values()], float)
    return values[np.isfinite(values)]


def _mark(axes: Axes, scale: _Scale, iteration: int, value: float, text: str) -> None:
    """A star on a reading; its text stands in the legend, where no curve runs through it."""
    axes.plot(
        scale([iteration]), [value], marker="*", markersize=15, color=VALIDATION, markeredgecolor="black",
        linestyle="none", label=text, zorder=9, clip_on=False,
    )  # fmt: skip


def _limit(values: np.ndarray) -> float:
    """The largest loss that is drawn; infinity where none stands out (or the usual losses are 0 or below)."""
    usual = float(np.percentile(values, 90, method="lower")) if len(values) else 0.0
    return OFF_SCALE * usual if usual > 0 else math.inf


def _after_the_beginning(readings: dict[int, float]) -> dict[int, float]:
    """The finite readings but that of iteration 0, which `python -m train` never chooses either.

    It is of the weights that the training starts from: what it says of them is chance, or not the training's merit.
    """
    return {i: value for i, value in readings.items() if i and math.isfinite(value)}


def draw_loss(curves: Curves, scale: _Scale) -> Figure:
    """Training and validation loss, the lowest of the latter after iteration 0 marked; what is off the scale is named.

    So is what is no number.
    """
    figure, axes, panel = _figure(curves, scale, "loss")
    values = _finite(curves.train_loss, curves.val_loss)
    limit = _limit(values)
    for readings, color, label, order in (
        (curves.train_loss, TRAINING, "training", 4),
        (curves.val_loss, VALIDATION, curves.tests, 6),
    ):
        if readings:
            drawn = {i: value if value <= limit else math.nan for i, value in readings.items()}
            _draw_curve(axes, scale, drawn, color, label, order)
    axes.set_ylabel("loss")
    remarks = []
    if len(values):
        shown = values[values <= limit]
        if len(shown) < len(values):
            remarks.append(f"{len(values) - len(shown)} off the scale, up to {values.max():.4g}")
        low, high = float(shown.min()), float(shown.max())
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(0.0 if 0 <= low < 0.6 * high else low - 2 * margin, high + margin)
    broken = [i for c in (curves.train_loss, curves.val_loss) for i, value in c.items() if not math.isfinite(value)]
    if 0 in broken:  # a deep net's test by BatchNorm without statistics
        remarks.append("not a number before the training")
    if any(broken):
        first = min(filter(None, broken))
        remarks.append(f"not a number from {scale.text(first)} on")
        axes.axvspan(float(scale([first])[0]), axes.get_xlim()[1], color="#CC79A7", alpha=0.15, zorder=0)
    readable = {i: value for i, value in _after_the_beginning(curves.val_loss).items() if value <= limit}
    if readable and not curves.trained_on:
        best = min(readable, key=lambda i: readable[i])
        _mark(axes, scale, best, readable[best], f"lowest {readable[best]:.4g} at {scale.text(best)}")
    if remarks:
        axes.text(0.01, 0.02, "; ".join(remarks), transform=axes.transAxes, color=GREY, fontsize=9)
    _draw_learning_rate(axes, panel, curves, scale)
    axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def draw_accuracy(curves: Curves, scale: _Scale) -> Figure:
    """Training accuracy (where the log has it) and validation accuracy, its best reading after iteration 0 marked."""
    figure, axes, panel = _figure(curves, scale, "accuracy")
    if curves.train_accuracy:
        _draw_curve(axes, scale, curves.train_accuracy, TRAINING, "training", 4)
    if curves.val_accuracy:
        _draw_curve(axes, scale, curves.val_accuracy, VALIDATION, curves.tests, 6)
    axes.set_ylabel(curves.accuracy_name or "accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    values = _finite(curves.train_accuracy, curves.val_accuracy)
    if len(values):
        low, high = float(values.min()), float(values.max())
        axes.set_ylim(max(0.0, math.floor(10 * low) / 10), min(1.02, high + 0.08 * (high - low) + 0.01))
        axes.yaxis.set_major_locator(MaxNLocator(9, steps=NICE))
    read = _after_the_beginning(curves.val_accuracy)
    if read and not curves.trained_on:
        best = max(read, key=lambda i: read[i])  # the first of equals
        _mark(axes, scale, best, read[best], f"best {100 * read[best]:.2f}% at {scale.text(best)}")
    _draw_learning_rate(axes, panel, curves, scale)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def metrics(log: Log, curves: Curves, iterations_per_epoch: float | None) -> list[dict[str, float | str]]:
    """One row a test: what it read, and the mean of the training readings since the test before.

    `learning_rate` is the last rate used before the test. A reading at the iteration of a test comes after it in
    the log and belongs to the next row. What the log does not have is the empty string.
    """
    rows: list[dict[str, float | str]] = []
    previous = -1
    for test in log.test:
        iteration = int(test["NumIters"])
        row: dict[str, float | str] = {
            "iteration": iteration,
            "epoch": round(iteration / iterations_per_epoch, 4) if iterations_per_epoch else "",
            "learning_rate": test["LearningRate"],
            "train_loss": _mean(curves.train_loss, previous, iteration),
        }
        if curves.train_accuracy:
            row["train_accuracy"] = _mean(curves.train_accuracy, previous, iteration)
        row["val_loss"] = curves.val_loss.get(iteration, "")
        row["val_accuracy"] = curves.val_accuracy.get(iteration, "")
        rows.append(row)
        previous = iteration
    return rows


def _mean(readings: dict[int, float], start: int, stop: int) -> float | str:
    """The mean of the readings at iterations start to stop - 1, the empty string where there are none."""
    first, end = np.searchsorted(np.fromiter(readings, int, len(readings)), (start, stop))
    values = list(readings.values())[first:end]
    return round(float(np.mean(values)), 6) if values else ""


@dataclass
class Plotted:
    """What `plot_log` wrote, what it could not and why, and one line that says where the training stands."""

    written: list[Path]
    notes: list[str]
    summary: str


def plot_log(
    path: str | Path,
    output: str | Path | None = None,
    iterations_per_epoch: float | str | None = None,
    accuracy: str | None = None,
) -> Plotted:
    """Draw loss.png and accuracy.png and write metrics.csv from the log at `path`, as far as it goes by now.

    Parameters
    ----------
    path: a log of any Caffe; it may be growing meanwhile.
    output: the folder for the files (made where missing); default the log's own.
    iterations_per_epoch: training images divided by the batch size, for an x axis in epochs; `"test"` for the distance
        of two tests, where the run tests every epoch, as `python -m train` does; default: the axis is in iterations.
    accuracy: the name of the output to draw as accuracy; default the first that is called so.

    Raises
    ------
    StageError: nothing to draw in the log, or no output called `accuracy`, or an epoch of no positive length.
    OSError: the log cannot be read or a file not be written.
    """
    path = Path(path)
    log = read_log(path)
    curves = read_curves(log, accuracy)
    curves.trained_on = _trained_on(path.parent / "settings.json")
    if not curves.train_loss and not log.test:
        raise StageError(
            f"{path}: no readings in it (yet); expected a Caffe log with lines like `Iteration 100, loss = 1.5`"
        )
    folder, written, notes = Path(output or path.parent), [], []
    epoch = _epoch_length(log, iterations_per_epoch)
    scale = _Scale(epoch)
    if iterations_per_epoch is not None and epoch is None:
        notes.append("fewer than two tests in the log yet, so iterations instead of epochs")
    if not log.test:
        notes.append("the log has no tests: no validation curves, and metrics.csv has no rows")
    for name, draw, has in (
        ("loss.png", draw_loss, bool(curves.train_loss or curves.val_loss)),
        ("accuracy.png", draw_accuracy, bool(curves.train_accuracy or curves.val_accuracy)),
    ):
        if has:
            with replace_file(folder / name) as target:
                draw(curves, scale).savefig(target)
            written.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # a picture of an earlier log would pass for this one's
            notes.append(f"no {name}: the log has no {name.removesuffix('.png')} output")
    if curves.other_accuracies:
        notes.append(f"drawn: {curves.accuracy_name}; --accuracy chooses {', '.join(curves.other_accuracies)}")
    _write_metrics(folder / "metrics.csv", metrics(log, curves, epoch), curves)
    written.append(folder / "metrics.csv")
    return Plotted(written, notes, _summary(curves, scale))


def _write_metrics(path: Path, rows: list[dict[str, float | str]], curves: Curves) -> None:
    """The rows of `metrics` as a CSV; the training accuracy has a column where the log has it."""
    names = ["iteration", "epoch", "learning_rate", "train_loss", "val_loss", "val_accuracy"]
    if curves.train_accuracy:
        names.insert(4, "train_accuracy")
    with replace_file(path) as target, open(target, "w", newline="") as f:
        writer = csv.DictWriter(f, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _trained_on(settings: Path) -> bool:
    """Whether a run's tests are of images that it trains on, as the settings.json of `python -m train` says."""
    try:
        return bool(json.loads(settings.read_text())["train_on"] == "train+val")
    except (OSError, ValueError, KeyError, TypeError):  # another Caffe's log, which says nothing of that
        return False


def _epoch_length(log: Log, asked: float | str | None) -> float | None:
    """Iterations an epoch; None where they are not asked for, or not known yet."""
    if asked != "test":
        try:
            length = None if asked is None else float(asked)
        except ValueError:
            length = math.nan
        if length is not None and not 0 < length < math.inf:
            raise StageError(f"--iterations-per-epoch is {asked}; expected a number above 0, or test")
        return length
    tests = [int(row["NumIters"]) for row in log.test]
    distances = [b - a for a, b in itertools.pairwise(tests)]
    return float(max(set(distances), key=distances.count)) if distances else None


def _summary(curves: Curves, scale: _Scale) -> str:
    loss, accuracy = (
        f"{what} ({curves.tests})" if curves.trained_on else f"{curves.tests} {what}" for what in ("loss", "accuracy")
    )
    parts = [scale.text(curves.last_iteration)]
    if curves.train_loss:
        parts.append(f"training loss {list(curves.train_loss.values())[-1]:.4g}")
    if curves.val_loss:
        parts.append(f"{loss} {list(curves.val_loss.values())[-1]:.4g}")
    finite = {i: value for i, value in curves.val_accuracy.items() if math.isfinite(value)}
    if finite:
        parts.append(f"{accuracy} {100 * list(finite.values())[-1]:.2f}%")
    read = _after_the_beginning(curves.val_accuracy)
    if read and not curves.trained_on:
        best = max(read, key=lambda i: read[i])
        parts.append(f"best {100 * read[best]:.2f}% at {scale.text(best)}")
    return ", ".join(parts)


def main() -> None:
    """The command: says what was written, and what the log had nothing for."""
    parser = argparse.ArgumentParser(prog="python -m train.plot", description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="a Caffe training log; it may still be growing")
    parser.add_argument("--output", type=Path, help="folder for the files (default: the log's own)")
    parser.add_argument(
        "--iterations-per-epoch",
        metavar="N",
        help="draw over epochs of N iterations, or with N = test of one test to the next (default: over iterations)",
    )
    parser.add_argument(
        "--accuracy", metavar="NAME", help="the output to draw as accuracy (default: found by its name)"
    )
    args = parser.parse_args()
    plotted = plot_log(args.log, args.output, args.iterations_per_epoch, args.accuracy)
    for note in plotted.notes:
        print(f"plot: {note}")
    print(f"plot: {plotted.summary}; wrote {', '.join(str(path) for path in plotted.written)}")


if __name__ == "__main__":
    run_main(main)
