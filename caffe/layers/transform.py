"""Transformer: what a data layer's `transform_param` asks for, done to whole batches of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..context import to_device
from ..errors import CaffeError
from ..io import load_mean
from ..proto.caffe_pb2 import TransformationParameter
from .augmentation import Augmentation, BatchMixing
from .base import Shape


class Transformer:
    """y = (x − mean) · scale of a crop of x, mirrored or not.

    The crop is random in TRAIN and central in TEST; `mirror` turns half of the images over, in both. The mean is one
    image (mean_file), of which the crop's part counts, or one value a channel (mean_value). In TRAIN x is augmented
    first, where that is asked for.

    Parameters
    ----------
    param: the settings.
    training: whether the phase is TRAIN.
    device: where the mean is kept; the images must be there too.
    mixes: whether the layer mixes batches, as `mixup_alpha` and `cutmix_alpha` ask.

    Raises
    ------
    CaffeError: settings that contradict each other, or a mean file that is none.
    """

    def __init__(
        self, param: TransformationParameter, training: bool, device: torch.device, mixes: bool = False
    ) -> None:
        self.crop, self.mirror, self.scale = int(param.crop_size), param.mirror, param.scale
        self.random_crop = training
        if BatchMixing(param).active and not mixes:
            raise CaffeError("mixup_alpha and cutmix_alpha need a Data layer with data_param.classes")
        augmentation = Augmentation(param)
        self.augment = augmentation if training and augmentation.active else None
        self.mean_file = param.mean_file
        if param.mean_file and param.mean_value:
            raise CaffeError("mean_file and mean_value are both given; expected one")
        self.mean = torch.from_numpy(load_mean(param.mean_file)).to(device) if param.mean_file else None
        values = torch.tensor(list(param.mean_value), dtype=torch.float32, device=device)
        self.values = values.view(-1, 1, 1) if len(param.mean_value) else None

    def output_shape(self, shape: Shape) -> Shape:
        """What an image C×H×W becomes. Raises CaffeError for one that the crop or the mean does not fit."""
        channels, height, width = shape
        if self.crop > min(height, width):
            raise CaffeError(f"crop_size {self.crop} is larger than the images of {height}×{width}")
        if self.mean is not None and self.mean.shape != shape:
            raise CaffeError(f"{self.mean_file}: the mean's shape is {tuple(self.mean.shape)}; the images' is {shape}")
        if self.values is not None and len(self.values) not in (1, channels):
            raise CaffeError(f"has {len(self.values)} mean_value; expected 1 or {channels}, one a channel")
        return (channels, self.crop, self.crop) if self.crop else shape

    def __call__(self, images: torch.Tensor | Sequence[torch.Tensor], random: torch.Generator) -> torch.Tensor:
        """Transform a batch.

        Parameters
        ----------
        images: N×C×H×W, or where the sizes differ a list of C×H×W; uint8 or float32.
        random: on the CPU; draws the augmentation, the crops and then the mirroring.

        Returns
        -------
        Float32 N×C×H'×W', a copy.
        """
        if isinstance(images, torch.Tensor):
            self.output_shape(tuple(images.shape[1:]))
            out = self._cut(self.augment(images, random) if self.augment else images, random)
        else:
            if self.augment:
                images = [self.augment(image[None], random)[0] for image in images]
            out = self._cut_each(images, random)
        if self.values is not None:
            out -= self.values
        if self.scale != 1:
            out = out * self.scale
        if self.mirror:
            flipped = to_device(torch.randint(2, (len(out),), generator=random), out.device).bool()
            out = torch.where(flipped[:, None, None, None], out.flip(3), out)
        return out

    def _cut(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """The crops of images of one size, minus the mean image."""
        count, _, height, width = images.shape
        if self.crop and self.random_crop:
            y = to_device(torch.randint(height - self.crop + 1, (count,), generator=random), images.device)
            x = to_device(torch.randint(width - self.crop + 1, (count,), generator=random), images.device)
            # a view of every possible window; indexing it copies just the chosen ones
            windows = images.unfold(2, self.crop, 1).unfold(3, self.crop, 1)
            out = windows[torch.arange(count, device=images.device), :, y, x].float()
            if self.mean is not None:
                out -= self.mean.unfold(1, self.crop, 1).unfold(2, self.crop, 1)[:, y, x].transpose(0, 1)
            return out
        window = self._window((height - self.crop) // 2, (width - self.crop) // 2)
        out = images[window].to(torch.float32, copy=True)
        if self.mean is not None:
            out -= self.mean[window]
        return out

    def _cut_each(self, images: Sequence[torch.Tensor], random: torch.Generator) -> torch.Tensor:
        """The crops of images of several sizes (or kinds: a mean image fits those of one size), minus the mean."""
        crops = []
        for image in images:
            if self.output_shape(tuple(image.shape)) != self.output_shape(tuple(images[0].shape)):
                raise CaffeError(
                    f"images of shape {tuple(image.shape)} and {tuple(images[0].shape)} in one batch; expected one "
                    "shape, or a crop_size and one number of channels"
                )
            margins = [size - self.crop for size in image.shape[1:]]
            if self.random_crop and self.crop:
                y, x = (int(torch.randint(margin + 1, (), generator=random)) for margin in margins)
            else:
                y, x = (margin // 2 for margin in margins)
            window = self._window(y, x)
            crop = image[window].float()
            crops.append(crop if self.mean is None else crop - self.mean[window])
        return torch.stack(crops)

    def _window(self, y: int, x: int) -> tuple[Any, ...]:
        """The crop that begins there, or without a crop the whole image."""
        return (Ellipsis, slice(y, y + self.crop), slice(x, x + self.crop)) if self.crop else (Ellipsis,)
