"""Layers that only rearrange: flatten, reshape, slice, split."""

from __future__ import annotations

import math

import torch

from .base import Layer, Shape, register


@register("Flatten")
class Flatten(Layer):
    """The axes from `axis` to `end_axis` become one."""

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        p, shape = self.param.flatten_param, shapes[0]
        first, last = self.axis(p.axis, shape), self.axis(p.end_axis, shape)
        if first > last:
            self.error(f"axis {p.axis} is behind end_axis {p.end_axis} for bottom shape {shape}")
        return [(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p = self.param.flatten_param
        return [bottoms[0].flatten(p.axis, p.end_axis)]


@register("Reshape")
class Reshape(Layer):
    """The axes from `axis`, `num_axes` of them (−1: all), get the sizes of `shape`: 0 keeps a size, −1 infers one."""

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        p, shape = self.param.reshape_param, shapes[0]
        # a negative axis counts the places before, between and behind the axes
        first = p.axis if p.axis >= 0 else len(shape) + 1 + p.axis
        if not 0 <= first <= len(shape):
            self.error(f"axis {p.axis} is out of range for bottom shape {shape}")
        last = len(shape) if p.num_axes == -1 else first + p.num_axes
        if not first <= last <= len(shape):
            self.error(f"num_axes {p.num_axes} from axis {first} does not fit bottom shape {shape}")
        sizes = list(p.shape.dim)
        for i, size in enumerate(sizes):
            if size < -1 or (size == 0 and first + i >= len(shape)):
                self.error(f"shape's dim {i} is {size}, which bottom shape {shape} does not allow")
            if size == 0:
                sizes[i] = shape[first + i]
        if sizes.count(-1) > 1:
            self.error("shape has more than one dim of -1")
        known = math.prod(size for size in sizes if size != -1)
        count = math.prod(shape[first:last])
        if -1 in sizes:
            if known == 0 or count % known:
                self.error(f"the dim of -1 cannot be inferred: {count} values do not divide by {known}")
            sizes[sizes.index(-1)] = count // known
        elif known != count:
            self.error(f"bottom shape {shape} has {count} values to reshape; shape {sizes} has {known}")
        return [(*shape[:first], *sizes, *shape[last:])]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0].reshape(self.top_shapes([tuple(bottoms[0].shape)])[0])]


@register("Slice")
class Slice(Layer):
    """The bottom cut along `axis` at the `slice_point`s, or into equal parts, a top each."""

    tops = (1, None)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.slice_param
        if p.HasField("slice_dim") and p.HasField("axis"):
            self.error("slice_dim and axis are both given; expected one")
        self.along = self.axis(p.slice_dim if p.HasField("slice_dim") else p.axis, shapes[0])

    def _sizes(self, shape: Shape) -> list[int]:
        points, tops, size = list(self.param.slice_param.slice_point), len(self.param.top), shape[self.along]
        if not points:
            if size % tops:
                self.error(f"axis {self.along} of bottom shape {shape} does not divide into {tops} tops")
            return [size // tops] * tops
        if len(points) != tops - 1:
            self.error(f"has {len(points)} slice_point for {tops} tops; expected {tops - 1}")
        sizes = [b - a for a, b in zip([0, *points], [*points, size], strict=True)]
        if min(sizes) <= 0:
            self.error(f"slice_point {points} must increase and stay below {size}, the size of axis {self.along}")
        return sizes

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        shape, i = shapes[0], self.along
        return [(*shape[:i], size, *shape[i + 1 :]) for size in self._sizes(shape)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(torch.split(bottoms[0], self._sizes(tuple(bottoms[0].shape)), self.along))


@register("Split")
class Split(Layer):
    """Every top is the bottom; the gradients of the tops add up. A net needs none: a blob may have several readers."""

    tops = (1, None)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [shapes[0]] * len(self.param.top)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0].view_as(bottoms[0]) for _ in self.param.top]
