"""Layers that combine: several bottoms into one top, or the values of one bottom into fewer."""

from __future__ import annotations

import math

import torch

from ..proto.caffe_pb2 import EltwiseParameter, ReductionParameter
from .base import Layer, Shape, register


@register("Eltwise")
class Eltwise(Layer):
    """PROD: y = Π x_i. SUM: y = Σ coeff_i · x_i (coeff 1 where not given). MAX: y = max x_i. All of one shape.

    The gradient of PROD is always computed as with `stable_prod_grad`, from the other factors.
    """

    bottoms = (2, None)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.eltwise_param
        if p.coeff and len(p.coeff) != len(shapes):
            self.error(f"has {len(p.coeff)} coeff for {len(shapes)} bottoms; expected none or one a bottom")
        if p.coeff and p.operation == EltwiseParameter.PROD:
            self.error("has coeff with operation: PROD; expected none, coeff is for SUM")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        for shape, name in zip(shapes, self.param.bottom, strict=True):
            if shape != shapes[0]:
                self.error(f"bottom {name!r} has shape {shape}; expected {shapes[0]}, the first bottom's")
        return [shapes[0]]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, y = self.param.eltwise_param, bottoms[0]
        if p.operation == EltwiseParameter.SUM and p.coeff:
            y = y * p.coeff[0]
        for i, x in enumerate(bottoms[1:], 1):
            if p.operation == EltwiseParameter.PROD:
                y = y * x
            elif p.operation == EltwiseParameter.SUM:
                y = torch.add(y, x, alpha=p.coeff[i] if p.coeff else 1.0)
            else:
                # where two are equal the gradient goes to one of them: the second of the first pair, else the earlier
                y = torch.where(y > x, y, x) if i == 1 else torch.where(x > y, x, y)
        return [y]


@register("Concat")
class Concat(Layer):
    """The bottoms one after another along `axis`; the other axes agree."""

    bottoms = (1, None)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.concat_param
        if p.HasField("concat_dim") and p.HasField("axis"):
            self.error("concat_dim and axis are both given; expected one")
        self.along = self.axis(p.concat_dim if p.HasField("concat_dim") else p.axis, shapes[0])

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        i = self.along
        for shape, name in zip(shapes, self.param.bottom, strict=True):
            if len(shape) != len(shapes[0]) or shape[:i] + shape[i + 1 :] != shapes[0][:i] + shapes[0][i + 1 :]:
                self.error(f"bottom {name!r} has shape {shape}, which differs from {shapes[0]} beside axis {i}")
        return [(*shapes[0][:i], sum(shape[i] for shape in shapes), *shapes[0][i + 1 :])]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.cat(bottoms, self.along)]


@register("Reduction")
class Reduction(Layer):
    """y = coeff · Σ x over all axes from `axis` on; ASUM: Σ |x|, SUMSQ: Σ x², MEAN: the mean.

    Bottom D0×…, top D0×…×D(axis−1), a scalar for axis 0.
    """

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [shapes[0][: self.axis(self.param.reduction_param.axis, shapes[0])]]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, x = self.param.reduction_param, bottoms[0].float()
        first = self.axis(p.axis, tuple(x.shape))
        if p.operation == ReductionParameter.ASUM:
            x = x.abs()
        elif p.operation == ReductionParameter.SUMSQ:
            x = x * x
        y = x.sum(tuple(range(first, x.dim())))
        mean = p.operation == ReductionParameter.MEAN
        return [y * (p.coeff / max(math.prod(x.shape[first:]), 1) if mean else p.coeff)]
