"""Images from anywhere: what a file holds is checked before it is decoded, and comes out as 8-bit BGR, upright."""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

MAX_PIXELS = 64 << 20  # 67 million: a 64-megapixel camera's, and 200 MB when decoded
MAX_BYTES = 1 << 29
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")  # taken from a folder
FORMATS = "JPEG, PNG, BMP, GIF, WebP, TIFF or PNM"


class ImageError(ValueError):
    """An image that cannot be used: says which, why, and what was expected."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file, as people see it: turned as its EXIF data says, transparent parts on white.

    Returns
    -------
    uint8, H×W×3, BGR; of an animation the first frame, of 16 bits a channel the upper 8.

    Raises
    ------
    ImageError: no such file, not an image of a known format, cut off, or of more than MAX_PIXELS pixels (found in
    the header, before anything is decoded).
    """
    data = _read_bytes(Path(path))
    size = image_size(data)
    if size is None:
        raise ImageError(f"{path}: not an image; expected {FORMATS}")
    width, height = size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        millions = width * height / 1e6
        raise ImageError(
            f"{path}: {width}×{height} is {millions:,.1f} megapixels; expected {MAX_PIXELS / 1e6:.0f} at most"
        )
    transparent = _may_be_transparent(data)
    # OpenCV turns colours as EXIF says, but not an alpha channel: where there may be one, both are turned here
    image = _decode(data, cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if transparent else 0))
    if image is None:
        raise ImageError(f"{path}: the image is cut off or damaged ({len(data):,} bytes for {width}×{height})")
    if transparent:
        image = _turned(_on_white(image, _decode(data, cv2.IMREAD_UNCHANGED)), _orientation(data))
    return image


def check_image(image: np.ndarray) -> np.ndarray:
    """An image given as an array, unchanged; grey ones of shape H×W×1 become H×W.

    Raises ImageError unless it is uint8, H×W (grey), H×W×1 or H×W×3 (BGR), and not empty.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"the image is a {type(image).__name__}; expected a path or a numpy array")
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)) or image.size == 0:
        raise ImageError(
            f"the image is {image.dtype} of shape {image.shape}; expected uint8, H×W (grey) or H×W×3 (BGR)"
        )
    return image.reshape(image.shape[:2]) if grey else image


def find_images(arguments: Iterable[str]) -> list[tuple[str, str | None]]:
    """The files that arguments mean, each with None, or with what is wrong with the argument.

    A file stands for itself, a folder for the images in it (by their suffix, sorted, without sub-folders), a pattern
    such as `photos/*.jpg` or `**/*.png` for the files that match it, sorted. A file that is found twice comes once.
    """
    found: dict[str, str | None] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            inside = sorted(e.path for e in os.scandir(argument) if e.is_file() and e.name.lower().endswith(SUFFIXES))
            found.update(dict.fromkeys(inside) if inside else {argument: f"{argument}: no images in this folder"})
        elif os.path.lexists(argument) or not glob.has_magic(argument):
            found[argument] = None
        else:
            matches = sorted(path for path in glob.glob(argument, recursive=True) if os.path.isfile(path))
            found.update(dict.fromkeys(matches) if matches else {argument: f"{argument}: no file matches this pattern"})
    return list(found.items())


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path}: a folder; expected an image")
        if not path.is_file():
            raise ImageError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; expected an image")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"{path}: {size:,} bytes; expected an image of {MAX_BYTES:,} at most")
        if size == 0:
            raise ImageError(f"{path}: the file is empty; expected an image")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def _decode(data: bytes, mode: int) -> np.ndarray | None:
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its complaints become one message of ours
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _may_be_transparent(data: bytes) -> bool:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[25] in (4, 6) or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    return data[:4] in (b"RIFF", b"GIF8", b"II*\0", b"MM\0*")


def _on_white(image: np.ndarray, unchanged: np.ndarray | None) -> np.ndarray:
    """`image` blended with white by the alpha channel of `unchanged`, the same image with all its channels."""
    if unchanged is None or unchanged.ndim != 3 or unchanged.shape[2] != 4:
        return image
    alpha = unchanged[..., 3:].astype(np.float32) / np.iinfo(unchanged.dtype).max
    if alpha.min() == 1:
        return image
    return np.rint(image * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image upright that lies in its file as EXIF's orientation 1..8 says (EXIF 2.3, tag 274)."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


# What headers say. Sizes: (width, height), None where the data is not of that format or ends too early


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of an encoded image states; None for data of no known format."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return struct.unpack(">II", data[16:24])
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack("<HH", data[6:10])
        if data[:2] == b"BM":
            if data[14:18] == b"\x0c\0\0\0":
                return struct.unpack("<HH", data[18:22])
            width, height = struct.unpack("<ii", data[18:26])
            return width, abs(height)  # a negative height: rows from the top
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_size(data)
        if match := re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s", data[:4096]):
            return int(match[1]), int(match[2])
    except (struct.error, IndexError):
        pass
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the start-of-frame segment, found by walking from segment to segment (ITU-T T.81, B.1)."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        elif marker in (0xD9, 0xDA):  # the end, or pixels, before any frame
            return None
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """From the first chunk: lossy, lossless, or the canvas of the extended format (RFC 9649)."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """From the tags ImageWidth (256) and ImageLength (257)."""
    tags = _tiff_tags(data)
    return (tags[256], tags[257]) if 256 in tags and 257 in tags else None


def _tiff_tags(data: bytes) -> dict[int, int]:
    """The tags of the first directory of a TIFF file, or of EXIF data; only those of one whole number mean anything.

    Raises struct.error where the data ends too early.
    """
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack(order + "I", data[4:8])
    (entries,) = struct.unpack(order + "H", data[at : at + 2])
    tags: dict[int, int] = {}
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind = struct.unpack(order + "HH", data[entry : entry + 4])
        layout, length = ("H", 2) if kind == 3 else ("I", 4)
        (tags[tag],) = struct.unpack(order + layout, data[entry + 8 : entry + 8 + length])
    return tags


def _orientation(data: bytes) -> int:
    """How a PNG or WebP image lies in its file, as its EXIF data says: 1 (upright) to 8.

    1 for other formats: OpenCV leaves nothing to turn of a TIFF, and a GIF has no such data.
    """
    for kind, content in _chunks(data):
        if kind in (b"eXIf", b"EXIF"):
            try:
                orientation = _tiff_tags(content.removeprefix(b"Exif\0\0")).get(274, 1)  # a JPEG's prefix, by mistake
            except struct.error:
                return 1
            return orientation if 1 <= orientation <= 8 else 1
    return 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG or WebP file, kind and content, but for one that is cut off; of another format none."""
    png = data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8 if png else 12 if data[:4] == b"RIFF" else len(data)
    while at + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[at : at + 8])
        if png:
            length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 8 + length
        if end <= len(data):
            yield kind, data[at + 8 : end]
        at = end + (4 if png else length % 2)  # the checksum of the one, the other's even length
