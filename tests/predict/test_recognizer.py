"""The recogniser on drawn faces whose class is known by hand, and on a photograph; images of all kinds and none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_model import band_face, band_probabilities, make_model

import caffe
import predict.recognizer
from predict import ImageError, Recognizer
from predict.annotate import COLORS, annotate
from predict.images import MAX_PIXELS, find_images, image_size, read_image
from predict.recognizer import Prediction
from preprocessing.align import align
from preprocessing.alignment import align_face
from preprocessing.datasets import EMOTIONS
from preprocessing.mtcnn import Face
from preprocessing.stage import StageError

ASTRONAUT = Path(__file__).parents[2] / "images" / "astronaut.png"
# What the mtcnn package itself finds in it: x, y, width, height, and the nose.
ASTRONAUT_BOX, ASTRONAUT_NOSE = (182, 64, 83, 107), (224, 126)
# The usual template of 112×112 pixels: eyes, nose, corners of the mouth.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def detecting(model: tuple[Path, Path, Path]) -> Recognizer:
    return Recognizer(*model, device="cpu", views="centre")  # the net tells bands apart, which mirroring moves


@pytest.fixture(scope="module")
def cropped(model: tuple[Path, Path, Path]) -> Recognizer:
    return Recognizer(*model, face="none", device="cpu", views="centre")


class FixedDetector:
    """Stands in for the detector where a test says itself where the faces are."""

    def __init__(self, faces: list[list[Face]]) -> None:
        self.faces = faces

    def detect_batch(self, images: list[np.ndarray]) -> list[list[Face]]:
        return self.faces


def drawn_photo(bands: list[int]) -> tuple[np.ndarray, list[Face]]:
    """A colour photo with faces of 192×192 pixels, four times 48, side by side, and their landmarks by the template."""
    photo = np.full((300, 60 + 220 * len(bands), 3), 90, np.uint8)
    faces = []
    for i, band in enumerate(bands):
        x, y = 40 + 220 * i, 50
        photo[y : y + 192, x : x + 192] = np.kron(band_face(band), np.ones((4, 4), np.uint8))[..., None]
        points = (TEMPLATE * 192 / 112 + (x, y)).astype(np.float32)
        faces.append(Face((x + 20.0, y + 30.0, 150.0, 150.0), points, 0.99 - i / 100))
    return photo, faces


def test_faces_are_aligned_by_their_landmarks_and_told_apart(detecting: Recognizer, monkeypatch: Any) -> None:
    photo, faces = drawn_photo([3, 0, 6])
    monkeypatch.setattr(detecting, "_detector", FixedDetector([faces]))
    predictions = detecting.predict(photo)
    assert [p.emotion for p in predictions] == ["happy", "angry", "neutral"]
    assert [p.box for p in predictions] == [face.box for face in faces]
    assert [p.confidence for p in predictions] == [0.99, 0.98, 0.97]
    for prediction in predictions:
        assert tuple(prediction.probabilities) == EMOTIONS
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert predictions[0].landmarks is not None
    assert predictions[0].landmarks["nose"] == pytest.approx((40 + 56.0252 * 192 / 112, 50 + 71.7366 * 192 / 112))


@pytest.mark.parametrize("angle", [-35, 20, 90])
def test_a_turned_face_is_turned_back(detecting: Recognizer, monkeypatch: Any, angle: float) -> None:
    photo, (face,) = drawn_photo([1])
    turn = cv2.getRotationMatrix2D((136, 146), angle, 0.8)
    turned = cv2.warpAffine(photo, turn, (320, 320))
    points = (face.landmarks @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    monkeypatch.setattr(detecting, "_detector", FixedDetector([[Face(face.box, points, 0.9)]]))
    assert detecting.predict(turned)[0].emotion == "disgust"


def test_a_net_of_two_channels_sees_the_face_turned_back_and_as_it_is(tmp_path: Path, monkeypatch: Any) -> None:
    files = make_model(tmp_path, channels=2)
    photo, (face,) = drawn_photo([1])
    turn = cv2.getRotationMatrix2D((136, 146), 90, 0.8)
    turned = cv2.warpAffine(photo, turn, (320, 320))
    grey = cv2.cvtColor(turned, cv2.COLOR_BGR2GRAY)
    points = (face.landmarks @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    for kind in ("detect", "one"):
        recognizer = Recognizer(*files, face=kind, device="cpu")
        monkeypatch.setattr(recognizer, "_detector", FixedDetector([[Face(face.box, points, 0.9)]]))
        ((found,),) = recognizer.find_faces([turned])
        aligned, other = found.pixels
        np.testing.assert_array_equal(aligned, align_face(grey, points))
        # an image of one face is what its data set has; a photo's face has the aligned one's size, and its own angle
        expected = align_face(grey, None) if kind == "one" else align_face(grey, points, turned=False)
        np.testing.assert_array_equal(other, expected)
        if kind == "detect":
            difference = other[12:36, 12:36].astype(float) - np.rot90(aligned)[12:36, 12:36]
            assert np.abs(difference).mean() < 20 < np.abs(other - aligned.astype(float)).mean()
            (prediction,) = recognizer.predict(turned)
            assert sum(prediction.probabilities.values()) == pytest.approx(1)
    cropped = Recognizer(*files, face="none", device="cpu", views="centre")
    (prediction,) = cropped.predict(band_face(3, 60))
    assert list(prediction.probabilities.values()) == pytest.approx(
        band_probabilities([0, 0, 0, 60, 0, 0, 0]), abs=1e-5
    )
    assert cropped.predict_batch([]) == []


def test_cropped_faces_need_no_detector(cropped: Recognizer) -> None:
    levels = [0.0, 0, 60, 0, 30, 0, 0]
    face = sum((band_face(k, int(level)) for k, level in enumerate(levels)), np.zeros((48, 48), np.uint8))
    (prediction,) = cropped.predict(face)
    assert prediction.emotion == "fear"
    assert list(prediction.probabilities.values()) == pytest.approx(list(band_probabilities(levels)), abs=1e-5)
    assert (prediction.box, prediction.landmarks, prediction.confidence) == ((0, 0, 48, 48), None, None)
    large = cropped.predict(cv2.cvtColor(np.kron(face, np.ones((5, 5), np.uint8)), cv2.COLOR_GRAY2BGR))[0]
    assert large.box == (0, 0, 240, 240)
    assert list(large.probabilities.values()) == pytest.approx(list(band_probabilities(levels)), abs=0.05)


def test_one_face_an_image_is_aligned_as_the_training_images_are(
    model: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """A face in its photo, cut so closely that a usual look misses it, and noise: all as align makes them."""
    photo = cv2.imread(str(ASTRONAUT), cv2.IMREAD_GRAYSCALE)
    close = cv2.resize(photo[72:164, 188:259], (48, 48), interpolation=cv2.INTER_AREA)
    folder = tmp_path / "images" / "Training" / "0_angry"
    for i, emotion in enumerate(EMOTIONS):
        for split in ("Training", "PublicTest", "PrivateTest"):
            (tmp_path / "images" / split / f"{i}_{emotion}").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (60, 60)).astype(np.uint8)
    for name, image in (("1", photo), ("2", close), ("3", noise)):
        cv2.imwrite(str(folder / f"{name}.png"), image)
    counts = align(tmp_path / "images", tmp_path / "aligned", device="cpu", workers=1)
    assert (counts["found"], counts["not_found"]) == (2, 1)
    recognizer = Recognizer(*model, face="one", device="cpu")
    files = [folder / f"{name}.png" for name in "123"]
    found = recognizer.find_faces(files)
    for (face,), file in zip(found, files, strict=True):
        aligned = cv2.imread(str(tmp_path / "aligned" / file.relative_to(tmp_path / "images")), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(face.pixels, aligned)
    assert [face.landmarks is None for (face,) in found] == [False, False, True]
    assert found[2][0].box == (0, 0, 60, 60)
    assert [len(faces) for faces in recognizer.predict_batch(files)] == [1, 1, 1]


def test_of_several_faces_in_an_image_of_one_the_main_one_counts(
    model: tuple[Path, Path, Path], monkeypatch: Any
) -> None:
    photo, faces = drawn_photo([3, 0, 6])
    recognizer = Recognizer(*model, face="one", device="cpu", views="centre")
    monkeypatch.setattr(recognizer, "_detector", FixedDetector([faces]))
    (prediction,) = recognizer.predict(photo)
    assert (prediction.emotion, prediction.box) == ("angry", faces[1].box)


def test_the_mirrored_face_is_averaged_in_by_default(model: tuple[Path, Path, Path]) -> None:
    recognizer = Recognizer(*model, face="none", device="cpu")
    levels = [80.0, 0, 0, 0, 0, 0, 0]
    (prediction,) = recognizer.predict(band_face(0, 80))
    expected = (band_probabilities(levels) + band_probabilities(levels[::-1])) / 2
    assert list(prediction.probabilities.values()) == pytest.approx(list(expected), abs=1e-5)


def test_ten_crops_are_averaged(model: tuple[Path, Path, Path], cropped: Recognizer) -> None:
    face = band_face(0, 80)
    (prediction,) = Recognizer(*model, face="none", device="cpu", views="ten_crop").predict(face)
    net = caffe.Net(str(model[0]), str(model[1]), caffe.TEST)
    mean = caffe.io.load_mean(model[2])[0]
    corners = [(3, 3), (0, 0), (0, 6), (6, 0), (6, 6)]  # of crops of 42×42 from 48×48, the centre first
    inputs = [(face.astype(np.float32) - mean)[y : y + 42, x : x + 42] for y, x in corners]
    inputs += [image[:, ::-1] for image in inputs]
    answers = [net.forward(data=image[None, None])["prob"][0].copy() for image in inputs]
    assert list(prediction.probabilities.values()) == pytest.approx(np.mean(answers, axis=0).tolist(), abs=1e-5)


def test_a_batch_gives_what_its_images_give_alone(cropped: Recognizer, detecting: Recognizer) -> None:
    images = [band_face(k) for k in (4, 2, 0)]
    assert [p[0].emotion for p in cropped.predict_batch(images)] == ["sad", "fear", "angry"]
    assert cropped.predict_batch([]) == []
    photo = cv2.imread(str(ASTRONAUT))
    batch = detecting.predict_batch([np.zeros((60, 80), np.uint8), ASTRONAUT, photo])
    assert [len(faces) for faces in batch] == [0, 1, 1]
    assert batch[1][0].probabilities == pytest.approx(batch[2][0].probabilities)


def test_the_photographs_face_is_where_the_mtcnn_package_finds_it(detecting: Recognizer) -> None:
    photo = cv2.imread(str(ASTRONAUT))
    for image in (ASTRONAUT, str(ASTRONAUT), photo):
        (prediction,) = detecting.predict(image)
        assert prediction.box == pytest.approx(ASTRONAUT_BOX, abs=2)
        assert prediction.landmarks is not None
        assert prediction.landmarks["nose"] == pytest.approx(ASTRONAUT_NOSE, abs=1.5)
        assert prediction.landmarks["left_eye"][0] < prediction.landmarks["right_eye"][0]
        assert prediction.confidence > 0.99
    assert len(detecting.predict(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))) == 1


def test_no_face_is_an_empty_list(detecting: Recognizer) -> None:
    assert detecting.predict(np.full((120, 160, 3), 128, np.uint8)) == []
    assert detecting.predict(np.full((5, 4), 128, np.uint8)) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32 of shape"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 of shape \(8, 8, 4\); expected"),
        (np.zeros((0, 8), np.uint8), r"shape \(0, 8\)"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (None, "the image is a NoneType; expected a path or a numpy array"),
    ],
)
def test_arrays_that_are_no_images(cropped: Recognizer, image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        cropped.predict(image)


def test_arguments_that_do_not_fit(model: tuple[Path, Path, Path]) -> None:
    with pytest.raises(ValueError, match="face is 'some'; expected one of detect, one, none"):
        Recognizer(*model, face="some")
    with pytest.raises(ValueError, match="views is 'two'; expected one of centre, mirror, ten_crop"):
        Recognizer(*model, views="two")
    with pytest.raises(ValueError, match="only deploy and mean given"):
        Recognizer(deploy=model[0], mean=model[2])


def test_the_model_that_ships_is_the_default_and_a_missing_file_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(predict.recognizer, "MODELS", tmp_path)
    with pytest.raises(StageError, match=r"'face_resnet16_pair': .*deploy\.prototxt is missing; .* \(none here\)"):
        Recognizer()
    _, weights, mean = make_model(tmp_path / "face_resnet16_pair", name="face_resnet16_pair")
    make_model(tmp_path / "other", classes=3, name="other")
    assert Recognizer(face="none", device="cpu").emotions == EMOTIONS
    assert Recognizer(model="other", face="none", device="cpu").emotions == ("class_0", "class_1", "class_2")
    mean.unlink()
    with pytest.raises(StageError, match=r"mean\.binaryproto is missing; .* \(face_resnet16_pair, other\)"):
        Recognizer()
    weights.unlink()
    with pytest.raises(StageError, match=r"face_resnet16_pair\.caffemodel is missing"):
        Recognizer()


# Images


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
    if suffix == ".tif":
        upright[..., 3] = np.where(upright[..., 3] < 128, 0, 255)
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
    assert np.abs(read - expected).max() <= 0.51
    if suffix == ".webp":  # some write EXIF data into it as into a JPEG
        file.write_bytes(with_exif(stored, suffix, b"Exif\0\0" + exif_data(orientation)))
        assert np.array_equal(read_image(file), read)


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


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    image = some_image()
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), image.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / f"deep{suffix}"), image)


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
    with pytest.raises(ImageError, match=r"cut\.\w+: (the image is cut off or damaged|not an image)"):
        read_image(file)


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
    (tmp_path / "text.jpg").write_text("not a picture")
    for file, message in (
        (tmp_path / "empty.jpg", r"empty\.jpg: the file is empty"),
        (tmp_path / "text.jpg", r"text\.jpg: not an image; expected JPEG"),
        (tmp_path / "none.jpg", r"none\.jpg: no such file"),
        (tmp_path, "a folder; expected an image"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(file)


def test_names_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "[1].png"):
        (tmp_path / name).touch()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "c.png").touch()
    (tmp_path / "bare").mkdir()
    folder = str(tmp_path)
    assert find_images([folder]) == [(f"{folder}/{name}", None) for name in ("[1].png", "a.png", "b.JPG")]
    assert find_images([f"{folder}/[ab].*"]) == [(f"{folder}/a.png", None), (f"{folder}/b.JPG", None)]
    assert find_images([f"{folder}/**/c.png", f"{folder}/[1].png"]) == [
        (f"{folder}/inside/c.png", None),
        (f"{folder}/[1].png", None),
    ]
    assert find_images([f"{folder}/a.png", folder])[0] == (f"{folder}/a.png", None)
    assert len(find_images([f"{folder}/a.png", folder])) == 3
    assert find_images([f"{folder}/bare"]) == [(f"{folder}/bare", f"{folder}/bare: no images in this folder")]
    assert find_images(["no*.jpg"])[0][1] == "no*.jpg: no file matches this pattern"
    assert find_images(["no.jpg"]) == [("no.jpg", None)]


# Drawing


def test_the_annotated_photo_keeps_the_photo_and_marks_each_face(detecting: Recognizer, monkeypatch: Any) -> None:
    photo, faces = drawn_photo([3, 0])
    monkeypatch.setattr(detecting, "_detector", FixedDetector([faces]))
    before = photo.copy()
    drawn = annotate(photo, detecting.predict(photo))
    assert np.array_equal(photo, before)
    scale = drawn.shape[0] // photo.shape[0]
    assert drawn.shape == (photo.shape[0] * scale, photo.shape[1] * scale, 3)
    plain = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for face in faces:
        x, y, width, height = (round(scale * value) for value in face.box)
        assert (drawn[y, x + width // 2] != plain[y, x + width // 2]).any()  # the box's upper edge
        assert (drawn[y + height // 2, x] != plain[y + height // 2, x]).any()  # and its left one
        centre = (slice(y + height // 2 - 9, y + height // 2 + 9), slice(x + width // 2 - 9, x + width // 2 + 9))
        assert np.array_equal(drawn[centre], plain[centre])  # a face is not painted over


def test_small_photos_are_enlarged_and_large_ones_kept(cropped: Recognizer) -> None:
    small = annotate(band_face(2), cropped.predict(band_face(2)))
    assert small.shape[0] % 48 == 0
    assert small.shape[0] >= 480
    assert small.shape[1] > small.shape[0]  # a margin with the bars
    large = np.zeros((2100, 900, 3), np.uint8)
    assert annotate(large, []).shape == large.shape
    assert annotate(np.zeros((1, 3000), np.uint8), []).shape == (1, 3000, 3)


def test_as_json_values(cropped: Recognizer) -> None:
    values = cropped.predict(band_face(5))[0].to_dict()
    assert values["emotion"] == "surprise"
    assert values["box"] == [0, 0, 48, 48]
    assert values["landmarks"] is None
    assert list(values["probabilities"]) == list(EMOTIONS)


def prediction(names: tuple[str, ...], emotion: str, box: tuple[float, float, float, float]) -> Prediction:
    values = {name: 0.7 if name == emotion else 0.3 / (len(names) - 1) for name in names}
    return Prediction(box, {"nose": (0.0, 0.0)}, 0.9, emotion, values)


def test_an_emotion_has_one_colour_whatever_the_nets_order() -> None:
    photo, box = np.full((700, 900, 3), 128, np.uint8), (100.0, 100.0, 200.0, 200.0)
    colors = {}
    for names in ((*EMOTIONS, "contempt"), ("contempt", *reversed(EMOTIONS))):
        for emotion in names:
            drawn = annotate(photo, [prediction(names, emotion, box)])
            colors.setdefault(emotion, set()).add(tuple(drawn[200, 100].tolist()))  # the box's left side
    assert all(len(found) == 1 for found in colors.values())
    assert len(set.union(*colors.values())) == 8, "two emotions have the same colour"


def test_bars_of_long_names_have_room_beside_them() -> None:
    """A line is 16 pixels high here, and the bar of the certain class at least four lines long."""
    names = ("a", "a name that is much longer than those of the emotions", "dégoût")
    face = Prediction((0.0, 0.0, 600.0, 600.0), None, None, "a", dict(zip(names, (1.0, 0.0, 0.0), strict=True)))
    margin = annotate(np.zeros((600, 600), np.uint8), [face])[:, 605:]
    assert (margin == COLORS[0]).all(2).sum(1).max() >= 4 * 16
