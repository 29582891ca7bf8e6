"""The evaluation: metrics by hand-worked examples, and whole runs on a net whose answers are known."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tiny_model import SOFTMAX, band_face, band_probabilities, make_model, write_database

import caffe
from preprocessing.classes import default_classes, write_classes
from preprocessing.datasets import EMOTIONS
from preprocessing.network_input import FaceNetwork, faces_to_input, soften
from preprocessing.stage import StageError
from train.calibrate import calibrate, draw_reliability, find_temperature, negative_log_likelihood, reliability
from train.ensemble import Ensemble, alignment, member, trained_files
from train.evaluate import (
    Answers,
    Evaluation,
    class_metrics,
    confusion_matrix,
    count,
    draw_confusion,
    fingerprints,
    macro_averages,
    main,
    print_summary,
    to_markdown,
    write_calibration,
    write_evaluation,
)

ROOT = Path(__file__).parents[2]


def test_confusion_has_rows_of_true_and_columns_of_predicted_classes() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    assert confusion_matrix(labels, predicted, 3).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_metrics_worked_out_by_hand() -> None:
    # class 0: 2 right of 3 there are and of 4 predicted; class 1: 1 of 2 and of 2; class 2: never predicted;
    # class 3: has no images and is never predicted
    confusion = np.array([[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    metrics = class_metrics(confusion)
    assert metrics["precision"].tolist() == [1 / 2, 1 / 2, 0, 0]
    assert metrics["recall"].tolist() == [2 / 3, 1 / 2, 0, 0]
    assert metrics["f1"].tolist() == [pytest.approx(4 / 7), 1 / 2, 0, 0]
    assert metrics["support"].tolist() == [3, 2, 1, 0]
    # over the three that there are images of, though of one there is a single one
    assert macro_averages(confusion) == {
        "precision": pytest.approx((1 / 2 + 1 / 2) / 3),
        "recall": pytest.approx((2 / 3 + 1 / 2) / 3),
        "f1": pytest.approx((4 / 7 + 1 / 2) / 3),
    }


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


@pytest.mark.parametrize(
    ("crop", "top", "left"),
    [("centre", 1, 2), ("top left", 0, 0), ("top right", 0, 5), ("bottom left", 3, 0), ("bottom right", 3, 5)],
)
def test_the_crops_of_faces_that_are_not_square(crop: str, top: int, left: int) -> None:
    """Faces of 7×10 for a net that sees 4×5, in two channels."""
    random = np.random.default_rng(2)
    faces, mean = random.integers(0, 256, (3, 2, 7, 10), np.uint8), random.uniform(0, 255, (2, 7, 10))
    plain, mirrored = (faces_to_input(faces, mean, (4, 5), crop, turned) for turned in (False, True))
    assert plain.shape == mirrored.shape == (3, 2, 4, 5)
    for n, c, y, x in np.ndindex(plain.shape):
        expected = float(faces[n, c, top + y, left + x]) - mean[c, top + y, left + x]
        assert plain[n, c, y, x] == mirrored[n, c, y, 4 - x] == pytest.approx(expected, abs=1e-4)


def test_input_refuses_faces_of_another_size() -> None:
    mean = np.zeros((1, 48, 48), np.float32)
    with pytest.raises(ValueError, match="faces are 1×64×64; the mean is 1×48×48"):
        faces_to_input(np.zeros((2, 64, 64), np.uint8), mean, (42, 42))
    for height, width in ((50, 42), (42, 50)):
        with pytest.raises(ValueError, match=f"input is {height}×{width}; the faces are 48×48"):
            faces_to_input(np.zeros((2, 48, 48), np.uint8), mean, (height, width))


def test_probabilities_of_a_net_known_by_hand(tmp_path: Path) -> None:
    network = FaceNetwork(*make_model(tmp_path), device="cpu")
    face = band_face(1, 50)
    face[:, 3 + 6 * 5 : 9 + 6 * 5] = 25  # band 5
    plain, mirrored = network.probabilities(face[None]), network.probabilities(face[None], "mirror")
    levels = [0.0, 50, 0, 0, 0, 25, 0]
    assert np.allclose(plain[0], band_probabilities(levels), atol=1e-5)
    expected = (band_probabilities(levels) + band_probabilities(levels[::-1])) / 2
    assert np.allclose(mirrored[0], expected, atol=1e-5)
    assert network.probabilities(np.empty((0, 48, 48), np.uint8)).shape == (0, 7)


def test_a_net_of_faces_that_are_not_square(tmp_path: Path) -> None:
    """It sees 3×5 of 6×8 pixels, and its scores are their sum and the left column's."""
    (tmp_path / "deploy.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 3 dim: 5 } } } '
        'layer { name: "score" type: "InnerProduct" bottom: "data" top: "score" '
        f"inner_product_param {{ num_output: 2 }} }} {SOFTMAX}"
    )
    net = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    net.params["score"][0].data[...] = [np.ones(15), np.tile([1, 0, 0, 0, 0], 3)]
    net.save(str(tmp_path / "sums.caffemodel"))
    random = np.random.default_rng(1)
    mean = random.uniform(0, 1, (1, 6, 8)).astype(np.float32)
    caffe.io.save_mean(tmp_path / "mean.binaryproto", mean)
    files = [tmp_path / name for name in ("deploy.prototxt", "sums.caffemodel", "mean.binaryproto")]
    network = FaceNetwork(*files, device="cpu")
    assert (network.input_size, network.face_shape) == ((3, 5), (1, 6, 8))
    face = random.integers(0, 2, (6, 8), np.uint8)
    crop = (face - mean[0])[1:4, 1:6]
    np.testing.assert_allclose(network.input_tensor(face), crop[None, None], atol=1e-6)
    score = crop.sum() - crop[:, 0].sum()
    assert network.probabilities(face[None])[0, 0] == pytest.approx(1 / (1 + np.exp(-score)), abs=1e-6)
    for shape in ((1, 2, 8), (1, 6, 4)):
        caffe.io.save_mean(files[2], np.zeros(shape, np.float32))
        with pytest.raises(StageError, match=r"its input is 1×1×3×5; the mean .* is only"):
            FaceNetwork(*files, device="cpu")


def test_mirror_flips_after_the_mean_is_subtracted_as_in_training(tmp_path: Path) -> None:
    deploy, weights, mean = make_model(tmp_path)
    caffe.io.save_mean(mean, band_face(2, 100)[None].astype(np.float32))  # a mean that is not symmetric
    network = FaceNetwork(deploy, weights, mean, device="cpu")
    result = network.probabilities(band_face(2, 100)[None], "mirror")
    assert np.allclose(result, 1 / 7, atol=1e-6)  # the face is the mean: nothing is left, mirrored or not


def test_ten_crops_are_the_corners_and_the_centre_each_mirrored_too(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    mean = random.uniform(0, 255, (1, 48, 48)).astype(np.float32)
    deploy, weights, mean_file = make_model(tmp_path)
    caffe.io.save_mean(mean_file, mean)
    faces = random.integers(0, 256, (4, 48, 48), np.uint8)
    answers = FaceNetwork(deploy, weights, mean_file, device="cpu").probabilities(faces, "ten_crop")
    expected = []
    for face in faces - mean:  # the score of class k is the sum of band k of the crop over 6 · 42 · 25
        crops = [face[y : y + 42, x : x + 42] for y, x in ((0, 0), (0, 6), (6, 0), (6, 6), (3, 3))]
        bands = np.array(
            [c.reshape(42, 7, 6).sum((0, 2)) / (6 * 42 * 25) for c in (*crops, *(c[:, ::-1] for c in crops))]
        )
        expected.append((np.exp(bands) / np.exp(bands).sum(1, keepdims=True)).mean(0))
    assert np.allclose(answers, expected, atol=1e-5)
    with pytest.raises(ValueError, match="views is 'five'; expected one of centre, mirror, ten_crop"):
        FaceNetwork(deploy, weights, mean_file, device="cpu").probabilities(faces, "five")


def test_where_nothing_is_cropped_ten_crops_are_the_mirrored_pair(tmp_path: Path) -> None:
    network = FaceNetwork(*make_model(tmp_path, size=48), device="cpu")
    faces = np.random.default_rng(1).integers(0, 256, (3, 48, 48), np.uint8)
    assert np.allclose(network.probabilities(faces, "ten_crop"), network.probabilities(faces, "mirror"), atol=1e-7)


def known_database(folder: Path) -> tuple[Path, list[tuple[int, int]]]:
    """An LMDB of 300 faces (more than one batch) and the (true, predicted) pair of each."""
    pairs = [(i % 7, i % 7 if i % 4 else (i + 2) % 7) for i in range(300)]
    faces = [band_face(predicted, 120 + i % 100) for i, (_, predicted) in enumerate(pairs)]
    return write_database(folder, faces, [true for true, _ in pairs]), pairs


def test_every_record_counts_once_and_the_files_agree(tmp_path: Path) -> None:
    database, pairs = known_database(tmp_path / "val_lmdb")
    model = make_model(tmp_path / "model")
    output = tmp_path / "evaluation"
    write_evaluation(FaceNetwork(*model, device="cpu"), {"val": [database], "again": [database]}, output)
    expected = [[sum(p == (true, column) for p in pairs) for column in range(7)] for true in range(7)]
    result = json.loads((output / "evaluation.json").read_text())["databases"]["val"]
    assert result["confusion"] == expected
    assert (result["images"], result["correct"]) == (300, 225)
    assert result["accuracy"] == 0.75
    assert result["views"] == {"centre": {"images": 300, "correct": 225, "accuracy": 0.75}}
    assert "calibration" not in result
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
        {"test": [test]},
        tmp_path / "out",
        ["centre", "mirror"],
        exclude_duplicates_of=[train],
    )[0]
    result = evaluation.to_dict()
    assert result["accuracy"] == 3 / 5
    assert result["without_training_duplicates"]["duplicates"] == 2
    assert result["without_training_duplicates"]["images"] == 3
    assert result["without_training_duplicates"]["accuracy"] == pytest.approx(2 / 3)
    assert result["views"]["mirror"]["images"] == 5
    assert result["without_training_duplicates"]["views"]["mirror"]["images"] == 3
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["stage"] == "evaluate"
    assert manifest["settings"] == {
        "databases": {"test": str(test)},
        "views": ["centre", "mirror"],
        "calibrate_on": None,
        "exclude_duplicates_of": str(train),
    }
    assert [entry["file"] for entry in manifest["inputs"]] == list(map(str, model))
    assert manifest["counts"] == {"test": {"images": 5, "correct": 3, "accuracy": 0.6}}
    assert "without the 2 that" not in (tmp_path / "out/evaluation.md").read_text()
    assert "66.67% of 3" in (tmp_path / "out/evaluation.md").read_text()


def worked_out_by_hand() -> Evaluation:
    """Five faces of two databases: three happy and two sad ones, the first of which stands in training too."""
    labels = np.array([0, 0, 0, 1, 1])
    predicted = {"centre": [0, 0, 1, 1, 0], "mirror": [0, 0, 0, 1, 0]}
    probabilities = {view: np.full((5, 3), 0.1) + 0.7 * np.eye(3)[numbers] for view, numbers in predicted.items()}
    new = np.array([False, True, True, True, True])
    parts = [
        Answers(labels[part], {view: p[part] for view, p in probabilities.items()}, new[part], {"contempt": count})
        for part, count in ((slice(0, 3), 2), (slice(3, 5), 1))
    ]
    evaluation = count("test", ("happy", "sad", "calm"), {Path("a"): parts[0], Path("b"): parts[1]})
    evaluation.calibration = calibrate(probabilities["centre"], labels, 2.0)
    return evaluation


def test_what_is_said_of_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = worked_out_by_hand()
    result = evaluation.to_dict()
    calibration = result.pop("calibration")
    shares = {
        "centre": {"images": 5, "correct": 3, "accuracy": 0.6},
        "mirror": {"images": 5, "correct": 4, "accuracy": 0.8},
    }
    new = {
        "centre": {"images": 4, "correct": 2, "accuracy": 0.5},
        "mirror": {"images": 4, "correct": 3, "accuracy": 0.75},
    }
    two_thirds = pytest.approx(2 / 3)
    assert result == {
        "source": "a,b",
        **shares["centre"],
        "views": shares,
        "without_training_duplicates": {"duplicates": 1, **new["centre"], "views": new},
        "left_out_classes": {"contempt": 3},
        "macro": dict.fromkeys(("precision", "recall", "f1"), pytest.approx((2 / 3 + 1 / 2) / 2)),
        "classes": {
            "happy": {"precision": two_thirds, "recall": two_thirds, "f1": two_thirds, "support": 3},
            "sad": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
            "calm": {"precision": 0, "recall": 0, "f1": 0, "support": 0},
        },
        "confusion": [[2, 1, 0], [1, 1, 0], [0, 0, 0]],
    }
    # all are 0.8 sure, and 0.6 are right; by the temperature 2 the shares are those of the square roots
    sure = 0.8**0.5 / (0.8**0.5 + 2 * 0.1**0.5)
    likelihood = (3 * -math.log(0.8) + 2 * -math.log(0.1)) / 5
    calibrated = (3 * -math.log(sure) + 2 * -math.log((1 - sure) / 2)) / 5
    assert calibration == {
        "ece": pytest.approx(0.2),
        "ece_calibrated": pytest.approx(0.6 - sure),
        "nll": pytest.approx(likelihood),
        "nll_calibrated": pytest.approx(calibrated),
    }
    print_summary(evaluation)
    assert capsys.readouterr().out.splitlines() == [
        "test: accuracy 60.00% of 5 images, 80.00% mirrored, without the 1 that stand in the training set too "
        "50.00% centre, 75.00% mirrored, calibration error 20.00%, calibrated 1.42%",
        "  Left out, since the net has no such class: 3 contempt",
        "                 precision  recall      F1  images",
        "  happy              66.7%   66.7%   66.7%       3",
        "  sad                50.0%   50.0%   50.0%       2",
        "  calm                0.0%    0.0%    0.0%       0",
        "  macro average      58.3%   58.3%   58.3%       5",
    ]


def test_the_page_on_an_evaluation() -> None:
    page = to_markdown([worked_out_by_hand()], SimpleNamespace(name="my net"))  # type: ignore[arg-type]
    *tables, end = page.split("\n\n")
    assert tables == [
        "# Evaluation of my net",
        "| database | images | centre | mirrored | centre, without images of the training set "
        "| mirrored, without images of the training set |\n"
        "|---|--:|--:|--:|--:|--:|\n"
        "| test | 5 | **60.00%** | 80.00% | 50.00% of 4 | 75.00% of 4 |",
        "Expected calibration error (15 bins) and negative log-likelihood, as trained and with the logits divided by "
        "the temperature 2.0000, which changes no answer:",
        "| database | ECE | calibrated | NLL | calibrated |\n|---|--:|--:|--:|--:|\n"
        "| test | 20.00% | 1.42% | 1.0549 | 0.9507 |",
        "![reliability diagrams](reliability.png)",
        "## test",
        "| emotion | precision | recall | F1 | images |\n|---|--:|--:|--:|--:|\n"
        "| happy | 66.7% | 66.7% | 66.7% | 3 |\n| sad | 50.0% | 50.0% | 50.0% | 2 |\n"
        "| calm | 0.0% | 0.0% | 0.0% | 0 |\n"
        "| **macro average** | 58.3% | 58.3% | 58.3% | 5 |",
        "Left out, since the net has no such class: 3 contempt.",
        "![confusion matrix of test](confusion_test.png)",
    ]
    assert end.startswith(
        "Every image of each database counts once. The tables and matrices of the emotions are by the c"
    )
    assert end.endswith("that there are images of.\n")


def test_other_numbers_of_classes_get_plain_names(tmp_path: Path) -> None:
    network = FaceNetwork(*make_model(tmp_path, classes=3), device="cpu")
    assert network.classes == ("class_0", "class_1", "class_2")
    assert default_classes(7) == EMOTIONS


def test_the_same_output_folder_is_replaced_but_no_other(tmp_path: Path) -> None:
    database, _ = known_database(tmp_path / "val_lmdb")
    model = make_model(tmp_path / "model")
    network = FaceNetwork(*model, device="cpu")
    output = tmp_path / "evaluation"
    output.mkdir()
    write_evaluation(network, {"test": [database]}, output)
    write_evaluation(network, {"val": [database]}, output)
    assert not (output / "confusion_test.png").exists()
    (tmp_path / "file").touch()
    for other in ("model", "file"):
        with pytest.raises(StageError, match=f"{other}: exists and was not written by this stage"):
            write_evaluation(network, {"val": [database]}, tmp_path / other)
    assert model[1].is_file()
    with pytest.raises(ValueError, match="calibrate_on is 'test'; expected one of val"):
        write_evaluation(network, {"val": [database]}, output, calibrate_on="test")


def test_a_database_that_does_not_fit_is_an_error_and_leaves_the_old_output(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    network = FaceNetwork(*model, device="cpu")
    good, _ = known_database(tmp_path / "good")
    write_evaluation(network, {"val": [good]}, tmp_path / "out")
    before = (tmp_path / "out/evaluation.json").read_bytes()
    large = write_database(tmp_path / "large", [np.zeros((64, 64), np.uint8)], [0])
    labelled = write_database(tmp_path / "labelled", [band_face(0), band_face(1)], [0, 7])
    for database, message in (
        (large, "its images are 1×64×64; the mean is 1×48×48"),
        (labelled, r"record 1 has the label 7; expected 0\.\.6"),
        (tmp_path / "none", "none: not an LMDB"),
    ):
        with pytest.raises(StageError, match=message):
            write_evaluation(network, {"val": [good], "test": [database]}, tmp_path / "out")
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


def test_nets_that_are_none_of_one_face_and_its_probabilities_are_named(tmp_path: Path) -> None:
    deploy, weights, mean = make_model(tmp_path)
    text = deploy.read_text()
    more = 'layer { name: "more" type: "Input" top: "more" input_param { shape { dim: 1 } } }'
    join = 'layer { name: "join" type: "Silence" bottom: "more" }'
    for changed, message in (
        (text + more + join, r"has the inputs \['data', 'more'\] and the outputs \['prob'\]"),
        (
            text + SOFTMAX.replace('"prob"', '"again"'),
            r"the inputs \['data'\] and the outputs \['again', 'prob'\]; exp",
        ),
        (
            text.replace("dim: 1 dim: 1 dim: 42 dim: 42", "dim: 1 dim: 1764"),
            "its input is 1×1764; expected N×1×H×W, as",
        ),
        (text.replace("dim: 1 dim: 1", "dim: 1 dim: 4").replace("42", "21"), "input is 1×4×21×21; expected N×1×H×W"),
        (
            text + 'layer { name: "sum" type: "Reduction" bottom: "prob" top: "sum" }',
            "its output is one number; expected N×classes",
        ),
    ):
        deploy.write_text(changed)
        with pytest.raises(StageError, match=rf"deploy\.prototxt: .*{message}"):
            FaceNetwork(deploy, weights, mean, device="cpu")
    deploy.write_text(text)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(StageError, match=r"classes\.txt: 2 names; expected 7, the outputs of"):
        FaceNetwork(deploy, weights, mean, device="cpu")
    mean.write_bytes(b"no mean")
    with pytest.raises(StageError, match=r"mean\.binaryproto: "):
        FaceNetwork(deploy, weights, mean, device="cpu")


def test_the_picture_says_counts_and_shares_of_rows() -> None:
    figure = draw_confusion(np.array([[3, 1], [0, 0]]), ("happy", "sad"), "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["75.0%\n3", "25.0%\n1", "0.0%\n0", "0.0%\n0"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["happy\n(4)", "sad\n(0)"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    database, _ = known_database(tmp_path / "val_lmdb")
    deploy, weights, mean = (str(path) for path in make_model(tmp_path / "model"))
    arguments = [deploy, weights, "--mean", mean, "--output", str(tmp_path / "out"), "--device", "cpu"]
    command = [sys.executable, "-m", "train.evaluate", *arguments]
    more = ["--lmdb", f"val={database}", "--views", "centre", "mirror", "--calibrate-on", "val"]
    run = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "val: accuracy 75.00% of 300 images" in run.stdout
    calibration = json.loads((tmp_path / "model/calibration.json").read_text())
    assert set(calibration["temperatures"]) == {"centre", "mirror"}
    assert min(calibration["temperatures"].values()) > 1
    assert calibration["weights_sha256"] == hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert any(line.split()[:1] == ["happy"] for line in run.stdout.splitlines())
    run = subprocess.run(
        [*command, "--lmdb", f"val={tmp_path}/none"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr
    for options, message in (
        (["--views", "mirror", "--calibrate-on", "val"], "the first of --views is mirror; expected centre"),
        (["--views", "mirror", "mirror"], "--views: a name is given twice"),
        (["--lmdb", f"val={database}"], "--lmdb: a name is given twice"),
        (["--calibrate-on", "test"], "--calibrate-on is test; expected one of val"),
    ):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "--lmdb", f"val={database}", *options])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_leaves_out_what_stands_in_either_of_two_databases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy, weights, mean = map(str, make_model(tmp_path / "model"))
    test = write_database(tmp_path / "test_lmdb", [band_face(k) for k in range(4)], [0, 1, 2, 3])
    train, val = (write_database(tmp_path / f"{k}_lmdb", [band_face(k)], [k]) for k in (1, 3))
    arguments = [deploy, weights, "--mean", mean, "--output", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--lmdb", f"test={test}", "--exclude-duplicates-of", f"{train},{val}"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    main()
    result = json.loads((tmp_path / "out/evaluation.json").read_text())["databases"]["test"]
    left = result["without_training_duplicates"]
    assert (result["images"], left["duplicates"], left["images"]) == (4, 2, 2)
    assert not (tmp_path / "model/calibration.json").exists()


# Another data set's classes

NET_CLASSES = ("happy", "fear", "sad", "angry", "neutral", "disgust", "surprise")  # of a net that has its own order


def other_data_set(folder: Path, classes: tuple[str, ...] | None) -> tuple[FaceNetwork, Path]:
    """A net with NET_CLASSES, and a folder for LMDBs whose classes.txt has `classes`."""
    files = make_model(folder / "model")
    write_classes(folder / "model", NET_CLASSES)
    (folder / "data").mkdir()
    if classes is not None:
        write_classes(folder / "data", classes)
    return FaceNetwork(*files, device="cpu"), folder / "data"


def faces_that_look(*names: str) -> list[np.ndarray]:
    """Faces that the net takes for those."""
    return [band_face(NET_CLASSES.index(name)) for name in names]


def test_labels_are_mapped_by_the_names_of_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = ("neutral", "contempt", "angry", "happy")  # labels 0 to 3
    network, data = other_data_set(tmp_path, theirs)
    truth = ("neutral", "neutral", "contempt", "angry", "happy", "happy", "contempt", "angry", "neutral")
    seen = ("neutral", "happy", "fear", "angry", "happy", "surprise", "happy", "happy", "neutral")
    database = write_database(data / "test_lmdb", faces_that_look(*seen), [theirs.index(name) for name in truth])
    evaluation = write_evaluation(network, {"test": [database]}, tmp_path / "out")[0]

    counted = [pair for pair in zip(truth, seen, strict=True) if pair[0] != "contempt"]
    expected = [[counted.count((true, predicted)) for predicted in NET_CLASSES] for true in NET_CLASSES]
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    figures = result["databases"]["test"]
    assert figures["confusion"] == evaluation.confusion.tolist() == expected
    assert (figures["images"], figures["correct"], figures["accuracy"]) == (7, 4, 4 / 7)  # of 9, 2 show contempt
    assert figures["left_out_classes"] == {"contempt": 2}
    assert result["model"]["classes"] == list(NET_CLASSES)
    # of the classes that there are images of: neutral 2 of 3, angry 1 of 2, happy 1 of 2; happy was said 3 times
    assert figures["macro"]["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert figures["macro"]["precision"] == pytest.approx((2 / 2 + 1 / 1 + 1 / 3) / 3)
    assert figures["classes"]["surprise"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    sentence = "Left out, since the net has no such class: 2 contempt"
    assert f"{sentence}.\n" in (tmp_path / "out/evaluation.md").read_text()
    assert f"  {sentence}\n" in capsys.readouterr().out


def test_several_databases_count_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = other_data_set(tmp_path, ("sad", "contempt", "fear"))
    parts = {"train": ("sad", "fear", "fear"), "val": ("contempt", "sad"), "test": ("contempt", "fear", "sad")}
    paths = []
    for name, truth in parts.items():
        seen = faces_that_look(*(["sad"] * len(truth)))
        labels = [("sad", "contempt", "fear").index(true) for true in truth]
        paths.append(str(write_database(data / f"{name}_lmdb", seen, labels)))
    model = tmp_path / "model"
    command = ["evaluate", str(model / "deploy.prototxt"), str(model / "bands.caffemodel"), "--mean"]
    command += [str(model / "mean.binaryproto"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--lmdb", f"train={paths[0]}", "--lmdb", f"all={','.join(paths)}"])
    main()
    result = json.loads((tmp_path / "out/evaluation.json").read_text())["databases"]
    assert (result["train"]["images"], result["train"]["correct"]) == (3, 1)
    assert (result["all"]["images"], result["all"]["correct"]) == (6, 3)
    assert result["all"]["left_out_classes"] == {"contempt": 2}
    assert "left_out_classes" not in result["train"]
    assert result["all"]["source"] == ",".join(paths)
    assert not (model / "calibration.json").exists()
    for wrong in (f"all={paths[0]},", f"all={paths[0]},{paths[0]}", "all="):
        monkeypatch.setattr(sys, "argv", [*command, "--lmdb", wrong])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2


def test_a_database_without_names_has_the_seven_emotions(tmp_path: Path) -> None:
    network, data = other_data_set(tmp_path, None)
    seen, labels = faces_that_look("fear", "sad", "sad"), [EMOTIONS.index("fear"), EMOTIONS.index("sad"), 0]
    database = write_database(data / "a_lmdb", seen, labels)
    (evaluation,) = write_evaluation(network, {"a": [database]}, tmp_path / "out")
    assert (evaluation.confusion.sum(), np.trace(evaluation.confusion)) == (3, 2)
    assert evaluation.foreign == {}
    database = write_database(data / "b_lmdb", faces_that_look("fear", "sad"), [EMOTIONS.index("fear"), 7])
    (evaluation,) = write_evaluation(network, {"b": [database]}, tmp_path / "out")
    assert (np.trace(evaluation.confusion), evaluation.foreign) == (1, {"contempt": 1})


def test_classes_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    network, data = other_data_set(tmp_path, ("calm", "excited"))
    database = write_database(data / "a_lmdb", faces_that_look("fear"), [1])
    with pytest.raises(StageError, match=r"a_lmdb: its classes are calm, excited; expected some of the net's, happy, "):
        write_evaluation(network, {"a": [database]}, tmp_path / "out")
    write_classes(data, ("calm", "happy"))
    database = write_database(data / "b_lmdb", faces_that_look("fear", "fear"), [1, 2])
    with pytest.raises(StageError, match=r"record 1 has the label 2; expected 0\.\.1, the classes calm, happy"):
        write_evaluation(network, {"b": [database]}, tmp_path / "out")
    (evaluation,) = write_evaluation(network, {"a": [data / "a_lmdb"]}, tmp_path / "out")
    assert evaluation.confusion.sum() == 1


def test_where_every_image_is_left_out(tmp_path: Path) -> None:
    network, data = other_data_set(tmp_path, ("calm", "happy"))
    database = write_database(data / "a_lmdb", faces_that_look("fear"), [0])
    (evaluation,) = write_evaluation(network, {"a": [database]}, tmp_path / "out", ["centre", "ten_crop"])
    figures = evaluation.to_dict()
    assert (figures["images"], figures["accuracy"], figures["macro"]["f1"]) == (0, 0, 0)
    assert figures["left_out_classes"] == {"calm": 1}


def test_long_names_do_not_run_into_each_other() -> None:
    names = ("happily surprised", "sadly surprised", "x")
    figure = draw_confusion(np.eye(3, dtype=int), names, "title")
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert min(box.x0 for box in boxes) >= 0
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {30}
    figure = draw_confusion(np.eye(8, dtype=int), (*EMOTIONS, "contempt"), "title")
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


# Calibration


def test_a_temperature_that_is_known(tmp_path: Path) -> None:
    """One image in four is wrong and all are equally sure: calibrated, they are sure of three quarters.

    With probability p of the answer and (1 - p) / 6 of each other class, temperature T gives 1 / (1 + 6 r^(1 / T)) for
    r = (1 - p) / (6 p); it is 3 / 4 where r^(1 / T) is 1 / 18.
    """
    pairs = [(i % 7, i % 7 if i % 4 else (i + 2) % 7) for i in range(280)]
    database = write_database(tmp_path / "val_lmdb", [band_face(k, 150) for _, k in pairs], [true for true, _ in pairs])
    model = make_model(tmp_path / "model")
    network = FaceNetwork(*model, device="cpu", calibrated=False)
    before = write_evaluation(network, {"val": [database]}, tmp_path / "out")[0].to_dict()
    evaluation = write_evaluation(network, {"val": [database]}, tmp_path / "out", calibrate_on="val")[0]
    answer = np.exp(150 / 25) / (np.exp(150 / 25) + 6)
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    expected = math.log((1 - answer) / (6 * answer)) / math.log(1 / 18)
    assert result["calibration"] == {"temperature": pytest.approx(expected, rel=1e-5), "chosen_on": "val", "bins": 15}
    figures = result["databases"]["val"].pop("calibration")
    assert result["databases"]["val"] == before, "the accuracy is another"
    assert figures["ece"] == pytest.approx(answer - 0.75, abs=1e-6)
    assert figures["ece_calibrated"] == pytest.approx(0, abs=1e-5)
    assert figures["nll"] == pytest.approx(-0.75 * math.log(answer) - 0.25 * math.log((1 - answer) / 6), rel=1e-5)
    assert figures["nll_calibrated"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25 / 6), rel=1e-5)
    picture = cv2.imread(str(tmp_path / "out/reliability.png"))
    assert picture is not None
    assert picture.shape[1] > 800
    assert f"by the temperature {expected:.4f}" in (tmp_path / "out/evaluation.md").read_text()

    path = write_calibration(model[1], evaluation)
    assert path == tmp_path / "model" / "calibration.json"
    calibrated = FaceNetwork(*model, device="cpu")
    assert calibrated.temperatures == {"centre": pytest.approx(expected, rel=1e-5)}
    assert calibrated.probabilities(band_face(2, 150)[None])[0, 2] == pytest.approx(0.75, abs=1e-4)
    assert FaceNetwork(*model, device="cpu", calibrated=False).probabilities(band_face(2, 150)[None])[0, 2] > 0.98


def test_a_calibration_is_for_the_weights_that_it_names(tmp_path: Path) -> None:
    deploy, weights, mean = make_model(tmp_path)
    file = tmp_path / "calibration.json"
    file.write_text(
        json.dumps(
            {
                "temperatures": {"centre": 2, "mirror": 4},
                "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            }
        )
    )
    levels = [0.0, 50, 0, 0, 0, 25, 0]
    face = (band_face(1, 50) + band_face(5, 25))[None]
    answer = FaceNetwork(deploy, weights, mean, device="cpu").probabilities(face)[0]
    assert np.allclose(answer, band_probabilities([level / 2 for level in levels]), atol=1e-5)
    # the probabilities of several views are averaged first: the answer is that of the net as it is
    plain = FaceNetwork(deploy, weights, mean, device="cpu", calibrated=False).probabilities(face, "mirror")[0]
    softened = FaceNetwork(deploy, weights, mean, device="cpu").probabilities(face, "mirror")[0]
    assert np.allclose(softened, plain**0.25 / (plain**0.25).sum(), atol=1e-6)
    net = caffe.Net(str(deploy), str(weights), caffe.TEST)
    net.params["score"][1].data[0] = 1
    net.save(str(weights))
    assert FaceNetwork(deploy, weights, mean, device="cpu").temperatures == {}
    for text in ("{", "[]", '{"temperatures": {}}', '{"temperatures": {"centre": 0}, "weights_sha256": ""}'):
        file.write_text(text)
        with pytest.raises(StageError, match=r"calibration\.json: .*; expected"):
            FaceNetwork(deploy, weights, mean, device="cpu")


def test_the_temperature_has_the_lowest_likelihood_of_all() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 3, (500, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.where(random.uniform(size=500) < 0.5, logits.argmax(1), random.integers(0, 7, 500))

    def likelihood(temperature: float) -> float:  # by the definition
        scores = logits / temperature
        return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(500), labels]).mean())

    found = find_temperature(probabilities, labels)
    assert 1 < found < 10
    grid = np.geomspace(0.05, 20, 4000)
    assert found == pytest.approx(grid[np.argmin([likelihood(t) for t in grid])], rel=2e-3)
    assert likelihood(found) <= min(likelihood(found * 0.999), likelihood(found * 1.001))
    assert negative_log_likelihood(soften(probabilities, found), labels) == pytest.approx(likelihood(found), rel=1e-9)
    # never right: the less sure the better
    assert find_temperature(probabilities, probabilities.argmin(1)) == 20
    # a tie is lost whatever the temperature, and the other answer is the likelier the surer it is
    assert find_temperature(np.array([[0.5, 0.5], [0.6, 0.4]]), np.array([1, 0])) == 0.05


def test_a_few_answers_that_are_all_right_do_not_make_a_net_sure() -> None:
    """A calibrated net, right in five of six: images that it happens to know say nothing of what it may claim."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 6, (20000, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > random.random((20000, 1))).argmax(1)
    right = np.flatnonzero(probabilities.argmax(1) == labels)[:15]
    temperature = find_temperature(probabilities[right], labels[right])
    assert temperature == 1
    assert (
        reliability(soften(probabilities, temperature), labels).error
        < 0.01
        < 1 - (probabilities.argmax(1) == labels).mean()
    )
    # one that is wrong among them, and the likelihood has its highest place again
    some = np.append(right, np.flatnonzero(probabilities.argmax(1) != labels)[0])
    assert 0.05 < find_temperature(probabilities[some], labels[some]) < 20


def test_expected_calibration_error_worked_out_by_hand() -> None:
    """With 5 bins: 0.45 and 0.6 (an upper edge belongs to its bin) in the third, 0.85 and 1 in the last."""
    sure = np.array([0.45, 0.6, 0.85, 1.0])
    probabilities = np.stack([sure, 0.7 * (1 - sure), 0.3 * (1 - sure)], 1)
    bins = reliability(probabilities, np.array([0, 2, 0, 1]), bins=5)
    assert bins.count.tolist() == [0, 0, 2, 0, 2]
    assert bins.confidence.tolist() == pytest.approx([0, 0, 0.525, 0, 0.925])
    assert bins.accuracy.tolist() == [0, 0, 0.5, 0, 0.5]
    assert bins.error == pytest.approx(0.5 * 0.025 + 0.5 * 0.425)


def test_the_reliability_diagrams_show_the_bins_before_and_after() -> None:
    evaluation = worked_out_by_hand()
    assert evaluation.calibration is not None
    figure = draw_reliability([("test", evaluation.calibration)])
    after = 0.8**0.5 / (0.8**0.5 + 2 * 0.1**0.5)  # sure of 0.8 before, the upper edge of the twelfth bin; 0.6 are right
    for axes, sure, edge in zip(figure.axes, (0.8, after), (11 / 15, 8 / 15), strict=True):
        assert [bar.get_bbox().bounds for bar in axes.patches] == [pytest.approx((edge, 0, 1 / 15, 0.6))]
        diagonal, bins = ([list(line.get_xdata()), list(line.get_ydata())] for line in axes.lines)
        assert diagonal == [[0, 1], [0, 1]]
        assert bins == [[pytest.approx(sure)], [pytest.approx(0.6)]]


def test_probabilities_of_zero_stay_numbers() -> None:
    certain = np.array([[1.0, 0, 0], [0, 1, 0]])
    softened = soften(certain, 4)
    assert np.isfinite(softened).all()
    assert np.allclose(softened.sum(1), 1)
    assert (softened.argmax(1) == [0, 1]).all()
    assert math.isfinite(negative_log_likelihood(certain, np.array([1, 1])))
    answers = [[0.5, 0.5, 0], [1, 0, 0], [0.3, 0.3, 0.4]]
    hard = soften(np.array(answers), 1e-4)  # whose powers are too small for a float64, but for their largest
    assert np.allclose(hard, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]])


def test_an_evaluation_without_its_calibration_is_none(tmp_path: Path) -> None:
    """Where calibration.json cannot be written; make would take the evaluation for a whole one."""
    database, _ = known_database(tmp_path / "val_lmdb")
    model = make_model(tmp_path / "model")
    network = FaceNetwork(*model, device="cpu", calibrated=False)
    (tmp_path / "model/calibration.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_evaluation(network, {"val": [database]}, tmp_path / "out", calibrate_on="val", weights=model[1])
    assert not (tmp_path / "out").exists()


def test_nothing_is_calibrated_by_no_images(tmp_path: Path) -> None:
    network, data = other_data_set(tmp_path, ("calm", "happy"))
    none = write_database(data / "none_lmdb", faces_that_look("fear"), [0])
    some = write_database(data / "some_lmdb", faces_that_look("fear"), [1])
    databases = {"none": [none], "some": [some]}
    with pytest.raises(StageError, match="--calibrate-on none: none of its images is of a class of the net"):
        write_evaluation(network, databases, tmp_path / "out", calibrate_on="none")
    write_evaluation(network, databases, tmp_path / "out", calibrate_on="some")
    result = json.loads((tmp_path / "out/evaluation.json").read_text())["databases"]
    assert ["calibration" in result[name] for name in databases] == [False, True]


# Ensembles


def test_an_ensemble_is_the_mean_of_its_members_with_their_own_means_and_crops(tmp_path: Path) -> None:
    first = make_model(tmp_path / "one", mean=10)
    second = make_model(tmp_path / "two", mean=0, size=48, name="other")
    networks = [FaceNetwork(*files, device="cpu") for files in (first, second)]
    ensemble = Ensemble(networks)
    faces = [band_face(1, 100), band_face(4, 20)]
    views = ["centre", "mirror", "ten_crop"]
    answers = ensemble.answer(write_database(tmp_path / "val_lmdb", faces, [1, 3]), views)
    for view in views:
        expected = sum(network.probabilities(np.stack(faces), view) for network in networks) / 2
        assert np.allclose(answers.probabilities[view], expected)
    assert answers.labels.tolist() == [1, 3]
    assert answers.unseen is None
    assert (ensemble.name, len(ensemble.files)) == ("bands+other", 2)


def test_a_member_sees_the_faces_that_are_aligned_as_it_was_trained(tmp_path: Path) -> None:
    networks = [FaceNetwork(*make_model(tmp_path / name), device="cpu") for name in ("one", "two")]
    path = write_database(tmp_path / "lmdb/val_lmdb", [band_face(1, 100), band_face(4)], [1, 3])
    write_database(tmp_path / "other/val_lmdb", [band_face(2, 50), band_face(6)], [1, 3])
    ensemble = Ensemble(networks, [None, tmp_path / "other"])
    answers = ensemble.answer(path, ["centre"], set(fingerprints(band_face(4)[None, None])))
    levels = [[[0.0] * 7 for _ in range(2)] for _ in range(2)]
    levels[0][0][1], levels[0][1][4], levels[1][0][2], levels[1][1][6] = 100, 200, 50, 200
    expected = np.mean([[band_probabilities(face) for face in member] for member in levels], axis=0)
    assert np.allclose(answers.probabilities["centre"], expected)
    assert answers.unseen is not None
    assert answers.unseen.tolist() == [True, False]  # by the first faces
    assert [files.get("lmdbs") for files in ensemble.files] == [None, str(tmp_path / "other")]

    (path.parent / "test_lmdb").symlink_to(path)
    with pytest.raises(StageError, match="other/test_lmdb: not an LMDB"):
        ensemble.answer(path.parent / "test_lmdb", ["centre"])
    for name, faces, labels in (("fewer", [band_face(1)], [1]), ("turned", [band_face(4), band_face(1)], [3, 1])):
        write_database(tmp_path / name / "val_lmdb", faces, labels)
        with pytest.raises(
            StageError, match=rf"{name}/val_lmdb: its {len(faces)} faces are not those of .*lmdb/val_lm"
        ):
            Ensemble(networks, [None, tmp_path / name]).answer(path, ["centre"])


def test_members_that_see_a_face_once_and_twice(tmp_path: Path) -> None:
    once = FaceNetwork(*make_model(tmp_path / "once"), device="cpu")
    twice = FaceNetwork(*make_model(tmp_path / "twice", channels=2), device="cpu")
    path = write_database(tmp_path / "lmdb/val_lmdb", [band_face(1, 100)], [1])
    write_database(tmp_path / "both/val_lmdb", [np.stack([band_face(2, 100), band_face(5, 50)])], [1])
    answers = Ensemble([once, twice], [None, tmp_path / "both"]).answer(path, ["centre"])
    levels = np.zeros((2, 7))
    levels[0, 1], levels[1, 2], levels[1, 5] = 100, 50, 25
    assert np.allclose(answers.probabilities["centre"][0], np.mean([band_probabilities(row) for row in levels], axis=0))
    # the databases that are named count for labels alone, where all see others
    answers = Ensemble([twice, twice], [tmp_path / "both"] * 2).answer(path, ["centre"])
    assert np.allclose(answers.probabilities["centre"][0], band_probabilities(list(levels[1])))
    with pytest.raises(
        StageError, match=r"twice/bands\.caffemodel: sees faces of \(2, 48, 48\); expected \(1, 48, 48\)"
    ):
        Ensemble([once, twice])
    with pytest.raises(
        StageError, match=r"lmdb/val_lmdb: its images are 1×48×48; the mean is 2×48×48 \(see ALIGN=both\)"
    ):
        Ensemble([once, twice], [None, path.parent]).answer(path, ["centre"])
    for networks in ([once, twice], [twice, once]):
        with pytest.raises(StageError, match="both/val_lmdb: its images are 2×48×48; the mean is 1×48×48"):
            Ensemble(networks, [tmp_path / "both"] * 2).answer(path, ["centre"])


def test_how_faces_are_aligned_is_told_by_their_folder() -> None:
    for place, expected in (
        ("data/toy/lmdb", "mtcnn"),
        ("/home/both/data/both/lmdb", "mtcnn"),
        ("data/toy/unaligned/lmdb", "none"),
        ("data/unaligned/both/fold3/lmdb", "both"),
        ("both/runs/small", "both"),
    ):
        assert alignment(Path(place)) == expected, place


def test_an_ensemble_of_nets_that_do_not_fit(tmp_path: Path) -> None:
    three = FaceNetwork(*make_model(tmp_path / "three", classes=3), device="cpu")
    seven = FaceNetwork(*make_model(tmp_path / "seven"), device="cpu")
    with pytest.raises(StageError, match=r"seven/bands\.caffemodel: classes is .*; expected .*as .*three"):
        Ensemble([three, seven])
    with pytest.raises(StageError, match="an ensemble of 1; expected two nets or more"):
        Ensemble([seven])
    with pytest.raises(ValueError, match=r"answer_by is None for bands\+bands"):
        write_evaluation(Ensemble([seven, seven]), {"val": [tmp_path / "val_lmdb"]}, tmp_path / "out")


def test_where_a_member_and_its_databases_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("runs/t", "runs/t@wo", "runs/a@b", "lm", "data/my", "data/my@set/x", "data/my@set/lm"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for text, folder, lmdbs in (
        ("runs/t", "runs/t", None),
        ("runs/a@b", "runs/a@b", None),
        ("runs/t@lm", "runs/t", "lm"),
        ("runs/t@wo@lm", "runs/t@wo", "lm"),
        ("data/my@set/x@data/my@set/lm", "data/my@set/x", "data/my@set/lm"),
        ("runs/t@nothing", "runs/t", "nothing"),  # which the databases' reader then names
        ("nothing@lm", "nothing@lm", None),  # and this trained_files
        ("runs/t@", "runs/t@", None),
    ):
        assert member(text) == (Path(folder), lmdbs and Path(lmdbs)), text


def test_the_ensemble_command(tmp_path: Path) -> None:
    database, pairs = known_database(tmp_path / "val_lmdb")
    for name in ("one", "two"):
        make_model(tmp_path / name)
        for other in ("best", "bands_iter_5", "bands_iter_5_averaged"):  # what else a run's folder holds
            (tmp_path / name / f"{other}.caffemodel").write_bytes(b"")
    command = [sys.executable, "-m", "train.ensemble", "--output", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--lmdb", f"val={database}", "--views", "centre", "mirror", "--calibrate-on", "val"]
    run = subprocess.run(
        [*command, str(tmp_path / "one"), str(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "val: accuracy 75.00% of 300 images" in run.stdout
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["model"]["name"] == "one+two"
    weights = [net["weights"] for net in result["model"]["nets"]]
    assert weights == [f"{tmp_path}/one/bands.caffemodel", f"{tmp_path}/two/bands.caffemodel"]
    assert not (tmp_path / "one" / "calibration.json").exists()

    # a member's own faces, of which it is surer that they all are of class 0: so is the mean
    labels = [true for true, _ in pairs]
    write_database(tmp_path / "un@ligned/unaligned/lmdb/val_lmdb", [band_face(0, 250)] * len(labels), labels)
    (tmp_path / "two").rename(tmp_path / "t@wo")
    members = [str(tmp_path / "one"), f"{tmp_path}/t@wo@{tmp_path}/un@ligned/unaligned/lmdb"]
    run = subprocess.run([*command, *members], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"val: accuracy {100 * labels.count(0) / len(labels):.2f}% of 300 images" in run.stdout
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["model"]["name"] == "one+t@wo@none"
    seen = [None, f"{tmp_path}/un@ligned/unaligned/lmdb"]
    assert [net.get("lmdbs") for net in result["model"]["nets"]] == seen
    assert json.loads((tmp_path / "out/manifest.json").read_text())["settings"]["lmdbs"] == seen


def test_folders_that_hold_no_trained_net_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing: no such folder; expected the folder of a finished run"):
        trained_files(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    for name in ("best", "init"):
        (tmp_path / "run" / f"{name}.caffemodel").touch()
    with pytest.raises(StageError, match=r"run: no weights \(is it trained to the end\?\)"):
        trained_files(tmp_path / "run")
    for name in ("a", "b"):
        (tmp_path / "run" / f"{name}.caffemodel").touch()
    with pytest.raises(StageError, match=r"run: a\.caffemodel, b\.caffemodel; expected .* with one NAME\.caffemodel"):
        trained_files(tmp_path / "run")
    (tmp_path / "run" / "b.caffemodel").unlink()
    with pytest.raises(StageError, match=r"run/deploy\.prototxt: no such file"):
        trained_files(tmp_path / "run")
