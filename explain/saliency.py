"""Show what of a face a trained net's answer rests on: Grad-CAM, guided backpropagation and their product.

python -m explain.saliency face.jpg [--target happy] [--layer conv3] [--model NAME | --deploy … …] [--face one]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import caffe
from caffe.layers.activation import ReLU
from explain.features import FaceTrace, channel_names, find_faces, plain, shortened
from predict.options import add_model_arguments, check_model_arguments, make_recognizer, print_any_name
from predict.recognizer import FoundFace
from preprocessing.network_input import FaceNetwork, faces_to_input
from preprocessing.stage import Stage, StageError, progress, replace_file, run_main

OUTPUT = Path("data/explanations")
RESHAPING = ("Flatten", "Reshape")  # what may stand behind a Softmax without changing its values
HEAT, SIGNED = "inferno", "RdBu_r"  # Grad-CAM from dark to light; gradients from blue (negative) to red
CHOSEN, OTHER = "#D55E00", "#9a9a9a"
LONGEST_NAME, LONGEST_TITLE = 24, 28  # letters of a name that are drawn, and of a panel's title on one line


@dataclass(frozen=True, eq=False)
class Explanation:
    """What of a face an answer rests on. Maps are float32, height × width of the net's input (the face's centre crop).

    Attributes
    ----------
    probabilities: float64, of the classes, by the centre crop; they sum to 1.
    target: the class that is explained.
    grad_cam: 0..1, where the layer's maps speak for the target; 0 everywhere where nothing does.
    guided: the signed gradient of the target's score with respect to the input by guided backpropagation.
    guided_grad_cam: the product of the two.
    layer: the blob (or layer in place) that Grad-CAM was taken from.
    """

    probabilities: np.ndarray
    target: int
    grad_cam: np.ndarray
    guided: np.ndarray
    guided_grad_cam: np.ndarray
    layer: str


def explain_face(
    network: FaceNetwork, face: np.ndarray, target: int | None = None, layer: str | None = None, channel: int = 0
) -> Explanation:
    """Why a net gives a class to a face: Grad-CAM (Selvaraju et al., arXiv 1610.02391) and guided backpropagation
    (Springenberg et al., arXiv 1412.6806).

    Grad-CAM weighs each channel of a layer by the mean over the map of the gradient of the class's score, adds them up,
    cuts off what is negative, and enlarges the result bilinearly to the input's size; here the maximum becomes 1.
    Guided backpropagation is that gradient with respect to the input, where each ReLU lets through only what is
    positive in both passes (those with a negative slope, PReLU, ELU and the like stay as they are). The score is what
    goes into the Softmax, since a probability also depends on all the other scores.

    Parameters
    ----------
    network: the trained net of grey faces, of one channel or of several that show the face in several ways; its output
        is a Softmax's.
    face: uint8, H×W or C×H×W, aligned, of the mean's size; the net sees its centre crop.
    target: number of the class to explain; default: the most probable one.
    layer: name of the blob that Grad-CAM is taken from, or of a layer that works in place; default: the last blob with
        a height or width above 1 that no Pooling made (behind one, in front of inner products, the sum over the
        channels is often negative everywhere), unless it holds a map a class, as in nets that end in a convolution and
        its global mean, and an earlier one has more channels: then the last such.
    channel: which one of the face's is explained (0, the first). A layer that holds the maps of all channels as so many
        images of a batch gives those of this one.

    Raises
    ------
    ValueError: the face is not of the mean's size, or the target is no class, or there is no such channel.
    StageError: the net does not end in a Softmax, or there is no such layer, or it has no map, or no influence.
    """
    classes = len(network.classes)
    face = face[None] if face.ndim == 2 else face
    if face.ndim != 3 or face.shape != network.face_shape or len(face) == 3:
        raise ValueError(f"face has shape {face.shape}, the mean {network.face_shape}; expected both alike, and grey")
    if not 0 <= channel < len(face):
        raise ValueError(f"channel is {channel}; expected one of {len(face)}, 0 to {len(face) - 1}")
    if target is not None and not 0 <= target < classes:
        raise ValueError(f"target is {target}; expected a class, 0 to {classes - 1}")
    probabilities = network.probabilities(face[None])[0]
    target = int(probabilities.argmax()) if target is None else target
    trace = FaceTrace(network, face, gradient=True)
    score = _scores(network, trace)[target]
    name, grad_cam = _grad_cam(trace, score, layer, classes, channel)
    guided = guided_gradient(network, trace, score, channel)
    return Explanation(probabilities, target, grad_cam, guided, grad_cam * guided, name)


def _scores(network: FaceNetwork, trace: FaceTrace) -> torch.Tensor:
    """What goes into the Softmax that the net ends in, a value a class."""
    blob, expected = network.net.outputs[0], "expected a deploy net that ends in Softmax"
    for number in sorted(trace.layers, reverse=True):
        layer = network.net.layers[number]
        if blob not in layer.param.top:
            continue
        if layer.type == "Softmax":
            scores = trace.layers[number][0][0].reshape(-1)
            if len(scores) != len(network.classes):
                what = f"layer {layer.name!r} has {len(scores)} scores"
                raise StageError(f"{network.deploy}: {what}; expected {len(network.classes)}, one a class")
            return scores
        if layer.type not in RESHAPING:
            raise StageError(f"{network.deploy}: its output comes from {layer.name!r} ({layer.type}); {expected}")
        blob = layer.param.bottom[0]
    raise StageError(f"{network.deploy}: {expected}")


def _has_map(value: torch.Tensor) -> bool:
    return value.ndim == 4 and value.shape[2] * value.shape[3] > 1


def default_layer(trace: FaceTrace, classes: int) -> str:
    """The blob that Grad-CAM is taken from, where none is asked for; `explain_face` says which.

    Raises StageError for a net in which only the input has a height and width.
    """
    with_map = [name for name, value in trace.blobs.items() if _has_map(value) and value is not trace.input]
    pooled = {top for layer in trace.net.layers if layer.type == "Pooling" for top in layer.param.top}
    with_map = [name for name in with_map if name not in pooled] or with_map
    if not with_map:
        raise StageError(f"Grad-CAM needs a layer with a map; expected one among {', '.join(trace.tops)}")
    last = with_map[-1]
    wider = [name for name in with_map if trace.blobs[name].shape[1] > classes]
    return wider[-1] if trace.blobs[last].shape[1] == classes and wider else last


def _grad_cam(
    trace: FaceTrace, score: torch.Tensor, layer: str | None, classes: int, channel: int
) -> tuple[str, np.ndarray]:
    """The name of the layer, and its Grad-CAM at the input's size, 0..1."""
    name = default_layer(trace, classes) if layer is None else layer
    maps = trace.find(name)
    if not _has_map(maps):
        places = ", ".join(name for name, value in trace.blobs.items() if _has_map(value))
        shape = "×".join(map(str, maps.shape[1:]))
        raise StageError(f"layer {name!r} is {shape} and has no map; expected one of {places or 'none in this net'}")
    (gradient,) = torch.autograd.grad(score, maps, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise StageError(f"layer {name!r} has no influence on the score; expected one that comes before it")
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    weighted = F.relu((weights * maps.detach().float()).sum(dim=1, keepdim=True))
    image = channel if len(maps) > 1 else 0
    cam = F.interpolate(weighted, trace.input.shape[2:], mode="bilinear", align_corners=False)[image, 0]
    return name, (cam / cam.max() if cam.max() > 0 else cam).cpu().numpy()


def guided_gradient(network: FaceNetwork, trace: FaceTrace, score: torch.Tensor, channel: int = 0) -> np.ndarray:
    """A score's gradient with respect to a channel of the input, by guided backpropagation: height × width, float32."""
    with _guided(network.net, trace):
        (gradient,) = torch.autograd.grad(score, trace.input, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise StageError(f"{network.deploy}: the score does not depend on the input {network.net.inputs[0]!r}")
    return gradient[0, channel].float().cpu().numpy()


@contextmanager
def _guided(net: caffe.Net, trace: FaceTrace) -> Iterator[None]:
    """While it is open, what comes back to a ReLU's output passes only where it is positive.

    The ReLU itself stops it where its input was negative. An in-place ReLU has an output of its own in a trace.
    """
    handles = [
        tops[0].register_hook(lambda gradient: gradient.clamp(min=0))
        for number, (_, tops) in trace.layers.items()
        for layer in [net.layers[number]]
        if isinstance(layer, ReLU) and layer.param.relu_param.negative_slope == 0 and tops[0].requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def draw_explanation(face: np.ndarray, explanation: Explanation, classes: Sequence[str], title: str = "") -> Figure:
    """The face as the net sees it, Grad-CAM over it, guided gradient, guided Grad-CAM, and the probabilities as bars.

    Parameters
    ----------
    face: uint8, H×W, the face that was explained.
    classes: their names, in the order of the probabilities.
    title: what stands above, before the explained class and its probability.
    """
    height, width = explanation.grad_cam.shape
    seen = faces_to_input(face[None], np.zeros((1, *face.shape)), (height, width))[0, 0]
    figure = Figure(figsize=(12.4, 2.9), dpi=120, layout="constrained")
    panels = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.25))
    target = explanation.target
    words = f"what speaks for {classes[target]} ({100 * explanation.probabilities[target]:.1f}%)"
    figure.suptitle(plain(f"{title}: {words}" if title else words), fontsize=10, x=0.01, ha="left")
    _show(panels[0], f"the face ({height}×{width})", seen, cmap="gray", vmin=0, vmax=255)
    name, something = shortened(explanation.layer, LONGEST_NAME), explanation.grad_cam.any()
    heading = f"Grad-CAM of {name}" if something else f"Grad-CAM of {name}: nothing"
    if len(heading) > LONGEST_TITLE:  # it would reach into its neighbours'
        heading = f"Grad-CAM of\n{name}" if something else f"Grad-CAM (nothing) of\n{name}"
    _show(panels[1], heading, seen, cmap="gray", vmin=0, vmax=255)
    panels[1].imshow(explanation.grad_cam, cmap=HEAT, vmin=0, vmax=1, alpha=0.3 + 0.4 * explanation.grad_cam)
    for panel, name, values in (
        (panels[2], "guided gradient (red +, blue −)", explanation.guided),
        (panels[3], "guided Grad-CAM", explanation.guided_grad_cam),
    ):
        limit = float(np.abs(values).max()) or 1.0
        _show(panel, name, values, cmap=SIGNED, vmin=-limit, vmax=limit)
    _draw_bars(panels[4], explanation, classes)
    return figure


def _show(panel: Axes, name: str, image: np.ndarray, **settings: Any) -> None:
    panel.imshow(image, interpolation="nearest", **settings)
    panel.set_title(plain(name), fontsize=9)
    panel.axis("off")


def _draw_bars(panel: Axes, explanation: Explanation, classes: Sequence[str]) -> None:
    rows = np.arange(len(classes))
    colors = [CHOSEN if row == explanation.target else OTHER for row in rows]
    panel.barh(rows, explanation.probabilities, color=colors, height=0.7)
    for row, value in enumerate(explanation.probabilities):
        panel.text(value + 0.02, row, f"{100 * value:.1f}%", fontsize=8, va="center")
    panel.set_yticks(rows, [plain(shortened(name, LONGEST_NAME)) for name in classes], fontsize=8)
    panel.set_xlim(0, 1.25)
    panel.set_xticks([])
    panel.invert_yaxis()
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
    panel.set_title("probability (centre crop)", fontsize=9)


def _picture(figure: Figure) -> np.ndarray:
    """A figure's pixels, uint8, BGR."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)


def _target(name: str | None, network: FaceNetwork) -> int | None:
    if name is None:
        return None
    if name not in network.classes:
        raise StageError(f"--target is {name!r}; expected one of {', '.join(network.classes)}")
    return network.classes.index(name)


def _to_dict(found: FoundFace, explanation: Explanation, classes: Sequence[str]) -> dict[str, Any]:
    values = zip(classes, explanation.probabilities.tolist(), strict=True)
    return {
        "box": [round(value, 2) for value in found.box],
        "confidence": None if found.confidence is None else round(found.confidence, 6),
        "target": classes[explanation.target],
        "layer": explanation.layer,
        "probabilities": {name: round(value, 6) for name, value in values},
    }


def run(args: argparse.Namespace) -> None:
    """Explain every face of the image."""
    picture, numbers = args.output / f"{args.image.stem}.png", args.output / f"{args.image.stem}.json"
    if picture.resolve() == args.image.resolve():
        raise StageError(f"{picture}: would be replaced by its explanation; expected another --output folder")
    stage = Stage("explain")
    recognizer = make_recognizer(args)
    network = recognizer.network
    target, faces = _target(args.target, network), find_faces(recognizer, args.image)
    pictures, results = [], []
    for number, face in progress(enumerate(faces, 1), len(faces), "explain", "face"):
        which = f", face {number} of {len(faces)}, at {face.box[0]:.0f}, {face.box[1]:.0f}" if len(faces) > 1 else ""
        pixels = face.pixels.reshape(network.face_shape)
        for channel, way in enumerate(channel_names(network)):
            explanation = explain_face(network, pixels, target, args.layer, channel)
            title = f"{network.name} on {args.image.name}{which}{way}"
            pictures.append(_picture(draw_explanation(pixels[channel], explanation, network.classes, title)))
        results.append(_to_dict(face, explanation, network.classes))
    with replace_file(picture) as partial:
        partial.write_bytes(cv2.imencode(".png", np.concatenate(pictures))[1].tobytes())
    result = {"file": str(args.image), "network": network.files[0], "picture": str(picture), "faces": results}
    with replace_file(numbers) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")
    answers = ", ".join(f"{one['target']} {100 * one['probabilities'][one['target']]:.0f}%" for one in results[:5])
    more = f" and {len(faces) - 5} more" if len(faces) > 5 else ""
    stage.summary(f"{len(faces)} face{'s' * (len(faces) != 1)}: {answers}{more}; {picture}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m explain.saliency", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a photo: every face in it is explained")
    parser.add_argument("--target", metavar="EMOTION", help="the class to explain (default: each face's answer)")
    parser.add_argument("--layer", metavar="NAME", help="the layer of Grad-CAM (default: the last one with a map)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the pictures (default: %(default)s)")
    add_model_arguments(parser)
    args = parser.parse_args()
    check_model_arguments(parser, args)
    print_any_name()
    run(args)


if __name__ == "__main__":
    run_main(main)
