"""The recogniser: finds the faces in an image, aligns them as training does, and says what emotion each shows."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import cv2
import numpy as np

from caffe.files import StrPath
from preprocessing.alignment import align_face
from preprocessing.images import ImageError, check_image, decode_image, from_pillow, is_pillow, read_image
from preprocessing.network_input import FaceNetwork, check_views
from preprocessing.stage import StageError

if TYPE_CHECKING:
    import PIL.Image

    from .video import VideoFrame

MODELS = Path(__file__).resolve().parent.parent / "prototxt"
DEFAULT_MODEL = "face_resnet16_pair"  # the most accurate one that ships
FACES = ("detect", "one", "none")  # how many faces an image shows
# by the channels of a net's input: two looks at a face in any case; a third and fourth cost more than they bring
DEFAULT_VIEWS = {1: "mirror", 2: "centre"}
FACE_COLUMNS = ("x", "y", "width", "height", "confidence", "emotion")  # of a table of faces; a probability each follows
LOOK_BELOW = 0.8  # of the least face: MTCNN misses many that are only just as large as the smallest it looks for

# a path, what an image file holds, pixels, or an image of Pillow, which need not be there
Image = Union[StrPath, bytes, np.ndarray, "PIL.Image.Image"]


@dataclass(frozen=True, eq=False)
class FoundFace:
    """One face in an image, and how the net sees it.

    Attributes
    ----------
    box, confidence: as a Prediction's.
    landmarks: float, 5×2, in pixels of the image; None for a face that was not looked for, or not found.
    pixels: uint8, N×N, grey: the face aligned, or without landmarks the image resized; N is the mean's side. 2×N×N for
        a net that sees a face twice: behind the aligned face the same not turned, or for an image of one face
        (`face="one"`) the image resized, as the data sets have it.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    confidence: float | None
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class Prediction:
    """One face and its emotion.

    Attributes
    ----------
    box: x, y, width, height in pixels of the image; all of it for `face="none"`, and where `face="one"` finds none.
    landmarks: name -> (x, y) of the eyes, the nose and the corners of the mouth, left and right as the viewer sees
        them; None where the box is all of the image.
    confidence: the detector's probability that this is a face, 0..1; None where the box is all of the image.
    emotion: the most probable one.
    probabilities: emotion -> probability, of all emotions, in the order of the net's outputs; they sum to 1.
    track: in a video, the number of this face, from 1, which it keeps from frame to frame (predict.tracking.Tracker);
        None in an image.
    """

    box: tuple[float, float, float, float]
    landmarks: dict[str, tuple[float, float]] | None
    confidence: float | None
    emotion: str
    probabilities: dict[str, float]
    track: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values; pixels are rounded to hundredths, probabilities to millionths; `track` of videos."""
        points = (self.landmarks or {}).items()
        landmarks = {name: [round(value, 2) for value in point] for name, point in points}
        return {
            **({} if self.track is None else {"track": self.track}),
            "box": [round(value, 2) for value in self.box],
            "landmarks": landmarks or None,
            "confidence": None if self.confidence is None else round(self.confidence, 6),
            "emotion": self.emotion,
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
        }

    def cells(self) -> list[float | str | None]:
        """What a table has of the face: the values of FACE_COLUMNS, then the probabilities, rounded as in `to_dict`."""
        values = self.to_dict()
        return [*values["box"], values["confidence"], self.emotion, *values["probabilities"].values()]

    def to_row(self) -> dict[str, float | str | None]:
        """The same, without landmarks, as a row of a table: by the names of FACE_COLUMNS, then of the emotions.

        In a video `track` stands before them. Raises ValueError where a class is called as one of these columns.
        """
        columns = FACE_COLUMNS if self.track is None else ("track", *FACE_COLUMNS)
        for name in self.probabilities:
            if name in columns:
                raise ValueError(
                    f"a class is called {name!r}, as another column; expected none of {', '.join(columns)}"
                )
        cells = self.cells() if self.track is None else [self.track, *self.cells()]
        return dict(zip((*columns, *self.probabilities), cells, strict=True))


def shipped_models() -> list[str]:
    """The names of the models that ship with the project: folders of `prototxt/` with weights of their name."""
    return sorted(path.stem for path in MODELS.glob("*/*.caffemodel") if path.stem == path.parent.name)


def model_files(name: str = DEFAULT_MODEL) -> tuple[Path, Path, Path]:
    """The deploy.prototxt, NAME.caffemodel and mean.binaryproto of a model that ships with the project.

    Raises StageError for a name that is no folder of `prototxt/` with those three files.
    """
    folder = MODELS / name
    files = folder / "deploy.prototxt", folder / f"{name}.caffemodel", folder / "mean.binaryproto"
    missing = [path for path in files if not path.is_file()]
    if missing:
        known = ", ".join(shipped_models())
        raise StageError(
            f"model {name!r}: {missing[0]} is missing; expected one of the models that ship "
            f"({known or 'none here'}), or give deploy, weights and mean of your own"
        )
    return files


class Recognizer:
    """Faces in images, and their emotions. Loads the nets once; one recogniser answers any number of images.

    Several threads may use one recogniser at once; a forked process has one of its own, which computes with one thread
    (on a GPU PyTorch refuses that: start processes by multiprocessing's `spawn`).

    Parameters
    ----------
    deploy, weights, mean: files of a trained net (deploy.prototxt, .caffemodel, mean.binaryproto), all three;
        default: those of the model that ships. A calibration.json beside the weights calibrates the probabilities.
    face: `detect` (default) finds all faces in a photo by MTCNN and aligns them by their landmarks, as the training
        faces were. `one` is for images that show one face each, such as FER2013's: each is treated as the align stage
        treats the training images, which looks harder for a face, and resizes the image where it finds none. `none`
        takes each image as a cropped face, which is only resized: for a net that was trained on such.
    device: `auto` (a GPU where there is one, the default), `cpu`, `cuda` or `cuda:N`.
    views: what the net sees of each face: `centre`, `mirror` (also mirrored) or `ten_crop` (also four other crops,
        mirrored too); the probabilities are averaged, at 2 or 10 times the multiply-adds. Default: `mirror`, and
        `centre` for a net that sees each face twice anyway.
    model: the name of the shipped model, used where no files are given.
    min_face_size: pixels, 1 or more: faces whose longer side is shorter are not looked for, which is quicker, and not
        given. Default: the detector's own 20, about which it is not strict.
    min_confidence: 0..1: faces that the detector is less sure of are not given. Default: all that it finds, of which
        it is at least 0.8 sure (0.3 for `face="one"`).

    Raises
    ------
    StageError: a file is missing, or the files do not fit each other. ValueError: an argument is none of the above.

    Example
    -------
    >>> from predict import Recognizer
    >>> for face in Recognizer().predict("photo.jpg"):
    ...     print(face.box, face.emotion, face.probabilities[face.emotion])
    """

    def __init__(
        self,
        deploy: StrPath | None = None,
        weights: StrPath | None = None,
        mean: StrPath | None = None,
        face: str = "detect",
        device: str = "auto",
        views: str | None = None,
        model: str = DEFAULT_MODEL,
        min_face_size: float | None = None,
        min_confidence: float | None = None,
    ) -> None:
        if face not in FACES:
            raise ValueError(f"face is {face!r}; expected one of {', '.join(FACES)}")
        if views is not None:
            check_views([views])
        if not isinstance(device, str):  # such as a torch.device
            raise ValueError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
        _check_detector_settings(face, min_face_size, min_confidence)
        given = [name for name, path in (("deploy", deploy), ("weights", weights), ("mean", mean)) if path is not None]
        if given and len(given) < 3:
            raise ValueError(
                f"only {' and '.join(given)} given; expected deploy, weights and mean, which fit each other"
            )
        if deploy is None or weights is None or mean is None:
            deploy, weights, mean = model_files(model)
        self.face = face
        self.network = FaceNetwork(deploy, weights, mean, device)
        self._channels, height, self._size = self.network.face_shape
        if self._channels not in (1, 2) or height != self._size:
            raise StageError(
                f"{mean}: is {self._channels}×{height}×{self._size}; expected 1×N×N, the mean of grey faces, or 2×N×N, "
                "of those of ALIGN=both"
            )
        self.views = views or DEFAULT_VIEWS[self._channels]
        self._min_face_size, self._min_confidence = min_face_size or 0.0, min_confidence or 0.0
        self._detector: Any = None
        if face != "none":
            # a third of the time it takes to load, and not always needed
            from preprocessing.mtcnn import PatientDetector

            self._detector = PatientDetector(device, certain=face == "one")
            if min_face_size is not None:
                # the usual look alone: the others are at an image that may have been shrunk, for faces that fill it
                looks = self._detector.looks
                looks[0] = copy.copy(looks[0])  # shares the nets
                looks[0].min_face_size = max(1.0, LOOK_BELOW * min_face_size)

    @property
    def emotions(self) -> tuple[str, ...]:
        """What the net tells apart, in the order of its outputs."""
        return self.network.classes

    def predict(self, image: Image) -> list[Prediction]:
        """The faces in one image, the most confident first; an empty list where there is none.

        image: a path; the bytes of an image file, as an upload brings them; an image of Pillow; or an array of uint8,
        H×W (grey) or H×W×3 (BGR, as OpenCV reads it: of RGB give `image[..., ::-1]`).
        Raises ImageError for what is no such image.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[Image] | np.ndarray) -> list[list[Prediction]]:
        """For each image its faces, as `predict` gives them; quicker than one by one, above all for small images.

        images: any number of them, as `predict` takes them; or an array of several of one size, N×H×W or N×H×W×3.
        Raises ImageError, which tells the image, where one is none; ValueError for one image instead of several.
        """
        found = self.find_faces(images)
        faces = [face.pixels for in_image in found for face in in_image]
        stack = np.stack(faces) if faces else np.empty((0, *self.network.face_shape), np.uint8)
        answers = iter(self.network.probabilities(stack, self.views))
        return [[self._prediction(face, next(answers)) for face in in_image] for in_image in found]

    def predict_video(self, source: StrPath | int, every: int = 1) -> Iterator[VideoFrame]:
        """The frames of a video in their order, and the faces in them, as `predict` gives them, with their `track`.

        Parameters
        ----------
        source: a video file, the number of a camera (0 is the first), or the address of a stream (`rtsp://…`).
        every: 1 or more: only every Nth frame is looked at, the first one included; the others have the predictions of
            the one before.

        Raises
        ------
        VideoError (an ImageError): at once for what cannot be opened or gives no frame; behind the last frame where
        the file ends clearly earlier than it says, or a camera stops. ValueError: `every` is none of the above.

        Example
        -------
        >>> from predict import Recognizer
        >>> for frame in Recognizer().predict_video("clip.mp4", every=5):
        ...     print(frame.number, frame.seconds, frame.image.shape, [face.emotion for face in frame.predictions])
        """
        from .video import Video, recognize

        return recognize(self, Video(source), every)

    def find_faces(self, images: Sequence[Image] | np.ndarray) -> list[list[FoundFace]]:
        """For each image its faces, found and aligned, the most confident first; images as for `predict_batch`."""
        arrays = _read_all(images)
        return [
            [
                FoundFace(box, landmarks, confidence, self._pixels(grey, landmarks))
                for grey in [image if image.ndim == 2 or not faces else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)]
                for box, landmarks, confidence in faces
            ]
            for image, faces in zip(arrays, self._find(arrays), strict=True)
        ]

    def _pixels(self, grey: np.ndarray, landmarks: np.ndarray | None) -> np.ndarray:
        """What the net sees of a face, but for the crop."""
        aligned = align_face(grey, landmarks, self._size)
        if self._channels == 1:
            return aligned
        return np.stack(
            [aligned, align_face(grey, None if self.face == "one" else landmarks, self._size, turned=False)]
        )

    def _find(
        self, images: list[np.ndarray]
    ) -> list[list[tuple[tuple[float, float, float, float], np.ndarray | None, float | None]]]:
        """For each image box, landmarks and confidence of its faces."""
        whole = [((0.0, 0.0, float(image.shape[1]), float(image.shape[0])), None, None) for image in images]
        if self._detector is None:
            return [[face] for face in whole]
        found = [
            [face for face in faces if self._wanted(face.box, face.confidence)]
            for faces in self._detector.detect_batch(images)
        ]
        if self.face == "one":
            from preprocessing.align import main_face

            mains = [main_face(faces, *image.shape[:2]) for faces, image in zip(found, images, strict=True)]
            found = [[face] if face else [] for face in mains]
        answers = [[(face.box, face.landmarks, face.confidence) for face in faces] for faces in found]
        return (
            [faces or [image] for faces, image in zip(answers, whole, strict=True)] if self.face == "one" else answers
        )

    def _wanted(self, box: tuple[float, float, float, float], confidence: float) -> bool:
        return max(box[2:]) >= self._min_face_size and confidence >= self._min_confidence

    def _prediction(self, face: FoundFace, probabilities: np.ndarray) -> Prediction:
        named = None
        if face.landmarks is not None:
            from preprocessing.mtcnn import LANDMARKS

            named = {name: (float(x), float(y)) for name, (x, y) in zip(LANDMARKS, face.landmarks, strict=True)}
        emotion = self.emotions[int(probabilities.argmax())]
        return Prediction(
            face.box, named, face.confidence, emotion, dict(zip(self.emotions, probabilities.tolist(), strict=True))
        )


def _read(image: Image) -> np.ndarray:
    """An image's pixels. Raises ImageError for what is none."""
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, np.ndarray):
        return check_image(image)
    if is_pillow(image):
        return from_pillow(image)
    raise ImageError(
        f"the image is a {type(image).__name__}; expected a path, a file's bytes (of an open file, file.read()), "
        "a Pillow image or a numpy array"
    )


def _read_all(images: Sequence[Image] | np.ndarray) -> list[np.ndarray]:
    """The pixels of each image. Raises ImageError, by which one can tell the image; ValueError for one alone."""
    _check_several(images)
    arrays = []
    for number, image in enumerate(images):
        try:
            arrays.append(_read(image))
        except ImageError as error:
            if isinstance(image, (str, os.PathLike)) or len(images) == 1:
                raise
            raise ImageError(f"image {number} of {len(images)}: {error}") from None
    return arrays


def _check_several(images: Sequence[Image] | np.ndarray) -> None:
    """Raise ValueError for one image, whose letters or rows would be taken for images."""
    if isinstance(images, np.ndarray):
        if images.ndim != 2 and not (images.ndim == 3 and images.shape[2] in (1, 3)):
            return  # several of one size, or paths
        what = f"an array of shape {images.shape}"
    elif isinstance(images, (str, bytes, os.PathLike)):
        what = "bytes" if isinstance(images, bytes) else repr(os.fspath(images))
    elif is_pillow(images):
        what = "a Pillow image"
    else:
        return
    raise ValueError(f"images is {what}; expected a list of images (predict takes one)")


def _check_detector_settings(face: str, min_face_size: float | None, min_confidence: float | None) -> None:
    """Raise ValueError for settings out of their range, or where no face is looked for."""
    if min_face_size is not None and not 1 <= min_face_size < math.inf:
        raise ValueError(f"min_face_size is {min_face_size!r}; expected a number of pixels, 1 or more")
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence is {min_confidence!r}; expected a probability, 0 to 1")
    for name, value in (("min_face_size", min_face_size), ("min_confidence", min_confidence)):
        if value is not None and face == "none":
            raise ValueError(
                f"{name} is {value!r}, but face is 'none', which looks for no faces; expected detect or one"
            )
