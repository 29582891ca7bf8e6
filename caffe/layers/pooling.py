"""Pooling layers, over windows of N×C×H×W images: maximum, average, a sampled value, and pyramids of them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..proto.caffe_pb2 import TEST, LayerParameter, PoolingParameter
from .base import Layer, RandomLayer, Shape, register

# On a CPU torch finds where the maxima are, too, and is slow where there are few channels. From so many places of an
# image on, with fewer channels and small windows, the maxima of slices are quicker.
SLICED_PLACES, SLICED_CHANNELS, SLICED_KERNEL = 1 << 14, 64, 3

# SPPParameter gives its methods the same numbers
MAX, AVE, STOCHASTIC = PoolingParameter.MAX, PoolingParameter.AVE, PoolingParameter.STOCHASTIC


class Windows(NamedTuple):
    """Where the windows lie: rows and columns of each setting; `floor` leaves out a last one that is not whole."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int] = (0, 0)
    floor: bool = False

    def counts(self, shape: Shape) -> list[int]:
        """How many windows there are along H and W."""
        counts = []
        for size, kernel, stride, pad in zip(shape[2:], self.kernel, self.stride, self.pad, strict=True):
            span = size + 2 * pad - kernel
            count = (span // stride if self.floor else -(-span // stride)) + 1
            # with padding, the last window has to begin inside the image
            clipped = any(self.pad) and (count - 1) * stride >= size + pad
            counts.append(count - 1 if clipped else count)
        return counts

    @property
    def as_in_torch(self) -> bool:
        """Whether torch has the same windows, rounding their number up where the last reaches beyond the image."""
        return all(2 * p <= k and s <= k for p, k, s in zip(self.pad, self.kernel, self.stride, strict=True))


@lru_cache(4096)  # every pass asks, and to find it takes as long as to pool a small image
def overhang(windows: Windows, shape: Shape) -> tuple[int, ...]:
    """How far the last window reaches beyond the padded image along H and W; negative where it ends before."""
    return tuple(
        (count - 1) * stride + kernel - (size + 2 * pad)
        for count, stride, kernel, size, pad in zip(
            windows.counts(shape), windows.stride, windows.kernel, shape[2:], windows.pad, strict=True
        )
    )


def max_pool(x: torch.Tensor, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """The maxima, and where they are in the image: row · W + column, of equal ones the first.

    A window beyond the image, where the stride is longer than the kernel, gives the least float at −1.
    """
    shape = tuple(x.shape)
    over = overhang(windows, shape)
    if windows.as_in_torch:
        return F.max_pool2d(
            x, windows.kernel, windows.stride, windows.pad, ceil_mode=max(over) > 0, return_indices=True
        )
    # pad first, so that every window is whole, then pool without padding
    (top, left), (bottom, right) = windows.pad, (max(p + o, 0) for p, o in zip(windows.pad, over, strict=True))
    padded = F.pad(x, (left, right, top, bottom), value=torch.finfo(x.dtype).min)
    y, place = F.max_pool2d(padded, windows.kernel, windows.stride, return_indices=True)
    row, column = place // padded.shape[3] - top, place % padded.shape[3] - left
    inside = (row >= 0) & (row < shape[2]) & (column >= 0) & (column < shape[3])
    return y, torch.where(inside, row * shape[3] + column, -1)


def is_sliced(x: torch.Tensor, windows: Windows) -> bool:
    """Whether the maxima alone are sooner found by `max_of_slices`, which no gradient can follow."""
    return (
        x.device.type == "cpu"
        and x.shape[1] < SLICED_CHANNELS
        and x.numel() >= SLICED_PLACES * x.shape[1]
        and not torch.is_grad_enabled()
        and windows.as_in_torch
        and not any(windows.pad)
        and max(windows.kernel) <= SLICED_KERNEL
    )


def max_of_slices(x: torch.Tensor, windows: Windows) -> torch.Tensor:
    """The maxima of windows without padding: first along H, then along W, of all first values, all second ones, …"""
    counts = windows.counts(tuple(x.shape))
    for axis, count, kernel, stride in zip((2, 3), counts, windows.kernel, windows.stride, strict=True):
        every = [x[:, :, i::stride] if axis == 2 else x[..., i::stride] for i in range(kernel)]
        first, *others = (values.narrow(axis, 0, min(values.shape[axis], count)) for values in every)
        x = torch.empty_like(first)
        best = first
        for values in others:  # fewer where the last window reaches beyond the image
            inside = values.shape[axis]
            torch.maximum(best.narrow(axis, 0, inside), values, out=x.narrow(axis, 0, inside))
            if best is first:
                x.narrow(axis, inside, count - inside).copy_(first.narrow(axis, inside, count - inside))
            best = x
        x = best
    return x


def average_pool(x: torch.Tensor, windows: Windows) -> torch.Tensor:
    """The sum of each window, padding counted as 0, over its size inside the padded image; 0 for one beyond it."""
    over = overhang(windows, tuple(x.shape))
    if windows.as_in_torch:
        return F.avg_pool2d(x, windows.kernel, windows.stride, windows.pad, ceil_mode=max(over) > 0)
    (top, left), (below, right) = windows.pad, (max(o, 0) for o in over)
    inside = torch.ones((1, 1, x.shape[2] + 2 * top, x.shape[3] + 2 * left), dtype=x.dtype, device=x.device)
    area = F.avg_pool2d(F.pad(inside, (0, right, 0, below)), windows.kernel, windows.stride, divisor_override=1)
    padded = F.pad(x, (left, left + right, top, top + below))
    return F.avg_pool2d(padded, windows.kernel, windows.stride, divisor_override=1) / area.clamp(min=1)


def stochastic_pool(x: torch.Tensor, windows: Windows, random: torch.Generator | None) -> torch.Tensor:
    """With `random`, one value of each window, drawn with a probability that is its share of the window's sum;
    without, Σ x² / Σ x, the mean of what would be drawn (Zeiler and Fergus 2013). For values that are not negative."""
    below, right = (max(over, 0) for over in overhang(windows, tuple(x.shape)))
    (height, width), (down, along) = windows.kernel, windows.stride
    cut = F.pad(x.float(), (0, right, 0, below)).unfold(2, height, down).unfold(3, width, along)
    values = cut.reshape(*cut.shape[:4], height * width)
    if random is None:
        total = values.sum(-1)
        return torch.where(total > 0, (values * values).sum(-1) / torch.where(total > 0, total, 1), 0)
    sums = values.detach().cumsum(-1)
    drawn = torch.rand((*sums.shape[:4], 1), generator=random, device=x.device) * sums[..., -1:]
    first = (sums >= drawn).to(torch.uint8).argmax(-1, keepdim=True)
    return values.gather(-1, first).squeeze(-1)


class _Pooling(RandomLayer):
    """What Pooling and SPP share. Only a layer that samples has a generator: others leave all random numbers as they
    would be without them."""

    def __init__(self, param: LayerParameter, device: torch.device, generator: torch.Generator) -> None:
        self.method = self.method_of(param)
        self.samples = self.method == STOCHASTIC and param.phase != TEST
        if self.samples:
            super().__init__(param, device, generator)
        else:
            Layer.__init__(self, param, device, generator)

    @staticmethod
    def method_of(param: LayerParameter) -> int:
        """The prototxt's `pool`."""
        raise NotImplementedError

    def state(self) -> dict:
        return super().state() if self.samples else {}

    def check(self, windows: Windows) -> None:
        """Raise CaffeError for padding that the method does not have or that a window would not reach beyond."""
        if any(windows.pad) and self.method == STOCHASTIC:
            self.error(f"pad is {windows.pad}; expected 0 with pool: STOCHASTIC")
        if any(pad >= kernel for pad, kernel in zip(windows.pad, windows.kernel, strict=True)):
            self.error(f"pad {windows.pad} is not smaller than the kernel {windows.kernel}")

    def image_shape(self, shapes: list[Shape]) -> Shape:
        """The bottom's shape; CaffeError where it is not an image's."""
        if len(shapes[0]) != 4 or min(shapes[0][2:]) < 1:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}; expected N×C×H×W")
        return shapes[0]

    def pool(self, x: torch.Tensor, windows: Windows) -> list[torch.Tensor]:
        """The pooled values; of a maximum, its place too."""
        if self.method == MAX:
            sliced = len(self.param.top) == 1 and is_sliced(x, windows)
            return [max_of_slices(x, windows)] if sliced else list(max_pool(x, windows))
        if self.method == AVE:
            return [average_pool(x, windows)]
        return [stochastic_pool(x, windows, self.random if self.samples else None)]


@register("Pooling")
class Pooling(_Pooling):
    """Maximum, average or stochastic choice over windows of a N×C×H×W bottom.

    Top N×C×H'×W' with H' = ceil((H + 2·pad − kernel) / stride) + 1 (floor with `round_mode: FLOOR`), less the last
    window where it would start in the padding; 1×1 with `global_pooling`. The average divides by the window's size
    inside the padded image. STOCHASTIC draws in TRAIN, and is the mean weighted by size in TEST. A second top of a
    maximum tells where it is: row · W + column.
    """

    tops = (1, 2)

    @staticmethod
    def method_of(param: LayerParameter) -> int:
        return param.pooling_param.pool

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.pooling_param
        if len(self.param.top) > 1 and self.method != MAX:
            self.error(f"has 2 tops with pool: {PoolingParameter.PoolMethod.Name(p.pool)}; expected 1")
        if p.global_pooling and (p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w")):
            self.error("global_pooling excludes a kernel size")
        stride, pad = self._pair("stride", "stride", 1), self._pair("pad", "pad", 0)
        if p.global_pooling:
            if pad != (0, 0) or stride != (1, 1):
                self.error(f"global_pooling needs pad 0 and stride 1, not {pad} and {stride}")
            return
        kernel = self._pair("kernel_size", "kernel", 0)
        if min(kernel) < 1 or min(stride) < 1:
            self.error(f"kernel is {kernel} and stride {stride}; expected at least 1")
        self.windows = Windows(kernel, stride, pad, p.round_mode == PoolingParameter.FLOOR)
        self.check(self.windows)

    def _pair(self, setting: str, prefix: str, default: int) -> tuple[int, int]:
        p = self.param.pooling_param
        if p.HasField(f"{prefix}_h") or p.HasField(f"{prefix}_w"):
            if p.HasField(setting):
                self.error(f"{prefix}_h and {prefix}_w exclude {setting}")
            return (getattr(p, f"{prefix}_h"), getattr(p, f"{prefix}_w"))
        value = getattr(p, setting) if p.HasField(setting) else default
        return (value, value)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        shape = self.image_shape(shapes)
        counts = [1, 1] if self.param.pooling_param.global_pooling else self.windows.counts(shape)
        if min(counts) < 1:
            kernel = self.windows.kernel
            self.error(f"bottom {self.param.bottom[0]!r} of shape {shape} is smaller than the kernel {kernel}")
        return [(*shape[:2], *counts)] * len(self.param.top)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        if not self.param.pooling_param.global_pooling:
            tops = self.pool(x, self.windows)
        elif self.method == AVE:
            return [x.mean((2, 3), keepdim=True)]
        else:
            tops = self.pool(x, Windows((x.shape[2], x.shape[3]), (1, 1)))
        return [tops[0], tops[1].float()] if len(self.param.top) > 1 else tops[:1]


@register("SPP")
class SPP(_Pooling):
    """Spatial pyramid pooling (He et al. 2014): an image of any size becomes a vector of one length.

    Level l of `pyramid_height` pools over 2^l × 2^l windows, of ceil(H / 2^l) rows, the image padded to be covered.
    Bottom N×C×H×W, top N×(C · Σ windows), level after level, in each channel after channel; with one level N×C×1×1.
    """

    @staticmethod
    def method_of(param: LayerParameter) -> int:
        return param.spp_param.pool

    def setup(self, shapes: list[Shape]) -> None:
        if self.param.spp_param.pyramid_height < 1:
            self.error(f"pyramid_height is {self.param.spp_param.pyramid_height}; expected at least 1")

    def _levels(self, shape: Shape) -> list[Windows]:
        levels = []
        for level in range(self.param.spp_param.pyramid_height):
            sizes = [(-(-size // 2**level), size) for size in shape[2:]]
            (top, left) = ((kernel * 2**level - size + 1) // 2 for kernel, size in sizes)
            kernel = (sizes[0][0], sizes[1][0])
            levels.append(Windows(kernel, kernel, (top, left)))
            self.check(levels[-1])
        return levels

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        shape = self.image_shape(shapes)
        counts = [windows.counts(shape) for windows in self._levels(shape)]
        if len(counts) == 1:
            return [(*shape[:2], *counts[0])]
        return [(shape[0], shape[1] * sum(rows * columns for rows, columns in counts))]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        levels = [self.pool(x, windows)[0] for windows in self._levels(tuple(x.shape))]
        return levels if len(levels) == 1 else [torch.cat([level.flatten(1) for level in levels], 1)]
