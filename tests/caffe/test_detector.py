"""Detector and its command: windows by hand, and context by images whose pixels say where they are."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

import caffe
from caffe.tools import detect

SIZE = 12
DEPLOY = f"""
name: "tiny"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 3 dim: {SIZE} dim: {SIZE} }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {{ num_output: 5 weight_filler {{ type: "gaussian" std: 0.01 }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "ip" top: "prob" }}
"""
MEAN = np.array([104.0, 117.0, 123.0], np.float32)
WINDOWS = [(0, 0, 20, 30), (3, 5, 9, 8), (10, 12, 25, 40)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A prototxt and a .caffemodel of a net with one inner product."""
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    caffe.set_random_seed(3)
    caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST).save(str(tmp_path / "tiny.caffemodel"))
    return str(tmp_path / "deploy.prototxt"), str(tmp_path / "tiny.caffemodel")


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Two images of 25×40."""
    random = np.random.default_rng(0)
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), random.integers(0, 256, (25, 40, 3), np.uint8))
    return [str(tmp_path / "b.png"), str(tmp_path / "a.png")]


def expected_prediction(net: caffe.Net, photo: str, window: tuple[int, ...]) -> np.ndarray:
    """A window without context, preprocessed as was usual in 2015."""
    top, left, bottom, right = window
    crop = cv2.imread(photo)[top:bottom, left:right].astype(np.float32)  # blue first, 0..255
    data = caffe.io.resize_image(crop, (SIZE, SIZE)).transpose(2, 0, 1) - MEAN[:, None, None]
    scores = net.params["ip"][0].data @ data.ravel()
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def test_windows_are_cropped_and_classified(files: tuple[str, str], photos: list[str]) -> None:
    detector = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0))
    detections = detector.detect_windows((photo, WINDOWS) for photo in photos)  # an iterator can be used once
    assert [(d["filename"], d["window"]) for d in detections] == [(p, w) for p in photos for w in WINDOWS]
    for detection in detections:
        expected = expected_prediction(detector, detection["filename"], detection["window"])
        np.testing.assert_allclose(detection["prediction"], expected, rtol=1e-3)
    assert detector.detect_windows([(photos[0], [])]) == []


def test_a_window_may_end_outside_of_the_image_but_not_begin_there(files: tuple[str, str], photos: list[str]) -> None:
    detector = caffe.Detector(*files)
    image = caffe.io.load_image(photos[0])
    np.testing.assert_array_equal(detector.crop(image, np.array([20, 30, 99, 99])), image[20:, 30:])
    for window in ((-1, 0, 5, 5), (5, 5, 5, 9), (25, 0, 30, 9)):
        with pytest.raises(caffe.CaffeError, match=r"b.png: window .*: not within the image, whose size is"):
            detector.detect_windows([(photos[0], [window])])
    with pytest.raises(caffe.CaffeError, match=r"window \[1, 2, 3\]: expected ymin, xmin, ymax, xmax"):
        detector.crop(image, [1, 2, 3])


@pytest.mark.parametrize("window", [(120, 130, 150, 160), (131, 112, 152, 148), (110, 110, 142, 135)])
@pytest.mark.parametrize("pad", [1, 2, 4])
def test_context_is_as_wide_as_asked_for(files: tuple[str, str], window: tuple[int, ...], pad: int) -> None:
    """In an image whose pixels hold their row and column the crop's pixels say where they come from."""
    detector = caffe.Detector(*files, context_pad=pad)
    rows, columns = np.mgrid[:300, :300].astype(np.float32)
    crop = detector.crop(np.dstack([rows, columns, rows]), np.array(window))
    assert crop.shape == (SIZE, SIZE, 3)
    for axis, (start, end) in enumerate((window[::2], window[1::2])):
        line = crop[:, SIZE // 2, 0] if axis == 0 else crop[SIZE // 2, :, 1]
        step = (end - start + 1) / (SIZE - 2 * pad)  # the window fills what the context leaves
        wanted = (start + end + 1) / 2 + (np.arange(SIZE) - (SIZE - 1) / 2) * step
        # the box has whole numbers as its sides, and one pixel more counts for its extent than is cut out
        np.testing.assert_allclose(line, wanted, atol=2)
        np.testing.assert_allclose(np.diff(line), step, rtol=0.15)


def test_the_mean_stands_outside_of_the_image(files: tuple[str, str]) -> None:
    detector = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=(1, 2, 0), context_pad=3)
    image = np.full((30, 40, 3), 0.25, np.float32)
    crop = detector.crop(image, np.array([0, 0, 10, 10]))
    outside = (crop != 0.25).all(2)
    np.testing.assert_allclose(crop[outside], np.tile(MEAN[[2, 0, 1]] / 255, (outside.sum(), 1)), rtol=1e-6)
    assert outside[0].all()
    assert outside[:, 0].all()
    assert not outside[3:, 3:].any()
    data = detector.transformer.preprocess("data", crop)
    np.testing.assert_allclose(data[:, outside], 0, atol=1e-4)
    np.testing.assert_allclose(data[:, ~outside].T, np.tile(0.25 * 255 - MEAN, ((~outside).sum(), 1)), rtol=1e-5)


@pytest.mark.parametrize("mean", [None, np.arange(3 * SIZE * SIZE, dtype=np.float32).reshape(3, SIZE, SIZE)])
def test_context_with_other_means(files: tuple[str, str], mean: np.ndarray | None) -> None:
    detector = caffe.Detector(*files, mean=mean, context_pad=3)
    image = np.ones((30, 40, 3), np.float32)
    crop = detector.crop(image, np.array([22, 33, 29, 39]))
    expected = 0 if mean is None else mean[:, -1, -1]
    np.testing.assert_array_equal(crop[-1, -1], expected)
    assert (crop[:6, :6] == 1).all()


def test_context_that_does_not_fit(files: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(caffe.CaffeError, match="context_pad is 6 for an input of 12×12"):
        caffe.Detector(*files, context_pad=6)
    detector = caffe.Detector(*files, context_pad=2)
    with pytest.raises(caffe.CaffeError, match="not within the image"):
        detector.crop(np.zeros((20, 20, 3), np.float32), np.array([60, 60, 70, 70]))
    detector.configure_crop(None)
    assert detector.crop(np.zeros((20, 20, 3), np.float32), np.array([1, 2, 5, 7])).shape == (4, 5, 3)


def test_selective_search_is_the_package_that_pycaffe_uses(
    files: tuple[str, str], photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = caffe.Detector(*files)
    with pytest.raises(
        caffe.CaffeError, match="selective_search_ijcv_with_python, which needs MATLAB, is not installed"
    ):
        detector.detect_selective_search(photos)
    package = types.ModuleType("selective_search_ijcv_with_python")
    package.get_windows = lambda names, cmd: [np.array(WINDOWS[: 1 + i]) for i in range(len(names))]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.chdir(Path(photos[0]).parent)
    detections = detector.detect_selective_search(["b.png", "a.png"])
    assert [d["filename"] for d in detections] == [photos[0], photos[1], photos[1]]


# python -m caffe.tools.detect


def run(files: tuple[str, str], *arguments: object) -> int:
    return detect.main([*map(str, arguments), "--model_def", files[0], "--pretrained_model", files[1]])


def write_windows(path: Path, photos: list[str]) -> None:
    """A .csv whose files alternate, with its columns in the order of pycaffe's help."""
    rows = [f"{photo},{x0},{y0},{x1},{y1}" for y0, x0, y1, x1 in WINDOWS for photo in photos]
    path.write_text("\n".join(["filename,xmin,ymin,xmax,ymax", *rows]) + "\n")


def test_the_command_with_a_list(files: tuple[str, str], photos: list[str], tmp_path: Path) -> None:
    write_windows(tmp_path / "windows.csv", photos)
    np.save(tmp_path / "mean.npy", np.broadcast_to(MEAN[:, None, None], (3, 9, 7)))
    options = ["--crop_mode", "list", "--mean_file", tmp_path / "mean.npy"]
    detector = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0))
    expected = [(photo, window, expected_prediction(detector, photo, window)) for photo in photos for window in WINDOWS]

    assert run(files, tmp_path / "windows.csv", tmp_path / "out.csv", *options, "--context_pad", 0) == 0
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected)
    for row, (photo, window, prediction) in zip(rows, expected, strict=True):
        assert (row["filename"], *(int(row[c]) for c in ("ymin", "xmin", "ymax", "xmax"))) == (photo, *window)
        np.testing.assert_allclose([float(row[f"class{i}"]) for i in range(5)], prediction, rtol=1e-3)

    assert run(files, tmp_path / "windows.csv", tmp_path / "out.h5", *options, "--context_pad", 0) == 0
    with h5py.File(tmp_path / "out.h5") as file:
        assert [name.decode() for name in file["df/filename"][:]] == [photo for photo, _, _ in expected]
        np.testing.assert_array_equal(file["df/window"][:], [window for _, window, _ in expected])
        np.testing.assert_allclose(file["df/prediction"][:], [p for _, _, p in expected], rtol=1e-3)


def test_the_command_without_windows(files: tuple[str, str], photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "windows.csv").write_text("filename, ymin, xmin, ymax, xmax\n")
    for name in ("out.csv", "out.h5"):
        options = ["--crop_mode", "list", "--context_pad", 0]
        assert run(files, tmp_path / "windows.csv", tmp_path / name, *options) == 0
    assert (tmp_path / "out.csv").read_text() == "filename,ymin,xmin,ymax,xmax\n"
    with h5py.File(tmp_path / "out.h5") as file:
        assert [len(file[f"df/{name}"]) for name in ("filename", "window", "prediction")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "text", "mode", "message"),
    [
        ("w.txt", "x.png\n", "list", "w.txt: has no windows; --crop_mode list needs a .csv"),
        ("w.txt", "x.png\n", "selective_search", "is not installed"),
        ("w.dat", "", "list", "w.dat: expected a .txt or a .csv file"),
        ("w.csv", "filename,ymin,xmin,ymax\n", "list", "w.csv:1: the column xmax is missing"),
        ("w.csv", "filename,ymin,xmin,ymax,xmax\na.png,1,2,3,4\na.png,1,2,x,4\n", "list", "w.csv:3: the window is 1"),
        ("w.csv", "filename,ymin,xmin,ymax,xmax\na.png,1,2\n", "list", "w.csv:2: the window is 1, 2, None, None"),
        ("w.csv", "filename,ymin,xmin,ymax,xmax\nnone.png,1,2,3,4\n", "list", "none.png: No such file"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    mode: str,
    message: str,
) -> None:
    (tmp_path / name).write_text(text)
    assert run(files, tmp_path / name, tmp_path / "out.csv", "--crop_mode", mode, "--context_pad", 1) == 1
    error = capsys.readouterr().err
    assert error.startswith("detect: ")
    assert message in error
    assert not (tmp_path / "out.csv").exists()
