"""Grad-CAM and guided backpropagation against the same net in PyTorch with hooks, and on nets whose answer is known."""

from __future__ import annotations

import itertools
import json
import os
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small_face_net import (
    CLASSES,
    DEPLOY,
    INPUT,
    TorchNet,
    convolution,
    random_face,
    run_command,
    small_network,
    small_networks_of_one_face_and_two,
    torch_input,
)
from torch import nn

from explain.features import main as features_main
from explain.saliency import Explanation, draw_explanation, explain_face, main
from predict import Recognizer
from predict.recognizer import FoundFace, model_files
from preprocessing.datasets import EMOTIONS
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import StageError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FaceNetwork:
    return small_network(tmp_path_factory.mktemp("small"))


def torch_grad_cam(maps: torch.Tensor, score: torch.Tensor) -> np.ndarray:
    """Equations 1 and 2 of arXiv 1610.02391, enlarged to the input's 12×12, the maximum made 1."""
    (gradient,) = torch.autograd.grad(score, maps, retain_graph=True)
    height, width = maps.shape[2:]
    alpha = gradient[0].sum(dim=(1, 2)) / (height * width)
    cam = torch.einsum("c,chw->hw", alpha, maps[0]).clamp(min=0)
    large = nn.functional.interpolate(cam[None, None], (12, 12), mode="bilinear", align_corners=False)
    return (large / large.max())[0, 0].detach().numpy()


@pytest.mark.parametrize("target", range(CLASSES))
@pytest.mark.parametrize("layer", [None, "pool"])
def test_grad_cam_is_that_of_pytorch(network: FaceNetwork, target: int, layer: str | None) -> None:
    module = TorchNet(network)
    face = random_face(3)
    score = module(torch_input(face))[0, target]
    explanation = explain_face(network, face, target, layer)
    assert explanation.layer == (layer or "sum")  # the last blob with a map that no pooling made
    expected = torch_grad_cam(module.pool if layer else module.sum, score)
    np.testing.assert_allclose(explanation.grad_cam, expected, atol=1e-4)
    assert explanation.grad_cam.max() == 1.0
    assert explanation.grad_cam.min() >= 0.0


def torch_guided(module: TorchNet, face: np.ndarray, target: int) -> np.ndarray:
    """Guided backpropagation with backward hooks on the ReLU modules, as it is usually written for PyTorch."""
    handles = [
        relu.register_full_backward_hook(lambda _, gradients, __: (gradients[0].clamp(min=0),))
        for relu in (module.relu1, module.relu2, module.relu3)
    ]
    x = torch_input(face)
    module(x)[0, target].backward()
    for handle in handles:
        handle.remove()
    assert x.grad is not None
    return x.grad[0, 0].numpy()


@pytest.mark.parametrize("target", range(CLASSES))
def test_guided_backpropagation_is_that_of_pytorch(network: FaceNetwork, target: int) -> None:
    module, face = TorchNet(network), random_face(4)
    explanation = explain_face(network, face, target)
    expected = torch_guided(module, face, target)
    np.testing.assert_allclose(explanation.guided, expected, atol=1e-5)
    x = torch_input(face)
    (plain,) = torch.autograd.grad(module(x)[0, target], x)
    assert np.abs(expected - plain[0, 0].numpy()).max() > 1e-3  # else the test says nothing
    np.testing.assert_array_equal(explanation.guided_grad_cam, explanation.grad_cam * explanation.guided)


def test_the_probabilities_are_the_networks_and_the_top_one_is_explained(network: FaceNetwork) -> None:
    face = random_face(5)
    explanation = explain_face(network, face)
    np.testing.assert_array_equal(explanation.probabilities, network.probabilities(face[None])[0])
    assert explanation.target == network.probabilities(face[None])[0].argmax()
    with torch.no_grad():
        expected = TorchNet(network)(torch_input(face)).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(explanation.probabilities, expected, atol=1e-5)


ACTIVATIONS = {
    "ELU": nn.functional.elu,
    "PReLU": lambda x: nn.functional.prelu(x, torch.tensor([0.25])),
    "TanH": torch.tanh,
    "ReLU": lambda x: nn.functional.leaky_relu(x, 0.3),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_other_activations_pass_the_gradient_as_it_is(tmp_path: Path, kind: str) -> None:
    slope = "relu_param { negative_slope: 0.3 }" if kind == "ReLU" else ""
    deploy = f"""{INPUT}{convolution("data", "conv", 3, 3)}
      layer {{ name: "act" type: "{kind}" bottom: "conv" top: "conv" {slope} }}
      layer {{ name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param {{ num_output: 7 }} }}
      layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}"""
    given = {"act": [np.full(3, 0.25, np.float32)]} if kind == "PReLU" else None
    network = small_network(tmp_path, deploy, given)
    params = {name: [torch.from_numpy(b.data.copy()) for b in blobs] for name, blobs in network.net.params.items()}
    x = torch_input(random_face(6))
    hidden = ACTIVATIONS[kind](nn.functional.conv2d(x, *params["conv"]))
    (expected,) = torch.autograd.grad(nn.functional.linear(hidden.flatten(1), *params["fc"])[0, 2], x)
    guided = explain_face(network, random_face(6), 2).guided
    np.testing.assert_allclose(guided, expected[0, 0].numpy(), atol=1e-5)


# what is brighter than the mean speaks for class 1, what is darker for class 2
SPOTS = f"""{INPUT}{convolution("data", "spots", 8, 1)}
layer {{ name: "relu" type: "ReLU" bottom: "spots" top: "spots" }}
{convolution("spots", "maps", 7, 1)}
layer {{ name: "mean" type: "Pooling" bottom: "maps" top: "mean" pooling_param {{ pool: AVE global_pooling: true }} }}
layer {{ name: "flat" type: "Flatten" bottom: "mean" top: "scores" }}
layer {{ name: "soft" type: "Softmax" bottom: "scores" top: "soft" }}
layer {{ name: "prob" type: "Reshape" bottom: "soft" top: "prob" reshape_param {{ shape {{ dim: 0 dim: -1 }} }} }}
"""


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> FaceNetwork:
    filters, mix = np.zeros((8, 1, 1, 1)), np.zeros((7, 8, 1, 1))
    filters[:2, 0, 0, 0] = 1, -1
    mix[1, 0] = mix[2, 1] = 0.01
    weights = {"spots": [filters, np.zeros(8)], "maps": [mix, np.zeros(7)]}
    return small_network(tmp_path_factory.mktemp("spots"), SPOTS, weights)


UPPER_LEFT, LOWER_RIGHT = (slice(0, 4), slice(0, 5)), (slice(7, 12), slice(8, 12))


def spotted_face() -> np.ndarray:
    """As grey as the mean, but bright in the upper left corner of the centre and dark in the lower right one."""
    face = np.full((16, 16), 100, np.uint8)
    face[2:14, 2:14][UPPER_LEFT] = 200
    face[2:14, 2:14][LOWER_RIGHT] = 0
    return face


@pytest.mark.parametrize(("target", "corner"), [(1, UPPER_LEFT), (2, LOWER_RIGHT)])
def test_grad_cam_lights_the_corner_that_the_answer_comes_from(
    spots: FaceNetwork, target: int, corner: tuple[slice, slice]
) -> None:
    explanation = explain_face(spots, spotted_face(), target)
    assert explanation.layer == "spots"  # not `maps`, which has a map a class, though it is the last with a map
    expected = np.zeros((12, 12))
    expected[corner] = 1
    np.testing.assert_allclose(explanation.grad_cam, expected)
    sign = 1 if target == 1 else -1  # class 2 has more of it where the face gets darker
    np.testing.assert_allclose(explanation.guided, sign * expected * 0.01 / 144, rtol=1e-5)
    np.testing.assert_allclose(explanation.guided_grad_cam, explanation.guided)


def test_the_guided_gradient_is_zero_where_the_answer_does_not_look(tmp_path: Path) -> None:
    weights = np.zeros((7, 12, 12), np.float32)
    weights[3, :4, :5] = 1
    deploy = f"""{INPUT}{convolution("data", "conv", 1, 1)}
      layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
      layer {{ name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param {{ num_output: 7 }} }}
      layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}"""
    given = {"conv": [np.ones((1, 1, 1, 1)), np.zeros(1)], "fc": [weights.reshape(7, -1), np.zeros(7)]}
    guided = explain_face(small_network(tmp_path, deploy, given), np.full((16, 16), 180, np.uint8), 3).guided
    np.testing.assert_array_equal(guided, weights[3])


def test_a_class_that_nothing_speaks_for_has_an_empty_map(spots: FaceNetwork) -> None:
    explanation = explain_face(spots, spotted_face(), 5)
    assert not explanation.grad_cam.any()
    assert draw_explanation(spotted_face(), explanation, EMOTIONS).axes[1].get_title() == "Grad-CAM of spots: nothing"
    assert not explanation.guided.any()


def test_what_cannot_be_explained(network: FaceNetwork, tmp_path: Path) -> None:
    face = random_face()
    for target in (7, -1):
        with pytest.raises(ValueError, match=f"target is {target}; expected a class, 0 to 6"):
            explain_face(network, face, target)
    with pytest.raises(
        ValueError, match=r"face has shape \(3, 16, 16\), the mean \(1, 16, 16\); expected both alike, and grey"
    ):
        explain_face(network, np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(StageError, match="layer 'fc1' is 9 and has no map; expected one of data, conv1"):
        explain_face(network, face, layer="fc1")
    with pytest.raises(StageError, match="layer 'nope' is not in the net"):
        explain_face(network, face, layer="nope")
    flat = f"""{INPUT}
      layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: 7 }} }}
      layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}"""
    with pytest.raises(StageError, match="Grad-CAM needs a layer with a map"):
        explain_face(small_network(tmp_path / "flat", flat), face)
    aside = f"""{DEPLOY}
      layer {{ name: "power" type: "Power" bottom: "sum" top: "unread" }}
      layer {{ name: "silence" type: "Silence" bottom: "unread" }}"""
    with pytest.raises(StageError, match="layer 'unread' has no influence on the score"):
        explain_face(small_network(tmp_path / "aside", aside), face, layer="unread")


def test_each_channel_of_a_face_seen_twice_has_its_explanation(tmp_path: Path) -> None:
    """Two faces that go through one net as a batch, their scores added: each has what it would have alone."""
    alone, pair = small_networks_of_one_face_and_two(tmp_path)
    faces = np.stack([random_face(1), random_face(2)])
    for channel in (0, 1):
        explanation = explain_face(pair, faces, 3, channel=channel)
        expected = explain_face(alone, faces[channel], 3)
        np.testing.assert_allclose(explanation.grad_cam, expected.grad_cam, atol=1e-5)
        np.testing.assert_allclose(explanation.guided, expected.guided, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="channel is 2; expected one of 2, 0 to 1"):
        explain_face(pair, faces, channel=2)


def test_the_shipped_networks_see_the_smile_in_the_lower_half() -> None:
    recognizer = Recognizer(device="cpu")
    face = recognizer.find_faces([Path(__file__).parents[2] / "images" / "astronaut.png"])[0][0]
    for network in (recognizer.network, FaceNetwork(*model_files("mini_xception"), device="cpu")):
        explanation = explain_face(network, face.pixels[: network.face_shape[0]])
        assert network.classes[explanation.target] == "happy"
        assert explanation.grad_cam[21:].sum() > 0.6 * explanation.grad_cam.sum()


def test_the_figure_shows_the_crop_and_the_probabilities(network: FaceNetwork) -> None:
    face = random_face()
    explanation = explain_face(network, face, 4)
    figure = draw_explanation(face, explanation, EMOTIONS, "face 1")
    assert figure.get_suptitle().startswith("face 1: what speaks for sad (")
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), face[2:14, 2:14])
    bars = [patch.get_width() for patch in figure.axes[4].patches]
    np.testing.assert_allclose(bars, explanation.probabilities)
    assert [label.get_text() for label in figure.axes[4].get_yticklabels()] == list(EMOTIONS)
    for axes in figure.axes[2:4]:  # 0 is the middle of the colours
        low, high = axes.images[0].get_clim()
        assert low == -high


def test_the_command_writes_a_picture_and_the_numbers(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [str(tmp_path / "face.png"), "--face", "none", "--output", str(out), *files]
    assert run_command(monkeypatch, main, *arguments, "--target", "fear", "--layer", "conv1") == 0
    result = json.loads((out / "face.json").read_text())
    (face,) = result["faces"]
    assert (face["target"], face["layer"], face["box"]) == ("fear", "conv1", [0, 0, 16, 16])
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    picture = cv2.imread(str(out / "face.png"))
    assert picture is not None
    assert picture.shape[1] > 1000
    assert capsys.readouterr().out.startswith(f"explain: 1 face: fear {100 * face['probabilities']['fear']:.0f}%; ")


@pytest.mark.parametrize("spoken_for", [0.0, 1.0])
def test_long_names_of_layers_and_classes_do_not_reach_into_their_neighbours(spoken_for: float) -> None:
    maps = np.full((12, 12), spoken_for, np.float32)
    for layer, classes in (("stage5_block1_shortcut", ["a", "b"]), (60 * "x", [60 * "y", "b"])):
        explanation = Explanation(np.array([0.6, 0.4]), 0, maps, maps, maps, layer)
        figure = draw_explanation(random_face(), explanation, classes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        titles = [axes.title.get_window_extent() for axes in figure.axes[:4]]
        assert figure._suptitle.get_window_extent().y0 > max(title.y1 for title in titles)
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(titles))


def test_a_dollar_in_a_name_begins_no_formula(
    tmp_path: Path, files: list[str], network: FaceNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = (tmp_path / "face.png").rename(tmp_path / r"a $\bad$ b.png")
    assert run_command(monkeypatch, main, str(photo), "--face", "none", "--output", str(tmp_path / "out"), *files) == 0
    explanation = explain_face(network, random_face())
    draw_explanation(random_face(), explanation, [rf"$\class{i}$" for i in range(7)]).savefig(BytesIO())


def test_a_name_that_is_not_utf8(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = (tmp_path / "face.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    out = tmp_path / "out"
    for command, picture in ((main, out / photo.name), (features_main, out / photo.stem / "overview.png")):
        assert run_command(monkeypatch, command, str(photo), "--face", "none", "--output", str(out), *files) == 0
        assert cv2.imdecode(np.fromfile(picture, np.uint8), cv2.IMREAD_COLOR) is not None
        assert r"caf\udce9" in capsys.readouterr().out


def test_the_commands_errors(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = str(tmp_path / "face.png"), ["--output", str(tmp_path / "out"), *files]
    assert run_command(monkeypatch, main, photo, "--face", "none", *out, "--target", "joy") == 1
    assert "error: --target is 'joy'; expected one of angry, disgust" in capsys.readouterr().err
    assert run_command(monkeypatch, main, photo, "--face", "none", "--output", str(tmp_path), *files) == 1
    assert "would be replaced by its explanation" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((60, 60), np.uint8))
    assert run_command(monkeypatch, main, str(tmp_path / "empty.png"), *out) == 1
    assert "empty.png: no face found; expected a photo with a face" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_face_of_a_photo_has_a_row(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [FoundFace((9.0 * i, 0.0, 16.0, 16.0), None, 0.9, random_face(i)) for i in range(3)]
    arguments = [str(tmp_path / "face.png"), "--face", "none", "--output", str(tmp_path / "out"), *files]
    heights = []
    for count in (1, 3):
        faces = found[:count]
        monkeypatch.setattr(Recognizer, "find_faces", lambda self, images, faces=faces: [faces for _ in images])
        assert run_command(monkeypatch, main, *arguments) == 0
        numbers = json.loads((tmp_path / "out" / "face.json").read_text())["faces"]
        assert [face["box"][0] for face in numbers] == [9.0 * i for i in range(count)]
        picture = cv2.imread(str(tmp_path / "out" / "face.png"))
        assert picture is not None
        heights.append(picture.shape[0])
    assert heights[1] == 3 * heights[0]
    assert "explain: 3 faces: " in capsys.readouterr().out
