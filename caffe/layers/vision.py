"""Layers that multiply by weights: convolution and its transpose, inner product; and im2col, convolution's windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .base import Layer, Shape, register

Sizes = tuple[int, ...]
Settings = tuple[Sizes, Sizes, Sizes, int]  # stride, pad, dilation, group

# places of a top up to which a matrix product is the faster way to the weights' gradient: measured for 16 to 2048
# channels with the instructions of AVX2, AVX-512 and AMX
SMALL_MAP = {torch.float32: 16, torch.bfloat16: 36}


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """`x`, N×C×H×W, in channels-last order, and seen to be so where C is 1 and both orders are the same."""
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] == 1 and x.stride(1) != 1:
        x = x.as_strided(x.shape, (x.stride(0), 1, x.stride(2), x.stride(3)))
    return x


def _bias(layer: Layer) -> torch.Tensor | None:
    return layer.blobs[1].tensor() if len(layer.blobs) > 1 else None


def _columns(x: torch.Tensor, kernel: Sizes, stride: Sizes, pad: Sizes, dilation: Sizes) -> torch.Tensor:
    """N×C×D1×… → N×(C·K1·…)×E1×…: the values that each tap of the kernel sees."""
    axes = len(kernel)
    x = F.pad(x, [p for p in reversed(pad) for _ in range(2)])
    for i, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, gap * (size - 1) + 1, step)[..., ::gap]
    tops, taps = range(2, 2 + axes), range(2 + axes, 2 + 2 * axes)
    return x.permute(0, 1, *taps, *tops).flatten(1, 1 + axes)


class _Conv2d(torch.autograd.Function):
    """`F.conv2d` on a CPU, its gradients computed in another way than oneDNN's where that is faster.

    Without groups, the weights' is one matrix product with the columns, as in Caffe: oneDNN's kernel is made for large
    maps, and where the top has 3×3 places takes 2 to 10 times as long. With groups, both are computed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, settings: Settings
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, weight), (stride, pad, dilation, group) = ctx.saved_tensors, ctx.settings
        gradient = channels_last(gradient)
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        wanted = [*ctx.needs_input_grad[:2], False]
        to_weight = None
        if wanted[1] and group == 1:
            wanted[1] = False
            # N·E1·E2 rows of K1·K2·C values, the channels of a tap side by side as they lie in x
            taps = F.pad(channels_last(x).permute(0, 2, 3, 1), (0, 0, pad[1], pad[1], pad[0], pad[0]))
            for axis, (size, step, gap) in enumerate(zip(weight.shape[2:], stride, dilation, strict=True), start=1):
                taps = taps.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
            columns = taps.permute(0, 1, 2, 4, 5, 3).reshape(len(rows), -1)
            outputs, channels, *kernel = weight.shape
            to_weight = (rows.t() @ columns).view(outputs, *kernel, channels).permute(0, 3, 1, 2)
        operands = (gradient, x, weight) if group == 1 else (gradient.float(), x.float(), weight.float())
        to_x, by_onednn, _ = torch.ops.aten.convolution_backward(
            *operands, None, stride, pad, dilation, False, (0, 0), group, wanted
        )
        to_weight = by_onednn if to_weight is None else to_weight
        to_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        as_given = (g if g is None else g.to(x.dtype) for g in (to_x, to_weight, to_bias))
        return *as_given, None


def _conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    """`F.conv2d`, on a CPU with gradients by the fastest of the ways to compute them; `settings` as Settings."""
    stride, pad, dilation, group = settings
    if x.device.type == "cpu" and torch.is_grad_enabled() and weight.requires_grad:
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        sizes = zip(x.shape[2:], weight.shape[2:], stride, pad, dilation, strict=True)
        places = math.prod((size + 2 * p - gap * (k - 1) - 1) // step + 1 for size, k, step, p, gap in sizes)
        small = group == 1 and places <= SMALL_MAP.get(x.dtype, 0)
        # oneDNN's depthwise kernels of 16 bits: as fast as float32's for 3×3 at stride 1, else 3 to 60 times slower
        depthwise = x.dtype.itemsize < 4 and 1 < group == x.shape[1] and (max(stride) > 1 or max(weight.shape[2:]) > 3)
        if small or depthwise:
            return _Conv2d.apply(x, weight, bias, settings)
    return F.conv2d(x, weight, bias, *settings)


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sizes,
    pad: Sizes,
    dilation: Sizes,
    group: int,
) -> torch.Tensor:
    """Cross-correlation of N×C×D1×… over any number of axes; `weight` is O×(C / group)×K1×…."""
    axes = weight.dim() - 2
    if axes == 0:
        return F.conv1d(x[..., None], weight[..., None], bias, groups=group)[..., 0]
    if axes <= 3:
        return (F.conv1d, _conv2d, F.conv3d)[axes - 1](x, weight, bias, stride, pad, dilation, group)
    columns = _columns(x, tuple(weight.shape[2:]), stride, pad, dilation)
    y = weight.reshape(group, weight.shape[0] // group, -1) @ columns.flatten(2).unflatten(1, (group, -1))
    y = y.reshape(x.shape[0], weight.shape[0], *columns.shape[2:])
    return y if bias is None else y + bias.view(-1, *(1,) * axes)


def _deconvolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sizes,
    pad: Sizes,
    dilation: Sizes,
    group: int,
) -> torch.Tensor:
    """The transpose of `_convolve`; `weight` is C×(O / group)×K1×…."""
    axes = weight.dim() - 2
    if axes == 0:
        return F.conv_transpose1d(x[..., None], weight[..., None], bias, groups=group)[..., 0]
    if axes <= 3:
        transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        return transpose(x, weight, bias, stride, pad, 0, group, dilation)
    # the convolution of x, its values `stride` apart, with the turned kernel
    apart = x.new_zeros(*x.shape[:2], *((size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)))
    apart[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    turned = weight.flip(tuple(range(2, 2 + axes))).unflatten(0, (group, -1)).transpose(1, 2).flatten(0, 1)
    reach = tuple(g * (k - 1) - p for g, k, p in zip(dilation, weight.shape[2:], pad, strict=True))
    return _convolve(apart, turned, bias, (1,) * axes, reach, dilation, group)


class _Windowed(Layer):
    """What Convolution, Deconvolution and Im2col share: the settings of `convolution_param` for the axes behind
    `axis`, the channels. The axes in front of it are lumped together, a batch of N.

    Attributes
    ----------
    channel_axis: `axis`, counted from 0.
    kernel, stride, pad, dilation: a number for each axis behind it.
    """

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.convolution_param
        self.channel_axis = self.axis(p.axis, shapes[0])
        axes = len(shapes[0]) - self.channel_axis - 1
        self.kernel = self._per_axis("kernel_size", p.kernel_size, "kernel", axes, None)
        self.stride = self._per_axis("stride", p.stride, "stride", axes, 1)
        self.pad = self._per_axis("pad", p.pad, "pad", axes, 0)
        self.dilation = self._per_axis("dilation", p.dilation, None, axes, 1)
        for setting, values in (("kernel_size", self.kernel), ("stride", self.stride), ("dilation", self.dilation)):
            if any(value < 1 for value in values):
                self.error(f"{setting} is {values}; expected at least 1")

    def _per_axis(
        self, setting: str, values: Sequence[int], prefix: str | None, axes: int, default: int | None
    ) -> Sizes:
        p = self.param.convolution_param
        if prefix and (p.HasField(f"{prefix}_h") or p.HasField(f"{prefix}_w")):
            if axes != 2 or values:
                self.error(f"{prefix}_h and {prefix}_w are for two spatial axes and exclude {setting}")
            return (getattr(p, f"{prefix}_h"), getattr(p, f"{prefix}_w"))
        if not values and axes:
            if default is None:
                self.error(f"{setting} is missing")
            return (default,) * axes
        if len(values) not in (1, axes):
            self.error(f"{setting} is given {len(values)} times; expected 1 or {axes}")
        return tuple(values) if len(values) == axes else (values[0],) * axes

    @property
    def extent(self) -> Sizes:
        """How far the kernel reaches along each axis."""
        return tuple(gap * (size - 1) + 1 for size, gap in zip(self.kernel, self.dilation, strict=True))

    def window_counts(self, bottom: str, shape: Shape) -> Sizes:
        """How many windows there are along each spatial axis of a bottom; CaffeError where there is none."""
        settings = zip(shape[self.channel_axis + 1 :], self.extent, self.stride, self.pad, strict=True)
        counts = tuple((size + 2 * pad - extent) // stride + 1 for size, extent, stride, pad in settings)
        if any(count < 1 for count in counts):
            self.error(f"bottom {bottom!r} of shape {shape} is smaller than the kernel {self.kernel}")
        return counts

    def batched(self, x: torch.Tensor) -> torch.Tensor:
        """A bottom as N×C×D1×…."""
        return (
            x
            if self.channel_axis == 1
            else x.reshape(math.prod(x.shape[: self.channel_axis]), *x.shape[self.channel_axis :])
        )

    def unbatched(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """N×O×E1×… with the leading axes of the bottom again."""
        return y if self.channel_axis == 1 else y.reshape(*x.shape[: self.channel_axis], *y.shape[1:])


class _Convolution(_Windowed):
    """What Convolution and Deconvolution share: weights, a top for each bottom."""

    bottoms = (1, None)
    tops = (1, None)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.convolution_param
        if len(self.param.bottom) != len(self.param.top):
            self.error(f"has {len(self.param.bottom)} bottoms and {len(self.param.top)} tops; expected as many")
        super().setup(shapes)
        self.group, self.channels = p.group, shapes[0][self.channel_axis]
        if p.num_output < 1:
            self.error(f"num_output is {p.num_output}; expected at least 1")
        if p.group < 1 or self.channels % p.group or p.num_output % p.group:
            self.error(f"group {p.group} does not divide {self.channels} channels and {p.num_output} outputs")
        self.add_blob(self.weight_shape(), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def weight_shape(self) -> Shape:
        raise NotImplementedError

    def output_sizes(self, bottom: str, shape: Shape) -> Sizes:
        raise NotImplementedError

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        tops: list[Shape] = []
        for shape, bottom in zip(shapes, self.param.bottom, strict=True):
            axes = self.channel_axis + 1 + len(self.kernel)
            if len(shape) != axes or shape[self.channel_axis] != self.channels:
                expected = f"{axes} axes and {self.channels} channels (axis {self.channel_axis})"
                self.error(f"bottom {bottom!r} has shape {shape}; expected {expected}")
            outputs = self.param.convolution_param.num_output
            tops.append((*shape[: self.channel_axis], outputs, *self.output_sizes(bottom, shape)))
        return tops

    def operands(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias as `apply` takes them."""
        weight = self.blobs[0].tensor()
        # channels-last is the layout in which oneDNN and cuDNN are fastest
        return channels_last(weight) if weight.dim() == 4 else weight, _bias(self)

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The top of one bottom."""
        raise NotImplementedError

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        weight, bias = self.operands()
        return [self.apply(x, weight, bias) for x in bottoms]


@register("Convolution")
class Convolution(_Convolution):
    """y = w ∗ x + b (cross-correlation), with stride, zero padding, dilation and groups.

    Bottom N×C×D1×…, top N×num_output×E1×… with E = floor((D + 2·pad − (dilation·(kernel − 1) + 1)) / stride) + 1; any
    number of spatial axes, and of axes in front of the channels (`axis`). Several bottoms share the weights, a top
    each. Parameters: weight num_output×(C / group)×K1×…, bias num_output. `force_nd_im2col` and `engine` choose
    between Caffe's ways to compute the same.
    """

    def weight_shape(self) -> Shape:
        return (self.param.convolution_param.num_output, self.channels // self.group, *self.kernel)

    def output_sizes(self, bottom: str, shape: Shape) -> Sizes:
        return self.window_counts(bottom, shape)

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        images = self.batched(x)
        if images.dim() == 4:
            images = channels_last(images)
        return self.unbatched(_convolve(images, weight, bias, self.stride, self.pad, self.dilation, self.group), x)


@register("Deconvolution")
class Deconvolution(_Convolution):
    """The transpose of a Convolution with the same settings, plus b: each value of x adds its multiple of w to y.

    Bottom N×C×D1×…, top N×num_output×E1×… with E = stride · (D − 1) + dilation · (kernel − 1) + 1 − 2 · pad; axes and
    bottoms as in Convolution. Parameters: weight C×(num_output / group)×K1×…, bias num_output.
    """

    def weight_shape(self) -> Shape:
        return (self.channels, self.param.convolution_param.num_output // self.group, *self.kernel)

    def output_sizes(self, bottom: str, shape: Shape) -> Sizes:
        settings = zip(shape[self.channel_axis + 1 :], self.extent, self.stride, self.pad, strict=True)
        sizes = tuple(stride * (size - 1) + extent - 2 * pad for size, extent, stride, pad in settings)
        if any(size < 1 for size in sizes):
            self.error(f"pad {self.pad} leaves nothing of the top of bottom {bottom!r} of shape {shape}")
        return sizes

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        images = self.batched(x)
        if images.dim() == 4:
            images = channels_last(images)
        return self.unbatched(_deconvolve(images, weight, bias, self.stride, self.pad, self.dilation, self.group), x)


@register("Im2col")
class Im2col(_Windowed):
    """The values that each tap of a convolution's kernel sees, as channels.

    Bottom N×C×D1×…, top N×(C·K1·…)×E1×…, E as in Convolution, whose settings these are; `axis` too.
    """

    def setup(self, shapes: list[Shape]) -> None:
        super().setup(shapes)
        if not self.kernel:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}; expected axes behind the channels")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        shape, axis = shapes[0], self.channel_axis
        if len(shape) != axis + 1 + len(self.kernel):
            self.error(
                f"bottom {self.param.bottom[0]!r} has shape {shape}; expected {axis + 1 + len(self.kernel)} axes"
            )
        counts = self.window_counts(self.param.bottom[0], shape)
        return [(*shape[:axis], shape[axis] * math.prod(self.kernel), *counts)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        return [self.unbatched(_columns(self.batched(x), self.kernel, self.stride, self.pad, self.dilation), x)]


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
