"""Data layers that read image files: ImageData, by a list of files and labels, and WindowData, windows of images."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, NoReturn

import cv2
import numpy as np
import torch

from .. import glog as log
from ..blob import check_shape
from ..context import to_device
from ..errors import CaffeError
from ..files import read_bytes, read_file
from ..io import decode_image, load_mean, planes
from .base import Shape, register
from .prefetch import Batch, PrefetchingLayer, stack, tensors
from .transform import Transformer


class Line(NamedTuple):
    """A line of an image list: its number in the file, from 1, the image file and the label."""

    number: int
    file: str
    label: int


def read_image_list(source: str) -> list[Line]:
    """The lines `FILE LABEL` of a list; FILE may hold spaces. Empty lines do not count.

    Raises CaffeError for a list that cannot be read or is empty, or naming the line without a whole number as label.
    """
    lines = []
    for number, text in enumerate(os.fsdecode(read_file(source)).split("\n"), 1):
        if not text.strip():
            continue
        file, label = [*text.strip().rsplit(None, 1), ""][:2]
        # Caffe takes a label that is no number for 0, and a line without a label for a file name
        if not re.fullmatch(r"[+-]?\d{1,10}", label):
            raise CaffeError(f"{source}, line {number}: {text.strip()!r}; expected FILE LABEL, LABEL a whole number")
        lines.append(Line(number, file, int(label)))
    if not lines:
        raise CaffeError(f"{source}: lists no image; expected FILE LABEL a line")
    return lines


@register("ImageData")
class ImageData(PrefetchingLayer[Batch]):
    """Batches of `batch_size` images from the files of a list, in its order or, with `shuffle`, in another each time.

    Tops: the images, batch_size×C×H×W (blue, green, red, or grey without `is_color`), resized to `new_height` and
    `new_width` where given and then transformed by `transform_param`, and the labels, batch_size. A file's name has
    `root_folder` right in front of it. With `rand_skip` the first batch begins at one of the first so many lines, at
    random. Images of several sizes need a new size, a crop_size or a batch_size of 1; then the top changes its shape.
    """

    tops = (2, 2)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.image_data_param
        if (p.new_height > 0) != (p.new_width > 0):
            self.error(f"new_height is {p.new_height} and new_width {p.new_width}; expected both or neither")
        if 3 * p.new_height * p.new_width > self.room:
            self.error(
                f"images of new_height {p.new_height} and new_width {p.new_width} take more than the {self.room} bytes "
                "left of what a net may take (caffe.set_memory_limit)"
            )
        if p.batch_size < 1:
            self.error(f"batch_size is {p.batch_size}; expected at least 1")
        try:
            log.info("image_data_layer.cpp:38", f"Opening file {p.source}")
            self.lines = read_image_list(p.source)
            log.info("image_data_layer.cpp:63", f"A total of {len(self.lines)} images.")
            if p.rand_skip:
                self.position = int(torch.randint(p.rand_skip, (), generator=self.random))
                log.info("image_data_layer.cpp:70", f"Skipping first {self.position} data points.")
                if self.position >= len(self.lines):
                    raise CaffeError(f"{p.source}: lists {len(self.lines)} images; rand_skip asks to skip more")
            self.transform = Transformer(self.param.transform_param, self.training, self.device)
            first = self._read(next(self._from(self.position)))
            self.output_shape = (p.batch_size, *self.transform.output_shape(first.shape))
        except CaffeError as error:
            self.error(str(error))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.lines)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [self.output_shape, (self.output_shape[0],)]

    def _from(self, position: int) -> Iterator[Line]:
        """The lines from `position` on, without end; the order of each round depends on the seed and its number."""
        while True:
            round_number, first = divmod(position, len(self.lines))
            order = np.arange(len(self.lines))
            if self.param.image_data_param.shuffle:
                order = np.random.RandomState([self.seed, round_number % 2**32]).permutation(order)
            for index in order[first:]:
                yield self.lines[index]
            position += len(self.lines) - first

    def _read(self, line: Line) -> np.ndarray:
        """The image C×H×W of a line, resized. Raises CaffeError naming the list, the line and the file."""
        p = self.param.image_data_param
        flags = cv2.IMREAD_COLOR if p.is_color else cv2.IMREAD_GRAYSCALE
        file = p.root_folder + line.file
        try:
            image = decode_image(read_bytes(file), flags)
            return planes(cv2.resize(image, (p.new_width, p.new_height)) if p.new_width else image)
        except (CaffeError, cv2.error) as error:
            raise CaffeError(f"{p.source}, line {line.number}: {file}: {error}") from None

    def batches(self, position: int) -> Iterator[Batch]:
        p = self.param.image_data_param
        lines = self._from(position)
        while True:
            batch = list(islice(lines, p.batch_size))
            images = self.decode_all(self._read, batch)
            for line, image in zip(batch, images, strict=True):
                self._check(line, image.shape, batch[0], images[0].shape)
            yield stack(images), np.array([line.label for line in batch], np.float32)

    def _check(self, line: Line, shape: Shape, first: Line, first_shape: Shape) -> None:
        """CaffeError for an image that the transformation or the batch does not take."""
        where = f"{self.param.image_data_param.source}, line {line.number}: {line.file}"
        try:
            fits = self.transform.output_shape(shape) == self.transform.output_shape(first_shape)
        except CaffeError as error:
            raise CaffeError(f"{where}: {error}") from None
        if not fits:
            raise CaffeError(
                f"{where} has shape {shape}, and {first.file}, line {first.number}, in the same batch {first_shape}; "
                "expected one size (new_height and new_width, or crop_size)"
            )

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        images, labels = self.next_batch()
        self.position += self.param.image_data_param.batch_size
        data = self.transform(tensors(images, self.device), self.random)
        return [data, to_device(torch.from_numpy(labels), self.device)]


# Window files


class Window(NamedTuple):
    """A window of an image: the image's number, the label (0: background), and the corners, both within the window."""

    image: int
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


WINDOW_LINE = r"[+-]?\d+\s+\S+(\s+[+-]?\d+){4}"  # LABEL OVERLAP X1 Y1 X2 Y2


class WindowFile:
    """The images and windows of an R-CNN window file.

    For each image, on lines of their own: `# NUMBER` (they count from 0), its path, its channels, its height, its
    width, the number of its windows, and each window as `LABEL OVERLAP X1 Y1 X2 Y2`.

    Parameters
    ----------
    source: the file.
    root: put right in front of each path.
    fg_threshold: the overlap from which on a window is an object, and its label is above 0.
    bg_threshold: the overlap below which a window is background; what lies between the two is not used.

    Attributes
    ----------
    images: the paths.
    foreground, background: the windows of each kind, as rows of `Window`, int32.

    Raises
    ------
    CaffeError: naming the line that is not as above.
    """

    def __init__(self, source: str, root: str, fg_threshold: float, bg_threshold: float) -> None:
        self.source, self.root = source, root
        self.thresholds = np.float32(fg_threshold), np.float32(bg_threshold)
        self.images: list[str] = []
        found: list[tuple[np.ndarray, np.ndarray]] = []
        texts = os.fsdecode(read_file(source)).split("\n")
        lines = ((number, text.strip()) for number, text in enumerate(texts, 1) if text.strip())
        for header in lines:
            found.append(self._read_image(header, lines))
        if not self.images:
            raise CaffeError(f"{source}: the window file is empty")
        self.foreground, self.background = (np.concatenate(rows) for rows in zip(*found, strict=True))

    def _read_image(self, header: tuple[int, str], lines: Iterator[tuple[int, str]]) -> tuple[np.ndarray, np.ndarray]:
        """An image's windows that are objects and those that are background."""
        number, text = header
        if text.split() != ["#", str(len(self.images))]:
            self._fail(number, text, f"'# {len(self.images)}', the next image's number")
        number, path = next(lines, (number, ""))
        self.images.append(self.root + path)
        channels, _, _, count = (
            self._count(next(lines, (number, "")), what)
            for what in ("number of channels", "height", "width", "number of windows")
        )
        if channels != 3:
            raise CaffeError(f"{self.source}, line {number}: {path} has {channels} channels; images are read with 3")
        block = list(islice(lines, count))
        if len(block) < count:
            raise CaffeError(f"{self.source}: ends after {len(block)} of the {count} windows of {path}")
        values = self._windows(block) if block else np.empty((0, 6))
        overlap = values[:, 1].astype(np.float32)
        is_object = overlap >= self.thresholds[0]
        is_background = ~is_object & (overlap < self.thresholds[1])
        if (is_object & (values[:, 0] <= 0)).any():
            number, text = block[int(np.argmax(is_object & (values[:, 0] <= 0)))]
            self._fail(number, text, "a label above 0, since the window overlaps an object")
        values[is_background, 0] = 0
        values[:, 1] = values[:, 0]
        values[:, 0] = len(self.images) - 1
        rows = values.astype(np.int32)
        return rows[is_object], rows[is_background]

    def _count(self, line: tuple[int, str], what: str) -> int:
        number, text = line
        if not re.fullmatch(r"\d{1,9}", text):
            self._fail(number, text, f"the image's {what}")
        return int(text)

    def _windows(self, block: list[tuple[int, str]]) -> np.ndarray:
        """The numbers of an image's window lines, N×6."""
        try:
            values = np.loadtxt([text for _, text in block], np.float64, comments=None, ndmin=2)
        except ValueError:
            values = np.empty((0, 0))
        whole = values[:, [0, 2, 3, 4, 5]] if values.shape == (len(block), 6) else np.array([np.nan])
        if not ((whole == np.trunc(whole)) & (np.abs(whole) < 2**31)).all():
            number, text = next((line for line in block if not re.fullmatch(WINDOW_LINE, line[1])), block[0])
            self._fail(number, text, "LABEL OVERLAP X1 Y1 X2 Y2, whole numbers all but OVERLAP")
        return values

    def _fail(self, number: int, text: str, expected: str) -> NoReturn:
        raise CaffeError(f"{self.source}, line {number}: {text!r}; expected {expected}")


def nearest(value: float | np.float32) -> int:
    """The nearest whole number, of two the one farther from 0, as C rounds."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))


class Extent(NamedTuple):
    """Where a window lies along an axis of its image, and where it goes along the same axis of the crop."""

    first: int  # first pixel of the window
    last: int  # last pixel
    size: int  # pixels of the crop that it fills
    before: int  # pixels of the crop before them
    after: int  # and behind them


@register("WindowData")
class WindowData(PrefetchingLayer[tuple[np.ndarray, np.ndarray]]):
    """Batches of windows drawn from a window file, `fg_fraction` of them objects, the background's first.

    Tops: the windows, batch_size×3×crop_size×crop_size, each warped to that square (`crop_mode: "square"`: enlarged
    to a square first; any other mode is `warp`), with `context_pad` pixels of the image around it, mirrored or not,
    (x − mean) · scale; what lies beyond the image is 0. And the labels, batch_size; 0 is background.

    crop_size, mirror and the mean (of which the middle counts) are `transform_param`'s, but the scale that counts is
    `window_data_param`'s: so it is in Caffe, which on reading a file moves it away from there.
    """

    tops = (2, 2)

    def setup(self, shapes: list[Shape]) -> None:
        p, t = self.param.window_data_param, self.param.transform_param
        self.crop = int(t.crop_size)
        if self.crop < 1:
            self.error("crop_size is not given in transform_param; expected the side of the windows")
        if p.batch_size < 1:
            self.error(f"batch_size is {p.batch_size}; expected at least 1")
        if 2 * p.context_pad >= self.crop:
            self.error(f"context_pad {p.context_pad} at both sides leaves nothing of crop_size {self.crop}")
        if t.scale != 1:
            log.warning("window_data_layer.cpp:270", "WindowData does not use transform_param's scale")
        if not 0 <= p.fg_fraction <= 1:
            self.error(f"fg_fraction is {p.fg_fraction}; expected 0 to 1")
        self.objects = min(int(np.float32(p.batch_size) * np.float32(p.fg_fraction)), p.batch_size)
        try:
            check_shape((p.batch_size, 3, self.crop, self.crop))
            self.file = WindowFile(p.source, p.root_folder, p.fg_threshold, p.bg_threshold)
            for needed, windows, what in (
                (self.objects, self.file.foreground, f"overlaps an object by fg_threshold {p.fg_threshold:g} or more"),
                (p.batch_size - self.objects, self.file.background, f"lies below bg_threshold {p.bg_threshold:g}"),
            ):
                if needed and not len(windows):
                    raise CaffeError(f"{p.source}: no window {what}; a batch needs {needed}")
            self._read_mean()
            log.info("window_data_layer.cpp:152", f"Number of images: {len(self.file.images)}")
            self._cache = [self._bytes(i) for i in range(len(self.file.images))] if p.cache_images else None
        except CaffeError as error:
            self.error(str(error))

    def _read_mean(self) -> None:
        """Make `mean`, what is subtracted from a crop: 3×crop_size×crop_size."""
        t = self.param.transform_param
        if t.mean_file and t.mean_value:
            raise CaffeError("mean_file and mean_value are both given; expected one")
        if len(t.mean_value) not in (0, 1, 3):
            raise CaffeError(f"has {len(t.mean_value)} mean_value; expected 1 or 3, one a channel")
        self.mean = np.array(list(t.mean_value) or [0], np.float32).reshape(-1, 1, 1)
        if t.mean_file:
            mean = load_mean(t.mean_file)
            offset = (mean.shape[2] - self.crop) // 2  # Caffe takes it for both axes
            if len(mean) != 3 or offset < 0 or mean.shape[1] < offset + self.crop:
                raise CaffeError(
                    f"{t.mean_file}: the mean's shape is {mean.shape}; the crops' is 3×{self.crop}×{self.crop}"
                )
            self.mean = mean[:, offset : offset + self.crop, offset : offset + self.crop]
        self.mean = np.broadcast_to(self.mean, (3, self.crop, self.crop))

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        batch = self.param.window_data_param.batch_size
        return [(batch, 3, self.crop, self.crop), (batch,)]

    def _bytes(self, image: int) -> bytes:
        try:
            return read_bytes(self.file.images[image])
        except CaffeError as error:
            raise CaffeError(f"{self.file.source}: {self.file.images[image]}: {error}") from None

    def _draw(self, position: int) -> list[tuple[Window, bool]]:
        """The windows of the batch at `position`, and whether each is mirrored."""
        batch = self.param.window_data_param.batch_size
        random = np.random.RandomState([self.seed, position // batch % 2**32])
        drawn = [
            windows[random.randint(len(windows), size=count)]
            for windows, count in (
                (self.file.background, batch - self.objects),
                (self.file.foreground, self.objects),
            )
            if count
        ]
        mirrored = random.randint(2, size=batch) > 0
        if not self.param.transform_param.mirror:
            mirrored[:] = False
        return [(Window(*row), bool(flip)) for row, flip in zip(np.concatenate(drawn).tolist(), mirrored, strict=True)]

    def batches(self, position: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            drawn = self._draw(position)
            crops = self.decode_all(lambda item: self._crop(*item), drawn)
            yield np.stack(crops), np.array([window.label for window, _ in drawn], np.float32)
            position += len(drawn)

    def _crop(self, window: Window, mirrored: bool) -> np.ndarray:
        """A window as it goes into the top, float32 3×crop_size×crop_size."""
        p = self.param.window_data_param
        where = f"{self.file.source}: {self.file.images[window.image]}"
        data = self._bytes(window.image) if self._cache is None else self._cache[window.image]
        try:
            image = decode_image(data, cv2.IMREAD_COLOR)
        except CaffeError as error:
            raise CaffeError(f"{where}: {error}") from None
        height, width = image.shape[:2]
        columns = Extent(window.x1, window.x2, self.crop, 0, 0)
        rows = Extent(window.y1, window.y2, self.crop, 0, 0)
        if p.context_pad or p.crop_mode == "square":
            half_width, half_height = ((extent.last - extent.first + 1) / 2 for extent in (columns, rows))
            if p.crop_mode == "square":
                half_width = half_height = max(half_width, half_height)
            columns = self._widen(columns, half_width, width)
            rows = self._widen(rows, half_height, height)
        if not (0 <= columns.first <= columns.last < width and 0 <= rows.first <= rows.last < height):
            raise CaffeError(f"{where}: window {tuple(window[2:])} leaves the image of {width}×{height}")
        left, top = columns.after if mirrored else columns.before, rows.before
        size = min(columns.size, self.crop - left), min(rows.size, self.crop - top)
        if min(size) < 1:
            raise CaffeError(f"{where}: of window {tuple(window[2:])} too little lies in the image of {width}×{height}")
        cut = cv2.resize(image[rows.first : rows.last + 1, columns.first : columns.last + 1], size)
        if mirrored:
            cut = cut[:, ::-1]
        inside = (slice(None), slice(top, top + size[1]), slice(left, left + size[0]))
        crop = np.zeros((3, self.crop, self.crop), np.float32)
        crop[inside] = (cut.transpose(2, 0, 1) - self.mean[inside]) * np.float32(p.scale)
        return crop

    def _widen(self, extent: Extent, half: float, limit: int) -> Extent:
        """A window of half that length around its middle, with the context around it, cut off at the image's border.

        Caffe computes in float32, and so does this: its rounding decides about a pixel.
        """
        context = np.float32(self.crop) / np.float32(self.crop - 2 * self.param.window_data_param.context_pad)
        centre = np.float32(extent.first) + np.float32((extent.last - extent.first + 1) / 2)
        first = nearest(centre - np.float32(half) * context)
        last = nearest(centre + np.float32(half) * context)
        scale = np.float32(self.crop) / np.float32(max(last - first + 1, 1))
        before, after = max(0, -first), max(0, last - limit + 1)
        first, last = first + before, last - after
        size, before, after = (nearest(np.float32(length) * scale) for length in (last - first + 1, before, after))
        return Extent(first, last, size, before, after)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        batch = self.next_batch()
        self.position += self.param.window_data_param.batch_size
        return [torch.from_numpy(array).to(self.device) for array in batch]
