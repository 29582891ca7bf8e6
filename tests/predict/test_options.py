"""What commands beside predict use of it: faces found and aligned, the options for a net, its input for one face."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_model import band_face, make_model

from predict import Recognizer
from predict.options import add_model_arguments, check_model_arguments, make_network, make_recognizer
from preprocessing.alignment import align_face

ASTRONAUT = Path(__file__).parents[2] / "images" / "astronaut.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in make_model(tmp_path_factory.mktemp("model"))]


def parse(*arguments: str, faces: bool = True) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, faces)
    args = parser.parse_args(arguments)
    check_model_arguments(parser, args)
    return args


def options(model: list[str]) -> list[str]:
    return ["--deploy", model[0], "--weights", model[1], "--mean", model[2], "--device", "cpu"]


def test_found_faces_are_aligned_as_those_that_are_recognised(model: list[str]) -> None:
    recognizer = make_recognizer(parse(*options(model)))
    photo = cv2.imread(str(ASTRONAUT))
    none, (face,) = recognizer.find_faces([np.zeros((60, 80), np.uint8), photo])
    assert none == []
    assert face.landmarks is not None
    expected = align_face(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), face.landmarks, 48)
    np.testing.assert_array_equal(face.pixels, expected)
    (prediction,) = recognizer.predict(photo)
    assert (face.box, face.confidence) == (prediction.box, prediction.confidence)
    probabilities = recognizer.network.probabilities(face.pixels[None], "mirror")[0]
    np.testing.assert_allclose(probabilities, list(prediction.probabilities.values()), rtol=1e-6)


def test_a_cropped_face_is_the_image_itself(model: list[str]) -> None:
    recognizer = make_recognizer(parse(*options(model), "--face", "none"))
    ((face,),) = recognizer.find_faces([band_face(3)])
    np.testing.assert_array_equal(face.pixels, band_face(3))
    assert (face.box, face.landmarks, face.confidence) == ((0, 0, 48, 48), None, None)


def test_the_input_of_one_face_is_its_centre_crop_minus_the_mean(model: list[str]) -> None:
    network = make_network(parse(*options(model), faces=False))
    face = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    tensor = network.input_tensor(face)
    np.testing.assert_array_equal(tensor, face[None, None, 3:45, 3:45].astype(np.float32) - 10)  # the mean is 10
    assert tensor.device == network.net.device
    with pytest.raises(ValueError, match="1×42×42"):
        network.input_tensor(face[3:45, 3:45])


def test_the_options_default_to_the_model_that_ships() -> None:
    network = make_network(parse("--device", "cpu", faces=False))
    assert network.name == "face_resnet16_pair"
    assert Recognizer(device="cpu", face="none").network.files == network.files


def test_some_of_a_nets_files_are_refused(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--deploy", model[0])
    assert "--deploy, --weights and --mean belong together" in capsys.readouterr().err


def test_the_detectors_settings(model: list[str]) -> None:
    photo = str(ASTRONAUT)
    for given, found in (([], 1), (["--min-face", "120"], 0), (["--min-confidence", "1"], 0)):
        assert len(make_recognizer(parse(*options(model), *given)).predict(photo)) == found, given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-face", "0"], "'0'; expected a number of pixels, 1 or more"),
        (["--min-face", "inf"], "'inf'; expected a number of pixels"),
        (["--min-confidence", "95%"], "'95%'; expected a probability, 0 to 1"),
        (["--min-confidence", "1.01"], "'1.01'; expected a probability"),
        (["--face", "none", "--min-face", "40"], "--min-face is 40, but --face none looks for no faces"),
        (["--face", "none", "--min-confidence", "0"], "--min-confidence is 0, but --face none looks for no faces"),
    ],
)
def test_settings_of_the_detector_that_do_not_fit(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert message in capsys.readouterr().err


def test_the_help_names_the_models_that_ship() -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    text = " ".join(parser.format_help().split())
    assert "--model MODEL one that ships: face_emotion_net, face_resnet16_pair, mini_xception (default: " in text
