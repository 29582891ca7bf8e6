"""How large an image file says that it is, read before OpenCV makes room for it: a few bytes may claim any size."""

from __future__ import annotations

import re
import struct

from .errors import CaffeError

MOST_PIXELS = 1 << 24  # of any file; an image of more has to have a byte
MOST_PIXELS_A_BYTE = 1000  # for so many, which is more than photos, scans and drawings come to

Size = tuple[int, int]  # width and height

_PNG = b"\x89PNG\r\n\x1a\n"
# the headers that end with the size, by the bytes that they begin with
_FIXED = {
    _PNG: (">II", 16),
    b"GIF87a": ("<HH", 6),
    b"GIF89a": ("<HH", 6),
    b"\x59\xa6\x6a\x95": (">II", 4),  # Sun raster
}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])  # markers without a length
_TIFF_SIZES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # types of whole numbers
_SPACE = rb"(?:\s|#[^\n]*\n)+"  # or a comment
_PNM = re.compile(rb"P[1-6Ff]" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)")
_PAM = re.compile(rb"^\s*(WIDTH|HEIGHT)\s+(\d+)", re.MULTILINE)
_RADIANCE = re.compile(rb"^-Y\s*(\d+)\s*\+X\s*(\d+)", re.MULTILINE)
_JPEG_2000 = b"\xff\x4f\xff\x51"  # the beginning of its data, and of its size


def check_size(data: bytes) -> None:
    """Raise CaffeError for the bytes of an image file that claim more pixels than such a file can honestly hold.

    So for an AVIF: the size that it states and the one that it decodes to may differ. (Caffe's OpenCV read none.)
    """
    if data.startswith(_PNG):
        _check_chunks(data)
    if data[4:8] == b"ftyp":
        raise CaffeError("an AVIF image, whose size cannot be told before it is decoded; expected PNG, JPEG or another")
    width, height = image_size(data) or (0, 0)
    most = max(MOST_PIXELS, MOST_PIXELS_A_BYTE * len(data))
    if width * height > most:
        raise CaffeError(f"an image of {width}×{height} pixels in {len(data)} bytes; expected at most {most} pixels")


def image_size(data: bytes) -> Size | None:
    """Width and height that an image file states, in any format that OpenCV reads but AVIF; None where it states none.

    A file of several images, or of tiles, has those of the largest.
    """
    try:
        for signature, (form, at) in _FIXED.items():
            if data.startswith(signature):
                return struct.unpack_from(form, data, at)
        if data.startswith(b"BM"):
            return _bmp(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data)
        if data.startswith(_JPEG_2000) or data[4:8] == b"jP  ":
            return _jpeg_2000(data)
        if data.startswith(b"#?"):
            found = _RADIANCE.search(data)
            return (int(found[2]), int(found[1])) if found else None
        if data.startswith(b"P7"):
            sizes = {name: int(value) for name, value in _PAM.findall(data[:1024])}
            return sizes.get(b"WIDTH", 0), sizes.get(b"HEIGHT", 0)
        pnm = _PNM.match(data[:1024])
        return (int(pnm[1]), int(pnm[2])) if pnm else None
    except (struct.error, OverflowError):  # it ends within its header, or says that this goes on beyond any file
        return None


def _check_chunks(data: bytes) -> None:
    """Raise CaffeError for a PNG with a chunk beyond its end, or without an image: OpenCV makes room for a chunk before
    it looks, and looks for the image beyond the end."""
    at, kinds = len(_PNG), set()
    while at + 8 <= len(data) and b"IEND" not in kinds:
        size, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + size  # with its checksum
        kinds.add(kind)
    if at != len(data) and b"IEND" not in kinds:
        raise CaffeError(f"its {len(data)} bytes are not an image, but a PNG that is cut off; expected {at} or more")
    if b"IDAT" not in kinds:
        raise CaffeError("a PNG without an image; expected a chunk IDAT")


def _bmp(data: bytes) -> Size:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return abs(width), abs(height)


def _jpeg(data: bytes) -> Size | None:
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        at += 1
        if marker in _JPEG_FRAMES:
            length, _, height, width, components = struct.unpack_from(">HBHHB", data, at + 1)
            return (width, height) if length == 8 + 3 * components else None  # no JPEG, to libjpeg too
        if marker in (0, 0xFF):  # no marker; filling
            continue
        at += 1
        if marker not in _JPEG_ALONE:
            at += struct.unpack_from(">H", data, at)[0]
    return None


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: bytes) -> Size:
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    tags: dict[int, int] = {}
    for _ in range(min(count, len(data) // 12)):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if kind in _TIFF_SIZES:
            (value,) = struct.unpack_from(order + _TIFF_SIZES[kind], data, at + (12 if big else 8))
            tags[tag] = max(value, tags.get(tag, 0))
        at += 20 if big else 12
    image, tile = ((tags.get(width, 0), tags.get(width + 1, 0)) for width in (256, 322))
    return max(image, tile, key=lambda size: size[0] * size[1])


def _jpeg_2000(data: bytes) -> Size | None:
    starts = (found.start() for found in re.finditer(_JPEG_2000, data))
    sizes = [struct.unpack_from(">II", data, at + 8) for at in starts if at + 16 <= len(data)]
    return max(sizes, key=lambda size: size[0] * size[1]) if sizes else None
