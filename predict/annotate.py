"""Draw on a photo what was recognised: a box and a label for each face, and bars of all probabilities beside it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

from preprocessing.classes import CONTEMPT
from preprocessing.datasets import EMOTIONS

from .recognizer import Prediction

Box = tuple[int, int, int, int]  # left, top, right, bottom
Color = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
# Okabe and Ito's colours (2008) as BGR, told apart with every kind of colour blindness; one an emotion, contempt last.
COLORS: tuple[Color, ...] = (
    (0x00, 0x5E, 0xD5),
    (0x73, 0x9E, 0x00),
    (0xA7, 0x79, 0xCC),
    (0x42, 0xE4, 0xF0),
    (0xE9, 0xB4, 0x56),
    (0x00, 0x9F, 0xE6),
    (0xD0, 0xD0, 0xD0),
    (0xB2, 0x72, 0x00),
)
SMALLEST_SIDE = 600  # smaller photos are enlarged, so that the text can be read
LARGEST_SIDE = 2000  # ... up to here
LONGEST_NAME = 24  # letters of a class's name that are drawn
PANEL, TRACK = (30, 30, 30), (90, 90, 90)


def annotate(image: np.ndarray, predictions: Sequence[Prediction], same_size: bool = False) -> np.ndarray:
    """A copy of the photo with its faces marked; text and lines grow with the photo.

    Parameters
    ----------
    image: uint8, H×W or H×W×3 (BGR).
    predictions: as `Recognizer.predict` gives them.
    same_size: keep the size, as the frames of a video must.

    Returns
    -------
    uint8, BGR; unless `same_size`, a whole number of times as large as `image` where that is small, and with a margin
    for the bars where the face is the whole image. Bars are left out where there is no room for them beside, below or
    above a face.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    height, width = canvas.shape[:2]
    scale = max(1, min(-(-SMALLEST_SIDE // min(height, width)), LARGEST_SIDE // max(height, width)))
    scale = 1 if same_size else scale
    if scale > 1:
        canvas = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    text = _text_height(canvas, [scale * face.box[2] for face in predictions])
    boxes = [_corners(face, scale, canvas) for face in predictions]
    if not same_size and any(
        face.landmarks is None for face in predictions
    ):  # the face is the whole photo: bars go on a margin
        margin = max(_panel_width(face, text) for face in predictions) + text
        canvas = cv2.copyMakeBorder(canvas, 0, 0, 0, margin, cv2.BORDER_CONSTANT, value=PANEL)
    labels = [_label_box(canvas, box, face, text) for box, face in zip(boxes, predictions, strict=True)]
    taken = [*boxes, *labels]
    for number, (face, box) in enumerate(zip(predictions, boxes, strict=True)):
        others = taken[:number] + taken[number + 1 :]
        panel = _panel_box(canvas, box, labels[number], face, text, others)
        if panel is not None:
            _draw_bars(canvas, panel, face, text)
            taken.append(panel)
    for face, box, label in zip(predictions, boxes, labels, strict=True):
        color = _color(face)
        cv2.rectangle(canvas, box[:2], box[2:], color, max(2, text // 6), cv2.LINE_AA)
        cv2.rectangle(canvas, label[:2], label[2:], color, cv2.FILLED)
        _write(canvas, _label(face), (label[0] + text // 3, label[3] - text // 3), text, (0, 0, 0))
    return canvas


def _text_height(canvas: np.ndarray, widths: Sequence[float]) -> int:
    """The height of a line in pixels: by the photo's size, but no larger than fits the faces' widths."""
    by_photo = 0.026 * (canvas.shape[0] * canvas.shape[1]) ** 0.5
    by_faces = 0.17 * float(np.median(widths)) if widths else by_photo
    return max(11, round(min(by_photo, by_faces)))


def _color(face: Prediction) -> Color:
    """An emotion's colour, whatever order the net has; a class of another name has the colour of its number."""
    known = (*EMOTIONS, CONTEMPT)
    number = known.index(face.emotion) if face.emotion in known else list(face.probabilities).index(face.emotion)
    return COLORS[number % len(COLORS)]


def _name(name: str) -> str:
    """A class's name as it is drawn: OpenCV's font has ASCII alone, and a long name would leave no room."""
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 2] + ".."


def _label(face: Prediction) -> str:
    track = "" if face.track is None else f"#{face.track} "
    return f"{track}{_name(face.emotion)} {100 * face.probabilities[face.emotion]:.0f}%"


def _corners(face: Prediction, scale: int, canvas: np.ndarray) -> Box:
    x, y, width, height = (scale * value for value in face.box)
    right, bottom = min(round(x + width), canvas.shape[1] - 1), min(round(y + height), canvas.shape[0] - 1)
    return max(round(x), 0), max(round(y), 0), right, bottom


def _text_width(text: str, height: int) -> int:
    return cv2.getTextSize(text, FONT, _font_scale(height), _stroke(height))[0][0]


def _font_scale(height: int) -> float:
    return height / 30  # a capital of the font is 21 pixels high at scale 1, and a line needs some space


def _stroke(height: int) -> int:
    return max(1, height // 13)


def _write(canvas: np.ndarray, text: str, place: tuple[int, int], height: int, color: Color) -> None:
    cv2.putText(canvas, text, place, FONT, _font_scale(height), color, _stroke(height), cv2.LINE_AA)


def _label_box(canvas: np.ndarray, box: Box, face: Prediction, text: int) -> Box:
    """Above the face's box; where the photo ends there, inside the box."""
    width, height = _text_width(_label(face), text) + 2 * (text // 3), round(1.5 * text)
    left = max(0, min(box[0], canvas.shape[1] - width))
    bottom = box[1] if box[1] >= height else box[1] + height
    return left, bottom - height, left + width, bottom


def _names_width(face: Prediction, text: int) -> int:
    return max(_text_width(_name(name), text - 3) for name in face.probabilities)


def _panel_width(face: Prediction, text: int) -> int:
    """For names, bars of at least four times the text's height, and percentages; 12 times it for the emotions."""
    return max(12 * text, _names_width(face, text) + 8 * text)


def _panel_box(
    canvas: np.ndarray, box: Box, label: Box, face: Prediction, text: int, taken: Sequence[Box]
) -> Box | None:
    """Where the bars go: beside the face's box, below or above it, where they cover no other face; None for nowhere."""
    rows = len(face.probabilities)
    width, height, gap = _panel_width(face, text), round(1.15 * rows * text + 0.6 * text), text // 2
    top = max(0, min(box[1], canvas.shape[0] - height))
    left = max(0, min(box[0], canvas.shape[1] - width))
    places = [
        (max(box[2], label[2] if label[3] > top else 0) + gap, top),
        (min(box[0], label[0] if label[3] > top else box[0]) - gap - width, top),
        (left, box[3] + gap),
        (left, min(box[1], label[1]) - gap - height),
    ]
    for x, y in places:
        panel = (x, y, x + width, y + height)
        inside = x >= 0 and y >= 0 and panel[2] <= canvas.shape[1] and panel[3] <= canvas.shape[0]
        if inside and not any(_overlap(panel, other) for other in taken):
            return panel
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw_bars(canvas: np.ndarray, panel: Box, face: Prediction, text: int) -> None:
    """A row an emotion: its name, a bar as long as its probability, and the percentage."""
    left, top, right, bottom = panel
    region = canvas[top:bottom, left:right]
    region[:] = cv2.addWeighted(region, 0.25, np.full_like(region, PANEL), 0.75, 0)
    names = _names_width(face, text)
    start, end = left + text // 2 + names + text // 2, right - 3 * text
    for row, (name, probability) in enumerate(face.probabilities.items()):
        y = top + round((0.3 + 1.15 * row) * text)
        color = _color(face) if name == face.emotion else (200, 200, 200)
        _write(canvas, _name(name), (left + text // 2, y + round(0.8 * text)), text - 3, color)
        bar = y + round(0.2 * text), y + round(0.85 * text)
        cv2.rectangle(canvas, (start, bar[0]), (end, bar[1]), TRACK, cv2.FILLED)
        if filled := round((end - start) * probability):
            cv2.rectangle(canvas, (start, bar[0]), (start + filled, bar[1]), color, cv2.FILLED)
        percent = f"{100 * probability:.0f}%"
        place = right - text // 2 - _text_width(percent, text - 3)
        _write(canvas, percent, (place, y + round(0.8 * text)), text - 3, color)
