"""What make would do for data sets other than FER2013: layouts, folds, sources that are not there, what is remade."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest
from test_makefile import commands, make, pytestmark, tree

__all__ = ["pytestmark", "tree"]

SOURCE = "CSV=my data/CK+"


@pytest.fixture
def ckplus(tree: Path) -> Path:
    """The data set `toy` is a folder of CK+, in a path with a space, extracted and aligned."""
    (tree / "my data/CK+").mkdir(parents=True)
    for folder in ("images", "aligned"):
        os.utime(tree / "data/toy" / folder / "manifest.json")
    (tree / "data/toy/.extract").write_text("CSV=my_data/CK+_SKIP_BAD=_--layout_ckplus\n")
    return tree


def test_the_layout_is_the_name_of_the_data_set_where_it_is_one(tree: Path) -> None:
    (tree / "my data").mkdir()
    for name in ("rafdb", "affectnet", "folder"):
        first = commands(tree, "extract", f"DATASET={name}", "CSV=my data")[0]
        assert first.endswith(f"preprocessing.extract 'my data' data/{name}/images --layout {name}")
    first = commands(tree, "extract", "DATASET=faces", "LAYOUT=rafdb", "CSV=my data", "WORKERS=2", "SKIP_BAD=1")[0]
    assert first.endswith("'my data' data/faces/images --skip-bad --layout rafdb --workers 2")
    assert "LAYOUT is jaffe; expected one of fer2013 ckplus" in make(tree, "extract", "LAYOUT=jaffe").stderr


def test_a_folder_has_the_layout_folder_whether_that_is_said_or_not(tree: Path) -> None:
    (tree / "my data").mkdir()
    first = commands(tree, "extract", "DATASET=mine", "CSV=my data")[0]
    assert first.endswith("preprocessing.extract 'my data' data/mine/images --layout folder")
    assert commands(tree, "extract", "DATASET=mine", "CSV=my data", "LAYOUT=folder")[0] == first
    assert "--layout" not in commands(tree, "extract", "DATASET=mine", "CSV=data/toy.csv")[0]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["CONTEMPT=keep"], "--contempt keep"),
        (["FRAMES=1"], "--frames 1"),
        (["NEUTRAL=1"], "--neutral"),
        (["CLASSES=bored confused"], "--classes 'bored' 'confused'"),
    ],
)
def test_a_changed_choice_extracts_again(ckplus: Path, arguments: list[str], options: str) -> None:
    assert commands(ckplus, "align", "LAYOUT=ckplus", SOURCE) == []
    extract, align = commands(ckplus, "align", "LAYOUT=ckplus", SOURCE, *arguments)
    assert extract.endswith(f"extract 'my data/CK+' data/toy/images --layout ckplus {options}")
    assert "preprocessing.align data/toy/images data/toy/aligned" in align


def test_what_comes_or_goes_deep_in_a_folder_is_extracted(ckplus: Path) -> None:
    deep = ckplus / "my data/CK+/a (b)/c d"
    deep.mkdir(parents=True)
    (deep / "1.png").touch()

    seconds = count(1_700_000_000)

    def later(*paths: Path) -> None:
        for path in paths:
            os.utime(path, (next(seconds),) * 2)

    made = [ckplus / "data/toy" / folder / "manifest.json" for folder in ("images", "aligned")]
    later(deep, deep.parent, deep.parents[1], *made)
    assert commands(ckplus, "align", "LAYOUT=ckplus", SOURCE) == []
    later(deep)  # as a file that is added to it, or removed, does
    extract, align = commands(ckplus, "align", "LAYOUT=ckplus", SOURCE)
    assert ("preprocessing.extract" in extract, "preprocessing.align" in align) == (True, True)
    later(*made)
    assert commands(ckplus, "align", "LAYOUT=ckplus", SOURCE) == []
    (ckplus / "elsewhere").symlink_to(ckplus / "my data")
    assert commands(ckplus, "align", "LAYOUT=ckplus", "CSV=elsewhere/CK+")[0].endswith(
        "--layout ckplus"
    )  # another name
    (ckplus / "data/toy/.extract").write_text("CSV=elsewhere/CK+_SKIP_BAD=_--layout_ckplus\n")
    assert commands(ckplus, "align", "LAYOUT=ckplus", "CSV=elsewhere/CK+") == []
    later(deep.parent)
    assert len(commands(ckplus, "align", "LAYOUT=ckplus", "CSV=elsewhere/CK+")) == 2


def test_a_fold_has_lmdbs_mean_and_runs_of_its_own(ckplus: Path) -> None:
    for given, fold in ([], 1), (["FOLD=7"], 7):
        lmdb, mean, train = commands(ckplus, "train", "LAYOUT=ckplus", SOURCE, *given)
        folder = f"data/toy/fold{fold}"
        assert lmdb.endswith(f"preprocessing.lmdb data/toy/aligned {folder}/lmdb --seed 1 --fold {fold}")
        assert mean.endswith(f"preprocessing.mean {folder}/lmdb/train_lmdb {folder}/mean.binaryproto")
        assert f"--output {folder}/runs/small " in train
    lmdb = commands(ckplus, "lmdb", "LAYOUT=ckplus", SOURCE, "ALIGN=none")[-1]
    assert lmdb.endswith("lmdb data/toy/images data/toy/unaligned/fold1/lmdb --seed 1 --size 48 --fold 1")


def test_folds_that_are_not_there(ckplus: Path) -> None:
    assert "FOLD is 11; expected 1 to 10" in make(ckplus, "train", "LAYOUT=ckplus", SOURCE, "FOLD=11").stderr
    for arguments in ([], ["LAYOUT=ckplus"]):  # FER2013's CSV, and CK+ as one
        done = make(ckplus, "train", "FOLD=2", *arguments)
        assert 'FOLD is 2, but "data/toy.csv" does not tell who the persons are' in done.stderr
    done = make(ckplus, "folds")
    assert done.returncode == 2
    assert 'error: "data/toy.csv" does not tell who the persons are' in done.stderr
    lmdb = commands(ckplus, "lmdb", "LAYOUT=ckplus")[-1]
    assert "fold" not in lmdb


def test_make_folds_makes_what_is_not_up_to_date_and_compares(ckplus: Path) -> None:
    for fold in (1, 2):
        folder = ckplus / f"data/toy/fold{fold}"
        for file in ("lmdb/manifest.json", ".lmdb", "mean.binaryproto", "runs/small/small.caffemodel"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("SEED=1\n")
        (folder / "runs/small/.train").write_text("EPOCHS=5_SEED=1_TRAIN_ON=train_PRECISION=\n")
    (ckplus / "data/toy/fold1/runs/small/evaluation").mkdir()
    (ckplus / "data/toy/fold1/runs/small/evaluation/evaluation.json").touch()
    lines = commands(ckplus, "folds", "LAYOUT=ckplus", SOURCE, "EPOCHS=5")
    of_fold = {fold: [line for line in lines if f"data/toy/fold{fold}/" in line] for fold in range(1, 11)}
    assert [len(of_fold[fold]) for fold in range(1, 11)] == [0, 1, *[4] * 8]  # LMDBs, mean, training, evaluation
    assert all("--epochs 5" in of_fold[fold][2] for fold in range(3, 11))
    assert "explain.compare data/toy" in lines[-1]
    assert len(lines) == 34
    # of another length than the two that are trained, which are trained anew, so that all folds are of one length
    lines = commands(ckplus, "folds", "LAYOUT=ckplus", SOURCE)
    assert sum("-m train prototxt/" in line for line in lines) == 10
    extracted_again = commands(ckplus, "folds", "LAYOUT=ckplus", SOURCE, "EPOCHS=5", "FRAMES=1")
    assert sum("preprocessing.lmdb" in line for line in extracted_again) == 10


def test_sources_that_are_not_there(tree: Path) -> None:
    done = make(tree, "extract", "DATASET=affectnet")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data/affectnet.csv is not there; expected the folder of AffectNet")
    assert "make DATASET=affectnet CSV=path\n" in done.stderr
    done = make(tree, "extract", "DATASET=mine", "LAYOUT=ckplus", "CSV=no such folder")
    assert "error: no such folder is not there; expected the folder of CK+" in done.stderr
    assert "make DATASET=mine LAYOUT=ckplus CSV=path\n" in done.stderr
    done = make(tree, "extract", "DATASET=mine")
    assert "error: data/mine.csv is not there; expected a CSV like FER2013's, or a folder" in done.stderr
    assert "CSV is empty; expected a file or a folder" in make(tree, "extract", "CSV=").stderr
    done = make(tree, "extract", "DATASET=fer2013")
    assert "challenges-in-representation-learning" in done.stderr


@pytest.mark.parametrize("name", ["Anna's faces", "faces (1)", "a:b", "50% & more", "faces=#1"])
def test_sources_of_any_name(tree: Path, name: str) -> None:
    (tree / ".venv/bin/python").write_text('#!/bin/bash\nmkdir -p "$4"; touch "$4/manifest.json"\n')
    (tree / ".venv/bin/python").chmod(0o755)
    (tree / name).mkdir()
    arguments = ("extract", "DATASET=mine", "LAYOUT=folder", f"CSV={name}")
    done = make(tree, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    quoted = name.replace("'", r"'\''")
    assert f"'{quoted}' data/mine/images" in done.stdout
    assert commands(tree, *arguments) == []  # what was written down is read as the same
    assert "preprocessing.extract" in commands(tree, *arguments, "SKIP_BAD=1")[0]
    missing = make(tree, "extract", "DATASET=mine", "LAYOUT=folder", "CSV=Anna's other faces")
    assert "error: Anna's other faces is not there; expected a folder" in missing.stderr


def test_choices_that_are_neither_on_nor_off_and_two_folds(ckplus: Path) -> None:
    for name in ("NEUTRAL", "SKIP_BAD", "JSON"):
        assert f"{name} is yes; expected 1 or nothing" in make(ckplus, "-n", "extract", f"{name}=yes").stderr
    assert commands(ckplus, "align", "LAYOUT=ckplus", SOURCE, "NEUTRAL=0", "SKIP_BAD=0") == []
    assert "FOLD is 1 2; expected 1 to 10" in make(ckplus, "train", "LAYOUT=ckplus", SOURCE, "FOLD=1 2").stderr


def test_clean_leaves_a_source_that_lies_in_the_data_sets_folder(ckplus: Path) -> None:
    for source in ("data/toy/CK+ copy", "./data/toy/raw", f"{ckplus}/data/toy/raw"):
        done = make(ckplus, "clean", f"CSV={source}")
        assert "the source lies in data/toy, which would be removed with it" in done.stderr
    (ckplus / "data/toy/.extract").write_text("CSV=data/toy/CK+_copy_SKIP_BAD=_--layout_ckplus\n")
    assert make(ckplus, "clean").returncode == 2
    assert (ckplus / "data/toy/images").is_dir()
    (ckplus / "data/toy/.extract").write_text("CSV=my_data/CK+_SKIP_BAD=_--layout_ckplus\n")
    assert make(ckplus, "clean", SOURCE).returncode == 0
    assert not (ckplus / "data/toy").exists()


def test_ferplus_labels_fer2013_alone(ckplus: Path) -> None:
    (ckplus / "fer2013new.csv").touch()
    done = make(ckplus, "lmdb", "LAYOUT=ckplus", SOURCE, "FERPLUS=fer2013new.csv")
    assert "FERPLUS is given, but LAYOUT is ckplus" in done.stderr


@pytest.mark.parametrize("goal", ["extract", "align", "lmdb"])
def test_a_stage_that_is_stopped_after_its_output_is_there_is_run_again(tree: Path, goal: str) -> None:
    stage = '#!/bin/bash\nmkdir -p "$4"; echo new > "$4/manifest.json"; exit 130\n'  # as Ctrl-C while it clears the old
    (tree / ".venv/bin/python").write_text(stage)
    (tree / ".venv/bin/python").chmod(0o755)
    output = tree / "data/toy" / {"extract": "images", "align": "aligned", "lmdb": "lmdb"}[goal] / "manifest.json"
    os.utime(output, (0, 0))  # older than what it is made of
    assert make(tree, goal).returncode == 2
    assert output.read_text() == "new\n"  # without it the stage would take its folder for somebody else's
    now = output.stat().st_mtime
    os.utime(output, (now + 1, now + 1))  # clocks of file systems are coarse
    if goal == "align":  # whose output is right whatever the variables are
        assert commands(tree, goal) == []
    else:
        assert f"preprocessing.{goal}" in commands(tree, goal)[0]
