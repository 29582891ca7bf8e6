"""Layers over images: convolution, inner product, pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..proto.caffe_pb2 import PoolingParameter
from .base import Layer, Shape, register


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """`x`, N×C×H×W, in channels-last order, and seen to be so where C is 1 and both orders are the same."""
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] == 1 and x.stride(1) != 1:
        x = x.as_strided(x.shape, (x.stride(0), 1, x.stride(2), x.stride(3)))
    return x


def _bias(layer: Layer) -> torch.Tensor | None:
    return layer.blobs[1].tensor() if len(layer.blobs) > 1 else None


@register("Convolution")
class Convolution(Layer):
    """y = w ∗ x + b (cross-correlation), with stride, zero padding, dilation and groups.

    Bottom N×C×D1×…, top N×num_output×E1×… with E = floor((D + 2·pad − (dilation·(kernel − 1) + 1)) / stride) + 1;
    1 to 3 spatial axes. Several bottoms share the weights, a top each. Parameters: weight
    num_output×(C / group)×K1×…, bias num_output.
    """

    bottoms = (1, None)
    tops = (1, None)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.convolution_param
        if len(self.param.bottom) != len(self.param.top):
            self.error(f"has {len(self.param.bottom)} bottoms and {len(self.param.top)} tops; expected as many")
        if self.axis(p.axis, shapes[0]) != 1:
            self.error(f"axis {p.axis} is not supported; expected 1, the channels")
        spatial = len(shapes[0]) - 2
        if not 1 <= spatial <= 3:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}; expected N×C and 1 to 3 spatial axes")
        self.kernel = self._per_axis("kernel_size", p.kernel_size, "kernel", spatial, None)
        self.stride = self._per_axis("stride", p.stride, "stride", spatial, 1)
        self.pad = self._per_axis("pad", p.pad, "pad", spatial, 0)
        self.dilation = self._per_axis("dilation", p.dilation, None, spatial, 1)
        for setting, values in (("kernel_size", self.kernel), ("stride", self.stride), ("dilation", self.dilation)):
            if min(values) < 1:
                self.error(f"{setting} is {values}; expected at least 1")
        channels = shapes[0][1]
        if p.num_output < 1:
            self.error(f"num_output is {p.num_output}; expected at least 1")
        if p.group < 1 or channels % p.group or p.num_output % p.group:
            self.error(f"group {p.group} does not divide {channels} channels and {p.num_output} outputs")
        self.add_blob((p.num_output, channels // p.group, *self.kernel), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)
        self.group = p.group
        self.convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]

    def _per_axis(
        self, setting: str, values: Sequence[int], prefix: str | None, spatial: int, default: int | None
    ) -> tuple[int, ...]:
        p = self.param.convolution_param
        if prefix and (p.HasField(f"{prefix}_h") or p.HasField(f"{prefix}_w")):
            if spatial != 2 or values:
                self.error(f"{prefix}_h and {prefix}_w are for two spatial axes and exclude {setting}")
            return (getattr(p, f"{prefix}_h"), getattr(p, f"{prefix}_w"))
        if not values:
            if default is None:
                self.error(f"{setting} is missing")
            return (default,) * spatial
        if len(values) not in (1, spatial):
            self.error(f"{setting} is given {len(values)} times; expected 1 or {spatial}")
        return tuple(values) if len(values) == spatial else (values[0],) * spatial

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        tops: list[Shape] = []
        for shape, bottom in zip(shapes, self.param.bottom, strict=True):
            channels = self.blobs[0].shape[1] * self.param.convolution_param.group
            if len(shape) != len(self.kernel) + 2 or shape[1] != channels:
                self.error(f"bottom {bottom!r} has shape {shape}; expected {channels} channels")
            sizes = tuple(
                (size + 2 * pad - (dilation * (kernel - 1) + 1)) // stride + 1
                for size, kernel, stride, pad, dilation in zip(
                    shape[2:], self.kernel, self.stride, self.pad, self.dilation, strict=True
                )
            )
            if min(sizes) < 1:
                self.error(f"bottom {bottom!r} of shape {shape} is smaller than the kernel {self.kernel}")
            tops.append((shape[0], self.blobs[0].shape[0], *sizes))
        return tops

    def operands(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias as `apply` takes them."""
        weight = self.blobs[0].tensor()
        # channels-last is the layout in which oneDNN and cuDNN are fastest
        return _channels_last(weight) if weight.dim() == 4 else weight, _bias(self)

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The top of one bottom."""
        if x.dim() == 4:
            x = _channels_last(x)
        return self.convolve(x, weight, bias, self.stride, self.pad, self.dilation, self.group)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        weight, bias = self.operands()
        return [self.apply(x, weight, bias) for x in bottoms]


@register("InnerProduct")
class InnerProduct(Layer):
    """y = W x + b over the axes from `axis` on, lumped together.

    Bottom D0×…×D(axis−1)×K1×…, top D0×…×D(axis−1)×num_output. Parameters: weight num_output×K (K×num_output with
    `transpose`), bias num_output.
    """

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.inner_product_param
        if p.num_output < 1:
            self.error(f"num_output is {p.num_output}; expected at least 1")
        self.first = self.axis(p.axis, shapes[0])
        inputs = math.prod(shapes[0][self.first :])
        self.add_blob((inputs, p.num_output) if p.transpose else (p.num_output, inputs), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        p = self.param.inner_product_param
        inputs = self.blobs[0].shape[0 if p.transpose else 1]
        if math.prod(shapes[0][self.first :]) != inputs:
            bottom = f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}"
            self.error(f"{bottom}; expected {inputs} values from axis {self.first} on")
        return [(*shapes[0][: self.first], p.num_output)]

    def operands(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight, num_output×K, and bias."""
        weight = self.blobs[0].tensor()
        return weight.t() if self.param.inner_product_param.transpose else weight, _bias(self)

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The top of the bottom."""
        return F.linear(x.flatten(self.first), weight, bias)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.apply(bottoms[0], *self.operands())]


@register("Pooling")
class Pooling(Layer):
    """Maximum or average over windows of a N×C×H×W bottom.

    Top N×C×H'×W' with H' = ceil((H + 2·pad − kernel) / stride) + 1 (floor with `round_mode: FLOOR`), less the last
    window where it would start in the padding. The average divides by the window's size inside the padded image.
    """

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.pooling_param
        if p.pool not in (PoolingParameter.MAX, PoolingParameter.AVE):
            self.error(f"pool {PoolingParameter.PoolMethod.Name(p.pool)} is not supported; expected MAX or AVE")
        if p.global_pooling and (p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w")):
            self.error("global_pooling excludes a kernel size")
        self.stride = self._pair("stride", "stride", 1)
        self.pad = self._pair("pad", "pad", 0)
        if p.global_pooling:
            if self.pad != (0, 0) or self.stride != (1, 1):
                self.error(f"global_pooling needs pad 0 and stride 1, not {self.pad} and {self.stride}")
            return
        self.kernel = self._pair("kernel_size", "kernel", 0)
        if min(self.kernel) < 1 or min(self.stride) < 1:
            self.error(f"kernel is {self.kernel} and stride {self.stride}; expected at least 1")
        if any(pad >= kernel for pad, kernel in zip(self.pad, self.kernel, strict=True)):
            self.error(f"pad {self.pad} is not smaller than the kernel {self.kernel}")

    def _pair(self, setting: str, prefix: str, default: int) -> tuple[int, int]:
        p = self.param.pooling_param
        if p.HasField(f"{prefix}_h") or p.HasField(f"{prefix}_w"):
            if p.HasField(setting):
                self.error(f"{prefix}_h and {prefix}_w exclude {setting}")
            return (getattr(p, f"{prefix}_h"), getattr(p, f"{prefix}_w"))
        value = getattr(p, setting) if p.HasField(setting) else default
        return (value, value)

    def _windows(self, shape: Shape) -> list[int]:
        """How many windows there are along H and W."""
        counts = []
        floor = self.param.pooling_param.round_mode == PoolingParameter.FLOOR
        for size, kernel, stride, pad in zip(shape[2:], self.kernel, self.stride, self.pad, strict=True):
            span = size + 2 * pad - kernel
            count = (span // stride if floor else -(-span // stride)) + 1
            if any(self.pad) and (count - 1) * stride >= size + pad:
                count -= 1
            counts.append(count)
        return counts

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        shape = shapes[0]
        if len(shape) != 4:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shape}; expected N×C×H×W")
        if self.param.pooling_param.global_pooling:
            return [(shape[0], shape[1], 1, 1)]
        counts = self._windows(shape)
        if min(counts) < 1:
            self.error(f"bottom {self.param.bottom[0]!r} of shape {shape} is smaller than the kernel {self.kernel}")
        return [(shape[0], shape[1], *counts)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        maximum = self.param.pooling_param.pool == PoolingParameter.MAX
        if self.param.pooling_param.global_pooling:
            return [x.amax((2, 3), keepdim=True) if maximum else x.mean((2, 3), keepdim=True)]
        kernel, stride, pad = self.kernel, self.stride, self.pad
        counts = self._windows(tuple(x.shape))
        ends = [
            (count - 1) * s + k - (size + 2 * p)
            for count, s, k, size, p in zip(counts, stride, kernel, x.shape[2:], pad, strict=True)
        ]
        # torch rounds up by the same rule, for pad <= kernel / 2 and a kernel no smaller than the stride
        if all(2 * p <= k and k >= s for p, k, s in zip(pad, kernel, stride, strict=True)):
            ceil = max(ends) > 0
            if not ceil or all(self._torch_ceil(i, x.shape[2 + i]) == counts[i] for i in (0, 1)):
                if maximum:
                    return [F.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil)]
                return [F.avg_pool2d(x, kernel, stride, pad, ceil_mode=ceil)]
        return [self._pool_padded(x, ends, maximum)]

    def _torch_ceil(self, i: int, size: int) -> int:
        span = size + 2 * self.pad[i] - self.kernel[i]
        count = -(-span // self.stride[i]) + 1
        return count - 1 if (count - 1) * self.stride[i] >= size + self.pad[i] else count

    def _pool_padded(self, x: torch.Tensor, ends: list[int], maximum: bool) -> torch.Tensor:
        """The general case: pad first, so that every window is whole, then pool without padding.

        A window beyond the image, where the stride is longer than the kernel, gives the least float or the average 0.
        """
        (top, left), (bottom, right) = self.pad, (max(self.pad[0] + ends[0], 0), max(self.pad[1] + ends[1], 0))
        if maximum:
            padded = F.pad(x, (left, right, top, bottom), value=torch.finfo(x.dtype).min)
            return F.max_pool2d(padded, self.kernel, self.stride)
        inside = torch.ones((1, 1, x.shape[2] + 2 * top, x.shape[3] + 2 * left), dtype=x.dtype, device=x.device)
        inside = F.pad(inside, (0, max(ends[1], 0), 0, max(ends[0], 0)))
        padded = F.pad(x, (left, right, top, bottom))
        area = F.avg_pool2d(inside, self.kernel, self.stride, divisor_override=1).clamp(min=1)
        return F.avg_pool2d(padded, self.kernel, self.stride, divisor_override=1) / area
