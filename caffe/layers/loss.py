"""Losses, softmax and accuracy. Labels are a blob of whole numbers stored as float32, as everything in Caffe.

A loss is a scalar, its weight in the objective 1 unless `loss_weight` says otherwise. No gradient goes to labels.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import CaffeError
from ..io import blobproto_to_array, read_binary
from ..proto.caffe_pb2 import BlobProto, HingeLossParameter, LossParameter
from .base import Layer, Shape, register
from .lookup import whole_numbers

LARGEST_LOSS = -math.log(torch.finfo(torch.float32).tiny)
NO_LABEL = -(2**63)  # torch's default of -100 would pass over such a label without a word
LEAST_PROBABILITY = 1e-20  # that MultinomialLogisticLoss and InfogainLoss take the logarithm of


class _GradientOf(torch.autograd.Function):
    """A value with the gradient of another, for losses whose gradient in Caffe is not quite that of their value."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradients[0]


@register("Softmax")
class Softmax(Layer):
    """y_i = exp(x_i) / Σ_j exp(x_j) along `axis`."""

    def setup(self, shapes: list[Shape]) -> None:
        self.axis(self.param.softmax_param.axis, shapes[0])

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.softmax(bottoms[0].float(), self.param.softmax_param.axis)]


def check_labels(layer: Layer, shapes: list[Shape], axis: int) -> None:
    """One label for each position beside `axis` of the scores, or an error that says both counts."""
    scores, labels = shapes[0], shapes[1]
    expected = math.prod(scores[:axis]) * math.prod(scores[axis + 1 :])
    if math.prod(labels) != expected:
        layer.error(
            f"{layer.param.bottom[1]!r} of shape {labels} holds {math.prod(labels)} labels; "
            f"{layer.param.bottom[0]!r} of shape {scores} needs {expected}"
        )


def soft_labels(shapes: list[Shape], axis: int) -> bool:
    """Whether the labels are probabilities, one for each score, instead of one number for all classes of a place.

    Axes of one value at the end, as global pooling leaves them, do not matter.
    """
    scores, labels = (tuple(itertools.dropwhile(lambda size: size == 1, shape[::-1])) for shape in shapes[:2])
    return scores == labels and shapes[0][axis] > 1


def check_one_each(layer: Layer, bottom: int, shapes: list[Shape]) -> None:
    """Raise CaffeError where a bottom has not one value for each row of the first."""
    if math.prod(shapes[bottom]) != shapes[0][0]:
        name = layer.param.bottom[bottom]
        layer.error(f"bottom {name!r} has shape {shapes[bottom]}; expected {shapes[0][0]} values, one a row")


class _Loss(Layer):
    """What losses share: two bottoms of the same number of rows, and how a sum is normalised."""

    bottoms = (2, 2)
    default_loss_weight = 1.0

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        if not shapes[0] or shapes[0][:1] != shapes[1][:1]:
            first, second = (f"{name!r} {shape}" for name, shape in zip(self.param.bottom[:2], shapes, strict=False))
            self.error(f"bottoms {first} and {second} differ in axis 0, the batch; expected as many rows")
        return [()]

    def needs_count(self, shapes: list[Shape]) -> None:
        """Raise CaffeError where the second bottom has not as many values as the first."""
        if math.prod(shapes[0]) != math.prod(shapes[1]):
            first, second = (f"{name!r} {shape}" for name, shape in zip(self.param.bottom[:2], shapes, strict=False))
            self.error(f"bottoms {first} and {second} differ in their number of values")

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.loss_param
        self.ignore = p.ignore_label if p.HasField("ignore_label") else None
        if not p.HasField("normalization") and p.HasField("normalize"):
            self.normalization = LossParameter.VALID if p.normalize else LossParameter.BATCH_SIZE
        else:
            self.normalization = p.normalization

    def normalize(self, total: torch.Tensor, labels: torch.Tensor, batch: int) -> torch.Tensor:
        """`total` over the number of labels (one axis) that are not ignored, of all, of the batch, or 1; at least 1."""
        if self.normalization == LossParameter.VALID and self.ignore is not None:
            return total / (labels != self.ignore).sum().clamp(min=1)
        if self.normalization in (LossParameter.VALID, LossParameter.FULL):
            return total / max(labels.numel(), 1)
        return total / max(batch, 1) if self.normalization == LossParameter.BATCH_SIZE else total


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(_Loss):
    """loss = −Σ log p(label) / normalizer, p the softmax of bottom 0 along `axis`; bottom 1 holds the labels.

    Normalizer: VALID (default) the labels that are not `ignore_label`, FULL all labels, BATCH_SIZE the sizes in
    front of `axis`, NONE 1. Tops: the loss, a scalar, and if asked for the probabilities, without gradient.

    Beyond Caffe: labels of the scores' shape are soft, and −log p(label) becomes −Σ_k label_k log p_k. In TRAIN,
    `label_smoothing` s makes the label (1 − s) · label + s / K, and `class_weight` counts a label of class k w_k times:
    its loss, and in the normalizer VALID.
    """

    tops = (1, 2)

    def setup(self, shapes: list[Shape]) -> None:
        super().setup(shapes)
        self.along = self.axis(self.param.softmax_param.axis, shapes[0])
        p, classes = self.param.loss_param, shapes[0][self.along]
        if not 0 <= p.label_smoothing < 1:
            self.error(f"label_smoothing is {p.label_smoothing:g}; expected at least 0 and less than 1")
        if len(p.class_weight) not in (0, classes) or any(not 0 <= weight < math.inf for weight in p.class_weight):
            self.error(f"class_weight is {list(p.class_weight)}; expected {classes} numbers, one a class, 0 or more")
        self.smoothing = p.label_smoothing if self.training else 0.0
        self.weights = torch.tensor(p.class_weight, device=self.device) if p.class_weight and self.training else None

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        self.soft = soft_labels(shapes, self.along)
        if not self.soft:
            check_labels(self, shapes, self.along)
        elif self.ignore is not None:
            self.error(f"ignore_label is {self.ignore}; soft labels, of the scores' shape, have no such label")
        return [*super().top_shapes(shapes), shapes[0]][: len(self.param.top)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        scores = bottoms[0].float()
        rows = scores.movedim(self.along, -1).reshape(-1, scores.shape[self.along])
        if self.soft or self.smoothing or self.weights is not None:
            labels = bottoms[1].detach().reshape(scores.shape) if self.soft else bottoms[1]
            total = self._general_loss(rows, labels, math.prod(scores.shape[: self.along]))
            return [total] if len(self.param.top) == 1 else [total, torch.softmax(scores.detach(), self.along)]
        labels = bottoms[1].reshape(-1).long()
        ignore = NO_LABEL if self.ignore is None else self.ignore
        if labels.device.type != "cpu":  # where cross_entropy does not name it, and nothing can be computed any more
            kept = labels != ignore
            checked = whole_numbers(self, 1, torch.where(kept, labels, 0), rows.shape[1], "a label")
            labels = torch.where(kept, checked, ignore)
        try:
            losses = F.cross_entropy(rows, labels, ignore_index=ignore, reduction="none")
        except IndexError as error:
            self.error(f"a label in {self.param.bottom[1]!r} is outside 0..{rows.shape[1] - 1}: {error}")
        # Caffe takes the logarithm of no less than the smallest float; its gradient does not know of that
        total = _GradientOf.apply(losses.detach().clamp(max=LARGEST_LOSS), losses).sum()
        total = self.normalize(total, labels, math.prod(scores.shape[: self.along]))
        return [total] if len(self.param.top) == 1 else [total, torch.softmax(scores.detach(), self.along)]

    def _general_loss(self, rows: torch.Tensor, labels: torch.Tensor, batch: int) -> torch.Tensor:
        """The loss of soft, smoothed or weighted labels; `rows` are the scores, one place each."""
        classes = rows.shape[1]
        if self.soft:
            shares = labels.float().movedim(self.along, -1).reshape(-1, classes)
            kept = torch.ones(len(rows), device=rows.device)
        else:
            numbers = labels.reshape(-1)
            kept = torch.ones_like(numbers) if self.ignore is None else (numbers != self.ignore).float()
            whole = whole_numbers(self, 1, torch.where(kept.bool(), numbers, 0), classes, "a label")
            shares = F.one_hot(whole, classes).float()
        weights = kept if self.weights is None else kept * (shares @ self.weights)
        shares = (1 - self.smoothing) * shares + self.smoothing / classes
        total = -(weights * (shares * torch.log_softmax(rows, 1)).sum(1)).sum()
        if self.normalization == LossParameter.VALID:
            return total / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return self.normalize(total, kept, batch)


@register("InfogainLoss")
class InfogainLoss(_Loss):
    """loss = −Σ Σ_k H[label, k] log p_k / normalizer, p the softmax of bottom 0 along `axis`, of K classes.

    Bottom 1 holds the labels; H, K×K, is a third bottom or the .binaryproto `source`. Logarithms of no less than
    1e-20. Normalizer and tops as of SoftmaxWithLoss.
    """

    bottoms = (2, 3)
    tops = (1, 2)
    recordable = False

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.infogain_loss_param
        super().setup(shapes)
        if self.param.loss_param.HasField("normalize"):
            self.error("loss_param has normalize; expected normalization")
        self.along = self.axis(p.axis, shapes[0])
        self.matrix: torch.Tensor | None = None
        if len(shapes) == 2:
            if not p.HasField("source"):
                self.error("has no third bottom and infogain_loss_param no source; expected one of them")
            try:
                array = blobproto_to_array(read_binary(p.source, BlobProto()))
            except CaffeError as error:
                self.error(str(error))
            self.matrix = torch.from_numpy(array).to(self.device, torch.float32)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        check_labels(self, shapes, self.along)
        classes = shapes[0][self.along]
        where, shape = (
            (self.param.infogain_loss_param.source, tuple(self.matrix.shape))
            if self.matrix is not None
            else (f"bottom {self.param.bottom[2]!r}", shapes[2])
        )
        if math.prod(shape) != classes**2:
            self.error(f"{where} has shape {shape}; expected {classes}×{classes}, a row and a column a class")
        return [*super().top_shapes(shapes), shapes[0]][: len(self.param.top)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        scores = bottoms[0].float()
        classes = scores.shape[self.along]
        log_p = scores.movedim(self.along, -1).reshape(-1, classes).log_softmax(-1)
        labels = bottoms[1].reshape(-1).long()
        counted = torch.ones_like(labels, dtype=torch.bool) if self.ignore is None else labels != self.ignore
        chosen = whole_numbers(self, 1, labels[counted], classes, "a label")
        matrix = self.matrix if self.matrix is not None else bottoms[2].detach().float()
        weights, log_p = matrix.reshape(classes, classes)[chosen], log_p[counted]
        # the gradient does not know of the least probability
        value = -(weights * log_p.detach().clamp(min=math.log(LEAST_PROBABILITY))).sum()
        total = _GradientOf.apply(value, -(weights * log_p).sum())
        total = self.normalize(total, labels, math.prod(scores.shape[: self.along]))
        return [total] if len(self.param.top) == 1 else [total, torch.softmax(scores.detach(), self.along)]


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_Loss):
    """loss = −Σ log p[label] / N, of probabilities (bottom 0, N×K) that a Softmax, say, gave, and N labels.

    Logarithms of no less than 1e-20; the gradient −1 / (N · max(p, 1e-20)).
    """

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        tops = super().top_shapes(shapes)
        check_one_each(self, 1, shapes)
        return tops

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        rows = bottoms[0].float().flatten(1)
        labels = whole_numbers(self, 1, bottoms[1], rows.shape[1], "a label")
        p = rows.gather(1, labels[:, None])
        least = p.detach().clamp(min=LEAST_PROBABILITY)
        return [_GradientOf.apply(-least.log().sum(), -(p / least).sum()) / max(rows.shape[0], 1)]


@register("HingeLoss")
class HingeLoss(_Loss):
    """loss = Σ max(0, 1 − s·x) / N, s 1 for the label's score and −1 for others; with `norm: L2` of the squares.

    Bottoms: scores N×K, and N labels.
    """

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        tops = super().top_shapes(shapes)
        check_one_each(self, 1, shapes)
        return tops

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        rows = bottoms[0].float().flatten(1)
        labels = whole_numbers(self, 1, bottoms[1], rows.shape[1], "a label")
        sign = torch.ones_like(rows).scatter_(1, labels[:, None], -1)
        violations = F.relu(1 + sign * rows)
        if self.param.hinge_loss_param.norm == HingeLossParameter.L2:
            violations = violations * violations
        return [violations.sum() / max(rows.shape[0], 1)]


@register("EuclideanLoss")
class EuclideanLoss(_Loss):
    """loss = Σ (a − b)² / (2 N), of two bottoms of N rows with the same number of values; gradients go to both."""

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        self.needs_count(shapes)
        return super().top_shapes(shapes)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        a, b = (x.float().reshape(-1) for x in bottoms)
        return [(a - b).square().sum() / (2 * max(bottoms[0].shape[0], 1))]


@register("ContrastiveLoss")
class ContrastiveLoss(_Loss):
    """loss = Σ (s·d² + (1 − s)·max(margin − d, 0)²) / (2 N), d = ‖a − b‖, s whether a pair is alike (Hadsell 2006).

    `legacy_version`: max(margin − d², 0) for pairs that are not. Bottoms: a and b, N×C(×1×1), and s, N values, 0 or
    not. In the gradient of a pair that is not alike, Caffe divides by d + 1e-4 for d.
    """

    bottoms = (3, 3)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        tops = super().top_shapes(shapes)
        for name, shape in zip(self.param.bottom, shapes[:2], strict=False):
            if math.prod(shape[2:]) != 1 or shape[1:2] != shapes[0][1:2]:
                self.error(
                    f"bottom {name!r} has shape {shape}; expected N×C(×1×1), N and C as of {self.param.bottom[0]!r}"
                )
        check_one_each(self, 2, shapes)
        return tops

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p = self.param.contrastive_loss_param
        a, b = (x.float().reshape(x.shape[0], math.prod(x.shape[1:])) for x in bottoms[:2])
        alike = bottoms[2].reshape(-1).long() != 0
        squares = (a - b).square().sum(1)
        distance = squares.detach().sqrt()
        if p.legacy_version:
            apart = (p.margin - squares.detach()).clamp(min=0)
            slope = torch.where(apart > 0, -1.0, 0.0)
        else:
            short = (p.margin - distance).clamp(min=0)
            apart, slope = short.square(), -short / (distance + 1e-4)
        value = torch.where(alike, squares.detach(), apart).sum()
        pull = (torch.where(alike, 1.0, slope) * squares).sum()
        return [_GradientOf.apply(value, pull) / (2 * max(a.shape[0], 1))]


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(_Loss):
    """loss = −Σ (t log σ(x) + (1 − t) log(1 − σ(x))) / normalizer, of scores x and targets t in 0..1, as many.

    Normalizer: BATCH_SIZE (default) the rows, FULL all values, VALID those whose target, cut to a whole number, is
    not `ignore_label`, NONE 1.
    """

    def setup(self, shapes: list[Shape]) -> None:
        super().setup(shapes)
        p = self.param.loss_param
        if not p.HasField("normalization") and not p.HasField("normalize"):
            self.normalization = LossParameter.BATCH_SIZE

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        self.needs_count(shapes)
        return super().top_shapes(shapes)

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        scores, targets = bottoms[0].float().reshape(-1), bottoms[1].detach().float().reshape(-1)
        losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        labels = targets.long()
        if self.ignore is not None:
            losses = losses.masked_fill(labels == self.ignore, 0)
        return [self.normalize(losses.sum(), labels, bottoms[0].shape[0])]


@register("Accuracy")
class Accuracy(Layer):
    """The share of labels (bottom 1) whose score (bottom 0, along `axis`) is among the `top_k` highest.

    A score equal to the label's counts as higher, as in Caffe. Tops: the share, a scalar, and if asked for the share
    per class (0 for a class without labels). Not differentiable. Soft labels, of the scores' shape, count as the class
    that is most probable.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    differentiable = False

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.accuracy_param
        self.along = self.axis(p.axis, shapes[0])
        if not 1 <= p.top_k <= shapes[0][self.along]:
            self.error(f"top_k is {p.top_k}; expected 1 to {shapes[0][self.along]}, the number of classes")
        self.recordable = not p.HasField("ignore_label") and len(self.param.top) == 1

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        self.soft = soft_labels(shapes, self.along)
        if not self.soft:
            check_labels(self, shapes, self.along)
        return [(), (shapes[0][self.along],)][: len(self.param.top)]

    @torch.no_grad()
    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, scores = self.param.accuracy_param, bottoms[0].float()
        classes = scores.shape[self.along]
        rows = scores.movedim(self.along, -1).reshape(-1, classes)
        labels = bottoms[1].reshape(scores.shape).argmax(self.along) if self.soft else bottoms[1]
        labels = labels.reshape(-1).long()
        if p.HasField("ignore_label"):
            kept = labels != p.ignore_label
            rows, labels = rows[kept], labels[kept]
        labels = whole_numbers(self, 1, labels, classes, "a label")
        own = rows.gather(1, labels[:, None])
        correct = ((rows >= own).sum(1) <= p.top_k).float()
        share = correct.sum() / max(labels.numel(), 1)
        if len(self.param.top) == 1:
            return [share]
        counts = torch.bincount(labels, minlength=classes)
        hits = torch.bincount(labels, weights=correct, minlength=classes)
        return [share, (hits / counts.clamp(min=1)).float()]
