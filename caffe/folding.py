"""Inference with weights that stand still: each convolution takes in what follows it: BatchNorm, Scale, the sum with
what a residual block's other branch gives, ReLU.

Only what nobody can see is left out: results that are overwritten in place, or that one layer reads and nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import lru_cache

import torch
import torch.nn.functional as F

from .layers.activation import ReLU
from .layers.base import Layer, Shape
from .layers.combine import Eltwise
from .layers.normalization import BatchNorm, Scale
from .layers.vision import Convolution, InnerProduct, channels_last
from .proto.caffe_pb2 import EltwiseParameter

# A call of oneDNN takes 40 microseconds before it computes anything: for each of its calls PyTorch lets it choose anew
# how to compute. A matrix product takes 2, so up to so many multiplications that is the quicker way,
MOST_MULTIPLICATIONS = {"convolution": 4 << 20, "1x1": 8 << 20, "linear": 1 << 20}
MOST_COLUMNS = 1 << 17  # where no more values than these have to be copied for it,
SHORTEST_RUN = 32  # so many together. With fewer outputs than the first number it pays only up to so many values:
NARROW_PRODUCT = (16, 1 << 16)


@lru_cache(4096)
def _product_tops(
    kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], outputs: int, shape: Shape, planes: bool
) -> tuple[int, int] | None:
    """Height and width of a convolution's tops, if it is quicker as a matrix product; else None.

    planes: whether what the kernel sees is copied in lines of an image's channels, not of the kernel.
    """
    number, channels = shape[:2]
    rows, columns = ((shape[2 + i] + 2 * pad[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    seen = number * rows * columns * channels * kernel[0] * kernel[1]
    pointwise = kernel == stride == (1, 1)
    narrow, most = NARROW_PRODUCT
    if outputs < narrow and seen > most:
        return None
    if rows < 1 or columns < 1 or seen * outputs > MOST_MULTIPLICATIONS["1x1" if pointwise else "convolution"]:
        return None
    if not pointwise and (seen > MOST_COLUMNS or (not planes and channels * kernel[1] < SHORTEST_RUN)):
        return None
    return rows, columns


def _one_dnn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes numbers of this type on this processor; others PyTorch computes without it."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported())


class Folded:
    """A Convolution or InnerProduct and up to four layers behind it, as one: y = relu(w' ∗ x + b' + z).

    w' = c · γ/σ · w and b' = c · (γ/σ · (b − μ) + β), a channel; in `dtype`, where one is given. z is the other bottom
    of a sum, and c this one's coefficient there; without a sum c = 1, z = 0. On a CPU oneDNN computes it in one
    call, with weights that are brought into its own order once rather than in every call; what is small is one matrix
    product.

    Attributes
    ----------
    added: the blob z, which `forward` expects as second bottom; None without a sum.
    """

    def __init__(
        self,
        layer: Convolution | InnerProduct,
        norm: BatchNorm | None,
        scale: Scale | None,
        added: tuple[str, float] | None,
        relu: ReLU | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.layer = layer
        self.added = added[0] if added else None
        coefficient = added[1] if added else 1.0
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
        factor, shift = factor * coefficient, shift * coefficient
        weight = weight.detach()
        if norm is not None or scale is not None or coefficient != 1:
            weight = (weight * factor.view(-1, *(1,) * (weight.dim() - 1))).to(weight.dtype)
        kept = weight.dtype if dtype is None else dtype
        self.weight = weight.to(kept)
        # by what there is, not by its values: to ask for these would be to wait for a GPU
        shifted = bias is not None or norm is not None or (scale is not None and len(scale.blobs) > 1)
        self.bias = shift.to(kept) if shifted else None
        # of the ReLU behind the layer itself, and whether there is one behind the sum
        self.slope = relu.param.relu_param.negative_slope if relu is not None and added is None else None
        self._rectified = relu is not None and added is not None
        self._shift = shift.to(kept)  # the bias, zeros where there is none
        image = isinstance(layer, InnerProduct) or weight.dim() == 4
        self._one_dnn = weight.device.type == "cpu" and image and _one_dnn_computes(kept)
        self._small = self._one_dnn and kept == torch.float32
        if isinstance(layer, Convolution):
            self._small = self._small and layer.group == 1 and layer.dilation == (1, 1)
        self._packed: dict[bool, torch.Tensor] = {}
        self._transposed = self.weight.t() if self.weight.dim() == 2 else self.weight
        self._matrices: dict[tuple[int, ...], torch.Tensor] = {}
        # ReLU as oneDNN is told of it
        self._activation: tuple[str, list[float], str] = ("none", [], "")
        if self.slope is not None:
            self._activation = ("leaky_relu", [self.slope], "") if self.slope else ("relu", [], "")

    def _matrix(self, order: tuple[int, ...]) -> torch.Tensor:
        """The weights as K×O, with the axes of K in that order."""
        if order not in self._matrices:
            self._matrices[order] = self.weight.permute(*order, 0).reshape(-1, self.weight.shape[0]).contiguous()
        return self._matrices[order]

    def _product(self, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """relu(rows · matrix + b')."""
        if self.slope == 0:
            return torch._addmm_activation(self._shift, rows, matrix)
        y = torch.addmm(self._shift, rows, matrix)
        return F.leaky_relu_(y, self.slope) if self.slope else y

    def _as_product(self, layer: Convolution, x: torch.Tensor) -> torch.Tensor | None:
        """The convolution of N×C×H×W as a product with the values that the kernel sees, if that is small; else None.

        These are rows of the kernel's lines from channels-last images, or, of a single image of few channels, for each
        place in the kernel a line of all that it meets: copies in runs that are long.
        """
        planes = x.shape[0] == 1 and x.shape[1] <= 4 and x.is_contiguous()
        tops = _product_tops(layer.kernel, layer.stride, layer.pad, self.weight.shape[0], tuple(x.shape), planes)
        if tops is None:
            return None
        (down, right), (over, left), (height, width) = layer.stride, layer.pad, layer.kernel
        number, channels, (rows, columns) = x.shape[0], x.shape[1], tops
        if over or left:
            x = F.pad(x, (left, left, over, over))
        if planes:
            plane, line = x.shape[2] * x.shape[3], x.shape[3]
            seen = x.as_strided((channels, height, width, rows, columns), (plane, line, 1, down * line, right))
            y = self._product(seen.reshape(-1, rows * columns).t(), self._matrix((1, 2, 3)))
        else:
            x = channels_last(x)
            image, _, line, step = x.stride()
            strides = (image, down * line, right * step, line, 1)
            seen = x.as_strided((number, rows, columns, height, width * channels), strides)
            y = self._product(seen.reshape(number * rows * columns, -1), self._matrix((2, 3, 1)))
        return y.view(number, rows, columns, -1).permute(0, 3, 1, 2)

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

    def _convolve(self, layer: Convolution, x: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        images = layer.batched(x)
        y = self._as_product(layer, images) if self._small else None
        if y is None:
            images = channels_last(images)
            place = layer.pad, layer.stride, layer.dilation, layer.group
            packed = self._pack(images)
            if z is not None and z.dtype == packed.dtype and z.numel():  # oneDNN adds it and rectifies on the way
                relu = "relu" if self._rectified else None
                return torch.ops.mkldnn._convolution_pointwise.binary(
                    images, channels_last(z), packed, self.bias, *place, "add", 1.0, relu, [], None
                )
            y = torch.ops.mkldnn._convolution_pointwise(images, packed, self.bias, *place, *self._activation)
        return layer.unbatched(self._add(y, z), x)

    def _add(self, y: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        """relu(y + z), or y where there is no sum; y may be overwritten."""
        if z is None:
            return y
        y = y.add_(z) if y.dtype == z.dtype else y + z
        return y.relu_() if self._rectified else y

    def _multiply(self, layer: InnerProduct, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != layer.first + 1:
            x = x.flatten(layer.first)
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if self._small and rows.shape[0] * self.weight.numel() <= MOST_MULTIPLICATIONS["linear"]:
            y = self._product(rows, self._transposed)
        else:
            y = torch.ops.mkldnn._linear_pointwise(rows, self._pack(rows), self.bias, *self._activation)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], -1)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        layer, x = self.layer, bottoms[0]
        z = None if self.added is None else bottoms[1]
        if self._one_dnn and x.numel():
            if x.dtype != self.weight.dtype:
                x = x.to(self.weight.dtype)
            return [self._convolve(layer, x, z) if isinstance(layer, Convolution) else self._multiply(layer, x)]
        y = layer.apply(x, self.weight, self.bias)
        if self.slope is not None:
            y = F.leaky_relu_(y, self.slope) if self.slope else y.relu_()
        return [self._add(y, z)]


def _other_term(layer: Eltwise, term: str) -> tuple[str, float] | None:
    """Of a sum y = c · term + z: z and c; None for what is no such sum."""
    p, bottoms = layer.param.eltwise_param, list(layer.param.bottom)
    if p.operation != EltwiseParameter.SUM or len(bottoms) != 2 or bottoms.count(term) != 1:
        return None
    place = bottoms.index(term)
    coefficients = p.coeff or (1.0, 1.0)
    return (bottoms[1 - place], coefficients[place]) if coefficients[1 - place] == 1 else None


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
        """The next layer, where it overwrites what there is now, or is the only one that reads it."""
        here, behind = layers[number].param.top, layers[number + 1] if number + 1 < len(layers) else None
        if behind is None or (behind.param.bottom != here and not isinstance(behind, Eltwise)):
            return None
        return behind if behind.param.top == here or here[0] in hidden else None

    norm = scale = added = relu = None
    if isinstance(layer, Convolution) and layer.channel_axis == 1:
        channels = layer.blobs[0].shape[0]
        if isinstance(behind := following(), BatchNorm) and behind.global_stats:
            norm, number = behind, number + 1
        if isinstance(behind := following(), Scale) and behind.per_channel and behind.blobs[0].shape == (channels,):
            scale, number = behind, number + 1
        if isinstance(behind := following(), Eltwise) and (added := _other_term(behind, layers[number].param.top[0])):
            number += 1
    if isinstance(behind := following(), ReLU) and not (added and behind.param.relu_param.negative_slope):
        relu, number = behind, number + 1
    return Folded(layer, norm, scale, added, relu, dtype), number
