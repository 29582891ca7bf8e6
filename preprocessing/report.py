"""What a data set is like, for people: counts, pictures, blank faces, duplicates, faces that were not found.

python -m preprocessing.report data/fer2013/images data/fer2013/aligned data/fer2013/report.md
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

from preprocessing.datasets import SIZE, SPLITS, Face, is_blank, list_faces, read_grey, tree_classes
from preprocessing.pictures import montage
from preprocessing.stage import Stage, StageError, progress, replace_directory, replace_file, run_main

COLUMNS = 14  # faces in a row of a montage
ROWS = 3  # rows in a class's montage
GROUPS = 8  # groups of duplicates shown
LISTED = 40  # file names listed of a kind; the manifest has them all
COLORS = ("#4878a8", "#e8a33d", "#6aa56e")  # of the splits in charts


class Facts(NamedTuple):
    """Of one image: a hash of its pixels, their mean and standard deviation in grey levels, and whether it is blank.

    size: (width, height) in pixels.
    """

    digest: bytes
    size: tuple[int, int]
    mean: float
    deviation: float
    blank: bool


@dataclass
class Duplicates:
    """Groups of images that are identical to the pixel, each as indices into the list of faces, the largest first."""

    groups: list[list[int]]
    with_different_labels: list[list[int]]
    ambiguous: list[list[int]]  # those of them that are not blank
    by_splits: dict[str, int]  # "Training and PrivateTest": groups that stand in exactly these splits
    in_training: dict[str, int]  # images of a split that stand in Training too


def report(images: Path, aligned: Path | None, output: Path) -> dict[str, Any]:
    """Write the report on a tree of images: `output` (Markdown), and beside it a folder of pictures and a manifest.

    Parameters
    ----------
    images: the folder that `extract` wrote.
    aligned: the folder that `align` made of it, whose `faces.csv` tells where no face was found; None leaves that out.
    output: such as `data/fer2013/report.md`, with `report/*.png` and `report.manifest.json` beside it.

    Returns the manifest's counts. Raises StageError on a missing or broken input.
    """
    images, output = Path(images), Path(output)
    if output.suffix != ".md":
        raise StageError(f"{output}: expected a name that ends in .md")
    pictures = output.with_suffix("")
    if pictures.exists() and not (pictures / "counts.png").is_file():  # it is replaced as a whole
        raise StageError(
            f"{pictures}: not a folder of pictures that this stage wrote; expected another name for {output}"
        )
    classes, faces = tree_classes(images), list_faces(images)
    inputs = [images / "manifest.json"] if aligned is None else [images / "manifest.json", aligned / "faces.csv"]
    for path in inputs:
        if not path.is_file():
            raise StageError(f"{path}: no such file; expected what the stage extract, or align, writes")
    stage = Stage("report", inputs)
    missed = None if aligned is None else _read_missed(aligned / "faces.csv", faces)
    facts = _read_facts(images, faces)
    duplicates = _find_duplicates(faces, facts)
    blank = [face for face, fact in zip(faces, facts, strict=True) if fact.blank]
    stage.counts = {
        "images": len(faces),
        "faces": _table(faces, classes),
        "sizes": _sizes(facts),
        "blank": len(blank),
        "blank_files": [face.file for face in blank],
        "brightness": _brightness(faces, facts, classes),
        "duplicate_groups": len(duplicates.groups),
        "duplicate_images": sum(map(len, duplicates.groups)),
        "duplicate_groups_by_splits": duplicates.by_splits,
        "duplicate_groups_with_different_labels": len(duplicates.with_different_labels),
        "images_that_stand_in_training_too": duplicates.in_training,
    }
    if missed is not None:
        stage.counts |= {"not_found": len(missed), "not_found_faces": _table(missed, classes)}
    with replace_directory(pictures) as folder:
        _draw_pictures(images, faces, missed, duplicates, classes, folder)
        stage.check_inputs()
    with replace_file(output.with_suffix(".manifest.json")) as path:
        stage.write_manifest(path)
    with replace_file(output) as path:  # last: it is what Make looks at
        text = _text(output, faces, missed, blank, duplicates, classes, stage.counts)
        path.write_text(text, encoding="utf-8")
    not_found = "" if missed is None else f", no face found in {len(missed):,}"
    stage.summary(
        f"{len(faces):,} images, {len(blank)} blank, {len(duplicates.groups):,} groups of duplicates, "
        f"{len(duplicates.with_different_labels)} of them with different labels{not_found}"
    )
    return stage.counts


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _read_facts(images: Path, faces: Sequence[Face]) -> list[Facts]:
    def read(face: Face) -> Facts:
        image = read_grey(f"{images}/{face.file}")
        height, width = image.shape
        digest = hashlib.blake2b(b"%dx%d" % (width, height) + image.tobytes(), digest_size=16).digest()
        return Facts(digest, (width, height), float(image.mean()), float(image.std()), bool(is_blank(image[None])[0]))

    def read_some(first: int) -> list[Facts]:
        return [read(face) for face in faces[first : first + 256]]

    firsts = range(0, len(faces), 256)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        parts = progress(pool.map(read_some, firsts), len(firsts), "report", " batches")
        return [fact for part in parts for fact in part]


def _read_missed(path: Path, faces: Sequence[Face]) -> list[Face]:
    """The faces that faces.csv has no box for."""
    with open(path, newline="") as f:
        rows = csv.DictReader(f)
        if not {"file", "confidence"} <= set(rows.fieldnames or ()):
            raise StageError(f"{path}, row 1: columns {rows.fieldnames}; expected file, …, confidence, as align writes")
        found = {row["file"]: bool(row["confidence"]) for row in rows}
    lacking = [face.file for face in faces if face.file not in found]
    if lacking or len(found) != len(faces):
        raise StageError(
            f"{path}: {len(found):,} files, but {len(faces):,} images; expected a row for each image"
            + (f", such as {lacking[0]}" if lacking else "")
        )
    return [face for face in faces if not found[face.file]]


def _find_duplicates(faces: Sequence[Face], facts: Sequence[Facts]) -> Duplicates:
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        by_digest[fact.digest].append(index)
    groups = sorted((group for group in by_digest.values() if len(group) > 1), key=lambda group: (-len(group), group))
    splits = [{faces[index].split for index in group} for group in groups]
    training = SPLITS[0]
    different = [group for group in groups if len({faces[index].label for index in group}) > 1]
    return Duplicates(
        groups=groups,
        with_different_labels=different,
        ambiguous=[group for group in different if not facts[group[0]].blank],
        by_splits={
            " and ".join(combination): number
            for size in (1, 2, 3)
            for combination in combinations(SPLITS, size)
            if (number := splits.count(set(combination)))
        },
        in_training={
            split: sum(
                faces[index].split == split
                for group, present in zip(groups, splits, strict=True)
                if training in present
                for index in group
            )
            for split in SPLITS[1:]
        },
    )


def _table(faces: Sequence[Face], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Faces by split and class."""
    counts = Counter((face.split, face.label) for face in faces)
    return {split: {name: counts[split, label] for label, name in enumerate(classes)} for split in SPLITS}


def _sizes(facts: Sequence[Facts]) -> dict[str, int]:
    """Images by their size, `WIDTHxHEIGHT`, the most frequent ones first, of equals the smaller ones."""
    counts = Counter(fact.size for fact in facts)
    return {f"{width}x{height}": n for (width, height), n in sorted(counts.items(), key=lambda e: (-e[1], e[0]))}


def _brightness(faces: Sequence[Face], facts: Sequence[Facts], classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """By class, in grey levels: mean and spread of the images' means, and mean of their standard deviations."""
    labels = np.array([face.label for face in faces])
    means, deviations = np.array([fact.mean for fact in facts]), np.array([fact.deviation for fact in facts])
    return {
        name: {
            "mean": round(float(means[labels == label].mean()), 1),
            "spread": round(float(means[labels == label].std()), 1),
            "contrast": round(float(deviations[labels == label].mean()), 1),
        }
        for label, name in enumerate(classes)
        if (labels == label).any()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def _draw_pictures(
    images: Path,
    faces: Sequence[Face],
    missed: Sequence[Face] | None,
    duplicates: Duplicates,
    classes: Sequence[str],
    folder: Path,
) -> None:
    """counts.png, LABEL_CLASS.png, and where there is something to see not_found.png and different_labels.png."""
    rng = np.random.default_rng(0)

    def some(candidates: Sequence[Face], number: int) -> list[np.ndarray]:
        chosen = np.sort(rng.permutation(len(candidates))[:number])
        return [_thumbnail(read_grey(f"{images}/{candidates[index].file}")) for index in chosen]

    _draw_counts(faces, classes, folder / "counts.png")
    for label, name in enumerate(classes):
        shown = some([face for face in faces if face.label == label], ROWS * COLUMNS)
        rows = [("" if i else name, shown[i : i + COLUMNS]) for i in range(0, len(shown), COLUMNS)]
        if rows:
            cv2.imwrite(str(folder / f"{label}_{name}.png"), montage(rows))
    if missed:
        rows = [(n, some([face for face in missed if face.label == i], COLUMNS)) for i, n in enumerate(classes)]
        cv2.imwrite(str(folder / "not_found.png"), montage([row for row in rows if row[1]]))
    pairs = []  # a face once for each pair of its labels
    for one, other in combinations(range(len(classes)), 2):
        identical = [
            faces[group[0]] for group in duplicates.ambiguous if {one, other} <= {faces[index].label for index in group}
        ]
        if identical:
            pairs.append((f"{classes[one]}\nor {classes[other]}", some(identical, COLUMNS)))
    if pairs:
        cv2.imwrite(str(folder / "different_labels.png"), montage(pairs))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """The whole of an image within SIZE x SIZE pixels, on grey where it is not square."""
    height, width = image.shape
    scale = SIZE / max(height, width)
    if scale != 1:
        size = (max(round(scale * width), 1), max(round(scale * height), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    height, width = image.shape
    result = np.full((SIZE, SIZE), 128, np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    result[top : top + height, left : left + width] = image
    return result


def _draw_counts(faces: Sequence[Face], classes: Sequence[str], path: Path) -> None:
    """Bars: images of each class by split."""
    figure = Figure(figsize=(max(8, len(classes)), 3.6), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(classes))
    for (split, row), color in zip(_table(faces, classes).items(), COLORS, strict=True):
        values = np.array(list(row.values()))
        axes.bar(classes, values, bottom=bottom, label=split, color=color)
        bottom += values
    for i, total in enumerate(bottom):
        axes.text(i, total, f"{int(total):,}", ha="center", va="bottom", fontsize=9)
    if max(map(len, classes)) * len(classes) > 80:  # names that would run into each other
        axes.tick_params("x", rotation=25)
    axes.set_ylabel("images")
    axes.set_ylim(top=max(bottom) * 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    # above the bars: among them it hides one where all emotions are equally frequent
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(SPLITS))
    figure.savefig(path, dpi=100)


def _text(
    output: Path,
    faces: Sequence[Face],
    missed: Sequence[Face] | None,
    blank: Sequence[Face],
    duplicates: Duplicates,
    classes: Sequence[str],
    counts: dict[str, Any],
) -> str:
    """The Markdown."""
    folder = output.with_suffix("").name
    parts = [
        "# What the data is like",
        _text_sizes(len(faces), counts["sizes"]),
        "## Emotions and splits",
        _markdown(counts["faces"], classes),
        f"![images by emotion and split]({folder}/counts.png)",
        "## Faces",
        *(f"![{name}]({folder}/{i}_{name}.png)" for i, name in enumerate(classes) if name in counts["brightness"]),
        "## Brightness and contrast",
        "In grey levels of 0 to 255: the mean over an emotion's images of their mean, how much that mean differs "
        "between images (standard deviation), and the mean of the standard deviation within an image.",
        "| emotion | brightness | differs by | contrast |\n|---|--:|--:|--:|\n"
        + "\n".join(
            f"| {emotion} | {row['mean']} | {row['spread']} | {row['contrast']} |"
            for emotion, row in counts["brightness"].items()
        ),
        "## Blank faces",
        f"{len(blank)} faces show nothing but one grey level." + _listed(blank),
    ]
    if missed is not None:
        parts += [
            "## Faces that were not found",
            f"In {len(missed):,} of {len(faces):,} images ({len(missed) / len(faces):.1%}) the detector found no face; "
            "they were resized as they are.",
        ]
        if missed:
            parts += [
                _markdown(counts["not_found_faces"], classes, counts["faces"]),
                f"![not found]({folder}/not_found.png)",
            ]
    parts += ["## Duplicates", *_text_duplicates(faces, duplicates, classes, counts, folder)]
    return "\n\n".join(parts) + "\n"


def _text_sizes(faces: int, sizes: dict[str, int]) -> str:
    shown = [size.replace("x", "×") for size in sizes]
    if len(sizes) == 1:
        return f"{faces:,} faces of {shown[0]} pixels."
    most = next(iter(sizes.values()))
    return f"{faces:,} images of {len(sizes):,} sizes; the most frequent one is {shown[0]} pixels ({most:,} images)."


def _text_duplicates(
    faces: Sequence[Face], duplicates: Duplicates, classes: Sequence[str], counts: dict[str, Any], folder: str
) -> list[str]:
    if not duplicates.groups:
        return ["No two images are identical to the pixel."]
    parts = [
        f"{len(duplicates.groups):,} groups of images are identical to the pixel, {counts['duplicate_images']:,} "
        f"images in all; the largest group has {len(duplicates.groups[0])}.",
        "| the group stands in exactly | groups |\n|---|--:|\n"
        + "\n".join(f"| {splits} | {number:,} |" for splits, number in duplicates.by_splits.items()),
        "Images that stand in Training too, and so make a test easier than it should be: "
        + ", ".join(f"{number:,} of {split}" for split, number in duplicates.in_training.items())
        + ".",
    ]
    different = duplicates.with_different_labels
    if not different:
        return [*parts, "No group carries different labels."]
    pairs = Counter(tuple(sorted({faces[index].label for index in group})) for group in different)
    return [
        *parts,
        f"{len(different):,} groups carry different labels: no network can be right on all of them.",
        "| labels | groups |\n|---|--:|\n"
        + "\n".join(f"| {', '.join(classes[i] for i in labels)} | {n} |" for labels, n in pairs.most_common()),
        *[
            f"![identical images with different labels]({folder}/different_labels.png)"
            for _ in duplicates.ambiguous[:1]
        ],
        "Such as: "
        + "; ".join(" = ".join(f"`{faces[index].file}`" for index in group) for group in different[:GROUPS])
        + ".",
    ]


def _markdown(
    table: dict[str, dict[str, int]], classes: Sequence[str], of: dict[str, dict[str, int]] | None = None
) -> str:
    """Counts by emotion and split with their sums; with `of`, also as a share of those counts."""
    share = "" if of is None else " share |"
    lines = [f"| emotion | {' | '.join(SPLITS)} | all |{share}", "|---|" + "--:|" * (len(SPLITS) + 1 + bool(share))]
    rows = [(emotion, [table[split][emotion] for split in SPLITS]) for emotion in classes]
    rows.append(("all", [sum(table[split].values()) for split in SPLITS]))
    for number, (emotion, row) in enumerate(rows):
        line = f"| {emotion} | {' | '.join(f'{n:,}' for n in row)} | {sum(row):,} |"
        if of is not None:
            whole = sum(of[split][e] for split in SPLITS for e in classes[number : number + 1] or classes)
            line += f" {sum(row) / max(whole, 1):.1%} |"
        lines.append(line)
    return "\n".join(lines)


def _listed(faces: Sequence[Face]) -> str:
    if not faces:
        return ""
    more = f", and {len(faces) - LISTED:,} more" if len(faces) > LISTED else ""
    return " " + ", ".join(f"`{face.file}`" for face in faces[:LISTED]) + more + "."


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", type=Path, help="the folder that extract wrote")
    parser.add_argument("aligned", nargs="?", default="-", help="the folder that align wrote, or - for none (default)")
    parser.add_argument("output", type=Path, help="the report to write, a name that ends in .md")
    args = parser.parse_args()
    report(args.images, None if args.aligned == "-" else Path(args.aligned), args.output)


if __name__ == "__main__":
    run_main(main)
