"""Layers that act on each value alone; all may run in place. Top shape = bottom shape."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..proto.caffe_pb2 import FillerParameter
from .base import Layer, RandomLayer, Shape, register

SLOW_VALUES, FEW_CHANNELS = 1 << 15, 16  # PReLU is quick as it is with fewer values, or not fewer channels


@register("ReLU")
class ReLU(Layer):
    """y = max(x, 0) + negative_slope · min(x, 0)."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        slope = self.param.relu_param.negative_slope
        return [F.leaky_relu(bottoms[0], slope) if slope else F.relu(bottoms[0])]


class RectifyInPlace(torch.autograd.Function):
    """y = max(x, 0), where x lay: it is lost, but its gradient is not.

    PyTorch's own in-place functions leave no gradient of x to ask for, which a blob's diff is. A backward pass that
    needs x itself, since what made it keeps it, is an error.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(x.detach())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0)


@register("PReLU")
class PReLU(Layer):
    """y = max(x, 0) + a · min(x, 0), with a learned: one a channel, or one for all with `channel_shared`.

    Bottom N×C×…. Parameter: a, of C values (initially 0.25), or a scalar.
    """

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.prelu_param
        if len(shapes[0]) < 2:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}; expected at least N×C")
        filler = p.filler if p.HasField("filler") else FillerParameter(type="constant", value=0.25)
        self.add_blob(() if p.channel_shared else (shapes[0][1],), filler)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x, slope = bottoms[0], self.blobs[0].tensor().reshape(-1)
        slope = slope.to(x.dtype)
        if torch.is_grad_enabled() or not _is_slow(x, slope):
            return [F.prelu(x, slope)]
        images, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(images * height, width * channels)
        return [F.prelu(rows, slope.repeat(width)).view(images, height, width, channels).permute(0, 3, 1, 2)]


def _is_slow(x: torch.Tensor, slope: torch.Tensor) -> bool:
    """Whether PReLU is slow: a CPU takes the channels of one place in the image at a time, and they are few."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.numel() >= SLOW_VALUES
        and slope.numel() == x.shape[1] < FEW_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@register("Sigmoid")
class Sigmoid(Layer):
    """y = 1 / (1 + exp(−x))."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.sigmoid(bottoms[0])]


@register("TanH")
class TanH(Layer):
    """y = tanh(x)."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.tanh(bottoms[0])]


@register("AbsVal")
class AbsVal(Layer):
    """y = |x|."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0].abs()]


@register("BNLL")
class BNLL(Layer):
    """y = log(1 + exp(x))."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.logaddexp(bottoms[0], torch.zeros_like(bottoms[0]))]


@register("Clip")
class Clip(Layer):
    """y = min(max(x, min), max)."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0].clamp(self.param.clip_param.min, self.param.clip_param.max)]


@register("ELU")
class ELU(Layer):
    """y = x for x > 0, else alpha · (exp(x) − 1)."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [F.elu(bottoms[0], self.param.elu_param.alpha)]


def _natural_log_of(layer: Layer, base: float) -> float:
    """ln(base), where −1 stands for e."""
    if base == -1:
        return 1.0
    if base <= 0:
        layer.error(f"base is {base}; expected a number above 0, or -1 for e")
    return math.log(base)


@register("Exp")
class Exp(Layer):
    """y = base^(shift + scale · x); base −1 stands for e."""

    def setup(self, shapes: list[Shape]) -> None:
        self.log_base = _natural_log_of(self, self.param.exp_param.base)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p = self.param.exp_param
        return [torch.exp((bottoms[0] * p.scale + p.shift) * self.log_base)]


@register("Log")
class Log(Layer):
    """y = log_base(shift + scale · x); base −1 stands for e."""

    def setup(self, shapes: list[Shape]) -> None:
        self.log_base = _natural_log_of(self, self.param.log_param.base)
        if self.log_base == 0:
            self.error("base is 1; expected another number above 0, or -1 for e")

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p = self.param.log_param
        return [torch.log(bottoms[0] * p.scale + p.shift) / self.log_base]


@register("Power")
class Power(Layer):
    """y = (shift + scale · x)^power."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p = self.param.power_param
        if p.scale == 0 or p.power == 0:  # a constant, without the gradient 0 · ∞ where x is 0
            return [torch.full_like(bottoms[0], p.shift, requires_grad=False) ** p.power]
        y = bottoms[0] * p.scale + p.shift
        return [y if p.power == 1 else y**p.power]


@register("Swish")
class Swish(Layer):
    """y = x · sigmoid(beta · x)."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0] * torch.sigmoid(self.param.swish_param.beta * bottoms[0])]


@register("Threshold")
class Threshold(Layer):
    """y = 1 for x > threshold, else 0. No gradient."""

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [(bottoms[0] > self.param.threshold_param.threshold).float()]


@register("Dropout")
class Dropout(RandomLayer):
    """TRAIN: y = x · m / (1 − dropout_ratio), m 0 with probability dropout_ratio, else 1. TEST: y = x."""

    def setup(self, shapes: list[Shape]) -> None:
        self.ratio = self.param.dropout_param.dropout_ratio
        if not 0 <= self.ratio < 1:
            self.error(f"dropout_ratio is {self.ratio}; expected 0 <= ratio < 1")
        # a uniform 16-bit number is at least this with probability 1 - ratio, to within 1/131072
        self.threshold = min(round(self.ratio * 65536), 65535) - 32768

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        if not self.training:
            return [x]
        # four 16-bit draws from each 64-bit number: a quarter of the generator's work, which is what takes the time
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        bits.random_(-(2**63), None, generator=self.random)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= self.threshold
        return [x * kept.to(x.dtype).mul_(65536 / (32768 - self.threshold))]

    def state(self) -> dict[str, Any]:
        return super().state() if self.training else {}
