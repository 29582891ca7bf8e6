"""Fillers: bounds, moments and exact values, by the formulas of the papers they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from google.protobuf import text_format

import caffe
from caffe.filler import FILLERS, fill
from caffe.proto.caffe_pb2 import FillerParameter

SHAPE = (40, 30, 5, 3)  # fan in 30·5·3 = 450, fan out 40·5·3 = 600
FANS = [("", 450), ("variance_norm: FAN_IN", 450), ("variance_norm: FAN_OUT", 600), ("variance_norm: AVERAGE", 525)]


def filled(text: str, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    filler = text_format.Parse(text, FillerParameter())
    return fill(shape, filler, torch.Generator().manual_seed(seed)).double().numpy()


def assert_moments(values: np.ndarray, mean: float, std: float) -> None:
    """Mean and variance within five standard errors (for a normal or a narrower distribution)."""
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(values.size)
    assert abs(values.var() / std**2 - 1) < 5 * math.sqrt(2 / values.size)


def test_constant() -> None:
    assert (filled('type: "constant" value: -1.5') == -1.5).all()
    assert (filled("") == 0).all()  # the default


def test_uniform() -> None:
    values = filled('type: "uniform" min: -2 max: 4')
    assert -2 <= values.min() < -1.99
    assert 3.99 < values.max() <= 4
    assert_moments(values, 1, 6 / math.sqrt(12))
    assert (filled('type: "uniform" min: 2 max: 2') == 2).all()


def test_gaussian() -> None:
    values = filled('type: "gaussian" mean: 3 std: 0.5')
    assert_moments(values, 3, 0.5)
    inside = (np.abs(values - 3) < 0.5).mean()
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 0.02  # a uniform of this variance has 0.58 there


def test_sparse_gaussian() -> None:
    values = filled('type: "gaussian" std: 2 sparse: 8')
    kept = values != 0
    assert abs(kept.mean() - 8 / 40) < 5 * math.sqrt(0.2 * 0.8 / values.size)
    assert_moments(values[kept], 0, 2)
    assert not filled('type: "gaussian" std: 2 sparse: 0').any()


@pytest.mark.parametrize(("norm", "fan"), FANS)
def test_xavier(norm: str, fan: int) -> None:
    values, bound = filled(f'type: "xavier" {norm}'), math.sqrt(3 / fan)
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > 0.999 * bound
    assert_moments(values, 0, 1 / math.sqrt(fan))


@pytest.mark.parametrize(("norm", "fan"), FANS)
def test_msra(norm: str, fan: int) -> None:
    values = filled(f'type: "msra" {norm}')
    assert_moments(values, 0, math.sqrt(2 / fan))
    assert np.abs(values).max() > 3 * math.sqrt(2 / fan)


def test_xavier_of_an_inner_product_and_a_bias() -> None:
    assert np.abs(filled('type: "xavier"', (100, 300))).max() == pytest.approx(math.sqrt(3 / 300), rel=1e-2)
    assert np.abs(filled('type: "xavier"', (1000,))).max() == pytest.approx(math.sqrt(3), rel=1e-2)


def test_positive_unitball() -> None:
    values = filled('type: "positive_unitball"')
    assert values.min() >= 0
    np.testing.assert_allclose(values.reshape(40, -1).sum(1), 1, rtol=1e-5)
    assert len(np.unique(values)) > values.size // 2


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])
def test_bilinear(size: int) -> None:
    """(1 − |x / f − c|) · (1 − |y / f − c|) with f = ceil(size / 2) and c = (size − 1) / 2f: symmetric, 1 wide."""
    values = filled('type: "bilinear"', (3, 2, size, size))
    factor = math.ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    expected = [
        [(1 - abs(x / factor - centre)) * (1 - abs(y / factor - centre)) for x in range(size)] for y in range(size)
    ]
    assert np.allclose(values, np.broadcast_to(expected, values.shape), atol=1e-6)
    assert np.allclose(values, values[:, :, ::-1, ::-1])


@pytest.mark.parametrize("kind", sorted(FILLERS))
def test_the_seed_decides_the_values(kind: str) -> None:
    text, shape = f'type: "{kind}" max: 1', (4, 3, 5, 5)
    assert np.array_equal(filled(text, shape), filled(text, shape))
    random = kind not in ("constant", "bilinear")
    assert np.array_equal(filled(text, shape), filled(text, shape, seed=1)) != random


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ('type: "xaver"', SHAPE, "'xaver' is not known; expected one of .*xavier"),
        ('type: "uniform" min: 2 max: 1', SHAPE, "min 2.* above max 1"),
        ('type: "gaussian" std: -1', SHAPE, "std -1.* negative"),
        ('type: "bilinear"', (3, 3), "square"),
        ('type: "bilinear"', (1, 1, 2, 3), "square"),
        ('type: "xavier" sparse: 3', SHAPE, "sparse"),
    ],
)
def test_settings_that_do_not_fit(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        filled(text, shape)
