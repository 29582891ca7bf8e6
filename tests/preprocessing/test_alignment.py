"""The similarity transform against independent solutions, and the pixels that alignment gives."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.alignment import SIZE, TEMPLATE, align_face, similarity_transform

angles = st.floats(-np.pi, np.pi)
scales = st.floats(0.01, 100)
shifts = st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000))
seeds = st.integers(0, 2**32 - 1)


def similarity(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def random_landmarks(seed: int, noise: float = 6) -> np.ndarray:
    return TEMPLATE + np.random.default_rng(seed).normal(0, noise, (5, 2))


def blobs(points: np.ndarray, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """A black image with a bright round blob at each point."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points)
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def centre_near(image: np.ndarray, point: np.ndarray, reach: float) -> np.ndarray:
    """The centre of brightness of the image around a point."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image * (np.hypot(x - point[0], y - point[1]) <= reach)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def test_the_template_is_symmetric_and_lies_within_the_face() -> None:
    mirrored = TEMPLATE[[1, 0, 2, 4, 3]] * [-1, 1] + [SIZE - 1, 0]
    np.testing.assert_allclose(TEMPLATE, mirrored, atol=0.011)
    left_eye, right_eye, nose, mouth_left, mouth_right = TEMPLATE
    # the nets that ship were trained on faces that are aligned so: another template is another kind of face to them
    assert (*left_eye, *right_eye) == (14.35, 17.98, 32.65, 17.98)
    assert (*nose, *mouth_left, *mouth_right) == (23.5, 28.44, 15.88, 37.27, 31.12, 37.27)
    assert SIZE / 4 < left_eye[0] < mouth_left[0] < nose[0] < mouth_right[0] < right_eye[0] < SIZE * 3 / 4
    assert (
        SIZE / 4 < left_eye[1] == right_eye[1] < nose[1] < mouth_left[1] == mouth_right[1] < SIZE - 6
    )  # in every crop


@settings(deadline=None)
@given(angles, scales, shifts)
def test_a_known_similarity_is_recovered(angle: float, scale: float, shift: tuple[float, float]) -> None:
    wanted = similarity(angle, scale, shift)
    found = similarity_transform(TEMPLATE, apply(wanted, TEMPLATE))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-8 * max(1, scale))


@settings(deadline=None)
@given(seeds)
def test_it_solves_the_linear_least_squares_problem(seed: int) -> None:
    # a similarity without reflection is x' = a x - b y + c, y' = b x + a y + d: linear in a, b, c, d
    landmarks = random_landmarks(seed)
    x, y = landmarks.T
    one, zero = np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(system, np.concatenate([TEMPLATE[:, 0], TEMPLATE[:, 1]]))[0]
    np.testing.assert_allclose(similarity_transform(landmarks), [[a, -b, c], [b, a, d]], rtol=1e-7, atol=1e-7)


@settings(deadline=None)
@given(seeds, angles, scales, shifts)
def test_moving_the_landmarks_moves_the_transform_with_them(
    seed: int, angle: float, scale: float, shift: tuple[float, float]
) -> None:
    landmarks, moved = random_landmarks(seed), similarity(angle, scale, shift)
    before = apply(similarity_transform(landmarks), landmarks)
    after = apply(similarity_transform(apply(moved, landmarks)), apply(moved, landmarks))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_there_is_no_reflection_even_for_a_mirrored_face() -> None:
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity_transform(mirrored)[:, :2]) > 0


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.full((5, 2), 7.0), "one place"),
        (np.full((5, 2), 7.0) + np.eye(5, 2) * 1e-5, "one place"),
        (np.where(np.eye(5, 2, dtype=bool), np.nan, TEMPLATE), "not finite"),
        (np.where(np.eye(5, 2, dtype=bool), np.inf, TEMPLATE), "not finite"),
        (TEMPLATE[:4], "expected both"),
        (TEMPLATE.ravel(), "expected both"),
        (np.zeros((5, 3)), "expected both"),
    ],
)
def test_landmarks_without_a_transform_are_refused(landmarks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity_transform(landmarks)
    with pytest.raises(ValueError, match=message):
        align_face(np.zeros((48, 48), np.uint8), landmarks)


def test_two_points_of_two_coordinates_are_enough_and_needed() -> None:
    along, up = np.array([[0.0, 0], [2, 0]]), np.array([[5.0, 1], [5, 5]])
    np.testing.assert_allclose(similarity_transform(along, up), [[0, -2, 5], [2, 0, 1]], atol=1e-12)
    for points in (np.zeros((1, 2)), np.eye(3)):
        with pytest.raises(ValueError, match="expected both"):
            similarity_transform(points, points)
    with pytest.raises(ValueError, match="not finite"):
        similarity_transform(along, up * [1, np.nan])


def test_landmarks_a_thousandth_of_a_pixel_apart_are_one_place() -> None:
    pair = np.array([[-1.0, 0], [1, 0]])  # their distance from the centre is 1
    assert similarity_transform(pair * 1.01e-3, pair)[0, 0] == pytest.approx(1 / 1.01e-3)
    with pytest.raises(ValueError, match="one place"):
        similarity_transform(pair * 0.99e-3, pair)


def test_points_that_only_a_reflection_brings_to_the_template_are_refused() -> None:
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    with pytest.raises(ValueError, match="no rotation"):
        similarity_transform(square[::-1], square)


@pytest.mark.parametrize(
    ("scale", "angle", "size"), [(1.0, 0.3, 48), (0.6, -0.5, 48), (2.6, 0.2, 48), (9.7, -0.4, 48), (9.7, 2.5, 112)]
)
def test_landmarks_land_on_the_template(scale: float, angle: float, size: int) -> None:
    """Faces larger and smaller than the result, upright and turned."""
    landmarks = apply(similarity(angle, scale, (0, 0)), TEMPLATE)
    landmarks += 30 * scale - landmarks.min(0)
    height, width = (landmarks.max(0) + 30 * scale).astype(int)[::-1]
    result = align_face(blobs(landmarks, (height, width), 2.0 * scale), landmarks, size)
    assert result.shape == (size, size)
    for point in TEMPLATE * size / 48:
        assert np.hypot(*(centre_near(result, point, 5 * size / 48) - point)) < 0.25


def test_a_turned_photo_gives_the_same_face(astronaut: np.ndarray) -> None:
    landmarks = np.array([[204, 100], [245, 102], [224, 126], [202, 139], [244, 140]], np.float32)
    turn = cv2.getRotationMatrix2D((224, 120), 35, 1.0)
    turned = cv2.warpAffine(astronaut, turn, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    straight, other = align_face(astronaut, landmarks), align_face(turned, apply(turn, landmarks))
    assert straight.shape == (48, 48, 3)
    assert np.abs(straight.astype(int) - other).mean() < 4 < straight.std()


def test_a_face_on_the_template_stays_as_it_is(astronaut: np.ndarray) -> None:
    image = astronaut[60:108, 180:228]
    np.testing.assert_array_equal(align_face(image, TEMPLATE), image)


def test_beyond_the_edge_pixels_are_repeated() -> None:
    for factor in (0.7, 1.0, 3.0):
        image = np.full((40, 50), 90, np.uint8)
        np.testing.assert_array_equal(align_face(image, TEMPLATE * factor + 20), np.full((48, 48), 90))


@pytest.mark.parametrize("where", [-5000, 5000])
@pytest.mark.parametrize("scale", [1, 30])
def test_landmarks_far_outside_the_image_show_its_nearest_edge(where: int, scale: int) -> None:
    image = np.zeros((20, 20), np.uint8)
    image[:10] = 200 if where < 0 else 0
    image[10:] = 0 if where < 0 else 200
    assert (align_face(image, TEMPLATE * scale + where) == 200).all()


def test_pixels_are_interpolated_bicubically() -> None:
    """Halfway between pixels, by the cubic kernel with a = -0.75: their weights are -3/32, 19/32, 19/32, -3/32."""
    image = np.full((48, 60), 50, np.uint8)
    image[:, 30:] = 150
    row = align_face(image, TEMPLATE + np.array([0.5, 0]))[20].astype(float)
    np.testing.assert_allclose(row[27:32], [50, 50 - 300 / 32, 100, 150 + 300 / 32, 150], atol=0.6)


@pytest.mark.parametrize("across", [False, True])
def test_a_face_that_shrinks_is_not_shifted(across: bool) -> None:
    """A ramp of two grey levels a pixel: where the result's pixels lie is to be read from it."""
    ramp = np.repeat(2 * np.arange(126, dtype=np.uint8)[:, None], 126, 1)
    result = align_face(ramp.T if across else ramp, TEMPLATE * 2.4 + 5)
    off = (result.T if across else result) - 2 * (2.4 * np.arange(48) + 5)[:, None]
    assert np.abs(off).max() < 1.5
    assert abs(off.mean()) < 0.3


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((960, 960), np.uint8)
    stripes[::2] = 255  # finer than the result can show: grey
    result = align_face(stripes, TEMPLATE * 20)
    assert np.abs(result.astype(int) - 127).max() <= 2


def test_without_landmarks_the_image_is_only_resized(astronaut: np.ndarray) -> None:
    same = astronaut[:48, :48]
    result = align_face(same, None)
    np.testing.assert_array_equal(result, same)
    assert not np.shares_memory(result, same)
    for shape in ((1, 1), (7, 300), (96, 96), (512, 500)):
        assert align_face(astronaut[: shape[0], : shape[1], 0], None).shape == (48, 48)
    for height, width in ((96, 30), (30, 96)):  # what grows one way is interpolated
        image = astronaut[:height, :width, 0]
        expected = cv2.resize(image, (48, 48), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(align_face(image, None), expected)
    pairs = astronaut[:48, :96, 0].reshape(48, 48, 2).mean(2)
    assert np.abs(align_face(astronaut[:48, :96, 0], None) - pairs).max() <= 0.5
    pairs = astronaut[:96, :48, 0].reshape(48, 2, 48).mean(1)
    assert np.abs(align_face(astronaut[:96, :48, 0], None) - pairs).max() <= 0.5
    halved = astronaut[:96, :96, 0].reshape(48, 2, 48, 2).mean((1, 3))
    assert np.abs(align_face(astronaut[:96, :96, 0], None) - halved).max() <= 0.5


@pytest.mark.parametrize("place", [0, 16_000, 32_800 - 256])
@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.5, 0.4), (-2.0, 1.9), (0.3, 2.0), (0.2, 2.3)])
def test_a_face_in_a_very_long_image_is_the_same(astronaut: np.ndarray, place: int, angle: float, scale: float) -> None:
    """OpenCV's own limit is 32,766 pixels a side. The face's place is such that shifting it costs no rounding."""
    photo = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    landmarks = np.round((apply(similarity(angle, scale, (0, 0)), TEMPLATE - TEMPLATE.mean(0)) + 128) * 64) / 64
    wide = np.full((256, 32_800, 3), 128, np.uint8)
    wide[:, place : place + 256] = photo
    tall = np.full((32_800, 256, 3), 128, np.uint8)
    tall[place : place + 256] = photo
    for turned in (True, False):
        expected = align_face(photo, landmarks, turned=turned)
        assert expected.std() > 20
        for image, shift in ((wide, (place, 0)), (tall, (0, place))):
            np.testing.assert_array_equal(align_face(image, landmarks + np.array(shift), turned=turned), expected)


def test_cutting_an_image_to_what_is_shown_changes_no_pixel(
    astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faces of all places and turns, partly or wholly outside: as OpenCV gives them of the whole image."""
    random, grey = np.random.default_rng(0), cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)
    for _ in range(200):
        transform = similarity(random.uniform(-3, 3), random.uniform(0.15, 2), tuple(random.uniform(-100, 600, 2)))
        landmarks = apply(transform, TEMPLATE - TEMPLATE.mean(0)) + random.normal(0, 1, (5, 2))
        monkeypatch.setattr("preprocessing.alignment.LONGEST_SIDE", 1 << 20)
        whole = align_face(grey, landmarks)
        monkeypatch.setattr("preprocessing.alignment.LONGEST_SIDE", 100)
        np.testing.assert_array_equal(align_face(grey, landmarks), whole)


@pytest.mark.parametrize(
    "image", [np.zeros((0, 5), np.uint8), np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros(5, np.uint8)]
)
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    for landmarks in (None, TEMPLATE):
        with pytest.raises(ValueError, match="expected uint8"):
            align_face(image, landmarks)


@pytest.mark.parametrize("angle", [0, 0.5, -1.2, 3.0])
def test_a_face_that_is_not_turned_has_its_place_and_size(angle: float) -> None:
    """Blobs at the landmarks of a turned face come to the template turned alike, about its centre."""
    points = apply(similarity(angle, 2.5, (150.0, 140.0)), TEMPLATE - TEMPLATE.mean(0))
    upright = align_face(blobs(points, (300, 300), 5), points, turned=False)
    expected = apply(similarity(angle, 1, tuple(TEMPLATE.mean(0))), TEMPLATE - TEMPLATE.mean(0))
    for point in expected:
        np.testing.assert_allclose(centre_near(upright, point, 4), point, atol=0.25)
    if angle == 0:
        np.testing.assert_array_equal(upright, align_face(blobs(points, (300, 300), 5), points))
