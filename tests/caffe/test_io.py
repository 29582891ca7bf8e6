"""caffe.io as pycaffe's scripts use it, against formulas by hand, OpenCV, Pillow, numbers of scikit-image and scipy."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import caffe
from caffe.proto import caffe_pb2

RANDOM = np.random.default_rng(0)


def float_image(*shape: int) -> np.ndarray:
    return RANDOM.random(shape, np.float32)


# Blobs and Datum


def test_names_that_scripts_use() -> None:
    assert caffe.io.caffe_pb2.BlobProto is caffe_pb2.BlobProto


def test_scikit_image_by_its_name_in_caffes_module(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("skimage")
    monkeypatch.setitem(sys.modules, "skimage", package)
    monkeypatch.setitem(sys.modules, "skimage.io", ModuleType("skimage.io"))
    assert caffe.io.skimage is package
    monkeypatch.setitem(sys.modules, "skimage.io", None)  # as where it is not installed
    with pytest.raises(AttributeError, match="pip install scikit-image"):
        caffe.io.skimage  # noqa: B018
    with pytest.raises(AttributeError, match=r"'caffe.io' has no attribute 'zoomed'"):
        caffe.io.zoomed  # noqa: B018


def test_blobs_with_and_without_a_diff() -> None:
    data, diff = float_image(2, 3, 1), float_image(2, 3, 1)
    blob = caffe.io.array_to_blobproto(data, diff)
    assert blob == caffe_pb2.BlobProto(shape={"dim": [2, 3, 1]}, data=data.ravel(), diff=diff.ravel())
    np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob), data)
    np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob, return_diff=True), diff)
    np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob, True), diff)


def test_a_mean_as_scripts_read_it(tmp_path: Path) -> None:
    image = float_image(3, 2, 4)
    (tmp_path / "mean.binaryproto").write_bytes(
        caffe_pb2.BlobProto(num=1, channels=3, height=2, width=4, data=image.ravel()).SerializeToString()
    )
    blob = caffe.io.caffe_pb2.BlobProto.FromString((tmp_path / "mean.binaryproto").read_bytes())
    mean = caffe.io.blobproto_to_array(blob)
    np.testing.assert_array_equal(mean, image[None])
    np.testing.assert_allclose(mean[0].mean(1).mean(1), image.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 2, 4), (0, 2, 4), ()])
def test_a_mean_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(caffe.io.array_to_blobproto(np.zeros(shape)).SerializeToString())
    with pytest.raises(caffe.CaffeError, match=rf"mean\.binaryproto: the mean's shape is {re.escape(str(shape))}"):
        caffe.io.load_mean(path)


def test_the_shape_of_four_numbers_comes_first_and_a_scalar_has_none() -> None:
    both = caffe_pb2.BlobProto(num=1, channels=2, height=3, width=1, shape={"dim": [6]}, data=range(6))
    assert caffe.io.blobproto_to_array(both).shape == (1, 2, 3, 1)
    scalar = caffe.io.array_to_blobproto(np.array(2.5))
    assert caffe.io.blobproto_to_array(caffe_pb2.BlobProto.FromString(scalar.SerializeToString())) == np.float32(2.5)


@pytest.mark.parametrize(
    ("datum", "message"),
    [
        ({"channels": 1, "height": 2, "width": 2, "data": b"abc"}, r"shape \(1, 2, 2\) with 3 values; expected 4"),
        ({"channels": 1, "height": 2, "width": 1, "float_data": [1]}, r"shape \(1, 2, 1\) with 1 values; expected 2"),
        ({"channels": 1, "height": 0, "width": 2}, r"shape \(1, 0, 2\) with 0 values"),
        ({"channels": -1, "height": -2, "width": 2, "data": b"abcd"}, r"shape \(-1, -2, 2\) with 4 values"),
    ],
)
def test_a_datum_of_another_number_of_values(datum: dict[str, Any], message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.io.datum_to_array(caffe_pb2.Datum(**datum))


def test_several_blobs_in_a_string() -> None:
    arrays = [float_image(2, 3), float_image(4), np.array([[[1.0]]], np.float32)]
    string = caffe.io.arraylist_to_blobprotovecor_str(arrays)
    assert [list(blob.shape.dim) for blob in caffe_pb2.BlobProtoVector.FromString(string).blobs] == [
        [2, 3],
        [4],
        [1] * 3,
    ]
    for array, back in zip(arrays, caffe.io.blobprotovector_str_to_arraylist(string), strict=True):
        np.testing.assert_array_equal(array, back)
    with pytest.raises(caffe.CaffeError, match="not a BlobProtoVector"):
        caffe.io.blobprotovector_str_to_arraylist(string[:-1])


def test_datum_of_bytes_and_of_floats() -> None:
    image = RANDOM.integers(0, 256, (3, 2, 4), np.uint8)
    datum = caffe.io.array_to_datum(image, 7)
    assert datum == caffe_pb2.Datum(channels=3, height=2, width=4, data=image.tobytes(), label=7)
    back = caffe.io.datum_to_array(datum)
    np.testing.assert_array_equal(back, image)
    back[:] = 0  # a script's own array, not the message's bytes
    assert datum.data == image.tobytes()
    datum = caffe.io.array_to_datum(image / 2, label=np.int64(1))
    assert (datum.data, list(datum.float_data), datum.label) == (b"", (image / 2).ravel().tolist(), 1)
    np.testing.assert_array_equal(caffe.io.datum_to_array(datum), image / 2)
    assert not caffe.io.array_to_datum(image).HasField("label")
    with pytest.raises(caffe.CaffeError, match=r"\(2, 4\); expected C×H×W"):
        caffe.io.array_to_datum(image[0])


# load_image


def test_colour_grey_and_alpha(tmp_path: Path) -> None:
    rgb = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([rgb, rgb[..., 0]])).save(tmp_path / "rgba.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    expected = (rgb / 255).astype(np.float32)
    for name in ("rgb.png", "rgba.png"):
        image = caffe.io.load_image(str(tmp_path / name))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, expected)
        grey = caffe.io.load_image(tmp_path / name, color=False)
        red, green, blue = np.moveaxis(rgb / 255, 2, 0)
        np.testing.assert_allclose(grey[..., 0], 0.2125 * red + 0.7154 * green + 0.0721 * blue, rtol=1e-6)
        assert grey.shape == (5, 7, 1)
    np.testing.assert_array_equal(caffe.io.load_image(tmp_path / "grey.png"), np.repeat(expected[..., :1], 3, 2))
    np.testing.assert_array_equal(caffe.io.load_image(tmp_path / "grey.png", False), expected[..., :1])


def test_palettes_sixteen_bits_and_floats(tmp_path: Path) -> None:
    palette = Image.fromarray(RANDOM.integers(0, 256, (6, 5, 3), np.uint8)).convert("P")
    palette.save(tmp_path / "palette.png")
    expected = np.asarray(palette.convert("RGB"), np.float32) / 255
    np.testing.assert_allclose(caffe.io.load_image(tmp_path / "palette.png"), expected, rtol=1e-6)
    deep = RANDOM.integers(0, 65536, (4, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    np.testing.assert_allclose(caffe.io.load_image(tmp_path / "deep.png", False)[..., 0], deep / 65535, rtol=1e-6)
    cv2.imwrite(str(tmp_path / "float.tiff"), expected[..., ::-1])
    np.testing.assert_array_equal(caffe.io.load_image(tmp_path / "float.tiff"), expected)
    cv2.imwrite(str(tmp_path / "int.tiff"), deep.astype(np.int32))
    with pytest.raises(caffe.CaffeError, match=r"int.tiff: the image's values are int32"):
        caffe.io.load_image(tmp_path / "int.tiff")


def test_a_cameras_rotation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: to be turned by 90° when shown
    Image.fromarray(RANDOM.integers(0, 256, (8, 16), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    assert caffe.io.load_image(tmp_path / "photo.jpg").shape == (8, 16, 3)


def test_an_image_from_memory_or_an_open_file_as_web_demos_have_it(tmp_path: Path) -> None:
    rgb = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
    memory = io.BytesIO()
    Image.fromarray(rgb).save(memory, "png")  # and so stands at its end
    np.testing.assert_array_equal(caffe.io.load_image(memory), (rgb / 255).astype(np.float32))
    (tmp_path / "rgb.png").write_bytes(memory.getvalue())
    with open(tmp_path / "rgb.png", "rb") as file:
        assert caffe.io.load_image(file, color=False).shape == (5, 7, 1)
    with subprocess.Popen(["cat", tmp_path / "rgb.png"], stdout=subprocess.PIPE) as process:  # cannot be sought
        assert process.stdout
        assert caffe.io.load_image(process.stdout).shape == (5, 7, 3)
    with pytest.raises(caffe.CaffeError, match=r"BytesIO.*not an image that OpenCV reads"):
        caffe.io.load_image(io.BytesIO(b"GIF89a"))
    with open(__file__) as file, pytest.raises(caffe.CaffeError, match=r"test_io.py.*gives str; expected bytes"):
        caffe.io.load_image(file)
    with pytest.raises(caffe.CaffeError, match="filename is NoneType; expected a path or a file"):
        caffe.io.load_image(None)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(caffe.CaffeError, match=r"none.jpg: No such file"):
        caffe.io.load_image(tmp_path / "none.jpg")
    for data in (b"", b"GIF89a\1\0\1\0 or so"):
        (tmp_path / "x.jpg").write_bytes(data)
        with pytest.raises(caffe.CaffeError, match=rf"x.jpg: not an image that OpenCV reads \({len(data)} bytes\)"):
            caffe.io.load_image(tmp_path / "x.jpg")


# resize_image

SIGNAL = np.array([0, 1, 4, 2, 7, 3], np.float32)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # scikit-image 0.26's warp, mode constant, at the centres of 9 areas in 6 (its resize of 2016)
        (1, [0, 0.5, 1.5, 3.5, 3, 2.833333, 6.166667, 5, 2.5]),
        (3, [0, 0.3125, 1.44213, 3.766204, 2.875, 2.532407, 6.606481, 5.5, 2.407407]),
        # scipy 1.17's map_coordinates there
        (2, [0, 0.164424, 1.503738, 3.884076, 2.741379, 2.518223, 6.70699, 5.042473, 0]),
        (4, [0, 0.047168, 1.642545, 4.005492, 2.491869, 2.660801, 6.732546, 4.989471, 0]),
        (5, [0, 0.016353, 1.679853, 4.044166, 2.407832, 2.705427, 6.750132, 4.967428, 0]),
    ],
)
def test_resizing_one_and_three_channels(order: int, expected: list[float]) -> None:
    column = SIGNAL[:, None, None]
    np.testing.assert_allclose(caffe.io.resize_image(column, (9, 1), order)[:, 0, 0], expected, atol=1e-6)
    colour = np.concatenate([column, column[::-1], column], 2).transpose(1, 0, 2) * 10 - 5
    resized = caffe.io.resize_image(colour, (1, 9), interp_order=order)
    np.testing.assert_allclose(resized[0, :, 0], np.array(expected) * 10 - 5, atol=1e-5)
    np.testing.assert_allclose(resized[0, ::-1, 1], np.array(expected) * 10 - 5, atol=1e-5)


def test_the_nearest_pixel() -> None:
    expected = SIGNAL[[0, 0, 1, 2, 2, 3, 3, 4, 5, 5]]  # centres at -0.2, 0.4, 1, 1.6, …
    column = SIGNAL[:, None, None]
    np.testing.assert_array_equal(caffe.io.resize_image(column, (10, 1), 0)[:, 0, 0], expected)
    expected = SIGNAL[[0, 1, 1, 2, 3, 4, 4, 5]]  # pixels at 0, 5/7, 10/7, …
    image = np.concatenate([column, column], 2)
    np.testing.assert_array_equal(caffe.io.resize_image(image, (8, 1), 0)[:, 0, 1], expected)


@pytest.mark.parametrize(
    ("order", "expected"),
    [  # scipy 1.17's zoom by 9/6
        (1, [0, 0.625, 1.75, 3.625, 3, 2.625, 5.75, 5.5, 3]),
        (2, [0, 0.278306, 1.797834, 3.938157, 2.741379, 2.352791, 6.3832, 5.930745, 3]),
        (3, [0, 0.221012, 1.942434, 3.974712, 2.625, 2.43935, 6.307566, 5.757504, 3]),
        (4, [0, 0.148291, 2.003971, 4.035161, 2.491869, 2.457582, 6.406535, 5.765215, 3]),
        (5, [0, 0.116757, 2.059364, 4.065821, 2.407832, 2.491244, 6.431241, 5.725502, 3]),
    ],
)
def test_resizing_other_numbers_of_channels(order: int, expected: list[float]) -> None:
    column = SIGNAL[:, None, None]
    image = np.concatenate([column, column[::-1]], 2)
    for im, dims in ((image, (9, 1)), (image.transpose(1, 0, 2), (1, 9))):
        resized = caffe.io.resize_image(im, dims, order).reshape(9, 2)
        np.testing.assert_allclose(resized[:, 0], expected, atol=1e-6)
        np.testing.assert_allclose(resized[::-1, 1], expected, atol=1e-6)
    whole = caffe.io.resize_image(image.astype(np.uint8), (9, 1), order)[:, 0, 0]
    np.testing.assert_array_equal(whole, np.floor(np.array(expected) + 0.5))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 4), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_linear_resizing_is_opencvs_but_at_the_edges(sizes: tuple[int, ...], channels: int, seed: int) -> None:
    """Beyond the outer pixels' centres the image fades to its least value, where OpenCV repeats the pixels."""
    old, new = sizes[:2], sizes[2:]
    im = np.random.default_rng(seed).random((*old, channels), np.float32) * 9 - 4
    resized = caffe.io.resize_image(im, new)
    inside = [
        slice(*np.searchsorted((np.arange(n) + 0.5) * o / n - 0.5, [-1e-9, o - 1 + 1e-9]))
        for o, n in zip(old, new, strict=True)
    ]
    expected = cv2.resize(im.astype(np.float64), new[::-1]).reshape(*new, channels)
    np.testing.assert_allclose(resized[tuple(inside)], expected[tuple(inside)], atol=1e-5)
    padded = np.pad(im, ((1, 1), (1, 1), (0, 0)), constant_values=im.min())
    row, column = ((np.arange(n) + 0.5) * o / n + 0.5 for o, n in zip(old, new, strict=True))
    across = np.meshgrid(column.astype(np.float32), row.astype(np.float32))
    near = cv2.remap(padded, *across, cv2.INTER_LINEAR).reshape(*new, channels)  # to 1/32 of a pixel
    assert np.abs(near - resized).max() <= np.ptp(im) / 32 + 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_an_image_of_the_right_size_stays(order: int, channels: int, height: int, width: int) -> None:
    im = np.random.default_rng(height).random((height, width, channels), np.float32)
    np.testing.assert_allclose(caffe.io.resize_image(im, (height, width), order), im, atol=1e-5)


def test_a_constant_image_stays_constant() -> None:
    resized = caffe.io.resize_image(np.full((2, 3, 3), 7, np.uint8), np.array([5, 4, 3]))
    assert (resized.dtype, resized.shape) == (np.float32, (5, 4, 3))
    np.testing.assert_array_equal(resized, 7)


@pytest.mark.parametrize(
    ("im", "dims", "order", "message"),
    [
        (np.zeros((4, 4)), (2, 2), 1, r"the image's shape is \(4, 4\)"),
        (np.zeros((0, 4, 3)), (2, 2), 1, r"the image's shape is \(0, 4, 3\)"),
        (np.zeros((4, 4, 3)), (2, 0), 1, r"new_dims is \(2, 0\)"),
        (np.zeros((4, 4, 3)), (2, 2, 4), 1, r"new_dims is \(2, 2, 4\)"),
        (np.zeros((4, 4, 3)), (2, 2), 6, "interp_order is 6; expected 0 to 5"),
    ],
)
def test_what_cannot_be_resized(im: np.ndarray, dims: tuple[int, ...], order: int, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.io.resize_image(im, dims, interp_order=order)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 4), st.sampled_from([(), (2,), (3,)]), st.integers(0, 2**32 - 1))
def test_scikit_images_resize(sizes: tuple[int, ...], channels: tuple[int, ...], seed: int) -> None:
    """Each pixel from the four around its place, of which those outside are 0, within the image's range."""
    old, new = sizes[:2], sizes[2:]
    image = np.random.default_rng(seed).random((*old, *channels)) - 0.3
    expected = np.zeros((*new, *channels))
    for i, j in np.ndindex(*new):
        y, x = ((k + 0.5) * o / n - 0.5 for k, o, n in zip((i, j), old, new, strict=True))
        for row, column in np.ndindex(*old):
            expected[i, j] += max(1 - abs(y - row), 0) * max(1 - abs(x - column), 0) * image[row, column]
    expected = np.minimum(np.maximum(expected, image.min()), image.max())
    resized = caffe.io.resize(image, (*new, *channels))
    assert resized.dtype == np.float64
    np.testing.assert_allclose(resized, expected, atol=1e-12)
    np.testing.assert_allclose(caffe.io.resize(image.astype(np.float32), new), expected, atol=1e-6)


def test_resize_makes_shares_of_whole_numbers() -> None:
    image = np.array([[0, 51], [102, 255]], np.uint8)
    np.testing.assert_allclose(caffe.io.resize(image, (2, 2)), [[0, 0.2], [0.4, 1]])
    np.testing.assert_allclose(caffe.io.resize(image, (2, 4), order=0), [[0, 0, 0.2, 0.2], [0.4, 0.4, 1, 1]])


@pytest.mark.parametrize(
    ("image", "dims", "order", "message"),
    [
        (np.zeros(4), (2, 2), 1, r"the image's shape is \(4,\)"),
        (np.zeros((3, 4, 4)), (3, 2, 2), 1, r"output_shape is \(3, 2, 2\) for \(3, 4, 4\)"),
        (np.zeros((4, 4)), (2,), 1, r"output_shape is \(2,\)"),
        (np.zeros((4, 4)), (2, 2), 2, "order is 2; expected 0, 1 or 3"),
    ],
)
def test_what_resize_refuses(image: np.ndarray, dims: tuple[int, ...], order: int, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=f"resize: {message}"):
        caffe.io.resize(image, dims, order)


# oversample


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 5), (6, 8)])
def test_ten_crops(height: int, width: int) -> None:
    images = [float_image(6, 8, 3), float_image(6, 8, 3)]
    crops = caffe.io.oversample(images, (height, width))
    assert (crops.shape, crops.dtype) == ((20, height, width, 3), np.float32)
    for image, ten in zip(images, crops.reshape(2, 10, height, width, 3), strict=True):
        top, left = int((6 - height) / 2), int((8 - width) / 2)
        expected = [
            image[:height, :width],
            image[:height, -width:],
            image[-height:, :width],
            image[-height:, -width:],
            image[top : top + height, left : left + width],
        ]
        np.testing.assert_array_equal(ten[:5], expected)
        np.testing.assert_array_equal(ten[5:], [crop[:, ::-1] for crop in expected])


def test_crops_that_do_not_fit() -> None:
    with pytest.raises(caffe.CaffeError, match=r"crops of 7×4 from images of shape \(6, 8, 3\)"):
        caffe.io.oversample([np.zeros((6, 8, 3))], (7, 4))
    with pytest.raises(caffe.CaffeError, match=r"\[\(5, 8, 3\), \(6, 8, 3\)\]; expected one shape"):
        caffe.io.oversample([np.zeros((6, 8, 3)), np.zeros((5, 8, 3))], (3, 3))
    with pytest.raises(caffe.CaffeError, match="none; expected one shape"):
        caffe.io.oversample([], (3, 3))


# Transformer


def transformer() -> caffe.io.Transformer:
    """As pycaffe's classification notebook sets it up."""
    t = caffe.io.Transformer({"data": (10, 3, 4, 5)})
    t.set_transpose("data", (2, 0, 1))
    t.set_mean("data", np.array([104.0, 117.0, 123.0]))
    t.set_raw_scale("data", 255)
    t.set_channel_swap("data", (2, 1, 0))
    return t


def test_preprocessing_by_hand() -> None:
    t = transformer()
    t.set_input_scale("data", 0.5)
    image = float_image(4, 5, 3)
    before = image.copy()
    expected = (image.transpose(2, 0, 1)[::-1] * 255 - np.array([104, 117, 123])[:, None, None]) * 0.5
    result = t.preprocess("data", image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_allclose(t.preprocess("data", image.astype(np.float64)), expected, rtol=1e-5, atol=1e-4)


def test_preprocessing_resizes_first() -> None:
    image = float_image(9, 7, 3)
    resized = caffe.io.resize_image(image, (4, 5))
    t = transformer()
    np.testing.assert_array_equal(t.preprocess("data", image), t.preprocess("data", resized))


def test_nothing_is_done_but_what_is_set() -> None:
    image = RANDOM.integers(0, 256, (4, 5, 3), np.uint8)
    result = caffe.io.Transformer({"data": [1, 3, 4, 5]}).preprocess("data", image)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, image)


def test_a_grey_image_without_an_axis_for_the_channel() -> None:
    """As scripts for LeNet have it: of the blob's size, and nothing is transposed."""
    image = RANDOM.integers(0, 256, (4, 5), np.uint8)
    t = caffe.io.Transformer({"data": (1, 1, 4, 5)})
    t.set_input_scale("data", 1 / 256)
    np.testing.assert_array_equal(t.preprocess("data", image), image / np.float32(256))
    t.set_mean("data", np.full((4, 5), 7))
    np.testing.assert_array_equal(t.preprocess("data", image), (image - np.float32(7)) / 256)


def test_a_mean_image() -> None:
    t = caffe.io.Transformer({"data": (1, 3, 4, 5), "grey": (1, 1, 4, 5)})
    mean, image = float_image(3, 4, 5), float_image(4, 5, 3)
    t.set_transpose("data", (2, 0, 1))
    t.set_mean("data", mean)
    np.testing.assert_allclose(t.preprocess("data", image), image.transpose(2, 0, 1) - mean, rtol=1e-6)
    t.set_transpose("grey", (2, 0, 1))
    t.set_mean("grey", mean[0])
    np.testing.assert_allclose(t.preprocess("grey", image[..., :1])[0], image[..., 0] - mean[0], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(3)),
    st.sampled_from([1, 3]),
    st.floats(0.5, 255),
    st.floats(0.01, 2),
    st.booleans(),
    st.booleans(),
)
def test_deprocessing_undoes_preprocessing(
    swap: list[int], channels: int, raw_scale: float, input_scale: float, mean_image: bool, batch: bool
) -> None:
    t = caffe.io.Transformer({"data": (1, channels, 4, 5)})
    t.set_transpose("data", (2, 0, 1))
    t.set_channel_swap("data", swap if channels == 3 else [0])
    t.set_raw_scale("data", raw_scale)
    t.set_mean("data", np.arange(20.0 * channels).reshape(channels, 4, 5) if mean_image else np.ones(channels))
    t.set_input_scale("data", input_scale)
    image = np.random.default_rng(1).random((4, 5, channels), np.float32)
    data = t.preprocess("data", image)
    data = data[None] if batch else data
    before = data.copy()
    np.testing.assert_allclose(t.deprocess("data", data), image, atol=1e-3)
    np.testing.assert_array_equal(data, before)


def test_deprocessing_without_a_transpose_drops_axes_of_one() -> None:
    t = caffe.io.Transformer({"data": (1, 1, 4, 5)})
    t.set_raw_scale("data", 2)
    data = RANDOM.integers(0, 9, (1, 1, 4, 5), np.uint8)
    np.testing.assert_array_equal(t.deprocess("data", data), data[0, 0] / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.preprocess("x", np.zeros((4, 5, 3))), "'x' is no input; expected one of data"),
        (lambda t: t.deprocess("x", np.zeros((3, 4, 5))), "'x' is no input"),
        (lambda t: t.set_raw_scale("x", 1), "'x' is no input"),
        (lambda t: t.set_input_scale("x", 1), "'x' is no input"),
        (lambda t: t.set_transpose("data", (0, 1)), r"order is \(0, 1\); 'data' has 3 axes"),
        (lambda t: t.set_channel_swap("data", (1, 0)), r"order is \(1, 0\); 'data' has 3 channels"),
        (lambda t: t.set_mean("data", np.zeros(4)), "the mean has 4 values; 'data' has 3 channels"),
        (lambda t: t.set_mean("data", np.zeros((3, 5, 4))), r"shape is \(3, 5, 4\); 'data' has \(3, 4, 5\)"),
        (lambda t: t.set_mean("data", np.zeros((4, 5))), r"shape is \(4, 5\); 'data' has \(3, 4, 5\)"),
        (lambda t: t.set_mean("data", np.zeros((1, 3, 4, 5))), r"shape is \(1, 3, 4, 5\)"),
        (lambda t: t.preprocess("data", np.zeros((4, 6))), r"the image's shape is \(4, 6\); expected .*, or \(4, 5\)"),
        (lambda t: t.preprocess("data", np.zeros((4, 5))), r"of shape \(4, 5\) does not fit what is set"),
        (lambda t: t.preprocess("data", np.zeros((4, 5, 1))), r"of shape \(4, 5, 1\) does not fit what is set"),
    ],
)  # fmt: skip
def test_what_a_transformer_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(caffe.CaffeError, match=message):
        call(transformer())


def test_a_file_for_which_there_is_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")  # what write(2) gives: of no file

    (tmp_path / "x.caffemodel").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.caffemodel'"):
        caffe.io.replace_bytes(tmp_path / "x.caffemodel", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.caffemodel": "old"}
