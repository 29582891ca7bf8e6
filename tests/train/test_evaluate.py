"""The evaluation: metrics by hand-worked examples, and whole runs on a net whose answers are known."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_model import band_face, band_probabilities, make_model, write_database

import caffe
from preprocessing.datasets import EMOTIONS
from preprocessing.network_input import FaceNetwork, class_names, faces_to_input
from preprocessing.stage import StageError
from train.evaluate import class_metrics, confusion_matrix, draw_confusion, write_evaluation

ROOT = Path(__file__).parents[2]


def test_confusion_has_rows_of_true_and_columns_of_predicted_classes() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    assert confusion_matrix(labels, predicted, 3).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_metrics_worked_out_by_hand() -> None:
    # class 0: 2 right of 3 there are and of 4 predicted; class 1: 1 of 2 and of 2; class 2: never predicted;
    # class 3: has no images and is never predicted
    metrics = class_metrics(np.array([[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    assert metrics["precision"].tolist() == [1 / 2, 1 / 2, 0, 0]
    assert metrics["recall"].tolist() == [2 / 3, 1 / 2, 0, 0]
    assert metrics["f1"].tolist() == [pytest.approx(4 / 7), 1 / 2, 0, 0]
    assert metrics["support"].tolist() == [3, 2, 1, 0]


def test_input_is_the_centre_minus_the_means_centre() -> None:
    face = np.arange(48 * 48).reshape(1, 48, 48) % 256
    mean = np.linspace(0, 255, 48 * 48, dtype=np.float32).reshape(1, 48, 48)
    out = faces_to_input(face.astype(np.uint8), mean, (42, 42))
    assert out.shape == (1, 1, 42, 42)
    assert out.dtype == np.float32
    for y, x in ((0, 0), (41, 41), (7, 30)):  # by Caffe's rule: offset (48 - 42) / 2
        assert out[0, 0, y, x] == np.float32(face[0, y + 3, x + 3]) - mean[0, y + 3, x + 3]


def test_input_equals_what_caffes_data_layer_gives_in_the_test_phase(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    faces = random.integers(0, 256, (6, 48, 48), np.uint8)
    mean = random.uniform(0, 255, (1, 48, 48)).astype(np.float32)
    write_database(tmp_path / "lmdb", list(faces), [0] * 6)
    caffe.io.save_mean(tmp_path / "mean.binaryproto", mean)
    (tmp_path / "data.prototxt").write_text(
        f'layer {{ name: "data" type: "Data" top: "data" data_param {{ source: "{tmp_path}/lmdb" batch_size: 6 '
        f'backend: LMDB }} transform_param {{ crop_size: 41 mean_file: "{tmp_path}/mean.binaryproto" }} }}'
    )
    net = caffe.Net(str(tmp_path / "data.prototxt"), caffe.TEST)
    net.forward()
    assert np.array_equal(faces_to_input(faces, mean, (41, 41)), net.blobs["data"].data)


def test_input_refuses_faces_of_another_size() -> None:
    mean = np.zeros((1, 48, 48), np.float32)
    with pytest.raises(ValueError, match="faces are 1×64×64; the mean is 1×48×48"):
        faces_to_input(np.zeros((2, 64, 64), np.uint8), mean, (42, 42))
    with pytest.raises(ValueError, match="input is 50×42; the faces are 48×48"):
        faces_to_input(np.zeros((2, 48, 48), np.uint8), mean, (50, 42))


def test_probabilities_of_a_net_known_by_hand(tmp_path: Path) -> None:
    network = FaceNetwork(*make_model(tmp_path), device="cpu")
    face = band_face(1, 50)
    face[:, 3 + 6 * 5 : 9 + 6 * 5] = 25  # band 5
    plain, mirrored = network.probabilities(face[None]), network.probabilities(face[None], mirror=True)
    levels = [0.0, 50, 0, 0, 0, 25, 0]
    assert np.allclose(plain[0], band_probabilities(levels), atol=1e-5)
    expected = (band_probabilities(levels) + band_probabilities(levels[::-1])) / 2
    assert np.allclose(mirrored[0], expected, atol=1e-5)
    assert network.probabilities(np.empty((0, 48, 48), np.uint8)).shape == (0, 7)


def test_mirror_flips_after_the_mean_is_subtracted_as_in_training(tmp_path: Path) -> None:
    deploy, weights, mean = make_model(tmp_path)
    caffe.io.save_mean(mean, band_face(2, 100)[None].astype(np.float32))  # a mean that is not symmetric
    network = FaceNetwork(deploy, weights, mean, device="cpu")
    result = network.probabilities(band_face(2, 100)[None], mirror=True)
    assert np.allclose(result, 1 / 7, atol=1e-6)  # the face is the mean: nothing is left, mirrored or not


def known_database(folder: Path) -> tuple[Path, list[tuple[int, int]]]:
    """An LMDB of 300 faces (more than one batch) and the (true, predicted) pair of each."""
    pairs = [(i % 7, i % 7 if i % 4 else (i + 2) % 7) for i in range(300)]
    faces = [band_face(predicted, 120 + i % 100) for i, (_, predicted) in enumerate(pairs)]
    return write_database(folder, faces, [true for true, _ in pairs]), pairs


def test_every_record_counts_once_and_the_files_agree(tmp_path: Path) -> None:
    database, pairs = known_database(tmp_path / "val_lmdb")
    model = make_model(tmp_path / "model")
    output = tmp_path / "evaluation"
    write_evaluation(FaceNetwork(*model, device="cpu"), {"val": database, "again": database}, model[2], output)
    expected = [[sum(p == (true, column) for p in pairs) for column in range(7)] for true in range(7)]
    result = json.loads((output / "evaluation.json").read_text())["databases"]["val"]
    assert result["confusion"] == expected
    assert (result["images"], result["correct"]) == (300, 225)
    assert result["accuracy"] == 0.75
    assert "mirrored" not in result
    assert result["classes"]["happy"]["support"] == sum(true == 3 for true, _ in pairs)
    with open(output / "confusion_val.csv", newline="") as f:
        table = list(csv.reader(f))
    assert table[0] == ["true", *EMOTIONS]
    assert [[int(n) for n in row[1:]] for row in table[1:]] == expected
    text = (output / "evaluation.md").read_text()
    assert "| val | 300 | **75.00%** |" in text
    assert sorted(p.name for p in output.iterdir()) == [
        "confusion_again.csv", "confusion_again.png", "confusion_val.csv", "confusion_val.png",
        "evaluation.json", "evaluation.md", "manifest.json",
    ]  # fmt: skip
    picture = cv2.imread(str(output / "confusion_val.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 500


def test_images_that_stand_in_training_too_are_left_out_of_a_second_figure(tmp_path: Path) -> None:
    faces = [band_face(0), band_face(1), band_face(2), band_face(3)]
    test = write_database(tmp_path / "test_lmdb", [*faces, band_face(3)], [0, 1, 6, 6, 3])
    # the training set has faces 0 and 2 (under other labels and keys); both true test classes 0 and 6 lose one image
    train = write_database(tmp_path / "train_lmdb", [band_face(6), band_face(2), band_face(0)], [1, 1, 1])
    model = make_model(tmp_path / "model")
    evaluation = write_evaluation(
        FaceNetwork(*model, device="cpu"),
        {"test": test},
        model[2],
        tmp_path / "out",
        mirror=True,
        exclude_duplicates_of=train,
    )[0]
    result = evaluation.to_dict()
    assert result["accuracy"] == 3 / 5
    assert result["without_training_duplicates"]["duplicates"] == 2
    assert result["without_training_duplicates"]["images"] == 3
    assert result["without_training_duplicates"]["accuracy"] == pytest.approx(2 / 3)
    assert result["mirrored"]["images"] == 5
    assert "without the 2 that" not in (tmp_path / "out/evaluation.md").read_text()
    assert "66.67% of 3" in (tmp_path / "out/evaluation.md").read_text()


def test_other_numbers_of_classes_get_plain_names(tmp_path: Path) -> None:
    network = FaceNetwork(*make_model(tmp_path, classes=3), device="cpu")
    assert network.classes == ("class_0", "class_1", "class_2")
    assert class_names(7) == EMOTIONS


def test_the_same_output_folder_is_replaced_but_no_other(tmp_path: Path) -> None:
    database, _ = known_database(tmp_path / "val_lmdb")
    model = make_model(tmp_path / "model")
    network = FaceNetwork(*model, device="cpu")
    output = tmp_path / "evaluation"
    write_evaluation(network, {"test": database}, model[2], output)
    write_evaluation(network, {"val": database}, model[2], output)
    assert not (output / "confusion_test.png").exists()
    with pytest.raises(StageError, match="was not written by this stage"):
        write_evaluation(network, {"val": database}, model[2], tmp_path / "model")
    assert model[1].is_file()


def test_a_database_that_does_not_fit_is_an_error_and_leaves_the_old_output(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    network = FaceNetwork(*model, device="cpu")
    good, _ = known_database(tmp_path / "good")
    write_evaluation(network, {"val": good}, model[2], tmp_path / "out")
    before = (tmp_path / "out/evaluation.json").read_bytes()
    large = write_database(tmp_path / "large", [np.zeros((64, 64), np.uint8)], [0])
    labelled = write_database(tmp_path / "labelled", [band_face(0), band_face(1)], [0, 7])
    for database, message in (
        (large, "its images are 1×64×64; the mean is 1×48×48"),
        (labelled, r"record 1 has the label 7; expected 0\.\.6"),
        (tmp_path / "none", "none: not an LMDB"),
    ):
        with pytest.raises(StageError, match=message):
            write_evaluation(network, {"val": good, "test": database}, model[2], tmp_path / "out")
    assert (tmp_path / "out/evaluation.json").read_bytes() == before


def test_models_that_are_not_whole_are_named(tmp_path: Path) -> None:
    deploy, weights, mean = make_model(tmp_path / "a")
    with pytest.raises(StageError, match=r"nothing\.caffemodel: no such file; expected the weights"):
        FaceNetwork(deploy, tmp_path / "nothing.caffemodel", mean)
    scores, score_weights, _ = make_model(tmp_path / "b", softmax=False)
    with pytest.raises(StageError, match=r"not 7 probabilities.*Softmax"):
        FaceNetwork(scores, score_weights, mean, device="cpu").probabilities(band_face(3)[None])
    big, big_weights, _ = make_model(tmp_path / "c", size=50)
    with pytest.raises(StageError, match=r"input is 1×1×50×50; the mean .* is only 1×48×48"):
        FaceNetwork(big, big_weights, mean, device="cpu")
    net = caffe.Net(str(deploy), str(weights), caffe.TEST)
    net.params["score"][0].data[0, 0] = math.nan
    net.save(str(weights))
    with pytest.raises(StageError, match="not 7 probabilities"):
        FaceNetwork(deploy, weights, mean, device="cpu").probabilities(band_face(0)[None])


def test_the_picture_says_counts_and_shares_of_rows() -> None:
    figure = draw_confusion(np.array([[3, 1], [0, 0]]), ("happy", "sad"), "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["75.0%\n3", "25.0%\n1", "0.0%\n0", "0.0%\n0"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["happy\n(4)", "sad\n(0)"]


def test_the_command(tmp_path: Path) -> None:
    database, _ = known_database(tmp_path / "val_lmdb")
    deploy, weights, mean = (str(path) for path in make_model(tmp_path / "model"))
    arguments = [deploy, weights, "--mean", mean, "--output", str(tmp_path / "out"), "--device", "cpu"]
    command = [sys.executable, "-m", "train.evaluate", *arguments]
    run = subprocess.run([*command, "--lmdb", f"val={database}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "val: accuracy 75.00% of 300 images" in run.stdout
    assert any(line.split()[:1] == ["happy"] for line in run.stdout.splitlines())
    run = subprocess.run(
        [*command, "--lmdb", f"val={tmp_path}/none"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr
