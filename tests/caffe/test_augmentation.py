"""Augmentation, Mixup and CutMix, and shuffled, balanced and soft reading of data, against OpenCV and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_nets import assert_resumes, batches, data_net, picture

import caffe
from caffe.database import write_lmdb
from caffe.io import array_to_datum
from caffe.layers.augmentation import Augmentation, BatchMixing
from caffe.layers.transform import Transformer
from caffe.proto.caffe_pb2 import TransformationParameter


def augment(images: np.ndarray, seed: int = 0, **settings: float) -> np.ndarray:
    augmentation = Augmentation(TransformationParameter(**settings))
    return augmentation(torch.from_numpy(images), torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize(("height", "width"), [(48, 48), (30, 52)])
@pytest.mark.parametrize(
    "settings",
    [
        {"random_rotation": 30.0},
        {"random_scale": 0.3},
        {"random_shift": 0.2},
        {"random_rotation": 180.0, "random_scale": 0.2, "random_shift": 0.1},
    ],
)
def test_the_affine_map_is_opencvs(height: int, width: int, settings: dict[str, float]) -> None:
    images = np.stack([picture(height, width, seed=i).transpose(2, 0, 1) for i in range(8)])
    ours = augment(images, seed=5, **settings)
    turn, zoom, right, down = 2 * torch.rand((4, 8), generator=torch.Generator().manual_seed(5)).numpy() - 1
    for i, image in enumerate(images):
        # OpenCV turns counter-clockwise, and counts pixels from the middle of the first
        matrix = cv2.getRotationMatrix2D(
            ((width - 1) / 2, (height - 1) / 2),
            -turn[i] * settings.get("random_rotation", 0),
            1 + zoom[i] * settings.get("random_scale", 0),
        )
        matrix[:, 2] += settings.get("random_shift", 0) * np.array([right[i] * width, down[i] * height])
        theirs = cv2.warpAffine(
            image.transpose(1, 2, 0).astype(np.float32), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE
        )
        # its places are rounded to a 32nd of a pixel
        assert np.abs(ours[i].transpose(1, 2, 0) - theirs).max() < 3


def test_grey_levels_stretch_about_their_mean_and_move() -> None:
    images = np.random.default_rng(0).integers(100, 156, (500, 1, 8, 8)).astype(np.uint8)
    before = images.astype(np.float64)

    stretched = augment(images, random_contrast=0.4).astype(np.float64)
    np.testing.assert_allclose(stretched.mean((1, 2, 3)), before.mean((1, 2, 3)), rtol=1e-5)
    factors = stretched.std((1, 2, 3)) / before.std((1, 2, 3))
    assert 0.6 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4

    moved = augment(images, random_brightness=0.2) - before
    np.testing.assert_allclose(moved.std((1, 2, 3)), 0, atol=1e-4)
    assert -51 <= moved.min() < -45
    assert 45 < moved.max() <= 51


def test_grey_levels_stay_in_their_range() -> None:
    images = np.tile(np.array([0, 255], np.uint8), (50, 1, 4, 4))
    out = augment(images, random_contrast=1.0, random_brightness=0.5)
    assert out.min() == 0
    assert out.max() == 255


def test_erased_rectangles() -> None:
    images = np.full((2000, 1, 40, 30), 300, np.float32)  # no noise is 300
    out = augment(images, random_erasing=0.3, erasing_min_area=0.1, erasing_max_area=0.3)
    erased = out[:, 0] != 300
    changed = erased.any((1, 2))
    assert 0.3 - 4 * math.sqrt(0.21 / 2000) < changed.mean() < 0.3 + 4 * math.sqrt(0.21 / 2000)
    areas = []
    for mask in erased[changed]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        areas.append(mask.mean())
    assert 0.09 < min(areas) < 0.12
    assert 0.28 < max(areas) < 0.31
    noise = out[out != 300]
    assert 0 <= noise.min() < 1
    assert 254 < noise.max() <= 255
    assert abs(noise.mean() - 127.5) < 1


@pytest.mark.parametrize(("height", "width"), [(48, 48), (90, 20), (16, 60)])
def test_the_erased_area_is_drawn_evenly_whatever_the_sides(height: int, width: int) -> None:
    """A rectangle that would be longer than the image is wider for it: its area is what was drawn."""
    images = np.full((4000, 1, height, width), 300, np.float32)
    areas = (augment(images, random_erasing=1, erasing_min_area=0.4, erasing_max_area=0.9) != 300).mean((1, 2, 3))
    assert 0.36 < areas.min() < 0.42
    assert 0.88 < areas.max() < 0.94
    deviation = 0.5 / math.sqrt(12)  # of 0.4 to 0.9, evenly
    assert abs(areas.mean() - 0.65) < 4 * deviation / math.sqrt(4000)
    assert abs(areas.std() / deviation - 1) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("random_rotation: -1", "random_rotation is -1; expected 0 to 180"),
        ("random_scale: 1", "random_scale is 1; expected 0 to 0.9"),
        ("random_erasing: 1.5", "random_erasing is 1.5; expected 0 to 1"),
        ("random_contrast: nan", "random_contrast is nan; expected 0 to 1"),
        ("erasing_min_area: 0.5", "erasing_min_area is 0.5; expected at most erasing_max_area, 0.25"),
        ("mixup_alpha: -1", "mixup_alpha is -1; expected 0 or more"),
        ("mixup_alpha: 1", "mixup_alpha and cutmix_alpha need data_param.classes and a top for the labels"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: str, message: str) -> None:
    source = write_faces(tmp_path, range(4))
    with pytest.raises(caffe.CaffeError, match=rf"layer 'data' \(Data\): {message}"):
        data_net(data(source, transform=settings))


def test_other_layers_do_not_mix_batches(tmp_path: Path) -> None:
    settings = "memory_data_param { batch_size: 1 channels: 1 height: 1 width: 1 }"
    with pytest.raises(caffe.CaffeError, match="need a Data layer with data_param"):
        data_net(f'type: "MemoryData" {settings} transform_param {{ cutmix_alpha: 1 }}')


# Mixup and CutMix


@pytest.mark.parametrize("settings", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_labels_are_mixed_as_the_images_are(settings: dict[str, float]) -> None:
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 20, 30)  # image i is i all over, its label i
    mix, random = BatchMixing(TransformationParameter(**settings)), torch.Generator().manual_seed(1)
    shares = []
    for _ in range(300):
        mixed, labels = mix(images, torch.eye(8), random)
        np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), labels @ torch.arange(8.0), atol=1e-4)
        values = [len(image.unique()) for image in mixed]
        assert max(values) <= (1 if "mixup_alpha" in settings else 2)
        shares.append(float(labels.max(1).values.min()))
    # Beta(1, 1) is uniform: its larger share is 3/4 on average, but for images that meet themselves and cut rectangles
    assert 0.65 < np.mean(shares) < 0.85
    assert torch.equal(images[:, 0, 0, 0], torch.arange(8.0))


def test_each_batch_has_one_kind_of_mixing() -> None:
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 20, 20)
    mix = BatchMixing(TransformationParameter(mixup_alpha=1, cutmix_alpha=1))
    random = torch.Generator().manual_seed(1)
    cut = [bool((mix(images, torch.eye(8), random)[0] % 1 == 0).all()) for _ in range(200)]
    assert 60 < sum(cut) < 140


# The Data layer


def write_faces(folder: Path, labels: range | list[int], soft: dict[int, list[float]] | None = None) -> Path:
    """An LMDB of 4×4 images, whose pixels are the record's number."""
    records = []
    for i, label in enumerate(labels):
        datum = array_to_datum(np.full((1, 4, 4), i, np.uint8), label)
        datum.label_probability.extend((soft or {}).get(i, []))
        records.append((b"%08d" % i, datum.SerializeToString()))
    write_lmdb(folder / "db", iter(records))
    return folder / "db"


def data(source: Path, settings: str = "", transform: str = "", batch: int = 4) -> str:
    param = f'data_param {{ source: "{source}" backend: LMDB batch_size: {batch} {settings} }}'
    return f'type: "Data" {param} transform_param {{ {transform} }}'


def test_shuffled_reading_leaves_no_record_out_and_goes_on_from_a_state(tmp_path: Path) -> None:
    layer = data(write_faces(tmp_path, range(10)), "shuffle: true")
    read = [(x[:, 0, 0, 0].astype(int), y) for x, y in batches(data_net(layer), 10)]
    for numbers, labels in read:
        np.testing.assert_array_equal(numbers, labels)
    order = np.concatenate([numbers for numbers, _ in read]).reshape(4, 10)
    assert (np.sort(order, 1) == np.arange(10)).all()
    assert len({tuple(each) for each in order}) == 4
    assert_resumes(layer, before=4)


def test_balanced_reading_draws_all_labels_alike(tmp_path: Path) -> None:
    layer = data(write_faces(tmp_path, [0] * 90 + [1] * 9 + [5]), "balanced: true", batch=50)
    read = batches(data_net(layer), 60)
    labels, counts = np.unique(np.concatenate([y for _, y in read]), return_counts=True)
    assert labels.tolist() == [0, 1, 5]
    assert (abs(counts - 1000) < 120).all()
    assert len(np.unique(np.concatenate([x[:, 0, 0, 0] for x, _ in read]))) == 100
    assert_resumes(layer)


def test_labels_as_probabilities(tmp_path: Path) -> None:
    source = write_faces(tmp_path, [2, 0, 1, 2], {1: [0.25, 0.5, 0.25]})
    net = data_net(data(source, "classes: 3"))
    assert net.blobs["label"].shape == (4, 3)
    ((_, labels),) = batches(net, 1)
    np.testing.assert_array_equal(labels, [[0, 0, 1], [0.25, 0.5, 0.25], [0, 1, 0], [0, 0, 1]])
    ((_, numbers),) = batches(data_net(data(source)), 1)
    assert numbers.tolist() == [2, 0, 1, 2]


def test_mixing_by_a_prototxt(tmp_path: Path) -> None:
    layer = data(write_faces(tmp_path, range(4)), "classes: 4", "mixup_alpha: 0.4 mean_value: 1")
    for images, labels in batches(data_net(layer, phase=caffe.TRAIN), 5):
        np.testing.assert_allclose(images[:, 0, 0, 0], labels @ np.arange(4) - 1, atol=1e-5)
    assert_resumes(layer)
    for images, labels in batches(data_net(layer), 2):  # in TEST all stays as it is
        np.testing.assert_array_equal(labels, np.eye(4))
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(4) - 1)


def test_augmentation_is_for_training(tmp_path: Path) -> None:
    layer = data(write_faces(tmp_path, range(4)), "", "random_brightness: 0.5 random_rotation: 20")
    ((trained, _),), ((tested, _),) = batches(data_net(layer, phase=caffe.TRAIN), 1), batches(data_net(layer), 1)
    np.testing.assert_array_equal(tested[:, 0, 0, 0], range(4))
    assert not np.allclose(trained, tested)
    assert_resumes(layer)


def test_images_of_several_sizes_are_augmented_one_after_another() -> None:
    settings = TransformationParameter(random_contrast=0.5, random_rotation=40)
    transform = Transformer(settings, training=True, device=torch.device("cpu"))
    images = [torch.from_numpy(picture(9, 7, seed=i).transpose(2, 0, 1).copy()) for i in range(3)]
    random, again = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(transform(images, random), torch.cat([transform(image[None], again) for image in images]))
    assert torch.equal(random.get_state(), again.get_state())


@pytest.mark.parametrize(
    ("labels", "soft", "settings", "message"),
    [
        ([0, 3], {}, "classes: 3", "record '00000001': the label is 3; expected 0 to 2"),
        ([0, 1], {1: [0.5, 0.5]}, "classes: 3", r"label_probability is \[0.5, 0.5\]; expected 3 numbers of sum 1"),
        ([0, 1], {1: [1, 1, -1]}, "classes: 3", "label_probability is .*; expected 3 numbers of sum 1"),
        ([0, 1], {}, "shuffle: true balanced: true", "shuffle and balanced are both set; expected one"),
    ],
)
def test_data_that_does_not_fit(
    tmp_path: Path, labels: list[int], soft: dict[int, list[float]], settings: str, message: str
) -> None:
    source = write_faces(tmp_path, labels, soft)
    with pytest.raises(caffe.CaffeError, match=rf"layer 'data' \(Data\): .*{message}"):
        data_net(data(source, settings))


def test_images_of_several_sizes_are_read_in_order_alone(tmp_path: Path) -> None:
    records = [(b"%d" % i, array_to_datum(np.zeros((1, 4, 4 + i), np.uint8), 0).SerializeToString()) for i in range(2)]
    write_lmdb(tmp_path / "db", iter(records))
    with pytest.raises(caffe.CaffeError, match="shuffle needs a data set of one image size"):
        data_net(data(tmp_path / "db", "shuffle: true", "crop_size: 4"))
