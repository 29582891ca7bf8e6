"""Images for a net, as pycaffe's scripts prepare them: load, resize, crop, and Transformer for the net's own form.

They are what scripts know as `caffe.io.load_image`, `caffe.io.Transformer` and so on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import cv2
import numpy as np
from google.protobuf.message import DecodeError

from .errors import CaffeError
from .files import StrPath, read_file
from .io import array_to_blobproto, blobproto_to_array, decode_any
from .proto.caffe_pb2 import BlobProtoVector

# Grey from red, green, blue: the luminance of ITU-R BT.709 that scikit-image takes (OpenCV's grey has BT.601's).
LUMINANCE = np.array([0.2125, 0.7154, 0.0721])


def load_image(filename: StrPath | BinaryIO, color: bool = True) -> np.ndarray:
    """An image file as float32 in 0..1: H×W×3 in the order red, green, blue, or H×W×1.

    Parameters
    ----------
    filename: a file of any format that OpenCV reads, or one that is open or in memory (`io.BytesIO`); what a camera
        notes about its rotation is ignored, alpha left out.
    color: True (default) repeats a grey image's one channel three times; False turns a colour image grey.

    Raises CaffeError for a file that cannot be read or is no image.
    """
    data = _image_bytes(filename)
    try:
        pixels = decode_any(data, cv2.IMREAD_UNCHANGED)
    except CaffeError as error:
        raise CaffeError(f"{filename}: {error}") from None
    if pixels is None:
        raise CaffeError(f"{filename}: not an image that OpenCV reads ({len(data)} bytes)")
    if pixels.dtype in (np.uint8, np.uint16):
        values = np.arange(2 ** (8 * pixels.itemsize))
        image = (values / values[-1]).astype(np.float32)[pixels]
    elif pixels.dtype.kind == "f":
        image = pixels
    else:
        raise CaffeError(f"{filename}: the image's values are {pixels.dtype}; expected 8 or 16 bits, or floats")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3 if color else 1, axis=2)
    else:
        image = image[:, :, 2::-1]
        if not color:
            image = (image @ LUMINANCE)[:, :, None]
    return np.ascontiguousarray(image, np.float32)


def _image_bytes(file: StrPath | BinaryIO) -> bytes:
    """The bytes of a file that is named, or open: from its start, where it can be sought."""
    if isinstance(file, str | os.PathLike):
        return read_file(file)
    if not hasattr(file, "read"):
        raise CaffeError(f"load_image: filename is {type(file).__name__}; expected a path or a file opened for reading")
    if file.seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise CaffeError(f"load_image: {file!r} gives {type(data).__name__}; expected bytes, as of a file opened 'rb'")
    return data


# Resizing. An axis is resampled by taps: for each output the indices of the inputs that it is summed from, and their
# weights, both arrays outputs×taps.

Taps = tuple[np.ndarray, np.ndarray]


def _convolution_taps(count: int, position: np.ndarray, order: int) -> Taps:
    """Nearest (order 0), linear (1) or Catmull-Rom (3) interpolation among `count` values, which are 0 outside."""
    first = np.floor(position + 0.5) if order == 0 else np.floor(position)
    t = position - first
    if order == 0:
        weights = [np.ones_like(t)]
    elif order == 1:
        weights = [1 - t, t]
    else:
        first -= 1
        weights = [
            t * (t * (2 - t) - 1) / 2,
            t * t * (3 * t - 5) / 2 + 1,
            t * (t * (4 - 3 * t) + 1) / 2,
            t * t * (t - 1) / 2,
        ]
    index = first[:, None].astype(int) + np.arange(len(weights))
    inside = (index >= 0) & (index < count)
    return np.where(inside, index, 0), np.stack(weights, 1) * inside


def _b_spline(order: int, x: np.ndarray) -> np.ndarray:
    """The central B-spline of an order from 2 on."""
    terms = (
        (-1) ** k * math.comb(order + 1, k) * np.maximum(x + (order + 1) / 2 - k, 0) ** order for k in range(order + 2)
    )
    return sum(terms, np.zeros_like(x)) / math.factorial(order)


def _spline_taps(count: int, position: np.ndarray, order: int) -> Taps:
    """A spline of an order from 2 on through `count` coefficients, mirrored at the ends; 0 outside of them."""
    first = np.floor(position + (0 if order % 2 else 0.5)) - order // 2
    index = first[:, None].astype(int) + np.arange(order + 1)
    weights = _b_spline(order, position[:, None] - index)
    period = max(2 * count - 2, 1)
    index = np.abs((index + count - 1) % period - (count - 1)) if count > 1 else np.zeros_like(index)
    return index, weights * ((position >= 0) & (position <= count - 1))[:, None]


def _spline_coefficients(values: np.ndarray, order: int) -> np.ndarray:
    """The coefficients of the spline of that order that goes through the values along axis 0, mirrored at the ends.

    Each pole of the inverse of the sampled B-spline is a pass forward and one backward (Unser, Aldroubi and Eden,
    B-spline signal processing, 1993).
    """
    count = len(values)
    if count == 1:
        return values
    roots = np.roots(_b_spline(order, np.arange(-(order // 2), order // 2 + 1, dtype=np.float64)))
    out = values.copy()
    for pole in sorted(root.real for root in roots if abs(root) < 1):
        out *= (1 - pole) * (1 - 1 / pole)
        powers = pole ** np.arange(2 * count - 2, dtype=np.float64)
        start = powers[:count].copy()
        start[1:-1] += powers[:-count:-1][: count - 2]
        out[0] = np.tensordot(start, out, 1) / (1 - pole ** (2 * count - 2))
        for i in range(1, count):
            out[i] += pole * out[i - 1]
        out[-1] = (out[-1] + pole * out[-2]) * pole / (pole * pole - 1)
        for i in reversed(range(count - 1)):
            out[i] = pole * (out[i + 1] - out[i])
    return out


def _resample(
    image: np.ndarray, positions: Sequence[np.ndarray], order: int, catmull_rom: bool, outside: float = 0.0
) -> np.ndarray:
    """An image H×W×K at those positions of its rows and columns, float64; `outside` is the value around it."""
    inside = np.ones((1, 1, 1))  # the share of each output that comes from within the image
    for axis, position in enumerate(positions):
        image = np.moveaxis(image, axis, 0)
        if order <= 1 or (order == 3 and catmull_rom):
            index, weights = _convolution_taps(len(image), position, order)
        else:
            image = _spline_coefficients(image.astype(np.float64), order)
            index, weights = _spline_taps(len(image), position, order)
        total = np.zeros((len(position), *image.shape[1:]))
        for tap in range(index.shape[1]):
            total += image[index[:, tap]] * weights[:, tap, None, None]
        image = np.moveaxis(total, 0, axis)
        inside = inside * np.moveaxis(weights.sum(1)[:, None, None], 0, axis)
    return image + outside * (1 - inside)


def resize_image(im: np.ndarray, new_dims: Sequence[int] | np.ndarray, interp_order: int = 1) -> np.ndarray:
    """An image in another size, float32 in the range that it had.

    Parameters
    ----------
    im: H×W×K.
    new_dims: height and width (the channels may follow).
    interp_order: of the interpolation, 0 (nearest) to 5; default 1 (linear).

    Notes
    -----
    The numbers are those that pycaffe's scikit-image (0.11 to 0.13) and scipy give, up to rounding. With one or three
    channels pixels are areas and outside of the image lies its least value: enlarging it darkens its edges. Order 3
    interpolates by Catmull-Rom splines, orders 2, 4 and 5 by B-splines through the pixels with nothing outside
    of the outer pixels' centres; what overshoots the image's range is cut off. With another number of channels pixels
    are points, the outer ones stay on the edge, and orders from 2 on are B-splines; integers are rounded. No filter
    comes before an image is made smaller.

    Raises CaffeError for another number of axes, an empty image or size, and other orders.
    """
    im = np.asarray(im)
    if im.ndim != 3 or im.size == 0:
        raise CaffeError(f"resize_image: the image's shape is {im.shape}; expected height × width × channels")
    dims = tuple(int(n) for n in new_dims)
    if len(dims) < 2 or min(dims) < 1 or dims[2:] not in ((), im.shape[2:]):
        raise CaffeError(f"resize_image: new_dims is {dims}; expected a height and a width, at least 1")
    height, width = dims[:2]
    if interp_order not in range(6):
        raise CaffeError(f"resize_image: interp_order is {interp_order!r}; expected 0 to 5")
    sizes = list(zip(im.shape[:2], (height, width), strict=True))
    if im.shape[2] in (1, 3):
        low, high = float(im.min()), float(im.max())
        if low == high:
            return np.full((height, width, im.shape[2]), low, np.float32)
        areas = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in sizes]
        resized = _resample(im, areas, interp_order, catmull_rom=True, outside=low)
        return resized.clip(low, high).astype(np.float32)
    points = [np.minimum(np.arange(new) * ((old - 1) / max(new - 1, 1)), old - 1) for old, new in sizes]
    resized = _resample(im, points, interp_order, catmull_rom=False)
    if im.dtype.kind in "iu":
        limits = np.iinfo(im.dtype)
        resized = np.trunc(resized + np.copysign(0.5, resized)).clip(limits.min, limits.max)
    return resized.astype(np.float32)


def resize(image: np.ndarray, output_shape: Sequence[int] | np.ndarray, order: int = 1) -> np.ndarray:
    """An image in another size, float64: the `skimage.transform.resize` that pycaffe's scripts find in `caffe.io`.

    Parameters
    ----------
    image: H×W or H×W×K; floats keep their range, whole numbers are divided by the greatest of their type.
    output_shape: height and width (the channels may follow).
    order: of the interpolation, 0 (nearest), 1 (linear, the default) or 3 (Catmull-Rom).

    Notes
    -----
    The numbers are scikit-image's of that time (0.11 to 0.13), up to rounding: pixels are areas, outside of the image
    lies 0, but nothing is below the image's least value or above its greatest, and no filter comes before an image is
    made smaller.

    Raises CaffeError for another number of axes or of channels, an empty image or size, and other orders.
    """
    image = np.asarray(image)
    dims = tuple(int(n) for n in output_shape)
    if image.ndim not in (2, 3) or image.size == 0:
        raise CaffeError(f"resize: the image's shape is {image.shape}; expected height × width (× channels)")
    if len(dims) < 2 or min(dims) < 1 or dims[2:] not in ((), image.shape[2:]):
        raise CaffeError(f"resize: output_shape is {dims} for {image.shape}; expected a height and a width, at least 1")
    if order not in (0, 1, 3):
        raise CaffeError(f"resize: order is {order!r}; expected 0, 1 or 3")
    if image.dtype.kind in "iu":
        image = image / np.iinfo(image.dtype).max
    pixels = image.reshape(*image.shape[:2], -1).astype(np.float64)
    areas = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(image.shape, dims[:2], strict=False)]
    resized = _resample(pixels, areas, order, catmull_rom=True).clip(pixels.min(), pixels.max())
    return resized.reshape(*dims[:2], *image.shape[2:])


def oversample(images: Sequence[np.ndarray], crop_dims: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ten crops of each image: the four corners, the centre, and these five mirrored.

    Parameters
    ----------
    images: H×W×K each, all of one shape.
    crop_dims: height and width of the crops.

    Returns
    -------
    10·N × height × width × K, float32: an image's ten crops after another's, each in the order top left, top right,
    bottom left, bottom right, centre, then the same mirrored left to right.

    Raises CaffeError where the images differ in shape, there are none, or a crop does not fit.
    """
    shapes = {np.shape(im) for im in images}
    height, width = (int(n) for n in crop_dims)
    if len(shapes) != 1:
        raise CaffeError(f"oversample: the images' shapes are {sorted(shapes) or 'none'}; expected one shape")
    shape = shapes.pop()
    if len(shape) != 3 or not (0 < height <= shape[0] and 0 < width <= shape[1]):
        raise CaffeError(f"oversample: crops of {height}×{width} from images of shape {shape}; expected to fit")
    down, right = shape[0] - height, shape[1] - width
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = np.empty((len(images), 10, height, width, shape[2]), np.float32)
    for out, im in zip(crops, images, strict=True):
        for i, (y, x) in enumerate(corners):
            out[i] = im[y : y + height, x : x + width]
        out[5:] = out[:5, :, ::-1]
    return crops.reshape(-1, *crops.shape[2:])


class Transformer:
    """Turns images into what a net's input blobs hold, and back.

    Parameters
    ----------
    inputs: the input blobs' shapes N×K×H×W by name, as `{"data": net.blobs["data"].data.shape}`.

    Notes
    -----
    Nothing is done but what is set: transpose, channel_swap, raw_scale, mean, input_scale, applied in this order after
    resizing to the blob's size. CaffeError is raised for a name that is not in `inputs`.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise CaffeError(f"Transformer: {in_!r} is no input; expected one of {', '.join(self.inputs)}")
        return tuple(self.inputs[in_])

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """An image as the blob `in_` takes it: K×H×W, float32.

        Parameters
        ----------
        data: H'×W'×K, or H×W where it has the blob's size and nothing is set that needs the channels' axis. It is left
            as it is (pycaffe scales a float32 image of the right size where it stands).

        Raises CaffeError for another number of axes, and where the channels do not fit what is set.
        """
        size = self._shape(in_)[2:]
        image = np.array(data, np.float32)
        if image.shape[:2] != size:
            if image.ndim != 3:
                raise CaffeError(
                    f"Transformer: the image's shape is {image.shape}; expected height × width × channels, or {size}"
                )
            image = resize_image(image, size)
        try:
            if in_ in self.transpose:
                image = image.transpose(self.transpose[in_])
            if in_ in self.channel_swap:
                image = image[list(self.channel_swap[in_])]
            if in_ in self.raw_scale:
                image *= self.raw_scale[in_]
            if in_ in self.mean:
                image -= self.mean[in_]
            if in_ in self.input_scale:
                image *= self.input_scale[in_]
        except (ValueError, IndexError) as error:
            raise CaffeError(
                f"Transformer: an image of shape {np.shape(data)} does not fit what is set for {in_!r}: {error}"
            ) from None
        return image

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """What `preprocess` made (K×H×W, or 1×K×H×W), turned back but for its size: H×W×K, of the data's float type."""
        shape = self._shape(in_)
        image = np.array(data, np.result_type(data, np.float32))
        # pycaffe drops all axes of size 1, also a grey image's channel, and then fails on transposing
        image = image.reshape(image.shape[1 - len(shape) :]) if in_ in self.transpose else image.squeeze()
        if in_ in self.input_scale:
            image /= self.input_scale[in_]
        if in_ in self.mean:
            image += self.mean[in_]
        if in_ in self.raw_scale:
            image /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The image's axes in the blob's order: (2, 0, 1) turns H×W×K into K×H×W."""
        shape = self._shape(in_)
        if len(order) != len(shape) - 1:
            raise CaffeError(f"set_transpose: order is {tuple(order)}; {in_!r} has {len(shape) - 1} axes but the first")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The image's channels in the blob's order: (2, 1, 0) turns red, green, blue into blue, green, red.

        Channels are what the first axis counts after transposing.
        """
        shape = self._shape(in_)
        if len(order) != shape[1]:
            raise CaffeError(f"set_channel_swap: order is {tuple(order)}; {in_!r} has {shape[1]} channels")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """A factor for the image before the mean is subtracted: 255 for nets trained on 0..255 rather than 0..1."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """What to subtract: a number a channel, K, or an image, K×H×W (or H×W for one channel) of the blob's size.

        Its channels are in the blob's order and its range is the image's after raw_scale.
        """
        shape = self._shape(in_)
        mean = np.asarray(mean)
        if mean.ndim == 1:
            if len(mean) != shape[1]:
                raise CaffeError(f"set_mean: the mean has {len(mean)} values; {in_!r} has {shape[1]} channels")
            mean = mean[:, None, None]
        elif mean.ndim not in (2, 3) or (1, *mean.shape)[-3:] != shape[1:]:
            raise CaffeError(
                f"set_mean: the mean's shape is {mean.shape}; {in_!r} has {shape[1:]} "
                "(mean.mean(1).mean(1) makes a mean image a value a channel)"
            )
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """A factor for the image after the mean was subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale


# Several arrays in one message


def arraylist_to_blobprotovecor_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """A serialized BlobProtoVector of arrays. The name is pycaffe's."""
    return BlobProtoVector(blobs=[array_to_blobproto(array) for array in arraylist]).SerializeToString()


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """The arrays, float32, of a serialized BlobProtoVector; CaffeError if it is none."""
    vector = BlobProtoVector()
    try:
        vector.ParseFromString(str)
    except DecodeError:
        raise CaffeError(f"not a BlobProtoVector ({len(str)} bytes)") from None
    return [blobproto_to_array(blob) for blob in vector.blobs]
