"""Net.trace: what each layer reads and makes, in one graph, with nothing left behind in the net."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import input_layer, net_of, normal

import caffe

NET = (
    input_layer("x", 2, 3)
    + """
  layer { name: "fc1" type: "InnerProduct" bottom: "x" top: "h" inner_product_param { num_output: 5
    weight_filler { type: "gaussian" std: 1 } } }
  layer { name: "relu" type: "ReLU" bottom: "h" top: "h" }
  layer { name: "drop" type: "Dropout" bottom: "h" top: "h" }
  layer { name: "fc2" type: "InnerProduct" bottom: "h" top: "y" inner_product_param { num_output: 2
    weight_filler { type: "gaussian" std: 1 } } }
"""
)


def matrices(net: caffe.Net) -> tuple[np.ndarray, np.ndarray]:
    return net.params["fc1"][0].data, net.params["fc2"][0].data


def test_a_layer_in_place_leaves_what_it_read() -> None:
    net, x = net_of(NET, backward=False), normal(4, 3)  # another batch size than the net's
    first, second = matrices(net)
    layers = net.trace(x=torch.from_numpy(x))
    assert list(layers) == [1, 2, 3, 4]
    hidden = x @ first.T
    for number, expected in ((1, hidden), (2, np.maximum(hidden, 0)), (4, np.maximum(hidden, 0) @ second.T)):
        np.testing.assert_allclose(layers[number][1][0].detach(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layers[2][0][0].detach(), layers[1][1][0].detach())
    # a layer that changes nothing still makes a tensor of its own
    assert layers[3][1][0] is not layers[2][1][0]
    np.testing.assert_array_equal(layers[3][1][0].detach(), layers[2][1][0].detach())


@pytest.mark.parametrize("force", [False, True])
def test_gradients_of_any_value_by_any_other(force: bool) -> None:
    net = net_of(NET, backward=force)
    first, second = matrices(net)
    x = torch.from_numpy(normal(1, 3)).requires_grad_(True)
    layers = net.trace(x=x)
    score = layers[4][1][0][0, 1]
    by_hidden, by_input = torch.autograd.grad(score, [layers[2][1][0], x])
    np.testing.assert_allclose(by_hidden[0], second[1], rtol=1e-6)
    mask = layers[1][1][0].detach().numpy()[0] > 0
    np.testing.assert_allclose(by_input[0], (second[1] * mask) @ first, rtol=1e-5)


def test_a_hook_on_a_top_changes_the_gradient_that_goes_on() -> None:
    net = net_of(NET, backward=False)
    first, second = matrices(net)
    x = torch.from_numpy(normal(1, 3)).requires_grad_(True)
    layers = net.trace(x=x)
    layers[2][1][0].register_hook(lambda gradient: gradient.clamp(min=0))
    (gradient,) = torch.autograd.grad(layers[4][1][0][0, 0], x)
    mask = layers[1][1][0].detach().numpy()[0] > 0
    np.testing.assert_allclose(gradient[0], (np.maximum(second[0], 0) * mask) @ first, rtol=1e-5)


def test_blobs_keep_their_values_and_a_backward_pass_its_graph() -> None:
    net, x = net_of(NET), normal(2, 3)
    net.forward(x=x)
    net.blobs["y"].diff[...] = 1
    before = {name: blob.data.copy() for name, blob in net.blobs.items()}
    expected = net.backward()["x"].copy()
    net.trace(x=torch.from_numpy(2 * x))
    for name, blob in net.blobs.items():
        np.testing.assert_array_equal(blob.data, before[name])
    net.clear_param_diffs()
    np.testing.assert_array_equal(net.backward()["x"], expected)


def test_no_graph_where_recording_is_off() -> None:
    with torch.no_grad():
        layers = net_of(NET).trace(x=torch.from_numpy(normal(2, 3)))
    assert not any(top.requires_grad for _, tops in layers.values() for top in tops)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(caffe.CaffeError, match=r"trace: inputs are \['z'\]; expected \['x'\]"):
        net_of(NET).trace(z=torch.zeros(2, 3))
