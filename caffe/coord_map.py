"""Where a blob's coordinates lie in another's: pycaffe's coord_map, for cropping one feature map to fit another.

    from caffe.coord_map import crop
    n.score = crop(n.upscore, n.data)  # the Crop layer with the offset at which upscore lies on data

A map is (axis, scale, shift): coordinate x of the one blob is scale · x + shift of the other. The axis is the one
before the first that it applies to (None: any, for an identity); scale and shift are numbers or arrays of one number
an axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import CaffeError
from .net_spec import Function, Top, layers

Map = tuple[int | None, Any, Any]

# Layers whose tops lie exactly on their bottoms.
PASS_THROUGH_LAYERS = [
    *("AbsVal", "BatchNorm", "Bias", "BNLL", "Clip", "Dropout", "Eltwise", "ELU", "Exp", "Log", "LRN", "MVN"),
    *("Power", "PReLU", "ReLU", "Scale", "Sigmoid", "Split", "Swish", "TanH", "Threshold"),
]
UNMAPPED_PARAMETERS = {"pad_h", "pad_w", "kernel_h", "kernel_w", "stride_h", "stride_w"}


class UndefinedMapException(CaffeError):  # noqa: N818 - pycaffe's name
    """The layer's top has no position on its bottom: InnerProduct, say."""


class AxisMismatchException(CaffeError):  # noqa: N818 - pycaffe's name
    """Two maps that begin at different axes have no composition."""


class CropError(CaffeError, AssertionError):
    """No offset crops the one blob to the other. An AssertionError, too, as in pycaffe."""


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Axis, stride, kernel size (as dilated) and padding of a Convolution, Deconvolution, Im2col or Pooling.

    Raises CaffeError where the layer has no kernel_size, or has sizes by the names that end in _h and _w.
    """
    own = "pooling_param" if fn.type_name == "Pooling" else "convolution_param"
    params = fn.params.get(own, fn.params)
    found = sorted(UNMAPPED_PARAMETERS & set(params))
    if found or "kernel_size" not in params:
        raise CaffeError(f"{fn.type_name}: has {', '.join(found) or 'no kernel_size'}; cropping needs kernel_size")
    kernel, stride, dilation, pad = (
        np.array(params.get(name, default), ndmin=1)
        for name, default in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("pad", 0))
    )
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """Axis (the first that is cropped; 2 unless given) and offset of a Crop layer."""
    params = fn.params.get("crop_param", fn.params)
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map from a layer's bottom to its top.

    Raises UndefinedMapException for a layer that has none.
    """
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if fn.type_name in PASS_THROUGH_LAYERS:
        return None, 1, 0
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset  # a convolution's axis is the channels', a crop's the first spatial one
    raise UndefinedMapException(f"{fn.type_name}: its top has no position on its bottom")


def compose(base_map: Map, next_map: Map) -> Map:
    """The map that applies `next_map`, then `base_map`.

    Raises AxisMismatchException where they begin at different axes.
    """
    base_axis, base_scale, base_shift = base_map
    next_axis, next_scale, next_shift = next_map
    if base_axis is not None and next_axis is not None and base_axis != next_axis:
        raise AxisMismatchException(f"maps from axis {base_axis} and from axis {next_axis}; expected the same")
    axis = next_axis if base_axis is None else base_axis
    return axis, base_scale * next_scale, base_scale * next_shift + base_shift


def inverse(coord_map: Map) -> Map:
    """The map the other way."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def _bottoms(top: Top) -> list[tuple[Top, Map]]:
    """The bottoms on which a top has a position, each with the map from it; none for a layer without a map."""
    # a Crop's second bottom only says a size
    inputs = top.fn.inputs[:1] if top.fn.type_name == "Crop" else top.fn.inputs
    try:
        return [(bottom, coord_map(top.fn)) for bottom in inputs]
    except UndefinedMapException:
        return []


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map from `top_from` to `top_to`, by way of a blob from which both are computed.

    Where several ways lead there, they are taken to agree.

    Raises CaffeError where there is no such blob, and what `compose` raises.
    """
    from_maps: dict[Top, Map] = {top_from: (None, 1, 0)}
    frontier = [top_from]
    while frontier:
        top = frontier.pop()
        for bottom, bottom_map in _bottoms(top):
            from_maps[bottom] = compose(from_maps[top], bottom_map)
            frontier.append(bottom)
    to_maps: dict[Top, Map] = {top_to: (None, 1, 0)}
    frontier = [top_to]
    while frontier:
        top = frontier.pop()
        if top in from_maps:
            return compose(to_maps[top], inverse(from_maps[top]))
        for bottom, bottom_map in _bottoms(top):
            to_maps[bottom] = compose(to_maps[top], bottom_map)
            frontier.append(bottom)
    raise CaffeError(
        f"a top of {top_from.fn.type_name} and one of {top_to.fn.type_name} have no position on each other; expected "
        "two that come from one blob through layers with positions (convolution, pooling, and the like)"
    )


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that cuts `top_from` to the size of `top_to`, where that lies on it.

    Raises CropError where their scales differ or the offset is negative or no whole number, and what
    `coord_map_from_to` raises.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    scale, shift = np.array(scale, ndmin=1), np.array(shift, ndmin=1)
    if (scale != 1).any():
        raise CropError(f"crop: the scale is {scale}; expected 1: the tops' strides differ")
    if (shift > 0).any():
        raise CropError(f"crop: the offset is {-shift}; expected 0 or more: the top to crop is the smaller one")
    if (shift != np.round(shift)).any():
        raise CropError(f"crop: the offset is {-shift}; expected whole numbers")
    if axis is None:
        raise CropError("crop: the tops lie exactly on each other, along all axes; there is nothing to crop")
    return layers.Crop(top_from, top_to, crop_param={"axis": axis + 1, "offset": (-shift).astype(int).tolist()})
