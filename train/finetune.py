"""Fine-tuning: a net for other classes, the weights that it starts from, and layers that do not learn.

`python -m train --init WEIGHTS.caffemodel [--freeze conv]` uses this. What comes of it are a net prototxt and a
.caffemodel that Caffe's own rules hold for: layers of one name share their weights, `lr_mult: 0` learns nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import caffe
from caffe.io import blob_shape, read_net_binary
from caffe.proto.caffe_pb2 import BlobProto, LayerParameter, NetParameter, NetState
from preprocessing.classes import default_classes, read_classes
from preprocessing.stage import StageError

RATE_OF_REBUILT = 10  # times its lr_mult learns a last layer that starts anew, among layers that only adapt
SAID = 5  # layers that an error speaks of
SCORES = {"InnerProduct": "inner_product_param", "Convolution": "convolution_param"}

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[Shape]]  # of the parameters, by layer


# The classes


def last_layer(deploy: NetParameter, path: Path) -> LayerParameter:
    """The layer with parameters that the deploy net's Softmax comes from: it has an output for each class.

    path: the net's, for the error.

    Raises StageError for a net without a Softmax, or where no single InnerProduct or Convolution makes its scores.
    """
    expected = "expected a deploy net that ends in an InnerProduct or a Convolution, and a Softmax"
    layers = list(deploy.layer)
    softmax = next((i for i in reversed(range(len(layers))) if layers[i].type == "Softmax"), None)
    if softmax is None:
        raise StageError(f"{path}: has no Softmax layer; {expected}")
    blob = layers[softmax].bottom[0]
    for layer in reversed(layers[:softmax]):
        if blob not in layer.top:
            continue
        if layer.type in SCORES:
            return layer
        if len(layer.bottom) != 1:
            raise StageError(f"{path}: the Softmax comes from layer {layer.name!r} ({layer.type}); {expected}")
        blob = layer.bottom[0]
    raise StageError(f"{path}: the Softmax comes from {blob!r}, which no layer makes; {expected}")


def count_classes(net: NetParameter, last: LayerParameter, path: Path) -> int:
    """How many classes a training net has: the outputs of the layer of its deploy net's last layer's name and type.

    Raises StageError where the net, whose file is `path`, has no such layer.
    """
    counts = [getattr(layer, SCORES[last.type]).num_output for layer in _of_name(net, last)]
    if not counts:
        raise StageError(
            f"{path}: no {last.type} layer {last.name!r}; expected one, since the deploy net's Softmax comes from it"
        )
    return counts[0]


def set_classes(net: NetParameter, last: LayerParameter, count: int) -> None:
    """Give a net `count` classes: as many outputs of its last layer, and soft labels (`data_param.classes`) of them."""
    for layer in _of_name(net, last):
        getattr(layer, SCORES[last.type]).num_output = count
    for layer in net.layer:
        if layer.data_param.classes:
            layer.data_param.classes = count


def _of_name(net: NetParameter, last: LayerParameter) -> list[LayerParameter]:
    """All layers of a name, of which a net's states (`include`) may choose one."""
    return [layer for layer in net.layer if (layer.name, layer.type) == (last.name, last.type)]


# The weights to start from


@dataclass
class Start:
    """What becomes of the layers of the weights that a training starts from.

    Attributes
    ----------
    copied: the shapes of the parameters that are copied, by layer.
    rebuilt: the net's other layers with parameters, which are filled anew, and why.
    passed_over: the shapes of the parameters in the file whose layers the net lacks.
    weights: the layers that are copied: a .caffemodel's content.
    frozen: names of the layers that do not learn.
    """

    source: Path
    copied: dict[str, list[Shape]] = field(default_factory=dict)
    rebuilt: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, list[Shape]] = field(default_factory=dict)
    weights: NetParameter = field(default_factory=NetParameter)
    frozen: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What the manifest says; shapes are lists."""
        return {
            "weights": str(self.source),
            "copied": {name: [list(shape) for shape in shapes] for name, shapes in self.copied.items()},
            "rebuilt": self.rebuilt,
            "passed_over": {name: [list(shape) for shape in shapes] for name, shapes in self.passed_over.items()},
            "frozen": self.frozen,
        }

    def describe(self) -> str:
        """The same for people: a paragraph each for what was copied, rebuilt, passed over and frozen."""
        parts = {
            "copied": [f"{name} {_text(shapes)}" for name, shapes in self.copied.items()],
            "rebuilt": [f"{name} ({why})" for name, why in self.rebuilt.items()],
            "passed over": [f"{name} {_text(shapes)}" for name, shapes in self.passed_over.items()],
            "frozen": self.frozen,
        }
        lines = [f"train: from {self.source}: {', '.join(f'{len(of)} {what}' for what, of in parts.items())}"]
        for what, of in parts.items():
            if of:
                text = f"  {what}: {'; '.join(of)}"
                lines += textwrap.wrap(text, 120, subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join(lines)


def _text(shapes: Sequence[Shape]) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in shapes)


def light_net(
    net: NetParameter, state: NetState, data: LayerParameter, faces: Shape, precision: str = "fp32"
) -> caffe.Net:
    """A net whose Data layer is an Input of the same shapes: what it is made of, without reading its data.

    Parameters
    ----------
    net: with all its states.
    state: the one that is made, with its phase, level and stages.
    data: the net's Data layer in that state.
    faces: C, H and W of its images, before cropping.
    precision: as caffe.Net's.

    Raises CaffeError for a net that does not fit together, and for a precision that the processor lacks.
    """
    crop, p = data.transform_param.crop_size, data.data_param
    shapes: list[Shape] = [(p.batch_size, faces[0], crop or faces[1], crop or faces[2])]
    shapes.append((p.batch_size, p.classes) if p.classes else (p.batch_size,))
    source = LayerParameter(name=data.name, type="Input", top=data.top, include=data.include)
    for shape in shapes[: len(data.top)]:
        source.input_param.shape.add(dim=shape)
    light = NetParameter()
    light.CopyFrom(net)
    light.ClearField("state")
    for layer in light.layer:
        if layer == data:
            layer.CopyFrom(source)
    return caffe.Net(light, phase=state.phase, level=state.level, stages=list(state.stage), precision=precision, seed=0)


def choose_weights(source: Path, shapes: Shapes, last: str, classes: Sequence[str], net: str) -> Start:
    """Which layers of weights a net takes: those of its own layers' names and shapes.

    The last layer is taken as well only where both have the same classes in the same order: by the classes.txt beside
    the weights, or the default names without one.

    Parameters
    ----------
    source: the .caffemodel.
    shapes: of the net's parameters.
    last: the name of the net's last layer with parameters.
    classes: the net's.
    net: the net's name, for errors.

    Raises StageError where the file is missing, or nothing in it is taken; CaffeError where it is no .caffemodel.
    """
    given = {layer.name: layer for layer in read_weights(source, net, shapes).layer if layer.blobs}
    theirs = read_classes(source.parent) or default_classes(len(classes))
    start = Start(source)
    start.weights.name = net
    for name, wanted in shapes.items():
        if name not in given:
            start.rebuilt[name] = f"not in {source.name}"
            continue
        found = [blob_shape(blob) for blob in given[name].blobs]
        if len(found) != len(wanted) or not all(map(_fits, given[name].blobs, wanted)):
            start.rebuilt[name] = f"{_text(found)} in {source.name}; {_text(wanted)} here"
        elif name == last and tuple(theirs) != tuple(classes):
            start.rebuilt[name] = f"classes {', '.join(theirs)} in {source.name}; {', '.join(classes)} here"
        else:
            start.copied[name] = list(wanted)
            start.weights.layer.add(name=name, type=given[name].type).blobs.extend(given[name].blobs)
    start.passed_over = {name: [blob_shape(b) for b in given[name].blobs] for name in given if name not in shapes}
    if not start.copied:
        reasons = [f"{name}: {why}" for name, why in start.rebuilt.items() if name in given]
        text = "; ".join(reasons[:SAID]) + ("; …" if len(reasons) > SAID else "")
        raise StageError(f"{source}: no layer's parameters fit {net} ({text}); expected some of its names and shapes")
    return start


def read_weights(path: Path, net: str, layers: Sequence[str] | Shapes) -> NetParameter:
    """A .caffemodel that a net is to start from.

    Raises StageError where the file is missing, or none of its layers with parameters is one of the net's `layers`, by
    name; CaffeError where it is no .caffemodel.
    """
    if not path.is_file():
        raise StageError(f"{path}: no such file; expected a .caffemodel to start from")
    weights = read_net_binary(path)
    given = {layer.name for layer in weights.layer if layer.blobs}
    if not given & set(layers):
        raise StageError(
            f"{path}: has parameters of {', '.join(sorted(given)) or 'no layer'}; expected some of the layers of "
            f"{net}, by name"
        )
    return weights


def _fits(blob: BlobProto, wanted: Shape) -> bool:
    """Whether a parameter is of that shape. Old files give every one four axes, the missing ones 1 in front."""
    found = blob_shape(blob)
    old = not blob.HasField("shape") and len(wanted) < len(found)
    return found == ((1,) * (len(found) - len(wanted)) if old else ()) + tuple(wanted)


# Learning rates


def raise_rate(net: NetParameter, name: str, parameters: int) -> None:
    """Let a layer of `parameters` parameters learn RATE_OF_REBUILT times as fast: by its lr_mult."""
    for layer in _layers(net, [name], {name: parameters}):
        for spec in layer.param:
            spec.lr_mult *= RATE_OF_REBUILT


def layers_to_freeze(net: NetParameter, freeze: str, shapes: Shapes, last: str) -> list[str]:
    """The names of the layers that `--freeze` means, in the net's order.

    Parameters
    ----------
    freeze: `conv` for all layers with parameters up to and including the last Convolution that is not the net's last
        layer, with the BatchNorm and Scale behind it; or names of layers, separated by commas.
    shapes: of the net's parameters.
    last: the name of the net's last layer with parameters.

    Raises StageError for a name that is none of the net's layers with parameters, a net without such a Convolution,
    and where nothing would be left to learn.
    """
    layers = {layer.name: layer for layer in net.layer}
    names = list(shapes)
    if freeze == "conv":
        chosen = _convolutions(layers, names, last, net.name)
    else:
        chosen = [name.strip() for name in freeze.split(",")]
        for name in chosen:
            if name not in shapes:
                raise StageError(
                    f"--freeze names {name!r}, no layer of {net.name} with parameters; expected conv, or some of "
                    f"{', '.join(names)}"
                )
    if all(name in chosen or layers[name].type == "BatchNorm" for name in names):
        raise StageError(f"--freeze is {freeze}: no layer of {net.name} is left to learn; expected fewer layers")
    return [name for name in names if name in chosen]


def _convolutions(layers: Mapping[str, LayerParameter], names: Sequence[str], last: str, net: str) -> list[str]:
    ends = [i for i, name in enumerate(names) if layers[name].type == "Convolution" and name != last]
    if not ends:
        raise StageError(
            f"--freeze is conv, but {net} has no Convolution before its last layer; expected layers' names"
        )
    chosen = [name for name in names[: ends[-1] + 1] if name != last]
    top = layers[names[ends[-1]]].top[0]
    for name in names[ends[-1] + 1 :]:
        if layers[name].type not in ("BatchNorm", "Scale") or layers[name].bottom[0] != top:
            break
        chosen.append(name)
        top = layers[name].top[0]
    return chosen


def freeze_layers(net: NetParameter, start: Start, frozen: Sequence[str], shapes: Shapes) -> None:
    """Keep layers as they were copied: lr_mult and decay_mult 0, and BatchNorm normalises by its running sums.

    Then neither their weights nor their running sums change, and no gradient is computed for them.

    Raises StageError for a layer that was not copied: it would stay as it was filled.
    """
    for name in frozen:
        if name in start.rebuilt:
            raise StageError(
                f"--freeze: layer {name!r} is not copied ({start.rebuilt[name]}) and would stay as it is filled; "
                "expected layers that are copied"
            )
    for layer in _layers(net, frozen, {name: len(shapes[name]) for name in frozen}):
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
        if layer.type == "BatchNorm":
            layer.batch_norm_param.use_global_stats = True
    start.frozen = list(frozen)


def _layers(net: NetParameter, names: Sequence[str], parameters: Mapping[str, int]) -> list[LayerParameter]:
    """The layers of those names, with a `param` for each of their parameters."""
    found = [layer for layer in net.layer if layer.name in names]
    for layer in found:
        while len(layer.param) < parameters[layer.name]:
            layer.param.add()
    return found
