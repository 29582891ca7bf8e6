"""Detector: a net that classifies windows of images, with R-CNN's context around them; pycaffe's.

    detector = caffe.Detector("deploy.prototxt", "net.caffemodel", mean=mean, raw_scale=255, context_pad=16)
    detections = detector.detect_windows([("street.jpg", [(ymin, xmin, ymax, xmax), …])])

R. Girshick, J. Donahue, T. Darrell, J. Malik: Rich feature hierarchies for accurate object detection and semantic
segmentation, 2014.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .classifier import image_transformer
from .errors import CaffeError
from .files import StrPath
from .image_io import load_image, resize_image
from .net import Net
from .proto.caffe_pb2 import TEST

SELECTIVE_SEARCH = "selective_search_ijcv_with_python"

Window = Sequence[int] | np.ndarray


class Detector(Net):
    """A net that is given windows of images.

    Parameters
    ----------
    model_file, pretrained_file: the net's prototxt and its .caffemodel.
    mean, input_scale, raw_scale, channel_swap: as `Transformer` takes them; default: none.
    context_pad: how many pixels of the net's (square) input, on each side, show what is around the window; default:
        none, and the window alone is resized to the input.

    Raises
    ------
    CaffeError: what `Net`, `Transformer` and `configure_crop` raise.
    """

    def __init__(
        self,
        model_file: StrPath,
        pretrained_file: StrPath,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = image_transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context around windows, and what is seen of it outside of the image: the mean.

        Raises CaffeError where the input is not square, or has no room for the window within the context.
        """
        name = self.inputs[0]
        shape = self.blobs[name].shape[1:]
        self.crop_dims = np.array([*shape[1:], shape[0]])
        self.context_pad = context_pad
        if not context_pad:
            return
        if shape[1] != shape[2] or not 0 < 2 * context_pad < shape[2]:
            raise CaffeError(
                f"context_pad is {context_pad} for an input of {shape[1]}×{shape[2]}; expected a square of more than "
                "twice as much"
            )
        # the mean as it would stand in the image, before channel_swap and raw_scale
        mean = np.broadcast_to(self.transformer.mean.get(name, np.zeros(1)), shape)
        if name in self.transformer.channel_swap:
            mean = mean[np.argsort(self.transformer.channel_swap[name])]
        self.crop_mean = mean.transpose(1, 2, 0) / self.transformer.raw_scale.get(name, 1)

    def crop(self, im: np.ndarray, window: Window) -> np.ndarray:
        """A window of an image, with the context that `configure_crop` set.

        Parameters
        ----------
        im: H×W×K.
        window: ymin, xmin, ymax, xmax; the pixels at ymax and xmax are the first outside.

        Returns
        -------
        The window h×w×K as it is, or with context the net's input size H×W×K, where the mean stands for what is
        outside of the image.

        Raises CaffeError where the window has no pixels in the image.
        """
        box = np.array(window)
        if box.shape != (4,):
            raise CaffeError(f"window {box.tolist()}: expected ymin, xmin, ymax, xmax")
        if self.context_pad:
            return self._crop_with_context(im, box)
        top, left, bottom, right = box.astype(int)
        crop = im[top:bottom, left:right]
        if min(top, left) < 0 or crop.size == 0:
            raise CaffeError(f"window {box.tolist()}: not within the image, whose size is {im.shape[:2]}")
        return crop

    def _crop_with_context(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """The window grown about its centre, so that it fills the input but for `context_pad` on each side."""
        size = int(self.crop_dims[0])
        growth = size / (size - 2.0 * (self.context_pad or 0))
        half = (window[2:] - window[:2] + 1) / 2
        center = window[:2] + half
        box = np.round(np.concatenate([center - growth * half, center + growth * half]))
        scale = size / (box[2:] - box[:2] + 1)
        pad = _round(np.maximum(-box[:2], 0) * scale)  # how much of the input is above and left of the image
        box = np.clip(box, 0, [*im.shape[:2], *im.shape[:2]])
        extent = np.minimum(_round((box[2:] - box[:2] + 1) * scale), size - pad)
        top, left, bottom, right = box.astype(int)
        seen = im[top:bottom, left:right]
        if seen.size == 0 or extent.min() < 1:
            raise CaffeError(f"window {window.tolist()}: not within the image, whose size is {im.shape[:2]}")
        crop = self.crop_mean.astype(np.float32)
        crop[pad[0] : pad[0] + extent[0], pad[1] : pad[1] + extent[1]] = resize_image(seen, extent)
        return crop

    def detect_windows(self, images_windows: Iterable[tuple[StrPath, Iterable[Window]]]) -> list[dict[str, Any]]:
        """Classify windows.

        Parameters
        ----------
        images_windows: for each image its file and its windows (ymin, xmin, ymax, xmax).

        Returns
        -------
        For each window in order a dict: `window`, `prediction` (the net's first output for it) and `filename`.

        Raises CaffeError for a file that is no image and a window that is not within it.
        """
        name = self.inputs[0]
        detections, data = [], []
        for filename, windows in images_windows:
            image = load_image(filename)
            for window in windows:
                try:
                    crop = self.crop(image, window)
                except CaffeError as error:
                    raise CaffeError(f"{filename}: {error}") from None
                data.append(self.transformer.preprocess(name, crop))
                detections.append({"window": window, "filename": filename})
        if data:
            predictions = self.forward_all(**{name: np.stack(data)})[self.outputs[0]]
            for detection, prediction in zip(detections, predictions, strict=True):
                detection["prediction"] = prediction
        return detections

    def detect_selective_search(self, image_fnames: Iterable[StrPath]) -> list[dict[str, Any]]:
        """`detect_windows` on the windows that selective search proposes.

        That search is the Python package `selective_search_ijcv_with_python`, which runs MATLAB.

        Raises CaffeError where it is not installed.
        """
        try:
            proposals = importlib.import_module(SELECTIVE_SEARCH)
        except ImportError:
            raise CaffeError(
                f"detect_selective_search: the package {SELECTIVE_SEARCH}, which needs MATLAB, is not installed; "
                "find windows by other means for detect_windows"
            ) from None
        files = [os.path.abspath(filename) for filename in image_fnames]  # MATLAB works in a folder of its own
        return self.detect_windows(zip(files, proposals.get_windows(files, cmd="selective_search_rcnn"), strict=True))


def _round(values: np.ndarray) -> np.ndarray:
    """Whole numbers, a half up: the rounding of the Python that pycaffe ran on."""
    return np.floor(values + 0.5).astype(int)
