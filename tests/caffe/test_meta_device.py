"""What trains on a GPU asks it for nothing, shown where there is no GPU.

PyTorch's `meta` device stands for it: its tensors have no values, so that whatever asks for one is an error there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from small_nets import one_layer
from small_training import write_problem, write_taught
from test_layers_common import CASES, FILL
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import caffe
from caffe import replay
from caffe.io import read_solver_parameter
from caffe.layers.base import RandomLayer
from caffe.layers.lookup import Checks, deferred_checks

META = torch.device("meta")


class WithoutHost(TorchDispatchMode):
    """An error for tensors of the host, whose values of now a CUDA graph would keep."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would have to be imported for it

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device != META for tensor in tensors):
            raise RuntimeError(f"{function} has a tensor of the host")
        return made


class WithoutNumbers(TorchFunctionMode):
    """An error for tensors made of Python's numbers, which a GPU would have to wait for."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor):
            raise RuntimeError(f"{function} copies from the host")
        return function(*args, **(kwargs or {}))


def record(function: Callable[[], Any]) -> None:
    """Call it; RuntimeError for what a CUDA graph could not hold."""
    with WithoutNumbers(), WithoutHost():
        function()


@pytest.fixture(autouse=True)
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets compute on the meta device, which lacks generators, autocast, memory that the host can pin, and a kernel."""
    monkeypatch.setattr("caffe.context.current_device", lambda: META)
    monkeypatch.setattr(RandomLayer, "draws_on_cpu", True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *_, **__: None)
    monkeypatch.setattr(caffe.Net, "copy_from", lambda net, weights: None)  # by arrays of the host


def record_layer(layer: str, shapes: Sequence[Sequence[int]], tops: int = 1) -> caffe.Net:
    """The passes of a net of one layer, recorded, with the gradients of its bottoms."""
    names = [f"y{i}" for i in range(tops)]
    net = one_layer(layer, *shapes, tops=names, phase=caffe.TRAIN)
    first = len(shapes)
    net.compute(0, first - 1, gradient=True)

    def passes() -> None:
        net.compute(first, gradient=True)
        if net.needs_backward:
            net.propagate(keep=False)

    with deferred_checks(META):
        record(passes)
    return net


SCORES, LABELS, STATE = (4, 6), (4,), (1, 4, 3)
RNN = f"recurrent_param {{ num_output: 3 expose_hidden: true {FILL} }}"
LOSS = 'type: "SoftmaxWithLoss" loss_param'
RECORDED: list[tuple[str, Sequence[Sequence[int]], int]] = [
    *(
        ('type: "{}" {}'.format(*text.partition(" ")[::2]), shapes, 2 if text == "LSTMUnit" else 1)
        for text, shapes, _ in CASES
        if text.split()[0] not in ("Filter", "InfogainLoss")
    ),
    ('type: "LSTMUnit"', ((1, 4, 2), (1, 4, 8), (1, 4)), 2),
    (f'type: "RNN" {RNN}', ((5, 4, 6), (5, 4), STATE), 2),
    (f'type: "LSTM" {RNN}', ((5, 4, 6), (5, 4), STATE, STATE), 3),
    ('type: "Pooling" pooling_param { kernel_size: 3 stride: 4 pad: 2 }', ((4, 6, 9, 8),), 2),
    ('type: "Slice" slice_param { axis: 1 }', (SCORES,), 3),
    ('type: "Split"', (SCORES,), 2),
    (LOSS + " { ignore_label: 1 }", (SCORES, LABELS), 2),
    (LOSS + " { label_smoothing: 0.1 class_weight: [1, 2, 3, 4, 5, 6] ignore_label: 2 }", (SCORES, LABELS), 1),
    (LOSS + " { normalization: BATCH_SIZE }", (SCORES, SCORES), 1),
    ('type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 1 normalization: VALID }', (SCORES, SCORES), 1),
]


@pytest.mark.parametrize(("layer", "shapes", "tops"), RECORDED)
def test_layers_that_are_recorded(layer: str, shapes: Sequence[Sequence[int]], tops: int) -> None:
    assert record_layer(layer, shapes, tops).layer_dict["layer"].recordable


@pytest.mark.parametrize(
    ("layer", "shapes", "tops"),
    [
        ('type: "Accuracy" accuracy_param { ignore_label: 1 }', (SCORES, LABELS), 1),
        ('type: "Accuracy"', (SCORES, LABELS), 2),
        ('type: "Filter"', (SCORES, LABELS), 1),
        ('type: "InfogainLoss"', (SCORES, LABELS, (6, 6)), 1),
    ],
)
def test_layers_that_cannot_be_recorded(layer: str, shapes: Sequence[Sequence[int]], tops: int) -> None:
    with pytest.raises(caffe.CaffeError, match="layer 'layer'"):
        record_layer(layer, shapes, tops)
    kind = one_layer(layer, *shapes, tops=[f"y{i}" for i in range(tops)]).layer_dict["layer"]
    assert not kind.recordable


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: x * float(x.detach().sum()),
        lambda x: x if x.any() else -x,
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x * torch.scalar_tensor(x.shape[0]),
        lambda x: x + torch.ones(x.shape),
        lambda x: x * torch.tensor([2.0] * x.shape[-1], device=x.device),
    ],
)
def test_what_waits_or_stays_behind_is_seen(
    monkeypatch: pytest.MonkeyPatch, asks: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    from caffe.layers.activation import TanH

    monkeypatch.setattr(TanH, "forward", lambda layer, bottoms: [asks(torch.tanh(bottoms[0]))])
    with pytest.raises(caffe.CaffeError, match="layer 'layer'"):
        record_layer('type: "TanH"', (SCORES,))


class Recorded:
    """A graph of the passes that `Recording` has let through."""

    def __init__(self, function: Callable[[], Any], generators: Any, stream: None) -> None:
        record(function)

    def replay(self) -> None:
        """There is nothing to compute."""


@pytest.fixture
def problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The solver prototxt of the small problem with all that a recipe may add, on a device that records."""
    monkeypatch.setattr(replay, "record", Recorded)
    monkeypatch.setattr(replay, "WARM_UP", 1)
    monkeypatch.setattr("caffe.solver.can_replay", lambda net: True)
    monkeypatch.setattr(Checks, "ask", lambda checks: None)  # what is not recorded may wait
    monkeypatch.setattr(caffe.Solver, "_log_clipping", lambda solver: None)  # at the end
    path = write_problem(tmp_path)
    write_taught(tmp_path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        "iter_size: 2 ema_decay: 0.9",
        'type: "Nesterov" swa_start: 2',
        'type: "AdaDelta" regularization_type: "L1"',
        'type: "AdamW" clip_gradients: 0.1',
    ],
)
def test_iterations_wait_for_nothing(problem: Path, changes: str) -> None:
    param = read_solver_parameter(problem)
    text_format.Merge(f"test_initialization: false test_interval: 100 display: 0 {changes}", param)
    solver = caffe.get_solver(param)
    solver.step(3)
    assert solver._replay is not None
    assert solver._replay._graph is not None
    assert [loss.device for loss in solver._losses] == [META] * 3
