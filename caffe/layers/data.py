"""Layers without bottoms that feed a net: Input, DummyData, MemoryData, and Data, which reads a database of Datum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from .. import glog as log
from ..context import to_device
from ..errors import CaffeError
from ..filler import FILLERS, fill
from ..io import DatumReader, datum_to_array, planes
from ..proto.caffe_pb2 import Datum, FillerParameter
from .augmentation import BatchMixing
from .base import Layer, RandomLayer, Shape, register
from .prefetch import Batch, PrefetchingLayer, stack, tensors
from .transform import Transformer

# a data set above this is read from the database batch by batch instead of being kept in memory
RESIDENT_BYTES = 4 << 30


@register("Input")
class Input(Layer):
    """Tops that the user fills: `net.blobs[top].data[...] = x`. One shape for all, or one a top."""

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self, shapes: list[Shape]) -> None:
        count = len(self.param.input_param.shape)
        if count not in (0, 1, len(self.param.top)):
            self.error(f"has {count} shapes for {len(self.param.top)} tops; expected 1 or one a top")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        given = [tuple(shape.dim) for shape in self.param.input_param.shape] or [()]
        return given * len(self.param.top) if len(given) == 1 else given


@register("DummyData")
class DummyData(RandomLayer):
    """Tops filled by `data_filler`: anew for each forward pass, but once where the filler is `constant`.

    One filler for all tops, one a top, or none (zeros); one shape for all or one a top, as `shape` or in its older
    form `num`, `channels`, `height`, `width`. What a user writes into a constant top stays there.
    """

    bottoms = (0, 0)
    tops = (1, None)
    differentiable = False
    draws_on_cpu = True  # where the fillers compute

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.dummy_data_param
        legacy = {name: list(getattr(p, name)) for name in ("num", "channels", "height", "width")}
        if any(legacy.values()):
            if p.shape:
                self.error("has `shape` and its older form num, channels, height, width; expected one of the two")
            sizes = [self._one_a_top(name, values) for name, values in legacy.items()]
            self.output_shapes = [tuple(map(int, shape)) for shape in zip(*sizes, strict=True)]
        else:
            self.output_shapes = self._one_a_top("shape", [tuple(shape.dim) for shape in p.shape])
        fillers = list(p.data_filler) or [FillerParameter(type="constant", value=0)]
        self.fillers: list[FillerParameter] = self._one_a_top("data_filler", fillers)
        for filler in self.fillers:
            if filler.type not in FILLERS:
                self.error(f"filler type {filler.type!r} is not known; expected one of {', '.join(sorted(FILLERS))}")
        self.constants: list[torch.Tensor | None] = []
        for top, shape, filler in zip(self.param.top, self.output_shapes, self.fillers, strict=True):
            if filler.type != "constant":
                self.constants.append(None)
                continue
            try:
                self.take(shape)
            except CaffeError as error:
                self.error(f"top {top!r}: {error}")
            self.constants.append(self._fill(shape, filler))

    def _one_a_top(self, name: str, values: list[Any]) -> list[Any]:
        count = len(self.param.top)
        if len(values) not in (1, count):
            self.error(f"has {len(values)} {name} for {count} tops; expected 1 or one a top")
        return values * count if len(values) == 1 else values

    def _fill(self, shape: Shape, filler: FillerParameter) -> torch.Tensor:
        try:
            return fill(shape, filler, self.random).to(self.device)
        except CaffeError as error:
            self.error(str(error))

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return self.output_shapes

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            self._fill(shape, filler) if constant is None else constant
            for shape, filler, constant in zip(self.output_shapes, self.fillers, self.constants, strict=True)
        ]


@register("MemoryData")
class MemoryData(RandomLayer):
    """Batches of `batch_size` rows of arrays that the program hands over, from the first again behind the last.

    Tops: the images, batch_size×channels×height×width, and the labels, batch_size, and as in Caffe batch_size×1×1×1
    once they were read. Arrays come as they are (`set_input_arrays`) or as images that `transform_param` is done to
    (`add_datums`, `add_images`).
    """

    bottoms = (0, 0)
    tops = (2, 2)
    differentiable = False
    draws_on_cpu = True

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.memory_data_param
        self.image_shape = (p.channels, p.height, p.width)
        self.batch_size = p.batch_size
        if min(self.batch_size, *self.image_shape) < 1:
            self.error(
                f"batch_size, channels, height and width are {(self.batch_size, *self.image_shape)}; "
                "expected at least 1 each"
            )
        try:
            self.transform = Transformer(self.param.transform_param, self.training, torch.device("cpu"))
        except CaffeError as error:
            self.error(str(error))
        self.position = 0
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        self._unread = False  # rows that were added and not yet read to their end

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [(self.batch_size, *self.image_shape), (self.batch_size,)]

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Read these rows from now on; pycaffe's, by `net.set_input_arrays`. No transformation is done to them.

        Parameters
        ----------
        data: N×channels×height×width; N is a multiple of batch_size. The array is not copied: what is written into
            it later is read.
        labels: N or N×1×1×1.

        Raises
        ------
        CaffeError: an array that is not float32 in C order, or of another shape.
        """
        for name, array in (("data", data), ("labels", labels)):
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                order = "in C order" if array.flags.c_contiguous else "not in C order"
                self.error(f"set_input_arrays: {name} is {array.dtype}, {order}; expected float32 in C order")
        if data.ndim != 4 or data.shape[1:] != self.image_shape:
            self.error(f"set_input_arrays: data has shape {data.shape}; expected (N, {str(self.image_shape)[1:]}")
        if labels.shape not in ((len(data),), (len(data), 1, 1, 1)):
            self.error(f"set_input_arrays: labels has shape {labels.shape}; expected {(len(data),)}, one a row of data")
        self._check_count("set_input_arrays", len(data))
        if self.param.HasField("transform_param"):
            log.warning("memory_data_layer.cpp:92", "MemoryData does not transform array data")
        self._rows, self.position = (data, labels.reshape(-1)), 0

    def add_datums(self, datums: Sequence[Datum]) -> None:
        """Transform these images and read them, with their labels, from now on; as many as a multiple of batch_size.

        Raises CaffeError for an image that is none or does not fit, and while rows added before are not yet read.
        """
        self._check_unread("add_datums")
        p = self.param.transform_param
        try:
            images = [datum_to_array(datum, p.force_color, p.force_gray) for datum in datums]
        except CaffeError as error:
            self.error(f"add_datums: {error}")
        self._add("add_datums", images, [datum.label for datum in datums])

    def add_images(self, images: Sequence[np.ndarray], labels: Sequence[int]) -> None:
        """The same for images as OpenCV has them: H×W or H×W×C, uint8 or float32, BGR; one label each."""
        self._check_unread("add_images")
        if len(images) != len(labels):
            self.error(f"add_images: {len(images)} images and {len(labels)} labels; expected one label an image")
        for image in images:
            if image.dtype not in (np.uint8, np.float32) or image.ndim not in (2, 3):
                self.error(
                    f"add_images: an image is {image.dtype} of shape {image.shape}; "
                    "expected uint8 or float32, H×W or H×W×C"
                )
        self._add("add_images", [planes(image) for image in images], labels)

    def _add(self, what: str, images: list[np.ndarray], labels: Sequence[int]) -> None:
        self._check_count(what, len(images))
        try:
            for image in images:
                if (shape := self.transform.output_shape(image.shape)) != self.image_shape:
                    raise CaffeError(f"an image has shape {shape} when transformed; expected {self.image_shape}")
            rows = self.transform(tensors(stack(images), torch.device("cpu")), self.random)
        except CaffeError as error:
            self.error(f"{what}: {error}")
        self._rows, self.position = (rows.numpy(), np.array(labels, np.float32)), 0
        self._unread = True

    def _check_unread(self, what: str) -> None:
        if self._unread:
            self.error(f"{what}: the rows that were added before are not yet read to their end")

    def _check_count(self, what: str, count: int) -> None:
        if not count or count % self.batch_size:
            self.error(f"{what}: has {count} rows; expected a multiple of batch_size {self.batch_size}")

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._rows is None:
            self.error("has no data yet; expected net.set_input_arrays(data, labels) before the forward pass")
        start, stop = self.position, self.position + self.batch_size
        self.position = stop % len(self._rows[0])
        self._unread = self._unread and self.position > 0
        data, labels = (torch.tensor(array[start:stop], device=self.device) for array in self._rows)
        return [data, labels.view(-1, 1, 1, 1)]

    def state(self) -> dict[str, Any]:
        return {"position": self.position, **super().state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.position = int(state.get("position", 0))
        if self._rows is not None:
            self.position %= len(self._rows[0])


@register("Data")
class Data(PrefetchingLayer[Batch]):
    """Batches of `batch_size` records of an LMDB or LevelDB, in its order, from the first again behind the last.

    Tops: the images, batch_size×C×H×W after `transform_param`, and if asked for the labels, batch_size. The whole
    data set is decoded once and kept on the net's device, where it fits; else batches are read ahead. With
    `rand_skip` the first batch begins at one of the first so many records, at random. Images of several sizes need
    a crop_size, or a batch_size of 1, and then the top changes its shape with them.

    Beyond Caffe, for a data set that fits: `shuffle` reads it in another order each time through, `balanced` draws all
    labels equally often, and with `classes` the labels are batch_size×classes probabilities, which `mixup_alpha` and
    `cutmix_alpha` need.
    """

    tops = (1, 2)

    def setup(self, shapes: list[Shape]) -> None:
        p, transform = self.param.data_param, self.param.transform_param
        if p.batch_size < 1:
            self.error(f"batch_size is {p.batch_size}; expected at least 1")
        try:
            color = transform.force_color or p.force_encoded_color
            self.reader = DatumReader(p.source, color, transform.force_gray, p.backend)
            if p.rand_skip:
                self.position = int(torch.randint(p.rand_skip, (), generator=self.random)) % len(self)
            first, _ = self.reader.read(self.position)
            self.images: torch.Tensor | None = None
            resident = self.reader.read_all() if first.nbytes * len(self.reader) <= RESIDENT_BYTES else None
            if resident is not None:
                self.images = torch.from_numpy(resident[0]).to(self.device)
                self.labels = torch.from_numpy(resident[1]).to(self.device, torch.float32)
            self.transform = Transformer(transform, self.training, self.device, mixes=True)
            self.output_shape = (p.batch_size, *self.transform.output_shape(first.shape))
            mixing = BatchMixing(transform)
            self._set_up_additions(mixing)
        except CaffeError as error:
            self.error(str(error))

    def _set_up_additions(self, mixing: BatchMixing) -> None:
        """What `shuffle`, `balanced`, `classes` and the mixing of batches need. Raises without the layer's name."""
        p = self.param.data_param
        for name in ("shuffle", "balanced", "classes"):
            if getattr(p, name) and self.images is None:
                raise CaffeError(
                    f"{name} needs a data set of one image size and at most {RESIDENT_BYTES >> 30} GiB; "
                    f"{p.source} is none"
                )
        if p.shuffle and p.balanced:
            raise CaffeError("shuffle and balanced are both set; expected one")
        if mixing.active and not (p.classes and len(self.param.top) == 2):
            raise CaffeError("mixup_alpha and cutmix_alpha need data_param.classes and a top for the labels")
        self.mix = mixing if mixing.active and self.training else None
        self.chances: torch.Tensor | None = None
        if p.balanced:
            _, classes, counts = torch.unique(self.labels.cpu(), return_inverse=True, return_counts=True)
            self.chances = 1 / counts[classes].double()
        if p.classes:
            self.labels = torch.from_numpy(self.reader.soft_labels(p.classes)).to(self.device)
        self._round, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.reader)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        batch, classes = self.output_shape[0], self.param.data_param.classes
        return [self.output_shape, (batch, classes) if classes else (batch,)][: len(self.param.top)]

    def batches(self, position: int) -> Iterator[Batch]:
        records = self._records(position)
        while True:
            raw = list(islice(records, self.param.data_param.batch_size))
            decoded = self.decode_all(lambda record: self.reader.decode(*record), raw)
            yield stack([image for image, _ in decoded]), np.array([label for _, label in decoded], np.float32)

    def _records(self, position: int) -> Iterator[tuple[Any, Any]]:
        yield from islice(self.reader.items(), position, None)
        while True:
            yield from self.reader.items()

    def _shuffled(self, start: int) -> torch.Tensor:
        """The numbers of the records at places `start` and on, in an order that each time through has anew."""
        rounds, places = np.divmod(np.arange(start, start + self.param.data_param.batch_size), len(self))
        parts = [self._order_of(number)[places[rounds == number]] for number in range(rounds[0], rounds[-1] + 1)]
        return torch.from_numpy(np.concatenate(parts))

    def _order_of(self, round_number: int) -> np.ndarray:
        """The numbers of all records in the order of that time through."""
        if round_number != self._round:
            self._order = np.random.default_rng([self.seed, round_number]).permutation(len(self))
            self._round = round_number
        return self._order

    def _rows(self, start: int) -> torch.Tensor | slice:
        """Which of the records that are kept in memory make the batch."""
        batch = self.param.data_param.batch_size
        if self.chances is not None:
            drawn = torch.multinomial(self.chances, batch, replacement=True, generator=self.random)
            return to_device(drawn, self.device)
        if self.param.data_param.shuffle:
            return to_device(self._shuffled(start), self.device)
        if start + batch <= len(self):
            return slice(start, start + batch)
        return torch.arange(start, start + batch, device=self.device) % len(self)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        start = self.position
        images: torch.Tensor | list[torch.Tensor]
        if self.images is None:
            read, numbers = self.next_batch()
            images, labels = tensors(read, self.device), to_device(torch.from_numpy(numbers), self.device)
        else:
            rows = self._rows(start)
            images, labels = self.images[rows], self.labels[rows]
        self.position = self._wrapped(start + self.param.data_param.batch_size)
        try:
            # copies: what a user writes into the tops must not reach the data set that is kept here
            data, labels = self.transform(images, self.random), labels.clone()
            if self.mix:
                data, labels = self.mix(data, labels, self.random)
        except CaffeError as error:
            self.error(str(error))
        return [data, labels][: len(self.param.top)]

    def _wrapped(self, position: int) -> int:
        """A position within the data set; a shuffled one counts on, since its order depends on the times through."""
        return position if self.param.data_param.shuffle else position % len(self)

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.position = self._wrapped(self.position)
        self._round = -1  # the seed may be another
