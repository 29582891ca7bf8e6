"""Images from anywhere: what a file holds is checked before it is decoded, and comes out as 8-bit BGR, upright.

Training (`extract`, of folders) and prediction read images by this module; there is no other copy of this step.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 64 << 20  # 67 million: a 64-megapixel camera's, and 200 MB when decoded
MAX_BYTES = 1 << 29
READ = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm")
# What is taken from a folder, for prediction and for training: a phone's photos are told as errors, not passed over
SUFFIXES = (*READ, ".heic", ".heif", ".avif")
_TIFF = (b"II*\0", b"MM\0*")
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # but for restarts, and pixels of 255, which 0 follows
# a PNM file's kind, width, height and, but for kinds 1 and 4, the level that is white
_PNM = re.compile(rb"P([1-6])" + 2 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})" + rb"\s(?:(?:\s|#[^\n]*\n)*(\d{1,5})\s)?")
FORMATS = "JPEG, PNG, BMP, GIF, WebP, TIFF or PNM"


class ImageError(ValueError):
    """An image that cannot be used: says why, and what was expected; and which file it is, where that is known."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file, as `decode_image` gives it. Raises ImageError, which names the file."""
    try:
        return decode_image(read_file(path))
    except ImageError as error:
        raise ImageError(f"{os.fspath(path)}: {error}") from None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises ImageError, which does not name it, for what is no file, or of more than MAX_BYTES."""
    try:
        status = os.stat(path)
        taken = stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES  # of a pipe the end would be waited for
        data = _whole(path) if taken else b""
    except FileNotFoundError:
        address = "://" in os.fspath(path)
        what = "an address, from which nothing is fetched" if address else "no such file"
        raise ImageError(f"{what}; expected an image") from None
    except (OSError, ValueError) as error:  # ValueError: what can be no file's name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{reason}; expected an image") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("a folder; expected an image")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file; expected an image")
    if not taken:
        raise ImageError(f"{status.st_size:,} bytes; expected an image of {MAX_BYTES:,} at most")
    return data


def _whole(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb", buffering=0) as f:  # small files come quicker without a buffer
        return f.readall()


def decode_image(data: bytes) -> np.ndarray:
    """The image in a file's bytes, as people see it: turned as its EXIF data says, transparent parts on white.

    Returns
    -------
    uint8, H×W×3, BGR; of an animation the first frame, of 16 bits a channel the upper 8; what a PNM file calls white is
    255. A grey image has the same value three times, and `cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)` gives that value
    back.

    Raises
    ------
    ImageError: not an image of a known format, cut off, damaged, or of more than MAX_PIXELS pixels (found in the
    header, before anything is decoded).
    """
    if not data:
        raise ImageError("the file is empty; expected an image")
    size = image_size(data)
    if size is not None:
        _check_size(*size)
    if _is_cut_off(data):
        raise ImageError(f"the image is cut off after {len(data):,} bytes; expected a whole file")
    if size is None:
        raise ImageError(f"{_unread_format(data) or 'not an image'}; expected {FORMATS}")
    if data[:4] in _TIFF and (colours := _tiff_tags(data).get(262)) in (8, 9, 10):  # decoded with another white
        raise ImageError(
            f"a TIFF of CIELab colours (PhotometricInterpretation {colours}); expected grey, RGB or a palette"
        )
    transparent, white = _may_be_transparent(data), _pnm_white(data)
    # OpenCV turns colours as EXIF says, but not an alpha channel: where there may be one, both are turned here
    mode = cv2.IMREAD_IGNORE_ORIENTATION if transparent else cv2.IMREAD_ANYDEPTH if white else 0
    image = _decode(data, cv2.IMREAD_COLOR | mode)
    if image is None:
        raise ImageError(
            f"the image is damaged, cut off, or of a kind that OpenCV does not read ({len(data):,} bytes for "
            f"{size[0]}×{size[1]}); expected a whole file of 8 or 16 bits a channel"
        )
    if transparent:
        unchanged = _with_clear_level(data, _decode(data, cv2.IMREAD_UNCHANGED))
        image = _turned(_on_white(image, unchanged, _is_premultiplied(data)), _orientation(data))
    if white:
        image = np.rint(image * np.float32(255 / white)).clip(0, 255).astype(np.uint8)
    return image


def is_pillow(image: object) -> bool:
    """Whether this is an image of Pillow, which is not imported for that."""
    return "PIL.Image" in sys.modules and isinstance(image, sys.modules["PIL.Image"].Image)


def from_pillow(image: PIL.Image.Image) -> np.ndarray:
    """An image of Pillow as `decode_image` gives its file: turned as its EXIF data says, transparent parts on white.

    Returns
    -------
    uint8, H×W (grey) or H×W×3 (BGR); of an animation the frame that is shown, of 16 bits the upper 8.

    Raises
    ------
    ImageError: its file is cut off or damaged (Pillow decodes it only now), it is of more than MAX_PIXELS pixels, or of
    mode I or F, whose values have no known range.
    """
    _check_size(*image.size)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"a Pillow image of mode {image.mode}, in which no value is known to be white; expected L, RGB or another"
        )
    try:
        image.load()  # by which Pillow turns some formats itself
        return _turned(_pillows_pixels(image), _pillows_orientation(image))
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # what Pillow raises of a damaged file
        raise ImageError(f"a Pillow image that cannot be decoded: {error}; expected a whole one") from None


def _pillows_pixels(image: PIL.Image.Image) -> np.ndarray:
    """The pixels of an image of Pillow as they lie in it: uint8, H×W, or H×W×3 (BGR), transparent parts on white."""
    import PIL.Image

    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)


def _pillows_orientation(image: PIL.Image.Image) -> int:
    """How an image of Pillow lies, as its EXIF data says: 1 (upright, also where that is damaged) to 8.

    Not PIL.ImageOps.exif_transpose, which writes all the data anew, and fails at what is damaged anywhere in it.
    """
    try:
        orientation: int = image.getexif().get(274, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1
    return orientation if orientation in range(1, 9) else 1


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


def _unread_format(data: bytes) -> str | None:
    """What is said of the formats that phones and browsers write besides (ISO/IEC 23008-12); None for other data."""
    brands = data[8 : 8 + 64] if data[4:8] == b"ftyp" else b""
    for name, known in (("AVIF", (b"avif", b"avis")), ("HEIC", (b"heic", b"heix", b"hevc", b"mif1", b"msf1"))):
        if any(brand in brands for brand in known):
            return f"an image of the format {name}, which is not read"
    return None


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        millions = width * height / 1e6
        raise ImageError(f"{width}×{height} is {millions:,.1f} megapixels; expected {MAX_PIXELS / 1e6:.0f} at most")


def _is_cut_off(data: bytes) -> bool:
    """Whether the end of a JPEG or PNG file is missing. OpenCV may fill what is missing with grey, or print of it."""
    if data[:2] == b"\xff\xd8":
        return all(marker != 0xD9 for marker, _ in _jpeg_segments(data))
    return data[:4] == b"\x89PNG" and all(kind != b"IEND" for kind, _ in _chunks(data))


class _Silence:
    """OpenCV logs nothing while a thread is in here. Its level is that of all threads: the last one out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._level = cv2.utils.logging.getLogLevel()
                cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                cv2.utils.logging.setLogLevel(self._level)


opencv_silent = _Silence()  # its complaints become one message of ours


def _decode(data: bytes, mode: int) -> np.ndarray | None:
    try:
        with opencv_silent:
            return cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error:
        return None


def _may_be_transparent(data: bytes) -> bool:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[25:26] in (b"\4", b"\6") or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    return data[:4] in (b"RIFF", b"GIF8", *_TIFF)


def _is_premultiplied(data: bytes) -> bool:
    """Whether colours come out of cv2.imdecode multiplied by alpha: of a TIFF where the tag ExtraSamples names alpha.

    So such a file holds them (1), or so they are made while it is decoded to 8 bits (2).
    """
    return data[:4] in _TIFF and _tiff_tags(data).get(338) in (1, 2)


def _with_clear_level(data: bytes, unchanged: np.ndarray | None) -> np.ndarray | None:
    """With an alpha channel where a grey PNG file says that one level is transparent, which OpenCV passes over."""
    levels = [content for kind, content in _chunks(data) if kind == b"tRNS" and len(content) == 2]
    if unchanged is None or unchanged.ndim != 2 or not levels:
        return unchanged
    bits, (level,) = data[24], struct.unpack(">H", levels[0])
    level = (level % 2**bits) * (255 // (2**bits - 1) if bits < 8 else 1)  # fewer than 8 bits come enlarged to 8
    alpha = np.where(unchanged == level, 0, np.iinfo(unchanged.dtype).max).astype(unchanged.dtype)
    return np.dstack([unchanged] * 3 + [alpha])


def _on_white(image: np.ndarray, unchanged: np.ndarray | None, premultiplied: bool) -> np.ndarray:
    """`image` on white, by the alpha channel of `unchanged`, which is the same image with all its channels."""
    if unchanged is None or unchanged.ndim != 3 or unchanged.shape[2] != 4:
        return image
    alpha = unchanged[..., 3:].astype(np.float32) / np.iinfo(unchanged.dtype).max
    if alpha.min() == 1:
        return image
    colours = image if premultiplied else image * alpha
    return np.rint(colours + 255 * (1 - alpha)).clip(0, 255).astype(np.uint8)


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image upright that lies in its file as EXIF's orientation 1..8 says (EXIF 2.3, tag 274)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
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
        if data[:4] in _TIFF:
            return _tiff_size(data)
        if match := _PNM.match(data[:4096]):
            return int(match[2]), int(match[3])
    except (struct.error, IndexError):
        pass
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the start-of-frame segment."""
    for marker, at in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker == 0xDA:  # pixels before any frame
            return None
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of each segment of a JPEG file, up to the end's marker (ITU-T T.81, B.1).

    What lies between segments, such as the pixels after the marker 0xDA, is passed over, as libjpeg does it; so is what
    lies in them, such as a thumbnail with an end of its own.
    """
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        at = found.start()
        marker = data[at + 1]
        yield marker, at
        if marker == 0xD9:
            return
        at += 2
        if marker not in (0x01, 0xD8) and at + 2 <= len(data):  # those have no length
            at += struct.unpack(">H", data[at : at + 2])[0]


def _pnm_white(data: bytes) -> int | None:
    """The level that is white in a PNM file, where OpenCV leaves the pixels as they are; None for other files."""
    match = _PNM.match(data[:4096])
    if match is None or match[1] in b"14" or match[4] is None:
        return None
    white = int(match[4])
    in_letters = match[1] in b"23"  # which OpenCV scales, but not above 255
    return None if white in (255, 65535) or (in_letters and white < 255) else white


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
