"""Draw what each layer of a trained net makes of a face: its feature maps, one picture a blob, and an overview.

python -m explain.features face.jpg [--layer conv2 …] [--model NAME | --deploy … --weights … --mean …] [--face one]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

import caffe
from predict import ImageError, Recognizer
from predict.options import add_model_arguments, check_model_arguments, make_recognizer, print_any_name
from predict.recognizer import FoundFace
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import Stage, StageError, check_output, progress, replace_directory, run_main

OUTPUT = Path("data/features")
ALL = "all"
MAX_CHANNELS = 64  # on one sheet
MAX_BARS = 32  # a vector of more values than this has no number at each bar
SMALLEST_TILE, SMALLEST_SHEET = 1.15, 4.2  # inches: a channel, and a row of channels, in a blob's picture
STRONGEST = 12  # channels of each blob in the overview
COLORS = "viridis"  # as light as the value is high, also in print and for the colour-blind
TILE = 48  # pixels a channel in the overview
NAMES, LONGEST_NAME = 230, 34  # pixels, and letters, for the names beside the overview


def plain(text: str) -> str:
    """Text as Matplotlib is to write it: a dollar in the name of a file, layer or class begins no formula, and bytes
    of a file's name that are not UTF-8, which it refuses, are written out."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters: a longer one is cut, and ends in …"""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def find_faces(recognizer: Recognizer, image: Path) -> list[FoundFace]:
    """The faces in an image file, the surest first. Raises StageError where there is none, or no image."""
    try:
        faces = recognizer.find_faces([image])[0]
    except (ImageError, caffe.CaffeError) as error:
        raise StageError(str(error)) from error
    if not faces:
        raise StageError(
            f"{image}: no face found; expected a photo with a face, or --face one for an image of a face alone"
        )
    return faces


class FaceTrace:
    """One face's way through a net: the values of each layer, in one graph of autograd.

    Parameters
    ----------
    network: the trained net.
    face: uint8 (or any grey levels 0..255), H×W or C×H×W, of the mean's size; the net sees its centre crop.
    gradient: whether gradients are wanted, also with respect to the net's input.

    Attributes: `net`; `input`, the net's input, 1×C×height×width; `blobs`, the value of each blob by its name, in the
    net's order, behind the last layer that works on it in place; `tops`, the first top of each layer as it left the
    layer, by the layer's name; `layers`, bottoms and tops by the layer's number, as `caffe.Net.trace` gives them.

    Raises
    ------
    ValueError: the face is not of the mean's size.
    """

    def __init__(self, network: FaceNetwork, face: np.ndarray, gradient: bool = False) -> None:
        self.net = net = network.net
        self.input = network.input_tensor(face).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            self.layers = net.trace(**{net.inputs[0]: self.input})
        self.blobs: dict[str, torch.Tensor] = {net.inputs[0]: self.input}
        self.tops: dict[str, torch.Tensor] = {}
        for number, (_, tops) in self.layers.items():
            layer = net.layers[number]
            self.blobs.update(zip(layer.param.top, tops, strict=True))
            if tops:
                self.tops[layer.name] = tops[0]

    def find(self, name: str) -> torch.Tensor:
        """A blob's final value; for a name that is no blob's, the output of the layer of that name.

        Raises StageError for a name that is neither, listing what there is.
        """
        if name in self.blobs:
            return self.blobs[name]
        if name in self.tops:
            return self.tops[name]
        in_place = [layer for layer in self.tops if layer not in self.blobs]
        beside = f", or a layer that works in place: {', '.join(in_place)}" if in_place else ""
        raise StageError(f"layer {name!r} is not in the net; expected one of {', '.join(self.blobs)}{beside}")


def channel_names(network: FaceNetwork) -> list[str]:
    """Words, behind a face's name, for the ways in which a net sees it: by channel; for one channel, none."""
    return [""] if network.face_shape[0] == 1 else [", aligned", ", as it is"]


def feature_maps(network: FaceNetwork, face: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer makes of a face: the value of every blob of the net.

    Parameters
    ----------
    network: the trained net.
    face: uint8, H×W or C×H×W, aligned, of the mean's size; the net sees its centre crop.

    Returns
    -------
    float32, C×H×W (or C), by the blob's name, in the net's order, the input first. A blob that layers work on in place
    has its final value: behind a ReLU in place it is the ReLU's output. Where a net sees a face in two ways, as two
    images of a batch, there is an entry for each: NAME, aligned and NAME, as it is.

    Raises
    ------
    ValueError: the face is not of the mean's size.
    """
    return _arrays(network, FaceTrace(network, face).blobs)


def layer_maps(network: FaceNetwork, face: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """As `feature_maps`, for some names: of blobs, or of layers, which tells layers in place apart.

    Raises StageError for a name that is neither, listing what there is.
    """
    trace = FaceTrace(network, face)
    return _arrays(network, {name: trace.find(name) for name in names})


def _arrays(network: FaceNetwork, blobs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    words = channel_names(network)
    result: dict[str, np.ndarray] = {}
    for name, value in blobs.items():
        images = value.detach().float().cpu().numpy()
        alone = len(images) != len(words)  # as the scores are, of both
        result |= {name + ("" if alone else way): image for way, image in zip(words, images, strict=False)}
    return result


def _channels(maps: np.ndarray) -> np.ndarray:
    """C×H×W of any blob: axes in front of the last two become one; a vector is C×1×1."""
    return maps.reshape(-1, *maps.shape[-2:]) if maps.ndim >= 3 else maps.reshape(-1, 1, 1)


def is_vector(maps: np.ndarray) -> bool:
    """Whether each channel of a blob is one value."""
    return _channels(maps).shape[1:] == (1, 1)


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (N×H×W) row by row in one image, NaN (which is drawn as nothing) in the gaps of one pixel between them."""
    count, height, width = tiles.shape
    rows = -(-count // columns)
    image = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan, np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        image[top : top + height, left : left + width] = tile
    return image


def draw_features(name: str, maps: np.ndarray, title: str) -> Figure:
    """The channels of a blob as tiles, all on one scale of colours; a vector as bars.

    Parameters
    ----------
    name: the blob's name.
    maps: C×H×W, or C, or C×1×1; of more than 64 channels the first 64 are drawn, and the title says so.
    title: what stands above, behind the name: whose maps these are.
    """
    channels = _channels(maps)
    count, height, width = channels.shape
    if is_vector(maps):
        return _draw_vector(f"{name}: {count} value{'s' * (count != 1)}", channels.reshape(-1), title)
    shown = channels[:MAX_CHANNELS]
    columns = min(int(np.ceil(np.sqrt(len(shown)))), 8)
    rows = -(-len(shown) // columns)
    tile = max(SMALLEST_TILE, SMALLEST_SHEET / columns)
    shape = width / max(height, width), height / max(height, width)
    figure = _figure(max(columns * tile * shape[0] + 1.4, 5.2), rows * tile * shape[1] + 0.9)
    axes = figure.add_subplot()
    image = axes.imshow(mosaic(shown, columns), cmap=COLORS, interpolation="nearest")
    _number_tiles(axes, len(shown), columns, height, width)
    axes.axis("off")
    some = f", the first {len(shown)} drawn" if len(shown) < count else ""
    what = f"{name}: {count} channel{'s' * (count != 1)} of {height}×{width}{some}"
    figure.suptitle(plain(f"{what}\n{title}"), fontsize=10, x=0.02, ha="left")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label="value, the same scale for all")
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _number_tiles(axes: Axes, count: int, columns: int, height: int, width: int) -> None:
    """The channel's number in the corner of each tile, on a ground of its own, since tiles may have any colour."""
    for i in range(count):
        place = i % columns * (width + 1) - 0.5, i // columns * (height + 1) - 0.5
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.75}
        axes.text(*place, str(i), fontsize=5.5, ha="left", va="top", color="black", bbox=ground)


def _draw_vector(name: str, values: np.ndarray, title: str) -> Figure:
    figure = _figure(min(max(0.16 * len(values), 5.2), 12), 3.4)
    axes = figure.add_subplot()
    axes.bar(np.arange(len(values)), values, width=0.8 if len(values) <= MAX_BARS else 1.0, color="#0072B2")
    axes.axhline(0, color="#666666", linewidth=0.8)
    if len(values) <= MAX_BARS:
        axes.set_xticks(np.arange(len(values)))
    axes.margins(x=0.01)
    axes.set_xlabel("channel")
    axes.set_ylabel("value")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(plain(f"{name}\n{title}"), fontsize=10, loc="left")
    return figure


def draw_overview(maps: dict[str, np.ndarray], title: str) -> Figure:
    """A row a blob: its strongest channels (largest mean magnitude), each row on its own scale; vectors as stripes.

    maps: as `feature_maps` gives them. title: what stands above.
    """
    height, width = len(maps) * (TILE + 4) + 4, NAMES + STRONGEST * (TILE + 2)
    canvas = np.ones((height, width, 4), np.float32)
    figure = Figure(figsize=(width / 100, height / 100 + 0.6), dpi=100)
    share = height / (height + 60)
    axes = figure.add_axes((0, 0, 1, share))
    for row, (name, blob) in enumerate(maps.items()):
        top = 4 + row * (TILE + 4)
        _draw_row(canvas[top : top + TILE, NAMES:], blob)
        shape = "×".join(map(str, blob.shape))
        axes.text(8, top + 18, plain(shortened(name, LONGEST_NAME)), fontsize=8, va="center")
        axes.text(8, top + 34, shape, fontsize=7, va="center", color="#555555")
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    axes.axis("off")
    figure.text(8 / width, 1 - 18 / (height + 60), plain(title), fontsize=10, va="center", weight="bold")
    text = f"the {STRONGEST} channels of largest mean magnitude, the largest first; each row on a scale of its own"
    figure.text(8 / width, 1 - 40 / (height + 60), text, fontsize=8, va="center", color="#555555")
    return figure


def _draw_row(place: np.ndarray, blob: np.ndarray) -> None:
    """Draw one blob's strongest channels into its row (TILE × width × RGBA)."""
    channels = _channels(blob)
    colors = ScalarMappable(Normalize(float(channels.min()), float(channels.max())), COLORS)
    if is_vector(blob):
        stripes = colors.to_rgba(channels.reshape(1, -1))
        columns = np.arange(place.shape[1] - 2) * stripes.shape[1] // (place.shape[1] - 2)
        place[TILE // 4 : TILE - TILE // 4, :-2] = stripes[:, columns]
        return
    order = np.argsort(-np.abs(channels).mean(axis=(1, 2)), kind="stable")[:STRONGEST]
    scale = max(channels.shape[1:]) / TILE
    rows, columns = ((np.arange(int(n / scale)) * scale).astype(int) for n in channels.shape[1:])
    for i, channel in enumerate(order):
        tile = colors.to_rgba(channels[channel])[np.minimum(rows, channels.shape[1] - 1)][
            :, np.minimum(columns, channels.shape[2] - 1)
        ]
        place[: len(rows), i * (TILE + 2) : i * (TILE + 2) + len(columns)] = tile


def file_name(number: int, name: str) -> str:
    """A blob's picture: its place in the net, and its name without what file names cannot hold."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.png"


def run(args: argparse.Namespace) -> None:
    """Find the face, and draw."""
    output = args.output / args.image.stem
    check_output(args.image, output)
    recognizer = make_recognizer(args)
    faces, network = find_faces(recognizer, args.image), recognizer.network
    maps = feature_maps(network, faces[0].pixels) if ALL in args.layer else {}
    maps |= layer_maps(network, faces[0].pixels, [name for name in args.layer if name != ALL])
    stage = Stage("features", [args.image, *map(Path, network.files[0].values())], {"layers": args.layer})
    title = f"{network.name} on {args.image.name}"
    with replace_directory(output) as partial:
        draw_overview(maps, title).savefig(partial / "overview.png")
        for number, (name, blob) in enumerate(progress(maps.items(), len(maps), "features", "blob")):
            draw_features(name, blob, title).savefig(partial / file_name(number, name))
        stage.counts = {"faces": len(faces), "blobs": {name: list(blob.shape) for name, blob in maps.items()}}
        stage.write_manifest(partial / "manifest.json")
    which = f" of the surest of {len(faces)} faces" if len(faces) > 1 else ""
    stage.summary(f"{len(maps)} blob{'s' * (len(maps) != 1)}{which}, and overview.png, in {output}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m explain.features", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a photo; the surest of its faces is taken")
    parser.add_argument(
        "--layer",
        nargs="+",
        default=[ALL],
        metavar="NAME",
        help="blobs, or layers in place; all: every blob (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        help="where the pictures' folder, named as IMAGE, is made (default: %(default)s)",
    )
    add_model_arguments(parser)
    args = parser.parse_args()
    check_model_arguments(parser, args)
    print_any_name()
    run(args)


if __name__ == "__main__":
    run_main(main)
