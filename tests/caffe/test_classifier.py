"""Classifier and its command against the same computed by hand in numpy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe
from caffe.tools import classify

DEPLOY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 6 dim: 5 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 7 weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "uniform" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
MEAN = np.array([104.0, 117.0, 123.0], np.float32)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A prototxt and a .caffemodel of a net with one inner product."""
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    caffe.set_random_seed(3)
    caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST).save(str(tmp_path / "tiny.caffemodel"))
    return str(tmp_path / "deploy.prototxt"), str(tmp_path / "tiny.caffemodel")


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.random((*size, 3), np.float32) for size in sizes]


def probabilities(net: caffe.Net, crops: np.ndarray) -> np.ndarray:
    """What the net makes of crops N×H×W×3 in 0..1, red first, with the usual preprocessing of 2015."""
    weight, bias = (blob.data for blob in net.params["ip"])
    data = crops[..., ::-1].transpose(0, 3, 1, 2) * 255 - MEAN[:, None, None]
    scores = data.reshape(len(data), -1) @ weight.T + bias
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_centre_and_ten_crops(files: tuple[str, str]) -> None:
    classifier = caffe.Classifier(*files, image_dims=(9, 8), mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0))
    inputs = images((9, 8), (20, 30), (5, 5))
    resized = np.stack([caffe.io.resize_image(image, (9, 8)) for image in inputs])
    centre = classifier.predict(inputs, oversample=False)
    np.testing.assert_allclose(centre, probabilities(classifier, resized[:, 1:7, 1:6]), rtol=1e-4)
    ten = probabilities(classifier, caffe.io.oversample(resized, (6, 5))).reshape(3, 10, 7).mean(1)
    np.testing.assert_allclose(classifier.predict(inputs), ten, rtol=1e-4)
    assert np.abs(ten - centre).max() > 1e-3


def test_the_whole_image_unless_dims_are_given(files: tuple[str, str]) -> None:
    classifier = caffe.Classifier(*files)
    inputs = np.stack(images((12, 10), (12, 10)))  # a .npy of images, say
    expected = classifier.forward_all(
        data=np.stack([caffe.io.resize_image(image, (6, 5)).transpose(2, 0, 1) for image in inputs])
    )["prob"]
    np.testing.assert_allclose(classifier.predict(inputs, oversample=False), expected, rtol=1e-5)
    assert (classifier.image_dims.tolist(), classifier.crop_dims.tolist()) == ([6, 5], [6, 5])


def test_it_is_a_net_with_a_transformer(files: tuple[str, str]) -> None:
    classifier = caffe.Classifier(*files, mean=MEAN, input_scale=0.5, raw_scale=2.0, channel_swap=[1, 0, 2])
    assert isinstance(classifier, caffe.Net)
    assert classifier.phase == caffe.TEST
    image = images((6, 5))[0]
    np.testing.assert_allclose(
        classifier.transformer.preprocess("data", image),
        (image[..., [1, 0, 2]].transpose(2, 0, 1) * 2 - MEAN[:, None, None]) * 0.5,
        rtol=1e-5,
    )


def test_what_a_classifier_refuses(files: tuple[str, str]) -> None:
    with pytest.raises(
        caffe.CaffeError, match=r"image_dims is \[6, 4\]; expected height and width of at least \[6, 5\]"
    ):
        caffe.Classifier(*files, image_dims=(6, 4))
    with pytest.raises(caffe.CaffeError, match="the mean has 2 values"):
        caffe.Classifier(*files, mean=np.zeros(2))
    classifier = caffe.Classifier(*files)
    with pytest.raises(caffe.CaffeError, match="the inputs' shapes are none"):
        classifier.predict([])
    with pytest.raises(caffe.CaffeError, match=r"shapes are \[\(6, 5\), \(6, 5, 3\)\]"):
        classifier.predict([np.zeros((6, 5, 3)), np.zeros((6, 5))])


def test_a_net_without_an_input(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } }'
    )
    caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST).save(str(tmp_path / "net.caffemodel"))
    with pytest.raises(caffe.CaffeError, match="has no input for images"):
        caffe.Classifier(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")


# python -m caffe.tools.classify


def run(files: tuple[str, str], *arguments: object) -> int:
    return classify.main([*map(str, arguments), "--model_def", files[0], "--pretrained_model", files[1]])


@pytest.mark.parametrize("suffix", ["npy", "binaryproto"])
def test_the_command_on_a_folder(
    files: tuple[str, str], tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [(255 * image).astype(np.uint8) for image in images((9, 8), (20, 30), (5, 5))]
    for name, image in zip(("b.png", "c.png", "a.png"), inputs, strict=True):
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    cv2.imwrite(str(tmp_path / "d.jpg"), inputs[0])
    mean = np.random.default_rng(1).random((3, 6, 5), np.float32) * 200
    if suffix == "npy":
        np.save(tmp_path / "mean.npy", mean)
    else:
        caffe.io.save_mean(tmp_path / "mean.binaryproto", mean)
    output = tmp_path / "predictions.npy"
    common = ["--images_dim", "9,8", "--mean_file", tmp_path / f"mean.{suffix}"]
    assert run(files, tmp_path, output, *common, "--ext", "png") == 0
    assert "Classifying 3 inputs." in capsys.readouterr().out
    classifier = caffe.Classifier(*files, image_dims=(9, 8), mean=mean, raw_scale=255, channel_swap=(2, 1, 0))
    expected = classifier.predict([inputs[i] / 255 for i in (2, 0, 1)])
    np.testing.assert_allclose(np.load(output), expected, rtol=1e-4)
    assert run(files, tmp_path / "c.png", output, *common, "--center_only") == 0
    np.testing.assert_allclose(np.load(output), classifier.predict([inputs[1] / 255], False), rtol=1e-4)


def test_the_command_on_an_array_without_preprocessing(files: tuple[str, str], tmp_path: Path) -> None:
    inputs = np.stack(images((6, 5), (6, 5)))
    np.save(tmp_path / "images.npy", inputs)
    arguments = [
        "--images_dim",
        "6,5",
        "--raw_scale",
        "1",
        "--input_scale",
        "0.5",
        "--channel_swap",
        "",
        "--center_only",
    ]
    assert run(files, tmp_path / "images.npy", tmp_path / "out.npy", *arguments) == 0
    expected = caffe.Classifier(*files, input_scale=0.5).predict(inputs, False)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none.jpg", "{tmp}/out.npy"], "none.jpg: No such file"),
        (["{tmp}", "{tmp}/out.npy", "--ext", "bmp"], "no file in it ends in .bmp"),
        (["{tmp}/x.jpg", "{tmp}/out.npy", "--images_dim", "6"], "image_dims is [6]"),
        (["{tmp}/x.jpg", "{tmp}/out.npy", "--mean_file", "{tmp}/x.npy"], "x.npy: not an array of numpy"),
        (["{tmp}/x.npy", "{tmp}/out.npy"], "x.npy: not an array of numpy"),
    ],
)
def test_what_the_command_refuses(
    files: tuple[str, str], tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "x.jpg"), np.zeros((6, 5, 3), np.uint8))
    (tmp_path / "x.npy").write_bytes(b"numbers")
    assert run(files, *[argument.format(tmp=tmp_path) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("classify: ")
    assert message in error
    assert not (tmp_path / "out.npy").exists()


def test_numbers_on_the_command_line(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(files, tmp_path, tmp_path / "out.npy", "--channel_swap", "b,g,r")
    assert "argument --channel_swap: 'b,g,r' is no list of whole numbers" in capsys.readouterr().err
