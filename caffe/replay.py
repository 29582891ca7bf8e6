"""Training passes on a GPU as one CUDA graph: what the layers launch is recorded once, and replayed for each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .blob import Parameter
from .errors import CaffeError
from .layers.base import RandomLayer
from .layers.lookup import deferred_checks
from .net import Net

WARM_UP = 3  # passes in the usual way first, in which cuDNN chooses its kernels and libraries take their memory


def can_replay(net: Net) -> bool:
    """Whether a net's passes are the same launches for every batch, as far as its layers' types tell.

    That needs a GPU, the data layers at the net's beginning, no gradient for them (`force_backward`, `propagate_down`),
    and no layer that cannot be recorded.
    """
    count = data_layers(net)
    rest = net.layers[count:]
    return (
        net.device.type == "cuda"
        and not net.gradient_ends
        and 0 < count < len(net.layers)
        and all(layer.recordable and not layer.reads_data and layer.type != "Input" for layer in rest)
    )


def data_layers(net: Net) -> int:
    """How many of a net's first layers are those that the batch comes from."""
    count = 0
    while count < len(net.layers) and net.layers[count].reads_data:
        count += 1
    return count


def record(
    function: Callable[[], Any], generators: list[torch.Generator], stream: torch.cuda.Stream | None
) -> torch.cuda.CUDAGraph:
    """The CUDA graph of what `function` launches; nothing of it is computed yet.

    Parameters
    ----------
    function: called once. What it asks the GPU for, as `float(tensor)` does, is an error.
    generators: those that it draws from; each replay goes on from where they stand.
    stream: on which it has run before.

    Raises
    ------
    CaffeError: what cannot be recorded, as far as PyTorch knows it.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    failed: RuntimeError | None = None
    try:
        # a user's other threads may use the GPU meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            try:
                function()
            except RuntimeError as error:
                failed = error  # the end of the recording has an error of its own, which says nothing
                raise
    except RuntimeError as error:
        raise CaffeError(
            "the net's passes cannot be recorded as a CUDA graph, expected cuda_graph: false in the solver: "
            f"{failed or error}"
        ) from (failed or error)
    return graph


class Replay:
    """A net's forward and backward pass, replayed: a kernel then starts when the one before ends, not when Python has
    come to it, which for small nets takes several times as long as to compute it.

    The blobs have the same values and diffs afterwards as behind `compute` and `propagate`. Where parameters have other
    tensors than before, or the batch another shape, the passes are recorded anew.

    Parameters
    ----------
    net: one that `can_replay`.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.first = data_layers(net)
        self.names = list(dict.fromkeys(top for layer in net.layers[: self.first] for top in layer.param.top))
        self.generators = [
            layer.random
            for layer in net.layers[self.first :]
            if isinstance(layer, RandomLayer) and hasattr(layer, "random") and layer.random.device.type == "cuda"
        ]
        self._stream = torch.cuda.Stream(net.device) if net.device.type == "cuda" else None
        self._known: Any = None  # of what the recording was made
        self._passes = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def compute(self, several: bool = False) -> torch.Tensor:
        """Read a batch and add its gradient to the parameters' diffs; returns the loss.

        Parameters
        ----------
        several: whether gradients of several batches are added up before they are used.

        Raises CaffeError for passes that cannot be recorded.
        """
        net = self.net
        loss = net.compute(0, self.first - 1, gradient=True).detach()
        batch = {name: net.blobs[name].tensor() for name in self.names}
        known = self._key(batch)
        if known != self._known:
            self.check()
            self._known, self._passes, self._graph = known, 0, None
        begins = not any(parameter.has_diff for parameter in net.learnable_params)
        if self._graph is None and self._passes >= WARM_UP and begins:
            self._record(batch)
        if self._graph is None:
            self._passes += 1
            self._warm_up()
            return loss + self._loss
        # beside the batch what a user may have written: what a loss counts, the diff of an output
        recorded = [*(self._inputs[name] for name in self.names), *(seed for _, seed in self._seeds)]
        torch._foreach_copy_(recorded, [*batch.values(), *(blob.diff_tensor() for blob, _ in self._seeds)])
        self._graph.replay()
        torch.autograd.graph.increment_version(self._sums)
        net.forget()
        for blob, tensor in self._values:
            blob.set_tensor(tensor)
        for blob, tensor in self._diffs:
            blob.set_diff(tensor)
        for parameter, gradient in self._gradients:
            parameter.accumulate(gradient.clone() if several else gradient)
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

    def _run(self) -> None:
        """The passes behind the data layers, as the solver does them."""
        self._loss = self.net.compute(self.first, gradient=True).detach()
        self.net.propagate(keep=False)

    def _warm_up(self) -> None:
        """The same with all that the recording will do, and where."""
        with deferred_checks(self.net.device) as checks:
            if self._stream is None:
                self._run()
            else:
                now = torch.cuda.current_stream(self.net.device)
                self._stream.wait_stream(now)
                with torch.cuda.stream(self._stream):
                    self._run()
                now.wait_stream(self._stream)
        checks.ask()

    def _record(self, batch: dict[str, torch.Tensor]) -> None:
        net = self.net
        for blob in net.blobs.values():
            # what a user has looked at comes back to the device, and nothing keeps the graph of the pass before
            blob.set_tensor(blob.tensor().detach())
            if blob.has_diff:
                blob.diff_tensor()
        # a top that no layer reads has its own diff for its gradient: what is recorded goes on reading it
        read = {bottom for layer in net.layers for bottom in {*layer.param.bottom} - {*layer.param.top}}
        self._seeds = [
            (blob, blob.diff_tensor()) for name, blob in net.blobs.items() if name not in read and blob.has_diff
        ]
        self._inputs = {name: tensor.clone() for name, tensor in batch.items()}
        for name, tensor in self._inputs.items():
            net.blobs[name].set_tensor(tensor)
        with deferred_checks(net.device) as self._checks:
            self._graph = record(self._run, self.generators, self._stream)
        produced = dict.fromkeys(top for layer in net.layers[self.first :] for top in layer.param.top)
        blobs = [net.blobs[name] for name in produced]
        self._values = [(blob, blob.tensor()) for blob in blobs]
        self._values += [(net.blobs[name], tensor) for name, tensor in self._inputs.items() if name not in produced]
        self._diffs = [(blob, blob.diff_tensor()) for blob in blobs if blob.has_diff]
        self._gradients: list[tuple[Parameter, torch.Tensor]] = [
            (parameter, parameter.diff_tensor()) for parameter in net.learnable_params if parameter.has_diff
        ]
        # what the passes change in place: BatchNorm's running sums
        self._sums = [blob.tensor() for layer in net.layers for blob in layer.blobs if not blob.owner.lr_mult]
        for blob, seed in self._seeds:  # nothing that was recorded is computed yet
            blob.set_diff(seed)
        net.clear_param_diffs()
