"""Layers that pass values on as they are, in another shape, number or part; Silence none, Parameter its own."""

from __future__ import annotations

import math

import torch

from ..proto.caffe_pb2 import FillerParameter
from .base import Layer, Shape, register


def _not_in_place(layer: Layer) -> None:
    """Raise CaffeError where a top is the bottom, which then would have to have two shapes, or two readers."""
    if layer.param.bottom[0] in layer.param.top:
        layer.error(f"top {layer.param.bottom[0]!r} is its bottom; expected another name, it cannot work in place")


@register("Flatten")
class Flatten(Layer):
    """The axes from `axis` to `end_axis` become one; with end_axis right before axis, a new one of size 1 there."""

    def setup(self, shapes: list[Shape]) -> None:
        _not_in_place(self)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        p, shape = self.param.flatten_param, shapes[0]
        first, last = self.axis(p.axis, shape), self.axis(p.end_axis, shape)
        if first > last + 1:
            self.error(
                f"axis {p.axis} is behind end_axis {p.end_axis} for bottom {self.param.bottom[0]!r} of shape {shape}"
            )
        return [(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0].reshape(self.top_shapes([tuple(bottoms[0].shape)])[0])]


@register("Reshape")
class Reshape(Layer):
    """The axes from `axis`, `num_axes` of them (−1: all), get the sizes of `shape`: 0 keeps a size, −1 infers one."""

    def setup(self, shapes: list[Shape]) -> None:
        _not_in_place(self)

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

    def setup(self, shapes: list[Shape]) -> None:
        _not_in_place(self)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [shapes[0]] * len(self.param.top)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [bottoms[0].view_as(bottoms[0]) for _ in self.param.top]


@register("Tile")
class Tile(Layer):
    """The bottom `tiles` times, one after another along `axis`."""

    def setup(self, shapes: list[Shape]) -> None:
        if self.param.tile_param.tiles < 1:
            self.error(f"tiles is {self.param.tile_param.tiles}; expected at least 1")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        axis = self.axis(self.param.tile_param.axis, shapes[0])
        return [(*shapes[0][:axis], shapes[0][axis] * self.param.tile_param.tiles, *shapes[0][axis + 1 :])]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        repeats = [1] * bottoms[0].dim()
        repeats[self.param.tile_param.axis] = self.param.tile_param.tiles
        return [bottoms[0].repeat(repeats)]


@register("Crop")
class Crop(Layer):
    """The part of the first bottom, of the size of the second along all axes from `axis` on, that begins at `offset`.

    One offset for all those axes (default 0), or one each. Only the second bottom's shape counts; no gradient to it.
    """

    bottoms = (2, 2)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.crop_param
        axes = len(shapes[0]) - self.axis(p.axis, shapes[0])
        if len(p.offset) not in (0, 1, axes):
            self.error(f"has {len(p.offset)} offset for {axes} axes from axis {p.axis} on; expected none, 1 or {axes}")

    def _part(self, shape: Shape, like: Shape) -> list[tuple[int, int, int]]:
        """Axis, begin and size along each axis that is cut."""
        p, names = self.param.crop_param, self.param.bottom
        first = self.axis(p.axis, shape)
        offsets = list(p.offset) or [0]
        part = []
        for axis, offset in zip(range(first, len(shape)), offsets * (len(shape) - first), strict=False):
            if axis >= len(like) or offset + like[axis] > shape[axis]:
                bottoms = f"bottoms {names[0]!r} {shape} and {names[1]!r} {like}"
                self.error(f"{bottoms}: offset {offset} and the second's size exceed the first's along axis {axis}")
            part.append((axis, offset, like[axis]))
        return part

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        part = self._part(shapes[0], shapes[1])
        return [(*shapes[0][: part[0][0]], *(size for _, _, size in part))]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        y = bottoms[0]
        for axis, begin, size in self._part(tuple(y.shape), tuple(bottoms[1].shape)):
            y = y.narrow(axis, begin, size)
        return [y]


@register("Silence")
class Silence(Layer):
    """No top: it takes bottoms that nothing else reads, so that they are no outputs of the net. Their gradient is 0."""

    bottoms = (1, None)
    tops = (0, 0)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return []

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return []


@register("Parameter")
class ParameterLayer(Layer):
    """y = a parameter of the shape `shape`, initially 0."""

    bottoms = (0, 0)

    def setup(self, shapes: list[Shape]) -> None:
        self.add_blob(tuple(self.param.parameter_param.shape.dim), FillerParameter())

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [self.blobs[0].shape]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        tensor = self.blobs[0].tensor()
        return [tensor.view_as(tensor)]
