"""Training passes on a GPU as one CUDA graph: what the layers launch is recorded once, and replayed for each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import glog as log
from .blob import Parameter
from .layers.base import RandomLayer
from .layers.lookup import deferred_checks
from .net import Net

WARM_UP = 3  # passes in the usual way first, in which cuDNN chooses its kernels and libraries take their memory


def can_replay(net: Net) -> bool:
    """Whether a net's passes are the same launches for every batch, as far as its layers' types tell.

    That needs a GPU, the data layers at the net's beginning, and no layer whose work is done by the processor.
    """
    count = data_layers(net)
    rest = net.layers[count:]
    return (
        net.device.type == "cuda"
        and 0 < count < len(net.layers)
        and all(layer.recordable and not layer.reads_data and layer.type != "Input" for layer in rest)
    )


def data_layers(net: Net) -> int:
    """How many of a net's first layers are those that the batch comes from."""
    count = 0
    while count < len(net.layers) and net.layers[count].reads_data:
        count += 1
    return count


def record(function: Callable[[], Any], generators: list[torch.Generator]) -> torch.cuda.CUDAGraph:
    """The CUDA graph of what `function` launches; nothing of it is computed yet.

    Parameters
    ----------
    function: called once. What it asks the GPU for, as `float(tensor)` does, is an error.
    generators: those that it draws from; each replay goes on from where they stand.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    # threads that read batches ahead may use the GPU meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph


class Replay:
    """A net's forward and backward pass, replayed: a kernel then starts when the one before ends, not when Python has
    come to it, which for small nets takes several times as long as to compute it.

    The blobs have the same values and diffs afterwards as behind `compute` and `propagate`. Where parameters have other
    tensors than before, or the batch another shape, the passes are recorded anew. What cannot be recorded runs in the
    usual way, after a warning.

    Parameters
    ----------
    net: one that `can_replay`.
    several: whether gradients of several batches are added up before they are used.
    """

    def __init__(self, net: Net, several: bool = False) -> None:
        self.net, self.several = net, several
        self.first = data_layers(net)
        self.names = list(dict.fromkeys(top for layer in net.layers[: self.first] for top in layer.param.top))
        self.generators = [
            layer.random
            for layer in net.layers[self.first :]
            if isinstance(layer, RandomLayer) and hasattr(layer, "random") and layer.random.device.type == "cuda"
        ]
        self.refused = False
        self._known: Any = None  # of what the recording was made
        self._passes = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def compute(self) -> torch.Tensor:
        """Read a batch and add its gradient to the parameters' diffs; returns the loss."""
        net = self.net
        loss = net.compute(0, self.first - 1, gradient=True).detach()
        batch = {name: net.blobs[name].tensor() for name in self.names}
        known = self._key(batch)
        if known != self._known:
            self._known, self._passes, self._graph = known, 0, None
        if self._graph is None and self._passes >= WARM_UP and not self.refused:
            self._try_to_record(batch)
        if self._graph is None:
            self._passes += 1
            loss = loss + net.compute(self.first, gradient=True).detach()
            net.propagate(keep=False)
            return loss
        torch._foreach_copy_([self._inputs[name] for name in self.names], list(batch.values()))
        self._graph.replay()
        for blob, tensor in self._values:
            blob.set_tensor(tensor)
        for blob, tensor in self._diffs:
            blob.set_diff(tensor)
        for parameter, gradient in self._gradients:
            parameter.accumulate(gradient.clone() if self.several else gradient)
        return loss + self._loss

    def check(self) -> None:
        """Raise the CaffeError of a layer that was given wrong numbers, such as a label out of range, since last asked.

        A replayed pass cannot stop for it. This waits for the GPU.
        """
        if self._graph is not None:
            self._checks.ask()

    def _key(self, batch: dict[str, torch.Tensor]) -> Any:
        parameters = [blob.tensor() for layer in self.net.layers for blob in layer.blobs]
        return (
            [(tensor.data_ptr(), tensor.requires_grad) for tensor in parameters],
            [(tensor.shape, tensor.dtype) for tensor in batch.values()],
        )

    def _try_to_record(self, batch: dict[str, torch.Tensor]) -> None:
        net = self.net
        if any(parameter.has_diff for parameter in net.learnable_params):
            return  # in the midst of several batches: at the next first one
        self._inputs = {name: tensor.clone() for name, tensor in batch.items()}
        for name, tensor in self._inputs.items():
            net.blobs[name].set_tensor(tensor)
        try:
            with deferred_checks(net.device) as self._checks:
                self._graph = record(self._passes_once, self.generators)
        except RuntimeError as error:  # CaffeError, and PyTorch's where something cannot be recorded
            log.warning("replay.py", f"Training without a CUDA graph, which would be faster: {error}")
            self.refused, self._graph = True, None
            net.forget()
            net.clear_param_diffs()
            for name, tensor in batch.items():
                net.blobs[name].set_tensor(tensor)
            return
        produced = dict.fromkeys(top for layer in net.layers[self.first :] for top in layer.param.top)
        blobs = [net.blobs[name] for name in produced]
        self._values = [(blob, blob.tensor()) for blob in blobs]
        self._values += [(net.blobs[name], tensor) for name, tensor in self._inputs.items() if name not in produced]
        self._diffs = [(blob, blob.diff_tensor()) for blob in blobs if blob.has_diff]
        self._gradients: list[tuple[Parameter, torch.Tensor]] = [
            (parameter, parameter.diff_tensor()) for parameter in net.learnable_params if parameter.has_diff
        ]
        net.clear_param_diffs()

    def _passes_once(self) -> None:
        self._loss = self.net.compute(self.first, gradient=True).detach()
        self.net.propagate(keep=False)
