"""Layers against OpenCV's reader of Caffe's nets, with settings that the reference values of Caffe leave out."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from small_nets import normal, one_layer, run

IMAGES = ((2, 3, 8, 12),)
WEIGHTS = 'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" }'


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (f'"Deconvolution" convolution_param {{ num_output: 4 kernel_size: 3 stride: 2 pad: 1 {WEIGHTS} }}', IMAGES),
        ('"Deconvolution" convolution_param { num_output: 4 kernel_h: 4 kernel_w: 2 stride_h: 3 stride_w: 2 pad_h: 1 '
         f"pad_w: 0 {WEIGHTS} }}", IMAGES),
        (f'"Deconvolution" convolution_param {{ num_output: 6 group: 3 kernel_size: 4 stride: 2 {WEIGHTS} }}', IMAGES),
        (f'"Convolution" convolution_param {{ num_output: 4 kernel_size: 3 dilation: 2 pad: 2 {WEIGHTS} }}', IMAGES),
        ('"Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }', IMAGES),
        ('"MVN" mvn_param { across_channels: true }', ((2, 3, 4, 5),)),
        ('"MVN" mvn_param { normalize_variance: false }', ((2, 3, 4, 5),)),
        ('"LRN" lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 0.7 beta: 0.6 }', ((2, 3, 6, 5),)),
        ('"Crop" crop_param { axis: 2 offset: 2 offset: 1 }', ((2, 3, 7, 6), (2, 3, 4, 5))),
        ('"Crop" crop_param { axis: 1 offset: 1 }', ((2, 3, 7, 6), (2, 2, 4, 5))),
        ('"Eltwise" eltwise_param { operation: MAX }', ((2, 3, 4), (2, 3, 4), (2, 3, 4))),
        ('"Reshape" reshape_param { shape { dim: 0 dim: -1 } axis: 1 num_axes: 2 }', ((2, 3, 4, 5),)),
        ('"Flatten" flatten_param { axis: 1 end_axis: 2 }', ((2, 3, 4, 5),)),
        ('"PReLU" prelu_param { filler { type: "gaussian" } }', ((2, 3, 4, 5),)),
        ('"ELU" elu_param { alpha: 0.5 }', ((2, 3, 4, 5),)),
        ('"BNLL"', ((2, 3, 4, 5),)),
        ('"AbsVal"', ((2, 3, 4, 5),)),
        ('"Power" power_param { power: 2 scale: 0.5 shift: -1 }', ((2, 3, 4, 5),)),
        ('"InnerProduct" inner_product_param { num_output: 4 axis: 2 ' f"{WEIGHTS} }}", ((2, 3, 4, 5),)),
    ],
)  # fmt: skip
def test_opencv_agrees(layer: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    net = one_layer(f"type: {layer}", *shapes)
    files = (str(net.param).encode(), net.to_proto().SerializeToString())
    theirs = cv2.dnn.readNetFromCaffe(*(np.frombuffer(file, np.uint8) for file in files))
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    for i, x in enumerate(inputs):
        theirs.setInput(x, f"x{i}")
    np.testing.assert_allclose(run(net, *inputs)["y"], theirs.forward(), atol=1e-4)


@pytest.mark.parametrize("pad", [0, 1])
def test_opencv_finds_the_maxima_in_the_same_places(pad: int) -> None:
    layer = f'type: "Pooling" pooling_param {{ kernel_size: 3 stride: 2 pad: {pad} }}'
    net = one_layer(layer, (2, 3, 8, 12), tops=("y", "where"))
    theirs = cv2.dnn.readNetFromCaffe(np.frombuffer(str(net.param).encode(), np.uint8))
    x = normal(2, 3, 8, 12)
    theirs.setInput(x)
    out, (tops,) = run(net, x), theirs.forwardAndRetrieve(["layer"])
    assert np.array_equal(out["y"], tops[0])
    assert np.array_equal(out["where"], tops[1])
