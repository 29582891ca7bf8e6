"""How large and how costly a net is: its learned parameters, and the multiply-adds of one forward pass.

complexity(caffe.Net("deploy.prototxt", caffe.TEST))
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .layers.recurrent import LSTM, RNN
from .layers.vision import Convolution, Deconvolution, InnerProduct

if TYPE_CHECKING:
    from .layers import Layer
    from .net import Net


class Complexity(NamedTuple):
    """What `complexity` counts."""

    parameters: int
    multiply_adds: int


def complexity(net: Net) -> Complexity:
    """The size and the cost of a net.

    Parameters
    ----------
    net: any net, at the shapes that its blobs have now: with a batch of one, the cost is that of one image.

    Returns
    -------
    parameters: values of all layers, shared ones once. BatchNorm's running sums are not among them: they are measured
        and not learned.
    multiply_adds: products with weights of Convolution, Deconvolution, InnerProduct, RNN and LSTM layers in one
        forward pass, a multiplication and an addition as one. Zeros of the padding count as values, as is usual;
        biases, BatchNorm, Scale, activations, pooling and other work on single values do not count.
    """
    learned = {id(blob): blob.count for layer in net.layers if layer.type != "BatchNorm" for blob in layer.blobs}
    return Complexity(sum(learned.values()), sum(_multiply_adds(net, layer) for layer in net.layers))


def _multiply_adds(net: Net, layer: Layer) -> int:
    bottoms = [net.blobs[name].shape for name in layer.param.bottom]
    tops = [net.blobs[name].shape for name in layer.param.top]
    if isinstance(layer, Convolution):  # each value of a top is the product with one filter
        return sum(map(math.prod, tops)) * math.prod(layer.blobs[0].shape[1:])
    if isinstance(layer, Deconvolution):  # each value of a bottom is multiplied by one filter
        return sum(map(math.prod, bottoms)) * math.prod(layer.blobs[0].shape[1:])
    if isinstance(layer, InnerProduct):
        return math.prod(bottoms[0][: layer.first]) * layer.blobs[0].count
    if isinstance(layer, RNN | LSTM):
        steps, streams = bottoms[0][:2]
        matrices = sum(blob.count for blob in layer.blobs if len(blob.shape) == 2)
        # the product with the static input is the same in all steps and computed once
        static = layer.blobs[2].count if layer.static else 0
        return streams * (steps * (matrices - static) + static)
    return 0
