"""The recogniser on drawn faces whose class is known by hand, and on a photograph."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from tiny_model import band_face, band_probabilities, make_model

import caffe
import predict.recognizer
from predict import ImageError, Recognizer, StageError
from predict.annotate import COLORS, TRACK, annotate
from predict.recognizer import Prediction
from preprocessing.align import align
from preprocessing.alignment import align_face
from preprocessing.datasets import EMOTIONS
from preprocessing.extract import extract
from preprocessing.mtcnn import Face

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
    assert all(type(value) is float for point in predictions[0].landmarks.values() for value in point)
    assert predictions[0].landmarks["nose"] == pytest.approx((40 + 56.0252 * 192 / 112, 50 + 71.7366 * 192 / 112))


def test_small_and_doubtful_faces_are_left_out(model: tuple[Path, Path, Path], monkeypatch: Any) -> None:
    photo, faces = drawn_photo([3, 0, 6])
    sizes = [(150.0, 80.0), (79.0, 100.0), (79.0, 79.0)]
    confidences = [0.99, 0.85, 0.95]
    faces = [
        Face((*face.box[:2], *size), face.landmarks, confidence)
        for face, size, confidence in zip(faces, sizes, confidences, strict=True)
    ]

    def emotions(**settings: float) -> list[str]:
        recognizer = Recognizer(*model, device="cpu", views="centre", **settings)  # type: ignore[arg-type]
        monkeypatch.setattr(recognizer, "_detector", FixedDetector([faces]))
        return [face.emotion for face in recognizer.predict(photo)]

    assert emotions() == emotions(min_face_size=1, min_confidence=0) == ["happy", "angry", "neutral"]
    assert emotions(min_confidence=1) == []
    assert emotions(min_face_size=80) == ["happy", "angry"]  # by the longer side
    assert emotions(min_face_size=100) == ["happy", "angry"]  # of 100 pixels
    assert emotions(min_confidence=0.95) == ["happy", "neutral"]
    assert emotions(min_face_size=80, min_confidence=0.95) == ["happy"]


def test_the_least_face_is_what_the_detector_looks_for(model: tuple[Path, Path, Path]) -> None:
    """A face of 83×107 pixels; a larger least face makes the pyramid that is searched smaller."""
    photo = cv2.imread(str(ASTRONAUT))
    usual = Recognizer(*model, device="cpu")
    (expected,) = usual.predict(photo)
    pixels = []
    for least, found in ((105, 1), (120, 0)):
        recognizer = Recognizer(*model, device="cpu", min_face_size=least)
        faces = recognizer.predict(photo)
        assert len(faces) == found
        assert all(face.box == pytest.approx(expected.box, abs=15) for face in faces)
        pixels.append(sum(512 * scale for scale in recognizer._detector.looks[0]._scales(512, 512)))
    assert sum(512 * scale for scale in usual._detector.looks[0]._scales(512, 512)) > 3 * pixels[0] > 3 * pixels[1]


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
        assert recognizer.views == "centre"  # which sees the face twice
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
    wide = cropped.predict(cv2.resize(face, (96, 48)))[0]
    assert (wide.box, wide.emotion) == ((0, 0, 96, 48), "fear")
    large = cropped.predict(cv2.cvtColor(np.kron(face, np.ones((5, 5), np.uint8)), cv2.COLOR_GRAY2BGR))[0]
    assert large.box == (0, 0, 240, 240)
    assert list(large.probabilities.values()) == pytest.approx(list(band_probabilities(levels)), abs=0.05)


def test_colours_are_as_bright_as_in_training(cropped: Recognizer, tmp_path: Path) -> None:
    """By ITU-R BT.601: 0.299 red + 0.587 green + 0.114 blue; arrays are BGR."""
    for name, color, grey in (("blue", (255, 0, 0), 29), ("green", (0, 255, 0), 150), ("red", (0, 0, 255), 76)):
        image = np.full((48, 48, 3), color, np.uint8)
        for split in ("train", "validation", "test"):
            (tmp_path / "faces" / split / "happy").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "faces" / split / "happy" / f"{name}.png"), image)
        for given in (image, tmp_path / f"faces/test/happy/{name}.png"):
            ((face,),) = cropped.find_faces([given])
            assert (face.pixels == grey).all()
    extract(tmp_path / "faces", tmp_path / "images")
    extracted = sorted((tmp_path / "images/Training/3_happy").iterdir())
    assert [cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[5, 5] for path in extracted] == [29, 150, 76]


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
        (None, r"the image is a NoneType; expected .* a file's bytes \(of an open file, file\.read\(\)\), a Pillow"),
        (b"GIF", "not an image; expected JPEG"),
        (b"", "the file is empty"),
    ],
)
def test_arrays_that_are_no_images(cropped: Recognizer, image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        cropped.predict(image)


def test_a_files_bytes_and_pillows_image_are_read_as_the_file_is(cropped: Recognizer, tmp_path: Path) -> None:
    """Upright too, where there is transparency, which `cv2.imdecode` alone does not do."""
    grey = cv2.rotate(band_face(1, 90), cv2.ROTATE_90_CLOCKWISE)
    rgba = PIL.Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    exif = PIL.Image.Exif()
    exif[0x0112] = 8  # to be turned by 90° anticlockwise
    rgba.save(tmp_path / "face.png", exif=exif)
    file = tmp_path / "face.png"
    with PIL.Image.open(file) as pillow:
        (from_bytes,), (from_pillow,), (from_file,) = cropped.predict_batch([file.read_bytes(), pillow, file])
    assert from_bytes.emotion == "disgust"
    assert from_bytes.probabilities == from_pillow.probabilities == from_file.probabilities


def test_what_is_one_image_is_no_batch(cropped: Recognizer, tmp_path: Path) -> None:
    for shape in ((48, 48), (48, 48, 3), (48, 48, 1)):
        with pytest.raises(
            ValueError, match=rf"images is an array of shape \({shape[0]}, .*; expected a list of images"
        ):
            cropped.predict_batch(np.zeros(shape, np.uint8))
    for path in ("face.jpg", Path("face.jpg")):
        with pytest.raises(ValueError, match=r"images is 'face\.jpg'; expected a list of images"):
            cropped.predict_batch(path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images is bytes; expected"):
        cropped.predict_batch(b"\x89PNG")
    with pytest.raises(ValueError, match="images is a Pillow image; expected"):
        cropped.predict_batch(PIL.Image.new("L", (48, 48)))  # type: ignore[arg-type]
    stack = np.stack([band_face(1), band_face(3)])
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for file, image in zip(files, stack, strict=True):
        cv2.imwrite(str(file), image)
    paths = np.array([str(file) for file in files], object)  # as a column of pandas has them
    for images in (stack, stack[..., None], np.repeat(stack[..., None], 3, 3), paths):
        assert [face.emotion for (face,) in cropped.predict_batch(images)] == ["disgust", "happy"]


def test_an_error_tells_which_image_of_a_batch_it_is(cropped: Recognizer, tmp_path: Path) -> None:
    face = band_face(1)
    for bad, message in (
        (face.astype(float), "image 1 of 3: the image is float64 of shape"),
        (b"no image", "image 1 of 3: not an image"),
        (None, "image 1 of 3: the image is a NoneType"),
        (tmp_path / "none.png", f"{tmp_path / 'none.png'}: no such file"),
    ):
        with pytest.raises(ImageError) as error:
            cropped.predict_batch([face, bad, face])  # type: ignore[list-item]
        assert str(error.value).startswith(message)


def test_threads_may_share_a_recogniser(detecting: Recognizer) -> None:
    photo = cv2.imread(str(ASTRONAUT))
    images = [photo, photo[:, ::-1], cv2.resize(photo, (300, 300)), np.zeros((50, 70, 3), np.uint8)] * 3
    alone = [detecting.predict(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(detecting.predict, images))
    for one, other in zip(alone, together, strict=True):
        assert [face.to_dict() for face in other] == [face.to_dict() for face in one]


def test_arguments_that_do_not_fit(model: tuple[Path, Path, Path]) -> None:
    with pytest.raises(ValueError, match="face is 'some'; expected one of detect, one, none"):
        Recognizer(*model, face="some")
    with pytest.raises(ValueError, match="views is 'two'; expected one of centre, mirror, ten_crop"):
        Recognizer(*model, views="two")
    for device in (0, None, torch.device("cpu")):
        with pytest.raises(ValueError, match=re.escape(f"device is {device!r}; expected 'auto', 'cpu',")):
            Recognizer(*model, device=device)  # type: ignore[arg-type]
    for size in (0, -3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"min_face_size is {size}; expected a number of pixels, 1 or more"):
            Recognizer(*model, min_face_size=size)
    for confidence in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"min_confidence is {confidence}; expected a probability, 0 to 1"):
            Recognizer(*model, min_confidence=confidence)
    with pytest.raises(ValueError, match="min_face_size is 40, but face is 'none', which looks for no faces"):
        Recognizer(*model, face="none", min_face_size=40)
    with pytest.raises(ValueError, match="only deploy and mean given"):
        Recognizer(deploy=model[0], mean=model[2])


def test_nets_of_other_faces_than_grey_squares(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"mean\.binaryproto: is 3×48×48; expected 1×N×N, the mean of grey faces, or 2×N"
    ):
        Recognizer(*make_model(tmp_path, channels=3), face="none", device="cpu")
    files = make_model(tmp_path)
    caffe.io.save_mean(files[2], np.zeros((1, 48, 50), np.float32))
    with pytest.raises(StageError, match=r"mean\.binaryproto: is 1×48×50; expected 1×N×N"):
        Recognizer(*files, face="none", device="cpu")


def test_the_model_that_ships_is_the_default_and_a_missing_file_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(predict.recognizer, "MODELS", tmp_path)
    with pytest.raises(
        predict.StageError, match=r"'face_resnet16_pair': .*deploy\.prototxt is missing; .* \(none here\)"
    ):
        Recognizer()
    _, weights, mean = make_model(tmp_path / "face_resnet16_pair", name="face_resnet16_pair")
    make_model(tmp_path / "other", classes=3, name="other")
    assert Recognizer(face="none", device="cpu").emotions == EMOTIONS
    assert Recognizer(model="other", face="none", device="cpu").emotions == ("class_0", "class_1", "class_2")
    mean.unlink()
    with pytest.raises(StageError, match=r"mean\.binaryproto is missing; .* \(face_resnet16_pair, other\)"):
        Recognizer()
    weights.rename(weights.with_name("as_copied.caffemodel"))  # a folder that was copied for a network of one's own
    with pytest.raises(StageError, match=r"face_resnet16_pair\.caffemodel is missing; .* \(other\)"):
        Recognizer()


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


def test_as_a_row_of_a_table(cropped: Recognizer) -> None:
    (face,) = cropped.predict(band_face(5))
    values = face.to_dict()
    row = face.to_row()
    assert list(row) == ["x", "y", "width", "height", "confidence", "emotion", *EMOTIONS]
    assert [row[name] for name in ("x", "y", "width", "height", "confidence", "emotion")] == [
        0,
        0,
        48,
        48,
        None,
        "surprise",
    ]
    assert {name: row[name] for name in EMOTIONS} == values["probabilities"]
    tracked = dataclasses.replace(face, track=7)
    assert list(tracked.to_row()) == ["track", *row]
    assert tracked.to_dict() == {"track": 7, **values}
    with pytest.raises(ValueError, match=r"a class is called 'width', as another column; expected none of x, y, width"):
        prediction(("wide", "width"), "wide", face.box).to_row()


def test_what_is_rounded_in_json() -> None:
    face = Prediction(
        (1.2345, 5.678, 30.1, 40.999), {"nose": (1.006, 2.004)}, 0.12345678, "sad", {"happy": 1 / 3, "sad": 2 / 3}
    )
    assert face.to_dict() == {
        "box": [1.23, 5.68, 30.1, 41.0],
        "landmarks": {"nose": [1.01, 2.0]},
        "confidence": 0.123457,
        "emotion": "sad",
        "probabilities": {"happy": 0.333333, "sad": 0.666667},
    }


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


@pytest.mark.parametrize("place", [(350, 250), (0, 0), (700, 0), (0, 540), (700, 540), (700, 250), (350, 540)])
def test_each_face_has_bars_as_long_as_its_probabilities(place: tuple[int, int]) -> None:
    """Wherever it is, also where its label reaches further than its box; and they do not cover it."""
    shares = (0.04, 0.06, 0.1, 0.03, 0.25, 0.5, 0.02)
    probabilities = dict(zip(EMOTIONS, shares, strict=True))
    height = 639 if place == (700, 0) else 99  # then there is room on the left alone
    face = Prediction((*place, 99, height), {"nose": (0.0, 0.0)}, 0.9, "surprise", probabilities)
    drawn = annotate(np.full((640, 800), 130, np.uint8), [face])
    assert (drawn[place[1] + 40 : place[1] + height - 4, place[0] + 5 : place[0] + 95] == 130).all()
    rest = (drawn == TRACK).all(axis=2)  # what is left of the whole bars
    bars = np.split(np.flatnonzero(rest.any(axis=1)), np.flatnonzero(np.diff(np.flatnonzero(rest.any(axis=1))) > 1) + 1)
    assert len(bars) == 7
    for share, rows in zip(shares, bars, strict=True):
        row = drawn[rows[len(rows) // 2]]
        first, last = np.flatnonzero(rest[rows[len(rows) // 2]])[[0, -1]]
        filled = 1
        while (row[first - filled - 1] == row[first - 1]).all():
            filled += 1
        assert filled / (filled + last - first + 1) == pytest.approx(share, abs=0.02)


def test_the_label_and_the_bars_say_names_and_percentages(monkeypatch: Any) -> None:
    written = []
    monkeypatch.setattr(cv2, "putText", lambda canvas, text, *_: written.append(text))
    values = {"calm": 0.034, "dégoût": 0.966}
    face = Prediction((100.0, 100.0, 99.0, 99.0), {"nose": (0.0, 0.0)}, 0.9, "dégoût", values)
    annotate(np.zeros((640, 800), np.uint8), [face, dataclasses.replace(face, box=(500.0, 300.0, 99.0, 99.0), track=7)])
    bars = ["calm", "3%", "degout", "97%"]
    assert written == [*bars, *bars, "degout 97%", "#7 degout 97%"]


def test_the_text_is_no_larger_than_fits_the_faces() -> None:
    face = prediction(EMOTIONS, "sad", (1000.0, 1000.0, 60.0, 60.0))
    drawn = annotate(np.full((2000, 2000), 130, np.uint8), [face])
    rows, columns = np.nonzero((drawn != 130).any(axis=2))
    assert 1000 - rows.min() < 20  # the label above
    assert columns.max() - 1060 < 200  # the bars beside it
