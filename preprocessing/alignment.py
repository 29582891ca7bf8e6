"""Five-point alignment: a face turned, scaled and shifted so that its landmarks lie where the template has them.

The training images and `predict` both go through `align_face`; there is no other copy of this step.
"""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 48  # side of an aligned face, in pixels
# Where left eye, right eye, nose, and left and right corner of the mouth belong (x, y; left and right as the viewer
# sees them): where MTCNN finds them in FER2013's Training faces (the medians, made symmetric), so that aligned faces
# keep the size and place that faces have there. The usual template for face recognition, 112x112 pixels with the eyes
# 35 apart, shrinks five of six of these faces and repeats pixels around them.
TEMPLATE = np.array([[14.35, 17.98], [32.65, 17.98], [23.5, 28.44], [15.88, 37.27], [31.12, 37.27]])
LONGEST_SIDE = 32_766  # of an image that cv2.warpAffine takes: its coordinates are 16-bit numbers
SMALLEST_SPREAD = 1e-3  # root mean square distance of landmarks from their centre, in pixels; below, they are one point


def similarity_transform(landmarks: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """The rotation, scale and shift that bring landmarks closest to a template: a 2x3 matrix M, float64.

    M @ (x, y, 1) is where the point x, y goes; the sum of squared distances to the template's points is the least that
    any similarity without reflection has: S. Umeyama, Least-squares estimation of transformation parameters between
    two point patterns, IEEE PAMI 13(4), 1991. In the plane the answer needs no singular value decomposition: with the
    centred points as complex numbers z and their targets w, it is the factor a = sum(conj(z) w) / sum(|z|^2).

    Parameters
    ----------
    landmarks, template: (n, 2), n >= 2, x and y of matching points, finite.

    Raises ValueError for other shapes, numbers that are not finite, and points from which no such transform follows:
    all (nearly) in one place, or like the template's mirror image, so that the best scale is 0.
    """
    source, target = np.asarray(landmarks, np.float64), np.asarray(template, np.float64)
    if source.ndim != 2 or source.shape[1] != 2 or len(source) < 2 or source.shape != target.shape:
        raise ValueError(f"landmarks are {source.shape}, the template {target.shape}; expected both (n, 2), n >= 2")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError(f"landmarks {source.tolist()}: a coordinate is not finite")
    source_center, target_center = source.mean(0), target.mean(0)
    z, w = (source - source_center) @ [1, 1j], (target - target_center) @ [1, 1j]
    spread = np.vdot(z, z).real
    if spread < len(z) * SMALLEST_SPREAD**2:
        raise ValueError(f"landmarks {source.tolist()} lie in one place; expected a face's")
    factor = np.vdot(z, w) / spread
    if abs(factor) < 1e-9 * np.sqrt(np.vdot(w, w).real / spread):
        raise ValueError(f"landmarks {source.tolist()} fit the template by no rotation and scale; expected a face's")
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, target_center - turn @ source_center])


def align_face(image: np.ndarray, landmarks: np.ndarray | None, size: int = SIZE, turned: bool = True) -> np.ndarray:
    """The face of an image, size x size, its landmarks brought to the template; or the whole image, resized.

    Parameters
    ----------
    image: uint8, HxW or HxWx3, not empty.
    landmarks: (5, 2), x and y in the image's pixels, in the template's order; None where no face was found: then the
        result is the image itself, resized (unchanged where it has that size already).
    size: side of the result in pixels; the template is scaled to it.
    turned: False scales and shifts the face as its alignment does, but leaves it turned as it is in the image: so stand
        the faces in FER2013 itself, whose frames are upright.

    Pixels are interpolated bicubically. A face that shrinks to less than half is first brought near its new size by
    averaging over areas, so that nothing aliases. Where the result reaches beyond the image, as it does for faces that
    fill their frame, the edge's pixels are repeated: black corners would be edges that no face has. Of an image with a
    side above LONGEST_SIDE only the part that the result shows goes to OpenCV, which changes no pixel of the result.

    Returns uint8, size x size or size x size x 3. Raises ValueError for an empty image or one of another type, and for
    landmarks that `similarity_transform` refuses.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        raise ValueError(f"the image is {image.dtype} of shape {image.shape}; expected uint8, HxW or HxWx3, not empty")
    if landmarks is None:
        return _resize(image, size)
    template = TEMPLATE * (size / SIZE)
    transform = similarity_transform(landmarks, template)
    scale = np.hypot(transform[0, 0], transform[1, 0])
    if not turned:
        transform = np.column_stack([np.eye(2) * scale, template.mean(0) - scale * np.mean(landmarks, axis=0)])
    shrinking = int(1 / scale)
    if shrinking >= 2:
        image, transform = _shrink(image, transform, size, shrinking)
    elif max(image.shape[:2]) > LONGEST_SIDE:
        image, transform = _cut(image, transform, size)
    return cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image.copy()
    shrinks = height >= size and width >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _seen(shape: tuple[int, ...], transform: np.ndarray, size: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image that the transform shows, and `margin` pixels around it for the interpolation, in the image.

    Returns its left upper corner, and where it ends, exclusively (x, y; int): a pixel of the image at least, the
    nearest one, even where the face lies wholly outside.
    """
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) - transform[:, 2]
    seen = corners @ np.linalg.inv(transform[:, :2]).T
    limits = np.array(shape[1::-1])
    low = np.clip(np.floor(seen.min(0)) - margin, 0, limits - 1).astype(int)
    high = np.clip(np.ceil(seen.max(0)) + margin, low + 1, limits).astype(int)
    return low, high


def _cut(image: np.ndarray, transform: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image that the transform shows, and the transform from there."""
    low, high = _seen(image.shape, transform, size, 4)
    moved = np.column_stack([transform[:, :2], transform[:, :2] @ low + transform[:, 2]])
    return image[low[1] : high[1], low[0] : high[0]], moved


def _shrink(image: np.ndarray, transform: np.ndarray, size: int, times: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image that the transform shows, `times` smaller, and the transform from there."""
    low, high = _seen(image.shape, transform, size, 4 * times)
    part = image[low[1] : high[1], low[0] : high[0]]
    width, height = (-((low - high) // times)).tolist()
    ratio = (high - low) / [width, height]  # of old pixels to new ones, a little off `times` where it does not divide
    small = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    # pixel centres: new position p lies at (p + 0.5) * ratio - 0.5 + low
    back = np.array(
        [[ratio[0], 0, 0.5 * ratio[0] - 0.5 + low[0]], [0, ratio[1], 0.5 * ratio[1] - 0.5 + low[1]], [0, 0, 1]]
    )
    return small, transform @ back
