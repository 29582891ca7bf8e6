"""Faces and five landmarks in images of any size, by MTCNN: three Caffe nets with the weights of the `mtcnn` package.

K. Zhang, Z. Zhang, Z. Li, Y. Qiao: Joint Face Detection and Alignment using Multitask Cascaded Convolutional Networks,
IEEE Signal Processing Letters 23(10), 2016, arXiv 1604.02878. P-Net proposes boxes on an image pyramid, R-Net refines
them, O-Net refines those again and finds the landmarks. Images of one size are worked on together, whole batches at a
time; boxes are arrays of float64 on the CPU, pixels and nets are tensors on the device.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import joblib
import numpy as np
import torch

import caffe

PROTOTXT = Path(__file__).resolve().parent.parent / "prototxt" / "mtcnn"
LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # left and right as the viewer sees them

WINDOW, STRIDE = 12, 2  # P-Net looks at windows of 12x12 pixels, at a stride of 2
# The shorter side of the smallest level of the pyramid. A little over WINDOW, since that is what the rounding in the
# mtcnn package's formula for the number of levels comes to: its count k is the largest with
# side * 0.6 * f^(k-1) >= 12 * 0.6 * f^-1.5, for its factor f = 0.709.
SMALLEST_LEVEL = 12 * 0.6 * 0.709**-1.5
NMS_LEVEL, NMS_PYRAMID, NMS_REFINE, NMS_OUTPUT = 0.5, 0.7, 0.7, 0.7  # overlaps above which the weaker box goes

BORDER = 0.25  # of the shorter side: the grey border with which a PatientDetector looks again
GREY = (128, 128, 128)
AGAIN_SIDE = 256  # the shorter side to which it shrinks larger images for that: it looks for faces that fill them
LOW_THRESHOLDS = (0.3, 0.3, 0.3)

STACK_PIXELS = 1 << 21  # images of one size go together up to so many pixels
FLOAT_PIXELS = 1 << 24  # up to so many, pixels are resized as float32; beyond, as bytes, to bound memory
TILE_WINDOWS = 1 << 14  # windows that P-Net looks at at a time, to bound memory for huge images
TILE_SIDE = 1024  # and how many in a row
CROPS = {24: 128, 48: 32}  # crops that go through R-Net (24x24) and O-Net (48x48) at a time: they fit the caches


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image.

    box: x, y, width, height in pixels, within the image.
    landmarks: (5, 2) float32, x and y in pixels of the points that LANDMARKS names; may lie outside the image.
    confidence: O-Net's probability that this is a face, 0..1.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    confidence: float


class Detector:
    """MTCNN's three nets, loaded once; boxes and landmarks are those of the `mtcnn` package, version 1.0.0.

    Parameters
    ----------
    device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
    min_face_size: side in pixels of the smallest face that is looked for.
    scale_factor: ratio of the sides of two levels of the pyramid, above 0 and below 1.
    thresholds: probabilities that a box must exceed to leave P-Net, R-Net and O-Net, each 0..1.

    Raises ValueError for a parameter outside its range, RuntimeError when the `mtcnn` package is not installed.
    One detector may be used by several threads at once.
    """

    def __init__(
        self,
        device: str = "auto",
        min_face_size: float = 20,
        scale_factor: float = 0.709,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8),
    ) -> None:
        if not min_face_size >= 1:
            raise ValueError(f"min_face_size is {min_face_size!r}; expected a number of pixels, 1 or more")
        if not 0 < scale_factor < 1:
            raise ValueError(f"scale_factor is {scale_factor!r}; expected a number above 0 and below 1")
        if len(thresholds) != 3 or not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(f"thresholds is {thresholds!r}; expected three probabilities, 0..1")
        self.min_face_size = min_face_size
        self.scale_factor = scale_factor
        self.thresholds = thresholds
        self.device = caffe.use_device(device)
        self.pnet, self.rnet, self.onet = (load_net(name) for name in ("pnet", "rnet", "onet"))

    def detect(self, image: np.ndarray) -> list[Face]:
        """The faces in one image, the most confident first.

        image: uint8, HxW or HxWx1 (grey), or HxWx3 in OpenCV's order, BGR. Raises ValueError for anything else.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """For each image, of any kind that `detect` takes, its faces; fastest when many images are of one size."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[_check_image(image, index)].append(index)
        faces: list[list[Face]] = [[] for _ in images]
        for shape, members in groups.items():
            step = max(1, STACK_PIXELS // max(1, shape[0] * shape[1]))
            for start in range(0, len(members), step):
                chunk = members[start : start + step]
                stack = np.stack([images[index].reshape(shape) for index in chunk])  # HxW and HxWx1 together
                for index, found in zip(chunk, self._detect_stack(stack), strict=True):
                    faces[index] = found
        return faces

    @torch.inference_mode()
    def _detect_stack(self, images: np.ndarray) -> list[list[Face]]:
        """The faces of each of n images of one size, uint8 n x H x W x C with C 1 or 3."""
        height, width = images.shape[1:3]
        if not self._scales(height, width):
            return [[] for _ in images]
        if images.size <= 3 * FLOAT_PIXELS:
            images = images.astype(np.float32)  # else pixels of the pyramid are rounded to whole grey levels
        boxes = self._propose(images)
        pixels = torch.from_numpy(images).to(self.device)
        boxes = self._refine(pixels, boxes)
        boxes, landmarks = self._output(pixels, boxes)
        corners = np.clip(boxes.corners, 0, np.array([width - 1, height - 1] * 2, np.float64))
        faces: list[list[Face]] = [[] for _ in images]
        for image, (x1, y1, x2, y2), points, score in zip(
            boxes.images.tolist(), corners.tolist(), landmarks, boxes.scores.tolist(), strict=True
        ):
            faces[image].append(Face((x1, y1, x2 - x1, y2 - y1), points, score))
        return faces

    # -- P-Net ---------------------------------------------------------------------------------------------------------

    def _scales(self, height: int, width: int) -> list[float]:
        """The pyramid's scales: at the first, a face of min_face_size fills P-Net's window."""
        scales = []
        scale = WINDOW / self.min_face_size
        while min(height, width) * scale >= SMALLEST_LEVEL:
            scales.append(scale)
            scale = WINDOW / self.min_face_size * self.scale_factor ** len(scales)
        return scales

    def _propose(self, images: np.ndarray) -> Boxes:
        """Square boxes that may hold a face, from all levels of the pyramid, one level in memory at a time."""
        height, width = images.shape[1:3]
        found = []
        for scale in self._scales(height, width):
            # as in the package, the level's size is cut to whole pixels, but its boxes are scaled by the exact figure
            level = self._propose_level(resize_area(images, int(height * scale), int(width * scale)))
            found.append(replace(level, corners=level.corners / scale).suppress(NMS_LEVEL))
        return Boxes.concatenate(found).suppress(NMS_PYRAMID).squared()

    def _propose_level(self, level: np.ndarray) -> Boxes:
        """P-Net on one level of the pyramid, tile by tile: its boxes, in the level's pixels."""
        count, height, width, _ = level.shape
        # windows that fit, and of an odd size one more: pooling, which rounds up, takes half a step beyond the edge
        rows, columns = (-((WINDOW - side) // STRIDE) + 1 for side in (height, width))
        column_step = min(columns, TILE_SIDE)
        row_step = min(rows, max(1, TILE_WINDOWS // column_step))
        image_step = max(1, TILE_WINDOWS // (row_step * column_step))
        found = []
        for first in range(0, count, image_step):
            for top in range(0, rows, row_step):
                for left in range(0, columns, column_step):
                    tile = level[
                        first : first + image_step,
                        top * STRIDE : (top + row_step - 1) * STRIDE + WINDOW,
                        left * STRIDE : (left + column_step - 1) * STRIDE + WINDOW,
                    ]
                    boxes = self._propose_tile(tile)
                    boxes.images += first
                    boxes.corners += [left * STRIDE, top * STRIDE] * 2
                    found.append(boxes)
        return Boxes.concatenate(found)

    def _propose_tile(self, tile: np.ndarray) -> Boxes:
        """P-Net on a part of some images: its boxes, in pixels from the tile's top left corner."""
        out = self.pnet.infer(data=_net_input(torch.from_numpy(tile).to(self.device)))
        scores = out["prob"][:, 1]
        image, row, column = (scores > self.thresholds[0]).nonzero(as_tuple=True)
        offsets = out["box"][image, :, row, column].cpu().numpy().astype(np.float64)
        x, y = (axis.cpu().numpy() * float(STRIDE) for axis in (column, row))
        # the package counts a window's pixels from 1 to 12, and takes 11 for its size
        corners = np.stack([x + 1, y + 1, x + WINDOW, y + WINDOW], 1) + offsets * (WINDOW - 1)
        return Boxes(image.cpu().numpy(), corners, scores[image, row, column].cpu().numpy().astype(np.float64))

    # -- R-Net and O-Net -----------------------------------------------------------------------------------------------

    def _refine(self, images: torch.Tensor, boxes: Boxes) -> Boxes:
        """R-Net: of the proposals those that it takes for faces, moved to fit, and made square again."""
        out = self._run_crops(self.rnet, images, boxes, 24, ("box", "prob"))
        refined = boxes.moved(out["box"], out["prob"][:, 1])
        return refined.take(refined.scores > self.thresholds[1]).suppress(NMS_REFINE).squared()

    def _output(self, images: torch.Tensor, boxes: Boxes) -> tuple[Boxes, np.ndarray]:
        """O-Net: the faces' boxes, and their landmarks as (n, 5, 2) float32."""
        out = self._run_crops(self.onet, images, boxes, 48, ("box", "prob", "landmarks"))
        origin = boxes.corners[:, None, :2]
        shares = out["landmarks"].reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = (boxes.sizes()[:, None, :] * shares + origin - 1).astype(np.float32)
        faces = boxes.moved(out["box"], out["prob"][:, 1])
        keep = np.flatnonzero(faces.scores > self.thresholds[2])
        keep = keep[suppress(faces.take(keep), NMS_OUTPUT, of_smaller=True)]
        return faces.take(keep), landmarks[keep]

    def _run_crops(
        self, net: caffe.Net, images: torch.Tensor, boxes: Boxes, side: int, outputs: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """A net's outputs for the boxes' pixels, resized to side x side, as float32 arrays of one row a box."""
        results: dict[str, list[torch.Tensor]] = {name: [] for name in outputs}
        for start in range(0, max(1, len(boxes)), CROPS[side]):  # no box at all: one empty chunk, for the shapes
            chunk = boxes.take(slice(start, start + CROPS[side]))
            out = net.infer(data=_net_input(crop_and_resize(images, chunk, side)))
            for name in outputs:
                results[name].append(out[name])
        return {name: torch.cat(parts).cpu().numpy() for name, parts in results.items()}


class PatientDetector:
    """A Detector that looks again where it finds no face: MTCNN misses faces that fill their image.

    Where the usual look finds none, the second one is with a grey border around the image, and a third one so with
    LOW_THRESHOLDS, where it is known that every image shows a face.

    Parameters
    ----------
    device: as Detector's. Raises what Detector raises.
    certain: whether every image shows a face.
    """

    def __init__(self, device: str = "auto", certain: bool = False) -> None:
        usual = Detector(device)
        self.looks = [usual, usual]
        if certain:
            self.looks.append(copy.copy(usual))  # shares the nets
            self.looks[-1].thresholds = LOW_THRESHOLDS

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """For each image, as `Detector.detect_batch` takes them, the faces of the first look that finds any."""
        usual, *others = self.looks
        found = usual.detect_batch(images)
        bordered = {index: _with_border(images[index]) for index, faces in enumerate(found) if not faces}
        for detector in others:
            missed = [index for index in bordered if not found[index]]
            for index, faces in zip(missed, detector.detect_batch([bordered[i][0] for i in missed]), strict=True):
                _, border, ratio = bordered[index]
                found[index] = [_without_border(face, border, ratio, images[index]) for face in faces]
        return found


def _with_border(image: np.ndarray) -> tuple[np.ndarray, int, float]:
    """An image, shrunk to AGAIN_SIDE where it is larger, with a grey border; the border's width, and its pixels' side
    in those of the image."""
    ratio = max(1.0, min(image.shape[:2]) / AGAIN_SIDE)
    if ratio > 1:
        size = (round(image.shape[1] / ratio), round(image.shape[0] / ratio))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    border = round(BORDER * min(image.shape[:2]))
    wide = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_CONSTANT, value=GREY)
    return wide, border, ratio


def _without_border(face: Face, border: int, ratio: float, image: np.ndarray) -> Face:
    """A face found in what `_with_border` made of an image, in the image's own pixels; the box cut at its edges."""
    x, y, width, height = face.box
    corners = (np.array([x, y, x + width, y + height]) - border + 0.5) * ratio - 0.5  # pixel centres
    right, bottom = image.shape[1] - 1, image.shape[0] - 1
    x1, y1, x2, y2 = np.clip(corners, 0, [right, bottom, right, bottom]).tolist()
    landmarks = ((face.landmarks - border + 0.5) * ratio - 0.5).astype(np.float32)
    return Face((x1, y1, x2 - x1, y2 - y1), landmarks, face.confidence)


def _check_image(image: np.ndarray, index: int) -> tuple[int, int, int]:
    """Height, width and channels of an image; ValueError unless it is what `detect` takes."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 2:
            return (*image.shape, 1)
        if image.ndim == 3 and image.shape[2] in (1, 3):
            return image.shape
    what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"image {index} is {what}; expected a numpy array of uint8, HxW, HxWx1 or HxWx3 (BGR)")


# ---------------------------------------------------------------------------------------------------------------------
# Boxes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Boxes:
    """n boxes in a stack of images.

    images: (n,) int64, each box's image.  corners: (n, 4) float64, x1, y1, x2, y2.  scores: (n,) float64.
    """

    images: np.ndarray
    corners: np.ndarray
    scores: np.ndarray

    @classmethod
    def concatenate(cls, parts: list[Boxes]) -> Boxes:
        """All boxes, in order; of no parts none."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "corners", "scores"))
        )

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, which: np.ndarray | slice) -> Boxes:
        """The boxes at these places, as an index array, a mask or a slice."""
        return Boxes(self.images[which], self.corners[which], self.scores[which])

    def suppress(self, threshold: float) -> Boxes:
        """Those that non-maximum suppression keeps; see the function."""
        return self.take(suppress(self, threshold))

    def squared(self) -> Boxes:
        """Boxes about the same centres, as high and as wide as the longer side."""
        size = self.corners[:, 2:] - self.corners[:, :2]
        side = size.max(1, keepdims=True)
        start = self.corners[:, :2] + size * 0.5 - side * 0.5
        return Boxes(self.images, np.concatenate([start, start + side], 1), self.scores)

    def sizes(self) -> np.ndarray:
        """(n, 2): width and height, counted in pixels with both ends, as R-Net's and O-Net's outputs are scaled."""
        return self.corners[:, 2:] - self.corners[:, :2] + 1

    def moved(self, offsets: np.ndarray, scores: np.ndarray) -> Boxes:
        """Each corner moved by its share of the box's size, (n, 4), with new scores, (n,)."""
        return Boxes(self.images, self.corners + offsets * np.tile(self.sizes(), 2), scores.astype(np.float64))


def suppress(boxes: Boxes, threshold: float, of_smaller: bool = False) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes that stay, by image, then from the highest score down.

    A box goes when its overlap with any box of a higher score in the same image, one that itself goes included,
    exceeds `threshold`: the rule of the `mtcnn` package, which is stricter than the usual greedy one. The overlap is
    the intersection's area by the union's, or by the smaller box's with `of_smaller`.

    Boxes are sorted by image and left edge, so that each is compared only with those that begin near it: time and
    memory grow with the number of boxes that can overlap, not with all pairs.
    """
    count = len(boxes)
    ranked = np.lexsort((-np.arange(count), -boxes.scores, boxes.images))  # of equal scores the later box first
    if count < 2:
        return ranked
    rank = np.empty(count, np.int64)
    rank[ranked] = np.arange(count)
    x1, y1, x2, y2 = boxes.corners.T
    # images side by side, with a gap: then boxes of different images cannot overlap
    shift = boxes.images * (x2.max() - x1.min() + 1.0)
    order = np.argsort(x1 + shift, kind="stable")
    x1, x2, y1, y2, rank = (x1 + shift)[order], (x2 + shift)[order], y1[order], y2[order], rank[order]
    area = (x2 - x1) * (y2 - y1)
    furthest = np.maximum.accumulate(x2)
    gone = np.zeros(count, bool)
    start = 0
    while start < count:
        stop = min(start + 64, count)
        end = int(np.searchsorted(x1, furthest[stop - 1], side="left"))  # beyond it boxes begin after these have ended
        end = max(end, stop)
        a, b = (slice(start, stop), None), slice(start, end)
        width = np.minimum(x2[a], x2[b]) - np.maximum(x1[a], x1[b])
        height = np.minimum(y2[a], y2[b]) - np.maximum(y1[a], y1[b])
        inside = np.maximum(width, 0) * np.maximum(height, 0)
        whole = np.minimum(area[a], area[b]) if of_smaller else area[a] + area[b] - inside
        with np.errstate(divide="ignore", invalid="ignore"):  # a box without area overlaps nothing
            first, second = np.nonzero(inside / whole > threshold)
        pairs = rank[start + first], rank[start + second]
        different = pairs[0] != pairs[1]
        weaker = np.maximum(*pairs)[different]
        gone[weaker] = True  # by rank
        start = stop
    return ranked[~gone]


# ---------------------------------------------------------------------------------------------------------------------
# Pixels
# ---------------------------------------------------------------------------------------------------------------------


def _net_input(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels, n x H x W x C, as the nets take them: n x 3 x H x W; grey stands for all three colours."""
    return ((pixels.float() - 127.5) / 128).expand(-1, -1, -1, 3).permute(0, 3, 1, 2)


def resize_area(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images, n x H x W x C, resized: each new pixel is the mean over the area that it covers."""
    resized = np.empty((len(images), height, width, images.shape[3]), images.dtype)
    for image, out in zip(images, resized, strict=True):
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA)
    return resized


def crop_and_resize(images: torch.Tensor, boxes: Boxes, side: int) -> torch.Tensor:
    """The grey levels in each box, resized to side x side by bilinear interpolation.

    The centres of the corner pixels lie on the box's corners; outside the image all is mid-grey, 0 for the nets.
    images: uint8 or float32, n x H x W x C.  Returns float32, boxes x side x side x C.
    """
    _, height, width, channels = images.shape
    # as in the package, corners become shares of the image's size, and these are taken of the size less one
    shares = (boxes.corners / [width, height, width, height]).astype(np.float32)
    corners = torch.from_numpy(shares).to(images.device) * torch.tensor([width - 1.0, height - 1.0] * 2).to(
        images.device
    )
    steps = torch.arange(side, device=images.device) / (side - 1)
    x = corners[:, 0:1] + (corners[:, 2:3] - corners[:, 0:1]) * steps
    y = corners[:, 1:2] + (corners[:, 3:4] - corners[:, 1:2]) * steps
    outside = ((y < 0) | (y > height - 1))[:, :, None] | ((x < 0) | (x > width - 1))[:, None, :]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    x_share, y_share = (x - left)[:, None, :, None], (y - top)[:, :, None, None]
    columns = left.long()[:, None, :], x.ceil().long()[:, None, :]
    start = torch.from_numpy(boxes.images).to(images.device)[:, None] * height
    rows = ((start + edge.long())[:, :, None] * width for edge in (top, y.ceil()))
    pixels = images.reshape(-1, channels)

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return pixels.index_select(0, (row + column).reshape(-1)).reshape(-1, side, side, channels).float()

    upper, lower = (torch.lerp(at(row, columns[0]), at(row, columns[1]), x_share) for row in rows)
    return torch.lerp(upper, lower, y_share).masked_fill_(outside[..., None], 127.5)


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def load_net(name: str) -> caffe.Net:
    """`pnet`, `rnet` or `onet` with the weights that the `mtcnn` package ships, for images in BGR.

    The package keeps, in the order of the layers, Keras's arrays: convolution kernels as height, width, in, out; dense
    ones as in, out, the input being width, height, channels; and it takes RGB.
    """
    package = importlib.util.find_spec("mtcnn")  # found, not imported: importing it imports TensorFlow
    if package is None or package.origin is None:
        raise RuntimeError(
            "the mtcnn package, whose weights the detector uses, is not installed: pip install mtcnn==1.0.0"
        )
    arrays = joblib.load(Path(package.origin).parent / "assets" / "weights" / f"{name}.lz4")
    net = caffe.Net(str(PROTOTXT / f"{name}.prototxt"), caffe.TEST)
    blobs = [blob for blobs in net.params.values() for blob in blobs]
    maps = 0  # feature maps of the last convolution, until a dense layer has taken them
    for index, (blob, array) in enumerate(zip(blobs, arrays, strict=True)):
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
            if index == 0:
                array = array[:, ::-1]
            maps = array.shape[0]
        elif array.ndim == 2:
            if maps:
                side = round((array.shape[0] / maps) ** 0.5)
                array = array.reshape(side, side, maps, -1).transpose(2, 1, 0, 3).reshape(array.shape)
                maps = 0
            array = array.T
        else:
            array = array.reshape(-1)  # biases, and the slopes of PReLU, which convolutions have as 1, 1, channels
        if blob.data.shape != array.shape:
            raise RuntimeError(
                f"{name}: blob {index} is {blob.data.shape} in the prototxt, {array.shape} in the package"
            )
        blob.data[...] = array
    return net
