"""A Markdown table of all evaluated runs of a data set, runs that differ in the seed alone in one row.

    python -m train.summary data/fer2013

Looks for runs/RUN/evaluation/evaluation.json anywhere below the folder: also in unaligned/ and ferplus/.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe.errors import CaffeError
from caffe.io import read_net_parameter, read_solver_parameter
from preprocessing.stage import StageError, run_main

HEADS = ("network", "faces", "seeds", "epochs", "val", "test", "mirrored", "ten crops", "without duplicates")


@dataclass
class Result:
    """One evaluated run.

    Attributes
    ----------
    network: the network, its recipe, and what else it was trained on or from; or an ensemble's members.
    faces: the alignment, and FER+ where the labels are its.
    seed, epochs: None for an ensemble, whose members have their own.
    databases: what evaluation.json says of each database.
    settings: all settings but the seed, as text: runs with the same are repetitions.
    """

    network: str
    faces: str
    seed: int | None
    epochs: float | None
    databases: dict[str, dict[str, Any]]
    settings: str


def read_result(path: Path, root: Path) -> Result:
    """The run that an evaluation.json, below the data set's folder `root`, is about.

    Raises StageError for files that training and evaluation did not write so.
    """
    run = path.parent.parent
    place = run.relative_to(root).parts
    faces = "none" if "unaligned" in place else "mtcnn"
    if "ferplus" in place:
        faces += ", FER+"
    try:
        evaluation = json.loads(path.read_text())
        databases = evaluation["databases"]
        if len(evaluation["model"]["nets"]) > 1:
            name = f"ensemble: {evaluation['model']['name'].replace('+', ' + ')}"
            return Result(name, faces, None, None, databases, str(path))
        manifest = json.loads((run / "manifest.json").read_text())
        settings = manifest["settings"]
        name = f"{settings['network']} {settings.get('solver') or ''}".strip()
        if settings["train_on"] != "train":
            name += f" ({settings['train_on']})"
        initial = [entry for entry in manifest["inputs"] if entry["file"].endswith(".caffemodel")]
        if initial:
            name += f" from {', '.join(Path(entry['file']).name for entry in initial)}"
        same = f"{name}\n{faces}\n{[entry['sha256'] for entry in initial]}\n{_settings(run)}"
        return Result(name, faces, settings["seed"], manifest["counts"]["epochs"], databases, same)
    except (ValueError, KeyError, TypeError, AttributeError, CaffeError) as error:
        raise StageError(
            f"{path}: {type(error).__name__}: {error}; expected what `python -m train` and `train.evaluate` write"
        ) from error


def _settings(run: Path) -> str:
    """The solver and the net, without the seed and the names of files."""
    solver, net = read_solver_parameter(run / "solver.prototxt"), read_net_parameter(run / "train_val.prototxt")
    for field in ("random_seed", "snapshot_prefix", "net", "weights"):
        solver.ClearField(field)
    for layer in net.layer:
        layer.data_param.ClearField("source")
    return f"{solver}\n{net}"


def find_results(folder: Path) -> list[Result]:
    """All evaluated runs below the data set's folder, by path. Raises StageError where there is none."""
    if not folder.is_dir():
        raise StageError(f"{folder}: no such folder; expected a data set's, such as data/fer2013")
    paths = sorted(p for p in folder.glob("**/evaluation/evaluation.json") if p.parent.parent.parent.name == "runs")
    if not paths:
        raise StageError(f"{folder}: no evaluated run; expected runs/RUN/evaluation/evaluation.json (make evaluate)")
    return [read_result(path, folder) for path in paths]


def to_markdown(results: Sequence[Result]) -> str:
    """The table: accuracies in percent; where several seeds of the same settings are there, mean ± standard deviation
    (of a sample: divided by n - 1) over them. The best test accuracy comes first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.settings, []).append(result)
    by_test = sorted(groups.values(), key=lambda group: -max(map(_test, group), default=0.0))
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|" + "--:|" * (len(HEADS) - 2)]
    lines += ["| " + " | ".join(_row(group)) + " |" for group in by_test]
    return "\n".join(lines) + "\n"


def _test(result: Result) -> float:
    return result.databases.get("test", {}).get("accuracy", 0.0)


def _row(group: Sequence[Result]) -> list[str]:
    first = group[0]
    seeds = ", ".join(map(str, sorted(result.seed for result in group if result.seed is not None)))
    epochs = sorted({round(result.epochs) for result in group if result.epochs is not None})
    span = f"{epochs[0]}–{epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs))
    return [
        first.network,
        first.faces,
        seeds or "–",
        span or "–",
        _spread(group, lambda databases: databases["val"]["accuracy"]),
        _spread(group, lambda databases: databases["test"]["accuracy"]),
        _spread(group, lambda databases: databases["test"]["views"]["mirror"]["accuracy"]),
        _spread(group, lambda databases: databases["test"]["views"]["ten_crop"]["accuracy"]),
        _spread(group, lambda databases: databases["test"]["without_training_duplicates"]["accuracy"]),
    ]


def _spread(group: Sequence[Result], figure: Callable[[dict[str, Any]], float]) -> str:
    """The mean and spread of a figure; – where a run lacks it."""
    try:
        values = [100 * figure(result.databases) for result in group]
    except KeyError:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}%"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}%"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.summary", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a data set's folder, such as data/fer2013")
    print(to_markdown(find_results(parser.parse_args().folder)), end="")


if __name__ == "__main__":
    run_main(main)
