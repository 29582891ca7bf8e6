"""Evaluate several trained nets together: the mean of their probabilities, each net with its own crop and mean.

    python -m train.ensemble data/fer2013/runs/face_emotion_net data/fer2013/runs/mini_xception \\
        --lmdb val=data/fer2013/lmdb/val_lmdb --lmdb test=data/fer2013/lmdb/test_lmdb --output DIR

All nets weigh alike. `make ensemble MODELS="a b"` trains those that are not trained yet, and runs this. A net that was
trained on faces aligned otherwise sees those, where it stands as FOLDER@LMDBS, the folder of databases called alike:

    python -m train.ensemble data/fer2013/runs/face_emotion_net \\
        data/fer2013/unaligned/runs/face_emotion_net@data/fer2013/unaligned/lmdb --lmdb …
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from preprocessing.network_input import Classifier, FaceNetwork
from preprocessing.stage import StageError, run_main
from train.evaluate import (
    Answers,
    Faces,
    add_evaluation_arguments,
    check_evaluation_arguments,
    read_database,
    unseen,
    write_evaluation,
)


def is_chosen(weights: Path) -> bool:
    """Whether a .caffemodel in a run's folder may be the run's chosen weights, by its name.

    Snapshots (NAME_iter_N.caffemodel, …), best.caffemodel and init.caffemodel are not: they stand beside these.
    """
    return weights.stem not in ("best", "init") and "_iter_" not in weights.stem


def trained_files(folder: Path) -> tuple[Path, Path, Path]:
    """The deploy.prototxt, the .caffemodel and the mean.binaryproto of a finished run, or of a model that ships.

    Of a run's weights those count that it has chosen: see `is_chosen`.

    Raises StageError for a folder that lacks one of them, or holds several weights.
    """
    expected = "expected the folder of a finished run, or of a model that ships"
    if not folder.is_dir():
        raise StageError(f"{folder}: no such folder; {expected}")
    found = [path for path in sorted(folder.glob("*.caffemodel")) if is_chosen(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no weights (is it trained to the end?)"
        raise StageError(f"{folder}: {names}; {expected}, with one NAME.caffemodel")
    files = folder / "deploy.prototxt", found[0], folder / "mean.binaryproto"
    for path in files:
        if not path.is_file():
            raise StageError(f"{path}: no such file; {expected}")
    return files


class Ensemble:
    """Several nets as one: the mean of their probabilities, all of the same faces.

    Parameters
    ----------
    networks: at least two, for faces of one size and with the same classes; those with databases of their own may see
        other channels.
    lmdbs: for each net None, or the folder of the databases that it sees in place of those that are named: they have
        the same names, and hold the same faces in the same order, aligned otherwise. Default: None for all.

    Attributes: `name`, `files`, `face_shape` and `classes`, as a FaceNetwork's; `files` says each net's `lmdbs` too,
    where it has its own.

    Raises StageError where faces or classes differ, naming both nets.
    """

    def __init__(self, networks: Sequence[FaceNetwork], lmdbs: Sequence[Path | None] | None = None) -> None:
        if len(networks) < 2:
            raise StageError(f"an ensemble of {len(networks)}; expected two nets or more")
        self.networks = list(networks)
        self.lmdbs = [None] * len(networks) if lmdbs is None else list(lmdbs)
        first = self.networks[0]
        self.classes = first.classes
        seeing = [n for n, place in zip(self.networks, self.lmdbs, strict=True) if place is None]
        self.face_shape = seeing[0].face_shape if seeing else None
        for network, place in zip(self.networks, self.lmdbs, strict=True):
            mine, others = network.face_shape, self.face_shape if place is None else None
            if others not in (None, mine):
                raise StageError(
                    f"{network.weights}: sees faces of {mine}; expected {others}, as {seeing[0].weights} does"
                )
            if network.classes != self.classes:
                raise StageError(
                    f"{network.weights}: classes is {network.classes}; expected {self.classes}, as {first.weights} has"
                )
        self.name = "+".join(network.name for network in self.networks)
        self.files = [
            files | ({} if folder is None else {"lmdbs": str(folder)})
            for network, folder in zip(self.networks, self.lmdbs, strict=True)
            for files in network.files
        ]

    def answer(self, path: Path, views: Sequence[str], training: Collection[bytes] | None = None) -> Answers:
        """The mean of what the nets say of the faces in an LMDB; arguments as those of `train.evaluate.answer`.

        Which of the faces stand in the training set, and which are left out, is told by the LMDB at `path`.

        Raises StageError as `train.evaluate.read_database` does, and for a net's own LMDB with other faces.
        """
        places = [path if folder is None else folder / path.name for folder in self.lmdbs]
        # who sees each; where none does, the ensemble, which takes any
        seers: list[tuple[Path, Classifier]] = [*zip(places, self.networks, strict=True), (path, self)]
        read: dict[Path, Faces] = {}
        for place, seer in seers:
            if place not in read:
                read[place] = read_database(place, seer)
            elif seer.face_shape not in (None, read[place].images.shape[1:]):
                read_database(place, seer)  # which says what it expects
        faces = read[path]
        for place, own in read.items():
            if not np.array_equal(own.labels, faces.labels):
                raise StageError(
                    f"{place}: its {len(own.labels):,} faces are not those of {path} ({len(faces.labels):,}), or in "
                    "another order; expected the same data set, aligned otherwise"
                )
        answers = [
            [network.probabilities(read[place].images, view) for view in views]
            for network, place in zip(self.networks, places, strict=True)
        ]
        probabilities = {view: np.mean(of_view, axis=0) for view, *of_view in zip(views, *answers, strict=True)}
        return Answers(faces.labels, probabilities, unseen(faces.images, training), faces.foreign)


def alignment(place: Path) -> str:
    """How the faces of a folder in data/DATASET are aligned: the value of ALIGN, by where the Makefile puts them."""
    parts = place.parts
    inside = parts[len(parts) - parts[::-1].index("data") + 1 :] if "data" in parts else parts
    return "none" if "unaligned" in inside else "both" if "both" in inside else "mtcnn"


def member(text: str) -> tuple[Path, Path | None]:
    """A member's folder, and the folder of its databases where it stands as FOLDER@LMDBS; else None.

    Paths may hold an @ themselves: of several places to part the two, one between existing folders counts.
    """
    whole = Path(text)
    if whole.is_dir():
        return whole, None
    places = [place for place, letter in enumerate(text[:-1]) if letter == "@"]
    splits = [(Path(text[:place]), Path(text[place + 1 :])) for place in reversed(places)]
    known = [split for split in splits if split[0].is_dir()]
    return next((split for split in known if split[1].is_dir()), known[0] if known else (whole, None))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.ensemble", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "members",
        type=member,
        nargs="+",
        metavar="FOLDER[@LMDBS]",
        help="a finished run's folder, or a shipped model's; behind @ the folder of databases that it sees in place of "
        "those of --lmdb, the same faces aligned otherwise",
    )
    add_evaluation_arguments(parser)
    args = parser.parse_args()
    databases = check_evaluation_arguments(parser, args)
    networks = [FaceNetwork(*trained_files(folder), args.device, calibrated=False) for folder, _ in args.members]
    for network, (folder, lmdbs) in zip(networks, args.members, strict=True):
        # a run's name says the recipe and the seed as well
        network.name = folder.name if lmdbs is None else f"{folder.name}@{alignment(lmdbs)}"
    ensemble = Ensemble(networks, [lmdbs for _, lmdbs in args.members])
    write_evaluation(
        ensemble, databases, args.output, args.views, args.exclude_duplicates_of, args.calibrate_on, ensemble.answer
    )


if __name__ == "__main__":
    run_main(main)
