"""ImageData and WindowData against what OpenCV and numpy make of the same files; lists and images that are broken."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_nets import Batch, assert_resumes, assert_same, batches, chw, data_net, picture, write_pictures

import caffe
from caffe.io import save_mean

# ImageData


def write_list(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def image_data(source: Path, settings: str = "", transform: str = "", batch: int = 3) -> str:
    return (
        f'type: "ImageData" transform_param {{ {transform} }} image_data_param {{ source: "{source}" '
        f'root_folder: "{source.parent}/" batch_size: {batch} {settings} }}'
    )


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A list of seven images of one size, labelled 10 to 16."""
    images = [picture(12, 10, seed=i) for i in range(7)]
    names = write_pictures(tmp_path, images)
    return write_list(tmp_path / "list.txt", [f"{name} {10 + i}" for i, name in enumerate(names)]), images


def expected_batch(images: list[np.ndarray], numbers: list[int]) -> Batch:
    return [np.stack([chw(images[i]) for i in numbers]).astype(np.float32), np.float32(numbers) + 10]


def test_images_come_in_the_lists_order_and_from_the_first_again(pictures: tuple) -> None:
    source, images = pictures
    net = data_net(image_data(source))
    assert (net.blobs["data"].shape, net.blobs["label"].shape) == ((3, 3, 12, 10), (3,))
    rounds = [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]
    assert_same(batches(net, 4), [expected_batch(images, numbers) for numbers in rounds])


def test_images_agree_with_caffes_own_reading(shared: Path) -> None:
    folder = shared / "caffe_golden"
    values = np.load(folder / "data" / "values.npz")
    layer = (
        f'type: "ImageData" image_data_param {{ source: "{folder}/images/train.txt" batch_size: 8 is_color: false '
        f'root_folder: "{folder}/images/" }}'
    )
    expected = [[values[f"plain/{batch}/{top}"] for top in ("data", "label")] for batch in range(2)]
    assert_same(batches(data_net(layer), 2), expected)


@pytest.mark.parametrize("color", [True, False])
def test_images_are_resized_and_transformed(pictures: tuple, color: bool) -> None:
    source, _ = pictures
    settings = f"new_height: 9 new_width: 17 is_color: {str(color).lower()}"
    net = data_net(image_data(source, settings, "crop_size: 6 scale: 0.5 mean_value: 20"))
    ((found, _),) = batches(net, 1)
    for i, crop in enumerate(found):
        read = cv2.imread(str(source.parent / f"{i}.png"), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        resized = cv2.resize(read, (17, 9))
        expected = (chw(resized)[:, 1:7, 5:11].astype(np.float32) - 20) * 0.5
        np.testing.assert_array_equal(crop, expected)


def test_the_mean_is_the_whole_images(pictures: tuple, tmp_path: Path) -> None:
    source, images = pictures
    mean = chw(picture(12, 10, seed=99)).astype(np.float32)
    save_mean(tmp_path / "mean.binaryproto", mean)
    net = data_net(image_data(source, "", f'mean_file: "{tmp_path}/mean.binaryproto" crop_size: 8'))
    ((found, _),) = batches(net, 1)
    np.testing.assert_array_equal(found[1], (chw(images[1]).astype(np.float32) - mean)[:, 2:10, 1:9])


def test_names_may_hold_spaces_and_the_root_is_put_right_in_front(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pre x y", [picture(4, 4)])
    source = write_list(tmp_path / "list.txt", ["", "x y/0.png  7 ", "  ", "x y/0.png -3\r"])
    layer = f'type: "ImageData" image_data_param {{ source: "{source}" root_folder: "{tmp_path}/pre " batch_size: 2 }}'
    ((found, labels),) = batches(data_net(layer), 1)
    np.testing.assert_array_equal(found[1], chw(picture(4, 4)))
    assert labels.tolist() == [7, -3]


def test_shuffling_goes_through_the_whole_list_in_another_order_each_time(pictures: tuple) -> None:
    source, images = pictures
    layer = image_data(source, "shuffle: true", batch=1)
    found = batches(data_net(layer), 21)
    labels = [int(label[0]) for _, label in found]
    orders = [tuple(labels[i : i + 7]) for i in (0, 7, 14)]
    assert all(sorted(order) == list(range(10, 17)) for order in orders)
    assert len(set(orders)) == 3
    for image, label in found:
        np.testing.assert_array_equal(image[0], chw(images[int(label[0]) - 10]))
    assert_same(batches(data_net(layer), 21), found)
    other = [int(label[0]) for _, label in batches(data_net(layer, seed=2), 7)]
    assert tuple(other) != orders[0]


@pytest.mark.parametrize("settings", ["", "shuffle: true", "rand_skip: 5"])
def test_image_data_goes_on_from_a_state(pictures: tuple, settings: str) -> None:
    source, _ = pictures
    assert_resumes(image_data(source, settings, "crop_size: 7 mirror: true"))


def test_rand_skip(pictures: tuple) -> None:
    source, _ = pictures
    layer = image_data(source, "rand_skip: 3", batch=1)
    assert {int(batches(data_net(layer, seed=seed), 1)[0][1][0]) for seed in range(30)} == {10, 11, 12}
    with pytest.raises(caffe.CaffeError, match="lists 7 images; rand_skip asks to skip more"):
        data_net(image_data(source, "rand_skip: 100000"))


def test_images_of_several_sizes(tmp_path: Path) -> None:
    images = [picture(8, 9), picture(6, 7, seed=1)]
    names = write_pictures(tmp_path, images)
    source = write_list(tmp_path / "list.txt", [f"{name} 0" for name in names])
    net = data_net(image_data(source, batch=1))
    for image in images:  # a batch of one takes them as they come
        np.testing.assert_array_equal(batches(net, 1)[0][0][0], chw(image))
    ((found, _),) = batches(data_net(image_data(source, transform="crop_size: 6", batch=2)), 1)
    np.testing.assert_array_equal(found[0], chw(images[0][1:7, 1:7]))
    np.testing.assert_array_equal(found[1], chw(images[1][0:6, 0:6]))
    with pytest.raises(caffe.CaffeError, match=r"list\.txt, line 2: 1\.png has shape \(3, 6, 7\), and 0\.png, line 1"):
        data_net(image_data(source, batch=2)).forward()
    with pytest.raises(caffe.CaffeError, match=r"list\.txt, line 2: 1\.png: crop_size 8 is larger than .* 6×7"):
        data_net(image_data(source, transform="crop_size: 8", batch=2)).forward()


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_an_image_that_is_cut_off_names_list_line_and_file(tmp_path: Path, extension: str, part: float) -> None:
    names = write_pictures(tmp_path, [picture(40, 40, seed=i) for i in range(5)], extension)
    source = write_list(tmp_path / "list.txt", [f"{name} 0" for name in names])
    broken = tmp_path / names[4]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(part * len(whole))])
    net = data_net(image_data(source))
    batches(net, 1)
    message = rf"layer 'data' \(ImageData\): .*list\.txt, line 5: .*/4\.{extension}: its \d+ bytes are not an image"
    for _ in range(2):
        with pytest.raises(caffe.CaffeError, match=message):
            net.forward()
    broken.write_bytes(whole)  # mended, the same batch comes
    np.testing.assert_array_equal(batches(net, 1)[0][0][1], chw(cv2.imread(str(broken))))


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["0.png 1", "0.png"], "", r"list\.txt, line 2: '0\.png'; expected FILE LABEL"),
        (["0.png one"], "", r"list\.txt, line 1: '0\.png one'; expected FILE LABEL, LABEL a whole number"),
        (["0.png 1.5"], "", r"list\.txt, line 1: '0\.png 1\.5'"),
        ([], "", r"list\.txt: lists no image"),
        (["", "  "], "", r"list\.txt: lists no image"),
        (["", "none.png 1"], "", r"list\.txt, line 2: .*/none\.png: No such file or directory"),
        ([". 1"], "", r"list\.txt, line 1: .*/\.: Is a directory"),
        (["list.txt 1"], "", r"list\.txt, line 1: .*/list\.txt: its 11 bytes are not an image"),
        (["0.png 1"], "new_height: 4", "new_height is 4 and new_width 0; expected both or neither"),
    ],
)
def test_lists_that_are_broken(tmp_path: Path, lines: list[str], settings: str, message: str) -> None:
    write_pictures(tmp_path, [picture(4, 4)])
    source = write_list(tmp_path / "list.txt", lines)
    with pytest.raises(caffe.CaffeError, match=rf"layer 'data' \(ImageData\): .*{message}"):
        data_net(image_data(source, settings))


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(caffe.CaffeError, match=r"nolist\.txt: No such file or directory"):
        data_net(image_data(tmp_path / "nolist.txt"))
    with pytest.raises(caffe.CaffeError, match="batch_size is 0"):
        data_net(image_data(tmp_path / "nolist.txt", batch=0))


# WindowData


def c_round(value: float) -> int:
    return math.floor(value + 0.5) if value >= 0 else -math.floor(-value + 0.5)


def reference(
    image: np.ndarray, box: tuple, crop: int, pad: int = 0, square: bool = False, mirror: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A window as Caffe cuts it, C×H×W before the mean is subtracted, and where it is inside the image.

    Written from R-CNN's description: the box grows around its middle until `pad` pixels of the warped crop are
    context, is cut off at the image, and the part that is left is warped to its share of the crop.
    """
    x1, y1, x2, y2 = box
    width, height, left, top = crop, crop, 0, 0
    if pad or square:
        scale = np.float32(crop) / np.float32(crop - 2 * pad)
        half = np.float32([(x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2])
        middle = np.float32([x1, y1]) + half
        if square:
            half[:] = half.max()
        low, high = middle - half * scale, middle + half * scale
        x1, y1, x2, y2 = c_round(low[0]), c_round(low[1]), c_round(high[0]), c_round(high[1])
        factor_x, factor_y = np.float32(crop) / np.float32(x2 - x1 + 1), np.float32(crop) / np.float32(y2 - y1 + 1)
        over = [max(0, -x1), max(0, -y1), max(0, x2 - image.shape[1] + 1), max(0, y2 - image.shape[0] + 1)]
        x1, y1, x2, y2 = x1 + over[0], y1 + over[1], x2 - over[2], y2 - over[3]
        width, height = c_round((x2 - x1 + 1) * factor_x), c_round((y2 - y1 + 1) * factor_y)
        left, top = c_round(over[2 if mirror else 0] * factor_x), c_round(over[1] * factor_y)
        width, height = min(width, crop - left), min(height, crop - top)
    part = cv2.resize(image[y1 : y2 + 1, x1 : x2 + 1], (width, height), interpolation=cv2.INTER_LINEAR)
    out, inside = np.zeros((3, crop, crop), np.float32), np.zeros((crop, crop), bool)
    out[:, top : top + height, left : left + width] = (part[:, ::-1] if mirror else part).transpose(2, 0, 1)
    inside[top : top + height, left : left + width] = True
    return out, inside


def window_text(images: list[tuple[str, np.ndarray, list[str]]]) -> str:
    lines = []
    for i, (path, image, windows) in enumerate(images):
        lines += [f"# {i}", path, "3", str(image.shape[0]), str(image.shape[1]), str(len(windows)), *windows]
    return "\n".join(lines) + "\n"


def window_data(source: Path, settings: str = "", transform: str = "crop_size: 8", batch: int = 4) -> str:
    return (
        f'type: "WindowData" transform_param {{ {transform} }} window_data_param {{ source: "{source}" '
        f'root_folder: "{source.parent}/" batch_size: {batch} {settings} }}'
    )


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A window file of one image with an object (label 5) in the middle and a background window in a corner."""
    image = picture(30, 40)
    write_pictures(tmp_path, [image])
    text = window_text([("0.png", image, ["5 0.9 8 6 25 17", "2 0.1 0 0 11 20"])])
    (tmp_path / "windows.txt").write_text(text)
    return tmp_path / "windows.txt", image


OBJECT, CORNER = (8, 6, 25, 17), (0, 0, 11, 20)


@pytest.mark.parametrize("settings", ["", "cache_images: true"])
def test_windows_are_warped_to_the_crop(scene: tuple, settings: str) -> None:
    source, image = scene
    net = data_net(window_data(source, settings))
    assert (net.blobs["data"].shape, net.blobs["label"].shape) == ((4, 3, 8, 8), (4,))
    if settings:
        (source.parent / "0.png").unlink()
    ((found, labels),) = batches(net, 1)
    assert labels.tolist() == [0, 0, 0, 5]  # a quarter is objects; the background comes first, its label is 0
    for crop, box in zip(found, [CORNER] * 3 + [OBJECT], strict=True):
        np.testing.assert_array_equal(crop, reference(image, box, 8)[0])


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_windows_with_context(scene: tuple, pad: int, square: bool) -> None:
    source, image = scene
    settings = f'context_pad: {pad} fg_fraction: 0.5 crop_mode: "{"square" if square else "warp"}"'
    transform = "crop_size: 11 mirror: true mean_value: 10 mean_value: 20 mean_value: 30"
    net = data_net(window_data(source, settings, transform, batch=8))
    seen = set()
    for found, labels in batches(net, 3):
        assert labels.tolist() == [0] * 4 + [5] * 4
        for crop, label in zip(found, labels, strict=True):
            for mirror in (False, True):
                raw, inside = reference(image, OBJECT if label else CORNER, 11, pad, square, mirror)
                expected = np.where(inside, raw - np.float32([10, 20, 30])[:, None, None], 0)
                if np.array_equal(crop, expected):
                    seen.add((int(label), mirror))
                    break
            else:
                pytest.fail(f"a window of label {label} is neither the mirrored nor the plain one")
    assert seen == {(0, False), (0, True), (5, False), (5, True)}


def test_windows_anywhere_in_the_image(tmp_path: Path) -> None:
    """Many boxes, at the borders too: each label is the number of its box."""
    random = np.random.default_rng(3)
    image = picture(37, 50)
    write_pictures(tmp_path, [image])
    boxes = []
    for _ in range(60):
        x, y = np.sort(random.integers(0, 50, 2)), np.sort(random.integers(0, 37, 2))
        boxes.append((int(x[0]), int(y[0]), int(x[1]), int(y[1])))
    lines = [f"{i + 1} 1 {x1} {y1} {x2} {y2}" for i, (x1, y1, x2, y2) in enumerate(boxes)]
    source = tmp_path / "windows.txt"
    source.write_text(window_text([("0.png", image, lines)]))
    for mode in ("warp", "square"):
        settings = f'fg_fraction: 1 context_pad: 4 crop_mode: "{mode}"'
        net = data_net(window_data(source, settings, "crop_size: 21", batch=200))
        ((found, labels),) = batches(net, 1)
        assert len(set(labels)) > 50
        for crop, label in zip(found, labels, strict=True):
            expected, _ = reference(image, boxes[int(label) - 1], 21, 4, mode == "square")
            np.testing.assert_array_equal(crop, expected)


def test_the_means_middle_is_subtracted_and_window_data_params_scale_counts(scene: tuple, tmp_path: Path) -> None:
    source, image = scene
    mean = chw(picture(13, 12, seed=4)).astype(np.float32)
    save_mean(tmp_path / "mean.binaryproto", mean)
    transform = f'crop_size: 8 scale: 9 mean_file: "{tmp_path}/mean.binaryproto"'
    ((found, _),) = batches(data_net(window_data(source, "scale: 0.25", transform)), 1)
    expected = (reference(image, OBJECT, 8)[0] - mean[:, 2:10, 2:10]) * 0.25
    np.testing.assert_array_equal(found[3], expected)
    for other, shape in ((mean[:, :, :7], r"\(3, 13, 7\)"), (mean[:1], r"\(1, 13, 12\)")):
        save_mean(tmp_path / "mean.binaryproto", other)
        with pytest.raises(caffe.CaffeError, match=rf"the mean's shape is {shape}; the crops' is 3×8×8"):
            data_net(window_data(source, "", transform))


def test_overlaps_sort_the_windows(tmp_path: Path) -> None:
    image = picture(20, 20)
    write_pictures(tmp_path, [image, image])
    # at fg_threshold an object; at bg_threshold and between neither; below it background, whatever its label
    first = ["1 0.6 0 0 5 5", "2 0.599 0 0 6 6", "3 0.1 0 0 7 7", "4 0.099 0 0 8 8"]
    second = ["5 1 0 0 9 9", "0 0 0 0 10 10"]
    source = tmp_path / "windows.txt"
    text = window_text([("0.png", image, first), ("1.png", image, second), ("gone.png", image, [])])
    source.write_text(text.replace("\n", "\r\n") + " \r\n")  # of Windows
    net = data_net(window_data(source, "fg_threshold: 0.6 bg_threshold: 0.1 fg_fraction: 0.5", batch=40))
    ((found, labels),) = batches(net, 1)
    assert set(labels[20:]) == {1, 5}
    assert set(labels[:20]) == {0}
    crops = {size: reference(image, (0, 0, size, size), 8)[0] for size in range(5, 11)}
    sizes = {size for drawn in found[:20] for size, crop in crops.items() if np.array_equal(drawn, crop)}
    assert sizes == {8, 10}


def test_windows_by_seed_and_from_a_state(scene: tuple) -> None:
    source, _ = scene
    layer = window_data(source, "fg_fraction: 0.5", "crop_size: 8 mirror: true")
    first = batches(data_net(layer), 6)
    assert_same(batches(data_net(layer), 6), first)
    assert any(not np.array_equal(first[0][0], other[0]) for other in first[1:])
    assert_resumes(layer)


GOOD = ["# 0", "0.png", "3", "20", "20", "2", "1 0.9 0 0 5 5", "0 0.1 0 0 9 9"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "0"}, r"windows\.txt, line 1: '0'; expected '# 0', the next image's number"),
        ({0: "# 1"}, r"windows\.txt, line 1: '# 1'; expected '# 0'"),
        ({2: "1"}, "0.png has 1 channels; images are read with 3"),
        ({2: "three"}, r"windows\.txt, line 3: 'three'; expected the image's number of channels"),
        ({5: "3"}, "ends after 2 of the 3 windows of 0.png"),
        ({5: "1"}, r"windows\.txt, line 8: '0 0.1 0 0 9 9'; expected '# 1'"),
        ({5: "99999999"}, "ends after 2 of the 99999999 windows"),
        ({5: "-1"}, r"line 6: '-1'; expected the image's number of windows"),
        ({7: "0 0.1 0 0 9"}, r"line 8: '0 0.1 0 0 9'; expected LABEL OVERLAP X1 Y1 X2 Y2"),
        ({7: "0 0.1 0 0 9 9.5"}, r"line 8: '0 0.1 0 0 9 9.5'; expected LABEL"),
        ({6: "a b c d e f"}, r"line 7: 'a b c d e f'; expected LABEL"),
        ({6: "1 0.9 0 0 5 99999999999"}, r"line 7: .*; expected LABEL"),
        ({6: "0 0.9 0 0 5 5"}, r"line 7: '0 0.9 0 0 5 5'; expected a label above 0"),
        ({7: "0 0.9 0 0 5 5"}, r"line 8: '0 0.9 0 0 5 5'; expected a label above 0"),
        (
            {6: "1 0.4 0 0 5 5"},
            r"windows\.txt: no window overlaps an object by fg_threshold 0.5 or more; a batch needs 1",
        ),
        ({7: "1 0.9 0 0 9 9"}, r"windows\.txt: no window lies below bg_threshold 0.5; a batch needs 3"),
    ],
)
def test_window_files_that_are_broken(tmp_path: Path, change: dict, message: str) -> None:
    write_pictures(tmp_path, [picture(20, 20)])
    source = tmp_path / "windows.txt"
    source.write_text("\n".join(change.get(i, line) for i, line in enumerate(GOOD)))
    with pytest.raises(caffe.CaffeError, match=rf"layer 'data' \(WindowData\): .*{message}"):
        data_net(window_data(source))


@pytest.mark.parametrize("end", range(len(GOOD) - 1))
def test_window_files_that_are_cut_off(tmp_path: Path, end: int) -> None:
    source = tmp_path / "windows.txt"
    source.write_text("\n".join(GOOD[:end]))
    with pytest.raises(caffe.CaffeError, match=re.escape(str(source))):
        data_net(window_data(source))


def test_windows_that_leave_their_image(tmp_path: Path) -> None:
    write_pictures(tmp_path, [picture(20, 20)])
    source = tmp_path / "windows.txt"
    beyond = [("0 0.1 0 0 20 9", 0), ("0 0.1 -1 0 9 9", 0), ("0 0.1 30 0 40 9", 1), ("0 0.1 9 9 0 0", 0)]
    beyond += [("0 0.1 0 0 9 20", 0), ("0 0.1 0 -1 9 9", 0)]
    for window, context in beyond:
        source.write_text("\n".join([*GOOD[:7], window]))
        with pytest.raises(caffe.CaffeError, match=r"windows\.txt: .*0\.png: window .* leaves the image of 20×20"):
            data_net(window_data(source, f"context_pad: {context}")).forward()
    source.write_text("\n".join(GOOD))
    (tmp_path / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(caffe.CaffeError, match=r"windows\.txt: .*0\.png: its 4 bytes are not an image"):
        data_net(window_data(source)).forward()
    (tmp_path / "0.png").unlink()
    for settings in ("", "cache_images: true"):
        with pytest.raises(caffe.CaffeError, match=r"layer 'data' .*windows\.txt: .*0\.png: No such file or directory"):
            data_net(window_data(source, settings)).forward()


@pytest.mark.parametrize(
    ("settings", "transform", "message"),
    [
        ("", "", "crop_size is not given in transform_param"),
        ("context_pad: 4", "crop_size: 8", "context_pad 4 at both sides leaves nothing of crop_size 8"),
        ("", "crop_size: 4000000000", "at most 2147483647 values"),
        ("fg_fraction: 1.5", "crop_size: 8", "fg_fraction is 1.5; expected 0 to 1"),
        ("", "crop_size: 8 mean_value: 1 mean_value: 2", "has 2 mean_value; expected 1 or 3"),
        ("", 'crop_size: 8 mean_value: 1 mean_file: "x"', "mean_file and mean_value are both given"),
    ],
)
def test_window_settings_that_do_not_fit(scene: tuple, settings: str, transform: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'data' \(WindowData\): .*{message}"):
        data_net(window_data(scene[0], settings, transform))


@pytest.mark.parametrize("layer", [image_data, window_data])
def test_batches_of_nothing(scene: tuple, layer: Callable[..., str]) -> None:
    with pytest.raises(caffe.CaffeError, match=r"layer 'data' .*: batch_size is 0; expected at least 1"):
        data_net(layer(scene[0], batch=0))


def test_a_window_file_that_is_missing(scene: tuple) -> None:
    source, _ = scene
    shutil.move(source, source.with_name("elsewhere"))
    with pytest.raises(caffe.CaffeError, match=r"windows\.txt: No such file or directory"):
        data_net(window_data(source))
