"""RNN, LSTM and LSTMUnit: against nets unrolled into single layers, as Caffe builds them, and loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layer_checks import backward, check_gradient, close
from small_nets import input_layer, net_of, normal, one_layer, run

import caffe

STEPS, STREAMS, INPUTS, SIZE = 4, 3, 5, 2
FILLERS = 'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" }'
KINDS = ("RNN", "LSTM")
STATES = {"RNN": 1, "LSTM": 2}


def layer(kind: str, settings: str = "", size: int = SIZE) -> str:
    return f'type: "{kind}" recurrent_param {{ num_output: {size} {FILLERS} {settings} }}'


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def reference(kind: str, parameters: list[np.ndarray], x: np.ndarray, cont: np.ndarray, *more: np.ndarray) -> tuple:
    """Output and last states by the formulas; `more` is the static input, if there is one, and the first states."""
    p = [value.astype(np.float64) for value in parameters]
    more = list(more)
    inputs = x.reshape(*x.shape[:2], -1) @ p[0].T + p[1]
    if len(p) > (5 if kind == "RNN" else 3):
        static = more.pop(0)
        inputs = inputs + static.reshape(len(static), -1) @ p.pop(2).T
    h, *cell = [state[0] for state in more] or [np.zeros((x.shape[1], p[2].shape[1]))] * STATES[kind]
    c, outputs = cell[0] if cell else None, []
    for step, keep in zip(inputs, cont[..., None], strict=True):
        z = step + (keep * h) @ p[2].T
        if kind == "RNN":
            h = np.tanh(z)
            outputs.append(np.tanh(h @ p[3].T + p[4]))
        else:
            i, f, o, g = np.split(z, 4, 1)
            c = keep * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
    return np.stack(outputs), h[None], *([] if c is None else [c[None]])


def unrolled(kind: str, static: bool) -> str:
    """The net of single layers that Caffe builds for a recurrent layer, step by step."""
    rows = SIZE * (1 if kind == "RNN" else 4)

    def product(name: str, bottom: str, top: str, weight: str, bias: str = "", size: int = rows, axis: int = 2) -> str:
        params = "".join(f'param {{ name: "{param}" }} ' for param in (weight, bias) if param)
        return (
            f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" {params}'
            f"inner_product_param {{ num_output: {size} axis: {axis} bias_term: {str(bool(bias)).lower()} "
            f"{FILLERS} }} }}\n"
        )

    def plain(name: str, kind: str, bottoms: str, tops: str, settings: str = "") -> str:
        lines = " ".join(f'bottom: "{b}"' for b in bottoms.split()) + " ".join(f' top: "{t}"' for t in tops.split())
        return f'layer {{ name: "{name}" type: "{kind}" {lines} {settings} }}\n'

    steps = range(1, STEPS + 1)
    text = product("x_transform", "x0", "Wx", "W_x", "b")
    if static:
        text += product("static", "x2", "Ws_flat", "W_static", axis=1)
        text += plain(
            "static_shape", "Reshape", "Ws_flat", "Ws", f"reshape_param {{ shape {{ dim: 1 dim: -1 dim: {rows} }} }}"
        )
    for name, blob in (("cont", "x1"), ("Wx", "Wx")):
        text += plain(f"{name}_slice", "Slice", blob, " ".join(f"{name}_{t}" for t in steps), "slice_param { axis: 0 }")
    for t in steps:
        text += plain(f"h_conted_{t}", "Scale", f"h_{t - 1} cont_{t}", f"h_conted_{t}", "scale_param { axis: 0 }")
        text += product(f"transform_{t}", f"h_conted_{t}", f"Wh_{t}", "W_h")
        text += plain(f"sum_{t}", "Eltwise", f"Wh_{t} Wx_{t} {'Ws' if static else ''}", f"z_{t}")
        if kind == "RNN":
            text += plain(f"h_{t}", "TanH", f"z_{t}", f"h_{t}")
            text += product(f"out_{t}", f"h_{t}", f"Wo_{t}", "W_o", "b_o", size=SIZE)
            text += plain(f"o_{t}", "TanH", f"Wo_{t}", f"o_{t}")
        else:
            text += plain(f"unit_{t}", "LSTMUnit", f"c_{t - 1} z_{t} cont_{t}", f"c_{t} h_{t}")
    return text + plain(
        "y", "Concat", " ".join(f"{'o' if kind == 'RNN' else 'h'}_{t}" for t in steps), "y", "concat_param { axis: 0 }"
    )


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_unrolled_net(kind: str, static: bool) -> None:
    shapes = [(STEPS, STREAMS, INPUTS), (STEPS, STREAMS), *[(STREAMS, 2, 3)] * static]
    net = one_layer(layer(kind), *shapes)
    names = ["h_0", "c_0"][: STATES[kind]]
    other = net_of(
        "".join(input_layer(f"x{i}", *shape) for i, shape in enumerate(shapes))
        + "".join(input_layer(name, 1, STREAMS, SIZE) for name in names)
        + unrolled(kind, static)
    )
    others = [other.layer_dict["x_transform"].blobs[0], other.layer_dict["x_transform"].blobs[1]]
    others += other.layer_dict["static"].blobs if static else []
    others += other.layer_dict["transform_1"].blobs
    others += other.layer_dict["out_1"].blobs if kind == "RNN" else []
    ours = net.params["layer"]
    assert [blob.shape for blob in ours] == [blob.shape for blob in others]
    for mine, theirs in zip(ours, others, strict=True):
        theirs.data[...] = mine.data
    x, cont = normal(*shapes[0]), (np.random.default_rng(1).random(shapes[1]) > 0.3).astype(np.float32)
    assert 0 < cont[1:].mean() < 1
    inputs = [x, cont, normal(STREAMS, 2, 3, seed=2)][: len(shapes)]
    close(run(net, *inputs)["y"], run(other, *inputs)["y"])
    diff = normal(STEPS, STREAMS, SIZE, seed=3)
    for one in (net, other):
        backward(one, y=diff)
    for i in (0, 2)[: 1 + static]:
        close(net.blobs[f"x{i}"].diff, other.blobs[f"x{i}"].diff)
        assert net.blobs[f"x{i}"].diff.any()
    for mine, theirs in zip(ours, others, strict=True):
        close(mine.diff, theirs.diff)
    assert not net.blobs["x1"].diff.any(), "the gradient reached the sequence indicators"


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_formula_and_gradient(kind: str, exposed: bool, static: bool) -> None:
    states = STATES[kind] if exposed else 0
    shapes = [(STEPS, STREAMS, INPUTS, 2), (STEPS, STREAMS), *[(STREAMS, 4)] * static, *[(1, STREAMS, SIZE)] * states]
    tops = ["y", "h_T", "c_T"][: 1 + states]
    net = one_layer(layer(kind, "expose_hidden: true" if exposed else ""), *shapes, tops=tops)
    inputs = [0.5 * normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    inputs[1] = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    parameters = [blob.data for blob in net.params["layer"]]
    expected = reference(kind, parameters, *inputs)
    made = [net.blobs[top].shape for top in tops]
    out = run(net, *inputs)
    for top, shape, value in zip(tops, made, expected, strict=False):
        assert shape == value.shape
        close(out[top], value)
    if not exposed:
        # a step that begins all sequences anew, so that each pass starts alike
        inputs[1][0] = 0
        check_gradient(net, *inputs, of=[0, 2][: 1 + static], tolerance=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_passes_through_states(kind: str) -> None:
    """Caffe's layer gives diffs neither to the states that come in nor takes them from those that go out."""
    states = STATES[kind]
    shapes = [(STEPS, STREAMS, INPUTS), (STEPS, STREAMS), *[(1, STREAMS, SIZE)] * states]
    net = one_layer(layer(kind, "expose_hidden: true"), *shapes, tops=["y", "h_T", "c_T"][: 1 + states])
    run(net, normal(*shapes[0]), np.ones(shapes[1]), *[normal(1, STREAMS, SIZE, seed=i) for i in range(states)])
    zero, diff = np.zeros((STEPS, STREAMS, SIZE)), normal(1, STREAMS, SIZE, seed=5)
    backward(net, y=zero, **dict.fromkeys(("h_T", "c_T")[:states], diff))
    assert not any(blob.diff.any() for blob in [*net.params["layer"], *(net.blobs[f"x{i}"] for i in range(2 + states))])
    backward(net, y=zero + 1)
    assert net.blobs["x0"].diff.any()
    assert not any(net.blobs[f"x{i}"].diff.any() for i in range(1, 2 + states))


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_that_ends_at_the_layer_with_force_backward(kind: str) -> None:
    """Which asks for the gradient of cont, too, to which none goes."""
    net = net_of(
        f"force_backward: true {input_layer('x', STEPS, STREAMS, INPUTS)} {input_layer('c', STEPS, STREAMS)}"
        'layer { name: "cont" type: "Power" bottom: "c" top: "cont" }'
        f'layer {{ name: "layer" {layer(kind)} bottom: "x" bottom: "cont" top: "y" }}'
    )
    net.blobs["x"].data[...] = normal(STEPS, STREAMS, INPUTS)
    net.forward()  # cont is 0: each step begins a sequence, so that another pass is the same
    net.blobs["y"].diff[...] = normal(STEPS, STREAMS, SIZE, seed=1)
    net.backward()
    whole = net.blobs["x"].diff.copy()
    net.blobs["x"].diff[...] = 0
    net.backward(end="layer")
    assert whole.any()
    close(net.blobs["x"].diff, whole)
    assert not net.blobs["cont"].diff.any()


@pytest.mark.parametrize("kind", KINDS)
def test_states_pass_from_batch_to_batch(kind: str) -> None:
    x = normal(3 * STEPS, STREAMS, INPUTS)
    cont = np.ones((3 * STEPS, STREAMS))
    cont[5, 1] = 0
    net = one_layer(layer(kind), (STEPS, STREAMS, INPUTS), (STEPS, STREAMS))
    whole = reference(kind, [blob.data for blob in net.params["layer"]], x, cont)[0]
    for batch in range(3):
        part = slice(batch * STEPS, (batch + 1) * STEPS)
        close(run(net, x[part], cont[part])["y"], whole[part])
    restart = np.ones((STEPS, STREAMS))
    restart[0] = 0
    close(run(net, x[:STEPS], restart)["y"], whole[:STEPS])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_with_gradient_after_one_for_inference(kind: str) -> None:
    net = one_layer(layer(kind), (STEPS, STREAMS, INPUTS), (STEPS, STREAMS))
    x, cont = normal(2 * STEPS, STREAMS, INPUTS), np.ones((2 * STEPS, STREAMS), np.float32)
    whole = reference(kind, [blob.data for blob in net.params["layer"]], x, cont)[0]
    first = net.infer(x0=torch.from_numpy(x[:STEPS]), x1=torch.from_numpy(cont[:STEPS]))["y"]
    close(first.numpy(), whole[:STEPS])
    close(run(net, x[STEPS:], cont[STEPS:])["y"], whole[STEPS:])
    backward(net, y=np.ones((STEPS, STREAMS, SIZE)))
    assert net.blobs["x0"].diff.any()


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_streams_begins_with_states_of_0(kind: str) -> None:
    net = one_layer(layer(kind), (STEPS, STREAMS, INPUTS), (STEPS, STREAMS))
    run(net, normal(STEPS, STREAMS, INPUTS), np.ones((STEPS, STREAMS)))
    x = normal(STEPS, 2, INPUTS, seed=1)
    for name, shape in (("x0", x.shape), ("x1", x.shape[:2])):
        net.blobs[name].reshape(*shape)
    net.reshape()
    expected = reference(kind, [blob.data for blob in net.params["layer"]], x, np.ones(x.shape[:2]))[0]
    close(run(net, x, np.ones(x.shape[:2]))["y"], expected)


def test_the_gradient_of_a_forget_gate_where_a_sequence_goes_on_in_part() -> None:
    """With cont between 0 and 1 Caffe's LSTMUnit takes f (1 − f) of f = cont · σ, not the slope cont · σ (1 − σ)."""
    cell, gates, cont = normal(1, STREAMS, SIZE), normal(1, STREAMS, 4 * SIZE, seed=1), np.array([[0.5, 1, 0]])
    i, f, o, g = np.split(gates[0].astype(np.float64), 4, 1)
    i, f, o, g = sigmoid(i), cont[0][:, None] * sigmoid(f), sigmoid(o), np.tanh(g)
    c = f * cell[0] + i * g
    dc = o * (1 - np.tanh(c) ** 2)
    expected = np.concatenate(
        [dc * g * i * (1 - i), dc * cell[0] * f * (1 - f), np.tanh(c) * o * (1 - o), dc * i * (1 - g**2)], 1
    )
    unit = one_layer('type: "LSTMUnit"', cell.shape, gates.shape, cont.shape, tops=("c", "h"))
    out = run(unit, cell, gates, cont)
    close(out["c"][0], c)
    close(out["h"][0], o * np.tanh(c))
    backward(unit, c=np.zeros(cell.shape), h=np.ones(cell.shape))
    close(unit.blobs["x1"].diff[0], expected)
    close(unit.blobs["x0"].diff[0], dc * f)
    assert not unit.blobs["x2"].diff.any()
    # the whole layer, with x as the gates' inputs
    net = one_layer(
        layer("LSTM", "expose_hidden: true"), gates.shape, cont.shape, *[cell.shape] * 2, tops=("y", "h", "c")
    )
    w_x, b, w_h = net.params["layer"]
    for blob, value in ((w_x, np.eye(4 * SIZE)), (b, 0), (w_h, 0)):
        blob.data[...] = value
    close(run(net, gates, cont, 0 * cell, cell)["y"][0], o * np.tanh(c))
    backward(net, y=np.ones(cell.shape))
    close(net.blobs["x0"].diff[0], expected)


@pytest.mark.parametrize(
    ("kind", "static", "shapes"),
    [
        ("RNN", False, [(2, 10), (2,), (2, 2), (2, 2), (2,)]),
        ("RNN", True, [(2, 10), (2,), (2, 6), (2, 2), (2, 2), (2,)]),
        ("LSTM", False, [(8, 10), (8,), (8, 2)]),
        ("LSTM", True, [(8, 10), (8,), (8, 6), (8, 2)]),
    ],
)
def test_parameters_in_caffes_order(kind: str, static: bool, shapes: list[tuple[int, ...]]) -> None:
    bottoms = [(STEPS, STREAMS, INPUTS, 2), (STEPS, STREAMS), *[(STREAMS, 3, 2)] * static]
    net = one_layer(layer(kind), *bottoms)
    assert [blob.shape for blob in net.params["layer"]] == shapes
    again = one_layer(layer(kind), *bottoms, seed=5)
    for mine, theirs in zip(again.params["layer"], net.params["layer"], strict=True):
        assert not np.array_equal(mine.data, theirs.data)
        mine.data[...] = theirs.data
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(bottoms)]
    assert np.array_equal(run(net, *inputs)["y"], run(again, *inputs)["y"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_solver_learns_to_remember(kind: str) -> None:
    """The output of the last step is to be the input of the first, over all steps between."""
    net = net_of(
        input_layer("x", 6, 8, 1)
        + input_layer("cont", 6, 8)
        + input_layer("target", 1, 8, 1)
        + f'layer {{ name: "layer" bottom: "x" bottom: "cont" top: "h" type: "{kind}" '
        'recurrent_param { num_output: 8 weight_filler { type: "uniform" min: -0.4 max: 0.4 } } }'
        'layer { name: "slice" type: "Slice" bottom: "h" top: "before" top: "last" '
        "slice_param { axis: 0 slice_point: 5 } }"
        'layer { name: "unused" type: "Reduction" bottom: "before" top: "unused" }'
        'layer { name: "ip" type: "InnerProduct" bottom: "last" top: "y" inner_product_param { num_output: 1 axis: 2 '
        'weight_filler { type: "xavier" } } }'
        'layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "target" top: "loss" }',
        phase=caffe.TRAIN,
    )
    random, losses = np.random.default_rng(1), []
    optimizer = torch.optim.Adam([blob.tensor() for blob in net.learnable_params], lr=0.02)
    for _ in range(150):
        x = random.choice([-1.0, 1.0], (6, 8, 1))
        net.blobs["x"].data[...], net.blobs["target"].data[...] = x, x[:1]
        net.blobs["cont"].data[...] = np.arange(6)[:, None] > 0
        net.clear_param_diffs()
        losses.append(float(net.forward()["loss"]))
        net.backward()
        for blob in net.learnable_params:
            blob.tensor().grad = blob.diff_tensor()
        optimizer.step()
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
