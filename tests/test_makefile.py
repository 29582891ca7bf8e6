"""What `make -n` says that make would do: the names of runs, recipes, the members of an ensemble, what is remade."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this system")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with two networks, of which one has a second recipe, a ready environment and a data set `toy`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for file in ("images/astronaut.png", "pyproject.toml", "constraints.txt", ".venv/bin/python", ".venv/.ready"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    for network, recipes in (("small", ("", "_modern")), ("small_wide", ("",))):
        folder = tmp_path / "prototxt" / network
        folder.mkdir(parents=True)
        (folder / "deploy.prototxt").touch()
        for recipe in recipes:
            (folder / f"train_val{recipe}.prototxt").touch()
            (folder / f"solver{recipe}.prototxt").write_text(f'net: "prototxt/{network}/train_val{recipe}.prototxt"\n')
    data = tmp_path / "data/toy"
    for folder in ("images", "aligned", "lmdb"):
        (data / folder).mkdir(parents=True)
    (tmp_path / "data/toy.csv").touch()
    for file in ("images/manifest.json", "aligned/manifest.json", "lmdb/manifest.json", "mean.binaryproto"):
        (data / file).touch()
    (data / ".extract").write_text("CSV=data/toy.csv_SKIP_BAD=\n")
    (data / ".lmdb").write_text("SEED=1\n")
    return tmp_path


def make(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make on the data set `toy`, without the variables of a make that runs these tests."""
    command = ["make", "DATASET=toy", "MODEL=small", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})


def commands(tree: Path, *arguments: str) -> list[str]:
    """The stages' commands, each on one line."""
    done = make(tree, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.startswith(".venv/bin/python")]


def trained(
    tree: Path, run: str, network: str = "small", stamp: str = "EPOCHS=_SEED=1_TRAIN_ON=train_PRECISION="
) -> None:
    folder = tree / "data/toy/runs" / run
    folder.mkdir(parents=True)
    (folder / f"{network}.caffemodel").touch()
    (folder / ".train").write_text(stamp + "\n")


@pytest.mark.parametrize(
    ("arguments", "run", "options"),
    [
        ([], "runs/small", []),
        (["SEED=2"], "runs/small_seed2", ["--seed 2"]),
        (["SOLVER=modern"], "runs/small_modern", ["--solver modern"]),
        (["SOLVER=modern", "SEED=7", "TRAIN_ON=train+val"], "runs/small_modern_seed7_train+val", ["--solver modern"]),
        (["INIT=start.caffemodel", "EPOCHS=9"], "runs/small", ["--init 'start.caffemodel'", "--epochs 9"]),
        (["BATCH=128", "LR=0.1"], "runs/small", ["--lr 0.1 --batch 128"]),
        (["MINUTES=7.5"], "runs/small", ["--train-on train --minutes 7.5"]),
        (["PRECISION=bf16", "DEVICE=cuda:1"], "runs/small", ["--device cuda:1 --train-on train", "--precision bf16"]),
        (["INIT=start.caffemodel", "FREEZE=conv, fc1", "LR=0.001"], "runs/small", ["--freeze 'conv, fc1' --lr 0.001"]),
    ],
)
def test_where_a_run_lies_and_how_it_is_trained(tree: Path, arguments: list[str], run: str, options: list[str]) -> None:
    (tree / "start.caffemodel").touch()
    (command,) = commands(tree, "train", *arguments)
    data = "--train data/toy/lmdb/train_lmdb --val data/toy/lmdb/val_lmdb --mean data/toy/mean.binaryproto"
    assert f" -m train prototxt/small {data} --output data/toy/{run} " in command
    assert all(option in command for option in options)


def test_what_is_trained_is_trained_again_when_a_setting_or_a_file_changes(tree: Path) -> None:
    trained(tree, "small")
    trained(tree, "small_modern")
    assert commands(tree, "train") == []
    assert len(commands(tree, "train", "EPOCHS=3")) == 1
    assert len(commands(tree, "train", "MINUTES=3")) == 1
    (tree / "start.caffemodel").touch()
    assert len(commands(tree, "train", "INIT=start.caffemodel")) == 1
    assert commands(tree, "train", "SOLVER=modern") == []
    (tree / "prototxt/small/train_val_modern.prototxt").touch()
    assert commands(tree, "train") == []
    assert len(commands(tree, "train", "SOLVER=modern")) == 1
    assert len(commands(tree, "train", "PRECISION=fp32")) == 1
    now = time.time()
    for file in ("solver.prototxt", "train_val.prototxt", "deploy.prototxt"):
        os.utime(tree / "prototxt/small" / file, (now + 60, now + 60))
        assert len(commands(tree, "train")) == 1, file
        os.utime(tree / "prototxt/small" / file, (0, 0))
    assert commands(tree, "train") == []


def test_a_refused_training_leaves_the_net_of_the_one_that_ends_meanwhile(tree: Path) -> None:
    (tree / ".venv/bin/python").write_text(
        "#!/bin/bash\necho another process > data/toy/runs/small/small.caffemodel; exit 1\n"
    )
    (tree / ".venv/bin/python").chmod(0o755)
    (tree / "data/toy/runs/small").mkdir(parents=True)
    assert make(tree, "train").returncode == 2
    assert (tree / "data/toy/runs/small/small.caffemodel").read_text() == "another process\n"


@pytest.mark.parametrize("goal", ["evaluate", "plot", "report", "predict FROM=run"])
def test_a_trained_run_is_taken_as_it_is_unless_other_settings_are_asked_for(tree: Path, goal: str) -> None:
    """What `make train EPOCHS=30` took hours for is not trained anew by a `make evaluate` that does not say EPOCHS."""
    trained(tree, "small", stamp="EPOCHS=30_SEED=1_TRAIN_ON=train_PRECISION=_BATCH=128")
    (tree / "data/toy/mean.binaryproto").touch()

    def trainings(*more: str) -> int:
        return sum("-m train prototxt/" in command for command in commands(tree, *goal.split(), *more))

    os.utime(tree / "data/toy/runs/small/small.caffemodel")
    assert trainings() == trainings("EPOCHS=30", "BATCH=128") == 0
    assert trainings("EPOCHS=31", "BATCH=128") == 1
    (tree / "start.caffemodel").touch()
    os.utime(tree / "start.caffemodel", (0, 0))  # older than the net
    for setting in ("MINUTES=3", "PRECISION=fp32", "INIT=start.caffemodel"):
        assert trainings(setting) == 1, setting
    assert len([c for c in commands(tree, "train") if "-m train prototxt/" in c]) == 1
    newer = time.time() + 10
    os.utime(tree / "data/toy/mean.binaryproto", (newer, newer))
    assert trainings() == 1


def test_the_samples_own_epochs_are_none_that_are_asked_for(tree: Path) -> None:
    data = tree / "data/sample"
    shutil.copytree(tree / "data/toy", data)
    (data / ".extract").write_text("CSV=data/toy.csv_SKIP_BAD=\n")
    (data / "runs/small").mkdir(parents=True)
    (data / "runs/small/small.caffemodel").touch()
    (data / "runs/small/.train").write_text("EPOCHS=3_SEED=1_TRAIN_ON=train_PRECISION=\n")
    for arguments, count in ((("evaluate",), 0), (("evaluate", "EPOCHS=30"), 1), (("train",), 1)):
        done = commands(tree, "DATASET=sample", "CSV=data/toy.csv", *arguments)
        assert sum("-m train prototxt/" in command for command in done) == count, arguments


def test_without_arguments_fer2013_is_trained_on_where_it_is_there_and_else_the_sample(tree: Path) -> None:
    shutil.copytree(tree / "prototxt/small", tree / "prototxt/face_emotion_net")
    (tree / "preprocessing").mkdir()
    (tree / "preprocessing/sample.py").touch()

    def first_steps() -> list[str]:
        done = subprocess.run(
            ["make", "-n", "train"], cwd=tree, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
        )
        return [line.removeprefix(".venv/bin/python -m ") for line in done.stdout.splitlines() if " -m " in line]

    sample, extract, *_, training = first_steps()
    assert sample == "preprocessing.sample data/sample.csv"
    assert extract.split()[:3] == ["preprocessing.extract", "'data/sample.csv'", "data/sample/images"]
    assert training.startswith("train prototxt/face_emotion_net --train data/sample/lmdb/train_lmdb ")
    (tree / "data/fer2013.csv").touch()
    extract, *_, training = first_steps()
    assert extract.split()[:3] == ["preprocessing.extract", "'data/fer2013.csv'", "data/fer2013/images"]
    assert training.startswith("train prototxt/face_emotion_net --train data/fer2013/lmdb/train_lmdb ")


def test_a_data_set_is_a_folder_of_data(tree: Path) -> None:
    for name in ("", ".", "..", "../prototxt", "a b", "a/b"):
        done = make(tree, "clean", f"DATASET={name}")
        assert (done.returncode, done.stdout) == (2, "")
        assert f'DATASET is "{name}"; expected one word' in done.stderr
    assert (tree / "data/toy.csv").exists()


def test_arguments_reach_the_commands_letter_by_letter(tree: Path) -> None:
    (tree / ".venv/bin/python").write_text('#!/bin/bash\nprintf "<%s>\\n" "$@"\n')
    (tree / ".venv/bin/python").chmod(0o755)
    name = 'a\'b`touch made`"$HOME".jpg'
    for goal in ("predict", "features", "explain"):
        done = make(tree, goal, "IMG=" + name.replace("$", "$$"))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"<{name}>" in done.stdout
    assert not (tree / "made").exists()
    for goal in ("predict", "features", "explain"):
        done = make(tree, goal, "IMG=")
        assert (done.returncode, done.stdout) == (2, "")
        assert "IMG is empty; expected a photo" in done.stderr
    assert "<conv1 conv2>" in make(tree, "explain", "LAYER=conv1 conv2").stdout


def test_a_training_has_epochs_or_a_time(tree: Path) -> None:
    trained(tree, "small", stamp="EPOCHS=_SEED=1_TRAIN_ON=train_PRECISION=_MINUTES=5")
    assert commands(tree, "train", "MINUTES=5") == []
    done = make(tree, "train", "MINUTES=5", "EPOCHS=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "MINUTES is 5 and EPOCHS 3; expected one of the two" in done.stderr
    # the sample's own 30 epochs are none that were asked for
    for given, option in (((), "--epochs 30"), (("MINUTES=2",), "--minutes 2")):
        (command,) = (
            line
            for line in commands(tree, "train", "DATASET=sample", "CSV=data/toy.csv", *given)
            if "-m train " in line
        )
        assert re.findall(r"--(?:epochs|minutes) \S+", command) == [option]


def test_what_is_fine_tuned_is_trained_again_when_its_settings_change(tree: Path) -> None:
    (tree / "start.caffemodel").touch()
    settings = ["INIT=start.caffemodel", "FREEZE=conv", "LR=0.001"]
    stamp = "EPOCHS=_SEED=1_TRAIN_ON=train_PRECISION=_INIT=start.caffemodel_FREEZE=conv_LR=0.001"
    trained(tree, "small", stamp=stamp)
    assert commands(tree, "train", *settings) == []
    for others in (["FREEZE=conv1"], ["LR=0.01"], ["FREEZE="], ["LR="], ["INIT="], ["BATCH=32"]):
        assert len(commands(tree, "train", *settings, *others)) == 1
    newer = time.time() + 60
    os.utime(tree / "start.caffemodel", (newer, newer))
    assert len(commands(tree, "train", *settings)) == 1


def test_teachers_are_runs_or_folders_and_train_anew_what_learns_from_them(tree: Path) -> None:
    trained(tree, "small_wide", "small_wide")
    (tree / "data/toy/runs/small_wide/best.caffemodel").touch()  # as a run has beside its weights
    (tree / "shipped").mkdir()
    (tree / "shipped/net.caffemodel").touch()
    settings = ["TEACHERS=small_wide ./shipped/", "TEMPERATURE=3", "TEACHER_SHARE=0.5"]
    (command,) = commands(tree, "train", *settings)
    assert "--teachers 'data/toy/runs/small_wide' './shipped' --temperature 3 --teacher-share 0.5" in command
    stamp = "EPOCHS=_SEED=1_TRAIN_ON=train_PRECISION=_TEACHERS=small_wide_./shipped/_TEMPERATURE=3_TEACHER_SHARE=0.5"
    trained(tree, "small", stamp=stamp)
    assert commands(tree, "train", *settings) == []
    for others in (["TEACHERS=small_wide"], ["TEACHERS="], ["TEMPERATURE=2"], ["TEACHER_SHARE="]):
        assert len(commands(tree, "train", *settings, *others)) == 1
    now = time.time() + 60
    os.utime(tree / "data/toy/runs/small_wide/small_wide.caffemodel", (now, now))
    assert len(commands(tree, "train", *settings)) == 1
    done = make(tree, "train", "TEACHERS=small_wide small_wider")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "TEACHERS names data/toy/runs/small_wider, which has no trained net; expected names of trained" in done.stderr
    )


def test_a_recipe_or_weights_that_are_not_there(tree: Path) -> None:
    done = make(tree, "train", "SOLVER=fast")
    assert (done.returncode, "SOLVER is fast; expected modern" in done.stderr) == (2, True)
    done = make(tree, "train", "MODEL=small_wide", "SOLVER=modern")
    assert "SOLVER is modern; expected none: small_wide has solver.prototxt alone" in done.stderr
    assert "No rule to make target 'none.caffemodel'" in make(tree, "train", "INIT=none.caffemodel").stderr


def test_ferplus_makes_lmdbs_of_its_own(tree: Path) -> None:
    (tree / "fer2013new.csv").touch()
    lmdb, mean, train = commands(tree, "train", "FERPLUS=fer2013new.csv")
    assert "preprocessing.lmdb data/toy/aligned data/toy/ferplus/lmdb --seed 1 --ferplus 'fer2013new.csv'" in lmdb
    assert mean.endswith("data/toy/ferplus/lmdb/train_lmdb data/toy/ferplus/mean.binaryproto")
    assert "--output data/toy/ferplus/runs/small " in train
    for file in ("lmdb/manifest.json", "mean.binaryproto"):
        (tree / "data/toy/ferplus" / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / "data/toy/ferplus" / file).touch()
    (tree / "data/toy/ferplus/.lmdb").write_text("SEED=1_FERPLUS=fer2013new.csv\n")
    assert len(commands(tree, "train", "FERPLUS=fer2013new.csv")) == 1
    (tree / "other.csv").touch()
    assert len(commands(tree, "train", "FERPLUS=other.csv")) == 3
    newer = time.time() + 60
    os.utime(tree / "fer2013new.csv", (newer, newer))
    assert len(commands(tree, "train", "FERPLUS=fer2013new.csv")) == 3


def test_evaluation_calibrates_on_validation_unless_that_was_trained_on(tree: Path) -> None:
    evaluate = commands(tree, "evaluate")[-1]
    assert "--views centre mirror ten_crop --calibrate-on val" in evaluate
    assert "--exclude-duplicates-of data/toy/lmdb/train_lmdb --views" in evaluate
    seen = commands(tree, "evaluate", "TRAIN_ON=train+val")[-1]
    assert "--calibrate-on" not in seen
    assert "--lmdb val=" not in seen
    assert "--exclude-duplicates-of data/toy/lmdb/train_lmdb,data/toy/lmdb/val_lmdb --views" in seen


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("prototxt/small", "small"),
        ("data/other/runs/small_modern", "other_small_modern"),
        ("data/other/unaligned/runs/small", "other_unaligned_small"),
        ("some where/a net", "a_net"),
        (".", "weights"),
    ],
)
def test_given_weights_are_evaluated_on_all_splits_of_another_data_set(tree: Path, folder: str, name: str) -> None:
    given = f"WEIGHTS={folder}/net.caffemodel"
    (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / folder / "net.caffemodel").touch()
    (command,) = commands(tree, "evaluate", given)
    assert f"-m train.evaluate '{folder}/deploy.prototxt' '{folder}/net.caffemodel'" in command
    assert f"--mean '{folder}/mean.binaryproto' --output data/toy/evaluations/{name} " in command
    splits = [f"data/toy/lmdb/{split}_lmdb" for split in ("train", "val", "test")]
    assert (
        " ".join(f"--lmdb {split}={path}" for split, path in zip(("train", "val", "test"), splits, strict=True))
        in command
    )
    assert f"--lmdb all={','.join(splits)} --views centre mirror ten_crop --device" in command
    assert "--calibrate-on" not in command
    assert "--exclude-duplicates-of" not in command
    result = tree / f"data/toy/evaluations/{name}/evaluation.json"
    result.parent.mkdir(parents=True)
    result.touch()
    made_with = f"{folder}/net.caffemodel centre mirror ten_crop"
    (tree / f"data/toy/evaluations/.{name}").write_text(made_with.replace(" ", "_") + "\n")
    assert commands(tree, "evaluate", given) == []
    (command,) = commands(tree, "evaluate", given, "VIEWS=mirror")
    assert "--views mirror --device" in command
    for file in (tree / folder / "net.caffemodel", tree / "data/toy/lmdb/manifest.json"):
        os.utime(result)
        assert commands(tree, "evaluate", given) == []
        newer = result.stat().st_mtime + 9
        for newer_file in (file, tree / "data/toy/.lmdb"):
            os.utime(newer_file, (newer, newer))
        assert len(commands(tree, "evaluate", given)) == 1, file
        os.utime(file, (0, 0))


def test_given_weights_predict_and_do_not_replace_the_runs(tree: Path) -> None:
    (tree / "net").mkdir()
    (tree / "net/net.caffemodel").touch()
    (command,) = commands(tree, "predict", "WEIGHTS=net/net.caffemodel")
    assert "--deploy 'net/deploy.prototxt' --weights 'net/net.caffemodel' --mean 'net/mean.binaryproto'" in command
    assert "--model" not in command
    (train,) = commands(tree, "train", "WEIGHTS=net/net.caffemodel")
    assert "net.caffemodel" not in train
    done = make(tree, "predict", "WEIGHTS=net/net.caffemodel", "FROM=run")
    assert (done.returncode, "WEIGHTS and FROM=run are given; expected one" in done.stderr) == (2, True)
    for goal in ("evaluate", "predict", "features", "explain"):
        assert "No rule to make target 'none.caffemodel'" in make(tree, goal, "WEIGHTS=none.caffemodel").stderr


def test_an_ensemble_trains_the_members_that_are_not_trained(tree: Path) -> None:
    trained(tree, "small_seed2", stamp="EPOCHS=60_SEED=2_TRAIN_ON=train_PRECISION=")  # is taken as it is
    (tree / "shipped").mkdir()
    (tree / "shipped/net.caffemodel").touch()
    first, second, ensemble = commands(tree, "ensemble", "MODELS=small_modern_seed3 small_wide small_seed2 ./shipped/")
    assert "-m train prototxt/small " in first
    assert "--output data/toy/runs/small_modern_seed3 --seed 3 " in first
    assert "--solver modern" in first
    assert "-m train prototxt/small_wide " in second
    assert "--output data/toy/runs/small_wide --seed 1 " in second
    assert "--solver" not in second
    runs = "data/toy/runs/"
    assert f"{runs}small_modern_seed3 {runs}small_wide {runs}small_seed2 ./shipped --output" in ensemble
    assert f"--output {runs}ensemble_small_modern_seed3+small_wide+small_seed2+shipped/evaluation " in ensemble


def test_an_ensemble_takes_a_trained_member_as_it_is_also_the_one_that_model_names(tree: Path) -> None:
    for run in ("small", "small_seed2"):
        trained(tree, run, stamp="EPOCHS=60_SEED=1_TRAIN_ON=train_PRECISION=")
    time.sleep(0.02)
    (tree / "data/toy/mean.binaryproto").touch()
    (command,) = commands(tree, "ensemble", "MODELS=small small_seed2")
    assert "-m train.ensemble" in command
    (command,) = commands(tree, "ensemble", "MODELS=small small_seed2", "EPOCHS=3")
    assert "-m train.ensemble" in command


def test_an_ensemble_with_a_member_that_saw_the_validation_split_is_neither_calibrated_nor_tested_on_it(
    tree: Path,
) -> None:
    trained(tree, "small_wide", "small_wide")
    training, ensemble = commands(tree, "ensemble", "MODELS=small_modern_seed12_train+val small_wide")
    assert "--output data/toy/runs/small_modern_seed12_train+val --seed 12 " in training
    assert "--train-on train+val --solver modern" in training
    assert "--calibrate-on" not in ensemble
    assert "--lmdb val=" not in ensemble
    assert "--exclude-duplicates-of data/toy/lmdb/train_lmdb,data/toy/lmdb/val_lmdb --views" in ensemble


def test_new_databases_are_evaluated_on_anew(tree: Path) -> None:
    for run in ("small", "small_seed2"):
        trained(tree, run)
    for made in ("small", "ensemble_small+small_seed2"):
        (tree / "data/toy/runs" / made / "evaluation").mkdir(parents=True)
        (tree / "data/toy/runs" / made / "evaluation/evaluation.json").touch()
    assert commands(tree, "evaluate") == commands(tree, "ensemble", "MODELS=small small_seed2") == []
    newer = time.time() + 10
    for file in ("lmdb/manifest.json", "mean.binaryproto"):
        os.utime(tree / "data/toy" / file, (newer, newer))
    assert any("train.evaluate" in command for command in commands(tree, "evaluate", "AS_TRAINED=1"))
    assert any("train.ensemble" in command for command in commands(tree, "ensemble", "MODELS=small small_seed2"))


def test_members_that_see_the_faces_unaligned(tree: Path) -> None:
    for file in ("lmdb/manifest.json", "mean.binaryproto"):
        (tree / "data/toy/unaligned" / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / "data/toy/unaligned" / file).touch()
    (tree / "data/toy/unaligned/.lmdb").write_text("SEED=1\n")
    members = "small small_modern_seed2@none data/toy/unaligned/runs/small_wide"
    *training, ensemble = commands(tree, "ensemble", f"MODELS={members}")
    other, runs = "data/toy/unaligned/runs/", "data/toy/runs/"
    assert [re.findall(r"--train (\S+) .*--output (\S+)", line)[0] for line in training] == [
        ("data/toy/lmdb/train_lmdb", f"{runs}small"),
        ("data/toy/unaligned/lmdb/train_lmdb", f"{other}small_modern_seed2"),
        ("data/toy/unaligned/lmdb/train_lmdb", f"{other}small_wide"),
    ]
    assert "--solver modern" in training[1]
    lmdbs = "@data/toy/unaligned/lmdb"
    assert f"{runs}small {other}small_modern_seed2{lmdbs} {other}small_wide{lmdbs} --output" in ensemble
    assert f"--output {runs}ensemble_small+small_modern_seed2@none+small_wide@none/evaluation " in ensemble
    assert "--lmdb val=data/toy/lmdb/val_lmdb " in ensemble

    # folders, however their paths are spelled, see what they were trained on, or what is said behind them
    trained(tree, "../unaligned/runs/mine", "net")
    (tree / "shipped").mkdir()
    (tree / "shipped/net.caffemodel").touch()
    members = f"data/toy/unaligned/runs/mine ./data/toy/unaligned/runs/mine {tree}/data/toy/unaligned/runs/mine/"
    (ensemble,) = commands(tree, "ensemble", f"MODELS={members} shipped/ shipped/@none")
    folders = ("data", "./data", f"{tree}/data")
    seen = " ".join(f"{folder}/toy/unaligned/runs/mine{lmdbs}" for folder in folders)
    assert f"-m train.ensemble {seen} shipped shipped{lmdbs} --output" in ensemble
    (ensemble,) = commands(tree, "ensemble", "ALIGN=none", "MODELS=data/toy/unaligned/runs/mine shipped/")
    assert "@" not in ensemble

    ensemble = commands(tree, "ensemble", "ALIGN=none", "MODELS=small@mtcnn small small_wide@none")[-1]
    assert f"{runs}small@data/toy/lmdb {other}small {other}small_wide --output" in ensemble
    assert "--lmdb val=data/toy/unaligned/lmdb/val_lmdb " in ensemble


def test_a_net_that_sees_faces_aligned_and_as_they_are(tree: Path) -> None:
    pair = tree / "prototxt/pair"
    shutil.copytree(tree / "prototxt/small_wide", pair)
    (pair / "deploy.prototxt").write_text("layer { input_param { shape { dim: 1\n dim: 2 dim: 44 dim: 44 } } }")
    (pair / "solver.prototxt").write_text('net: "prototxt/pair/train_val.prototxt"')
    both = "data/toy/both"
    lmdb, mean, train = commands(tree, "train", "MODEL=pair")
    assert f"preprocessing.lmdb data/toy/aligned {both}/lmdb --seed 1 --beside data/toy/images" in lmdb
    assert f"preprocessing.mean {both}/lmdb/train_lmdb {both}/mean.binaryproto" in mean
    assert f"--train {both}/lmdb/train_lmdb" in train
    assert f"--output {both}/runs/pair " in train

    # a folder of weights is looked at in the same way, and its faces are there for it
    (tree / "ships").mkdir()
    shutil.copy(pair / "deploy.prototxt", tree / "ships")
    (tree / "ships/pair.caffemodel").touch()
    evaluate = commands(tree, "evaluate", "WEIGHTS=ships/pair.caffemodel")[-1]
    assert f"--lmdb test={both}/lmdb/test_lmdb" in evaluate

    # beside nets that see a face once, and as their pupil
    (tree / both / "lmdb").mkdir(parents=True)
    for file in ("lmdb/manifest.json", "mean.binaryproto"):
        (tree / both / file).touch()
    (tree / both / ".lmdb").write_text("SEED=1\n")
    trained(tree, "../both/runs/pair", "pair")
    trained(tree, "small")
    trained(tree, "../unaligned/runs/small")
    ensemble = commands(tree, "ensemble", "MODELS=small pair data/toy/both/runs/pair small@none")[-1]
    members = f"data/toy/runs/small {both}/runs/pair@{both}/lmdb {both}/runs/pair@{both}/lmdb"
    assert f"{members} data/toy/unaligned/runs/small@data/toy/unaligned/lmdb --output" in ensemble
    assert "--lmdb val=data/toy/lmdb/val_lmdb" in ensemble
    (train,) = commands(tree, "train", "MODEL=pair", "SEED=2", "TEACHERS=small small@none pair")
    assert f"--teachers 'data/toy/runs/small' 'data/toy/unaligned/runs/small' '{both}/runs/pair'" in train
    ensemble = commands(tree, "ensemble", "MODELS=./ships ships/ small")[-1]
    assert f"-m train.ensemble ./ships@{both}/lmdb ships@{both}/lmdb data/toy/runs/small --output" in ensemble
    trained(tree, "../../both/runs/small")
    ensemble = commands(tree, "ensemble", "MODELS=data/both/runs/small small")[-1]
    assert "-m train.ensemble data/both/runs/small data/toy/runs/small --output" in ensemble, "a data set of that name"
    done = make(tree, "train", "MODEL=pair", "TEACHERS=small_wide")
    assert "TEACHERS names data/toy/runs/small_wide, which has no trained net" in done.stderr


def test_an_ensemble_is_evaluated_again_when_a_member_is_newer(tree: Path) -> None:
    trained(tree, "small")
    trained(tree, "small_wide", "small_wide")
    result = tree / "data/toy/runs/ensemble_small+small_wide/evaluation/evaluation.json"
    assert len(commands(tree, "ensemble", "MODELS=small small_wide")) == 1
    result.parent.mkdir(parents=True)
    result.touch()
    assert commands(tree, "ensemble", "MODELS=small small_wide") == []
    (tree / "data/toy/runs/small/small.caffemodel").touch()
    assert len(commands(tree, "ensemble", "MODELS=small small_wide")) == 1


def test_an_ensemble_is_evaluated_again_on_new_faces_of_a_member(tree: Path) -> None:
    trained(tree, "small")
    trained(tree, "../unaligned/runs/small")
    other = tree / "data/toy/unaligned"
    (other / "lmdb").mkdir()
    for file in ("lmdb/manifest.json", "mean.binaryproto"):
        (other / file).touch()
    (other / ".lmdb").write_text("SEED=1\n")
    result = tree / "data/toy/runs/ensemble_small+small@none/evaluation/evaluation.json"
    result.parent.mkdir(parents=True)
    result.touch()
    assert commands(tree, "ensemble", "MODELS=small small@none") == []
    newer = time.time() + 9
    for file in ("lmdb/manifest.json", ".lmdb", "mean.binaryproto"):
        os.utime(other / file, (newer, newer))
    (ensemble,) = commands(tree, "ensemble", "MODELS=small small@none")
    assert "-m train.ensemble data/toy/runs/small data/toy/unaligned/runs/small@data/toy/unaligned/lmdb" in ensemble


def test_ensembles_of_what_is_not_there(tree: Path) -> None:
    done = make(tree, "ensemble", "MODELS=small_fast small")
    assert done.returncode == 2
    assert "MODELS names small_fast, which is not trained; expected names of runs (small small_wide" in done.stderr
    for name in ("small@all", "small@none@mtcnn", "small@", "@none"):
        done = make(tree, "ensemble", f"MODELS=small {name}")
        assert (done.returncode, f"MODELS names {name}; expected @mtcnn, @none or @both" in done.stderr) == (2, True), (
            name
        )
    done = make(tree, "train", "TEACHERS=small@none")
    assert "TEACHERS names data/toy/unaligned/runs/small, which has no trained net" in done.stderr
    done = make(tree, "ensemble")
    assert done.returncode == 2
    assert "error: MODELS is empty" in done.stderr


def test_help_lists_every_target_and_variable(tree: Path) -> None:
    done = make(tree, "help")
    text = (ROOT / "Makefile").read_text()
    for name in [*re.findall(r"^([A-Z_]+) \?=", text, re.MULTILINE), "ensemble", "compare", "evaluate", "train"]:
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name


def test_features_and_explain_take_the_network_that_predict_takes(tree: Path) -> None:
    for target, module in (("features", "explain.features"), ("explain", "explain.saliency")):
        (shipped,) = commands(tree, target, "LAYER=conv1 b;c", "IMG=a photo.png", "FACE=none")
        layers = {"features": "'conv1' 'b;c'", "explain": "'conv1 b;c'"}[target]
        assert f"-m {module} 'a photo.png' --face none --device auto --model small --layer {layers}" in shipped
        own = commands(tree, target, "FROM=run")
        assert [line.split()[2] for line in own] == ["train", "train.evaluate", module]
        run = "data/toy/runs/small"
        files = f"--deploy {run}/deploy.prototxt --weights {run}/small.caffemodel --mean {run}/mean.binaryproto"
        assert files in own[-1]
    assert "--target 'sad'" in commands(tree, "explain", "TARGET=sad")[0]


def test_what_predict_looks_at(tree: Path) -> None:
    (photo,) = commands(tree, "predict")
    assert "-m predict 'images/astronaut.png' --face detect --device auto --model small" in photo
    assert not re.search(r"--(camera|every|no-pictures|min-face|min-confidence|json)", photo)
    (clip,) = commands(tree, "predict", "IMG=a clip.mp4", "EVERY=5", "PICTURES=0")
    assert "-m predict 'a clip.mp4' " in clip
    assert clip.endswith(" --every 5 --no-pictures")
    (table,) = commands(tree, "predict", "IMG=my photos", "TABLE=a table.csv", "JSON=1")
    assert table.endswith(" --table 'a table.csv' --json")
    (camera,) = commands(tree, "predict", "CAMERA=0", "PICTURES=1")
    assert "-m predict --camera '0' --face detect" in camera
    assert "--no-pictures" not in camera
    for target in ("predict", "features", "explain"):
        (command,) = commands(tree, target, "MIN_FACE=40", "MIN_CONFIDENCE=0.9")
        assert "--face detect --min-face 40 --min-confidence 0.9 --device auto" in command
    assert "CAMERA is 0 and IMG a.mp4; expected one of the two" in make(tree, "predict", "CAMERA=0", "IMG=a.mp4").stderr
    assert "PICTURES is no; expected 0 or 1" in make(tree, "predict", "PICTURES=no").stderr


def test_with_json_predict_prints_nothing_else(tree: Path) -> None:
    (tree / ".venv/bin/python").write_text('#!/bin/bash\necho "$@"\n')
    (tree / ".venv/bin/python").chmod(0o755)
    done = make(tree, "predict", "JSON=1")
    assert (done.stderr, done.stdout.count("\n")) == ("", 1)
    assert done.stdout.endswith(" --json\n")


def test_all_that_make_makes(tree: Path) -> None:
    (tree / "solver.log").touch()
    assert commands(tree, "plot", "LOG=solver.log") == [".venv/bin/python -m train.plot 'solver.log'"]
    train, *others = commands(tree)
    run = "data/toy/runs/small"
    net = f"--deploy {run}/deploy.prototxt --weights {run}/small.caffemodel --mean {run}/mean.binaryproto"
    assert train.startswith(".venv/bin/python -m train prototxt/small ")
    assert others[:2] == [
        f".venv/bin/python -m train.plot {run}/train.log --iterations-per-epoch test",
        f".venv/bin/python -m train.evaluate {run}/deploy.prototxt {run}/small.caffemodel "
        f"--mean {run}/mean.binaryproto --output {run}/evaluation --lmdb val=data/toy/lmdb/val_lmdb "
        "--lmdb test=data/toy/lmdb/test_lmdb --exclude-duplicates-of data/toy/lmdb/train_lmdb "
        "--views centre mirror ten_crop --calibrate-on val --device auto",
    ]
    assert others[2:] == [
        ".venv/bin/python -m preprocessing.report data/toy/images data/toy/aligned data/toy/report.md",
        f".venv/bin/python -m predict images/astronaut.png {net} --output {run}/predictions --device auto",
    ]
    trained(tree, "small", stamp="EPOCHS=30_SEED=1_TRAIN_ON=train_PRECISION=")
    for goal in ([], ["all"]):
        assert commands(tree, *goal) == [train, *others]  # its own settings are other ones
    assert commands(tree, f"{run}/small.caffemodel") == [train]


def test_what_plain_make_makes_again(tree: Path) -> None:
    trained(tree, "small")
    run = tree / "data/toy/runs/small"
    for file in ("loss.png", "accuracy.png", "metrics.csv", "evaluation/evaluation.json", "predictions/.done"):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).touch()
    (tree / "data/toy/report.md").touch()
    assert commands(tree) == []
    newer = (run / "predictions/.done").stat().st_mtime + 9
    for file, made in (
        ("evaluation/evaluation.json", ["predict"]),  # by whose calibration it answers
        ("small.caffemodel", ["train.plot", "train.evaluate", "predict"]),
    ):
        newer += 1
        os.utime(run / file, (newer, newer))
        assert [command.split()[2] for command in commands(tree)] == made


def test_a_report_on_the_data_is_made_of_the_faces_that_are_trained_on(tree: Path) -> None:
    (tree / "data/toy/report.md").touch()
    assert commands(tree, "data") == []
    newer = time.time() + 60
    os.utime(tree / "data/toy/aligned/manifest.json", (newer, newer))
    lmdb, mean, report = commands(tree, "data")
    assert report.endswith("-m preprocessing.report data/toy/images data/toy/aligned data/toy/report.md")
    assert ("preprocessing.lmdb data/toy/aligned" in lmdb, "preprocessing.mean" in mean) == (True, True)
    for file in ("images/manifest.json", ".extract"):
        os.utime(tree / "data/toy" / file, (newer + 1, newer + 1))
    align, *_ = commands(tree, "align", "DEVICE=cpu", "WORKERS=2")
    assert align.endswith("-m preprocessing.align data/toy/images data/toy/aligned --device cpu --workers 2")
    (report,) = commands(tree, "describe", "ALIGN=none")
    assert report.endswith("-m preprocessing.report data/toy/images - data/toy/report.md")


def test_the_report_is_made_again_for_another_photo_and_after_another_evaluation(tree: Path) -> None:
    trained(tree, "small")
    run = tree / "data/toy/runs/small"
    evaluate, report = commands(tree, "report")
    assert "-m train.evaluate data/toy/runs/small/deploy.prototxt" in evaluate
    databases = "--lmdb val=data/toy/lmdb/val_lmdb --lmdb test=data/toy/lmdb/test_lmdb"
    assert f"-m explain.report data/toy/runs/small {databases} --output" in report
    assert "--output data/toy/runs/small/report.html" in report
    assert "--image" not in report  # IMG's default is for predict
    (run / "evaluation").mkdir()
    for file in ("evaluation/evaluation.json", "report.html"):
        (run / file).touch()
    (run / ".report").write_text("IMG=\n")
    assert commands(tree, "report") == []
    (again,) = commands(tree, "report", "IMG=images/astronaut.png", "FACE=none")
    assert "--image 'images/astronaut.png' --face none" in again
    (run / ".report").write_text("IMG=images/astronaut.png_FACE=detect\n")
    newer = (run / "report.html").stat().st_mtime + 9
    os.utime(tree / "images/astronaut.png", (newer - 18, newer - 18))
    assert commands(tree, "report", "IMG=images/astronaut.png") == []
    os.utime(tree / "images/astronaut.png", (newer, newer))
    assert len(commands(tree, "report", "IMG=images/astronaut.png")) == 1
    os.utime(run / "report.html", (1, 1))
    assert len(commands(tree, "report")) == 1


def test_a_report_on_weights_is_beside_the_runs(tree: Path) -> None:
    (tree / "my net").mkdir()
    (tree / "my net/net.caffemodel").touch()
    evaluate, report = commands(tree, "report", "WEIGHTS=my net/net.caffemodel")
    assert "-m train.evaluate 'my net/deploy.prototxt'" in evaluate
    assert (
        "-m explain.report 'my net/net.caffemodel' --evaluation data/toy/evaluations/my_net/evaluation.json" in report
    )
    assert "--output data/toy/reports/my_net.html" in report
    for file in ("evaluations/my_net/evaluation.json", "reports/my_net.html"):
        (tree / "data/toy" / file).parent.mkdir(parents=True)
        (tree / "data/toy" / file).touch()
    (tree / "data/toy/evaluations/.my_net").write_text("my_net/net.caffemodel_centre_mirror_ten_crop\n")
    (tree / "data/toy/reports/.my_net").write_text("IMG=\n")
    assert commands(tree, "report", "WEIGHTS=my net/net.caffemodel") == []
    newer = time.time() + 9
    os.utime(tree / "my net/net.caffemodel", (newer, newer))
    assert len(commands(tree, "report", "WEIGHTS=my net/net.caffemodel")) == 2


def test_compare_trains_and_evaluates_the_models_that_are_not(tree: Path) -> None:
    trained(tree, "small_seed2", stamp="EPOCHS=60_SEED=2_TRAIN_ON=train_PRECISION=")  # is taken as it is
    trained(tree, "small_modern")
    evaluation = tree / "data/toy/runs/small_modern/evaluation/evaluation.json"
    evaluation.parent.mkdir()
    evaluation.touch()
    steps = commands(tree, "compare", "MODELS=small small_seed2 small_modern", "EPOCHS=7")
    runs = "data/toy/runs/"
    assert [re.findall(rf"-m (\S+) .*?({runs}\w+)", line) for line in steps[:-1]] == [
        [("train", f"{runs}small")],
        [("train.evaluate", f"{runs}small")],
        [("train.evaluate", f"{runs}small_seed2")],
    ]
    assert "--epochs 7" in steps[0]
    assert steps[-1] == ".venv/bin/python -m explain.compare data/toy --device auto"
    later = evaluation.stat().st_mtime + 9
    os.utime(tree / "data/toy/runs/small_modern/small.caffemodel", (later, later))
    assert len(commands(tree, "compare", "MODELS=small small_seed2 small_modern")) == 5
    everything = commands(tree, "compare", "MODELS=all")
    assert [line.split()[3] for line in everything if "-m train " in line] == ["prototxt/small", "prototxt/small_wide"]
    done = make(tree, "compare", "MODELS=small ./elsewhere")
    assert (done.returncode, "MODELS names ./elsewhere; expected names of runs alone" in done.stderr) == (2, True)


def test_compare_looks_at_all_runs_of_the_data_set(tree: Path) -> None:
    assert commands(tree, "compare", "DEVICE=cpu") == [".venv/bin/python -m explain.compare data/toy --device cpu"]
