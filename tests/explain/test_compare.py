"""The comparison of all runs: from runs that a test writes, with accuracies and sizes that are known."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_model

from explain import compare as module
from explain.compare import (
    HEADS,
    Cost,
    Result,
    Row,
    compare,
    draw,
    find_others,
    find_results,
    group,
    main,
    measure,
    place_labels,
    size,
    to_markdown,
)
from preprocessing.stage import StageError, run_main, sha256


def write_run(
    root: Path, place: str, accuracy: float, seed: int = 1, base_lr: float = 0.1, epochs: float = 10, **settings: object
) -> Path:
    """A run's files, as far as the table reads them: val 0.5, test `accuracy`, mirrored and ten crops 1 and 2% more."""
    run = root / place
    (run / "evaluation").mkdir(parents=True)
    epoch = settings.pop("epoch", 7)
    asked = {"network": "small", "solver": None, "train_on": "train", "seed": seed, "max_iter": 10 * epoch, **settings}
    counts = {"epochs": epochs, "iterations_per_epoch": epoch}
    inputs = [{"file": f"{run}/solver.prototxt", "sha256": str(seed)}]
    (run / "manifest.json").write_text(json.dumps({"settings": asked, "counts": counts, "inputs": inputs}))
    (run / "settings.json").write_text("{}")
    (run / "solver.prototxt").write_text(
        f'net: "{run}/train_val.prototxt" base_lr: {base_lr} random_seed: {seed} snapshot_prefix: "{run}/small" '
        f"max_iter: {10 * epoch} test_interval: {epoch} stepvalue: {5 * epoch}"
    )
    (run / "train_val.prototxt").write_text(
        f'layer {{ name: "data" type: "Data" include {{ phase: TEST }} data_param {{ source: "{root}/train_lmdb" '
        f'batch_size: {epoch} }} transform_param {{ mean_file: "{run}/mean.binaryproto" }} }}'
    )
    write_evaluation(run, accuracy, [run])
    return run


def write_evaluation(run: Path, accuracy: float, members: list[Path], lmdbs: str | None = None) -> None:
    views = {name: {"accuracy": accuracy + more} for name, more in (("mirror", 0.01), ("ten_crop", 0.02))}
    test = {"accuracy": accuracy, "views": views, "without_training_duplicates": {"accuracy": accuracy - 0.03}}
    files = {"deploy": "deploy.prototxt", "weights": "small.caffemodel", "mean": "mean.binaryproto"}
    nets = [{kind: str(member / name) for kind, name in files.items()} for member in members]
    if lmdbs is not None:  # the last member's own faces
        nets[-1]["lmdbs"] = lmdbs
    result = {"model": {"name": "+".join(member.name for member in members), "nets": nets}}
    result |= {"databases": {"val": {"accuracy": 0.5}, "test": test}}
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(result))


def rows(root: Path) -> list[list[str]]:
    head, rule, *lines = to_markdown(group(find_results(root), {})).splitlines()
    assert head == "| " + " | ".join(HEADS) + " |"
    assert rule.count("|") == len(HEADS) + 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_seeds_of_the_same_settings_are_one_row_with_mean_and_spread(tmp_path: Path) -> None:
    for seed, accuracy in ((1, 0.60), (2, 0.62), (3, 0.67)):
        write_run(tmp_path, f"runs/small{'' if seed == 1 else f'_seed{seed}'}", accuracy, seed, epochs=7 + seed)
    # mean 63, deviations -3, -1, 4: variance 26 / 2
    assert [row[:10] for row in rows(tmp_path)] == [
        ["1", "small", "mtcnn", "1, 2, 3", "8–10", "50.00 ± 0.00%", "63.00 ± 3.61%", "64.00 ± 3.61%", "65.00 ± 3.61%",
         "60.00 ± 3.61%"],
    ]  # fmt: skip


def test_folds_are_one_row_although_their_epochs_have_other_lengths(tmp_path: Path) -> None:
    for fold, accuracy in ((1, 0.8), (2, 0.9), (10, 0.7)):
        write_run(tmp_path, f"fold{fold}/runs/small", accuracy, epoch=10 + fold)
    write_run(tmp_path, "fold1/runs/small_seed2", 0.8, seed=2, epoch=11)
    write_run(tmp_path, "fold3/runs/small", 0.5, base_lr=0.2, epoch=11)  # another learning rate: another row
    write_run(tmp_path, "fold4/runs/small", 0.4, epoch=11, max_iter=55)  # half as many epochs: another row
    write_run(tmp_path, "runs/small", 0.3, epoch=11)  # of no fold
    assert [(row[3], row[6]) for row in rows(tmp_path)] == [
        ("3 folds, seeds 1, 2", "80.00 ± 8.16%"),  # deviations 0, 10, -10, 0: variance 200 / 3
        ("1 fold", "50.00%"),
        ("1 fold", "40.00%"),
        ("1", "30.00%"),
    ]


def test_runs_of_the_same_time_are_one_row_although_their_epochs_differ(tmp_path: Path) -> None:
    for place, accuracy, iterations, minutes, seed in (
        ("runs/small", 0.8, 70, 5, 1),
        ("runs/small_seed2", 0.6, 84, 5, 2),
        ("runs/small_seed3", 0.5, 84, 6, 3),  # another time: another row
        ("runs/small_seed4", 0.4, 84, None, 4),  # epochs that were asked for
        ("fold1/runs/small", 0.3, 70, 5, 1),
        ("fold2/runs/small", 0.3, 84, 5, 1),
    ):
        run = write_run(tmp_path, place, accuracy, seed, minutes=minutes, max_iter=iterations)
        solver = (run / "solver.prototxt").read_text()
        solver = solver.replace("max_iter: 70", f"max_iter: {iterations}")
        (run / "solver.prototxt").write_text(solver.replace("stepvalue: 35", f"stepvalue: {iterations // 2}"))
    assert [(row[3], row[6]) for row in rows(tmp_path)] == [
        ("1, 2", "70.00 ± 14.14%"),
        ("3", "50.00%"),
        ("4", "40.00%"),
        ("2 folds", "30.00 ± 0.00%"),
    ]


def test_folds_that_runs_of_their_own_taught_are_one_row(tmp_path: Path) -> None:
    for fold, teacher in ((1, "large"), (2, "large"), (3, "small")):
        run = write_run(tmp_path, f"fold{fold}/runs/small", 0.8)
        taught = tmp_path / f"fold{fold}/runs" / teacher
        layer = f'net: "{taught}/deploy.prototxt" weights: "{taught}/{teacher}.caffemodel"'
        with open(run / "train_val.prototxt", "a") as file:
            file.write(f'layer {{ name: "teacher" type: "Teacher" teacher_param {{ {layer} }} }}')
    assert [row[3] for row in rows(tmp_path)] == ["2 folds", "1 fold"]


def test_folds_that_were_trained_in_other_batches_are_another_row(tmp_path: Path) -> None:
    for fold, batch in ((1, 64), (2, 64), (3, 128)):
        run = write_run(tmp_path, f"fold{fold}/runs/small", 0.8, epoch=10 + fold)
        with open(run / "train_val.prototxt", "a") as file:
            file.write(f'layer {{ type: "Data" include {{ phase: TRAIN }} data_param {{ batch_size: {batch} }} }}')
    assert [row[3] for row in rows(tmp_path)] == ["2 folds", "1 fold"]


def test_other_settings_are_other_rows_the_best_first(tmp_path: Path) -> None:
    write_run(tmp_path, "runs/small", 0.60)
    write_run(tmp_path, "runs/small_seed2", 0.61, seed=2, base_lr=0.2)
    write_run(tmp_path, "runs/small_seed3", 0.59, seed=3, epoch=8)
    write_run(tmp_path, "runs/small_modern", 0.65, solver="modern")
    write_run(tmp_path, "runs/small_train+val", 0.64, train_on="train+val")
    write_run(tmp_path, "unaligned/runs/small", 0.62)
    write_run(tmp_path, "ferplus/runs/small", 0.80)
    write_run(tmp_path, "unaligned/ferplus/runs/small", 0.79)
    write_evaluation(tmp_path / "runs/ensemble_a+b", 0.70, [Path("a"), Path("b")])
    write_evaluation(tmp_path / "runs/ensemble_a+b@none", 0.66, [Path("a"), Path("b")], "data/toy/unaligned/lmdb")
    write_evaluation(
        tmp_path / "unaligned/ferplus/runs/ensemble_a+b@mtcnn", 0.655, [Path("a"), Path("b")], "data/toy/ferplus/lmdb"
    )
    assert [(row[0], row[1], row[2], row[3], row[6]) for row in rows(tmp_path)] == [
        ("1", "small", "mtcnn, FER+", "1", "80.00%"),
        ("2", "small", "none, FER+", "1", "79.00%"),
        ("3", "ensemble: a + b", "mtcnn", "–", "70.00%"),
        ("4", "ensemble: a + b", "mtcnn, none", "–", "66.00%"),
        ("5", "ensemble: a + b", "none, mtcnn, FER+", "–", "65.50%"),
        ("6", "small modern", "mtcnn", "1", "65.00%"),
        ("7", "small (train+val)", "mtcnn", "1", "64.00%"),
        ("8", "small", "none", "1", "62.00%"),
        ("9", "small", "mtcnn", "2", "61.00%"),
        ("10", "small", "mtcnn", "1", "60.00%"),
        ("11", "small", "mtcnn", "3", "59.00%"),
    ]


def test_other_weights_to_start_from_are_another_row(tmp_path: Path) -> None:
    for seed, (name, digest) in enumerate((("a", "1"), ("a", "1"), ("a", "2"), ("b", "2")), 1):
        run = write_run(tmp_path, f"runs/small_seed{seed}", 0.6 - seed / 100, seed)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["inputs"].append({"file": f"/models/{name}.caffemodel", "sha256": digest})
        (run / "manifest.json").write_text(json.dumps(manifest))
        if seed == 4:
            manifest["settings"]["freeze"] = "conv"
            (run / "manifest.json").write_text(json.dumps(manifest))
    expected = [
        ["small from a.caffemodel", "1, 2"],
        ["small from a.caffemodel", "3"],
        ["small from b.caffemodel, frozen: conv", "4"],
    ]
    assert [[row[1], row[3]] for row in rows(tmp_path)] == expected


def test_figures_that_an_evaluation_lacks_are_dashes(tmp_path: Path) -> None:
    run = write_run(tmp_path, "runs/small", 0.6)
    file = run / "evaluation/evaluation.json"
    result = json.loads(file.read_text())
    del result["databases"]["test"]["without_training_duplicates"], result["databases"]["test"]["views"]["ten_crop"]
    file.write_text(json.dumps(result))
    assert rows(tmp_path)[0][6:] == ["60.00%", "61.00%", "–", "–", *["–"] * 5]


def test_the_cost_of_a_net_by_hand(tmp_path: Path) -> None:
    files = make_model(tmp_path)
    # 42 × 42 inputs to 7 outputs, and their biases
    assert size(files[0]) == (7 * 42 * 42 + 7, 7 * 42 * 42)
    files[0].write_text(files[0].read_text().replace("dim: 1 dim: 1", "dim: 5 dim: 1"))
    assert size(files[0]) == (7 * 42 * 42 + 7, 7 * 42 * 42)
    missing = (tmp_path / "gone.prototxt", files[1], files[2])
    (cost,) = measure([files, missing, files], "cpu").values()
    assert cost.bytes == files[1].stat().st_size
    assert set(cost.seconds) == {"centre", "ten_crop"}
    assert all(0 < seconds < 1 for seconds in cost.seconds.values())
    (tmp_path / "bad.prototxt").write_text("layer { name: 1 }")
    with pytest.raises(StageError, match=r"bad\.prototxt"):
        size(tmp_path / "bad.prototxt")


def test_an_ensemble_costs_what_its_members_cost(tmp_path: Path) -> None:
    a, b = (make_model(tmp_path / name, name="small") for name in ("a", "b"))
    write_evaluation(tmp_path / "data/runs/ensemble_a+b", 0.7, [tmp_path / "a", tmp_path / "b"])
    costs = {a: Cost(10, 100, 1000, {"centre": 1.0, "ten_crop": 2.0})}
    costs |= {b: Cost(1, 2, 3, {"centre": 0.25, "ten_crop": 0.5})}
    results = find_results(tmp_path / "data")
    assert group(results, costs)[0].cost == Cost(11, 102, 1003, {"centre": 1.25, "ten_crop": 2.5})
    assert group(results, {a: costs[a]})[0].cost is None  # not the cost of a part


def test_the_files_that_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUNDS", 1)
    for seed, accuracy in ((1, 0.6), (2, 0.7)):
        run = write_run(tmp_path, f"moved/runs/small_seed{seed}", accuracy, seed)
        make_model(run, name="small")
    (tmp_path / "moved").rename(tmp_path / "set")  # evaluation.json names the old place
    folder = tmp_path / "set"
    write_evaluation(folder / "runs/ensemble_a+b", 0.64, [tmp_path / "a", tmp_path / "b"])
    waiting = write_run(folder, "fold2/runs/wai ting", 0.1)
    make_model(waiting, name="small")
    (waiting / "evaluation/evaluation.json").unlink()
    stopped = write_run(folder, "runs/stopped", 0.1)
    (stopped / "evaluation/evaluation.json").unlink()
    monkeypatch.setattr(sys, "argv", ["compare", str(folder), "--device", "cpu"])
    main()
    printed = capsys.readouterr().out
    text = (folder / "compare.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == printed.splitlines()[: len(table)]
    assert len(table) == 4
    assert "| 12,355 | 0.01 M |" in table[2]
    assert f"- {stopped}: not trained to the end" in text
    assert (
        f"ensemble: a + b: not measured, since a file of its nets is not there: {tmp_path / 'a/deploy.prototxt'}"
        in text
    )
    command = shlex.split(text.split(f"{waiting}: not evaluated: `")[1].split("`")[0])
    assert command[:4] == ["python", "-m", "train.evaluate", str(waiting / "deploy.prototxt")]
    assert f"test={folder / 'fold2/lmdb/test_lmdb'}" in command
    assert printed.splitlines()[-1].startswith("compare: 3 runs in 2 rows, 2 without evaluation; see ")
    with open(folder / "compare.csv", newline="") as f:
        first, second = csv.DictReader(f)
    figures = ("val", "test", "test_mirror", "test_ten_crop", "test_without_duplicates")
    assert list(first) == [
        *("number", "network", "faces", "runs", "seeds", "folds", "epochs"),
        *(head for name in figures for head in (name, f"{name}_deviation")),
        *("parameters", "multiply_adds", "bytes", "seconds_centre", "seconds_ten_crop"),
    ]
    assert (first["number"], first["network"], first["faces"], second["faces"]) == ("1", "small", "mtcnn", "mtcnn")
    assert (first["seeds"], first["folds"], second["network"]) == ("1 2", "", "ensemble: a + b")
    assert float(first["test"]) == pytest.approx(0.65, abs=1e-12)
    assert float(first["test_deviation"]) == pytest.approx(0.1 / 2**0.5, abs=1e-12)
    assert (float(second["test_ten_crop"]), second["test_deviation"], second["bytes"]) == (0.64 + 0.02, "", "")
    assert (int(first["parameters"]), int(first["multiply_adds"])) == (12355, 12348)
    assert (folder / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_an_evaluation_of_other_weights_does_not_count(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = write_run(tmp_path, f"runs/small_seed{seed}", 0.5, seed)
        make_model(run, name="small")
    ensemble = tmp_path / "runs/ensemble_small_seed1+small_seed2"
    members = [tmp_path / "runs/small_seed1", tmp_path / "runs/small_seed2"]
    write_evaluation(ensemble, 0.6, members)
    for run, nets in ((members[0], members[:1]), (members[1], members[1:]), (ensemble, members)):
        inputs = [
            {"file": str(net / name), "sha256": sha256(net / name)}
            for net in nets
            for name in ("deploy.prototxt", "small.caffemodel")
        ]
        (run / "evaluation/manifest.json").write_text(json.dumps({"inputs": inputs}))
    assert len(find_results(tmp_path)) == 3
    assert find_others(tmp_path) == []
    (members[1] / "small.caffemodel").write_bytes(b"others")
    assert [result.run for result in find_results(tmp_path)] == members[:1]
    (run, command), (other, what) = find_others(tmp_path)
    assert (run, other) == (members[1], ensemble)
    assert "-m train.evaluate" in command
    assert what.startswith("not evaluated with the weights that its members have now")
    (members[0] / "small.caffemodel").write_bytes(b"others")
    with pytest.raises(StageError, match=r"no evaluated run(?s:.*)train\.evaluate"):
        find_results(tmp_path)


def test_the_command_of_a_run_trained_on_both_splits_does_not_calibrate(tmp_path: Path) -> None:
    for name in ("small", "small_train+val"):
        run = write_run(tmp_path, f"runs/{name}", 0.5)
        make_model(run, name="small")
        (run / "evaluation/evaluation.json").unlink()
    commands = [what for _, what in find_others(tmp_path)]
    run, lmdbs = tmp_path / "runs/small", tmp_path / "lmdb"
    assert commands[0] == (
        f"python -m train.evaluate {run}/deploy.prototxt {run}/small.caffemodel --mean {run}/mean.binaryproto "
        f"--output {run}/evaluation --lmdb val={lmdbs}/val_lmdb --lmdb test={lmdbs}/test_lmdb "
        f"--exclude-duplicates-of {lmdbs}/train_lmdb --views centre mirror ten_crop --calibrate-on val"
    )
    assert ["--calibrate-on val" in command for command in commands] == [True, False]
    assert ["--lmdb val=" in command for command in commands] == [True, False]
    assert f"--exclude-duplicates-of {tmp_path}/lmdb/train_lmdb,{tmp_path}/lmdb/val_lmdb " in commands[1]


@pytest.mark.parametrize("seed", range(5))
def test_labels_lie_on_no_point_and_on_no_other_label(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = np.concatenate([random.uniform((20, 20), (380, 280), (12, 2)), random.normal((200, 150), 8, (8, 2))])
    sizes = np.tile((20.0, 14.0), (20, 1))
    places = place_labels(points, sizes, (0, 0, 400, 300), radius=4)
    low, high = places - sizes / 2, places + sizes / 2
    assert (low >= -1e-6).all()
    assert (high <= np.array([400, 300]) + 1e-6).all()
    for i in range(20):
        for j in range(20):
            if i != j:  # two boxes are apart along an axis
                assert ((low[i] >= high[j] - 1e-6) | (low[j] >= high[i] - 1e-6)).any()
            assert ((low[i] >= points[j] + 4 - 1e-6) | (points[j] - 4 >= high[i] - 1e-6)).any()


def test_the_plot_draws_what_has_a_cost_and_escapes_names(tmp_path: Path) -> None:
    run = write_run(tmp_path, "runs/small", 0.6, network="a$b$c")
    cost = Cost(10, 100, 1000, {"centre": 0.001, "ten_crop": 0.002})
    results = find_results(tmp_path)
    figure = draw(group(results, {results[0].models[0]: cost}), "runs")
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3
    points = [axes.containers[0].lines[0].get_xydata().tolist() for axes in figure.axes]
    assert points == [[[10, 60]], [[100, 60]], [[1, 60]]]
    figure.savefig(run / "plot.png")
    for axes, x in zip(figure.axes, (10, 100, 1), strict=True):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert len(ticks) >= 2
        assert {f"{tick:.0e}"[0] for tick in ticks} <= {"1", "2", "5"}
        assert low < x < high
    assert [len(axes.containers) for axes in draw(group(results, {}), "none").axes] == [0, 0, 0]


@pytest.mark.parametrize("span", [2, 30, 69, 71, 1000])
def test_in_the_plot_no_text_reaches_into_another(span: float) -> None:
    """Neither the ticks' labels, however far the points are apart, nor the two columns of the legend, nor its edge."""
    long = "ensemble: face_resnet16_pair_distill + vgg_fer_modern + resnet18_modern_seed2@none + face_emotion_net"
    rows = []
    for number, name in enumerate((long, "a", f"{long} again", "b")):
        test = {"accuracy": 0.7 - number / 100, "views": {}}
        result = Result(Path(name), name, "both, mtcnn, none", 1, None, 10, {"test": test}, name, [])
        times = 90_000 * span ** (number / 3)
        rows.append(Row([result], Cost(int(times), int(times), 1, {"centre": times, "ten_crop": times})))
    figure = draw(rows, "runs")
    for axes in figure.axes:
        low, high = axes.get_xlim()
        labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        assert len(labels) >= 2
        assert all(re.fullmatch("[125]0{0,2} [kMG]", label.get_text()) for label in labels)
        ticks = [label.get_window_extent() for label in labels]
        assert [note.get_text() for note in axes.texts] == ["1", "2", "3", "4"]  # beside the points
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(sorted(ticks, key=lambda box: box.x0)))
    title, *legend = (text.get_window_extent() for text in figure.texts)
    assert len(legend) == 4
    assert max(one.x1 for one in legend[:2]) < legend[2].x0
    assert max(one.x1 for one in (title, *legend)) < figure.bbox.x1


def test_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of bytes that are not UTF-8, and with what Matplotlib would take for a formula, which is wrong."""
    monkeypatch.setattr(module, "ROUNDS", 1)
    folder = tmp_path / os.fsdecode(b"caf\xe9 $\\bad$")
    make_model(write_run(tmp_path / "set", "runs/small", 0.6), name="small")
    (tmp_path / "set").rename(folder)
    monkeypatch.setattr(sys, "argv", ["compare", str(folder), "--device", "cpu"])
    main()
    assert r"# Runs of caf\udce9 $\bad$" in (folder / "compare.md").read_text(encoding="utf-8")
    assert b"caf\xe9" in (folder / "compare.csv").read_bytes()
    assert r"caf\udce9" in capsys.readouterr().out


def test_what_is_no_evaluated_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match="none: no such folder; expected a data set's"):
        compare(tmp_path / "none")
    with pytest.raises(StageError, match="no evaluated run; expected runs/RUN/evaluation"):
        compare(tmp_path)
    run = write_run(tmp_path, "runs/small", 0.6)
    (run / "evaluation/evaluation.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 1
    assert "evaluation.json: TypeError" in capsys.readouterr().err
    assert not list(tmp_path.glob("compare*"))
    make_model(run, name="small")
    (run / "evaluation/evaluation.json").unlink()
    with pytest.raises(StageError, match=r"no evaluated run; .*\n  .*runs/small: python -m train.evaluate"):
        compare(tmp_path)
