"""The size in an image file's header, against what OpenCV decodes; files that claim more than they can hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe
from caffe.image_header import MOST_PIXELS, image_size
from caffe.io import Datum, datum_to_array, decode_image, load_image

HEIGHT, WIDTH = 70, 83
FORMATS = {
    "png": ".png",
    "jpg": ".jpg",
    "progressive jpg": ".jpg",
    "bmp": ".bmp",
    "webp": ".webp",
    "lossless webp": ".webp",
    "gif": ".gif",
    "tiff": ".tiff",
    "pgm": ".pgm",
    "ascii pgm": ".pgm",
    "pbm": ".pbm",
    "ppm": ".ppm",
    "pam": ".pam",
    "pfm": ".pfm",
    "sun raster": ".ras",
    "jpeg 2000": ".jp2",
    "radiance": ".hdr",
}
SETTINGS = {
    "progressive jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 60],
    "lossless webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
    "ascii pgm": [cv2.IMWRITE_PXM_BINARY, 0],
}


def encoded(name: str) -> bytes:
    """An image of HEIGHT×WIDTH in a format."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    if FORMATS[name] in (".pgm", ".pbm"):
        image = image[..., 0]
    if FORMATS[name] in (".pfm", ".hdr"):
        image = image.astype(np.float32)
    return cv2.imencode(FORMATS[name], image, SETTINGS.get(name, []))[1].tobytes()


def patched(data: bytes, *patches: tuple[int, str, int]) -> bytes:
    out = bytearray(data)
    for at, form, value in patches:
        struct.pack_into(form, out, at, value)
    return bytes(out)


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG of one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(order: str, magic: bytes, big: bool, width: int, height: int) -> bytes:
    """A TIFF's header and its first directory."""
    number, size, word = ("Q", 8, "Q") if big else ("I", 4, "H")
    head = magic + (struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8))
    tags = [(257, 3, "H", height), (256, 4, "I", width)]
    entries = b"".join(
        struct.pack(order + "HH" + number, tag, kind, 1) + struct.pack(order + form, value).ljust(size, b"\0")
        for tag, kind, form, value in tags
    )
    return head + struct.pack(order + word, len(tags)) + entries + b"\0" * 8


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_that_opencv_writes(name: str) -> None:
    assert image_size(encoded(name)) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("order", "magic", "big"),
    [("<", b"II*\0", False), (">", b"MM\0*", False), ("<", b"II+\0", True), (">", b"MM\0+", True)],
)
def test_tiffs_of_both_byte_orders(order: str, magic: bytes, big: bool) -> None:
    assert image_size(tiff(order, magic, big, 70000, 300)) == (70000, 300)


def test_other_headers() -> None:
    assert image_size(b"P6 # width and\n# height\n 12 # now\n\t34 255\n") == (12, 34)
    old_bmp = b"BM" + bytes(12) + struct.pack("<IHH", 12, 40, 50)
    assert image_size(old_bmp) == (40, 50)
    top_down = b"BM" + bytes(12) + struct.pack("<Iii", 40, 40, -50)
    assert image_size(top_down) == (40, 50)
    extended = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x0f\x27\0" + b"\x1f\x4e\0"
    assert image_size(extended) == (10000, 20000)
    thumbnail = encoded("jpg")
    exif = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    assert image_size(b"\xff\xd8" + exif + patched(thumbnail, (thumbnail.find(b"\xff\xc0") + 5, ">H", 9))[2:]) == (
        WIDTH,
        9,
    )
    beyond = b"II+\0" + struct.pack("<HHQ", 8, 0, 2**64 - 1)  # where its directory would be
    for data in (b"", b"no image", b"\xff\xd8\xff", b"BM", b"P5", b"P7\n", b"#?RADIANCE\n", beyond):
        assert not any(image_size(data) or ())


def bombs() -> dict[str, bytes]:
    """Small files that state 20,000 × 20,000 pixels: for each, OpenCV would take a gigabyte or more."""
    jpg, progressive, gif, bmp = (encoded(name) for name in ("jpg", "progressive jpg", "gif", "bmp"))
    frame, progressive_frame = jpg.find(b"\xff\xc0"), progressive.find(b"\xff\xc2")
    codestream = encoded("jpeg 2000").find(b"\xff\x4f\xff\x51")
    run_length = struct.pack("<IiiHHII16x", 40, 20000, 20000, 1, 8, 1, 0)
    return {
        "png": png(20000, 20000),
        "png whose rows are all there": png(20000, 20000, bytes(2501 * 20000)),
        "jpg": patched(jpg, (frame + 5, ">H", 20000), (frame + 7, ">H", 20000)),
        "progressive jpg": patched(
            progressive, (progressive_frame + 5, ">H", 20000), (progressive_frame + 7, ">H", 20000)
        ),
        "gif": patched(gif, (6, "<H", 20000), (8, "<H", 20000)),
        "bmp": patched(bmp, (18, "<i", 20000), (22, "<i", -20000)),
        "bmp of run lengths": b"BM" + struct.pack("<III", 0, 0, 1078) + run_length + bytes(1024) + b"\0\1",
        "jpeg 2000": patched(
            encoded("jpeg 2000"), (codestream + 8, ">I", 20000), (codestream + 12, ">I", 20000)
        ),
        "ppm": b"P6 20000 20000 255\n" + bytes(100),
        "pfm": b"PF\n20000 20000\n-1.0\n" + bytes(100),
        "tiff": tiff("<", b"II*\0", False, 20000, 20000),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_files_that_claim_more_than_they_hold(name: str, tmp_path: Path) -> None:
    data = bombs()[name]
    message = rf"an image of 20000×20000 pixels in {len(data)} bytes; expected at most \d+ pixels"
    with pytest.raises(caffe.CaffeError, match=f"encoded Datum: {message}"):
        datum_to_array(Datum(encoded=True, data=data))
    with pytest.raises(caffe.CaffeError, match=message):
        decode_image(data, cv2.IMREAD_COLOR)
    (tmp_path / "bomb").write_bytes(data)
    with pytest.raises(caffe.CaffeError, match=f"bomb: {message}"):
        load_image(tmp_path / "bomb")


def test_a_png_with_a_chunk_of_absurd_size() -> None:
    data = encoded("png")
    at = data.index(b"IDAT") - 4
    with pytest.raises(caffe.CaffeError, match=r"a PNG that is cut off; expected 5\d{8} or more"):
        datum_to_array(Datum(encoded=True, data=patched(data, (at, ">I", 1 << 29))))
    assert datum_to_array(Datum(encoded=True, data=data + b"more")).shape == (3, HEIGHT, WIDTH)


def test_a_png_whose_image_is_missing() -> None:
    """OpenCV would look for it behind the end, and take half a gigabyte for what it believes to find there."""
    with pytest.raises(caffe.CaffeError, match="a PNG without an image; expected a chunk IDAT"):
        datum_to_array(Datum(encoded=True, data=encoded("png").replace(b"IDAT", b"abcd")))


def test_large_images_that_are_honest_are_read() -> None:
    side = 4097
    assert side * side > MOST_PIXELS
    rows = np.random.default_rng(0).integers(0, 256, (side, 514), np.uint8)
    rows[:, 0] = 0  # the filter: none
    assert datum_to_array(Datum(encoded=True, data=png(side, side, rows.tobytes()))).shape[1:] == (side, side)


def test_an_avif_is_refused() -> None:
    """It may decode to another size than its container states: 64 × 64, and a gigabyte."""
    data = b"\0\0\0\x1cftypavif" + bytes(16)
    with pytest.raises(caffe.CaffeError, match="an AVIF image, whose size cannot be told"):
        datum_to_array(Datum(encoded=True, data=data))


@pytest.mark.parametrize("name", FORMATS)
def test_headers_that_are_cut_off_or_damaged(name: str) -> None:
    whole, random = encoded(name), np.random.default_rng(0)
    for end in range(0, min(len(whole), 300)):
        image_size(whole[:end])
    for _ in range(200):
        data = bytearray(whole[:2000])
        for at in random.integers(4, 200, 3):
            data[at] = random.integers(256)
        image_size(bytes(data))
