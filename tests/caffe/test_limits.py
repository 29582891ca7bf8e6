"""What a few bytes of a prototxt may ask for: Caffe's limits on a blob, and `caffe.set_memory_limit`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_nets import input_layer, net_of

import caffe
from caffe.context import memory_limit


@pytest.fixture(autouse=True)
def _same_limit() -> Iterator[None]:
    limit = memory_limit()
    yield
    caffe.set_memory_limit(limit)


def ip(name: str, outputs: int, bottom: str = "x", settings: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {settings} '
        f"inner_product_param {{ num_output: {outputs} bias_term: false }} }}\n"
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "num_output: 2000000000 kernel_size: 3",
            r"the shape \(2000000000, 3, 3, 3\); a blob has at most 2147483647 values",
        ),
        (
            "num_output: 2 kernel_size: 15000 pad: 30000",
            r"values of shape \(2, 3, 15000, 15000\) take 5400000000 bytes",
        ),
        ("num_output: 2 kernel_size: 1 pad: 4294967295", r"top 'y': the shape \(1, 2, 8589934\d+, 8589934\d+\)"),
    ],
)
def test_convolutions_of_absurd_size(layer: str, message: str) -> None:
    text = input_layer("x", 1, 3, 8, 8) + (
        f'layer {{ name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param {{ {layer} }} }}'
    )
    with pytest.raises(caffe.CaffeError, match=rf"layer 'c' \(Convolution\): .*({message})"):
        net_of(text)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2**40,), r"the shape \(1099511627776,\); a blob has at most 2147483647 values"),
        ((2**16, 2**15), r"the shape \(65536, 32768\); a blob has at most 2147483647 values"),
        ((0, 2**40, 2**40), r"the shape \(0, .*; a blob has at most 2147483647 values"),
        ((-1, 3), r"a size is negative in \(-1, 3\)"),
        ((1,) * 33, "a shape of 33 axes; a blob has at most 32"),
    ],
)
def test_blobs_that_caffe_cannot_have_either(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'x' \(Input\): top 'x': {message}"):
        net_of(input_layer("x", *shape))
    net = net_of(input_layer("x", 2))
    with pytest.raises(caffe.CaffeError, match=message):
        net.blobs["x"].reshape(*shape)
    assert net.blobs["x"].shape == (2,)


def test_the_largest_blob_costs_nothing_before_it_is_used() -> None:
    net = net_of(input_layer("x", 2**31 - 1) + input_layer("axes", *(1,) * 32) + input_layer("none", 0, 2**20))
    assert net.blobs["x"].count == 2**31 - 1


def test_the_parameters_of_a_net_share_one_limit() -> None:
    caffe.set_memory_limit(4 * 10 * 5)
    net_of(input_layer("x", 1, 10) + ip("a", 3) + ip("b", 2))
    with pytest.raises(caffe.CaffeError, match=r"layer 'b'.*\(3, 10\) take 120 bytes; of the 200 bytes.* 80 are left"):
        net_of(input_layer("x", 1, 10) + ip("a", 3) + ip("b", 3))
    caffe.set_memory_limit(4 * 10 * 6)
    assert net_of(input_layer("x", 1, 10) + ip("a", 3) + ip("b", 3)).params["b"][0].shape == (3, 10)


def test_constants_count_like_parameters() -> None:
    caffe.set_memory_limit(4 * 10)
    dummy = 'layer {{ name: "d" type: "DummyData" top: "a" top: "b" dummy_data_param {{ shape {{ dim: 6 }} {} }} }}'
    with pytest.raises(caffe.CaffeError, match=r"layer 'd' \(DummyData\): top 'b': values of shape \(6,\)"):
        net_of(dummy.format(""))
    net_of(dummy.format('data_filler { type: "gaussian" }'))  # which is made when it is asked for


def test_a_limit_that_is_none() -> None:
    with pytest.raises(caffe.CaffeError, match="set_memory_limit: -1 bytes; expected 0 or more"):
        caffe.set_memory_limit(-1)
