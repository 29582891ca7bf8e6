"""Teacher: trained nets inside of a net that is trained to answer as they do."""

from __future__ import annotations

import math

import torch

from ..errors import CaffeError
from ..proto.caffe_pb2 import TEST
from .base import Layer, Shape, register


@register("Teacher")
class Teacher(Layer):
    """y = the mean over the teachers of p^(1/T) / Σ_k p_k^(1/T), p a teacher's probabilities for the bottom's images.

    Bottom N×C×H×W, top N×K: soft labels for a SoftmaxWithLoss. A teacher sees the centre of images that are larger than
    its deploy net's input, and smaller ones as they are, which its layers have to allow; and of their channels as many
    as its input has, from its `channel` on. Teachers run as in phase TEST, do not learn, and are no part of the
    .caffemodel. Not in Caffe (Hinton et al., arXiv 1503.02531; that both see one and the same augmented image: Beyer et
    al., arXiv 2106.05237).
    """

    differentiable = False

    def setup(self, shapes: list[Shape]) -> None:
        from ..net import Net  # which knows all layers, this one too

        p = self.param.teacher_param
        if not p.net or len(p.net) != len(p.weights):
            self.error(
                f"teacher_param has {len(p.net)} net and {len(p.weights)} weights; expected one of each a teacher"
            )
        if len(p.channel) not in (0, len(p.net)):
            self.error(f"teacher_param has {len(p.channel)} channel; expected none, or one each of {len(p.net)} net")
        self.channels = list(p.channel) or [0] * len(p.net)
        if not 0 < p.temperature < math.inf:
            self.error(f"temperature is {p.temperature:g}; expected a number above 0")
        try:
            self.nets = [
                Net(net, weights, TEST, precision=self.precision, seed=0)
                for net, weights in zip(p.net, p.weights, strict=True)
            ]
        except CaffeError as error:
            self.error(f"a teacher is none: {error}")
        self.classes = 0
        for path, net in zip(p.net, self.nets, strict=True):
            if len(net.inputs) != 1 or len(net.outputs) != 1 or len(net.blobs[net.inputs[0]].shape) != 4:
                self.error(
                    f"{path} has the inputs {net.inputs} and the outputs {net.outputs}; expected one of each, N×C×H×W"
                )
            last = next(layer for layer in reversed(net.layers) if net.outputs[0] in layer.param.top)
            if last.type != "Softmax":
                self.error(f"{path} ends in layer {last.name!r} ({last.type}); expected a Softmax")
            classes = math.prod(net.blobs[net.outputs[0]].shape[1:])
            if self.classes not in (0, classes):
                self.error(f"{path} has {classes} outputs; expected {self.classes}, as {p.net[0]} has")
            self.classes = classes
        self.inputs = [tuple(net.blobs[net.inputs[0]].shape) for net in self.nets]

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        shape = shapes[0]
        self.sizes: list[tuple[int, int]] = []
        paths, chosen = self.param.teacher_param.net, self.param.teacher_param.channel
        for path, net, wanted, channel in zip(paths, self.nets, self.inputs, self.channels, strict=True):
            if len(shape) != 4 or not (channel + wanted[1] <= shape[1] if chosen else wanted[1] == shape[1]):
                least = f"at least {channel + wanted[1]} channels" if chosen else f"N×{wanted[1]}×H×W"
                self.error(f"bottom {self.param.bottom[0]!r} has shape {shape}; expected {least}, for {path}")
            size = min(shape[2], wanted[2]), min(shape[3], wanted[3])
            if size != wanted[2:]:
                try:
                    net.blobs[net.inputs[0]].reshape(*wanted[:2], *size)
                    net.reshape()
                except CaffeError as error:
                    self.error(f"{path} takes no images of {size[0]}×{size[1]} but {wanted[2]}×{wanted[3]}: {error}")
            self.sizes.append(size)
        return [(shape[0], self.classes)]

    @torch.no_grad()
    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        temperature, images = self.param.teacher_param.temperature, bottoms[0]
        answers = []
        for net, first, wanted, (height, width) in zip(self.nets, self.channels, self.inputs, self.sizes, strict=True):
            top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
            channels = slice(first, first + wanted[1])
            crops = images[:, channels, top : top + height, left : left + width].float().contiguous()
            answer = net.infer(**{net.inputs[0]: crops})[net.outputs[0]].flatten(1)
            if temperature != 1:
                scores = answer.clamp(min=torch.finfo(torch.float32).tiny).log() / temperature
                answer = scores.softmax(1)
            answers.append(answer)
        return [torch.stack(answers).mean(0)]
