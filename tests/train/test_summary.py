"""The table of all runs: from runs that a test writes, with accuracies that are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from preprocessing.stage import StageError, run_main
from train.summary import HEADS, find_results, main, to_markdown


def write_run(
    root: Path, place: str, accuracy: float, seed: int = 1, base_lr: float = 0.1, epochs: float = 10, **settings: object
) -> None:
    """A run's files, as far as the table reads them: val 0.5, test `accuracy`, mirrored and ten crops 1 and 2% more."""
    run = root / place
    (run / "evaluation").mkdir(parents=True)
    settings = {"network": "small", "solver": None, "train_on": "train", "seed": seed, **settings}
    inputs = [{"file": f"{run}/solver.prototxt", "sha256": str(seed)}]
    (run / "manifest.json").write_text(
        json.dumps({"settings": settings, "counts": {"epochs": epochs}, "inputs": inputs})
    )
    (run / "solver.prototxt").write_text(
        f'net: "{run}/train_val.prototxt" base_lr: {base_lr} random_seed: {seed} snapshot_prefix: "{run}/small"'
    )
    (run / "train_val.prototxt").write_text(
        f'layer {{ name: "data" type: "Data" data_param {{ source: "{root}/train_lmdb" batch_size: 4 }} }}'
    )
    write_evaluation(run, accuracy, ["net"])


def write_evaluation(run: Path, accuracy: float, nets: list[str]) -> None:
    views = {name: {"accuracy": accuracy + more} for name, more in (("mirror", 0.01), ("ten_crop", 0.02))}
    test = {"accuracy": accuracy, "views": views, "without_training_duplicates": {"accuracy": accuracy - 0.03}}
    result = {"model": {"name": "+".join(nets), "nets": [{}] * len(nets)}}
    result |= {"databases": {"val": {"accuracy": 0.5}, "test": test}}
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(result))


def rows(root: Path) -> list[list[str]]:
    head, rule, *lines = to_markdown(find_results(root)).splitlines()
    assert head == "| " + " | ".join(HEADS) + " |"
    assert rule.count("|") == len(HEADS) + 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_seeds_of_the_same_settings_are_one_row_with_mean_and_spread(tmp_path: Path) -> None:
    for seed, accuracy in ((1, 0.60), (2, 0.62), (3, 0.67)):
        write_run(tmp_path, f"runs/small{'' if seed == 1 else f'_seed{seed}'}", accuracy, seed, epochs=7 + seed)
    # mean 63, deviations -3, -1, 4: variance 26 / 2
    assert rows(tmp_path) == [
        ["small", "mtcnn", "1, 2, 3", "8–10", "50.00 ± 0.00%", "63.00 ± 3.61%", "64.00 ± 3.61%", "65.00 ± 3.61%",
         "60.00 ± 3.61%"],
    ]  # fmt: skip


def test_other_settings_are_other_rows_the_best_first(tmp_path: Path) -> None:
    write_run(tmp_path, "runs/small", 0.60)
    write_run(tmp_path, "runs/small_seed2", 0.61, seed=2, base_lr=0.2)
    write_run(tmp_path, "runs/small_modern", 0.65, solver="modern")
    write_run(tmp_path, "runs/small_train+val", 0.64, train_on="train+val")
    write_run(tmp_path, "unaligned/runs/small", 0.62)
    write_run(tmp_path, "ferplus/runs/small", 0.80)
    write_run(tmp_path, "unaligned/ferplus/runs/small", 0.79)
    write_evaluation(tmp_path / "runs/ensemble_a+b", 0.70, ["a", "b"])
    found = rows(tmp_path)
    assert [(row[0], row[1], row[2], row[5]) for row in found] == [
        ("small", "mtcnn, FER+", "1", "80.00%"),
        ("small", "none, FER+", "1", "79.00%"),
        ("ensemble: a + b", "mtcnn", "–", "70.00%"),
        ("small modern", "mtcnn", "1", "65.00%"),
        ("small (train+val)", "mtcnn", "1", "64.00%"),
        ("small", "none", "1", "62.00%"),
        ("small", "mtcnn", "2", "61.00%"),
        ("small", "mtcnn", "1", "60.00%"),
    ]


def test_other_weights_to_start_from_are_another_row(tmp_path: Path) -> None:
    for seed, (name, digest) in enumerate((("a", "1"), ("a", "1"), ("a", "2"), ("b", "2")), 1):
        write_run(tmp_path, f"runs/small_seed{seed}", 0.6 - seed / 100, seed)
        file = tmp_path / f"runs/small_seed{seed}/manifest.json"
        manifest = json.loads(file.read_text())
        manifest["inputs"].append({"file": f"/models/{name}.caffemodel", "sha256": digest})
        file.write_text(json.dumps(manifest))
    expected = [["small from a.caffemodel", "1, 2"], ["small from a.caffemodel", "3"], ["small from b.caffemodel", "4"]]
    assert [[row[0], row[2]] for row in rows(tmp_path)] == expected


def test_figures_that_an_evaluation_lacks_are_dashes(tmp_path: Path) -> None:
    write_run(tmp_path, "runs/small", 0.6)
    file = tmp_path / "runs/small/evaluation/evaluation.json"
    result = json.loads(file.read_text())
    del result["databases"]["test"]["without_training_duplicates"], result["databases"]["test"]["views"]["ten_crop"]
    file.write_text(json.dumps(result))
    assert rows(tmp_path)[0][5:] == ["60.00%", "61.00%", "–", "–"]


def test_what_is_no_evaluated_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match="none: no such folder; expected a data set's"):
        find_results(tmp_path / "none")
    with pytest.raises(StageError, match="no evaluated run; expected runs/RUN/evaluation"):
        find_results(tmp_path)
    write_run(tmp_path, "runs/small", 0.6)
    monkeypatch.setattr(sys, "argv", ["summary", str(tmp_path)])
    main()
    assert capsys.readouterr().out.endswith("| small | mtcnn | 1 | 10 | 50.00% | 60.00% | 61.00% | 62.00% | 57.00% |\n")
    (tmp_path / "runs/small/evaluation/evaluation.json").write_text("[]")
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 1
    assert "evaluation.json: TypeError" in capsys.readouterr().err
