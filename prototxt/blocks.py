"""The building blocks of the networks in networks.py, each a function that adds layers to a NetSpec.

All take the net `n`, the name that their layers' names begin with and the bottom, and return the top. A convolution
has the name itself, and the layers that work in place on its top that name with _bn, _scale and _relu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caffe import NetSpec
from caffe import layers as L
from caffe import params as P
from caffe.net_spec import Top

Kernel = int | tuple[int, int]

# He et al., arXiv 1502.01852: keeps the variance from layer to layer where a ReLU follows
MSRA = {"type": "msra"}
# of fully connected layers with no batch norm about them (Krizhevsky et al. 2012), and of the scores, which begin near
# 0, all classes equally likely; with 0.001 the layers below see too little of a gradient, and deep nets do not start
GAUSSIAN = {"type": "gaussian", "std": 0.01}
# biases, and the Scale of a batch norm, are not pulled to 0
NO_DECAY = {"decay_mult": 0}
WITH_BIAS = [{"lr_mult": 1}, NO_DECAY]


def geometry(kernel_size: Kernel, stride: int, pad: int | None) -> dict[str, int]:
    """A convolution's settings; without `pad`, that which keeps the size (of an odd kernel at stride 1)."""
    settings: dict[str, int] = {"stride": stride} if stride != 1 else {}
    if isinstance(kernel_size, int):
        pad = kernel_size // 2 if pad is None else pad
        return {"kernel_size": kernel_size, **({"pad": pad} if pad else {}), **settings}
    height, width = kernel_size
    rows, columns = (height // 2, width // 2) if pad is None else (pad, pad)
    return {"kernel_h": height, "kernel_w": width, "pad_h": rows, "pad_w": columns, **settings}


def convolution(n: NetSpec, name: str, bottom: Top, num_output: int, kernel_size: Kernel, **settings: Any) -> Top:
    """A convolution with bias and no batch norm; `settings` may have stride (1), pad (kernel // 2), weight_filler."""
    place = geometry(kernel_size, settings.pop("stride", 1), settings.pop("pad", None))
    settings = {"param": WITH_BIAS, "weight_filler": MSRA, **place, **settings}
    n[name] = L.Convolution(bottom, num_output=num_output, **settings)
    return n[name]


def conv_bn(
    n: NetSpec,
    name: str,
    bottom: Top,
    num_output: int,
    kernel_size: Kernel = 3,
    stride: int = 1,
    pad: int | None = None,
    group: int = 1,
    relu: bool = True,
) -> Top:
    """A convolution without bias, batch norm and, with `relu`, a ReLU.

    kernel_size: a number, or rows and columns.
    pad: default: kernel // 2, which keeps the size at stride 1.
    """
    settings = geometry(kernel_size, stride, pad) | ({"group": group} if group != 1 else {})
    n[name] = L.Convolution(bottom, num_output=num_output, bias_term=False, weight_filler=MSRA, **settings)
    return batch_norm(n, name, n[name], relu)


def batch_norm(n: NetSpec, name: str, bottom: Top, relu: bool = True) -> Top:
    """BatchNorm, the Scale that holds its gamma and beta and, with `relu`, a ReLU; all in place."""
    n[f"{name}_bn"] = L.BatchNorm(bottom, moving_average_fraction=0.99, in_place=True)
    n[f"{name}_scale"] = L.Scale(n[f"{name}_bn"], bias_term=True, param=[NO_DECAY, NO_DECAY], in_place=True)
    if not relu:
        return n[f"{name}_scale"]
    n[f"{name}_relu"] = L.ReLU(n[f"{name}_scale"], in_place=True)
    return n[f"{name}_relu"]


def depthwise_conv_bn(
    n: NetSpec, name: str, bottom: Top, channels: int, kernel_size: int = 3, stride: int = 1, relu: bool = True
) -> Top:
    """A convolution within each of `channels` channels, batch norm and, with `relu`, a ReLU."""
    return conv_bn(n, name, bottom, channels, kernel_size, stride, group=channels, relu=relu)


def separable_conv_bn(
    n: NetSpec, name: str, bottom: Top, inputs: int, num_output: int, kernel_size: int = 3, relu: bool = True
) -> Top:
    """Xception's separable convolution: a depthwise one, then 1×1 across the `inputs` channels, with nothing between;
    then batch norm and, with `relu`, a ReLU.
    """
    place = geometry(kernel_size, 1, None)
    n[f"{name}_dw"] = L.Convolution(
        bottom, num_output=inputs, group=inputs, bias_term=False, weight_filler=MSRA, **place
    )
    return conv_bn(n, name, n[f"{name}_dw"], num_output, kernel_size=1, relu=relu)


def max_pool(n: NetSpec, name: str, bottom: Top, kernel_size: int = 3, stride: int = 2, pad: int = 0) -> Top:
    """The maximum of each window. Caffe rounds the number of windows up, so that 3×3 at stride 2 makes an even side s
    s / 2; an odd one becomes (s − 1) / 2, or with `pad` 1 (s + 1) / 2, as a padded convolution of stride 2 makes it.
    """
    padding = {"pad": pad} if pad else {}
    n[name] = L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=kernel_size, stride=stride, **padding)
    return n[name]


def average_pool(n: NetSpec, name: str, bottom: Top, kernel_size: int, stride: int, pad: int = 0) -> Top:
    """The average of each window."""
    padding = {"pad": pad} if pad else {}
    n[name] = L.Pooling(bottom, pool=P.Pooling.AVE, kernel_size=kernel_size, stride=stride, **padding)
    return n[name]


def global_average(n: NetSpec, name: str, bottom: Top) -> Top:
    """The average of each channel, N×C×1×1: it takes faces of any size."""
    n[name] = L.Pooling(bottom, pool=P.Pooling.AVE, global_pooling=True)
    return n[name]


def dropout(n: NetSpec, name: str, bottom: Top, ratio: float) -> Top:
    """In training, values are 0 with probability `ratio`; in place."""
    n[name] = L.Dropout(bottom, dropout_ratio=ratio, in_place=True)
    return n[name]


def fully_connected(n: NetSpec, name: str, bottom: Top, num_output: int, filler: dict[str, Any] = MSRA) -> Top:
    """An inner product with bias."""
    n[name] = L.InnerProduct(bottom, num_output=num_output, weight_filler=filler, param=WITH_BIAS)
    return n[name]


def relu(n: NetSpec, name: str, bottom: Top, in_place: bool = True) -> Top:
    """A ReLU; not in place where something else reads the bottom, as a shortcut beside it does."""
    n[name] = L.ReLU(bottom, in_place=in_place)
    return n[name]


def residual(n: NetSpec, name: str, shortcut: Top, branch: Top, scale: float = 1.0) -> Top:
    """shortcut + scale · branch, two blobs of one shape (He et al., arXiv 1512.03385)."""
    coeff = {"coeff": [1, scale]} if scale != 1 else {}
    n[name] = L.Eltwise(shortcut, branch, **coeff)
    return n[name]


def squeeze_excitation(n: NetSpec, name: str, bottom: Top, channels: int, reduction: int = 8) -> Top:
    """Each channel times a factor of 0..1 worked out from the averages of all channels (Hu et al., arXiv 1709.01507).

    `channels` of the bottom; the inner product between has channels / reduction units.
    """
    average = global_average(n, f"{name}_squeeze", bottom)
    x = relu(n, f"{name}_relu", fully_connected(n, f"{name}_reduce", average, channels // reduction))
    x = fully_connected(n, f"{name}_expand", x, channels, filler={"type": "xavier"})
    n[f"{name}_sigmoid"] = L.Sigmoid(x, in_place=True)
    # N×C from axis 0 on: a factor an image and channel
    n[name] = L.Scale(bottom, n[f"{name}_sigmoid"], axis=0)
    return n[name]


def channel_shuffle(n: NetSpec, name: str, left: Top, right: Top, channels: int) -> Top:
    """The channels of two blobs of one shape, by turns: left 0, right 0, left 1, … (Zhang et al., arXiv 1707.01083);
    `channels` of both together.

    It costs no more than the Concat that it replaces: put together along the rows, N×C/2×2H×W, the values of a channel
    of `left` stand right before those of the same channel of `right`, and only the shape has to change.
    """
    n[f"{name}_concat"] = L.Concat(left, right, axis=2)
    n[name] = L.Reshape(n[f"{name}_concat"], shape={"dim": [0, channels, -1, 0]})
    return n[name]


def inverted_residual(
    n: NetSpec,
    name: str,
    bottom: Top,
    inputs: int,
    num_output: int,
    expansion: int,
    stride: int,
    kernels: Sequence[int] = (3,),
) -> Top:
    """MobileNetV2's block: 1×1 to `expansion` times the channels, a depthwise convolution, 1×1 back without ReLU; with
    a shortcut where the shape stays the same (Sandler et al., arXiv 1801.04381).

    kernels: of the depthwise convolution; several divide the channels among themselves.
    """
    x, channels = bottom, inputs * expansion
    if expansion > 1:
        x = conv_bn(n, f"{name}_expand", x, channels, kernel_size=1)
    if len(kernels) == 1:
        x = depthwise_conv_bn(n, f"{name}_dw", x, channels, kernels[0], stride)
    else:
        x = multikernel_conv_bn(n, f"{name}_dw", x, channels, kernels, stride)
    x = conv_bn(n, f"{name}_project", x, num_output, kernel_size=1, relu=False)
    return residual(n, name, bottom, x) if stride == 1 and inputs == num_output else x


def multikernel_conv_bn(
    n: NetSpec, name: str, bottom: Top, channels: int, kernels: Sequence[int], stride: int = 1
) -> Top:
    """Depthwise convolutions of several kernel sizes side by side, each for its share of the channels, batch norm and
    ReLU (Tan and Le's MixConv, arXiv 1907.09595).
    """
    points = [channels * i // len(kernels) for i in range(len(kernels) + 1)]
    parts = L.Slice(bottom, slice_point=points[1:-1], ntop=len(kernels))
    branches = []
    for kernel, part, first, end in zip(kernels, parts, points, points[1:], strict=False):
        n[f"{name}{kernel}_slice"] = part
        branches.append(depthwise_conv_bn(n, f"{name}{kernel}", part, end - first, kernel, stride))
    n[name] = L.Concat(*branches)
    return n[name]
