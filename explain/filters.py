"""Draw the filters of a trained net's first convolution, the only ones that act on pixels.

python -m explain.filters [--model NAME | --deploy … --weights … --mean …] [--output filters.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from caffe.layers.vision import Convolution
from explain.features import mosaic, plain
from predict.options import add_model_arguments, check_model_arguments, make_network
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import Stage, StageError, replace_file, run_main

OUTPUT = Path("data/filters")
COLUMNS = 16  # most tiles in a row
TILE = 0.52  # inches


def first_filters(network: FaceNetwork) -> tuple[str, np.ndarray]:
    """The name of the net's first convolution, and its filters: outputs × inputs × height × width, float32.

    Raises StageError where the net has no convolution.
    """
    for layer in network.net.layers:
        if isinstance(layer, Convolution):
            return layer.name, np.array(layer.blobs[0].data)
    raise StageError(f"{network.deploy}: has no Convolution; expected a net with one")


def draw_filters(network: FaceNetwork) -> Figure:
    """The filters of the net's first convolution as tiles, all on one scale that has 0 in its middle.

    A filter of one channel is grey: middle grey is 0, white the largest magnitude, black its negative. One of three
    channels is in colours, blue, green and red as OpenCV and Caffe order them. With any other number, each channel of
    each filter is a grey tile.

    Raises
    ------
    StageError: the net has no convolution.
    """
    name, filters = first_filters(network)
    count, channels, height, width = filters.shape
    limit = float(np.abs(filters).max()) or 1.0
    if channels == 3:
        tiles = [mosaic(filters[:, channel] / limit / 2 + 0.5, _columns(count)) for channel in (2, 1, 0)]
        image, shown = np.nan_to_num(np.stack(tiles, axis=-1), nan=1.0), count
    else:
        flat = filters.reshape(-1, height, width)
        image, shown = mosaic(flat, _columns(len(flat))), len(flat)
    columns = _columns(shown)
    size = max(columns * TILE + 1.3, 4.6), -(-shown // columns) * TILE + 0.7
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(image, cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.axis("off")
    inside = f"{channels}×" if channels > 1 else ""
    figure.suptitle(
        f"{plain(name)}: {count} filter{'s' * (count != 1)} of {inside}{height}×{width}", fontsize=10, x=0.02, ha="left"
    )
    if channels != 3:
        figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, label="weight")
    return figure


def _columns(tiles: int) -> int:
    return min(COLUMNS, max(int(np.ceil(np.sqrt(2 * tiles))), 1))


def run(args: argparse.Namespace) -> None:
    """Draw one net's filters."""
    stage = Stage("filters")
    network = make_network(args)
    output = args.output or OUTPUT / f"{network.name}.png"
    with replace_file(output) as partial:
        draw_filters(network).savefig(partial, format="png")
    name, filters = first_filters(network)
    stage.summary(f"{len(filters)} filters of {name} in {output}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m explain.filters", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help=f"the picture, a PNG (default: {OUTPUT}/NAME.png)")
    add_model_arguments(parser, faces=False)
    args = parser.parse_args()
    check_model_arguments(parser, args)
    run(args)


if __name__ == "__main__":
    run_main(main)
