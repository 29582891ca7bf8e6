"""Layers that normalise (of batches, images, neighbours), and the learned scale and bias that follow them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..proto.caffe_pb2 import FillerParameter, LRNParameter
from .base import Layer, Shape, register


@register("BatchNorm")
class BatchNorm(Layer):
    """y = (x − mean) / sqrt(var + eps), per channel (Ioffe and Szegedy 2015); a Scale layer follows for γ and β.

    TRAIN: mean and variance of the batch, and running sums of both decay by `moving_average_fraction`. TEST, or
    `use_global_stats: true`: the running sums divided by the third parameter. Bottom N×C×…. Parameters, not
    learned: sum of means C, sum of variances C (with Bessel's correction), the sums' weight 1.

    Attributes
    ----------
    fraction: what a batch leaves of the running sums before its own is added, initially `moving_average_fraction`;
        None: batches do not touch them. `running_sums` sets it for a while.
    """

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.batch_norm_param
        if not 0 <= p.eps <= torch.finfo(torch.float32).max:
            self.error(f"eps is {p.eps}; expected at least 0")
        self.global_stats = p.use_global_stats if p.HasField("use_global_stats") else not self.training
        self.fraction: float | None = p.moving_average_fraction
        channels = self._channels(shapes[0])
        zero = FillerParameter()
        for size in (channels, channels, 1):
            self.add_blob((size,), zero)
        for spec in self.param.param:
            # where all three are given, as files from before 2017 had to, `upgrade_net` made them 0, as in Caffe
            if spec.lr_mult != 0:
                self.error(f"lr_mult is {spec.lr_mult}; expected 0, the running sums are not learned by the solver")
        for blob in self.blobs:
            blob.lr_mult = 0.0
        self._one = torch.ones(1, device=self.device)

    def _channels(self, shape: Shape) -> int:
        if not shape:
            self.error(f"bottom {self.param.bottom[0]!r} is a scalar; expected N×C×…")
        return 1 if len(shape) == 1 else shape[1]

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        channels = self._channels(shapes[0])
        if channels != self.blobs[0].count:
            self.error(f"bottom {self.param.bottom[0]!r} has {channels} channels; expected {self.blobs[0].count}")
        return [shapes[0]]

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance a channel, from the running sums."""
        mean_sum, var_sum, total = (blob.tensor() for blob in self.blobs)
        factor = torch.where(total == 0, torch.zeros_like(total), 1 / total)
        return mean_sum * factor, var_sum * factor

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.normalize(bottoms[0], None, None)]

    def normalize(self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """Normalise, then multiply by `weight` and add `bias` (a Scale layer's) in the same pass."""
        # PyTorch wants one, Caffe does not
        eps = max(self.param.batch_norm_param.eps, torch.finfo(torch.float32).tiny)
        flat = x.reshape(-1, 1) if x.dim() == 1 else x
        if self.global_stats:
            y = F.batch_norm(flat, *self.statistics(), weight, bias, False, 0.0, eps)
        else:
            mean_sum, var_sum, total = (blob.tensor() for blob in self.blobs)
            # momentum 1 leaves the batch's own mean and unbiased variance in these two
            mean, var = torch.zeros((2, *mean_sum.shape), device=mean_sum.device)
            if flat.numel() > flat.shape[1]:
                y = F.batch_norm(flat, mean, var, weight, bias, True, 1.0, eps)
            else:  # a channel's only value is its own mean: what is left of it is 0, and so is its gradient
                y = F.batch_norm(flat - flat, mean, var, weight, bias, False, 0.0, eps)
                mean = flat.detach().reshape(-1).float()
            if self.fraction is not None:
                with torch.no_grad():
                    sums = [mean_sum, var_sum, total]
                    torch._foreach_mul_(sums, self.fraction)
                    torch._foreach_add_(sums, [mean, var, self._one])
        if y.requires_grad and y.device.type == "cpu":
            y.register_hook(partial(_laid_out, y.stride()))
        return y.reshape(-1) if x.dim() == 1 else y


def _laid_out(strides: tuple[int, ...], gradient: torch.Tensor) -> torch.Tensor:
    """A top's gradient in the order of the top: for any other, such as a Concat's slice, PyTorch takes far longer."""
    if gradient.stride() == strides:
        return gradient
    return torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype).copy_(gradient)


@contextmanager
def running_sums(layers: Iterable[Layer], fraction: float | None) -> Iterator[None]:
    """Give all BatchNorm layers among these another `fraction` for a while.

    Parameters
    ----------
    layers: of a net in phase TRAIN.
    fraction: 1 adds up all batches alike; None leaves the running sums as they are.
    """
    norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
    before = [norm.fraction for norm in norms]
    for norm in norms:
        norm.fraction = fraction
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.fraction = own


def _covered(layer: Layer, axis: int, num_axes: int, x: Shape) -> Shape:
    """The shape of a learned operand: `num_axes` axes of the bottom from `axis` on; −1 is all, 0 a scalar."""
    first = layer.axis(axis, x)
    if num_axes < -1 or first + num_axes > len(x):
        layer.error(f"num_axes {num_axes} from axis {first} does not fit bottom {layer.param.bottom[0]!r} of shape {x}")
    return x[first:] if num_axes == -1 else x[first : first + num_axes]


def spread(layer: Layer, axis: int, operand: Shape, x: Shape) -> Shape:
    """The shape with which an operand that lies along the bottom's axes from `axis` on broadcasts against it."""
    first = layer.axis(axis, x) if operand else 0
    if x[first : first + len(operand)] != operand:
        bottom = f"bottom {layer.param.bottom[0]!r} of shape {x} from axis {first} on"
        layer.error(
            f"{layer.param.bottom[1]!r} of shape {operand} does not fit {bottom}"
            if len(layer.param.bottom) > 1
            else f"a parameter of shape {operand} does not fit {bottom}"
        )
    return (1,) * first + operand + (1,) * (len(x) - first - len(operand))


@register("Scale")
class Scale(Layer):
    """y = γ · x + β, γ and β over `num_axes` axes of the bottom from `axis` on.

    One bottom: γ (initially 1) and, with `bias_term`, β (initially 0) are parameters. Two bottoms: γ is the second,
    whose shape is that of the first from `axis` on.
    """

    bottoms = (1, 2)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.scale_param
        if len(shapes) == 2:
            shape = shapes[1]
        else:
            shape = _covered(self, p.axis, p.num_axes, shapes[0])
            self.add_blob(shape, p.filler if p.HasField("filler") else FillerParameter(type="constant", value=1))
        if p.bias_term:
            self.add_blob(shape, p.bias_filler)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        spread(self, self.param.scale_param.axis, shapes[1] if len(shapes) == 2 else self.blobs[0].shape, shapes[0])
        return [shapes[0]]

    @property
    def per_channel(self) -> bool:
        """True where γ and β are parameters of one value a channel, which BatchNorm can take into its own pass."""
        p = self.param.scale_param
        return len(self.param.bottom) == 1 and p.axis == 1 and p.num_axes == 1

    def gamma_beta(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.blobs[0].tensor(), self.blobs[1].tensor() if len(self.blobs) > 1 else None

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        operands = list(bottoms[1:]) + [blob.tensor() for blob in self.blobs]
        view = spread(self, self.param.scale_param.axis, tuple(operands[0].shape), tuple(x.shape))
        y = x * operands[0].view(view).to(x.dtype)
        return [y + operands[1].view(view).to(x.dtype) if len(operands) > 1 else y]


@register("Bias")
class Bias(Layer):
    """y = x + β, β over `num_axes` axes of the bottom from `axis` on.

    One bottom: β (initially 0) is a parameter. Two bottoms: β is the second, whose shape is that of the first from
    `axis` on.
    """

    bottoms = (1, 2)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.bias_param
        if len(shapes) == 1:
            self.add_blob(_covered(self, p.axis, p.num_axes, shapes[0]), p.filler)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        spread(self, self.param.bias_param.axis, shapes[1] if len(shapes) == 2 else self.blobs[0].shape, shapes[0])
        return [shapes[0]]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        bias = bottoms[1] if len(bottoms) == 2 else self.blobs[0].tensor()
        view = spread(self, self.param.bias_param.axis, tuple(bias.shape), tuple(x.shape))
        return [x + bias.view(view).to(x.dtype)]


@register("LRN")
class LRN(Layer):
    """Local response normalisation (Krizhevsky et al. 2012), on N×C×H×W.

    ACROSS_CHANNELS: y = x · (k + α/n · Σ x²)^−β, the sum over n = local_size neighbouring channels.
    WITHIN_CHANNEL: y = x · (1 + α · mean x²)^−β, the mean over an n×n window of the padded image.
    """

    def setup(self, shapes: list[Shape]) -> None:
        size = self.param.lrn_param.local_size
        if size % 2 == 0:
            self.error(f"local_size is {size}; expected an odd number")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        if len(shapes[0]) != 4:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}; expected N×C×H×W")
        return [shapes[0]]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, x = self.param.lrn_param, bottoms[0]
        if p.norm_region == LRNParameter.ACROSS_CHANNELS:
            with torch.autocast(x.device.type, enabled=False):
                return [x * _power(p.k + self._sum_across(x.float().square()), -p.beta).to(x.dtype)]
        mean = F.avg_pool2d(x * x, p.local_size, 1, (p.local_size - 1) // 2)
        return [x * _power(1 + p.alpha * mean, -p.beta)]

    def _sum_across(self, squares: torch.Tensor) -> torch.Tensor:
        """α/n times the sum over neighbouring channels: a product with a band matrix, which is quicker than a pool."""
        p, channels = self.param.lrn_param, squares.shape[1]
        reach = (p.local_size - 1) // 2
        band = squares.new_full((channels, channels), p.alpha / p.local_size).triu_(-reach).tril_(reach)
        return (squares.movedim(1, -1) @ band).movedim(-1, 1)


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """x^exponent for x > 0; the usual −0.75 by square roots, which are much quicker."""
    if exponent == -0.75:
        root = x.rsqrt()
        return root * root.sqrt()
    return x**exponent


class _Normalized(torch.autograd.Function):
    """Rows minus their mean, over their standard deviation + eps; the gradient is that of eps inside the deviation,
    as Caffe computes it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, eps: float) -> torch.Tensor:
        y = rows - rows.mean(1, keepdim=True)
        deviation = y.square().mean(1, keepdim=True).sqrt_().add_(eps)
        y /= deviation
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (diff,), (y, deviation) = gradients, ctx.saved_tensors
        return (diff - diff.mean(1, keepdim=True) - y * (diff * y).mean(1, keepdim=True)) / deviation, None


@register("MVN")
class MVN(Layer):
    """y = (x − mean) / (deviation + eps), mean and standard deviation of each channel of each image.

    `across_channels`: of each image. `normalize_variance: false`: only the mean is taken away. Bottom of up to four
    axes, top N×C×H×W, the missing axes 1.
    """

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        if len(shapes[0]) > 4:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {shapes[0]}; expected at most N×C×H×W")
        return [shapes[0] + (1,) * (4 - len(shapes[0]))]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, x = self.param.mvn_param, bottoms[0]
        shape = self.top_shapes([tuple(x.shape)])[0]
        lead = 1 if p.across_channels else 2
        rows = x.float().reshape(math.prod(shape[:lead]), math.prod(shape[lead:]))
        y = _Normalized.apply(rows, p.eps) if p.normalize_variance else rows - rows.mean(1, keepdim=True)
        return [y.view(shape)]
