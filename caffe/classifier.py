"""Classifier: a net for images, with their preprocessing; pycaffe's.

classifier = caffe.Classifier("deploy.prototxt", "net.caffemodel", image_dims=(256, 256), mean=mean, raw_scale=255)
probabilities = classifier.predict([caffe.io.load_image("cat.jpg")])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import image_io
from .errors import CaffeError
from .files import StrPath
from .image_io import Transformer, resize_image
from .net import Net
from .proto.caffe_pb2 import TEST


def image_transformer(
    net: Net,
    mean: np.ndarray | None,
    input_scale: float | None,
    raw_scale: float | None,
    channel_swap: Sequence[int] | None,
) -> Transformer:
    """The Transformer of images H×W×K for a net's first input, with what is not None set.

    Raises CaffeError where the net has no input and what setting these raises.
    """
    if not net.inputs:
        raise CaffeError(f"net {net.name!r}: has no input for images")
    name = net.inputs[0]
    transformer = Transformer({name: net.blobs[name].shape})
    transformer.set_transpose(name, (2, 0, 1))
    if mean is not None:
        transformer.set_mean(name, mean)
    if input_scale is not None:
        transformer.set_input_scale(name, input_scale)
    if raw_scale is not None:
        transformer.set_raw_scale(name, raw_scale)
    if channel_swap is not None:
        transformer.set_channel_swap(name, channel_swap)
    return transformer


class Classifier(Net):
    """A net that is given images of any size.

    Parameters
    ----------
    model_file, pretrained_file: the net's prototxt and its .caffemodel.
    image_dims: height and width to which images are resized before they are cropped to the net's input size; default:
        that size, so that the whole image is seen.
    mean, input_scale, raw_scale, channel_swap: as `Transformer` takes them; default: none.

    Attributes
    ----------
    transformer: the preprocessing behind the cropping.
    image_dims, crop_dims: the sizes of the resized images and of the crops.

    Raises
    ------
    CaffeError: what `Net` and `Transformer` raise, and where the net's input does not fit into `image_dims`.
    """

    def __init__(
        self,
        model_file: StrPath,
        pretrained_file: StrPath,
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = image_transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = np.array(self.crop_dims if image_dims is None else image_dims)
        if self.image_dims.shape != (2,) or (self.image_dims < self.crop_dims).any():
            raise CaffeError(
                f"Classifier: image_dims is {self.image_dims.tolist()}; expected height and width of at least "
                f"{self.crop_dims.tolist()}, the net's input"
            )

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """The net's first output for each image: N×C class probabilities, where it is a classifier.

        Parameters
        ----------
        inputs: images H×W×K, as `caffe.io.load_image` gives them; their sizes may differ.
        oversample: the average over ten crops of each image (`caffe.io.oversample`); False: of the centre alone.

        Raises CaffeError where there are no images or one has another number of axes or channels.
        """
        shapes = [np.shape(image) for image in inputs]
        if not shapes or any(len(shape) != 3 or shape[2] != shapes[0][2] for shape in shapes):
            raise CaffeError(
                f"predict: the inputs' shapes are {sorted(set(shapes)) or 'none'}; expected images of height × width × "
                "channels, all of as many channels"
            )
        images = [resize_image(image, self.image_dims) for image in inputs]
        crops = image_io.oversample(images, self.crop_dims) if oversample else self._centres(images)
        name = self.inputs[0]
        data = np.stack([self.transformer.preprocess(name, crop) for crop in crops])
        predictions = self.forward_all(**{name: data})[self.outputs[0]]
        if oversample:
            predictions = predictions.reshape(len(images), 10, -1).mean(1)
        return predictions

    def _centres(self, images: list[np.ndarray]) -> list[np.ndarray]:
        (top, left), (height, width) = (self.image_dims - self.crop_dims) // 2, self.crop_dims
        return [image[top : top + height, left : left + width] for image in images]
