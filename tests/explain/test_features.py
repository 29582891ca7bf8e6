"""Feature maps: the values of every blob as the net itself and PyTorch have them, their pictures and files."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_face_net import (
    TorchNet,
    random_face,
    run_command,
    small_network,
    small_networks_of_one_face_and_two,
    torch_input,
)

import caffe
from explain.features import draw_features, draw_overview, feature_maps, layer_maps, main, mosaic
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import StageError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FaceNetwork:
    return small_network(tmp_path_factory.mktemp("small"))


def test_each_blob_is_what_a_forward_pass_leaves_in_it(network: FaceNetwork) -> None:
    face = random_face()
    net = caffe.Net(network.deploy, network.weights, caffe.TEST)
    net.forward(data=torch_input(face).detach().numpy())
    maps = feature_maps(network, face)
    assert list(maps) == list(net.blobs)
    for name, blob in net.blobs.items():
        np.testing.assert_allclose(maps[name], blob.data[0], rtol=1e-4, atol=1e-4, err_msg=name)
        assert maps[name].dtype == np.float32


def test_a_face_seen_twice_has_the_maps_of_each(tmp_path: Path) -> None:
    alone, pair = small_networks_of_one_face_and_two(tmp_path)
    faces = np.stack([random_face(1), random_face(2)])
    maps = feature_maps(pair, faces)
    for face, way in zip(faces, ("aligned", "as it is"), strict=True):
        for name, expected in layer_maps(alone, face, ["conv1", "sum", "fc2"]).items():
            np.testing.assert_allclose(maps[f"{name}, {way}"], expected, rtol=1e-4, atol=1e-5)
    assert maps["data"].shape == (2, 12, 12)
    assert maps["score"].shape == (7,)
    assert list(layer_maps(pair, faces, ["conv1", "prob"])) == ["conv1, aligned", "conv1, as it is", "prob"]


def test_a_layer_in_place_has_an_output_of_its_own(network: FaceNetwork) -> None:
    face = random_face()
    module = TorchNet(network)
    x = torch_input(face)
    normalised = nn_batch_norm(module, x)
    maps = layer_maps(network, face, ["scale1", "relu1", "conv1"])
    np.testing.assert_allclose(maps["scale1"], normalised, rtol=1e-4, atol=1e-4)
    assert maps["scale1"].min() < 0  # so that the ReLU makes a difference
    np.testing.assert_allclose(maps["relu1"], np.maximum(normalised, 0), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(maps["conv1"], maps["relu1"])  # the blob's name stands for its final value


def nn_batch_norm(module: TorchNet, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module.bn1(module.conv1(x)).numpy()[0]


def test_an_unknown_layer_is_named_with_those_that_there_are(network: FaceNetwork) -> None:
    with pytest.raises(StageError, match=r"layer 'conv9' is not in the net; expected one of data, conv1, .*relu1"):
        layer_maps(network, random_face(), ["conv9"])


def test_a_face_of_another_size_is_refused(network: FaceNetwork) -> None:
    with pytest.raises(ValueError, match="1×48×48; the mean is 1×16×16"):
        feature_maps(network, np.zeros((48, 48), np.uint8))


def test_tiles_stand_row_by_row_with_gaps_of_nothing() -> None:
    image = mosaic(np.arange(3, dtype=np.float32).reshape(3, 1, 1) * np.ones((3, 2, 2), np.float32), 2)
    assert image.shape == (5, 5)
    assert (image[:2, :2] == 0).all()
    assert (image[:2, 3:] == 1).all()
    assert (image[3:, :2] == 2).all()
    assert np.isnan(image[2]).all()
    assert np.isnan(image[:, 2]).all()
    assert np.isnan(image[3:, 3:]).all()


def title_of(figure: Figure) -> str:
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left")


def test_a_sheet_has_64_channels_and_says_when_there_are_more() -> None:
    maps = np.random.default_rng(0).normal(size=(70, 5, 4)).astype(np.float32)
    figure = draw_features("conv1", maps, "small on a.png")
    assert "conv1: 70 channels of 5×4, the first 64 drawn\nsmall on a.png" in title_of(figure)
    image = figure.axes[0].images[0]
    assert image.get_array().shape == (8 * 6 - 1, 8 * 5 - 1)
    assert image.get_clim() == pytest.approx((maps[:64].min(), maps[:64].max()))  # one scale for all
    assert "drawn" not in title_of(draw_features("conv1", maps[:64], ""))


@pytest.mark.parametrize("shape", [(7,), (7, 1, 1)])
def test_a_vector_is_drawn_as_bars(shape: tuple[int, ...]) -> None:
    values = np.array([1, -2, 3, 0, 5, 6, 7], np.float32)
    figure = draw_features("fc", values.reshape(shape), "")
    assert [bar.get_height() for bar in figure.axes[0].patches] == values.tolist()
    assert "7 values" in title_of(figure)


def test_the_overview_has_the_strongest_channel_first() -> None:
    maps = np.zeros((20, 4, 4), np.float32)
    maps[13] = np.linspace(-9, 9, 16).reshape(4, 4)  # of mean 0 but the largest magnitude
    figure = draw_overview({"conv": maps, "fc": np.arange(3, dtype=np.float32)}, "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["conv", "20×4×4", "fc", "3"]
    picture = figure.axes[0].images[0].get_array()
    assert len(np.unique(picture[4:52, 230:278].reshape(-1, 4), axis=0)) == 16  # the ramp
    assert len(np.unique(picture[4:52, 280:328].reshape(-1, 4), axis=0)) == 1


def test_the_command_draws_all_blobs(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "face.png"), "--face", "none", "--output", str(tmp_path / "out"), *files]
    assert run_command(monkeypatch, main, *arguments) == 0
    folder = tmp_path / "out" / "face"
    blobs = json.loads((folder / "manifest.json").read_text())["counts"]["blobs"]
    assert blobs["pool"] == [5, 5, 5]
    names = [f"{i:03d}_{name}.png" for i, name in enumerate(blobs)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "overview.png", "manifest.json"])
    assert all(cv2.imread(str(folder / name)) is not None for name in names)
    assert capsys.readouterr().out.startswith(f"features: {len(blobs)} blobs, and overview.png, in {folder}")
    assert run_command(monkeypatch, main, *arguments, "--layer", "scale1", "all") == 0
    assert json.loads((folder / "manifest.json").read_text())["counts"]["blobs"] == {**blobs, "scale1": [4, 10, 10]}
    assert run_command(monkeypatch, main, *arguments, "--layer", "relu1") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["000_relu1.png", "manifest.json", "overview.png"]


def test_a_dollar_in_a_name_begins_no_formula(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = (tmp_path / "face.png").rename(tmp_path / r"a $\bad$ b.png")
    assert run_command(monkeypatch, main, str(photo), "--face", "none", "--output", str(tmp_path / "out"), *files) == 0
    maps = np.zeros((2, 4, 4), np.float32)
    for figure in (draw_features(r"$\a$", maps, ""), draw_features(r"$\a$", maps[:, 0, 0], "")):
        figure.savefig(BytesIO())
    draw_overview({r"$\a$": maps}, r"$\b$").savefig(BytesIO())


def test_a_command_that_fails_leaves_what_was_there(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--face", "none", "--output", str(tmp_path / "out"), *files]
    assert run_command(monkeypatch, main, str(tmp_path / "face.png"), *arguments, "--layer", "nope") == 1
    assert "error: layer 'nope' is not in the net" in capsys.readouterr().err
    assert run_command(monkeypatch, main, str(tmp_path / "none.png"), *arguments) == 1
    assert "none.png: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "face").mkdir(parents=True)
    (tmp_path / "out" / "face" / "mine.txt").touch()
    assert run_command(monkeypatch, main, str(tmp_path / "face.png"), *arguments) == 1
    assert "a folder that this stage did not write" in capsys.readouterr().err
    assert (tmp_path / "out" / "face" / "mine.txt").exists()
