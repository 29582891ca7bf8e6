"""Layers without bottoms that feed a net: Input, and Data, which reads an LMDB of Datum records."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import CaffeError
from ..io import DatumReader, load_mean
from ..proto.caffe_pb2 import DataParameter, TransformationParameter
from .base import Layer, RandomLayer, Shape, register

# a data set above this is read from the LMDB batch by batch instead of being kept in memory
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


class Transformer:
    """What `transform_param` asks for, on whole batches: crop and mirror, minus the mean, times the scale.

    y = (x − mean) · scale, then crop (random in TRAIN, centre in TEST), then mirror (TRAIN or TEST, half of the
    images). The mean is one image (mean_file) or one value a channel (mean_value).
    """

    def __init__(self, layer: Layer, param: TransformationParameter, shape: Shape, device: torch.device) -> None:
        self.crop, self.mirror, self.scale = int(param.crop_size), param.mirror, param.scale
        self.random_crop = layer.training
        channels, height, width = shape
        if self.crop > min(height, width):
            layer.error(f"crop_size {self.crop} is larger than the images of {height}×{width}")
        self.mean: torch.Tensor | None = None
        if param.mean_file and param.mean_value:
            layer.error("mean_file and mean_value are both given; expected one")
        if param.mean_file:
            try:
                mean = load_mean(param.mean_file)
            except CaffeError as error:
                layer.error(str(error))
            if mean.shape != shape:
                layer.error(f"{param.mean_file}: the mean's shape is {mean.shape}; the images' is {shape}")
            self.mean = torch.from_numpy(mean).to(device)
        elif param.mean_value:
            if len(param.mean_value) not in (1, channels):
                layer.error(f"has {len(param.mean_value)} mean_value; expected 1 or {channels}, one a channel")
            values = torch.tensor(list(param.mean_value), device=device)
            self.mean = values.view(-1, 1, 1).expand(shape).contiguous()

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.crop, self.crop) if self.crop else shape

    def __call__(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """N×C×H×W of uint8 or float32 → float32 N×C×H'×W'."""
        count, _, height, width = images.shape
        if self.crop and self.random_crop:
            y = torch.randint(height - self.crop + 1, (count,), generator=random).to(images.device)
            x = torch.randint(width - self.crop + 1, (count,), generator=random).to(images.device)
            # a view of every possible window; indexing it copies just the chosen ones
            windows = images.unfold(2, self.crop, 1).unfold(3, self.crop, 1)
            out = windows[torch.arange(count, device=images.device), :, y, x].float()
            if self.mean is not None:
                out -= self.mean.unfold(1, self.crop, 1).unfold(2, self.crop, 1)[:, y, x].transpose(0, 1)
        else:
            window: tuple[Any, ...] = (Ellipsis,)
            if self.crop:
                top, left = (height - self.crop) // 2, (width - self.crop) // 2
                window = (Ellipsis, slice(top, top + self.crop), slice(left, left + self.crop))
            out = images[window].to(torch.float32, copy=True)
            if self.mean is not None:
                out -= self.mean[window]
        if self.scale != 1:
            out = out * self.scale
        if self.mirror:
            flipped = torch.randint(2, (count,), generator=random).to(images.device).bool()
            out = torch.where(flipped[:, None, None, None], out.flip(3), out)
        return out


@register("Data")
class Data(RandomLayer):
    """Batches of `batch_size` records of an LMDB, in its order, from the first again behind the last.

    Tops: the images, batch_size×C×H×W after `transform_param`, and if asked for the labels, batch_size. The whole
    data set is decoded once and kept on the net's device, where it fits.
    """

    bottoms = (0, 0)
    tops = (1, 2)
    differentiable = False

    @property
    def random_device(self) -> torch.device:
        return torch.device("cpu")  # a few numbers a batch, the same on every device

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.data_param
        if p.backend != DataParameter.LMDB:
            self.error("backend LEVELDB is not supported; expected `backend: LMDB` (convert_imageset writes one)")
        if p.batch_size < 1:
            self.error(f"batch_size is {p.batch_size}; expected at least 1")
        transform = self.param.transform_param
        try:
            self.reader = DatumReader(p.source, transform.force_color or p.force_encoded_color, transform.force_gray)
            first, _ = self.reader.read(0)
            self.images: torch.Tensor | None = None
            resident = self.reader.read_all() if first.nbytes * len(self.reader) <= RESIDENT_BYTES else None
            if resident is not None:
                self.images = torch.from_numpy(resident[0]).to(self.device)
                self.labels = torch.from_numpy(resident[1]).to(self.device, torch.float32)
        except CaffeError as error:
            self.error(str(error))
        self.position = 0
        self.transform = Transformer(self, transform, first.shape, self.device)
        self.output_shape = (p.batch_size, *self.transform.output_shape(first.shape))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.reader)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [self.output_shape, (self.output_shape[0],)][: len(self.param.top)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        batch, start = self.param.data_param.batch_size, self.position
        self.position = (start + batch) % len(self)
        if self.images is None:
            images, labels = self._read(start, batch)
        elif start + batch <= len(self):
            images, labels = self.images[start : start + batch], self.labels[start : start + batch]
        else:
            rows = torch.arange(start, start + batch, device=self.device) % len(self)
            images, labels = self.images[rows], self.labels[rows]
        # copies: what a user writes into the tops must not reach the data set that is kept here
        return [self.transform(images, self.random), labels.clone()][: len(self.param.top)]

    def _read(self, start: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch straight from the LMDB, for a data set that is too large to keep."""
        records = [self.reader.read((start + i) % len(self)) for i in range(batch)]
        for image, _ in records:
            if image.shape != records[0][0].shape:
                self.error(f"images of shape {image.shape} and {records[0][0].shape} in one batch; expected one shape")
        images = torch.from_numpy(np.stack([image for image, _ in records])).to(self.device)
        return images, torch.tensor([float(label) for _, label in records], device=self.device)

    def state(self) -> dict[str, Any]:
        return {"position": self.position, **super().state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.position = int(state["position"]) % len(self)
