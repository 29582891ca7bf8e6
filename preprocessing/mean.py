"""Stage 4: the mean image of the training database, as Caffe's mean.binaryproto and as a picture.

python -m preprocessing.mean data/fer2013/lmdb/train_lmdb data/fer2013/mean.binaryproto
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from caffe.errors import CaffeError
from caffe.io import save_mean
from caffe.tools.compute_image_mean import compute_image_mean
from preprocessing.stage import Stage, StageError, replace_file, run_main

PICTURE_PIXELS = 384  # the longer side of mean.png is at least this


def write_mean(database: Path, output: Path) -> np.ndarray:
    """Write the mean image of an LMDB to `output`, NAME.png and NAME.manifest.json beside it, and return it.

    Parameters
    ----------
    database: an LMDB of Datum whose images have one size.
    output: the NAME.binaryproto to write. It comes last, so that where it stands the others do.

    Returns float32 C×H×W, 0..255. Raises StageError for what is no such LMDB.
    """
    database, output = Path(database), Path(output)
    if output.suffix != ".binaryproto":
        raise StageError(f"{output}: expected a name that ends in .binaryproto")
    data = database / "data.mdb"
    if not data.is_file():
        raise StageError(f"{database}: no data.mdb in it; expected the LMDB of the training images")
    stage = Stage("mean", [data])
    try:
        mean, count = compute_image_mean(database)
    except CaffeError as error:
        raise StageError(str(error)) from error
    stage.counts = {"read": count, "mean": round(float(mean.mean(dtype=np.float64)), 4)}
    with replace_file(output.with_suffix(".png")) as path:
        path.write_bytes(_picture(mean))
    with replace_file(output.with_suffix(".manifest.json")) as path:
        stage.write_manifest(path)
    save_mean(output, mean)
    stage.summary(f"{count:,} images, mean grey level {stage.counts['mean']:.2f}")
    return mean


def _picture(mean: np.ndarray) -> bytes:
    """The mean as a PNG, enlarged by a whole number; its grey levels are the mean's own."""
    channels, height, width = mean.shape
    if channels not in (1, 3):
        mean = mean.mean(0, keepdims=True)
    scale = max(1, -(-PICTURE_PIXELS // max(height, width)))
    image = np.clip(np.rint(mean.transpose(1, 2, 0)), 0, 255).astype(np.uint8)
    image = cv2.resize(image, (scale * width, scale * height), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".png", image)[1].tobytes()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.mean", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("database", type=Path, metavar="TRAIN_LMDB", help="the LMDB of the training images")
    parser.add_argument("output", type=Path, metavar="MEAN_FILE", help="the mean.binaryproto to write")
    options = parser.parse_args()
    write_mean(options.database, options.output)


if __name__ == "__main__":
    run_main(main)
