"""The built-in sample: drawn faces with seven expressions, as a CSV in FER2013's format, for runs without the data set.

    python -m preprocessing.sample data/sample.csv

A face is drawn from parameters: a skull, hair, skin, eyes, brows, nose and mouth, moved by facial action units (Ekman
and Friesen, Facial Action Coding System, 1978), lit from a direction, turned a little, and set before a background.
Lengths are in face units: half the head's width is 1, the origin lies between the eyes, u points to the image's right,
v down.
"""

from __future__ import annotations

import argparse
import math
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np

from preprocessing.datasets import EMOTIONS, SIZE, SPLITS
from preprocessing.pictures import montage
from preprocessing.stage import Stage, StageError, progress, replace_file, run_main, worker_count

COUNT = 4000
MIN_COUNT = 70
TEST_SHARE = 0.1  # of the faces of each emotion, for PublicTest and for PrivateTest each
SUPERSAMPLING = 4
TEETH_APART = 100  # pixels a face unit, supersampled, from which on single teeth can be seen
VISIBLE = 0.03  # a shadow weaker than this is not drawn
UNITS_WIDE, UNITS_HIGH, EYES_BELOW_TOP = 3.2, 4.1, 1.95  # the canvas that a head is drawn on, in face units

# Action units by emotion, each with its strength in a full expression. An emotion that people show in more than one way
# has several variants, and one is drawn at random.
BROW_INNER_UP, BROW_OUTER_UP, BROW_LOWER = 1, 2, 4
LID_RAISE, CHEEK_RAISE, LID_TIGHT, LID_DROOP = 5, 6, 7, 43
NOSE_WRINKLE, LIP_RAISE, CORNER_PULL, CORNER_DROP = 9, 10, 12, 15
CHIN_RAISE, LIP_STRETCH, LIP_PRESS, LIPS_PART, JAW_DROP = 17, 20, 24, 25, 26
EXPRESSIONS: dict[str, tuple[dict[int, float], ...]] = {
    "angry": (
        {BROW_LOWER: 1.0, LID_RAISE: 0.3, LID_TIGHT: 0.7, CHIN_RAISE: 0.4, LIP_PRESS: 1.0},
        {
            BROW_LOWER: 1.0,
            LID_RAISE: 0.4,
            LID_TIGHT: 0.5,
            LIP_RAISE: 0.6,
            LIP_STRETCH: 0.3,
            LIPS_PART: 1.0,
            JAW_DROP: 0.35,
        },
    ),
    "disgust": (
        {
            NOSE_WRINKLE: 1.0,
            LIP_RAISE: 1.0,
            BROW_LOWER: 0.5,
            LID_TIGHT: 0.8,
            CHEEK_RAISE: 0.5,
            CORNER_DROP: 0.6,
            CHIN_RAISE: 0.6,
        },
        {
            NOSE_WRINKLE: 1.0,
            LIP_RAISE: 1.0,
            BROW_LOWER: 0.5,
            LID_TIGHT: 0.9,
            CHEEK_RAISE: 0.5,
            CORNER_DROP: 0.5,
            LIPS_PART: 0.7,
        },
    ),
    "fear": (
        {
            BROW_INNER_UP: 1.0,
            BROW_OUTER_UP: 0.4,
            BROW_LOWER: 0.5,
            LID_RAISE: 1.0,
            LIP_STRETCH: 1.0,
            LIPS_PART: 0.9,
            JAW_DROP: 0.2,
        },
    ),
    "happy": (
        {CHEEK_RAISE: 0.8, CORNER_PULL: 1.0, LIPS_PART: 0.9},
        {CHEEK_RAISE: 0.6, CORNER_PULL: 0.9},
    ),
    "sad": ({BROW_INNER_UP: 1.0, BROW_LOWER: 0.4, CORNER_DROP: 1.0, CHIN_RAISE: 0.5, LID_DROOP: 0.6},),
    "surprise": ({BROW_INNER_UP: 1.0, BROW_OUTER_UP: 1.0, LID_RAISE: 0.9, LIPS_PART: 0.6, JAW_DROP: 1.0},),
    "neutral": ({},),
}


@dataclass(frozen=True)
class Person:
    """What does not change with the expression: proportions in face units, albedos 0..1, shares 0..1."""

    skin: float
    hair: float
    hair_style: str
    hairline: float
    brow: float
    brow_width: float
    brow_height: float
    jaw: float
    chin: float
    eye_distance: float
    eye_size: float
    eye_tilt: float
    iris: float
    nose_width: float
    nose_length: float
    mouth: float
    mouth_width: float
    lip_fullness: float
    lip_albedo: float
    age: float
    stubble: float
    glasses: bool
    clothes: float


def _person(rng: np.random.Generator) -> Person:
    skin = rng.uniform(0.35, 0.95)
    hair = rng.choice([rng.uniform(0.04, 0.2), rng.uniform(0.2, 0.6), rng.uniform(0.6, 0.9)], p=[0.6, 0.27, 0.13])
    woman = rng.random() < 0.5
    style = rng.choice(
        ["short", "long", "fringe", "bald"], p=[0.2, 0.5, 0.3, 0.0] if woman else [0.68, 0.08, 0.1, 0.14]
    )
    return Person(
        skin=skin,
        hair=float(hair),
        hair_style=str(style),
        hairline=rng.uniform(-1.05, -0.8),
        brow=min(hair, 0.45) * rng.uniform(0.6, 1.0),
        brow_width=rng.uniform(0.7, 1.0) if woman else rng.uniform(0.9, 1.4),
        brow_height=rng.normal(0, 0.025),
        jaw=rng.uniform(0.9, 1.0) if woman else rng.uniform(0.95, 1.1),
        chin=rng.uniform(1.4, 1.52) if woman else rng.uniform(1.45, 1.62),
        eye_distance=rng.uniform(0.41, 0.47),
        eye_size=rng.uniform(0.95, 1.2) if woman else rng.uniform(0.88, 1.08),
        eye_tilt=rng.normal(0.01, 0.015),
        iris=rng.uniform(0.06, 0.4),
        nose_width=rng.uniform(0.13, 0.2),
        nose_length=rng.uniform(0.56, 0.66),
        mouth=rng.uniform(0.94, 1.03),
        mouth_width=rng.uniform(0.31, 0.4),
        lip_fullness=rng.uniform(0.75, 1.4),
        lip_albedo=rng.uniform(0.45, 0.8) if woman else rng.uniform(0.65, 0.9),
        age=rng.beta(1.3, 2.0),
        stubble=0.0 if woman or rng.random() < 0.55 else rng.uniform(0.15, 0.8),
        glasses=rng.random() < 0.07,
        clothes=rng.uniform(0.05, 0.95),
    )


def _action_units(emotion: str, rng: np.random.Generator) -> dict[int, float]:
    """Strengths of all action units: the emotion's, weaker or stronger, with a trace of another one."""
    units = dict.fromkeys([*range(1, 27), LID_DROOP], 0.0)
    other = EMOTIONS[rng.integers(len(EMOTIONS))]
    for name, strength in ((emotion, rng.uniform(0.55, 1.15)), (other, max(0.0, rng.normal(0.0, 0.12)))):
        variants = EXPRESSIONS[name]
        for unit, full in variants[rng.integers(len(variants))].items():
            units[unit] = max(units[unit], full * strength * rng.uniform(0.75, 1.15))
    return units


def _blur(image: np.ndarray, deviation: float) -> np.ndarray:
    """Blurred about as by a Gaussian of a standard deviation in pixels, but in a time that does not grow with it."""
    radius = max(1, round(math.sqrt(6 * deviation**2 + 1) - 1))  # the radius of the stack blur of that deviation
    return cv2.stackBlur(image, (2 * radius + 1, 2 * radius + 1))


class _Canvas:
    """A head on a grid of `scale` pixels a face unit: what it reflects, where it is, and how the light falls.

    albedo, alpha, light: (height, width) float32, 0..1.  u: (width,), v: (height,) coordinates in face units.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.width, self.height = round(UNITS_WIDE * scale), round(UNITS_HIGH * scale)
        self.centre = np.array([self.width / 2, EYES_BELOW_TOP * scale])
        self.u = ((np.arange(self.width) - self.centre[0]) / scale).astype(np.float32)
        self.v = ((np.arange(self.height) - self.centre[1]) / scale).astype(np.float32)
        self.albedo, self.alpha, self.skin = np.zeros((3, self.height, self.width), np.float32)
        self.light = np.ones((self.height, self.width), np.float32)

    def mask(
        self, points: np.ndarray, blur: float = 0.0, inside: tuple[np.ndarray, float] | None = None
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """A filled polygon (n, 2): the part of the canvas that it touches, and its coverage there, 0..1.

        blur: standard deviation of a blur, in face units.  inside: another polygon, with its blur, that clips it.
        """
        pixels, margin = points * self.scale + self.centre, 3 * blur * self.scale + 2
        (first_x, first_y), (last_x, last_y) = pixels.min(0).tolist(), pixels.max(0).tolist()
        left, right = max(0, int(first_x - margin)), max(0, min(self.width, int(last_x + margin) + 1))
        top, bottom = max(0, int(first_y - margin)), max(0, min(self.height, int(last_y + margin) + 1))
        shape = (max(0, bottom - top), max(0, right - left))
        cover = self._fill(pixels, blur, shape, left, top)
        if inside is not None:
            cover *= self._fill(inside[0] * self.scale + self.centre, inside[1], shape, left, top)
        return (slice(top, bottom), slice(left, right)), cover

    def _fill(self, pixels: np.ndarray, blur: float, shape: tuple[int, int], left: int, top: int) -> np.ndarray:
        """Coverage by a polygon, in pixels of the canvas, of the part that begins at left, top."""
        if not min(shape):
            return np.zeros(shape, np.float32)
        cover = np.zeros(shape, np.uint8)
        cv2.fillPoly(cover, [((pixels - (left, top)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        if blur * self.scale > 0.7:  # less is lost in the supersampling
            cover = _blur(cover, blur * self.scale)
        return cover * np.float32(1 / 255)

    def paint(
        self,
        points: np.ndarray,
        albedo: float | np.ndarray,
        blur: float = 0.0,
        opacity: float = 1.0,
        inside: tuple[np.ndarray, float] | None = None,
        solid: bool = False,
        skin: float = 0.0,
    ) -> None:
        """Give a polygon an albedo; `solid` adds it to the outline, `skin` says how far it shines as skin does."""
        part, cover = self.mask(points, blur, inside)
        cover *= opacity
        value = albedo[part] if isinstance(albedo, np.ndarray) else albedo
        self.albedo[part] += cover * (value - self.albedo[part])
        self.skin[part] += cover * (skin - self.skin[part])
        if solid:
            self.alpha[part] += cover * (1 - self.alpha[part])
            self.light[part] += cover * (1 - self.light[part])  # shadows on what is now hidden

    def shadow(
        self, points: np.ndarray, amount: float, blur: float = 0.0, inside: tuple[np.ndarray, float] | None = None
    ) -> None:
        """Take `amount` (0..1) of the light from a polygon."""
        if amount > VISIBLE:
            part, cover = self.mask(points, blur, inside)
            self.light[part] *= 1 - min(amount, 1.0) * cover

    def line(self, points: np.ndarray, width: float, amount: float, blur: float = 0.0) -> None:
        """A soft dark line through points (n, 2), thinner at its ends: a wrinkle, a lid, a fold."""
        if amount > VISIBLE:
            self.shadow(_ribbon(_curve(points), width), amount, blur)

    def bumps(self, rows: list[tuple[float, float, float, float, float]]) -> np.ndarray:
        """The sum of Gaussian bumps (u, v, width, height, weight) over the canvas."""
        u, v, width, height, weight = np.array(rows, np.float32).T[:, :, None]
        down, across = weight * np.exp(-(((self.v - v) / height) ** 2)), np.exp(-(((self.u - u) / width) ** 2))
        return np.einsum("kv,ku->vu", down, across)  # a matrix product, but too small to be worth BLAS's threads


_FOUR = np.arange(4)
_STEPS = np.linspace(0, 1, 6, endpoint=False)[:, None]
_CATMULL_ROM = 0.5 * np.hstack(
    [-_STEPS + 2 * _STEPS**2 - _STEPS**3, 2 - 5 * _STEPS**2 + 3 * _STEPS**3, _STEPS + 4 * _STEPS**2 - 3 * _STEPS**3,
     -(_STEPS**2) + _STEPS**3]
)  # fmt: skip


def _curve(points: np.ndarray, closed: bool = False) -> np.ndarray:
    """A smooth curve (Catmull-Rom) through points (n, 2)."""
    points = np.asarray(points, float)
    if closed:
        around = np.concatenate([points[-1:], points, points[:2]])
    else:
        around = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    windows = around[np.arange(len(around) - 3)[:, None] + _FOUR]
    curve = (_CATMULL_ROM @ windows).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


@cache
def _taper(count: int) -> np.ndarray:
    """Widths along a band of `count` points, from narrow to 1 to narrow."""
    return np.sqrt(np.sin(np.linspace(0.03, 0.97, count) * np.pi))


def _ribbon(curve: np.ndarray, width: float | np.ndarray, tapered: bool = True) -> np.ndarray:
    """The outline of a band of a width along a curve (n, 2)."""
    along = np.empty_like(curve)
    along[1:-1] = curve[2:] - curve[:-2]
    along[0], along[-1] = curve[1] - curve[0], curve[-1] - curve[-2]
    half = width / 2 * (_taper(len(curve)) if tapered else 1) / (np.hypot(along[:, 0], along[:, 1]) + 1e-9)
    across = along[:, ::-1] * (-1, 1) * np.reshape(half, (-1, 1))
    return np.concatenate([curve + across, (curve - across)[::-1]])


_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_UNIT_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def _ellipse(u: float, v: float, width: float, height: float) -> np.ndarray:
    return _UNIT_CIRCLE * (width, height) + (u, v)


def _circle(centre: np.ndarray, radius: float) -> np.ndarray:
    return _ellipse(float(centre[0]), float(centre[1]), radius, radius)


def _mirrored(points: list[tuple[float, float]], side: float) -> np.ndarray:
    """Points given for the image's right half, for that half (side 1) or the left one (side -1)."""
    return np.array(points) * (side, 1)


def _lower(points: np.ndarray, distance: float) -> np.ndarray:
    """Points moved down."""
    return points + np.array([0, distance])


def _texture(canvas: _Canvas, rng: np.random.Generator, across: float, along: float) -> np.ndarray:
    """Smooth noise over the canvas, about -2..2, with grains of `across` by `along` face units."""
    shape = (max(2, int(UNITS_HIGH / along)), max(2, int(UNITS_WIDE / across)))
    coarse = rng.standard_normal(shape, np.float32)
    return cv2.resize(coarse, (canvas.width, canvas.height), interpolation=cv2.INTER_CUBIC)


def _outline(person: Person, units: Mapping[int, float]) -> np.ndarray:
    """The head without hair; the jaw's drop lengthens it."""
    jaw, chin = person.jaw, person.chin + 0.25 * units[JAW_DROP]
    right = [(0.0, -1.5), (0.5, -1.42), (0.86, -1.08), (0.99, -0.5), (0.98, 0.1), (0.93 * jaw, 0.6),
             (0.76 * jaw, chin - 0.45), (0.42 * jaw, chin - 0.1)]  # fmt: skip
    half = np.array([*right, (0.0, chin)])
    return _curve(np.concatenate([half, (half[1:-1] * (-1, 1))[::-1]]), closed=True)


def _draw_hair(canvas: _Canvas, person: Person, strands: np.ndarray, rng: np.random.Generator, behind: bool) -> None:
    """Hair behind the head (long hair), or in front of it; `strands` is its albedo on the canvas."""
    style, lower = person.hair_style, rng.uniform(1.2, 2.4)
    if style == "bald" or (behind and style == "short"):
        return
    if behind:
        if style == "fringe" and rng.random() < 0.5:
            lower = 0.8
        wide = rng.uniform(1.1, 1.35)
        right = [
            (0.0, -1.72),
            (0.7, -1.55),
            (1.08, -0.9),
            (wide, 0.0),
            (wide * 1.02, lower * 0.6),
            (wide * 0.95, lower),
        ]
        half = np.array(right)
        shape = _curve(np.concatenate([half, (half[1:] * (-1, 1))[::-1]]), closed=True)
        canvas.paint(shape, strands * np.float32(0.8), 0.02, solid=True)
        return
    line, parting, volume = person.hairline, rng.uniform(-0.5, 0.5), rng.uniform(1.03, 1.15)
    ear = rng.uniform(-0.2, 0.3) if style == "short" else rng.uniform(0.2, 1.0)
    inner = 0.8 if style == "long" else 0.9
    if style == "fringe":
        fringe = rng.uniform(-0.62, -0.45)
        edge = [(0.86, -0.35), (0.55, fringe + rng.normal(0, 0.04)), (0.2, fringe + rng.normal(0, 0.05))]
        edge += [(-0.15, fringe + rng.normal(0, 0.05)), (-0.5, fringe + rng.normal(0, 0.04)), (-0.86, -0.35)]
    else:
        edge = [(inner, -0.5), (0.72, line + 0.2), (max(parting, -0.4) + 0.35, line - 0.02), (parting, line - 0.1)]
        edge += [(min(parting, 0.4) - 0.35, line), (-0.72, line + 0.2), (-inner, -0.5)]
    outer = np.array([(-1.0, ear), (-1.04, -0.5), (-0.94, -1.1), (-0.55, -1.5), (0.0, -1.62)])
    outer = outer * (1 + (volume - 1) * 0.6, volume)
    outer = np.concatenate([outer, (outer[:-1] * (-1, 1))[::-1]])
    shape = np.concatenate([_curve(outer), _curve(np.array([(0.97, ear), *edge, (-0.97, ear)]))])
    canvas.shadow(_lower(shape, 0.05), 0.35, 0.05)
    canvas.paint(shape, strands, 0.02, solid=True)


def _draw_body(canvas: _Canvas, person: Person, head: np.ndarray, rng: np.random.Generator) -> None:
    """Neck with the chin's shadow, clothes, and ears."""
    wide = 0.55 * person.jaw
    neck = np.array(
        [(-wide, 0.9), (wide, 0.9), (wide * 1.05, 1.8), (wide * 1.6, 2.6), (-wide * 1.6, 2.6), (-wide * 1.05, 1.8)]
    )
    canvas.paint(_curve(neck, closed=True), person.skin * 0.85, 0.02, solid=True)
    canvas.shadow(_lower(head, 0.22), 0.55, 0.12, inside=(neck, 0.02))
    collar = rng.uniform(1.75, 2.1)
    clothes = [(-1.8, 2.6), (-1.8, collar + 0.15), (-wide * 1.3, collar - 0.1), (0, collar + rng.uniform(0.05, 0.5))]
    clothes += [(wide * 1.3, collar - 0.1), (1.8, collar + 0.15), (1.8, 2.6)]
    canvas.paint(np.array(clothes), person.clothes, 0.02, solid=True)
    if person.hair_style in ("short", "bald"):
        for side in (-1, 1):
            canvas.paint(_ellipse(side * 1.0, 0.18, 0.11, 0.27), person.skin * 0.85, 0.02, solid=True, skin=0.5)
            canvas.shadow(_ellipse(side * 1.03, 0.16, 0.04, 0.14), 0.4, 0.03)


def _draw_brow(
    canvas: _Canvas, person: Person, units: Mapping[int, float], side: float, rng: np.random.Generator
) -> None:
    up, out, down, droop = units[BROW_INNER_UP], units[BROW_OUTER_UP], units[BROW_LOWER], units[LID_DROOP]
    uneven = rng.normal(0, 0.012)
    base = -0.27 + person.brow_height + uneven + 0.05 * units[NOSE_WRINKLE] + 0.02 * droop
    wide = person.eye_distance / 0.44
    inner = (0.17 * wide - 0.05 * down, base - 0.19 * up + 0.15 * down)
    middle = (0.45 * wide, base - 0.08 - 0.09 * up - 0.11 * out + 0.06 * down)
    outer = (0.74 * wide, base + 0.01 - 0.13 * out + 0.02 * down + 0.06 * up * (1 - out))
    curve = _curve(_mirrored([inner, middle, outer], side))
    width = np.interp(np.linspace(0, 1, len(curve)), [0, 0.15, 0.55, 1], [0.06, 0.105, 0.09, 0.02]) * person.brow_width
    opacity = 0.55 + 0.4 * min(1.0, person.brow_width)
    canvas.paint(
        _ribbon(curve, width, tapered=False), person.brow * 0.8 * min(1, person.skin + 0.3), 0.02, min(opacity, 0.95)
    )


def _draw_eye(
    canvas: _Canvas, person: Person, units: Mapping[int, float], side: float, gaze: np.ndarray, light: np.ndarray
) -> None:
    """Eyeball, iris, lids and their folds; the lids' heights follow the action units."""
    size = person.eye_size
    raised, tight, cheek, droop = units[LID_RAISE], units[LID_TIGHT], units[CHEEK_RAISE], units[LID_DROOP]
    above = size * max(
        0.015, 0.11 + 0.085 * raised - 0.035 * tight - 0.03 * cheek - 0.055 * droop - 0.03 * units[NOSE_WRINKLE]
    )
    below = size * max(0.012, 0.065 + 0.02 * raised - 0.03 * tight - 0.028 * cheek - 0.015 * units[NOSE_WRINKLE])
    half, place = 0.215 * size, person.eye_distance
    t = np.linspace(0, 1, 11)
    u = place - half + 2 * half * t
    corner = 0.02 - (0.03 + 2 * person.eye_tilt) * t - 0.035 * droop * (1 - t) + 0.02 * droop * t
    arch = np.sin(np.pi * t**0.85) ** 0.8
    upper = np.stack([u * side, corner - above * arch], 1)
    lower = np.stack([u * side, corner + below * np.sin(np.pi * t**1.1) ** 0.8], 1)
    eye = np.concatenate([upper, lower[::-1]])
    canvas.paint(eye, 0.9, 0.008, skin=0.3)
    centre = np.array([side * place, 0.0 - 0.015]) + gaze * (0.07, 0.035) * size
    inside = (eye, 0.008)
    canvas.paint(_circle(centre, 0.105 * size), person.iris, 0.01, inside=inside)
    canvas.paint(_circle(centre, 0.05 * size), 0.02, 0.008, inside=inside)
    canvas.shadow(_ribbon(_lower(upper, 0.02), 0.1), 0.5, 0.02, inside=inside)
    glint = centre + light[:2] * 0.05 * size
    canvas.paint(_circle(glint, 0.022), 1.0, 0.006, inside=inside)
    canvas.shadow(_ribbon(upper, 0.05), 0.8, 0.008)
    canvas.shadow(_ribbon(lower, 0.03), 0.3 + 0.15 * tight, 0.01)
    fold = _lower(upper, 0.02 * raised - 0.055)
    canvas.shadow(_ribbon(fold, 0.03), 0.3 * (1 - 0.6 * min(1.0, units[BROW_LOWER])), 0.015)
    pouch = 0.12 + 0.35 * cheek + 0.2 * tight + 0.25 * person.age
    canvas.shadow(_ribbon(_lower(lower[2:], 0.075), 0.035), 0.6 * pouch, 0.02)
    for i in range(3):  # crow's feet
        start = np.array([(place + half + 0.04), -0.02 + 0.05 * i])
        wrinkle = np.array([start, start + np.array([0.15, -0.05 + 0.07 * i])]) * (side, 1)
        canvas.line(wrinkle, 0.025, cheek * (0.2 + 0.35 * person.age), 0.01)


def _draw_wrinkles(canvas: _Canvas, person: Person, units: Mapping[int, float]) -> None:
    """Forehead, root of the nose, and the folds from nose to mouth."""
    down, wrinkle, age = units[BROW_LOWER], units[NOSE_WRINKLE], person.age
    for side in (-1, 1):
        canvas.line(
            _mirrored([(0.07, -0.38), (0.055, -0.25), (0.08, -0.12)], side), 0.035, 0.5 * down + 0.25 * wrinkle, 0.015
        )
        # with the brow lowered a shadow lies between it and the inner corner of the eye
        canvas.line(_mirrored([(0.16, -0.12), (0.3, -0.15), (0.48, -0.18)], side), 0.07, 0.45 * down, 0.03)
        for v in (-0.02, 0.08):
            canvas.line(_mirrored([(0.0, v + 0.03), (0.09, v), (0.15, v - 0.07)], side), 0.03, 0.55 * wrinkle, 0.012)
        pull, lift = units[CORNER_PULL], max(units[LIP_RAISE], wrinkle)
        wide = person.mouth_width + 0.1 * pull
        fold = [(person.nose_width + 0.03, 0.5 - 0.08 * lift), (0.33 + 0.1 * pull + 0.05 * lift, 0.66 - 0.02 * pull)]
        fold += [(wide + 0.11, person.mouth - 0.04 - 0.1 * pull + 0.08 * units[CORNER_DROP])]
        depth = 0.06 + 0.25 * age + 0.35 * pull + 0.4 * lift + 0.1 * units[LIP_STRETCH]
        canvas.line(_mirrored(fold, side), 0.05, min(depth, 0.5), 0.025)
    raised = max(units[BROW_INNER_UP], units[BROW_OUTER_UP])
    reach = 0.25 + 0.4 * units[BROW_OUTER_UP]
    for i in range(3):
        v = -0.58 - 0.13 * i
        arc = np.array(
            [(-reach, v + 0.03), (-reach / 2, v - 0.01), (0, v + 0.01), (reach / 2, v - 0.01), (reach, v + 0.03)]
        )
        canvas.line(arc, 0.035, (0.1 + 0.35 * age) * raised + 0.12 * age, 0.015)


def _draw_nose(canvas: _Canvas, person: Person, units: Mapping[int, float]) -> None:
    wide, tip = person.nose_width * (1 + 0.12 * units[CORNER_PULL] + 0.15 * units[NOSE_WRINKLE]), person.nose_length
    tip -= 0.05 * units[NOSE_WRINKLE]
    for side in (-1, 1):
        canvas.shadow(_ellipse(side * wide * 0.5, tip + 0.025, wide * 0.3, 0.03), 0.75, 0.012)
        wing = [(wide * 0.95, tip - 0.14), (wide * 1.15, tip - 0.05), (wide * 0.95, tip + 0.02)]
        canvas.line(_mirrored(wing, side), 0.04, 0.3 + 0.25 * units[NOSE_WRINKLE], 0.012)


def _draw_mouth(canvas: _Canvas, person: Person, units: Mapping[int, float], rng: np.random.Generator) -> None:
    """Lips, and between open ones teeth and the dark of the mouth."""
    pull, drop, stretch, lift = units[CORNER_PULL], units[CORNER_DROP], units[LIP_STRETCH], units[LIP_RAISE]
    part, jaw, press, chin = units[LIPS_PART], units[JAW_DROP], units[LIP_PRESS], units[CHIN_RAISE]
    middle = person.mouth - 0.03 * units[NOSE_WRINKLE]
    half = person.mouth_width + 0.12 * pull + 0.12 * stretch - 0.1 * jaw * (1 - min(1, stretch + lift)) - 0.02 * press
    x = np.linspace(-1, 1, 25)
    skew = rng.normal(0, 0.012)
    corner = middle - 0.17 * pull + 0.16 * drop + 0.05 * stretch + 0.1 * jaw + skew * x
    square = 2 + 1.5 * min(1.0, lift * part + stretch)  # a lifted or stretched lip makes the opening squarer
    bow = 1 - np.abs(x) ** square
    opening = (0.13 + 0.07 * pull) * part * (1 - 0.3 * jaw) + 0.46 * jaw
    top = corner + (middle - 0.06 * lift - 0.05 * chin * (1 - part) - corner) * bow
    bottom = top + opening * (1 - np.abs(x) ** (square + 0.3))
    thin = 1 - 0.6 * min(1, press)
    upper = 0.075 * person.lip_fullness * thin * (1 - 0.3 * pull) * (1 - 0.3 * stretch)
    below = 0.12 * person.lip_fullness * thin * (1 - 0.4 * pull) * (1 - 0.3 * stretch) * (1 + 0.2 * chin)
    cupid = 1 - 0.25 * np.exp(-((x / 0.13) ** 2)) + 0.15 * np.exp(-(((np.abs(x) - 0.25) / 0.15) ** 2))
    above = top - upper * (1 - np.abs(x) ** 2.5) * cupid
    under = bottom + below * (1 - np.abs(x) ** 2.2)
    line = partial(np.stack, axis=1)
    u = half * x
    lips = np.concatenate([line([u, above]), line([u, under])[::-1]])
    canvas.paint(lips, person.skin * person.lip_albedo, 0.012, 0.9, skin=1.0)
    canvas.shadow(np.concatenate([line([u, above]), line([u, top])[::-1]]), 0.18, 0.01)
    if opening > 0.025:
        gap = np.concatenate([line([u * 0.97, top]), line([u * 0.97, bottom])[::-1]])
        canvas.paint(gap, 0.05, 0.008)
        shown = rng.uniform(0.75, 0.95)
        upper_teeth = 0.02 + 0.11 * min(1.0, pull + lift * part + 0.5 * stretch) + 0.04 * jaw
        canvas.paint(
            np.concatenate([line([u * 0.9, top - 0.02]), line([u * 0.9, top + upper_teeth * (1 - 0.3 * x**2)])[::-1]]),
            shown, 0.01, inside=(gap, 0.008),
        )  # fmt: skip
        lower_teeth = (0.06 * min(1.0, lift + stretch)) * part
        canvas.paint(
            np.concatenate([line([u * 0.8, bottom - lower_teeth]), line([u * 0.8, bottom + 0.03])[::-1]]),
            shown * 0.8, 0.01, min(1.0, 12 * lower_teeth), inside=(gap, 0.008),
        )  # fmt: skip
        for place in (-0.55, -0.35, -0.12, 0.12, 0.35, 0.55) if canvas.scale > TEETH_APART else ():
            tooth = np.array([(half * place, middle - 0.25), (half * place, middle + 0.6)])
            canvas.shadow(_ribbon(tooth, 0.012, tapered=False), 0.2, 0.004, inside=(gap, 0.0))
        if jaw > 0.3:
            canvas.paint(
                _ellipse(0, float(bottom.max()) - 0.02, half * 0.55, 0.1 * jaw),
                person.skin * 0.35,
                0.03,
                inside=(gap, 0.01),
            )
    else:
        canvas.shadow(_ribbon(line([u, top]), 0.035), 0.7, 0.008)
    for side, level in ((-1, corner[0]), (1, corner[-1])):
        canvas.shadow(_ellipse(side * half, float(level), 0.035, 0.03), 0.35 + 0.25 * pull + 0.25 * drop, 0.015)
    lowest = float(under.max())
    canvas.shadow(_ellipse(0, lowest + 0.05, half * 0.6, 0.035), 0.25 + 0.25 * chin, 0.03)
    for place in (-0.12, 0.0, 0.12):  # the raised chin's dimples
        canvas.shadow(_ellipse(place, lowest + 0.16, 0.04, 0.025), 0.35 * chin, 0.02)


def _shade(
    canvas: _Canvas, person: Person, units: Mapping[int, float], light: np.ndarray, ambient: float, gloss: float
) -> np.ndarray:
    """Grey levels 0..1 of the canvas under a light from a direction (unit vector; z towards the viewer)."""
    u, v = canvas.u, canvas.v
    right, down, front = map(float, light)  # plain numbers keep float32 arrays float32
    tip, wide, cheek = person.nose_length, person.nose_width, max(units[CHEEK_RAISE], units[CORNER_PULL])
    round_head = 1 - (u / 1.12) ** 2 - (((v - 0.1) / 1.72) ** 2)[:, None]
    depth = 0.85 * np.sqrt(np.maximum(round_head, 0) + 0.04)
    features = [
        (0.0, 0.2, 0.09, 0.28, 0.14), (0.0, tip - 0.1, 0.12, 0.13, 0.2),
        (0.0, -0.28, 0.6, 0.12, 0.06), (0.0, 1.38, 0.25, 0.15, 0.07), (0.0, 1.0, 0.35, 0.2, 0.06),
    ]  # fmt: skip
    hollows = [(0.0, tip + 0.07, 0.14, 0.05, 0.22), (0.0, -0.12, 0.1, 0.08, 0.05)]
    for side in (-1, 1):
        features += [
            (side * wide * 0.85, tip - 0.06, 0.07, 0.07, 0.07),
            (side * 0.44, -0.03, 0.22, 0.13, -0.09),
            (side * 0.55, 0.42 - 0.08 * cheek, 0.24, 0.2, 0.05 + 0.1 * cheek),
            (side * 0.7, 0.85, 0.2, 0.25, -0.03),
        ]
        hollows += [
            (side * 0.42, -0.1, 0.26, 0.13, 0.2), (side * 0.2, 0.0, 0.08, 0.12, 0.2),
            (side * (wide + 0.05), tip - 0.12, 0.06, 0.14, 0.18), (side * 0.95, 0.7, 0.25, 0.6, 0.2),
        ]  # fmt: skip
    depth += canvas.bumps(features)
    slope_u = cv2.Sobel(depth, cv2.CV_32F, 1, 0, ksize=3, scale=canvas.scale / 8)
    slope_v = cv2.Sobel(depth, cv2.CV_32F, 0, 1, ksize=3, scale=canvas.scale / 8)
    tilt = right * slope_u
    tilt += down * slope_v
    slope_u *= slope_u
    slope_v *= slope_v
    slope_u += slope_v
    slope_u += 1
    facing = 1 / np.sqrt(slope_u)  # z of the surface's normal; the normal times the light is (front - tilt) * facing
    lit = (front - tilt) * facing
    lit += 0.25
    np.maximum(lit, 0, out=lit)
    lit *= (1 - ambient) / 1.25
    lit += ambient
    lit *= np.exp(-canvas.bumps(hollows))
    lit *= canvas.albedo
    norm = math.hypot(right, down, front + 1)  # of the direction halfway between the light and the viewer (Blinn)
    shine = (front + 1 - tilt) * facing
    np.maximum(shine, 0, out=shine)
    shine *= 1 / norm
    for _ in range(4):
        shine *= shine  # to the 16th
    shine *= gloss
    shine *= canvas.skin
    lit += shine
    lit *= canvas.light
    return lit


def _draw_head(
    person: Person, units: Mapping[int, float], rng: np.random.Generator, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """A head seen from the front: grey levels 0..1 and coverage 0..1, (height, width) float32."""
    canvas = _Canvas(scale)
    head = _outline(person, units)
    light = np.array([rng.uniform(-0.75, 0.75), rng.uniform(-0.8, 0.1), 1.0])
    light /= np.linalg.norm(light)
    strands = np.maximum(person.hair * (1 + 0.2 * _texture(canvas, rng, 0.08, 0.7)), 0.02)
    _draw_hair(canvas, person, strands, rng, behind=True)
    _draw_body(canvas, person, head, rng)
    mottled = person.skin * (1 + 0.03 * _texture(canvas, rng, 0.15, 0.15))
    canvas.paint(head, mottled, 0.01, solid=True, skin=1.0)
    if person.stubble:
        beard = np.array([(-0.9, 0.55), (-0.6, 0.8), (-0.3, 0.76), (0.3, 0.76), (0.6, 0.8), (0.9, 0.55), (0.75, 1.2),
                          (0.4, 1.7), (-0.4, 1.7), (-0.75, 1.2)])  # fmt: skip
        canvas.paint(
            _curve(beard, closed=True), min(person.hair, person.skin), 0.08, person.stubble * 0.75, inside=(head, 0.02)
        )
    _draw_wrinkles(canvas, person, units)
    gaze = np.array([rng.normal(0, 0.4), rng.normal(0.05, 0.25) + 0.6 * units[LID_DROOP]])
    for side in (-1, 1):
        _draw_eye(canvas, person, units, side, gaze, light)
        _draw_brow(canvas, person, units, side, rng)
    _draw_nose(canvas, person, units)
    _draw_mouth(canvas, person, units, rng)
    if person.glasses:
        rim = rng.uniform(0.7, 1.0)
        for side in (-1, 1):
            lens = _curve(_ellipse(side * person.eye_distance, 0.03, 0.31, 0.22), closed=True)
            canvas.shadow(_ribbon(lens, 0.045, tapered=False), rim, 0.006)
        canvas.line(np.array([(-0.16, 0.0), (0, -0.04), (0.16, 0.0)]), 0.05, rim)
    _draw_hair(canvas, person, strands, rng, behind=False)
    shaded = _shade(canvas, person, units, light, rng.uniform(0.25, 0.6), rng.uniform(0.0, 0.25))
    return shaded, canvas.alpha


def _turn(
    size: tuple[int, int], eyes: tuple[float, float], unit: float, canvas_scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of an image (height, width) lies on the head's canvas, for a head turned a little.

    eyes: where the point between the eyes goes, x and y.  unit: pixels a face unit in the image.
    """
    roll, yaw, pitch = rng.normal(0, 0.1), rng.normal(0, 0.18), rng.normal(0, 0.1)
    stretch = rng.normal(1.0, 0.04)
    x = ((np.arange(size[1]) - eyes[0]) / unit).astype(np.float32)
    y = ((np.arange(size[0]) - eyes[1]) / unit).astype(np.float32)[:, None]
    p = (math.cos(roll) * x + math.sin(roll) * y) * stretch
    q = (math.cos(roll) * y - math.sin(roll) * x) / stretch
    u, v = p, q
    for _ in range(2):  # a point of the head at (u, v) with depth z is seen at u cos(yaw) + z sin(yaw), and v alike
        depth = 0.75 * np.sqrt(np.maximum(1 - (u / 1.3) ** 2 - ((v - 0.2) / 1.9) ** 2, 0)) - 0.45
        depth += 0.25 * np.exp(-((u / 0.2) ** 2) - ((v - 0.45) / 0.25) ** 2)  # the nose
        u = (p - depth * math.sin(yaw)) / math.cos(yaw)
        v = (q - depth * math.sin(pitch)) / math.cos(pitch)
    return (u + UNITS_WIDE / 2) * canvas_scale, (v + EYES_BELOW_TOP) * canvas_scale


def _background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A plain, graded or cluttered background, (height, width) float32, 0..1."""
    height, width = size
    base = rng.choice([rng.uniform(0.0, 0.25), rng.uniform(0.25, 0.75), rng.uniform(0.75, 1.0)])
    slope = rng.normal(0, 0.15, 2)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    image = np.float32(base) + np.float32(slope[0]) * x + np.float32(slope[1]) * y[:, None]
    coarse = rng.standard_normal((rng.integers(3, 9), rng.integers(3, 9)), np.float32) * np.float32(
        abs(rng.normal(0, 0.12))
    )
    image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def draw_photo(
    emotion: str,
    rng: np.random.Generator,
    width: int,
    height: int,
    face: float,
    centre: tuple[float, float] | None = None,
) -> np.ndarray:
    """Draw a photo with one face.

    Parameters
    ----------
    emotion: one of EMOTIONS.
    rng: decides everything else; the same state gives the same image.
    width, height: of the photo, in pixels.
    face: the head's width, in pixels.
    centre: x and y of the middle of the face (default: of the photo).

    Returns (height, width) uint8. Raises ValueError for an unknown emotion.
    """
    if emotion not in EXPRESSIONS:
        raise ValueError(f"emotion is {emotion!r}; expected one of {', '.join(EMOTIONS)}")
    more = SUPERSAMPLING if face < 100 else 2
    unit = face / 2 * more
    person, units = _person(rng), _action_units(emotion, rng)
    head, cover = _draw_head(person, units, rng, unit)
    size = (height * more, width * more)
    x, y = centre if centre is not None else (width / 2, height / 2)
    column, row = _turn(size, (x * more, y * more - 0.3 * unit), unit, unit, rng)
    image = _background(size, rng)
    head = cv2.remap(head, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(cover, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    image += cover * (head - image)
    image = _blur(image, rng.uniform(0.3, 1.0) * unit / 32)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    low, high = np.percentile(image, [2, 98])
    black, white = rng.uniform(0, 35), rng.uniform(185, 255)
    image = (image - low) * ((white - black) / max(high - low, 0.1)) + black
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.5, 4.0))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_face(emotion: str, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """Draw a face that fills its image, as FER2013's do: (size, size) uint8; see `draw_photo`."""
    face = size * rng.uniform(0.64, 0.8)
    centre = (size * (0.5 + rng.normal(0, 0.025)), size * (0.52 + rng.normal(0, 0.025)))
    return draw_photo(emotion, rng, size, size, face, centre)


def draw_montage(seed: int, columns: int = 14, zoom: int = 2) -> np.ndarray:
    """One row of faces for each emotion, from their own random states: (height, width) uint8."""
    return montage(
        [
            (emotion, [draw_face(emotion, np.random.default_rng([seed, label, i])) for i in range(columns)])
            for label, emotion in enumerate(EMOTIONS)
        ],
        zoom,
    )


def _plan(seed: int, count: int) -> list[tuple[str, int]]:
    """Split and label of every row: emotions equally often, in random order, the splits one after the other."""
    rng = np.random.default_rng(seed)
    test = round(count * TEST_SHARE)
    return [
        (split, int(label))
        for split, rows in zip(SPLITS, (count - 2 * test, test, test), strict=True)
        for label in rng.permutation(np.arange(rows) % len(EMOTIONS))
    ]


def _draw_row(seed: int, row: int, split: str, label: int) -> str:
    """One line of the CSV; every row has its own random state, so that no other row changes it."""
    face = draw_face(EMOTIONS[label], np.random.default_rng([seed, row]))
    return f"{label},{' '.join(map(str, face.ravel().tolist()))},{split}\n"


def _start_worker() -> None:
    cv2.setNumThreads(1)  # there is a process for each core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def write_sample(output: Path, seed: int = 0, count: int = COUNT, workers: int | None = None) -> None:
    """Draw `count` faces and write them to the CSV `output`, and its manifest beside it (`NAME.manifest.json`).

    The same seed and count give the same bytes, whatever the number of workers (default: one for each core).
    Raises StageError when count is below 70, which leaves some emotion out of a split.
    """
    output = Path(output)
    if count < MIN_COUNT:
        raise StageError(f"--count is {count}; expected {MIN_COUNT} or more, so that each split has every emotion")
    if seed < 0:
        raise StageError(f"--seed is {seed}; expected 0 or more")
    workers = worker_count(workers)
    stage = Stage("sample", settings={"seed": seed, "count": count})
    plan = _plan(seed, count)
    splits, labels = zip(*plan, strict=True)
    with replace_file(output) as partial_csv, open(partial_csv, "w", newline="\n") as f:
        f.write("emotion,pixels,Usage\n")
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            rows = pool.map(_draw_row, [seed] * count, range(count), splits, labels, chunksize=20)
            f.writelines(progress(rows, count, "sample", " faces"))
    stage.counts = {
        "written": count,
        "faces": {s: {e: plan.count((s, i)) for i, e in enumerate(EMOTIONS)} for s in SPLITS},
    }
    with replace_file(output.with_suffix(".manifest.json")) as manifest:
        stage.write_manifest(manifest)
    stage.summary(f"{count:,} drawn faces in {output}")


def png_file(text: str) -> Path:
    """A file's name that ends in .png, for argparse: the picture comes last, and OpenCV writes it as its name says."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a name that ends in .png")
    return Path(text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.sample", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="the CSV to write")
    parser.add_argument("--seed", type=int, default=0, help="decides every face (default: 0)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"faces of all splits together (default: {COUNT})")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one for each core)")
    parser.add_argument(
        "--montage", type=png_file, default=None, metavar="PNG", help="also draw a few faces of each emotion"
    )
    args = parser.parse_args()
    write_sample(args.output, args.seed, args.count, args.workers)
    if args.montage is not None:
        with replace_file(args.montage) as path:
            cv2.imwrite(str(path), draw_montage(args.seed))


if __name__ == "__main__":
    run_main(main)
