"""The detector against the mtcnn package's own results, and its parts against plain references."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import mtcnn
from preprocessing.mtcnn import (
    LANDMARKS,
    Boxes,
    Detector,
    Face,
    PatientDetector,
    crop_and_resize,
    resize_area,
    suppress,
)

ROOT = Path(__file__).resolve().parents[2]
# what the mtcnn package finds in images/astronaut.png, rounded to whole pixels by it
ASTRONAUT_BOX = (182, 64, 83, 107)
ASTRONAUT_LANDMARKS = [(204, 100), (245, 102), (224, 126), (202, 139), (244, 140)]
ASTRONAUT_CONFIDENCE = 0.9991206526756287


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector("cpu")


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    inside = width * height
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)


def assert_same(a: list[Face], b: list[Face], pixels: float = 1e-3) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=pixels)
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=pixels)
        assert one.confidence == pytest.approx(other.confidence, abs=pixels / 10)


# Agreement with the package


def golden_images(shared: Path, names: set[str]) -> dict[str, np.ndarray]:
    folder = shared / "mtcnn_golden"
    photo = cv2.imread(str(folder / "astronaut.png"))
    images = {
        "astronaut.png": photo,
        "astronaut.png@256": cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA),
        "three_sizes.png": cv2.imread(str(folder / "three_sizes.png")),
    }
    with tarfile.open(shared / "fer2013" / "fer2013.tar.xz") as archive:
        for member in archive:
            if member.name in names and (file := archive.extractfile(member)):
                images[member.name] = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    return images


def agrees(expected: dict, face: Face) -> bool:
    points = [expected["keypoints"][name] for name in LANDMARKS]
    return (
        overlap(expected["box"], face.box) >= 0.9
        and np.hypot(*(face.landmarks - points).T).max() <= 1.5
        and abs(face.confidence - expected["confidence"]) <= 1e-4
    )


def test_all_reference_images_agree(shared: Path, detector: Detector) -> None:
    expected = json.loads((shared / "mtcnn_golden" / "mtcnn.json").read_text())
    images = golden_images(shared, set(expected))
    assert set(images) == set(expected)
    differ = []
    for name, faces in zip(expected, detector.detect_batch([images[name] for name in expected]), strict=True):
        rest = list(faces)
        for one in expected[name]:
            match = next((face for face in rest if agrees(one, face)), None)
            if match is not None:
                rest.remove(match)
        if rest or len(faces) != len(expected[name]):
            differ.append(name)
    assert len(expected) > 200
    assert differ == []


def test_the_sample_photo_agrees(astronaut: np.ndarray, detector: Detector) -> None:
    (face,) = detector.detect(astronaut)
    assert overlap(face.box, ASTRONAUT_BOX) > 0.97
    assert np.abs(face.landmarks - ASTRONAUT_LANDMARKS).max() <= 0.5 + 1e-3
    assert face.landmarks.shape == (5, 2)
    assert face.landmarks.dtype == np.float32
    assert face.confidence == pytest.approx(ASTRONAUT_CONFIDENCE, abs=1e-5)


@pytest.mark.parametrize("sides", [range(1, 3000), range(3000, 20000, 7)])
def test_the_pyramid_has_as_many_levels_as_the_packages(sides: range, detector: Detector) -> None:
    for side in sides:
        count = max(0, round(-((math.log(side / 12) / math.log(0.709)) + 1)))
        np.testing.assert_allclose(detector._scales(side, 2 * side), [0.6 * 0.709**k for k in range(count)])


def test_neither_tensorflow_nor_the_package_is_imported() -> None:
    code = (
        "import sys; from preprocessing.mtcnn import Detector; Detector('cpu');"
        "print([name for name in ('tensorflow', 'keras', 'mtcnn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Batches, sizes, colours


def test_a_batch_gives_what_each_image_gives(astronaut: np.ndarray, detector: Detector) -> None:
    images = [
        astronaut,
        cv2.resize(astronaut[40:200, 150:310], (48, 48), interpolation=cv2.INTER_AREA),
        np.zeros((48, 48, 3), np.uint8),
        cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)[30:230, 120:330],
        np.ascontiguousarray(astronaut[:, ::-1]),
        cv2.resize(astronaut[30:190, 140:300], (48, 48), interpolation=cv2.INTER_AREA),
        astronaut[:1, :1],
        astronaut[30:230, 120:330],
    ]
    batch = detector.detect_batch(images)
    assert [len(faces) for faces in batch] == [1, 1, 0, 1, 1, 1, 0, 1]
    for image, faces in zip(images, batch, strict=True):
        assert_same(faces, detector.detect(image))


def test_many_images_of_one_size_are_split_into_stacks(
    astronaut: np.ndarray, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = [
        cv2.resize(astronaut[y : y + 160, x : x + 160], (48, 48), interpolation=cv2.INTER_AREA)
        for y in (30, 40, 300)
        for x in (130, 140, 150)
    ]
    whole = detector.detect_batch(crops)
    assert [len(faces) for faces in whole] == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    monkeypatch.setattr(mtcnn, "STACK_PIXELS", 4 * 48 * 48)
    monkeypatch.setattr(mtcnn, "CROPS", {24: 3, 48: 2})
    for one, other in zip(whole, detector.detect_batch(crops), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("shape", [(213, 199), (200, 301)])
def test_tiles_give_what_the_whole_level_gives(
    shape: tuple[int, int], astronaut: np.ndarray, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.stack([astronaut[:, ::step][: shape[0], 100 : 100 + shape[1]] for step in (1, -1)])
    levels = resize_area(images.astype(np.float32), shape[0] // 2, shape[1] // 2)
    with torch.inference_mode():
        whole = detector._propose_level(levels)
        for windows, side in ((64, 8), (50, 1000), (100_000, 13)):
            monkeypatch.setattr(mtcnn, "TILE_WINDOWS", windows)
            monkeypatch.setattr(mtcnn, "TILE_SIDE", side)
            tiled = detector._propose_level(levels)
            assert len(tiled) == len(whole) > 10
            order, other = (np.lexsort((*boxes.corners.T.round(2), boxes.images)) for boxes in (tiled, whole))
            np.testing.assert_allclose(tiled.corners[order], whole.corners[other], atol=1e-3)
            np.testing.assert_array_equal(tiled.images[order], whole.images[other])


def test_an_odd_size_has_a_window_at_its_edge(detector: Detector) -> None:
    with torch.inference_mode():
        for height, width, expected in ((12, 12, (1, 1)), (13, 12, (2, 1)), (14, 15, (2, 3))):
            out = detector.pnet.infer(data=torch.zeros(1, 3, height, width))
            assert out["prob"].shape == (1, 2, *expected)
            assert out["box"].shape == (1, 4, *expected)


def test_huge_images_in_whole_grey_levels_give_nearly_the_same(
    astronaut: np.ndarray, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = detector.detect(astronaut)
    monkeypatch.setattr(mtcnn, "FLOAT_PIXELS", 0)
    assert_same(exact, detector.detect(astronaut), pixels=0.5)


def test_grey_is_colour_with_equal_channels(astronaut: np.ndarray, detector: Detector) -> None:
    grey = cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)
    faces = detector.detect(grey)
    assert len(faces) == 1
    assert_same(faces, detector.detect(cv2.merge([grey] * 3)))
    assert_same(faces, detector.detect(grey[:, :, None]))


def test_grey_images_with_and_without_an_axis_for_it_go_together(astronaut: np.ndarray) -> None:
    grey = cv2.resize(cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY), (240, 240), interpolation=cv2.INTER_AREA)
    close = np.ascontiguousarray(grey[20:95, 65:140])  # the face fills it: found at the second or third look
    detector = PatientDetector("cpu", certain=True)
    expected = detector.detect_batch([grey])[0]
    assert expected
    for images in ([grey, grey[..., None]], [grey[..., None], grey]):
        for faces in detector.detect_batch(images):
            assert_same(faces, expected)
    flat, deep = detector.detect_batch([close, close[..., None]])
    assert_same(flat, deep)


def test_several_faces_come_with_the_most_confident_first(astronaut: np.ndarray, detector: Detector) -> None:
    face = astronaut[20:220, 120:320]
    scene = np.zeros((400, 700, 3), np.uint8)
    scene[100:300, 20:220] = face
    scene[200:300, 300:400] = cv2.resize(face, (100, 100), interpolation=cv2.INTER_AREA)
    scene[20:320, 400:700] = cv2.resize(face, (300, 300), interpolation=cv2.INTER_CUBIC)
    faces = detector.detect(scene)
    assert sorted(int(face.box[0] + face.box[2] / 2) // 100 for face in faces) == [1, 3, 5]
    assert [face.confidence for face in faces] == sorted((face.confidence for face in faces), reverse=True)


def test_boxes_stay_within_the_image(astronaut: np.ndarray, detector: Detector) -> None:
    (face,) = detector.detect(astronaut[75:168, 185:265])  # the face reaches beyond this on all sides
    assert face.box == (0, 0, 79, 92)


def test_smaller_faces_are_found_only_when_asked_for(astronaut: np.ndarray, detector: Detector) -> None:
    small = cv2.resize(astronaut, (48, 48), interpolation=cv2.INTER_AREA)  # the face is 8 x 10 pixels
    assert detector.detect(small) == []
    (face,) = Detector("cpu", min_face_size=10).detect(small)
    assert overlap(face.box, tuple(value * 48 / 512 for value in ASTRONAUT_BOX)) > 0.5


def test_thresholds_leave_faces_out(astronaut: np.ndarray) -> None:
    assert Detector("cpu", thresholds=(0.6, 0.7, 0.9999)).detect(astronaut) == []


def test_one_detector_serves_several_threads(astronaut: np.ndarray, detector: Detector) -> None:
    images = [np.ascontiguousarray(np.roll(astronaut, shift, 1)) for shift in range(0, 80, 10)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(detector.detect, images))
    for image, faces in zip(images, results, strict=True):
        assert_same(faces, detector.detect(image))


# Hostile input


@pytest.mark.parametrize(("side", "inside", "certain"), [(48, 0.05, False), (48, 0.08, True), (960, 0.1, False)])
def test_a_face_that_fills_its_image_is_found(
    side: int, inside: float, certain: bool, astronaut: np.ndarray, detector: Detector
) -> None:
    """The photo's face, cut inside its box: the usual look misses it, and a patient one finds the same points."""
    grey = cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)
    (whole,) = detector.detect(grey)
    x, y, width, height = whole.box
    left, top = int(x + inside * width), int(y + inside * width)
    cut = grey[top : int(y + height - inside * width), left : int(x + width - inside * width)]
    image = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if side == 48 else cv2.INTER_CUBIC)
    assert detector.detect(image) == []
    assert bool(PatientDetector("cpu").detect_batch([image])[0]) is not certain
    found, again, blank = PatientDetector("cpu", certain).detect_batch([image, grey, np.zeros_like(image)])
    assert blank == []
    assert [face.box for face in again] == [whole.box]
    ratio = np.array([cut.shape[1], cut.shape[0]]) / side
    assert np.abs(found[0].landmarks * ratio + [left, top] - whole.landmarks).max() < 0.08 * width
    box_x, box_y, box_width, box_height = found[0].box
    assert min(box_x, box_y) >= 0
    assert max(box_x + box_width, box_y + box_height) <= side - 1


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 3), (0, 0), (0, 10, 3), (1, 5000), (12, 12), (20, 20, 3), (21, 21), (11, 900)]
)
@pytest.mark.parametrize("value", [0, 255])
def test_blank_images_of_any_size_hold_no_face(shape: tuple[int, ...], value: int, detector: Detector) -> None:
    assert detector.detect(np.full(shape, value, np.uint8)) == []


def test_no_images_give_no_results(detector: Detector) -> None:
    assert detector.detect_batch([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5)), "float64 of shape"),
        (np.zeros((5, 5, 4), np.uint8), r"\(5, 5, 4\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(image: np.ndarray, message: str, detector: Detector) -> None:
    with pytest.raises(ValueError, match=f"image 1 is .*{message}"):
        detector.detect_batch([np.zeros((5, 5), np.uint8), image])


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_face_size": 0},
        {"min_face_size": float("nan")},
        {"scale_factor": 1.0},
        {"scale_factor": 0},
        {"thresholds": (0.6, 0.7)},
        {"thresholds": (0.6, 0.7, 1.5)},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is .*; expected"):
        Detector("cpu", **arguments)


def test_noise_is_survived(detector: Detector) -> None:
    detector.detect(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))


# Its parts


def naive_suppress(boxes: Boxes, threshold: float, of_smaller: bool) -> list[int]:
    """The rule by its words: a box goes when one of a higher score in its image overlaps it too much."""
    kept = []
    for i in range(len(boxes)):
        stays = True
        for j in range(len(boxes)):
            if boxes.images[i] != boxes.images[j] or boxes.scores[j] <= boxes.scores[i]:
                continue
            ax1, ay1, ax2, ay2 = boxes.corners[i]
            bx1, by1, bx2, by2 = boxes.corners[j]
            inside = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
            a, b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
            stays = stays and inside / (min(a, b) if of_smaller else a + b - inside) <= threshold
        if stays:
            kept.append(i)
    return sorted(kept, key=lambda i: (boxes.images[i], -boxes.scores[i]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(1, 6), st.booleans(), st.sampled_from([0.2, 0.5, 0.7])
)
def test_suppression_keeps_what_the_rule_keeps(
    seed: int, count: int, images: int, of_smaller: bool, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    start = random.uniform(-50, 100, (count, 2))
    size = random.choice([5, 20, 60, 500]) * random.uniform(0.5, 1.5, (count, 2))
    boxes = Boxes(
        random.integers(0, images, count), np.concatenate([start, start + size], 1), random.permutation(count) / 300.0
    )
    assert suppress(boxes, threshold, of_smaller).tolist() == naive_suppress(boxes, threshold, of_smaller)


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = Boxes(
        np.zeros(3, np.int64), np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 9, 9.0]]), np.array([0.3, 0.2, 0.1])
    )
    assert suppress(boxes, 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (14, 20), (48, 30), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_averages_areas(height: int, width: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 60, channels)).astype(np.float32)
    # each pixel repeated so often that a new pixel is a whole number of them
    fine = images.repeat(height, 1).repeat(width, 2).reshape(3, height, 48, width, 60, channels)
    np.testing.assert_allclose(resize_area(images, height, width), fine.mean((2, 4)), atol=1e-3)


def naive_crop(image: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    height, width, channels = image.shape
    x1, y1, x2, y2 = corners / [width, height, width, height] * [width - 1, height - 1, width - 1, height - 1]
    crop = np.full((side, side, channels), 127.5)
    for row, y in enumerate(np.linspace(y1, y2, side)):
        for column, x in enumerate(np.linspace(x1, x2, side)):
            if 0 <= x <= width - 1 and 0 <= y <= height - 1:
                left, top = int(x), int(y)
                right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
                a, b = x - left, y - top
                crop[row, column] = (1 - b) * ((1 - a) * image[top, left] + a * image[top, right]) + b * (
                    (1 - a) * image[bottom, left] + a * image[bottom, right]
                )
    return crop


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_interpolated_between_pixels(dtype: type, channels: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 30, 41, channels)).astype(dtype)
    corners = np.array(
        [[3.3, 4.1, 20.7, 21.9], [-5.5, -3, 12, 14], [20, 10, 52.5, 42], [100, 100, 120, 120], [0, 0, 41, 30]]
    )
    boxes = Boxes(np.array([0, 1, 2, 0, 1]), corners, np.zeros(5))
    crops = crop_and_resize(torch.from_numpy(images), boxes, 24).numpy()
    for crop, image, corner in zip(crops, boxes.images, corners, strict=True):
        expected = naive_crop(images[image].astype(float), corner, 24)
        assert (np.abs(crop - expected) > 0.02).mean() < 0.1  # a pixel just at the edge may fall to either side
        np.testing.assert_allclose(np.median(np.abs(crop - expected)), 0, atol=0.01)


# Memory

MEMORY = """
import resource, sys
import cv2, numpy as np
from preprocessing.mtcnn import Detector

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

photo = cv2.imread("images/astronaut.png")
detector = Detector("cpu")
small = [cv2.resize(photo[y : y + 160, 140:300], (48, 48), interpolation=cv2.INTER_AREA) for y in range(0, 100)]
for _ in range(8):
    detector.detect_batch(small)
before = resident()
for _ in range(24):
    detector.detect_batch(small)
grown = resident() - before
huge = np.full((3000, 5000, 3), 127, np.uint8)
huge[2000:2512, 3000:3512] = photo
faces = detector.detect(huge)
with open("/proc/self/status") as f:  # not getrusage, which counts the process that started this one too
    peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) * 1024
print(grown, peak, [face.box for face in faces])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's size from /proc")
def test_memory_is_bounded_and_does_not_grow() -> None:
    # one thread: with several, the time this takes depends on what else the machine does
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    grown, peak, boxes = result.stdout.split(maxsplit=2)
    assert int(grown) < 20e6
    assert int(peak) < 1e9
    assert len(boxes := json.loads(boxes.replace("(", "[").replace(")", "]"))) == 1
    assert overlap(boxes[0], (3182, 2064, 83, 107)) > 0.9
