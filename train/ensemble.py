"""Evaluate several trained nets together: the mean of their probabilities, each net with its own crop and mean.

    python -m train.ensemble data/fer2013/runs/face_emotion_net data/fer2013/runs/mini_xception \\
        --lmdb val=data/fer2013/lmdb/val_lmdb --lmdb test=data/fer2013/lmdb/test_lmdb --output DIR

All nets weigh alike. `make ensemble MODELS="a b"` trains those that are not trained yet, and runs this.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocessing.network_input import FaceNetwork
from preprocessing.stage import StageError, run_main
from train.evaluate import add_evaluation_arguments, check_evaluation_arguments, write_evaluation


def model_files(folder: Path) -> tuple[Path, Path, Path]:
    """The deploy.prototxt, the .caffemodel and the mean.binaryproto of a finished run, or of a model that ships.

    Snapshots (NAME_iter_N.caffemodel, …), best.caffemodel and init.caffemodel do not count: they stand beside a run's
    chosen weights.

    Raises StageError for a folder that lacks one of them, or holds several weights.
    """
    expected = "expected the folder of a finished run, or of a model that ships"
    if not folder.is_dir():
        raise StageError(f"{folder}: no such folder; {expected}")
    others = ("best", "init")
    found = [p for p in sorted(folder.glob("*.caffemodel")) if p.stem not in others and "_iter_" not in p.stem]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no weights (is it trained to the end?)"
        raise StageError(f"{folder}: {names}; {expected}, with one NAME.caffemodel")
    files = folder / "deploy.prototxt", found[0], folder / "mean.binaryproto"
    for path in files:
        if not path.is_file():
            raise StageError(f"{path}: no such file; {expected}")
    return files


class Ensemble:
    """Several nets as one: the mean of their probabilities.

    Parameters
    ----------
    networks: at least two, for faces of one size and with the same classes.

    Attributes: as a FaceNetwork's.

    Raises StageError where faces or classes differ, naming both nets.
    """

    def __init__(self, networks: Sequence[FaceNetwork]) -> None:
        if len(networks) < 2:
            raise StageError(f"an ensemble of {len(networks)}; expected two nets or more")
        self.networks = list(networks)
        first = self.networks[0]
        self.face_shape, self.classes = first.face_shape, first.classes
        for network in self.networks[1:]:
            for what in ("face_shape", "classes"):
                mine, others = getattr(network, what), getattr(first, what)
                if mine != others:
                    raise StageError(f"{network.weights}: {what} is {mine}; expected {others}, as {first.weights} has")
        self.name = "+".join(network.name for network in self.networks)
        self.files = [files for network in self.networks for files in network.files]

    def probabilities(self, faces: np.ndarray, views: str = "centre") -> np.ndarray:
        """The mean of the nets' probabilities, float64, N×classes; arguments and errors as FaceNetwork's."""
        return np.mean([network.probabilities(faces, views) for network in self.networks], axis=0)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.ensemble", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="a finished run's folder, or a shipped model's"
    )
    add_evaluation_arguments(parser)
    args = parser.parse_args()
    databases = check_evaluation_arguments(parser, args)
    members = [FaceNetwork(*model_files(folder), args.device, calibrated=False) for folder in args.folders]
    for member, folder in zip(members, args.folders, strict=True):
        member.name = folder.name  # a run's name says the recipe and the seed as well
    write_evaluation(
        Ensemble(members), databases, args.output, args.views, args.exclude_duplicates_of, args.calibrate_on
    )


if __name__ == "__main__":
    run_main(main)
