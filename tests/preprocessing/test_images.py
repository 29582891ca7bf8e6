"""Images of all kinds and none: what is read of them, as people see it, and what is refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.features
import PIL.Image
import pytest

from preprocessing.images import (
    MAX_BYTES,
    MAX_PIXELS,
    ImageError,
    decode_image,
    find_images,
    from_pillow,
    image_size,
    is_pillow,
    read_image,
)

ASTRONAUT = Path(__file__).parents[2] / "images" / "astronaut.png"


def exif_data(orientation: int) -> bytes:
    """What says how an image is to be turned (EXIF 2.3, tag 0x0112)."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def exif(orientation: int) -> bytes:
    """The same as a JPEG segment."""
    body = b"Exif\0\0" + exif_data(orientation)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_exif(image: np.ndarray, suffix: str, content: bytes) -> bytes:
    """An image file, lossless and with alpha where the image has it, and with this EXIF data."""
    data = cv2.imencode(suffix, image, [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else [])[1].tobytes()
    if suffix == ".png":
        return data[:33] + png_chunk(b"eXIf", content) + data[33:]
    pixels = data[data.index(b"VP8L") :]
    header = struct.pack("<4sII", b"VP8X", 10, 0x18) + b"".join(
        (side - 1).to_bytes(3, "little") for side in image.shape[1::-1]
    )
    body = b"WEBP" + header + pixels + struct.pack("<4sI", b"EXIF", len(content)) + content + b"\0" * (len(content) % 2)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def tiff(image: np.ndarray, **tags: int) -> bytes:
    """A TIFF file of 8 bits a channel in the order of the array, with tags such as `t274=6` beside or instead."""
    height, width, channels = image.shape
    numbers = {256: width, 257: height, 259: 1, 262: 2, 273: 8, 277: channels, 278: height, 279: image.size}
    numbers |= {338: 2} if channels == 4 else {}  # what is beyond RGB is alpha
    numbers |= {int(name[1:]): value for name, value in tags.items()}
    bits = 8 + image.size
    entries = {tag: (4, 1, value) for tag, value in numbers.items()} | {258: (3, channels, bits)}
    directory = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    start = struct.pack("<4sI", b"II*\0", bits + 2 * channels) + image.tobytes()
    return start + struct.pack("<H", 8) * channels + struct.pack("<H", len(entries)) + directory + b"\0" * 4


# by EXIF's orientation: how an upright image lies in its file
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize(("orientation", "turn"), TURNS.items())
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, turn: Any) -> None:
    upright = cv2.resize(cv2.imread(str(ASTRONAUT))[:300], (160, 96), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", np.ascontiguousarray(turn(upright)))[1].tobytes()
    file = tmp_path / "turned.jpg"
    file.write_bytes(data[:2] + exif(orientation) + data[2:])
    image = read_image(file)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 8  # a wrong turn differs by 60 and more


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize(("orientation", "turn"), TURNS.items())
def test_transparent_parts_are_turned_with_the_image(tmp_path: Path, suffix: str, orientation: int, turn: Any) -> None:
    random = np.random.default_rng(0)
    upright = random.integers(0, 256, (6, 9, 4), np.uint8)
    upright[:2, :, 3], upright[2:4, :7, 3] = 0, 255  # parts that are clear, that are not, and that are partly
    stored = np.ascontiguousarray(turn(upright))
    if suffix == ".tif":
        data = tiff(stored[..., [2, 1, 0, 3]], t274=orientation)
    else:
        data = with_exif(stored, suffix, exif_data(orientation))
    file = tmp_path / f"turned{suffix}"
    file.write_bytes(data)
    alpha = upright[..., 3:] / 255
    expected = upright[..., :3] * alpha + 255 * (1 - alpha)
    read = read_image(file)
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= (1.01 if suffix == ".tif" else 0.51)  # libtiff rounds once more
    if suffix == ".webp":  # some write EXIF data into it as into a JPEG
        file.write_bytes(with_exif(stored, suffix, b"Exif\0\0" + exif_data(orientation)))
        assert np.array_equal(read_image(file), read)


@pytest.mark.parametrize("kind", [1, 2])
def test_what_a_tiff_is_multiplied_by_is_not_multiplied_again(kind: int) -> None:
    """ExtraSamples: 1 says that colours stand in the file multiplied by alpha, 2 that they do not."""
    colours, alpha = np.array([200, 100, 60]), 128 / 255
    image = np.full((4, 5, 4), 128, np.uint8)
    image[..., :3] = np.rint(colours * alpha) if kind == 1 else colours
    read = decode_image(tiff(image, t338=kind))
    assert np.abs(read - (colours * alpha + 255 * (1 - alpha))[::-1]).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_exif_data_that_says_nothing_turns_nothing(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
    image[..., 3] = 255
    whole = exif_data(6)
    endless = whole[:8] + b"\xff\xff" + whole[10:]
    for content in (exif_data(0), exif_data(9), endless[:10], *(whole[:length] for length in range(20))):
        (tmp_path / "image").write_bytes(with_exif(image, suffix, content))
        assert np.array_equal(read_image(tmp_path / "image"), image[..., :3])


def some_image() -> np.ndarray:
    return cv2.resize(cv2.imread(str(ASTRONAUT)), (120, 80), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".ppm"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    image = some_image()
    file = tmp_path / f"image{suffix}"
    assert cv2.imwrite(str(file), image)
    assert image_size(file.read_bytes()) == (120, 80)
    read = read_image(file)
    assert read.shape == image.shape
    assert np.abs(read.astype(int) - image).mean() < (20 if suffix == ".gif" else 6)  # a GIF has few colours


def test_older_and_lossy_kinds_of_formats() -> None:
    """A BMP with the header of OS/2, and a WebP of VP8; the upper two bits of its sizes scale them (RFC 6386, 9.1)."""
    image = some_image()
    header = struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, 120, 80, 1, 24)
    old = b"BM" + header + image[::-1].tobytes()
    assert image_size(old) == (120, 80)
    assert np.array_equal(decode_image(old), image)
    lossy = bytearray(cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes())
    assert lossy[12:16] == b"VP8 "
    assert np.abs(decode_image(bytes(lossy)).astype(int) - image).mean() < 6
    lossy[27] |= 0x40
    lossy[29] |= 0x80
    assert image_size(bytes(lossy)) == (120, 80)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    image = some_image()
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), image.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / f"deep{suffix}"), image)


def test_kinds_of_tiff_that_are_not_read_are_not_called_cut_off(tmp_path: Path) -> None:
    image = some_image()
    file = tmp_path / "x.tif"
    cv2.imwrite(str(file), image.astype(np.float32) / 255)
    with pytest.raises(
        ImageError, match=r"x\.tif: the image is .* or of a kind that OpenCV does not read \(.* 120×80\)"
    ):
        read_image(file)
    file.write_bytes(tiff(image))
    assert np.array_equal(read_image(file), image[..., ::-1])
    for kind in (8, 9, 10):
        file.write_bytes(tiff(image, t262=kind))
        with pytest.raises(
            ImageError, match=rf"x\.tif: a TIFF of CIELab colours .*Interpretation {kind}\); expected grey"
        ):
            read_image(file)


def test_grey_and_transparent_pictures(tmp_path: Path) -> None:
    image = some_image()
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert np.array_equal(read_image(tmp_path / "grey.png"), cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    alpha = np.zeros(grey.shape, np.uint8)
    alpha[20:60], alpha[60:] = 255, 51
    cv2.imwrite(str(tmp_path / "clear.png"), np.dstack([image, alpha]))
    read = read_image(tmp_path / "clear.png")
    assert (read[:20] == 255).all()  # clear: the white below it
    assert np.array_equal(read[20:60], image[20:60])
    assert np.abs(read[60:] - (0.2 * image[60:] + 0.8 * 255)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_clear_level_of_a_grey_png_is_white(bits: int) -> None:
    """As its chunk tRNS says, in the file's own bits; those above do not count (PNG, 11.3.2.1)."""
    levels = [1, 0, 1] if bits == 1 else [3, 2, 0] if bits == 2 else [9 << max(bits - 8, 0), 8, 0]
    row = sum(level << (48 - bits * (i + 1)) for i, level in enumerate(levels)).to_bytes(6, "big")
    row = row[: -(-3 * bits // 8)]
    header = struct.pack(">IIBBBBB", 3, 1, bits, 0, 0, 0, 0)
    clear = struct.pack(">H", levels[0] + (0x8000 if bits < 16 else 0))
    chunks = (b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in (*chunks, (b"IEND", b"")))
    expected = [255 if level == levels[0] else level * 255 // (2**bits - 1) for level in levels]
    assert decode_image(data)[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 4095])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_white_is_what_a_pnm_file_says(kind: int, white: int) -> None:
    """Its largest value (netpbm's pgm and ppm), as of cameras of 10 or 12 bits."""
    levels = [white, 0, white // 2]
    values = levels if kind in (2, 5) else [level for level in levels for _ in range(3)]
    form = ">H" if white > 255 else ">B"
    pixels = (
        " ".join([*map(str, values), "\n"]).encode() if kind < 5 else b"".join(struct.pack(form, n) for n in values)
    )
    image = decode_image(b"P%d\n# drawn\n3 1\n# white\n%d\n" % (kind, white) + pixels)
    most = 1 if kind < 5 and white < 255 else 0.51  # small numbers in letters are scaled by OpenCV, which cuts off
    assert np.abs(image[0] - np.array(levels)[:, None] / white * 255).max() <= most


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize(("orientation", "turn"), TURNS.items())
def test_pillows_image_is_what_its_file_is(suffix: str, orientation: int, turn: Any) -> None:
    """Turned by EXIF and on white; Pillow does neither by itself, and has red first."""
    random = np.random.default_rng(0)
    stored = np.ascontiguousarray(turn(random.integers(0, 256, (6, 9, 4), np.uint8)))
    data = with_exif(stored, suffix, exif_data(orientation))
    assert from_pillow(opened(data)).shape == (6, 9, 3)
    assert np.abs(from_pillow(opened(data)).astype(int) - decode_image(data)).max() <= 1


def test_what_else_pillows_exif_says_does_not_count() -> None:
    """A rate of pixels in letters, with which Pillow cannot write the data anew; and data that is none."""
    stored = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
    letters = struct.pack("<HHI4s", 0x011A, 2, 2, b"x")
    damaged = b"II*\0" + struct.pack("<IHHHIHH", 8, 2, 0x0112, 3, 1, 6, 0) + letters + bytes(4)
    for data, shape in ((damaged, (9, 6, 3)), (b"no EXIF", (6, 9, 3)), (b"II*\0\xff\xff", (6, 9, 3))):
        file = with_exif(stored, ".png", data)
        assert from_pillow(opened(file)).shape == shape
        assert np.abs(from_pillow(opened(file)).astype(int) - decode_image(file)).max() <= 1


def test_pillows_modes() -> None:
    image = some_image()
    colours = PIL.Image.fromarray(image[..., ::-1])
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    deep = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(from_pillow(colours), image)
    assert np.array_equal(from_pillow(PIL.Image.fromarray(grey)), grey)
    assert np.array_equal(from_pillow(deep), grey)
    assert np.array_equal(from_pillow(PIL.Image.fromarray(grey > 99)), 255 * (grey > 99))
    assert np.abs(from_pillow(colours.convert("YCbCr")).astype(int) - image).max() <= 4
    assert np.array_equal(from_pillow(colours.convert("CMYK")), image)
    palette = colours.quantize(16)
    assert np.array_equal(from_pillow(palette), np.asarray(palette.convert("RGB"))[..., ::-1])
    palette.info["transparency"] = palette.getpixel((0, 0))  # as of a GIF
    clear = np.asarray(palette) == palette.getpixel((0, 0))
    assert (from_pillow(palette)[clear] == 255).all()
    assert np.array_equal(from_pillow(palette)[~clear], np.asarray(palette.convert("RGB"))[..., ::-1][~clear])


def test_pillows_images_that_cannot_be_used(monkeypatch: Any) -> None:
    data = cv2.imencode(".jpg", some_image())[1].tobytes()
    with pytest.raises(ImageError, match=r"cannot be decoded: image file is truncated"):
        from_pillow(opened(data[: len(data) // 2]))
    for mode in ("I", "F"):
        with pytest.raises(ImageError, match=rf"of mode {mode}, in which no value is known to be white"):
            from_pillow(PIL.Image.new(mode, (4, 4)))
    monkeypatch.setattr("preprocessing.images.MAX_PIXELS", 80 * 120 - 1)
    with pytest.raises(ImageError, match=r"120×80 is 0\.0 megapixels"):
        from_pillow(opened(data))
    assert [is_pillow(what) for what in (opened(data), data, some_image(), None)] == [True, False, False, False]


@pytest.mark.skipif(not PIL.features.check("avif"), reason="this Pillow reads no AVIF")
def test_pillows_damaged_avif_is_no_image() -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(some_image()).save(file, "AVIF")
    data = file.getvalue()
    start = data.index(b"mdat") + 4
    image = opened(data[:start] + b"\xff" * (len(data) - start))
    with pytest.raises(ImageError, match=r"cannot be decoded: .*; expected a whole one"):
        from_pillow(image)


def huge_headers() -> dict[str, bytes]:
    """Files of a few bytes that claim to be huge."""
    side = 60_000
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0)
    jpeg = b"\xff\xd8" + exif(1) + b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    entries = struct.pack("<HHIHH", 256, 3, 1, side, 0) + struct.pack("<HHII", 257, 4, 1, side)
    return {
        "png": png,
        "jpeg": jpeg,
        "gif": b"GIF89a" + struct.pack("<HH", side, side) + b"\0" * 20,
        "bmp": b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, side, -side) + b"\0" * 28,
        "tiff": b"II*\0" + struct.pack("<IH", 8, 2) + entries + b"\0" * 4,
        "webp": b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + 2 * (side - 1).to_bytes(3, "little"),
        "ppm": b"P6\n# drawn\n60000 60000\n255\n",
    }


@pytest.mark.parametrize("kind", huge_headers())
def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    def decode(*_: Any) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    file = tmp_path / "bomb"
    file.write_bytes(huge_headers()[kind])
    with pytest.raises(ImageError, match=r"bomb: 60000×60000 is 3,600\.0 megapixels; expected 67 at most"):
        read_image(file)
    assert 64_000_000 < MAX_PIXELS < 70_000_000


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".ppm"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_files_are_errors(tmp_path: Path, suffix: str, share: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    file = tmp_path / f"cut{suffix}"
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        ImageError, match=r"cut\.\w+: (the image is cut off|the image is damaged, cut off, or of a kind|not an image)"
    ):
        read_image(file)


def test_of_a_cut_off_file_only_the_error_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    image = some_image()
    for suffix in (".jpg", ".png", ".tif"):
        data = cv2.imencode(suffix, image)[1].tobytes()
        for length in (*range(60), len(data) // 3, len(data) - 12):
            with pytest.raises(ImageError):
                decode_image(data[:length])
    for suffix in (".jpg", ".png"):
        data = cv2.imencode(suffix, image)[1].tobytes()
        with pytest.raises(ImageError, match=r"^the image is cut off after [\d,]+ bytes; expected a whole file$"):
            decode_image(data[: len(data) // 2])
    assert capfd.readouterr() == ("", "")


def test_where_a_jpeg_ends_is_not_mistaken() -> None:
    """Neither for the end of the thumbnail in it, nor by the film that some telephones put behind it."""
    image = some_image()
    data = cv2.imencode(".jpg", image)[1].tobytes()
    thumbnail = cv2.imencode(".jpg", image[::8, ::8])[1].tobytes()
    with_thumbnail = data[:2] + struct.pack(">HH", 0xFFE1, len(thumbnail) + 2) + thumbnail + data[2:]
    with_film = with_thumbnail + b"\0\0\0\x18ftyp\xff\xd9 \xff\xda\0\x08"
    for whole in (with_thumbnail, with_film):
        assert np.array_equal(decode_image(whole), decode_image(data))
    with pytest.raises(ImageError, match="cut off"):
        decode_image(with_thumbnail[:-300])


def test_opencvs_log_is_silent_while_any_thread_decodes_and_then_as_before(monkeypatch: Any) -> None:
    """The level is the process's: the second of two threads must not restore what the first one has set."""
    level = cv2.utils.logging.getLogLevel()
    data = cv2.imencode(".png", some_image())[1].tobytes()
    real, levels = cv2.imdecode, []
    both_inside, first_out = threading.Barrier(2), threading.Event()

    def decode(*arguments: Any) -> np.ndarray:
        if both_inside.wait(10) == 0:
            first_out.wait(10)
            levels.append(cv2.utils.logging.getLogLevel())
        return real(*arguments)

    monkeypatch.setattr(cv2, "imdecode", decode)
    threads = [threading.Thread(target=decode_image, args=(data,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while all(thread.is_alive() for thread in threads):
        time.sleep(0.001)
    first_out.set()
    for thread in threads:
        thread.join()
    assert levels == [cv2.utils.logging.LOG_LEVEL_SILENT]
    assert cv2.utils.logging.getLogLevel() == level != cv2.utils.logging.LOG_LEVEL_SILENT


@pytest.mark.parametrize("seed", range(30))
def test_damaged_headers_raise_nothing_else(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    start = list(huge_headers().values())[seed % 7]
    data = bytearray(start + random.bytes(40))
    for _ in range(4):
        data[random.integers(4, len(data))] = random.integers(256)
    file = tmp_path / "damaged"
    file.write_bytes(bytes(data[: random.integers(4, len(data))]))
    with pytest.raises(ImageError):
        read_image(file)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").touch()
    os.truncate(tmp_path / "large.jpg", MAX_BYTES + 1)  # without a byte on the disk
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    (tmp_path / "film.jpg").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100))
    (tmp_path / "web.jpg").write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(100))
    for file, message in (
        (tmp_path / "empty.jpg", r"empty\.jpg: the file is empty"),
        (tmp_path / "large.jpg", r"large\.jpg: 536,870,913 bytes; expected an image of 536,870,912 at most"),
        (tmp_path / "text.jpg", r"text\.jpg: not an image; expected JPEG"),
        (tmp_path / "phone.heic", r"phone\.heic: an image of the format HEIC, which is not read; expected JPEG"),
        (tmp_path / "web.jpg", r"web\.jpg: an image of the format AVIF, which is not read; expected JPEG"),
        (tmp_path / "film.jpg", r"film\.jpg: not an image; expected JPEG"),
        (tmp_path / "none.jpg", r"none\.jpg: no such file"),
        ("https://example.org/face.jpg", r"face\.jpg: an address, from which nothing is fetched; expected an image"),
        (tmp_path / "pipe.jpg", r"pipe\.jpg: not a regular file"),
        (tmp_path / "a\0b.jpg", r"null byte; expected an image"),
        (tmp_path, "a folder; expected an image"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(file)


def test_names_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.HEIC", "notes.txt", "[1].png"):
        (tmp_path / name).touch()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "c.png").touch()
    (tmp_path / "bare").mkdir()
    folder = str(tmp_path)
    assert find_images([folder]) == [(f"{folder}/{name}", None) for name in ("[1].png", "a.png", "b.JPG", "c.HEIC")]
    assert find_images([f"{folder}/[ab].*"]) == [(f"{folder}/a.png", None), (f"{folder}/b.JPG", None)]
    assert find_images([f"{folder}/**/c.png", f"{folder}/[1].png"]) == [
        (f"{folder}/inside/c.png", None),
        (f"{folder}/[1].png", None),
    ]
    assert find_images([f"{folder}/a.png", folder])[0] == (f"{folder}/a.png", None)
    assert len(find_images([f"{folder}/a.png", folder])) == 4
    assert find_images([f"{folder}/bare"]) == [(f"{folder}/bare", f"{folder}/bare: no images in this folder")]
    assert find_images(["no*.jpg"])[0][1] == "no*.jpg: no file matches this pattern"
    assert find_images(["no.jpg"]) == [("no.jpg", None)]
