"""What a pass runs: the layers one by one, or groups of them as one where nobody looks at what stands between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set

import torch

from .folding import Folded, fold
from .layers.activation import RectifyInPlace, ReLU
from .layers.base import Layer
from .layers.normalization import BatchNorm, Scale


class BatchNormScale:
    """A BatchNorm and the Scale right behind it, both in place, computed in one pass over the data."""

    def __init__(self, norm: BatchNorm, scale: Scale) -> None:
        self.norm, self.scale = norm, scale

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.norm.normalize(bottoms[0], *self.scale.gamma_beta())]


class ReLUInPlace:
    """A ReLU that its prototxt has in place, behind a layer that does not need what it has made."""

    def __init__(self, layer: ReLU) -> None:
        self.layer = layer

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        # 16 bits are slower in place on a CPU; a view would lose its place in the graph
        if x.dtype is not torch.float32 or x._is_view():
            return self.layer.forward(bottoms)
        return [RectifyInPlace.apply(x)]


Step = Layer | BatchNormScale | ReLUInPlace | Folded
Plan = list[tuple[Step, int, int]]  # what to run, in order: a layer or a group, its first and its last layer's number


def fuse_norms(layers: Sequence[Layer]) -> Plan:
    """What to run where no one looks at what stands between a BatchNorm and its Scale."""
    plan: Plan = []
    i = 0
    while i < len(layers):
        layer, following = layers[i], layers[i + 1] if i + 1 < len(layers) else None
        if (
            isinstance(layer, BatchNorm)
            and isinstance(following, Scale)
            and following.per_channel
            and following.blobs[0].count == layer.blobs[0].count
            and all(
                [*names] == [*layer.param.top]
                for names in (layer.param.bottom, following.param.bottom, following.param.top)
            )
        ):
            plan.append((BatchNormScale(layer, following), i, i + 1))
            i += 2
        else:
            plan.append((layer, i, i))
            i += 1
    return plan


def rectify_in_place(layers: Sequence[Layer], plan: Plan) -> Plan:
    """The plan with ReLUs overwriting their bottoms: those in place behind a layer that has no use for what it made."""
    result: Plan = []
    makers = ("Convolution", "Deconvolution", "InnerProduct", "BatchNorm", "Scale", "Bias", "Eltwise")
    for step, begin, last in plan:
        layer = layers[begin]
        if (
            isinstance(layer, ReLU)
            and not layer.param.relu_param.negative_slope
            and begin > 0
            and layers[begin - 1].type in makers
            and [*layer.param.bottom] == [*layer.param.top] == [*layers[begin - 1].param.top]
        ):
            step = ReLUInPlace(layer)
        result.append((step, begin, last))
    return result


def hidden_blobs(layers: Sequence[Layer], outputs: Sequence[str]) -> set[str]:
    """Blobs that one layer makes, one other reads, or several in turn, in place, and nobody sees."""
    made = Counter(top for layer in layers for top in layer.param.top)
    read = Counter(bottom for layer in layers for bottom in layer.param.bottom)
    return {name for name in made if made[name] == read[name] and name not in outputs}


class InferencePlan:
    """What a net in phase TEST runs where no gradient is wanted, with the weights as they are now.

    Parameters
    ----------
    plan: what it runs else.
    layers: its layers.
    dtype: in which convolutions and inner products are computed; None is float32.
    hidden: the blobs of which nobody wants the values, so that they need not be computed.

    Attributes
    ----------
    steps: the plan with groups folded.
    """

    def __init__(self, plan: Plan, layers: Sequence[Layer], dtype: torch.dtype | None, hidden: Set[str]) -> None:
        self._parameters = list({id(blob.owner): blob.owner for layer in layers for blob in layer.blobs}.values())
        self._tensors = [parameter.tensor() for parameter in self._parameters]
        self._held = any(parameter.held for parameter in self._parameters)
        self._changes = self._count_changes()
        self.steps: Plan = []
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
