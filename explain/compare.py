"""All trained and evaluated runs of a data set beside each other: accuracy, size, multiply-adds and time a face.

    python -m explain.compare data/fer2013

Looks for runs/RUN anywhere below the folder, also in unaligned/, both/, ferplus/ and foldK/, and writes compare.md,
compare.csv and compare.png into the folder. Runs that differ in the seed alone, or in the fold alone, are one row.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

import caffe
from caffe.complexity import complexity
from caffe.errors import CaffeError
from caffe.io import read_net_parameter, read_solver_parameter
from explain.features import plain, shortened
from predict.options import print_any_name
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import Stage, StageError, add_device_argument, progress, replace_file, run_main, sha256
from train.ensemble import alignment, trained_files
from train.minutes import MOVED

HEADS = (
    "#", "network", "faces", "seeds", "epochs", "val", "test", "mirrored", "ten crops", "without duplicates",
    "parameters", "multiply-adds", "ms a face", "ms by ten crops", "MB",
)  # fmt: skip
# what the table says of accuracy: its name in compare.csv, and where evaluation.json has it
FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "val": lambda databases: databases["val"]["accuracy"],
    "test": lambda databases: databases["test"]["accuracy"],
    "test_mirror": lambda databases: databases["test"]["views"]["mirror"]["accuracy"],
    "test_ten_crop": lambda databases: databases["test"]["views"]["ten_crop"]["accuracy"],
    "test_without_duplicates": lambda databases: databases["test"]["without_training_duplicates"]["accuracy"],
}
# solver settings that `python -m train` computes from the number of training images, which differs between folds
BY_SIZE = ("test_iter", "test_interval", "snapshot", "display", "average_loss", "swa_interval", *MOVED)
VIEWS = ("centre", "ten_crop")  # by which the time a face is measured
WARM_UP, ROUNDS, REPEATS = 3, 7, 5
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1")
GREY = "#666666"
PANELS = ("parameters", "multiply-adds a face", "milliseconds a face (centre crop, one at a time)")
LINE, LONGEST_LABEL = 0.24, 72  # inches of a line of the plot's legend, and its letters; the table has the whole name
WIDE = 70  # times from the least to the largest value: beyond, 1, 2 and 5 of each decade would run into each other

Files = tuple[Path, Path, Path]  # deploy.prototxt, .caffemodel, mean.binaryproto
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass
class Result:
    """One evaluated run.

    Attributes
    ----------
    run: its folder.
    network: the network, its recipe, and what else it was trained on or from; or an ensemble's members.
    faces: the alignment, and FER+ where the labels are its.
    seed, epochs: None for an ensemble, whose members have their own.
    fold: of a cross-validation, None for a run that is of none.
    databases: what evaluation.json says of each database.
    settings: all settings but the seed and the fold, as text: runs with the same are repetitions.
    models: the files of its net, or of each of an ensemble's.
    """

    run: Path
    network: str
    faces: str
    seed: int | None
    fold: int | None
    epochs: float | None
    databases: dict[str, dict[str, Any]]
    settings: str
    models: list[Files]


@dataclass
class Cost:
    """How large a model is and what one face costs; of an ensemble the sums over its members.

    Attributes
    ----------
    parameters: learned values. multiply_adds: of one forward pass of one face (caffe.complexity says what counts).
    bytes: of the .caffemodel files.
    seconds: by views (`centre`, `ten_crop`), for one aligned face at a time: crop, mean, net.
    """

    parameters: int
    multiply_adds: int
    bytes: int
    seconds: dict[str, float]


@dataclass
class Row:
    """Runs that are repetitions of each other, and what their model costs; None where its files are not there."""

    results: list[Result]
    cost: Cost | None

    @property
    def first(self) -> Result:
        """The run that stands for all in what they have alike."""
        return self.results[0]

    def figure(self, name: str) -> tuple[float, float | None] | None:
        """One of FIGURES, 0..1: the mean over the runs, and where there are several the standard deviation (sample:
        divided by n - 1); None where a run's evaluation lacks it."""
        try:
            values = [FIGURES[name](result.databases) for result in self.results]
        except KeyError:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_result(path: Path, root: Path) -> Result:
    """The run that an evaluation.json, below the data set's folder `root`, is about.

    Raises StageError for files that training and evaluation did not write so.
    """
    run = path.parent.parent
    place = run.relative_to(root).parts
    folds = [int(part.removeprefix("fold")) for part in place if re.fullmatch(r"fold\d+", part)]
    fold = folds[0] if folds else None
    try:
        evaluation = json.loads(path.read_text())
        databases, nets = evaluation["databases"], evaluation["model"]["nets"]
        models = [_files(run, net) for net in nets]
        seen = dict.fromkeys(alignment(Path(net["lmdbs"]) if "lmdbs" in net else run.relative_to(root)) for net in nets)
        faces = ", ".join([*seen, *(["FER+"] if "ferplus" in place else [])])
        if len(nets) > 1:
            name = f"ensemble: {evaluation['model']['name'].replace('+', ' + ')}"
            # its name says the members, whose seeds count; over folds it is one row as they are
            return Result(run, name, faces, None, fold, None, databases, f"{name}\n{faces}\n{fold is None}", models)
        manifest = json.loads((run / "manifest.json").read_text())
        settings, counts = manifest["settings"], manifest["counts"]
        name = f"{settings['network']} {settings.get('solver') or ''}".strip()
        if settings["train_on"] != "train":
            name += f" ({settings['train_on']})"
        initial = [entry for entry in manifest["inputs"] if entry["file"].endswith(".caffemodel")]
        if initial:
            name += f" from {', '.join(Path(entry['file']).name for entry in initial)}"
        if settings.get("freeze"):
            name += f", frozen: {settings['freeze']}"
        same = (
            f"{name}\n{faces}\n{[entry['sha256'] for entry in initial]}\n{_settings(run, manifest, fold is not None)}"
        )
        epochs = counts["epochs"]
        return Result(run, name, faces, settings["seed"], fold, epochs, databases, same, models)
    except (ValueError, KeyError, TypeError, AttributeError, CaffeError) as error:
        raise StageError(
            f"{path}: {type(error).__name__}: {error}; expected what `python -m train` and `train.evaluate` write"
        ) from error


def _files(run: Path, net: dict[str, str]) -> Files:
    """The files of a net that evaluation.json names: those in the run's folder, should that have been moved."""
    deploy, weights, mean = (Path(net[kind]) for kind in ("deploy", "weights", "mean"))
    beside = run / deploy.name, run / weights.name, run / mean.name
    return beside if all(path.is_file() for path in beside) else (deploy, weights, mean)


def _settings(run: Path, manifest: dict[str, Any], folds: bool) -> str:
    """The solver and the net, without the seed and the names of files.

    Of a fold also without what depends on how many images it has: then its epochs stand for the iterations. Of a run
    that had a time (`--minutes`), that stands for them.
    """
    minutes = manifest["settings"].get("minutes")
    solver, net = read_solver_parameter(run / "solver.prototxt"), read_net_parameter(run / "train_val.prototxt")
    by_epochs = BY_SIZE if folds else MOVED if minutes else ()
    for field in ("random_seed", "snapshot_prefix", "net", "weights", *by_epochs):
        solver.ClearField(field)
    for layer in net.layer:
        layer.data_param.ClearField("source")
        layer.transform_param.ClearField("mean_file")
        if folds and any(rule.phase == caffe.TEST for rule in layer.include):
            layer.data_param.ClearField("batch_size")
        if folds:  # each fold's teachers are runs of its own, of the same names
            for names in (layer.teacher_param.net, layer.teacher_param.weights):
                names[:] = [Path(name).parent.name for name in names]
    asked = manifest["settings"]["max_iter"] / manifest["counts"]["iterations_per_epoch"] if folds else ""
    if minutes:
        asked = f"{minutes} minutes"
    return f"{folds}\n{asked}\n{solver}\n{net}"


def find_results(folder: Path) -> list[Result]:
    """All evaluated runs below the data set's folder, by path. Raises StageError where there is none."""
    if not folder.is_dir():
        raise StageError(f"{folder}: no such folder; expected a data set's, such as data/fer2013")
    paths = sorted(p for p in folder.glob("**/evaluation/evaluation.json") if _evaluates(p.parent.parent))
    if not paths:
        waiting = "".join(f"\n  {run}: {what}" for run, what in find_others(folder))
        raise StageError(
            f"{folder}: no evaluated run; expected runs/RUN/evaluation/evaluation.json (make evaluate){waiting}"
        )
    return [read_result(path, folder) for path in paths]


def _evaluates(run: Path) -> bool:
    """Whether a folder is a run's, or an ensemble's, whose evaluation is of the weights that are there now."""
    result = run / "evaluation/evaluation.json"
    if run.parent.name != "runs" or not result.is_file():
        return False
    try:
        nets = json.loads(result.read_text())["model"]["nets"]
        inputs = json.loads((run / "evaluation/manifest.json").read_text())["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # nothing says of which weights it is; read_result says what is wrong with evaluation.json
    recorded = [entry["sha256"] for entry in inputs if entry["file"].endswith(".caffemodel")]
    weights = [_files(run, net)[1] for net in nets]
    return len(recorded) != len(weights) or all(
        not path.is_file() or sha256(path) == known for path, known in zip(weights, recorded, strict=True)
    )


def find_others(folder: Path) -> list[tuple[Path, str]]:
    """The runs that are not evaluated, or with other weights than they have now, each with the command that does it, or
    that it is not trained to the end."""
    found = []
    for settings in sorted(folder.glob("**/settings.json")):
        run = settings.parent
        if run.parent.name != "runs" or _evaluates(run):
            continue
        try:
            found.append((run, evaluation_command(run)))
        except StageError:  # no weights yet, or not all files that stand beside them
            found.append((run, "not trained to the end"))
    ensembles = {path.parent.parent for path in folder.glob("**/runs/*/evaluation/evaluation.json")}
    found += [
        (run, "not evaluated with the weights that its members have now: `make ensemble` again")
        for run in sorted(ensembles)
        if not (run / "settings.json").exists() and not _evaluates(run)
    ]
    return found


def evaluation_command(run: Path) -> str:
    """The command line that evaluates a trained run as `make evaluate` does it.

    Raises StageError for a folder that is no finished run's.
    """
    deploy, weights, mean = map(str, trained_files(run))
    databases = run.parent.parent / "lmdb"
    words = ["python", "-m", "train.evaluate", deploy, weights, "--mean", mean, "--output", str(run / "evaluation")]
    trained_on = ["train", "val"] if "train+val" in run.name else ["train"]
    unseen = [name for name in ("val", "test") if name not in trained_on]
    words += [word for name in unseen for word in ("--lmdb", f"{name}={databases / f'{name}_lmdb'}")]
    words += ["--exclude-duplicates-of", ",".join(str(databases / f"{name}_lmdb") for name in trained_on)]
    words += ["--views", "centre", "mirror", "ten_crop", *(["--calibrate-on", "val"] if "val" in unseen else [])]
    return shlex.join(words)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def size(deploy: Path) -> tuple[int, int]:
    """Learned parameters of a deploy net, and multiply-adds for one image.

    Raises StageError for what is no prototxt of a net.
    """
    try:
        caffe.use_device("cpu")
        net = caffe.Net(str(deploy), caffe.TEST)
        for name in net.inputs:
            net.blobs[name].reshape(1, *net.blobs[name].shape[1:])
        net.reshape()
    except CaffeError as error:
        raise StageError(str(error)) from error
    return complexity(net)


def time_faces(networks: Sequence[FaceNetwork]) -> list[dict[str, float]]:
    """Seconds that each net takes for one aligned face, by VIEWS: medians, after a warm-up.

    In each of ROUNDS rounds every net is timed REPEATS times, so that what else the machine does falls on all alike.
    """
    times: list[dict[str, list[float]]] = [{view: [] for view in VIEWS} for _ in networks]
    for number in progress(range(-1, ROUNDS), ROUNDS + 1, "timing", "round"):
        for network, of_network in zip(networks, times, strict=True):
            face = np.zeros((1, *network.face_shape), np.uint8)
            for view, seconds in of_network.items():
                for _ in range(WARM_UP if number < 0 else REPEATS):
                    start = time.perf_counter()
                    network.probabilities(face, view)  # its answer is in the main memory: a GPU has finished
                    if number >= 0:
                        seconds.append(time.perf_counter() - start)
    return [{view: statistics.median(seconds) for view, seconds in each.items()} for each in times]


def measure(models: Sequence[Files], device: str = "auto") -> dict[Files, Cost]:
    """What each model costs, each once; one whose files are not there is left out.

    Raises StageError for files that are no model.
    """
    there = [files for files in dict.fromkeys(models) if all(path.is_file() for path in files)]
    sizes = [size(files[0]) for files in there]
    seconds = time_faces([FaceNetwork(*files, device, calibrated=False) for files in there])
    return {
        files: Cost(parameters, multiply_adds, files[1].stat().st_size, times)
        for files, (parameters, multiply_adds), times in zip(there, sizes, seconds, strict=True)
    }


def group(results: Sequence[Result], costs: dict[Files, Cost]) -> list[Row]:
    """The table's rows: repetitions together, the best test accuracy first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.settings, []).append(result)
    rows = [Row(of_settings, _sum([costs.get(m) for m in of_settings[0].models])) for of_settings in groups.values()]
    return sorted(rows, key=lambda row: -(row.figure("test") or (0.0, None))[0])


def _sum(costs: Sequence[Cost | None]) -> Cost | None:
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    return Cost(
        sum(cost.parameters for cost in known),
        sum(cost.multiply_adds for cost in known),
        sum(cost.bytes for cost in known),
        {view: sum(cost.seconds[view] for cost in known) for view in VIEWS},
    )


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def to_markdown(rows: Sequence[Row]) -> str:
    """The table: accuracies in percent, mean ± standard deviation where a row is several runs."""
    lines = ["| " + " | ".join(HEADS) + " |", "|--:|---|---|" + "--:|" * (len(HEADS) - 3)]
    for number, row in enumerate(rows, 1):
        cells = [str(number), row.first.network, row.first.faces, repetitions(row), _span(row) or "–"]
        cells += [_percent(row.figure(name)) for name in FIGURES]
        if row.cost is None:
            cells += ["–"] * 5
        else:
            times = [f"{1e3 * row.cost.seconds[view]:.2f}" for view in VIEWS]
            megas = f"{row.cost.multiply_adds / 1e6:,.2f} M"
            cells += [f"{row.cost.parameters:,}", megas, *times, f"{row.cost.bytes / 1e6:.2f}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def repetitions(row: Row) -> str:
    """The seeds; of a cross-validation the number of folds, and the seeds where there are several."""
    seeds = sorted({result.seed for result in row.results if result.seed is not None})
    folds = {result.fold for result in row.results if result.fold is not None}
    listed = ", ".join(map(str, seeds))
    if not folds:
        return listed or "–"
    text = f"{len(folds)} fold{'s' * (len(folds) != 1)}"
    return f"{text}, seeds {listed}" if len(seeds) > 1 else text


def _span(row: Row) -> str:
    epochs = sorted({round(result.epochs) for result in row.results if result.epochs is not None})
    return f"{epochs[0]}–{epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs))


def _percent(figure: tuple[float, float | None] | None) -> str:
    if figure is None:
        return "–"
    mean, deviation = figure
    return f"{100 * mean:.2f}%" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f}%"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The table for programs: shares 0..1 and their standard deviations, seconds and bytes; empty where not known."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        writer = csv.writer(f, lineterminator="\n")
        heads = ["number", "network", "faces", "runs", "seeds", "folds", "epochs"]
        heads += [head for name in FIGURES for head in (name, f"{name}_deviation")]
        writer.writerow([*heads, "parameters", "multiply_adds", "bytes", *(f"seconds_{view}" for view in VIEWS)])
        for number, row in enumerate(rows, 1):
            seeds, folds = (
                " ".join(map(str, sorted({getattr(r, kind) for r in row.results} - {None})))
                for kind in ("seed", "fold")
            )
            runs = " ".join(str(result.run) for result in row.results)
            cells: list[object] = [number, row.first.network, row.first.faces, runs, seeds, folds, _span(row)]
            cells += [value for name in FIGURES for value in row.figure(name) or (None, None)]
            if row.cost is not None:
                cells += [row.cost.parameters, row.cost.multiply_adds, row.cost.bytes]
                cells += [row.cost.seconds[view] for view in VIEWS]
            writer.writerow(cells + [None] * (len(heads) + 3 + len(VIEWS) - len(cells)))


def place_labels(points: np.ndarray, sizes: np.ndarray, frame: Box, radius: float = 7.0) -> np.ndarray:
    """Where labels of points go so that none lies on another one or on a point.

    Parameters
    ----------
    points: N×2, x and y in pixels. sizes: N×2, width and height of the labels. frame: that they should stay in.
    radius: of the points.

    Returns N×2, the labels' centres. Each label takes the nearest free place of those around its point, in growing
    circles; where none is free, the one that covers the least.
    """
    taken: list[Box] = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    places = np.empty((len(points), 2))
    angles = np.deg2rad(np.arange(0, 360, 15))
    for i, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=True)):
        best, least = (x, y), np.inf
        for gap in (2, 6, 12, 20, 30, 42, 56, 72, 90):
            for angle in angles:
                centre = (
                    x + np.cos(angle) * (radius + gap + width / 2),
                    y + np.sin(angle) * (radius + gap + height / 2),
                )
                box = (centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2)
                covered = sum(_overlap(box, other) for other in taken) + width * height - _overlap(box, frame)
                if covered < least - 1e-6:
                    best, least = centre, covered
            if least < 1e-6:
                break
        places[i] = best
        width, height = sizes[i] / 2
        taken.append((best[0] - width, best[1] - height, best[0] + width, best[1] + height))
    return places


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes have in common."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


@dataclass
class _Point:
    """One row in the plot: accuracies in percent, and x by panel."""

    number: int
    label: str
    colour: str
    accuracy: float
    deviation: float
    costs: tuple[float, float, float]


def _points(rows: Sequence[Row]) -> list[_Point]:
    networks = list(dict.fromkeys(row.first.network.split()[0] for row in rows))
    points = []
    for number, row in enumerate(rows, 1):
        figure = row.figure("test")
        if row.cost is None or figure is None:
            continue
        colour = COLOURS[networks.index(row.first.network.split()[0]) % len(COLOURS)]
        ends = f", {row.first.faces}: {_percent(figure)}"
        label = f"{number}  {shortened(row.first.network, LONGEST_LABEL - len(ends))}{ends}"
        costs = (row.cost.parameters, row.cost.multiply_adds, 1e3 * row.cost.seconds["centre"])
        points.append(_Point(number, label, colour, 100 * figure[0], 100 * (figure[1] or 0.0), costs))
    return points


def draw(rows: Sequence[Row], title: str) -> Figure:
    """Test accuracy by the centre crop against parameters, multiply-adds and milliseconds a face.

    The numbers at the points are the table's rows; bars are standard deviations. Rows without a cost or a test accuracy
    are not drawn.
    """
    points = _points(rows)
    lines = -(-len(points) // 2)
    height = 4.6 + LINE * lines
    figure = Figure(figsize=(13, height), dpi=110)
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    below = (0.95 + LINE * lines) / height
    figure.subplots_adjust(left=0.075, right=0.985, top=1 - 0.65 / height, bottom=below, wspace=0.06)
    figure.suptitle(plain(title), x=0.075, y=1 - 0.2 / height, ha="left", va="top", fontsize=13, fontweight="bold")
    for i, (axes, label) in enumerate(zip(panels, PANELS, strict=True)):
        _draw_panel(axes, points, [point.costs[i] for point in points], label)
    panels[0].set_ylabel("accuracy on the test set (centre crop)")
    panels[0].yaxis.set_major_formatter(PercentFormatter(100, decimals=None))
    if points:
        low = min(point.accuracy - point.deviation for point in points)
        high = max(point.accuracy + point.deviation for point in points)
        margin = 0.15 * (high - low) or 1.0
        panels[0].set_ylim(low - margin, high + margin)
    for place, point in enumerate(points):
        column, line = divmod(place, lines)
        x, y = 0.075 + 0.47 * column, (0.2 + LINE * (lines - line)) / height
        figure.text(x, y, plain(point.label), color=point.colour, fontsize=9.5, va="top")
    canvas.draw()  # only then it is known where the points lie
    for i, axes in enumerate(panels):
        _number(axes, points, [point.costs[i] for point in points])
    return figure


def _draw_panel(axes: Axes, points: Sequence[_Point], values: Sequence[float], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    wide = bool(values) and max(values) > WIDE * min(values)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        beside = max(
            1.6, 2.3 / (max(values) / min(values)) ** 0.5
        )  # so that two of 1, 2, 5, 10 are on the axis at least
        axes.set_xlim(min(values) / beside, max(values) * beside)
    for point, x in zip(points, values, strict=True):
        axes.errorbar(
            x, point.accuracy, point.deviation or None, fmt="o", color=point.colour, markersize=7, capsize=3
        )  # fmt: skip


def _short(value: float, _: object = None) -> str:
    """20 k, 5 M: numbers from a thousand on with their thousands named."""
    for factor, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _number(axes: Axes, points: Sequence[_Point], values: Sequence[float]) -> None:
    """Write the rows' numbers beside the points, with a line to points that are not next to theirs."""
    if not points:
        return
    data = [(x, point.accuracy) for point, x in zip(points, values, strict=True)]
    places = axes.transData.transform(data)
    sizes = np.array([(9.5 * len(str(point.number)) + 2, 15) for point in points])
    frame = axes.get_window_extent()
    labels = place_labels(places, sizes, (frame.x0, frame.y0, frame.x1, frame.y1))
    beside = axes.transData.inverted().transform(labels)
    for i, point in enumerate(points):
        far = np.hypot(*(labels[i] - places[i])) > 24
        axes.annotate(
            str(point.number), data[i], beside[i], color=point.colour, fontsize=10, fontweight="bold",
            ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 4} if far else None,
        )  # fmt: skip


def compare(folder: Path, device: str = "auto") -> list[Row]:
    """Write compare.md, compare.csv and compare.png into the data set's folder, and print the table.

    Parameters
    ----------
    folder: the data set's, such as data/fer2013.
    device: on which the time a face is measured: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns the table's rows. Raises StageError where no run is evaluated, and for files that are none of a run's.
    """
    folder = Path(folder)
    stage = Stage("compare")
    results, others = find_results(folder), find_others(folder)
    rows = group(results, measure([files for result in results for files in result.models], device))
    table = to_markdown(rows)
    with replace_file(folder / "compare.csv") as path:
        write_csv(path, rows)
    with replace_file(folder / "compare.png") as path:
        draw(rows, f"{folder.name}: accuracy against size and time").savefig(path)
    text = f"# Runs of {folder.name}\n\n{table}\n![accuracy against size and time](compare.png)\n\n{_remarks(device)}\n"
    left_out = _left_out(rows, others)
    with replace_file(folder / "compare.md") as path:
        text += f"\n{left_out}" if left_out else ""
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a folder's name may not be UTF-8
    print(table, left_out, sep="\n" if left_out else "", end="")
    runs = f"{len(results)} run{'s' * (len(results) != 1)} in {len(rows)} row{'s' * (len(rows) != 1)}"
    waiting = f", {len(others)} without evaluation" if others else ""
    stage.summary(f"{runs}{waiting}; see {folder / 'compare.md'}, compare.csv, compare.png")
    return rows


def _remarks(device: str) -> str:
    chosen = caffe.use_device(device)
    where = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return (
        "Accuracy is by the centre crop where no views are named; *without duplicates*: without the test images that "
        "stand in the training set too. Several runs in a row: mean ± standard deviation. The time is the median for "
        f"one aligned face at a time, here ({where}, PyTorch {torch.__version__}); MB are the weights' files. "
        "An ensemble's costs are the sums of its members'."
    )


def _left_out(rows: Sequence[Row], others: Sequence[tuple[Path, str]]) -> str:
    """What the table lacks, and why: models whose files are gone, runs without evaluation."""
    lines = [
        f"- {row.first.network}: not measured, since a file of its nets is not there: "
        + ", ".join(str(path) for files in row.first.models for path in files if not path.is_file())
        for row in rows
        if row.cost is None
    ]
    lines += [f"- {run}: {what if what.startswith('not ') else f'not evaluated: `{what}`'}" for run, what in others]
    return "\n".join(lines) + "\n" if lines else ""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m explain.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a data set's folder, such as data/fer2013")
    add_device_argument(parser)
    args = parser.parse_args()
    print_any_name()
    try:
        compare(args.folder, args.device)
    except CaffeError as error:
        raise StageError(str(error)) from error


if __name__ == "__main__":
    run_main(main)
