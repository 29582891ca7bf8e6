"""Caffe's messages: from files (prototxt, .caffemodel, .binaryproto) and into them, BlobProto and Datum as arrays."""

from __future__ import annotations

import importlib
import math
import re
from types import ModuleType
from typing import TypeVar

import cv2
import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from .blob import check_shape
from .errors import CaffeError
from .files import StrPath, read_file, replace_bytes
from .image_header import check_size
from .proto import caffe_pb2  # noqa: F401 - scripts name messages as caffe.io.caffe_pb2.Datum
from .proto.caffe_pb2 import BlobProto, Datum, NetParameter, SolverParameter
from .upgrade import upgrade_net, upgrade_solver

M = TypeVar("M", bound=Message)

STRING_OR_COMMENT = re.compile(rb"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|#[^\n]*""")  # in a prototxt


# Messages from files


def read_text(path: StrPath, message: M) -> M:
    """Parse a prototxt into `message` and return it.

    Raises CaffeError naming file, line and column for a field that Caffe does not know or text that does not parse.
    """
    data = read_file(path)
    try:
        text = _text(data)
        text_format.Parse(text, message)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CaffeError(f"{path}: not a text file (line {line}: {error.reason}); expected a prototxt") from None
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        where = f"{path}:{line}:{column}" if line is not None else str(path)
        what = str(error).split(" : ", 1)[-1].replace('"caffe.', '"')
        raise CaffeError(f"{where}: {what}{_foreign_layers(text, message)}") from None
    except RecursionError:
        raise CaffeError(f"{path}: messages are nested too deeply") from None
    return message


def _text(data: bytes) -> str:
    """A prototxt's text, which is UTF-8; only its comments may be in any encoding, as for Caffe."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return STRING_OR_COMMENT.sub(rb"\1", data).decode("utf-8-sig")


def _foreign_layers(text: str, message: Message) -> str:
    """What to say of a net that does not parse: its layers of types that Caffe 1.0 lacks, as it does their settings."""
    from .layers.base import LAYERS, OF_ANOTHER_CAFFE  # here, since the layers read files by this module

    if not isinstance(message, NetParameter):
        return ""
    net = NetParameter()
    try:
        text_format.Parse(text, net, allow_unknown_field=True)
    except (text_format.ParseError, RecursionError):
        return ""
    foreign = [f"{layer.name!r} ({layer.type})" for layer in net.layer if layer.type and layer.type not in LAYERS]
    if not foreign:
        return ""
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    return f" The net has layers of types that Caffe 1.0 has not: {', '.join(foreign[:3])}{more}. {OF_ANOTHER_CAFFE}"


def read_binary(path: StrPath, message: M) -> M:
    """Parse a binary message (.caffemodel, .solverstate, .binaryproto) and return it; CaffeError if it is none.

    In text that is not UTF-8, U+FFFD stands for what cannot be read; Caffe wrote paths as the system had them.
    """
    data = read_file(path)
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise CaffeError(
            f"{path}: not a {type(message).__name__} ({len(data)} bytes; cut off, or another format)"
        ) from None
    _decode_text(message)
    return message


def _decode_text(message: Message) -> None:
    """Make text of all that should be: what is not UTF-8 (paths of other systems), protobuf hands out as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if hasattr(value, "extend") else [value]:
                _decode_text(part)
        elif field.type == field.TYPE_STRING and isinstance(value, bytes):
            setattr(message, field.name, value.decode(errors="replace"))
        elif field.type == field.TYPE_STRING and not isinstance(value, str):
            for i, part in enumerate(value):
                value[i] = part.decode(errors="replace") if isinstance(part, bytes) else part


def read_net_parameter(path: StrPath) -> NetParameter:
    """A net from a prototxt, in the current form whatever form the file has."""
    net = read_text(path, NetParameter())
    upgrade_net(net, str(path))
    return net


def read_net_binary(path: StrPath) -> NetParameter:
    """A net with its parameters from a .caffemodel, in the current form whatever form the file has."""
    net = read_binary(path, NetParameter())
    upgrade_net(net, str(path))
    return net


def read_solver_parameter(path: StrPath) -> SolverParameter:
    """A solver from a prototxt; its type is in `type`, also where the file has the older `solver_type`."""
    solver = read_text(path, SolverParameter())
    upgrade_solver(solver, str(path))
    return solver


# Blobs


def blob_shape(blob: BlobProto) -> tuple[int, ...]:
    """The shape that a message states; old files state it as num, channels, height, width."""
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return (blob.num, blob.channels, blob.height, blob.width)
    return tuple(blob.shape.dim)  # a scalar's is empty, and not even set


def _packed(blob: BlobProto, field: str, dtype: str) -> np.ndarray:
    """The values of a packed field, taken from its bytes rather than number by number."""
    alone = BlobProto()
    getattr(alone, field).MergeFrom(getattr(blob, field))
    count = len(getattr(alone, field))
    raw = alone.SerializeToString()
    size = count * np.dtype(dtype).itemsize
    with np.errstate(over="ignore"):  # what a double holds and a float does not becomes infinite, as in Caffe
        return np.frombuffer(raw, dtype, count, len(raw) - size).astype(np.float32)


def blobproto_to_array(blob: BlobProto, return_diff: bool = False) -> np.ndarray:
    """The values (or the gradient) of a BlobProto: float32, of the shape it states.

    Raises CaffeError where the shape and the number of values disagree, or no blob can have the shape.
    """
    single, double = ("diff", "double_diff") if return_diff else ("data", "double_data")
    use_double = len(getattr(blob, double)) > 0
    values = _packed(blob, double, "<f8") if use_double else _packed(blob, single, "<f4")
    shape = blob_shape(blob)
    if any(n < 0 for n in shape) or math.prod(shape) != values.size:
        raise CaffeError(f"a blob of shape {shape} with {values.size} values; expected {math.prod(shape)}")
    check_shape(shape)
    return values.reshape(shape)


def array_to_blobproto(array: np.ndarray, diff: np.ndarray | None = None) -> BlobProto:
    """A BlobProto with the array's shape, its values as float32, and if given the gradient."""
    blob = BlobProto()
    blob.shape.dim.extend(array.shape)
    for tag, values in ((0x2A, array), (0x32, diff)):  # field 5 data, field 6 diff: packed floats
        if values is not None:
            raw = np.ascontiguousarray(values, "<f4").tobytes()
            blob.MergeFromString(bytes([tag]) + _varint(len(raw)) + raw)
    return blob


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def load_mean(path: StrPath) -> np.ndarray:
    """The mean image of a .binaryproto: float32 C×H×W, in the images' range (0..255).

    Raises CaffeError for a file that is none or holds more than one image.
    """
    blob = read_binary(path, BlobProto())
    try:
        mean = blobproto_to_array(blob)
    except CaffeError as error:
        raise CaffeError(f"{path}: {error}") from None
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or mean.size == 0:
        raise CaffeError(f"{path}: the mean's shape is {mean.shape}; expected 1×C×H×W")
    return mean


def save_mean(path: StrPath, mean: np.ndarray) -> None:
    """Write a mean image C×H×W as compute_image_mean does: num 1, channels, height, width, data."""
    blob = array_to_blobproto(mean)
    blob.ClearField("shape")
    blob.num, (blob.channels, blob.height, blob.width) = 1, mean.shape
    replace_bytes(path, blob.SerializeToString())


# Datum


def array_to_datum(array: np.ndarray, label: int | None = None) -> Datum:
    """A Datum of an image C×H×W: bytes for uint8, else floats."""
    if array.ndim != 3:
        raise CaffeError(f"array_to_datum: the shape is {array.shape}; expected C×H×W")
    datum = Datum(channels=array.shape[0], height=array.shape[1], width=array.shape[2])
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def decode_any(data: bytes, flags: int) -> np.ndarray | None:
    """The image in the bytes of an image file, of any depth, as OpenCV has it; None where they are no image.

    Raises CaffeError where they claim more pixels than they can hold, or than OpenCV takes.
    """
    if not data:
        return None
    check_size(data)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # an image above OpenCV's limit of pixels
        raise CaffeError(error.err) from None


def decode_image(data: bytes, flags: int) -> np.ndarray:
    """The image in the bytes of an image file (PNG, JPEG, …), as OpenCV has it: H×W or H×W×C, uint8, C in order BGR.

    Parameters
    ----------
    data: of the whole file. One that is cut off is no image, but for a JPEG, whose missing part is grey.
    flags: OpenCV's IMREAD_COLOR (three channels), IMREAD_GRAYSCALE (one) or IMREAD_UNCHANGED (as it was written).

    Raises CaffeError where the bytes are not an image of 8 bits a channel, or claim more pixels than they can hold.
    """
    image = decode_any(data, flags)
    if image is None:
        raise CaffeError(f"its {len(data)} bytes are not an image")
    if image.dtype != np.uint8:
        raise CaffeError(f"the image is {image.dtype}; expected 8 bits a channel")
    return image


def planes(image: np.ndarray) -> np.ndarray:
    """An image H×W or H×W×C as Caffe has it: C×H×W, contiguous."""
    return np.ascontiguousarray(image[None] if image.ndim == 2 else image.transpose(2, 0, 1))


def datum_to_array(datum: Datum, force_color: bool = False, force_gray: bool = False) -> np.ndarray:
    """The image of a Datum, C×H×W: uint8, BGR where it has three channels, or float32 for float data.

    An encoded image is decoded: to colour or grey where forced, else as it was written. Raises CaffeError where
    the bytes do not decode or do not fit the shape.
    """
    if datum.encoded:
        if force_color and force_gray:
            raise CaffeError("encoded Datum: force_color and force_gray are both set; expected one")
        mode = cv2.IMREAD_COLOR if force_color else cv2.IMREAD_GRAYSCALE if force_gray else cv2.IMREAD_UNCHANGED
        try:
            return planes(decode_image(datum.data, mode))
        except CaffeError as error:
            raise CaffeError(f"encoded Datum: {error}") from None
    shape = (datum.channels, datum.height, datum.width)
    dtype, values = (np.uint8, len(datum.data)) if datum.data else (np.float32, len(datum.float_data))
    if min(shape) < 1 or math.prod(shape) != values:
        raise CaffeError(f"Datum of shape {shape} with {values} values; expected {math.prod(shape)}")
    if dtype == np.uint8:
        return np.frombuffer(datum.data, np.uint8).reshape(shape).copy()  # scripts write into it
    return np.fromiter(datum.float_data, np.float32, values).reshape(shape)


def __getattr__(name: str) -> ModuleType:
    """`caffe.io.skimage`: scikit-image, which pycaffe's module has imported and scripts use by this name."""
    if name != "skimage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        importlib.import_module("skimage.io")
    except ImportError:
        raise AttributeError("caffe.io.skimage needs the package scikit-image: pip install scikit-image") from None
    return importlib.import_module("skimage")


# What else scripts find here; at the end, since it uses the functions above.
from .database import DatumReader, open_lmdb  # noqa: E402, F401
from .image_io import (  # noqa: E402, F401
    Transformer,
    arraylist_to_blobprotovecor_str,
    blobprotovector_str_to_arraylist,
    load_image,
    oversample,
    resize,
    resize_image,
)
