"""Measure a trained net on whole databases: accuracy, confusion matrix, precision, recall and F1 per emotion.

    python -m train.evaluate deploy.prototxt NET.caffemodel --mean mean.binaryproto \\
        --lmdb val=data/fer2013/lmdb/val_lmdb --lmdb test=data/fer2013/lmdb/test_lmdb --output DIR \\
        [--views centre mirror ten_crop] [--exclude-duplicates-of TRAIN_LMDB] [--calibrate-on val]

`--lmdb all=A,B,C` counts several databases as one. Labels are mapped by the names of the classes, so that the net may
come from another data set: images of classes that it lacks are left out and counted, and its classes that the database
lacks stay possible, wrong answers.

Probabilities are taken as the net gives them, whatever calibration.json stands beside the weights.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from caffe.errors import CaffeError
from caffe.io import DatumReader
from preprocessing.classes import CONTEMPT, default_classes, read_classes
from preprocessing.datasets import EMOTIONS
from preprocessing.network_input import CALIBRATION, VIEWS, Classifier, FaceNetwork, check_views
from preprocessing.stage import (
    Stage,
    StageError,
    add_device_argument,
    replace_directory,
    replace_file,
    run_main,
    sha256,
)
from train.calibrate import BINS, Calibration, calibrate, draw_reliability, find_temperature

RESULT = "evaluation.json"
LONGEST_LEVEL = 10  # letters of a name that stands level below a column of the confusion matrix
LONGEST_TITLE = 64  # letters of a line above it
VIEW_NAMES = {"centre": "centre", "mirror": "mirrored", "ten_crop": "ten crops"}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64, classes×classes: row the true class, column the predicted one (both 0..classes - 1)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, F1 (float64, 0..1) and support (int64), one value a class.

    Where a class was never predicted its precision is 0, where it has no images its recall is 0, and where both are 0
    so is its F1: a division by zero gives 0.
    """
    right, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _divide(right, predicted), _divide(right, support)
    f1 = _divide(2 * precision * recall, precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def macro_averages(confusion: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 as means over the classes that there are images of, which all weigh alike."""
    metrics = class_metrics(confusion)
    there = metrics["support"] > 0
    return {name: float(metrics[name][there].mean()) if there.any() else 0.0 for name in ("precision", "recall", "f1")}


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b != 0)


@dataclass
class Evaluation:
    """One database's figures.

    Attributes
    ----------
    name: as `--lmdb NAME=PATH` calls it.
    confusions: counts by views (`centre`, …), true class by predicted class; the first is the one that counts.
    unseen: the same without the images that stand in the training database too; empty where not asked for.
    labels: the images' classes (N).
    answers: what the net says by each of the views (N×classes).
    calibration: the probabilities before and after calibration, where asked for.
    foreign: how many images were left out because the net lacks their class, by class.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    confusions: dict[str, np.ndarray]
    unseen: dict[str, np.ndarray]
    labels: np.ndarray
    answers: dict[str, np.ndarray]
    calibration: Calibration | None = None
    foreign: dict[str, int] = field(default_factory=dict)

    @property
    def probabilities(self) -> np.ndarray:
        """What the net says by the first views (N×classes)."""
        return next(iter(self.answers.values()))

    @property
    def confusion(self) -> np.ndarray:
        """The counts by the first views."""
        return next(iter(self.confusions.values()))

    @property
    def left_out(self) -> int:
        """How many images `unseen` lacks."""
        return int(self.confusion.sum() - next(iter(self.unseen.values())).sum())

    def to_dict(self) -> dict[str, Any]:
        """What evaluation.json says of the database; shares are 0..1."""
        metrics = class_metrics(self.confusion)
        result: dict[str, Any] = {"source": self.source, **_share(self.confusion)}
        result["views"] = {views: _share(counts) for views, counts in self.confusions.items()}
        if self.unseen:
            shares = {views: _share(counts) for views, counts in self.unseen.items()}
            result["without_training_duplicates"] = {
                "duplicates": self.left_out,
                **next(iter(shares.values())),
                "views": shares,
            }
        if self.calibration is not None:
            result["calibration"] = self.calibration.to_dict()
        if self.foreign:
            result["left_out_classes"] = self.foreign
        result["macro"] = macro_averages(self.confusion)
        result["classes"] = {
            emotion: {
                **{name: float(metrics[name][i]) for name in ("precision", "recall", "f1")},
                "support": int(metrics["support"][i]),
            }
            for i, emotion in enumerate(self.classes)
        }
        result["confusion"] = self.confusion.tolist()
        return result


def _share(confusion: np.ndarray) -> dict[str, Any]:
    count, right = int(confusion.sum()), int(np.trace(confusion))
    return {"images": count, "correct": right, "accuracy": right / count if count else 0.0}


class Faces(NamedTuple):
    """What a net is tested on.

    Attributes
    ----------
    images: N×C×H×W, of the net's faces' size.
    labels: N numbers of the net's classes.
    foreign: how many images were left out because the net lacks their class, by class.
    """

    images: np.ndarray
    labels: np.ndarray
    foreign: dict[str, int]


def read_database(path: Path, network: Classifier) -> Faces:
    """All faces of an LMDB of Datum, each record once, with the net's labels.

    Labels are mapped by the names of the classes, which the classes.txt beside the LMDB gives; see `database_classes`.

    Raises StageError for what is no such database, images of another size, labels that no class has, and a database
    with none of the net's classes.
    """
    try:
        read = DatumReader(path).read_all()
    except CaffeError as error:
        raise StageError(str(error)) from error
    if read is None:
        raise StageError(f"{path}: its images are of several sizes; expected those of a data set's faces")
    if network.face_shape not in (None, read[0].shape[1:]):
        found, wanted = ("×".join(map(str, shape)) for shape in (read[0].shape[1:], network.face_shape or ()))
        hint = " (see ALIGN=both)" if 2 in (read[0].shape[1], (network.face_shape or (0,))[0]) else ""
        raise StageError(f"{path}: its images are {found}; the mean is {wanted}{hint}")
    images, labels = read
    names = database_classes(path, labels, network.classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise StageError(
            f"{path}: record {wrong[0]} has the label {labels[wrong[0]]}; expected 0..{len(names) - 1}, "
            f"the classes {', '.join(names)}"
        )
    if not set(names) & set(network.classes):
        raise StageError(
            f"{path}: its classes are {', '.join(names)}; expected some of the net's, {', '.join(network.classes)}"
        )
    numbers = np.array([network.classes.index(name) if name in network.classes else -1 for name in names])
    mapped = numbers[labels]
    counts = np.bincount(labels[mapped < 0], minlength=len(names))
    foreign = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    return Faces(images[mapped >= 0], mapped[mapped >= 0], foreign)


def database_classes(path: Path, labels: np.ndarray, of_net: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that the labels of an LMDB number.

    They stand in the classes.txt beside it. Without one the labels are those of a net that has default names, and of
    another they are the seven emotions, with contempt where there is a label 7.
    """
    named = read_classes(path.parent)
    if named is not None:
        return named
    if tuple(of_net) == default_classes(len(of_net)):
        return tuple(of_net)
    return (*EMOTIONS, CONTEMPT) if (labels == len(EMOTIONS)).any() else EMOTIONS


def fingerprints(images: np.ndarray) -> list[bytes]:
    """A hash of the pixels of each image: equal images, whatever their labels and names, have equal ones."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


class Answers(NamedTuple):
    """What a net says of the faces in an LMDB.

    Attributes
    ----------
    labels: N numbers of the net's classes.
    probabilities: for each of the views N×classes.
    unseen: for each face whether it is none of the training images; None where that is not asked for.
    foreign: how many images were left out because the net lacks their class, by class.
    """

    labels: np.ndarray
    probabilities: dict[str, np.ndarray]
    unseen: np.ndarray | None
    foreign: dict[str, int]


def unseen(images: np.ndarray, training: Collection[bytes] | None) -> np.ndarray | None:
    """For each image whether it is none of the training images (their fingerprints); None where there are none."""
    return None if training is None else np.array([print_ not in training for print_ in fingerprints(images)], bool)


def answer(
    network: FaceNetwork, path: Path, views: Sequence[str], training: Collection[bytes] | None = None
) -> Answers:
    """Run every record of an LMDB through the net, once for each of `views`.

    Parameters
    ----------
    network: the trained net.
    path: the LMDB.
    views: names of VIEWS, at least one, each once.
    training: fingerprints of the training images.

    Raises StageError as `read_database` does.
    """
    images, labels, foreign = read_database(path, network)
    probabilities = {view: network.probabilities(images, view) for view in views}
    return Answers(labels, probabilities, unseen(images, training), foreign)


def count(name: str, classes: tuple[str, ...], answers: Mapping[Path, Answers]) -> Evaluation:
    """The figures of some LMDBs that count as one database, called `name`; those without training images too."""
    parts = list(answers.values())
    labels = np.concatenate([part.labels for part in parts])
    probabilities = {
        view: np.concatenate([part.probabilities[view] for part in parts]) for view in parts[0].probabilities
    }
    kept = None if parts[0].unseen is None else np.concatenate([part.unseen for part in parts])
    confusions, unseen = {}, {}
    for view, of_view in probabilities.items():
        predicted = of_view.argmax(axis=1)
        confusions[view] = confusion_matrix(labels, predicted, len(classes))
        if kept is not None:
            unseen[view] = confusion_matrix(labels[kept], predicted[kept], len(classes))
    foreign = sum((Counter(part.foreign) for part in parts), Counter[str]())
    source = ",".join(map(str, answers))
    return Evaluation(name, source, classes, confusions, unseen, labels, probabilities, foreign=dict(foreign))


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """The confusion matrix as a picture: shade and percentage by row (the diagonal is the recall), and counts."""
    support = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support != 0)
    count = len(classes)
    size = max(5.5, 0.95 * count + 1.6)
    figure = Figure(figsize=(size + 0.6, size), dpi=120, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(count):
        for column in range(count):
            axes.text(
                column,
                row,
                f"{100 * share[row, column]:.1f}%\n{confusion[row, column]:,}",
                ha="center",
                va="center",
                fontsize=10,
                fontweight="bold" if row == column else "normal",
                color="white" if share[row, column] > 0.6 else "black",
            )
    axes.set_xticks(range(count), classes)
    if max(map(len, classes)) > LONGEST_LEVEL:  # names of neighbours would run into each other
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), [f"{name}\n({n:,})" for name, n in zip(classes, support[:, 0], strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (images)")
    if len(title) > LONGEST_TITLE:  # that of an ensemble
        title = "\n".join(textwrap.wrap(title.replace("+", " + "), LONGEST_TITLE))
    axes.set_title(title, fontsize=13, fontweight="bold", pad=12)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true emotion's images")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    return figure


def write_confusion(path: Path, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """The counts as CSV: a row a true class, a column a predicted one."""
    with open(path, "w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["true", *classes])
        for name, row in zip(classes, confusion.tolist(), strict=True):
            writer.writerow([name, *row])


def to_markdown(evaluations: Sequence[Evaluation], network: Classifier) -> str:
    """evaluation.md: the accuracies, then precision, recall, F1 and support per class, a section a database."""
    lines = [f"# Evaluation of {network.name}", ""]
    lines += [*_accuracy_table(evaluations), "", *_calibration_table(evaluations)]
    for evaluation in evaluations:
        metrics = class_metrics(evaluation.confusion)
        lines += [
            f"## {evaluation.name}",
            "",
            "| emotion | precision | recall | F1 | images |",
            "|---|--:|--:|--:|--:|",
        ]
        for i, name in enumerate(evaluation.classes):
            shares = " | ".join(f"{100 * metrics[m][i]:.1f}%" for m in ("precision", "recall", "f1"))
            lines.append(f"| {name} | {shares} | {metrics['support'][i]:,} |")
        macro = " | ".join(f"{100 * value:.1f}%" for value in macro_averages(evaluation.confusion).values())
        lines += [f"| **macro average** | {macro} | {metrics['support'].sum():,} |", ""]
        if evaluation.foreign:
            lines += [f"{_foreign(evaluation)}.", ""]
        lines += [f"![confusion matrix of {evaluation.name}](confusion_{evaluation.name}.png)", ""]
    first = next(iter(evaluations[0].confusions))
    lines.append(
        f"Every image of each database counts once. The tables and matrices of the emotions are by the "
        f"{VIEW_NAMES[first]} view; further views average the probabilities of the mirrored image, or of ten crops. "
        "Precision, recall and F1 are 0 where they would divide by zero; macro averages weigh all emotions alike that "
        "there are images of."
    )
    return "\n".join(lines) + "\n"


def _foreign(evaluation: Evaluation) -> str:
    """Which images were left out."""
    counts = ", ".join(f"{count:,} {name}" for name, count in evaluation.foreign.items())
    return f"Left out, since the net has no such class: {counts}"


def _accuracy_table(evaluations: Sequence[Evaluation]) -> list[str]:
    first = evaluations[0]
    heads = ["database", "images", *(VIEW_NAMES[view] for view in first.confusions)]
    heads += [f"{VIEW_NAMES[view]}, without images of the training set" for view in first.unseen]
    rows = []
    for evaluation in evaluations:
        main, *others = map(_percent, evaluation.confusions.values())
        cells = [evaluation.name, f"{evaluation.confusion.sum():,}", f"**{main}**", *others]
        for counts in evaluation.unseen.values():
            cells.append(_percent(counts) + (f" of {counts.sum():,}" if evaluation.left_out else ""))
        rows.append("| " + " | ".join(cells) + " |")
    return ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1), *rows]


def _calibration_table(evaluations: Sequence[Evaluation]) -> list[str]:
    calibrated = [(e.name, e.calibration) for e in evaluations if e.calibration is not None]
    if not calibrated:
        return []
    temperature = calibrated[0][1].temperature
    lines = [
        f"Expected calibration error ({BINS} bins) and negative log-likelihood, as trained and with the logits divided "
        f"by the temperature {temperature:.4f}, which changes no answer:",
        "",
        "| database | ECE | calibrated | NLL | calibrated |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, calibration in calibrated:
        before, after = calibration.before.error, calibration.after.error
        likelihoods = f"{calibration.likelihood_before:.4f} | {calibration.likelihood_after:.4f}"
        lines.append(f"| {name} | {100 * before:.2f}% | {100 * after:.2f}% | {likelihoods} |")
    return [*lines, "", "![reliability diagrams](reliability.png)", ""]


def _percent(confusion: np.ndarray) -> str:
    return f"{100 * _share(confusion)['accuracy']:.2f}%"


def print_summary(evaluation: Evaluation) -> None:
    """The figures of one database for people: the accuracies in a line, then a table of the emotions."""
    (_, main), *others = evaluation.confusions.items()
    parts = [f"{_percent(main)} of {main.sum():,} images"]
    parts += [f"{_percent(counts)} {VIEW_NAMES[view]}" for view, counts in others]
    if evaluation.unseen:
        shares = ", ".join(f"{_percent(counts)} {VIEW_NAMES[view]}" for view, counts in evaluation.unseen.items())
        parts.append(f"without the {evaluation.left_out:,} that stand in the training set too {shares}")
    if evaluation.calibration is not None:
        before, after = evaluation.calibration.before.error, evaluation.calibration.after.error
        parts.append(f"calibration error {100 * before:.2f}%, calibrated {100 * after:.2f}%")
    metrics = class_metrics(evaluation.confusion)
    width = max(13, *(len(name) for name in evaluation.classes))
    print(f"{evaluation.name}: accuracy {', '.join(parts)}")
    if evaluation.foreign:
        print(f"  {_foreign(evaluation)}")
    print(f"  {'':{width}}  precision  recall      F1  images")
    rows = [(name, *(metrics[m][i] for m in metrics)) for i, name in enumerate(evaluation.classes)]
    rows.append(("macro average", *macro_averages(evaluation.confusion).values(), metrics["support"].sum()))
    for name, precision, recall, f1, images in rows:
        print(f"  {name:{width}}  {100 * precision:8.1f}%  {100 * recall:5.1f}%  {100 * f1:5.1f}%  {images:6,}")


def write_evaluation(
    network: Classifier,
    databases: Mapping[str, Sequence[Path]],
    output: Path,
    views: Sequence[str] = ("centre",),
    exclude_duplicates_of: Sequence[Path] = (),
    calibrate_on: str | None = None,
    answer_by: Callable[[Path, Sequence[str], Collection[bytes] | None], Answers] | None = None,
    weights: Path | None = None,
) -> list[Evaluation]:
    """Evaluate on each database and write evaluation.json, evaluation.md, manifest.json and, for each database,
    confusion_NAME.png and .csv, with `calibrate_on` reliability.png, into the folder `output`, which is replaced as a
    whole.

    Parameters
    ----------
    network: the net, or several together.
    databases: for each name the LMDBs that count as one.
    views: by what the faces are seen, names of VIEWS; the first is the one that confusion matrices are of.
    exclude_duplicates_of: LMDBs of the training images, to count also without those.
    calibrate_on: the database on which the temperature is chosen (validation, not test).
    answer_by: what answers for the faces in an LMDB; default: `answer` with the network, which is then one net.
    weights: the net's, beside which the calibration.json of `calibrate_on` goes; default: it is not written.

    Raises StageError for a database that does not fit the net, for an `output` that holds other files, and where there
    is nothing to calibrate on; ValueError for views and a `calibrate_on` that are not known, and several nets without
    `answer_by`.
    """
    output = Path(output)
    check_views(views)
    if calibrate_on is not None and calibrate_on not in databases:
        raise ValueError(f"calibrate_on is {calibrate_on!r}; expected one of {', '.join(databases)}")
    if output.exists() and not (output / RESULT).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise StageError(f"{output}: exists and was not written by this stage; expected a new name")
    settings: dict[str, Any] = {"databases": {name: ",".join(map(str, paths)) for name, paths in databases.items()}}
    settings |= {"views": list(views), "calibrate_on": calibrate_on}
    if any("lmdbs" in files for files in network.files):
        settings["lmdbs"] = [files.get("lmdbs") for files in network.files]
    if exclude_duplicates_of:
        settings["exclude_duplicates_of"] = ",".join(map(str, exclude_duplicates_of))
    stage = Stage(
        "evaluate", [Path(files[what]) for files in network.files for what in ("deploy", "weights", "mean")], settings
    )
    evaluations = _evaluate(network, databases, views, exclude_duplicates_of, answer_by)
    result: dict[str, Any] = {"model": {"name": network.name, "nets": network.files, "classes": list(network.classes)}}
    if calibrate_on is not None:
        chosen = next(evaluation for evaluation in evaluations if evaluation.name == calibrate_on)
        temperature = _calibrate(evaluations, chosen)
        result["calibration"] = {"temperature": temperature, "chosen_on": calibrate_on, "bins": BINS}
        if weights is not None:  # first, so that make does not take an evaluation without it for a whole one
            write_calibration(weights, chosen)
    result["databases"] = {evaluation.name: evaluation.to_dict() for evaluation in evaluations}
    with replace_directory(output) as folder:
        (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
        (folder / "evaluation.md").write_text(to_markdown(evaluations, network), encoding="utf-8")
        _draw(evaluations, network, folder)
        stage.counts = {evaluation.name: _share(evaluation.confusion) for evaluation in evaluations}
        stage.write_manifest(folder / "manifest.json")
    for evaluation in evaluations:
        print_summary(evaluation)
    accuracies = ", ".join(f"{evaluation.name} {_percent(evaluation.confusion)}" for evaluation in evaluations)
    stage.summary(f"{accuracies}; see {output / 'evaluation.md'}")
    return evaluations


def _evaluate(
    network: Classifier,
    databases: Mapping[str, Sequence[Path]],
    views: Sequence[str],
    exclude_duplicates_of: Sequence[Path],
    answer_by: Callable[[Path, Sequence[str], Collection[bytes] | None], Answers] | None,
) -> list[Evaluation]:
    """The figures of each database; arguments and errors are those of `write_evaluation`."""
    training = None
    if exclude_duplicates_of:
        training = {p for path in exclude_duplicates_of for p in fingerprints(read_database(path, network).images)}
    if answer_by is None:
        if not isinstance(network, FaceNetwork):
            raise ValueError(
                f"answer_by is None for {network.name}, which is no single net; expected what answers for it"
            )
        answer_by = partial(answer, network)
    distinct = dict.fromkeys(path for paths in databases.values() for path in paths)
    answers = {path: answer_by(path, views, training) for path in distinct}
    return [count(name, network.classes, {path: answers[path] for path in paths}) for name, paths in databases.items()]


def _calibrate(evaluations: Sequence[Evaluation], chosen: Evaluation) -> float:
    """Choose the temperature on one of the databases, and calibrate all that have images by it; returns it.

    Raises StageError where the chosen one has none.
    """
    if not len(chosen.labels):
        raise StageError(f"--calibrate-on {chosen.name}: none of its images is of a class of the net; expected some")
    temperature = find_temperature(chosen.probabilities, chosen.labels)
    for evaluation in evaluations:
        if len(evaluation.labels):
            evaluation.calibration = calibrate(evaluation.probabilities, evaluation.labels, temperature)
    return temperature


def _draw(evaluations: Sequence[Evaluation], network: Classifier, folder: Path) -> None:
    for evaluation in evaluations:
        name, confusion = evaluation.name, evaluation.confusion
        title = f"{network.name} on {name}: {_percent(confusion)} of {confusion.sum():,}"
        draw_confusion(confusion, evaluation.classes, title).savefig(folder / f"confusion_{name}.png")
        write_confusion(folder / f"confusion_{name}.csv", confusion, evaluation.classes)
    calibrations = [(e.name, e.calibration) for e in evaluations if e.calibration is not None]
    if calibrations:
        draw_reliability(calibrations).savefig(folder / "reliability.png")


def write_calibration(weights: Path, evaluation: Evaluation) -> Path:
    """Write calibration.json beside the weights, where FaceNetwork finds it: a temperature for each views of a face.

    evaluation: that of the database on which the temperatures are chosen. Returns the file's path.
    """
    assert evaluation.calibration is not None
    calibration = {
        "temperatures": {view: find_temperature(p, evaluation.labels) for view, p in evaluation.answers.items()},
        "chosen_on": evaluation.source,
        "images": len(evaluation.labels),
        **evaluation.calibration.to_dict(),
        "weights_sha256": sha256(weights),
    }
    with replace_file(weights.parent / CALIBRATION) as path:
        path.write_text(json.dumps(calibration, indent=1) + "\n")
    return weights.parent / CALIBRATION


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say on what and how is evaluated: those of this command and of `train.ensemble`."""
    parser.add_argument(
        "--lmdb",
        type=_named_database,
        action="append",
        required=True,
        metavar="NAME=PATH[,PATH]",
        help="a database, or several that count as one (repeatable)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results; replaced")
    parser.add_argument(
        "--views",
        nargs="+",
        choices=tuple(VIEWS),
        default=["centre"],
        help="what is seen of a face: the centre crop, it and its mirror image, ten crops (default: centre)",
    )
    parser.add_argument(
        "--exclude-duplicates-of",
        type=lambda text: list(map(Path, text.split(","))),
        default=[],
        metavar="TRAIN_LMDB[,LMDB]",
        help="measure also without the images that these databases hold too",
    )
    parser.add_argument(
        "--calibrate-on",
        metavar="NAME",
        help="choose the temperature on that database, by its centre crops, and say how much it improves",
    )
    add_device_argument(parser)


def check_evaluation_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, list[Path]]:
    """The databases by name; ends the command where options do not fit each other."""
    databases = dict(args.lmdb)
    if len(databases) != len(args.lmdb):
        parser.error("--lmdb: a name is given twice")
    if len(set(args.views)) != len(args.views):
        parser.error("--views: a name is given twice")
    if args.calibrate_on is not None and args.calibrate_on not in databases:
        parser.error(f"--calibrate-on is {args.calibrate_on}; expected one of {', '.join(databases)}")
    if args.calibrate_on is not None and args.views[0] != "centre":
        parser.error(f"--calibrate-on: the first of --views is {args.views[0]}; expected centre")
    return databases


def _named_database(text: str) -> tuple[str, list[Path]]:
    name, _, value = text.partition("=")
    paths = value.split(",")
    if not all(paths) or len(set(paths)) != len(paths) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected NAME=PATH, such as test=data/fer2013/lmdb/test_lmdb, or NAME=PATH,PATH, each path once"
        )
    return name, list(map(Path, paths))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("deploy", type=Path, metavar="DEPLOY.prototxt", help="the net, ending in a Softmax")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS.caffemodel", help="what training wrote")
    parser.add_argument("--mean", type=Path, required=True, metavar="MEAN.binaryproto", help="the training set's mean")
    add_evaluation_arguments(parser)
    args = parser.parse_args()
    databases = check_evaluation_arguments(parser, args)
    network = FaceNetwork(args.deploy, args.weights, args.mean, args.device, calibrated=False)
    write_evaluation(
        network,
        databases,
        args.output,
        args.views,
        args.exclude_duplicates_of,
        args.calibrate_on,
        weights=args.weights,
    )
    if args.calibrate_on is not None:
        path = args.weights.parent / CALIBRATION
        print(f"evaluate: `predict` divides the logits by the temperatures in {path}")


if __name__ == "__main__":
    run_main(main)
