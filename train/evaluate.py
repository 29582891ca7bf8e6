"""Measure a trained net on whole databases: accuracy, confusion matrix, precision, recall and F1 per emotion.

    python -m train.evaluate deploy.prototxt NET.caffemodel --mean mean.binaryproto \\
        --lmdb val=data/fer2013/lmdb/val_lmdb --lmdb test=data/fer2013/lmdb/test_lmdb --output DIR
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from caffe.errors import CaffeError
from caffe.io import DatumReader
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import Stage, StageError, add_device_argument, replace_directory, run_main

RESULT = "evaluation.json"


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


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b != 0)


@dataclass
class Evaluation:
    """One database's figures.

    Attributes
    ----------
    name: as `--lmdb NAME=PATH` calls it.
    confusion: counts, true class by predicted class.
    mirrored: the same, for probabilities averaged with the mirrored image's; None where not asked for.
    unseen: the same as `confusion`, without the images that stand in the training database too; None where not asked.
    unseen_mirrored: both.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    confusion: np.ndarray
    mirrored: np.ndarray | None = None
    unseen: np.ndarray | None = None
    unseen_mirrored: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """What evaluation.json says of the database; shares are 0..1."""
        metrics = class_metrics(self.confusion)
        result: dict[str, Any] = {"source": self.source, **_share(self.confusion)}
        if self.mirrored is not None:
            result["mirrored"] = _share(self.mirrored)
        if self.unseen is not None:
            result["without_training_duplicates"] = {
                "duplicates": int(self.confusion.sum() - self.unseen.sum()),
                **_share(self.unseen),
            }
            if self.unseen_mirrored is not None:
                result["without_training_duplicates"]["mirrored"] = _share(self.unseen_mirrored)
        result["macro"] = {name: float(metrics[name].mean()) for name in ("precision", "recall", "f1")}
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


def read_database(path: Path, network: FaceNetwork) -> tuple[np.ndarray, np.ndarray]:
    """All images (N×C×H×W, of the net's faces' size) and labels of an LMDB of Datum, each record once.

    Raises StageError for what is no such database, images of another size, and labels outside the net's classes.
    """
    try:
        read = DatumReader(path).read_all()
    except CaffeError as error:
        raise StageError(str(error)) from error
    if read is None or read[0].shape[1:] != network.face_shape:
        found = "of several sizes" if read is None else "×".join(map(str, read[0].shape[1:]))
        raise StageError(f"{path}: its images are {found}; the mean is {'×'.join(map(str, network.face_shape))}")
    images, labels = read
    wrong = np.flatnonzero((labels < 0) | (labels >= len(network.classes)))
    if len(wrong):
        raise StageError(
            f"{path}: record {wrong[0]} has the label {labels[wrong[0]]}; expected 0..{len(network.classes) - 1}, "
            "the classes of the net"
        )
    return images, labels


def fingerprints(images: np.ndarray) -> list[bytes]:
    """A hash of the pixels of each image: equal images, whatever their labels and names, have equal ones."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def evaluate(
    network: FaceNetwork, name: str, source: Path, mirror: bool = False, training: set[bytes] | None = None
) -> Evaluation:
    """Run every record of the LMDB `source` through the net once (twice with `mirror`) and count.

    Parameters
    ----------
    network: the trained net.
    name: what the results are called.
    source: the LMDB.
    mirror: also count with the probabilities averaged with the mirrored image's.
    training: fingerprints of the training images; also count without those.
    """
    images, labels = read_database(source, network)
    classes = len(network.classes)
    kept = np.array([print_ not in training for print_ in fingerprints(images)]) if training is not None else None
    counts: list[np.ndarray | None] = []
    for mirrored in (False, True):
        if mirrored and not mirror:
            counts += [None, None]
            continue
        predicted = network.probabilities(images, mirror=mirrored).argmax(axis=1)
        counts.append(confusion_matrix(labels, predicted, classes))
        counts.append(None if kept is None else confusion_matrix(labels[kept], predicted[kept], classes))
    confusion = counts[0]
    assert confusion is not None
    return Evaluation(name, str(source), network.classes, confusion, counts[2], counts[1], counts[3])


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """The confusion matrix as a picture: shade and percentage by row (the diagonal is the recall), and counts."""
    support = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support != 0)
    count = len(classes)
    size = max(5.5, 0.95 * count + 1.6)
    figure = Figure(figsize=(size + 0.6, size), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
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
    axes.set_yticks(range(count), [f"{name}\n({n:,})" for name, n in zip(classes, support[:, 0], strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (images)")
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


def to_markdown(evaluations: Sequence[Evaluation], network: FaceNetwork) -> str:
    """evaluation.md: the accuracies, then precision, recall, F1 and support per class, a section a database."""
    lines = [f"# Evaluation of {Path(network.weights).name}", ""]
    lines += [*_accuracy_table(evaluations), ""]
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
        macro = " | ".join(f"{100 * metrics[m].mean():.1f}%" for m in ("precision", "recall", "f1"))
        lines += [f"| **macro average** | {macro} | {metrics['support'].sum():,} |", ""]
        lines += [f"![confusion matrix of {evaluation.name}](confusion_{evaluation.name}.png)", ""]
    lines.append(
        "Every image of each database was run through the net once. Precision, recall and F1 are 0 where they would "
        "divide by zero; macro averages weigh all emotions alike."
    )
    return "\n".join(lines) + "\n"


def _accuracy_table(evaluations: Sequence[Evaluation]) -> list[str]:
    heads, columns = ["database", "images", "accuracy"], ["|---|--:|--:|"]
    first = evaluations[0]
    optional = [
        ("with the mirrored image", first.mirrored, "mirrored"),
        ("without images of the training set", first.unseen, "unseen"),
        ("both", first.unseen_mirrored, "unseen_mirrored"),
    ]
    heads += [head for head, asked, _ in optional if asked is not None]
    columns[0] += "--:|" * (len(heads) - 3)
    for evaluation in evaluations:
        cells = [evaluation.name, f"{evaluation.confusion.sum():,}", f"**{_percent(evaluation.confusion)}**"]
        for _, asked, attribute in optional:
            if asked is not None:
                counts = getattr(evaluation, attribute)
                left_out = evaluation.confusion.sum() - counts.sum()
                cells.append(_percent(counts) + (f" of {counts.sum():,}" if left_out else ""))
        columns.append("| " + " | ".join(cells) + " |")
    return ["| " + " | ".join(heads) + " |", *columns]


def _percent(confusion: np.ndarray) -> str:
    return f"{100 * _share(confusion)['accuracy']:.2f}%"


def print_summary(evaluation: Evaluation) -> None:
    """The figures of one database for people: the accuracies in a line, then a table of the emotions."""
    parts = [f"{_percent(evaluation.confusion)} of {evaluation.confusion.sum():,} images"]
    if evaluation.mirrored is not None:
        parts.append(f"{_percent(evaluation.mirrored)} with the mirrored image")
    if evaluation.unseen is not None:
        left_out = evaluation.confusion.sum() - evaluation.unseen.sum()
        parts.append(f"{_percent(evaluation.unseen)} without the {left_out:,} that stand in the training set too")
    if evaluation.unseen_mirrored is not None:
        parts.append(f"{_percent(evaluation.unseen_mirrored)} with both")
    metrics = class_metrics(evaluation.confusion)
    width = max(13, *(len(name) for name in evaluation.classes))
    print(f"{evaluation.name}: accuracy {', '.join(parts)}")
    print(f"  {'':{width}}  precision  recall      F1  images")
    rows = [(name, *(metrics[m][i] for m in metrics)) for i, name in enumerate(evaluation.classes)]
    rows.append(
        ("macro average", *(metrics[m].mean() for m in ("precision", "recall", "f1")), metrics["support"].sum())
    )
    for name, precision, recall, f1, images in rows:
        print(f"  {name:{width}}  {100 * precision:8.1f}%  {100 * recall:5.1f}%  {100 * f1:5.1f}%  {images:6,}")


def write_evaluation(
    network: FaceNetwork,
    databases: dict[str, Path],
    mean: Path,
    output: Path,
    mirror: bool = False,
    exclude_duplicates_of: Path | None = None,
) -> list[Evaluation]:
    """Evaluate on each database and write evaluation.json, evaluation.md, manifest.json and, for each database,
    confusion_NAME.png and .csv into the folder `output`, which is replaced as a whole.

    Raises StageError for a database that does not fit the net, and for an `output` that holds other files.
    """
    output = Path(output)
    if output.exists() and not (output / RESULT).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise StageError(f"{output}: exists and was not written by this stage; expected a new name")
    settings = {"databases": {name: str(path) for name, path in databases.items()}, "mirror": mirror}
    stage = Stage("evaluate", [Path(network.deploy), Path(network.weights), mean], settings)
    training = None
    if exclude_duplicates_of is not None:
        stage.settings["exclude_duplicates_of"] = str(exclude_duplicates_of)
        training = set(fingerprints(read_database(exclude_duplicates_of, network)[0]))
    evaluations = [evaluate(network, name, path, mirror, training) for name, path in databases.items()]
    model = {"deploy": network.deploy, "weights": network.weights, "mean": str(mean)}
    with replace_directory(output) as folder:
        results = {evaluation.name: evaluation.to_dict() for evaluation in evaluations}
        (folder / RESULT).write_text(json.dumps({"model": model, "databases": results}, indent=1) + "\n")
        (folder / "evaluation.md").write_text(to_markdown(evaluations, network), encoding="utf-8")
        for evaluation in evaluations:
            name, confusion = evaluation.name, evaluation.confusion
            title = f"{Path(network.weights).stem} on {name}: {_percent(confusion)} of {confusion.sum():,}"
            draw_confusion(confusion, evaluation.classes, title).savefig(folder / f"confusion_{name}.png")
            write_confusion(folder / f"confusion_{name}.csv", confusion, evaluation.classes)
            stage.counts[name] = _share(confusion)
        stage.write_manifest(folder / "manifest.json")
    for evaluation in evaluations:
        print_summary(evaluation)
    accuracies = ", ".join(f"{evaluation.name} {_percent(evaluation.confusion)}" for evaluation in evaluations)
    stage.summary(f"{accuracies}; see {output / 'evaluation.md'}")
    return evaluations


def _named_database(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=PATH, such as test=data/fer2013/lmdb/test_lmdb")
    return name, Path(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("deploy", type=Path, metavar="DEPLOY.prototxt", help="the net, ending in a Softmax")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS.caffemodel", help="what training wrote")
    parser.add_argument("--mean", type=Path, required=True, metavar="MEAN.binaryproto", help="the training set's mean")
    parser.add_argument(
        "--lmdb",
        type=_named_database,
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a database (repeatable)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results; replaced")
    parser.add_argument("--mirror", action="store_true", help="also with the mirrored image averaged in")
    parser.add_argument(
        "--exclude-duplicates-of", type=Path, metavar="TRAIN_LMDB", help="also without the images that stand there too"
    )
    add_device_argument(parser)
    args = parser.parse_args()
    databases = dict(args.lmdb)
    if len(databases) != len(args.lmdb):
        parser.error("--lmdb: a name is given twice")
    network = FaceNetwork(args.deploy, args.weights, args.mean, args.device)
    write_evaluation(network, databases, args.mean, args.output, args.mirror, args.exclude_duplicates_of)


if __name__ == "__main__":
    run_main(main)
