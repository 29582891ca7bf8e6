"""The networks that build.py writes: each a function that adds its layers behind `n.data`, grey faces N×1×44×44 or as
CROP says (those of PAIRS: N×2×44×44), and ends in the scores of the seven emotions, `n.score`.

Its docstring is the head comment of its files: what was published, and what is changed for faces of 48×48 pixels.
Networks that were published for photographs of 224 or 299 pixels halve the side five times; here four times, at the
places that the docstrings name, so that the last maps have 3×3 places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from caffe import NetSpec
from caffe import layers as L
from caffe.net_spec import Top

from .blocks import (
    GAUSSIAN,
    average_pool,
    channel_shuffle,
    conv_bn,
    convolution,
    depthwise_conv_bn,
    dropout,
    fully_connected,
    global_average,
    inverted_residual,
    max_pool,
    relu,
    residual,
    separable_conv_bn,
    squeeze_excitation,
)

CLASSES = 7
DEFAULT_CROP = 44
# where the published network has another side; images are 48×48, crops random in training and central in tests
CROP = {"vgg_fer": 40}
# networks that see a face twice, aligned and as it is, in two channels
PAIRS = ("face_resnet16_pair",)
DEFAULT_BASE_LR = 0.05
# networks with no batch norm, or none where most of their parameters are; and two whose loss rises again while the rate
# warms up to more
BASE_LR = {"lenet": 0.01, "vgg_fer": 0.01, "mobilenet_v2": 0.02, "mobilenet_v2_multikernel": 0.02}


def classify(n: NetSpec, bottom: Top, dropout_ratio: float = 0.0) -> None:
    """The global average of each channel and an inner product: the scores."""
    x = global_average(n, "pool", bottom)
    if dropout_ratio:
        x = dropout(n, "drop", x, dropout_ratio)
    fully_connected(n, "score", x, CLASSES, filler=GAUSSIAN)


def classify_maps(n: NetSpec, bottom: Top) -> None:
    """A map a class, and the average of each: the scores, without an inner product."""
    x = convolution(n, "maps", bottom, CLASSES, 3, weight_filler=GAUSSIAN)
    n.score = L.Flatten(global_average(n, "pool", x))


# Small plain networks


def lenet(n: NetSpec) -> None:
    """LeNet (LeCun et al. 1998) as Caffe's MNIST example has it: two convolutions with max pooling, two inner products.

    Changed: ReLU behind the convolutions too; the second pooling is over 4×4 places instead of 2×2, so that the first
    inner product sees 4×4 of them, as it does for digits of 28×28. Grey levels are divided by 64 first: with no batch
    norm, the weights count on values near 1.
    """
    n["scaled"] = L.Power(n.data, scale=1 / 64)
    x = relu(n, "conv1_relu", convolution(n, "conv1", n["scaled"], 20, 5, pad=0))
    x = max_pool(n, "pool1", x, kernel_size=2)
    x = relu(n, "conv2_relu", convolution(n, "conv2", x, 50, 5, pad=0))
    x = max_pool(n, "pool2", x, kernel_size=4, stride=4)
    x = relu(n, "fc1_relu", fully_connected(n, "fc1", x, 500))
    fully_connected(n, "score", x, CLASSES, filler=GAUSSIAN)


def sequential_fcn(n: NetSpec) -> None:
    """The sequential fully convolutional network of Arriaga et al., arXiv 1710.07557: nine convolutions with batch norm
    and ReLU, average pooling behind each pair, a tenth that gives a map a class, and global average pooling.

    Changed: dropout 0.2 instead of 0.5, beside the augmentation; a ReLU behind every convolution but the last, where
    the published code has one behind each pair.
    """
    x = n.data
    for stage, (channels, kernel) in enumerate(((16, 7), (32, 5), (64, 3), (128, 3)), start=1):
        x = conv_bn(n, f"conv{stage}a", x, channels, kernel)
        x = conv_bn(n, f"conv{stage}b", x, channels, kernel)
        x = average_pool(n, f"pool{stage}", x, kernel_size=2, stride=2)
        x = dropout(n, f"drop{stage}", x, 0.2)
    classify_maps(n, conv_bn(n, "conv5", x, 256))


def vgg_fer(n: NetSpec) -> None:
    """The VGG-like network of Khaireddin and Chen, arXiv 2105.03588, on crops of 40×40: four stages of two 3×3
    convolutions with batch norm and max pooling, three fully connected layers.

    Changed: the last pooling is over 3×3 places instead of 2×2, so that 5×5 become 2×2 under Caffe's rounding too.
    """
    x = n.data
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        x = conv_bn(n, f"conv{stage}a", x, channels)
        x = conv_bn(n, f"conv{stage}b", x, channels)
        x = max_pool(n, f"pool{stage}", x, kernel_size=3 if stage == 4 else 2)
    for layer in ("fc1", "fc2"):
        x = relu(n, f"{layer}_relu", fully_connected(n, layer, x, 4096, filler=GAUSSIAN))
        x = dropout(n, f"{layer}_drop", x, 0.2)
    fully_connected(n, "score", x, CLASSES, filler=GAUSSIAN)


# Xception and its small relatives


def xception_block(
    n: NetSpec, name: str, bottom: Top, inputs: int, outputs: tuple[int, int], first_relu: bool, pool_pad: int = 0
) -> Top:
    """Two separable convolutions and max pooling, beside a 1×1 convolution of stride 2; their sum."""
    shortcut = conv_bn(n, f"{name}_shortcut", bottom, outputs[1], kernel_size=1, stride=2, relu=False)
    x = relu(n, f"{name}_relu", bottom, in_place=False) if first_relu else bottom
    x = separable_conv_bn(n, f"{name}_conv1", x, inputs, outputs[0])
    x = separable_conv_bn(n, f"{name}_conv2", x, outputs[0], outputs[1], relu=False)
    return residual(n, name, shortcut, max_pool(n, f"{name}_pool", x, pad=pool_pad))


def big_xception(n: NetSpec) -> None:
    """big_XCEPTION, the larger of the published code of Arriaga et al., arXiv 1710.07557: two convolutions, two blocks
    of separable convolutions with a shortcut, a map a class and global average pooling.

    Changed: the first two convolutions are padded.
    """
    x = conv_bn(n, "conv1", n.data, 32, stride=2)
    x = conv_bn(n, "conv2", x, 64)
    x = xception_block(n, "block1", x, 64, (128, 128), first_relu=False)
    classify_maps(n, xception_block(n, "block2", x, 128, (256, 256), first_relu=True, pool_pad=1))


def mini_concat_xception(n: NetSpec, branches: Sequence[tuple[int, int]], excite: bool) -> None:
    """mini_xception whose blocks have branches side by side, a (kernel size, number of separable convolutions) each."""
    x = conv_bn(n, "conv1", n.data, 8, pad=0)
    x = conv_bn(n, "conv2", x, 8, pad=0)
    inputs = 8
    for block, width in enumerate((16, 32, 64, 128), start=1):
        outputs = width * len(branches)
        shortcut = conv_bn(n, f"block{block}_shortcut", x, outputs, kernel_size=1, stride=2, relu=False)
        tops = []
        for letter, (kernel, depth) in zip("abc", branches, strict=False):
            top, channels = x, inputs
            for i in range(1, depth + 1):
                name = f"block{block}{letter}_conv{i}"
                top = separable_conv_bn(n, name, top, channels, width, kernel, relu=i < depth)
                channels = width
            tops.append(top)
        n[f"block{block}_concat"] = L.Concat(*tops)
        x = n[f"block{block}_concat"]
        if excite:
            x = squeeze_excitation(n, f"block{block}_se", x, outputs)
        # sides 40, 20, 10, 5
        x = residual(n, f"block{block}", shortcut, max_pool(n, f"block{block}_pool", x, pad=int(block == 4)))
        inputs = outputs
    classify_maps(n, x)


def mini_concat_xception_v1(n: NetSpec) -> None:
    """mini_xception (Arriaga et al., arXiv 1710.07557) on two scales by two kernel sizes: each block has two branches
    of two separable convolutions, 3×3 in one and 5×5 in the other, of mini_xception's widths, concatenated.
    """
    mini_concat_xception(n, [(3, 2), (5, 2)], excite=False)


def mini_concat_xception_v2(n: NetSpec) -> None:
    """mini_xception (Arriaga et al., arXiv 1710.07557) on two scales by two depths: each block has two branches of
    3×3 separable convolutions, two in one and four in the other, of mini_xception's widths, concatenated. The deep
    branch sees as far as the 5×5 one of mini_concat_xception_v1.
    """
    mini_concat_xception(n, [(3, 2), (3, 4)], excite=False)


def mini_concat_xception_v3(n: NetSpec) -> None:
    """mini_xception (Arriaga et al., arXiv 1710.07557) on several scales by kernel sizes and depths both: each block
    has three branches, two 3×3, two 5×5 or four 3×3 separable convolutions, of mini_xception's widths, concatenated,
    and squeeze-and-excitation (Hu et al., arXiv 1709.01507) behind them.
    """
    mini_concat_xception(n, [(3, 2), (5, 2), (3, 4)], excite=True)


def xception(n: NetSpec) -> None:
    """Xception (Chollet, arXiv 1610.02357): 36 convolutions, separable but for the first two, in 14 modules.

    Changed: the first convolution has stride 1 instead of 2; the first two are padded. Dropout 0.5 in front of the
    inner product, as published for ImageNet.
    """
    x = conv_bn(n, "conv1", n.data, 32)
    x = conv_bn(n, "conv2", x, 64)
    x = xception_block(n, "block2", x, 64, (128, 128), first_relu=False)
    x = xception_block(n, "block3", x, 128, (256, 256), first_relu=True)
    x = xception_block(n, "block4", x, 256, (728, 728), first_relu=True, pool_pad=1)
    for block in range(5, 13):
        shortcut = x
        for i in (1, 2, 3):
            x = relu(n, f"block{block}_relu{i}", x, in_place=i > 1)
            x = separable_conv_bn(n, f"block{block}_conv{i}", x, 728, 728, relu=False)
        x = residual(n, f"block{block}", shortcut, x)
    x = xception_block(n, "block13", x, 728, (728, 1024), first_relu=True)
    x = separable_conv_bn(n, "block14_conv1", x, 1024, 1536)
    x = separable_conv_bn(n, "block14_conv2", x, 1536, 2048)
    classify(n, x, dropout_ratio=0.5)


# MobileNets and ShuffleNet


def mobilenet_v1(n: NetSpec) -> None:
    """MobileNet, the first one (Howard et al., arXiv 1704.04861), at full width: a convolution, then thirteen pairs of
    a depthwise 3×3 and a 1×1 convolution.

    Changed: the first convolution has stride 1 instead of 2.
    """
    inputs = 32
    x = conv_bn(n, "conv1", n.data, inputs)
    pairs = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for number, (outputs, stride) in enumerate(pairs, start=2):
        x = depthwise_conv_bn(n, f"conv{number}_dw", x, inputs, stride=stride)
        x = conv_bn(n, f"conv{number}", x, outputs, kernel_size=1)
        inputs = outputs
    classify(n, x)


def inverted_residuals(n: NetSpec, kernels: Sequence[int]) -> None:
    """MobileNetV2 with depthwise convolutions of those kernel sizes in each block."""
    inputs = 32
    x = conv_bn(n, "conv1", n.data, inputs)
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for stage, (expansion, outputs, repeats, first_stride) in enumerate(stages, start=1):
        for i in range(1, repeats + 1):
            stride = first_stride if i == 1 else 1
            x = inverted_residual(n, f"block{stage}_{i}", x, inputs, outputs, expansion, stride, kernels)
            inputs = outputs
    classify(n, conv_bn(n, "conv2", x, 1280, kernel_size=1), dropout_ratio=0.2)


def mobilenet_v2(n: NetSpec) -> None:
    """MobileNetV2 (Sandler et al., arXiv 1801.04381) at full width: seventeen inverted residuals.

    Changed: the first convolution has stride 1 instead of 2; ReLU instead of ReLU6, which Caffe 1.0 has no layer for.
    """
    inverted_residuals(n, kernels=(3,))


def mobilenet_v2_multikernel(n: NetSpec) -> None:
    """MobileNetV2 (Sandler et al., arXiv 1801.04381) with parallel depthwise convolutions of 3×3, 5×5 and 7×7 in each
    block, each for a third of the channels (as MixConv, arXiv 1907.09595).

    Changed as mobilenet_v2: the first convolution has stride 1 instead of 2; ReLU instead of ReLU6.
    """
    inverted_residuals(n, kernels=(3, 5, 7))


def shuffle_branch(n: NetSpec, name: str, bottom: Top, inputs: int, outputs: int, stride: int) -> Top:
    """1×1, depthwise 3×3 and 1×1 convolution; no ReLU behind the depthwise one."""
    x = conv_bn(n, f"{name}_conv1", bottom, outputs, kernel_size=1)
    x = depthwise_conv_bn(n, f"{name}_dw", x, outputs, stride=stride, relu=False)
    return conv_bn(n, f"{name}_conv2", x, outputs, kernel_size=1)


def shufflenet_v2(n: NetSpec) -> None:
    """ShuffleNetV2 (Ma et al., arXiv 1807.11164), 1×: sixteen units whose halves of the channels take turns.

    Changed: the first convolution has stride 1 instead of 2. The shuffle, for which Caffe has no layer, is a Concat
    along the rows and a Reshape.
    """
    inputs = 24
    x = max_pool(n, "pool1", conv_bn(n, "conv1", n.data, inputs))
    for stage, (outputs, repeats) in enumerate(((116, 4), (232, 8), (464, 4)), start=2):
        half, name = outputs // 2, f"stage{stage}_1"
        left = depthwise_conv_bn(n, f"{name}_left_dw", x, inputs, stride=2, relu=False)
        left = conv_bn(n, f"{name}_left", left, half, kernel_size=1)
        x = channel_shuffle(n, name, left, shuffle_branch(n, name, x, inputs, half, stride=2), outputs)
        for i in range(2, repeats + 1):
            name = f"stage{stage}_{i}"
            n[f"{name}_left"], n[f"{name}_right"] = L.Slice(x, ntop=2)
            right = shuffle_branch(n, name, n[f"{name}_right"], half, half, stride=1)
            x = channel_shuffle(n, name, n[f"{name}_left"], right, outputs)
        inputs = outputs
    classify(n, conv_bn(n, "conv5", x, 1024, kernel_size=1))


# ResNets


def basic_block(n: NetSpec, name: str, bottom: Top, outputs: int, stride: int, project: bool) -> Top:
    """Two 3×3 convolutions, added to the bottom or, with `project`, to a 1×1 convolution of it; then a ReLU."""
    shortcut = bottom
    if project:
        shortcut = conv_bn(n, f"{name}_shortcut", bottom, outputs, kernel_size=1, stride=stride, relu=False)
    x = conv_bn(n, f"{name}_conv1", bottom, outputs, stride=stride)
    x = conv_bn(n, f"{name}_conv2", x, outputs, relu=False)
    return relu(n, f"{name}_relu", residual(n, name, shortcut, x))


def resnet(n: NetSpec, repeats: Sequence[int]) -> None:
    """A ResNet of basic blocks, so many in each of its four stages."""
    x = max_pool(n, "pool1", conv_bn(n, "conv1", n.data, 64))
    for stage, (outputs, blocks) in enumerate(zip((64, 128, 256, 512), repeats, strict=True), start=2):
        for i in range(1, blocks + 1):
            narrows = stage > 2 and i == 1
            x = basic_block(n, f"stage{stage}_{i}", x, outputs, stride=2 if narrows else 1, project=narrows)
    classify(n, x)


def resnet18(n: NetSpec) -> None:
    """ResNet-18 (He et al., arXiv 1512.03385), with projections where the shape changes.

    Changed: the first convolution is 3×3 at stride 1 instead of 7×7 at stride 2.
    """
    resnet(n, (2, 2, 2, 2))


def resnet34(n: NetSpec) -> None:
    """ResNet-34 (He et al., arXiv 1512.03385), with projections where the shape changes.

    Changed: the first convolution is 3×3 at stride 1 instead of 7×7 at stride 2.
    """
    resnet(n, (3, 4, 6, 3))


def face_resnet(n: NetSpec) -> None:
    """A network of this project's own design: a ResNet of one basic block (He et al., arXiv 1512.03385) in each of four
    stages, 48, 96, 192 and 384 channels wide, behind a 5×5 convolution of 32.

    Most of its multiply-adds are dense 3×3 convolutions of many channels, which processors compute near their peak.
    """
    # the maximum of the ReLUs is the ReLU of the maximum, which is computed for a quarter of the places
    x = relu(n, "stem_relu", max_pool(n, "pool1", conv_bn(n, "stem", n.data, 32, kernel_size=5, relu=False)))
    for stage, outputs in enumerate((48, 96, 192, 384), start=1):
        x = basic_block(n, f"stage{stage}_block1", x, outputs, stride=2 if stage > 1 else 1, project=True)
    classify(n, x, dropout_ratio=0.4)


def face_resnet16(n: NetSpec) -> None:
    """A network of this project's own design, the larger face_resnet: a ResNet of seven basic blocks (He et al.,
    arXiv 1512.03385) behind a 3×3 convolution of 32, one of 32 channels at the full side, two each of 64, 128 and 256,
    and one of 360.

    Nothing is pooled before the end: the first block sees every pixel, where wrinkles and corners of mouths are.
    """
    classify(n, face_resnet16_blocks(n, n.data), dropout_ratio=0.4)


def face_resnet16_blocks(n: NetSpec, bottom: Top) -> Top:
    """Its convolutions."""
    x = basic_block(n, "stage1_block1", conv_bn(n, "stem", bottom, 32), 32, stride=1, project=False)
    for stage, (outputs, blocks) in enumerate(((64, 2), (128, 2), (256, 2), (360, 1)), start=2):
        x = basic_block(n, f"stage{stage}_block1", x, outputs, stride=2, project=True)
        for i in range(2, blocks + 1):
            x = basic_block(n, f"stage{stage}_block{i}", x, outputs, stride=1, project=False)
    return x


def face_resnet16_pair(n: NetSpec) -> None:
    """A network of this project's own design: face_resnet16 that sees a face twice, aligned and as it is, the channels
    of its input. Both go through the same convolutions, one behind the other in the batch, and the scores are of the
    mean of their features.

    Alignment brings eyes and mouths to one place, and loses what a face's tilt and frame say; each sees what the other
    misses. In training each of the two has scores of its own as well, so that both learn.
    """
    n.aligned, n.unaligned = L.Slice(n.data, axis=1, ntop=2)
    n.faces = L.Concat(n.aligned, n.unaligned, axis=0)
    pool = global_average(n, "pool", face_resnet16_blocks(n, n.faces))
    n.pool_aligned, n.pool_unaligned = L.Slice(pool, axis=0, ntop=2)
    n.both = L.Eltwise(n.pool_aligned, n.pool_unaligned, coeff=[0.5, 0.5])
    fully_connected(n, "score", n.both, CLASSES, filler=GAUSSIAN)


# Inception

# One branch of a module: channels and kernel of each convolution after the other, and the stride of the last.
Branch = Sequence[tuple[int, int | tuple[int, int]]]


def branch(n: NetSpec, name: str, bottom: Top, convolutions: Branch, stride: int = 1) -> Top:
    """Convolutions with batch norm and ReLU, one after another; the last has `stride`."""
    x = bottom
    for i, (channels, kernel) in enumerate(convolutions, start=1):
        x = conv_bn(n, f"{name}{i}", x, channels, kernel, stride if i == len(convolutions) else 1)
    return x


def inception_stem(n: NetSpec) -> Top:
    """Five convolutions and two max poolings: 192 maps of a quarter of the side."""
    x = conv_bn(n, "conv1", n.data, 32)
    x = conv_bn(n, "conv2", x, 32)
    x = max_pool(n, "pool1", conv_bn(n, "conv3", x, 64))
    x = conv_bn(n, "conv4", x, 80, kernel_size=1)
    return max_pool(n, "pool2", conv_bn(n, "conv5", x, 192))


def join(n: NetSpec, name: str, *tops: Top) -> Top:
    """The branches of a module, joined channel by channel."""
    n[name] = L.Concat(*tops)
    return n[name]


def inception_a(n: NetSpec, name: str, bottom: Top, pooled: int) -> Top:
    """1×1, 5×5, two 3×3 and average pooling with `pooled` channels: 224 + pooled channels."""
    return join(
        n,
        name,
        branch(n, f"{name}_a", bottom, [(64, 1)]),
        branch(n, f"{name}_b", bottom, [(48, 1), (64, 5)]),
        branch(n, f"{name}_c", bottom, [(64, 1), (96, 3), (96, 3)]),
        branch(n, f"{name}_d", average_pool(n, f"{name}_pool", bottom, 3, 1, pad=1), [(pooled, 1)]),
    )


def inception_b(n: NetSpec, name: str, bottom: Top, c: int) -> Top:
    """1×1, 7×7 in two steps, twice 7×7 in four steps, of `c` channels inside, and average pooling: 768 channels."""
    row, column = (1, 7), (7, 1)
    return join(
        n,
        name,
        branch(n, f"{name}_a", bottom, [(192, 1)]),
        branch(n, f"{name}_b", bottom, [(c, 1), (c, row), (192, column)]),
        branch(n, f"{name}_c", bottom, [(c, 1), (c, column), (c, row), (c, column), (192, row)]),
        branch(n, f"{name}_d", average_pool(n, f"{name}_pool", bottom, 3, 1, pad=1), [(192, 1)]),
    )


def inception_c(n: NetSpec, name: str, bottom: Top) -> Top:
    """1×1, 3×3 as a row beside a column, twice, and average pooling: 2048 channels."""
    row, column = (1, 3), (3, 1)
    b = branch(n, f"{name}_b", bottom, [(384, 1)])
    c = branch(n, f"{name}_c", bottom, [(448, 1), (384, 3)])
    return join(
        n,
        name,
        branch(n, f"{name}_a", bottom, [(320, 1)]),
        branch(n, f"{name}_b_row", b, [(384, row)]),
        branch(n, f"{name}_b_column", b, [(384, column)]),
        branch(n, f"{name}_c_row", c, [(384, row)]),
        branch(n, f"{name}_c_column", c, [(384, column)]),
        branch(n, f"{name}_d", average_pool(n, f"{name}_pool", bottom, 3, 1, pad=1), [(192, 1)]),
    )


def inception_v3(n: NetSpec) -> None:
    """Inception v3 (Szegedy et al., arXiv 1512.00567): eleven inception modules.

    Changed: the first convolution has stride 1 instead of 2; all convolutions and poolings that were not padded are.
    Without the auxiliary classifier.
    """
    x = inception_stem(n)
    for i, pooled in enumerate((32, 64, 64), start=1):
        x = inception_a(n, f"a{i}", x, pooled)
    x = join(
        n,
        "reduction_a",
        branch(n, "reduction_a_a", x, [(384, 3)], stride=2),
        branch(n, "reduction_a_b", x, [(64, 1), (96, 3), (96, 3)], stride=2),
        max_pool(n, "reduction_a_pool", x, pad=1),
    )
    for i, channels in enumerate((128, 160, 160, 192), start=1):
        x = inception_b(n, f"b{i}", x, channels)
    x = join(
        n,
        "reduction_b",
        branch(n, "reduction_b_a", x, [(192, 1), (320, 3)], stride=2),
        branch(n, "reduction_b_b", x, [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)], stride=2),
        max_pool(n, "reduction_b_pool", x),
    )
    for i in (1, 2):
        x = inception_c(n, f"c{i}", x)
    classify(n, x, dropout_ratio=0.5)


def inception_residual(
    n: NetSpec, name: str, bottom: Top, inputs: int, scale: float, branches: Sequence[Branch]
) -> Top:
    """Branches joined, a 1×1 convolution back to the `inputs` channels, `scale` times that added to the bottom."""
    tops = [branch(n, f"{name}_{letter}", bottom, b) for letter, b in zip("abc", branches, strict=False)]
    x = convolution(n, f"{name}_up", join(n, f"{name}_join", *tops), inputs, 1)
    return residual(n, name, bottom, x, scale)


def inception_resnet_v2(n: NetSpec) -> None:
    """Inception-ResNet v2 (Szegedy et al., arXiv 1602.07261) as its authors released it: an inception module, then
    ten, twenty and ten residual ones.

    Changed: the first convolution has stride 1 instead of 2; all convolutions and poolings that were not padded are.
    Without the auxiliary classifier.
    """
    x = inception_stem(n)
    x = join(
        n,
        "mixed",
        branch(n, "mixed_a", x, [(96, 1)]),
        branch(n, "mixed_b", x, [(48, 1), (64, 5)]),
        branch(n, "mixed_c", x, [(64, 1), (96, 3), (96, 3)]),
        branch(n, "mixed_d", average_pool(n, "mixed_pool", x, 3, 1, pad=1), [(64, 1)]),
    )
    for i in range(1, 11):
        branches: list[Branch] = [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]]
        x = relu(n, f"a{i}_relu", inception_residual(n, f"a{i}", x, 320, 0.17, branches))
    x = join(
        n,
        "reduction_a",
        branch(n, "reduction_a_a", x, [(384, 3)], stride=2),
        branch(n, "reduction_a_b", x, [(256, 1), (256, 3), (384, 3)], stride=2),
        max_pool(n, "reduction_a_pool", x, pad=1),
    )
    for i in range(1, 21):
        branches = [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]]
        x = relu(n, f"b{i}_relu", inception_residual(n, f"b{i}", x, 1088, 0.1, branches))
    x = join(
        n,
        "reduction_b",
        branch(n, "reduction_b_a", x, [(256, 1), (384, 3)], stride=2),
        branch(n, "reduction_b_b", x, [(256, 1), (288, 3)], stride=2),
        branch(n, "reduction_b_c", x, [(256, 1), (288, 3), (320, 3)], stride=2),
        max_pool(n, "reduction_b_pool", x),
    )
    for i in range(1, 11):
        branches = [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]]
        # the last one is added in full, and has no ReLU
        x = inception_residual(n, f"c{i}", x, 2080, 0.2 if i < 10 else 1.0, branches)
        x = relu(n, f"c{i}_relu", x) if i < 10 else x
    classify(n, conv_bn(n, "conv6", x, 1536, kernel_size=1), dropout_ratio=0.2)


NETWORKS: dict[str, Callable[[NetSpec], None]] = {
    network.__name__: network
    for network in (
        lenet,
        sequential_fcn,
        big_xception,
        mini_concat_xception_v1,
        mini_concat_xception_v2,
        mini_concat_xception_v3,
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v2_multikernel,
        shufflenet_v2,
        inception_v3,
        inception_resnet_v2,
        xception,
        resnet18,
        resnet34,
        face_resnet,
        face_resnet16,
        face_resnet16_pair,
        vgg_fer,
    )
}
