"""Augmentation: what a data layer's `transform_param` changes at random in training images, for whole batches.

All numbers are drawn from the layer's generator, on the CPU, and are the same on every device; what is done with them
is done on the images' device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..context import to_device
from ..errors import CaffeError
from ..proto.caffe_pb2 import TransformationParameter

LOWEST_ASPECT = 0.3  # of an erased rectangle, height over width; the highest is its inverse (Zhong et al. 2020)


def _check_share(param: TransformationParameter, name: str, most: float) -> None:
    value = getattr(param, name)
    if not 0 <= value <= most:
        raise CaffeError(f"{name} is {value:g}; expected 0 to {most:g}")


class Augmentation:
    """One random affine map, grey-level change and erased rectangle an image, before the crop and the mean.

    Parameters
    ----------
    param: the settings `random_*` and `erasing_*`, whose comments in caffe.proto say their formulas.

    Attributes
    ----------
    active: whether any of them is asked for.

    Raises
    ------
    CaffeError: naming a setting out of its range.
    """

    def __init__(self, param: TransformationParameter) -> None:
        for name, most in (("random_rotation", 180), ("random_scale", 0.9), ("random_shift", 1)):
            _check_share(param, name, most)
        for name in ("random_contrast", "random_brightness", "random_erasing", "erasing_min_area", "erasing_max_area"):
            _check_share(param, name, 1)
        if param.erasing_min_area > param.erasing_max_area:
            raise CaffeError(
                f"erasing_min_area is {param.erasing_min_area:g}; expected at most erasing_max_area, "
                f"{param.erasing_max_area:g}"
            )
        self.rotation, self.scale, self.shift = param.random_rotation, param.random_scale, param.random_shift
        self.contrast, self.brightness = param.random_contrast, param.random_brightness
        self.erasing, self.areas = param.random_erasing, (param.erasing_min_area, param.erasing_max_area)
        self.active = any((self.rotation, self.scale, self.shift, self.contrast, self.brightness, self.erasing))

    def __call__(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Augment a batch.

        Parameters
        ----------
        images: N×C×H×W, 0..255, uint8 or float32.
        random: on the CPU.

        Returns
        -------
        float32 N×C×H×W, a copy.
        """
        out = images.to(torch.float32, copy=True)
        if self.rotation or self.scale or self.shift:
            out = self._warp(out, random)
        if self.contrast or self.brightness:
            out = self._relight(out, random)
        if self.erasing:
            out = self._erase(out, random)
        return out

    def _warp(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Turn, enlarge and move each image; bilinear, with the border's values beyond it."""
        count, _, height, width = images.shape
        turn, zoom, right, down = 2 * torch.rand((4, count), generator=random) - 1
        angle, factor = turn * math.radians(self.rotation), 1 + zoom * self.scale
        cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
        # from a place in the result to its place in the image, both -1..1 along each side: 2 is one side
        right, down = 2 * self.shift * right, 2 * self.shift * down
        row_x = torch.stack([cos, sin * (height / width)], 1)
        row_y = torch.stack([-sin * (width / height), cos], 1)
        matrix = torch.stack([row_x, row_y], 1)
        moved = -matrix @ torch.stack([right, down], 1)[..., None]
        theta = to_device(torch.cat([matrix, moved], 2), images.device)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _relight(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Stretch each image's grey levels about their mean, and move them."""
        stretch, move = to_device(2 * torch.rand((2, len(images), 1, 1, 1), generator=random) - 1, images.device)
        means = images.mean((1, 2, 3), keepdim=True)
        factor, offset = 1 + stretch * self.contrast, means + move * (255 * self.brightness)
        return ((images - means) * factor + offset).clamp_(0, 255)

    def _erase(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Fill a rectangle of some images with noise."""
        count, channels, height, width = images.shape
        chance, area, aspect, top, left = torch.rand((5, count), generator=random)
        rows = torch.nonzero(chance < self.erasing).flatten()
        if not len(rows):
            return images
        least, most = self.areas
        sizes = (least + area[rows] * (most - least)) * (height * width)
        aspects = torch.exp((2 * aspect[rows] - 1) * -math.log(LOWEST_ASPECT))
        aspects = aspects.clamp(sizes / width**2, height**2 / sizes)  # where a side would be longer than the image's
        heights = (sizes * aspects).sqrt().round().clamp(1, height)
        widths = (sizes / aspects).sqrt().round().clamp(1, width)
        inside_y = _between(top[rows] * (height - heights + 1), heights, height)
        inside_x = _between(left[rows] * (width - widths + 1), widths, width)
        noise = 255 * torch.rand((len(rows), channels, height, width), generator=random)
        inside = to_device(inside_y[:, None, :, None] & inside_x[:, None, None, :], images.device)
        rows = to_device(rows, images.device)
        images[rows] = torch.where(inside, to_device(noise, images.device), images[rows])
        return images


def _between(start: torch.Tensor, length: torch.Tensor, size: int) -> torch.Tensor:
    """Which of 0..size - 1 lie in the `length` places from the whole part of `start` on: N×size, bool."""
    first = start.floor()[:, None]
    places = torch.arange(size)
    return (places >= first) & (places < first + length[:, None])


class BatchMixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): a batch and its labels mixed with another order of both.

    Parameters
    ----------
    param: `mixup_alpha` and `cutmix_alpha`; where both are above 0 each batch has one of the two, equally likely.

    Attributes
    ----------
    active: whether one of them is above 0.

    Raises
    ------
    CaffeError: an alpha below 0.
    """

    def __init__(self, param: TransformationParameter) -> None:
        self.mixup, self.cutmix = param.mixup_alpha, param.cutmix_alpha
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(param, name) < math.inf:
                raise CaffeError(f"{name} is {getattr(param, name):g}; expected 0 or more")
        self.active = bool(self.mixup or self.cutmix)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mixed images (N×C×H×W) and labels (N×K, rows of sum 1)."""
        # numpy's generator, since torch's Beta distribution takes none
        numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=random)))
        other = to_device(torch.from_numpy(numbers.permutation(len(images))), images.device)
        cut = bool(self.cutmix) and (not self.mixup or numbers.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(numbers.beta(alpha, alpha))  # of the image itself
        if not cut:
            images = share * images + (1 - share) * images[other]
        else:
            height, width = images.shape[2:]
            y, x = numbers.integers(height), numbers.integers(width)
            half_y, half_x = (side * math.sqrt(1 - share) / 2 for side in (height, width))
            top, bottom = max(round(y - half_y), 0), min(round(y + half_y), height)
            left, right = max(round(x - half_x), 0), min(round(x + half_x), width)
            images = images.clone()
            images[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        return images, share * labels + (1 - share) * labels[other]
