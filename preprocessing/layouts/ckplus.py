"""CK+, the extended Cohn-Kanade data set (Lucey et al. 2010): sequences of frames, some of them labelled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from preprocessing.layouts.listing import Item, Listing, canonical, walk
from preprocessing.stage import StageError

FRAMES = 3  # the last frames of a sequence of CK+ that carry its label: the usual choice
EMOTIONS = ("neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
_FRAME = re.compile(r"(?:.*/)?(?P<person>S[0-9]{3})/(?P<sequence>[0-9]{3})/[^/]*\.png", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:.*/)?(?P<peak>(?P<person>S[0-9]{3})_(?P<sequence>[0-9]{3})_[0-9]+)_emotion\.txt", re.IGNORECASE
)
_CROPPED = re.compile(r"(?:.*/)?[^/]+/(?P<person>S[0-9]{3})_(?P<sequence>[0-9]{3})_[0-9]+\.png", re.IGNORECASE)


def read_ckplus(source: Path, frames: int = FRAMES, neutral: bool = False) -> Listing:
    """The labelled frames of CK+ (Lucey et al. 2010), the extended Cohn-Kanade data set, as it is handed out.

    Images are `S005/001/S005_001_00000011.png` and labels `S005_001_00000011_emotion.txt`, a number such as
    `3.0000000e+00`, each anywhere below the source. A sequence goes from the neutral face to the peak of the
    expression, the frame that its label's file names; sequences without a label are left out.

    frames: how many frames, up to the peak, carry the sequence's label.
    neutral: take the first frame of each labelled sequence as well, as neutral.

    Kaggle's CK+48 has faces of 48x48 pixels, cut out of the last three frames, in folders that are the labels:
    `anger/S010_004_00000017.png`; no frame is neutral.

    There is no split; the person is the subject, `S005`. Raises StageError for a source without images or labels, and
    for a sequence that lies in two folders.
    """
    sequences: dict[tuple[str, str], list[str]] = {}
    labels: list[tuple[str, re.Match[str]]] = []
    cropped: dict[tuple[str, str], list[str]] = {}
    for file in sorted(walk(source)):
        if match := _FRAME.fullmatch(file):
            sequences.setdefault((match["person"].upper(), match["sequence"]), []).append(file)
        elif match := _LABEL.fullmatch(file):
            labels.append((file, match))
        elif match := _CROPPED.fullmatch(file):
            cropped.setdefault((match["person"].upper(), match["sequence"]), []).append(file)
    if not (sequences or labels) and any(_folder(files) in EMOTIONS for files in cropped.values()):
        return _cropped(source, cropped, frames, neutral)
    for what, found in (("images S005/001/S005_001_00000011.png", sequences), ("labels *_emotion.txt", labels)):
        if not found:
            raise StageError(f"{source}: no {what} anywhere below it; expected CK+'s folder with images and emotions")
    _check_folders(source, sequences)
    listing = Listing(annotations=[source / file for file, _ in labels])
    seen: dict[tuple[str, str], str] = {}
    for file, match in labels:
        key = (match["person"].upper(), match["sequence"])
        try:
            if key in seen:
                raise ValueError(f"a second label of this sequence, after {seen[key]}; expected one")
            seen[key] = file
            emotion = _emotion(source / file)
            listing.items += _frames(sequences.get(key, []), match["peak"], emotion, key[0], frames, neutral)
        except ValueError as error:
            listing.rejected.append((file, str(error)))
    if unlabelled := len(sequences.keys() - seen.keys()):
        listing.left_out["sequences without a label"] = unlabelled
    listing.items.sort()
    return listing


def _check_folders(source: Path, sequences: dict[tuple[str, str], list[str]]) -> None:
    for key, files in sequences.items():
        folders = sorted({file.rpartition("/")[0] for file in files})
        if len(folders) > 1:
            raise StageError(
                f"{source}: sequence {'/'.join(key)} lies in {folders[0]} and in {folders[1]}; expected one"
            )


def _folder(files: Sequence[str]) -> str:
    """The name of the folder that files lie in, as an emotion."""
    return canonical(files[0].split("/")[-2])


def _cropped(source: Path, sequences: dict[tuple[str, str], list[str]], frames: int, neutral: bool) -> Listing:
    """CK+48: the last `frames` of each sequence."""
    if neutral:
        raise StageError(f"{source}: --neutral is given, but these faces have no first frames; expected CK+'s folder")
    _check_folders(source, sequences)
    listing = Listing()
    for (person, _), files in sequences.items():
        emotion = _folder(files)
        try:
            if emotion not in EMOTIONS:
                raise ValueError(f"emotion folder {emotion!r}; expected one of {', '.join(EMOTIONS)}")
            listing.items += _frames(files, Path(files[-1]).stem, emotion, person, frames, neutral=False)
        except ValueError as error:
            listing.rejected.append((files[-1], str(error)))
    listing.items.sort()
    return listing


def _emotion(path: Path) -> str:
    text = path.read_bytes().decode("latin-1").strip()
    numbers = {float(label): name for label, name in enumerate(EMOTIONS)}
    expected = f"expected a number of 0..{len(EMOTIONS) - 1}, such as 3.0000000e+00"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"label {text[:40]!r}; {expected}") from None
    if value not in numbers:
        raise ValueError(f"label {text[:40]!r}; {expected}")
    return numbers[value]


def _frames(files: Sequence[str], peak: str, emotion: str, person: str, frames: int, neutral: bool) -> list[Item]:
    """The frames of one sequence that are taken; ValueError where there are too few or the peak is not there."""
    if not files:
        raise ValueError("no images of this sequence")
    stems = [Path(file).stem.lower() for file in files]
    if peak.lower() not in stems:
        raise ValueError(f"no frame {peak}.png among the {len(files)} images of this sequence")
    last = stems.index(peak.lower()) + 1
    if last < frames + neutral:
        raise ValueError(
            f"{last} frames up to the peak; expected {frames + neutral} or more ({frames} of the expression"
            f"{', and the first as neutral' if neutral else ''})"
        )
    first = [Item(files[0], None, "neutral", person)] if neutral else []
    return first + [Item(file, None, emotion, person) for file in files[last - frames : last]]
