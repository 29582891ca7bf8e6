"""Coordinate maps against the positions at which a net's gradient shows one blob's values to lie on another's."""

# ruff: noqa: C408 - dict(...) is how users of pycaffe write a message

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.coord_map import (
    AxisMismatchException,
    UndefinedMapException,
    compose,
    conv_params,
    coord_map,
    coord_map_from_to,
    crop,
    crop_params,
    inverse,
)


def net_spec(kernel=3, stride=1, pad=0, pool=2, up=2, up_pad=0, size=24):  # type: ignore[no-untyped-def]
    """Convolution, pooling, and the deconvolution that undoes the pooling's stride."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, size, size]))
    n.conv = L.Convolution(n.data, num_output=1, kernel_size=kernel, stride=stride, pad=pad)
    n.pool = L.Pooling(n.conv, pool=P.Pooling.AVE, kernel_size=pool, stride=pool)
    n.up = L.Deconvolution(n.pool, convolution_param=dict(num_output=1, kernel_size=2 * up, stride=up, pad=up_pad))
    return n


def positions(n: caffe.NetSpec, name: str) -> np.ndarray:
    """Where on `data` each row of a blob lies: the centre of the values that it is computed from, all weights 1."""
    for other in n.keys()[n.keys().index(name) + 1 :]:
        del n[other]
    param = n.to_proto()
    param.force_backward = True
    net = caffe.Net(param, phase=caffe.TEST)
    for blobs in net.params.values():
        blobs[0].data[...] = 1
    height, width = net.blobs[name].shape[2:]
    found = []
    for row in range(height):
        net.forward()
        diff = np.zeros((1, 1, height, width), np.float32)
        diff[0, 0, row, width // 2] = 1
        profile = net.backward(**{name: diff})["data"][0, 0].sum(1, dtype=np.float64)
        found.append((profile * np.arange(len(profile))).sum() / profile.sum())
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("conv", dict(kernel=5, stride=2)),
        ("conv", dict(kernel=4, stride=3, pad=1)),
        ("pool", dict(kernel=3, pool=4)),
        ("up", dict(kernel=3)),
        ("up", dict(kernel=3, up_pad=1)),
        ("up", dict(kernel=5, stride=2, pad=1, pool=2, up=4, size=48)),
    ],
)  # fmt: skip
def test_the_map_is_where_the_gradient_goes(name: str, settings: dict[str, int]) -> None:
    n = net_spec(**settings)
    axis, scale, shift = coord_map_from_to(getattr(n, name), n.data)
    assert axis == 1
    found = positions(n, name)
    difference = found - (scale * np.arange(len(found)) + shift)
    # away from the borders, where padding cuts values off; of a deconvolution's rows the average over its stride,
    # since they are computed from whole rows
    stride = settings.get("up", 2) if name == "up" else 1
    inner = difference[stride * 2 : len(found) // stride * stride - stride * 2].reshape(-1, stride)
    assert len(inner) > 0
    np.testing.assert_allclose(inner.mean(1), 0, atol=1e-5)


def test_a_crop_cuts_to_where_the_maps_meet() -> None:
    """A value set in the data comes out of the net without its upsampled map at the same place as out of the crop."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 20, 20]))
    n.conv = L.Convolution(n.data, num_output=1, kernel_size=5, pad=6, weight_filler=dict(type="constant", value=0))
    n.crop = crop(n.conv, n.data)
    net = caffe.Net(n.to_proto(), phase=caffe.TEST)
    assert list(n.to_proto().layer[-1].crop_param.offset) == [4]
    net.params["conv"][0].data[0, 0, 2, 2] = 1  # the identity, on a padded map
    values = np.random.default_rng(0).random((1, 1, 20, 20), np.float32)
    np.testing.assert_array_equal(net.forward(data=values)["crop"], values)


def test_layers_that_pass_through() -> None:
    n = net_spec()
    expected = coord_map_from_to(n.up, n.data)
    n.relu = L.ReLU(n.up)
    n.swish = L.Swish(n.relu, in_place=True)
    n.conv1x1 = L.Convolution(n.swish, num_output=10, kernel_size=1, stride=1, pad=0)
    for top in (n.relu, n.swish, n.conv1x1):
        assert coord_map_from_to(top, n.data) == expected


def test_axes_of_their_own() -> None:
    """Each axis is mapped as by the net with its kernel, stride and padding."""
    small, large = net_spec(kernel=3), net_spec(kernel=5, stride=2, pad=10)
    both = net_spec(kernel=[3, 5], stride=[1, 2], pad=[0, 10])
    parts = [coord_map_from_to(n.up, n.data) for n in (small, large)]
    axis, scale, shift = coord_map_from_to(both.up, both.data)
    assert axis == 1
    assert scale.tolist() == [part[1][0] for part in parts]
    assert shift.tolist() == [part[2][0] for part in parts]


def test_several_bottoms_and_tops() -> None:
    n = net_spec()
    n.aux = L.Input(shape=dict(dim=[1, 1, 9, 9]))
    n.one, n.two = L.Convolution(n.data, n.aux, ntop=2, num_output=10, kernel_size=5, stride=2)
    assert coord_map_from_to(n.one, n.data) == coord_map_from_to(n.two, n.aux)


def test_the_crop_of_a_crop() -> None:
    n = net_spec()
    axis, scale, shift = coord_map_from_to(n.up, n.data)
    n.crop = L.Crop(n.up, n.data, axis=2, offset=7)
    assert coord_map_from_to(n.crop, n.data) == (axis, scale, shift + 7)
    n.crop = L.Crop(n.up, n.data, crop_param=dict(offset=[7, 3]))
    assert coord_map_from_to(n.crop, n.data)[2].tolist() == [shift[0] + 7, shift[0] + 3]
    assert crop_params(L.Crop(n.up, n.data).fn) == (2, 0)


def test_the_bottom_that_only_says_a_size_is_not_followed() -> None:
    n = net_spec()
    n.crop = L.Crop(L.Input(), n.data)
    with pytest.raises(caffe.CaffeError, match="no position on each other"):
        coord_map_from_to(n.crop, n.data)


def test_parameters() -> None:
    axis, stride, kernel, pad = conv_params(
        L.Convolution(L.Input(), kernel_size=[3, 5], dilation=2, pad=[1, 0], axis=2).fn
    )
    assert (axis, stride.tolist(), kernel.tolist(), pad.tolist()) == (2, [1], [5, 9], [1, 0])
    pooling = L.Pooling(L.Input(), pooling_param=dict(kernel_size=3, stride=2))
    assert [np.array(value).tolist() for value in conv_params(pooling.fn)] == [1, [2], [3], [0]]
    for top in (L.Pooling(L.Input(), global_pooling=True), L.Convolution(L.Input(), kernel_h=3, kernel_w=5)):
        with pytest.raises(caffe.CaffeError, match="cropping needs kernel_size"):
            conv_params(top.fn)
    with pytest.raises(caffe.CaffeError, match="has pad_h; cropping"):
        conv_params(L.Pooling(L.Input(), pooling_param=dict(kernel_size=3, pad_h=2)).fn)


maps = st.tuples(st.none() | st.just(1), st.floats(0.125, 8), st.floats(-8, 8))


@settings(max_examples=50, deadline=None)
@given(maps, maps, st.floats(-50, 50))
def test_compose_and_inverse(one: tuple, two: tuple, x: float) -> None:
    def apply(m: tuple, value: float) -> float:
        return m[1] * value + m[2]

    assert apply(compose(one, two), x) == pytest.approx(apply(one, apply(two, x)), abs=1e-9)
    assert compose(one, two)[0] == (one[0] or two[0])
    assert apply(inverse(one), apply(one, x)) == pytest.approx(x, abs=1e-9)


def test_what_cannot_be_mapped() -> None:
    n = net_spec()
    n.ip = L.InnerProduct(n.up, num_output=10)
    with pytest.raises(UndefinedMapException, match="InnerProduct"):
        coord_map(n.ip.fn)
    with pytest.raises(RuntimeError, match="no position on each other"):
        coord_map_from_to(n.ip, n.data)
    with pytest.raises(AxisMismatchException, match="axis 1 and from axis 2"):
        compose((1, 1, 0), (2, 1, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(pool=3, up=2), "scale is"),
        (dict(up_pad=10), "expected 0 or more"),
        (dict(kernel=2), "expected whole numbers"),
    ],
)
def test_what_cannot_be_cropped(settings: dict[str, int], message: str) -> None:
    n = net_spec(**settings)
    with pytest.raises(AssertionError, match=message) as caught:
        crop(n.up, n.data)
    assert isinstance(caught.value, caffe.CaffeError)


def test_crop_needs_an_axis() -> None:
    n = net_spec()
    with pytest.raises(caffe.CaffeError, match="nothing to crop"):
        crop(L.ReLU(n.data), n.data)
