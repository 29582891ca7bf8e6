"""ArgMax, Embed, BatchReindex and Filter against loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from layer_checks import backward, check_gradient, close
from small_nets import input_layer, net_of, normal, one_layer, run

import caffe


def largest(row: np.ndarray, count: int) -> list[int]:
    """Where the largest values are, as C++ sorts pairs of value and place downwards: of equal ones the last first."""
    return [place for _, place in sorted(((value, place) for place, value in enumerate(row)), reverse=True)[:count]]


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_arg_max(top_k: int, values: bool, axis: int | None) -> None:
    shape = (5, 6, 7)
    x = np.random.default_rng(1).integers(0, 4, shape).astype(np.float32)  # so few values that most are equal to others
    place = "" if axis is None else f"axis: {axis}"
    net = one_layer(
        f'type: "ArgMax" argmax_param {{ top_k: {top_k} out_max_val: {str(values).lower()} {place} }}', shape
    )
    if axis is None:
        rows = x.reshape(5, -1)
        found = np.array([largest(row, top_k) for row in rows])
        expected = np.stack([found, np.take_along_axis(rows, found, 1)], 1) if values else found[:, None]
    else:
        found = np.apply_along_axis(largest, axis, x, top_k)
        expected = np.take_along_axis(x, found, axis) if values else found
    assert np.array_equal(run(net, x)["y"], expected)


@pytest.mark.parametrize(
    ("shape", "values", "top"),
    [
        ((3,), False, (3, 1, 1)),
        ((3, 4), True, (3, 2, 1)),
        ((3, 4, 2, 2), False, (3, 1, 1, 1)),
        ((2, 2, 2, 2, 2), True, (2, 2, 1, 1, 1)),
    ],
)
def test_shape_of_arg_max_without_axis(shape: tuple[int, ...], values: bool, top: tuple[int, ...]) -> None:
    net = one_layer(f'type: "ArgMax" argmax_param {{ out_max_val: {str(values).lower()} }}', shape)
    assert net.blobs["y"].shape == top
    assert run(net, normal(*shape))["y"].shape == top


@pytest.mark.parametrize("bias", [False, True])
def test_embed(bias: bool) -> None:
    numbers = np.array([[0, 4, 4], [2, 0, 4]])
    net = one_layer(
        f'type: "Embed" embed_param {{ num_output: 3 input_dim: 5 bias_term: {str(bias).lower()} '
        'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } }',
        numbers.shape,
    )
    parameters = net.params["layer"]
    assert [blob.shape for blob in parameters] == [(5, 3), (3,)][: 1 + bias]
    offset = parameters[1].data if bias else 0
    close(run(net, numbers)["y"], parameters[0].data[numbers] + offset)
    diff = normal(2, 3, 3, seed=1)
    backward(net, y=diff)
    expected = np.zeros((5, 3))
    np.add.at(expected, numbers, diff)
    close(parameters[0].diff, expected)
    if bias:
        close(parameters[1].diff, diff.sum((0, 1)))
    assert not net.blobs["x0"].diff.any()


def test_batch_reindex() -> None:
    x, numbers = normal(3, 2, 4), np.array([2, 0, 2, 2, 1])
    net = one_layer('type: "BatchReindex"', x.shape, numbers.shape)
    assert np.array_equal(run(net, x, numbers)["y"], x[numbers])
    diff = normal(5, 2, 4, seed=1)
    backward(net, y=diff)
    expected = np.zeros(x.shape)
    np.add.at(expected, numbers, diff)
    close(net.blobs["x0"].diff, expected)
    assert not net.blobs["x1"].diff.any()


@pytest.mark.parametrize("number", [-1, 3, np.nan])
@pytest.mark.parametrize(
    ("layer", "x"),
    [('"BatchReindex"', np.zeros((3, 2))), ('"Embed" embed_param { num_output: 2 input_dim: 3 }', None)],
)
def test_numbers_out_of_range(number: float, layer: str, x: np.ndarray | None) -> None:
    inputs = [np.array([0, number])] if x is None else [x, np.array([0, number])]
    net = one_layer(f"type: {layer}", *(value.shape for value in inputs))
    for i, value in enumerate(inputs):
        net.blobs[f"x{i}"].data[...] = value
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer'.*a number in 'x{len(inputs) - 1}' is outside 0\.\.2"):
        net.forward()


def test_filter() -> None:
    a, b, selector = normal(4, 2, 3), normal(4, seed=1), np.array([0, 1, 0, -0.5])
    net = one_layer('type: "Filter"', a.shape, b.shape, (4, 1, 1), tops=("a", "b"))
    assert net.blobs["a"].shape == (4, 2, 3), "before the first forward pass all rows"
    out = run(net, a, b, selector[:, None, None])
    assert np.array_equal(out["a"], a[[1, 3]])
    assert np.array_equal(out["b"], b[[1, 3]])
    diffs = {"a": normal(2, 2, 3, seed=2), "b": normal(2, seed=3)}
    backward(net, **diffs)
    for i, name in enumerate(diffs):
        expected = np.zeros(net.blobs[f"x{i}"].shape)
        expected[[1, 3]] = diffs[name]
        close(net.blobs[f"x{i}"].diff, expected)
    assert not net.blobs["x2"].diff.any()
    assert run(net, a, b, np.ones((4, 1, 1)))["a"].shape == (4, 2, 3), "as many rows as this time are chosen"


def test_what_follows_a_filter_takes_as_many_rows_as_there_are() -> None:
    net = net_of(
        input_layer("x", 4, 3)
        + input_layer("s", 4)
        + 'layer { name: "filter" type: "Filter" bottom: "x" bottom: "s" top: "f" } '
        'layer { name: "ip" type: "InnerProduct" bottom: "f" top: "y" '
        'inner_product_param { num_output: 2 weight_filler { type: "gaussian" } } }'
    )
    net.blobs["x"].data[...] = x = normal(4, 3)
    for chosen in ([0, 1, 2], [3], []):
        net.blobs["s"].data[...] = [i in chosen for i in range(4)]
        close(net.forward()["y"], x[chosen] @ net.params["ip"][0].data.T)


def test_gradients() -> None:
    check_gradient(one_layer('type: "BatchReindex"', (3, 2), (4,)), normal(3, 2), np.array([1, 1, 0, 2]), of=[0])
    check_gradient(one_layer('type: "Filter"', (3, 2), (3,)), normal(3, 2), np.array([1, 0, 1]), of=[0])
    check_gradient(one_layer('type: "Embed" embed_param { num_output: 2 input_dim: 3 }', (3,)), np.arange(3), of=[])
