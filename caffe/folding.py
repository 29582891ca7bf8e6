"""Inference with weights that stand still: each convolution takes in what follows it, BatchNorm, Scale and ReLU.

Only what nobody can see is left out: results that are overwritten in place, or that one layer reads and nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
import torch.nn.functional as F

from .layers.activation import ReLU
from .layers.base import Layer
from .layers.normalization import BatchNorm, Scale
from .layers.vision import Convolution, InnerProduct, channels_last

# Multiplications of an input below which a call of the packed kind, which takes 20 microseconds to begin, is no gain.
FEWEST_MULTIPLICATIONS = 250_000


class Folded:
    """A Convolution or InnerProduct and up to three layers behind it, as one: y = relu(w' ∗ x + b').

    w' = γ/σ · w and b' = γ/σ · (b − μ) + β, a channel; in `dtype`, where one is given. On a CPU oneDNN computes it in
    one call, with weights that are brought into its own order once rather than in every call.
    """

    def __init__(
        self,
        layer: Convolution | InnerProduct,
        norm: BatchNorm | None,
        scale: Scale | None,
        relu: ReLU | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.layer = layer
        weight, bias = layer.operands()
        factor = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
        shift = torch.zeros_like(factor) if bias is None else bias.detach().double()
        if norm is not None:
            mean, var = (blob.double() for blob in norm.statistics())
            deviation = (var + norm.param.batch_norm_param.eps).sqrt()
            factor, shift = factor / deviation, (shift - mean) / deviation
        if scale is not None:
            gamma, beta = scale.gamma_beta()
            factor, shift = factor * gamma.detach(), shift * gamma.detach()
            shift = shift if beta is None else shift + beta.detach()
        weight = weight.detach()
        if norm is not None or scale is not None:
            weight = (weight * factor.view(-1, *(1,) * (weight.dim() - 1))).to(weight.dtype)
        kept = weight.dtype if dtype is None else dtype
        self.weight = weight.to(kept)
        self.bias = shift.to(kept) if shift.any() else None
        self.slope = None if relu is None else relu.param.relu_param.negative_slope
        image = isinstance(layer, InnerProduct) or weight.dim() == 4
        self._one_dnn = weight.device.type == "cpu" and image and torch.backends.mkldnn.is_available()
        self._packed: dict[bool, torch.Tensor] = {}
        # ReLU as oneDNN is told of it
        self._activation: tuple[str, list[float], str] = ("none", [], "")
        if self.slope is not None:
            self._activation = ("leaky_relu", [self.slope], "") if self.slope else ("relu", [], "")

    def _worth_packing(self, rows: int, places: int) -> bool:
        """Whether oneDNN's call with packed weights is the quicker one, for so many rows and places a row."""
        depthwise = isinstance(self.layer, Convolution) and self.layer.group > 1
        return (
            self._one_dnn and rows > 0 and (depthwise or rows * places * self.weight.numel() > FEWEST_MULTIPLICATIONS)
        )

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        """The weights in the order that oneDNN wants for such inputs: one for a single row, another for batches.

        Where it would have yet another for this very shape, it reorders them in the call.
        """
        single = x.shape[0] == 1
        if single not in self._packed:
            layer, weight = self.layer, self.weight.contiguous()
            if isinstance(layer, Convolution):
                pad, stride, dilation = list(layer.pad), list(layer.stride), list(layer.dilation)
                packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(
                    weight.to_mkldnn(), pad, stride, dilation, layer.group, list(x.shape)
                )
            else:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
            self._packed[single] = packed
        return self._packed[single]

    def _convolve(self, layer: Convolution, x: torch.Tensor) -> torch.Tensor | None:
        images = channels_last(layer.batched(x.to(self.weight.dtype)))
        if not self._worth_packing(images.shape[0], images.shape[2] * images.shape[3]):
            return None
        place = layer.pad, layer.stride, layer.dilation, layer.group
        packed = self._pack(images)
        y = torch.ops.mkldnn._convolution_pointwise(images, packed, self.bias, *place, *self._activation)
        return layer.unbatched(y, x)

    def _multiply(self, layer: InnerProduct, x: torch.Tensor) -> torch.Tensor | None:
        x = x.to(self.weight.dtype).flatten(layer.first)
        rows = x.reshape(-1, x.shape[-1])
        if not self._worth_packing(rows.shape[0], 1):
            return None
        y = torch.ops.mkldnn._linear_pointwise(rows, self._pack(rows), self.bias, *self._activation)
        return y.reshape(*x.shape[:-1], -1)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        layer, y = self.layer, None
        if self._one_dnn:
            x = bottoms[0]
            y = self._convolve(layer, x) if isinstance(layer, Convolution) else self._multiply(layer, x)
        if y is None:
            y = layer.apply(bottoms[0], self.weight, self.bias)
            if self.slope is not None:
                y = F.leaky_relu_(y, self.slope) if self.slope else y.relu_()
        return [y]


def fold(
    layers: Sequence[Layer], number: int, dtype: torch.dtype | None, hidden: Set[str]
) -> tuple[Folded, int] | None:
    """Layer `number` with what it can take in, and the last one's number; None for a layer of another kind.

    hidden: the blobs that need not be there in the end.
    """
    layer = layers[number]
    if not isinstance(layer, Convolution | InnerProduct) or len(layer.param.top) != 1:
        return None

    def following() -> Layer | None:
        """The next layer, where it works in place or is the only one that reads what there is now."""
        here, behind = layers[number].param.top, layers[number + 1] if number + 1 < len(layers) else None
        if behind is None or behind.param.bottom != here:
            return None
        return behind if behind.param.top == here or here[0] in hidden else None

    norm = scale = relu = None
    if isinstance(layer, Convolution) and layer.channel_axis == 1:
        channels = layer.blobs[0].shape[0]
        if isinstance(behind := following(), BatchNorm) and behind.global_stats:
            norm, number = behind, number + 1
        if isinstance(behind := following(), Scale) and behind.per_channel and behind.blobs[0].shape == (channels,):
            scale, number = behind, number + 1
    if isinstance(behind := following(), ReLU):
        relu, number = behind, number + 1
    return Folded(layer, norm, scale, relu, dtype), number


class InferencePlan:
    """What a net in phase TEST runs where no gradient is wanted, with the weights as they are now.

    Parameters
    ----------
    plan: what it runs else, in order: (layer or group of layers, first layer's number, last layer's number).
    layers: its layers.
    hidden: the blobs of which nobody wants the values, so that they need not be computed.
    dtype: in which convolutions and inner products are computed; None is float32.

    Attributes
    ----------
    steps: the same with groups folded.
    """

    def __init__(
        self,
        plan: Sequence[tuple[Any, int, int]],
        layers: Sequence[Layer],
        dtype: torch.dtype | None,
        hidden: Set[str] = frozenset(),
    ) -> None:
        self._parameters = list({id(blob): blob for layer in layers for blob in layer.blobs}.values())
        self._tensors = [parameter.tensor() for parameter in self._parameters]
        self._held = any(parameter.held for parameter in self._parameters)
        self._changes = self._count_changes()
        self.steps: list[tuple[Any, int, int]] = []
        done = -1
        for step, first, last in plan:
            if last <= done:
                continue
            folded = fold(layers, first, dtype, hidden) if first > done else None
            if folded is not None:
                step, last = folded
            elif first <= done:  # half of this group is folded already
                step, first = layers[last], last
            self.steps.append((step, first, last))
            done = last

    @property
    def current(self) -> bool:
        """Whether the weights are surely the same still: nobody has had an array of them to write into."""
        return not self._held and self._changes == self._count_changes()

    def _count_changes(self) -> tuple[int, int]:
        """Arrays given out, and changes by torch: neither number ever falls."""
        return sum([p.taken for p in self._parameters]), sum([tensor._version for tensor in self._tensors])
