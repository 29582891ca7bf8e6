"""Losses, softmax and accuracy. Labels are a blob of whole numbers stored as float32, as everything in Caffe."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..proto.caffe_pb2 import LossParameter
from .base import Layer, Shape, register

LARGEST_LOSS = -math.log(torch.finfo(torch.float32).tiny)
NO_LABEL = -(2**63)  # torch's default of -100 would pass over such a label without a word


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


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(Layer):
    """loss = −Σ log p(label) / normalizer, p the softmax of bottom 0 along `axis`; bottom 1 holds the labels.

    Normalizer: VALID (default) the labels that are not `ignore_label`, FULL all labels, BATCH_SIZE the sizes in
    front of `axis`, NONE 1. Tops: the loss, a scalar, and if asked for the probabilities.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    default_loss_weight = 1.0

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.loss_param
        self.along = self.axis(self.param.softmax_param.axis, shapes[0])
        self.ignore = p.ignore_label if p.HasField("ignore_label") else None
        if not p.HasField("normalization") and p.HasField("normalize"):
            self.normalization = LossParameter.VALID if p.normalize else LossParameter.BATCH_SIZE
        else:
            self.normalization = p.normalization

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        check_labels(self, shapes, self.along)
        return [(), shapes[0]][: len(self.param.top)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        scores = bottoms[0].float()
        rows = scores.movedim(self.along, -1).reshape(-1, scores.shape[self.along])
        labels = bottoms[1].reshape(-1).long()
        ignore = NO_LABEL if self.ignore is None else self.ignore
        try:
            losses = F.cross_entropy(rows, labels, ignore_index=ignore, reduction="none")
        except IndexError as error:
            self.error(f"a label in {self.param.bottom[1]!r} is outside 0..{rows.shape[1] - 1}: {error}")
        # Caffe takes the logarithm of no less than the smallest float; its gradient does not know of that
        total = (losses - (losses - LARGEST_LOSS).clamp(min=0).detach()).sum()
        if self.normalization == LossParameter.VALID and self.ignore is not None:
            total = total / (labels != self.ignore).sum().clamp(min=1)
        elif self.normalization in (LossParameter.VALID, LossParameter.FULL):
            total = total / max(labels.numel(), 1)
        elif self.normalization == LossParameter.BATCH_SIZE:
            total = total / max(math.prod(scores.shape[: self.along]), 1)
        return [total] if len(self.param.top) == 1 else [total, torch.softmax(scores, self.along)]


@register("Accuracy")
class Accuracy(Layer):
    """The share of labels (bottom 1) whose score (bottom 0, along `axis`) is among the `top_k` highest.

    A score equal to the label's counts as higher, as in Caffe. Tops: the share, a scalar, and if asked for the share
    per class (0 for a class without labels). Not differentiable.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    differentiable = False

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.accuracy_param
        self.along = self.axis(p.axis, shapes[0])
        if not 1 <= p.top_k <= shapes[0][self.along]:
            self.error(f"top_k is {p.top_k}; expected 1 to {shapes[0][self.along]}, the number of classes")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        check_labels(self, shapes, self.along)
        return [(), (shapes[0][self.along],)][: len(self.param.top)]

    @torch.no_grad()
    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, scores = self.param.accuracy_param, bottoms[0].float()
        classes = scores.shape[self.along]
        rows = scores.movedim(self.along, -1).reshape(-1, classes)
        labels = bottoms[1].reshape(-1).long()
        if p.HasField("ignore_label"):
            kept = labels != p.ignore_label
            rows, labels = rows[kept], labels[kept]
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            self.error(f"a label in {self.param.bottom[1]!r} is outside 0..{classes - 1}")
        own = rows.gather(1, labels[:, None])
        correct = ((rows >= own).sum(1) <= p.top_k).float()
        share = correct.sum() / max(labels.numel(), 1)
        if len(self.param.top) == 1:
            return [share]
        counts = torch.bincount(labels, minlength=classes)
        hits = torch.bincount(labels, weights=correct, minlength=classes)
        return [share, (hits / counts.clamp(min=1)).float()]
