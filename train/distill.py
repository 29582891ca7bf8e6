"""Distillation: a net learns what trained ones answer, for the same augmented faces, beside the labels.

`python -m train --teachers FOLDER … [--temperature T] [--teacher-share S]` uses this. It adds to the training net a
Teacher layer and a second loss:

    loss = (1 − S) · loss by the labels + S · T² · cross-entropy of softmax(score / T) and the teachers' probabilities

of which the latter are softened by T too (Hinton et al., arXiv 1503.02531; T² keeps the size of its gradient).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe.io import load_mean, read_net_parameter
from caffe.phases import filter_net
from caffe.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter, NetState
from preprocessing.classes import default_classes, read_classes
from preprocessing.stage import StageError
from train.ensemble import trained_files
from train.finetune import count_classes, last_layer

TEMPERATURE = 2.0
SHARE = 0.9
NAMES = TEACHER, SOFTENED, TAUGHT = "teacher", "softened_score", "distillation"  # of layers and blobs
# grey levels, of 0..255, that a pixel of the means may differ by; those of FER2013 aligned and unaligned differ by 12
MEAN_TOLERANCE = 6.0


@dataclass
class Teachers:
    """Trained nets that another net learns from.

    Parameters
    ----------
    folders: of finished runs, or of models that ship.
    temperature: T, above 0.
    share: S, above 0, at most 1.

    Raises StageError for another temperature or share, and for a folder without a trained net.
    """

    folders: Sequence[Path]
    temperature: float = TEMPERATURE
    share: float = SHARE

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise StageError(f"--temperature is {self.temperature}; expected a number above 0")
        if not 0 < self.share <= 1:
            raise StageError(f"--teacher-share is {self.share}; expected a number above 0, at most 1")
        self.files = [trained_files(folder) for folder in self.folders]
        self.channels: list[int] = []  # the first of the faces' that each teacher sees, where it sees not all

    @property
    def paths(self) -> list[Path]:
        """Files that decide what they teach."""
        return [path for deploy, weights, _ in self.files for path in (deploy, weights)]

    def check(self, mean: Path, classes: Sequence[str], own_folders: Sequence[Path]) -> None:
        """Choose the channels that each teacher sees of the run's faces: all, or those whose mean is nearest its own.

        Raises StageError where a teacher has other classes or another mean than the run, or lies in one of its folders.
        """
        own, channels, part = load_mean(mean), [], False
        for folder, (deploy, weights, theirs) in zip(self.folders, self.files, strict=True):
            if folder.resolve() in own_folders:  # which a run with other settings clears
                raise StageError(f"--teachers names {folder}, the run's own folder; expected a trained net elsewhere")
            net = read_net_parameter(deploy)
            count = count_classes(net, last_layer(net, deploy), deploy)
            names = read_classes(folder) or default_classes(count)
            if tuple(names) != tuple(classes):
                raise StageError(
                    f"--teachers names {weights}, whose classes are {', '.join(names)}; expected {', '.join(classes)}"
                )
            other = load_mean(theirs)
            differences = _differences(own, other)
            first = int(np.argmin(differences)) if differences else 0
            if not differences or not differences[first] <= MEAN_TOLERANCE:  # which a mean of NaN is not either
                how = f"by up to {differences[first]:.1f} grey levels" if differences else "in size"
                raise StageError(
                    f"--teachers names {theirs}, which differs {how} from {mean}; expected at most {MEAN_TOLERANCE:g} "
                    "grey levels, since a teacher sees the faces as the net does, minus the net's mean"
                )
            channels.append(first)
            part = part or other.shape != own.shape
        self.channels = channels if part else []

    def join(self, net: NetParameter, state: NetState, data: LayerParameter, path: Path) -> None:
        """Add the teachers to a training net in a state, behind its Data layer `data`; `path` is the net's, for errors.

        Raises StageError where the net has not exactly one SoftmaxWithLoss in phase TRAIN, scales its images, or has
        taken the new layers' names.
        """
        if data.transform_param.scale != 1:
            raise StageError(
                f"{path}: layer {data.name!r} has scale {data.transform_param.scale:g}; expected 1 beside --teachers, "
                "which see the same images"
            )
        chosen = NetParameter()
        chosen.CopyFrom(net)
        chosen.state.CopyFrom(state)
        chosen.state.phase = TRAIN
        kept = filter_net(chosen).layer
        losses = [layer for layer in net.layer if layer.type == "SoftmaxWithLoss" and layer in kept]
        if len(losses) != 1:
            raise StageError(f"{path}: {len(losses)} SoftmaxWithLoss in phase TRAIN; expected one beside --teachers")
        taken = {name for layer in net.layer for name in (layer.name, *layer.top)} & set(NAMES)
        if taken:
            raise StageError(f"{path}: the name {min(taken)!r} is taken; expected another, since --teachers need it")
        layers: list[LayerParameter] = []
        for layer in net.layer:
            if layer == losses[0]:
                layers += [*self._losses(layer, kept, data), *_for_tests(layer)]
            else:
                layers += [layer, self._teacher(layer)] if layer == data else [layer]
        del net.layer[:]
        net.layer.extend(layers)

    def _teacher(self, data: LayerParameter) -> LayerParameter:
        """The layer that holds the teachers, right behind the data: what works in place there comes later."""
        layer = LayerParameter(name=TEACHER, type="Teacher", bottom=data.top[:1], top=[TEACHER])
        layer.include.add(phase=TRAIN)
        layer.teacher_param.net.extend(str(deploy) for deploy, _, _ in self.files)
        layer.teacher_param.weights.extend(str(weights) for _, weights, _ in self.files)
        layer.teacher_param.temperature = self.temperature
        layer.teacher_param.channel.extend(self.channels)
        return layer

    def _losses(
        self, loss: LayerParameter, kept: Sequence[LayerParameter], data: LayerParameter
    ) -> list[LayerParameter]:
        """The loss by the labels, of less weight, and by the teachers, in training.

        What `kept`, the training net, does to the labels between `data` and the loss, is done to the answers too.
        """
        labels = LayerParameter()
        labels.CopyFrom(loss)
        weights = list(loss.loss_weight) or [1.0] + [0.0] * (len(loss.top) - 1)
        labels.loss_weight[:] = [(1 - self.share) * weight for weight in weights]
        softened = LayerParameter(name=SOFTENED, type="Power", bottom=loss.bottom[:1], top=[SOFTENED])
        softened.power_param.scale = 1 / self.temperature
        names, done = dict.fromkeys(data.top[1:], TEACHER), []
        for layer in _between(kept, data, loss.bottom[1]):
            names |= {top: f"{TEACHER}_{top}" for top in layer.top}
            done.append(LayerParameter())
            done[-1].CopyFrom(layer)
            done[-1].name = f"{TEACHER}_{layer.name}"
            done[-1].bottom[:] = [names.get(bottom, bottom) for bottom in layer.bottom]
            done[-1].top[:] = [names[top] for top in layer.top]
        answers = names.get(loss.bottom[1], TEACHER)
        taught = LayerParameter(name=TAUGHT, type="SoftmaxWithLoss", bottom=[SOFTENED, answers], top=[TAUGHT])
        taught.loss_weight.append(self.share * self.temperature**2)
        for layer in (labels, softened, *done, taught):
            layer.ClearField("include")
            layer.ClearField("exclude")
            layer.include.add(phase=TRAIN)
        return [labels, softened, *done, taught]


def _differences(own: np.ndarray, other: np.ndarray) -> list[float]:
    """By how much, at most, a mean c×H×W differs from each c channels of one of C×H×W; none if it has another size."""
    count = len(other)
    if other.shape[1:] != own.shape[1:]:
        return []
    return [float(np.abs(own[first : first + count] - other).max()) for first in range(len(own) - count + 1)]


def _between(layers: Sequence[LayerParameter], data: LayerParameter, last: str) -> list[LayerParameter]:
    """The layers, in their order, by which the blob `last` comes from what `data` reads."""
    found: list[LayerParameter] = []
    needed = {last} - set(data.top)
    for layer in reversed(layers):
        if layer.bottom and needed & set(layer.top):
            found.insert(0, layer)
            needed |= set(layer.bottom) - set(data.top)
    return found


def _for_tests(loss: LayerParameter) -> list[LayerParameter]:
    """A loss as tests have it, with its whole weight; none, where it is for training alone."""
    tested = LayerParameter()
    tested.CopyFrom(loss)
    if not loss.include:
        tested.exclude.add(phase=TRAIN)
        return [tested]
    tested.ClearField("include")
    tested.include.extend(rule for rule in loss.include if not rule.HasField("phase") or rule.phase == TEST)
    for rule in tested.include:
        rule.phase = TEST
    return [tested] if tested.include else []
