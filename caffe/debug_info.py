"""What `debug_info` logs of a pass: how large values, parameters and their diffs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from . import glog as log
from .blob import Blob, Parameter
from .layers import Layer


def log_forward(layer: Layer, blobs: Mapping[str, Blob]) -> None:
    """The mean magnitude of a layer's tops and parameters."""
    for top in layer.param.top:
        size = _magnitude(blobs[top].tensor())
        log.info("net.cpp:584", f"    [Forward] Layer {layer.name}, top blob {top} data: {size}")
    for i, blob in enumerate(layer.blobs):
        size = _magnitude(blob.tensor())
        log.info("net.cpp:596", f"    [Forward] Layer {layer.name}, param blob {blob.name or i} data: {size}")


def log_backward(layer: Layer, blobs: Mapping[str, Blob]) -> None:
    """The mean magnitude of the diffs of a layer's bottoms and parameters."""
    for bottom in layer.param.bottom:
        if blobs[bottom].has_diff:
            size = _magnitude(blobs[bottom].diff_tensor())
            log.info("net.cpp:611", f"    [Backward] Layer {layer.name}, bottom blob {bottom} diff: {size}")
    for i, blob in enumerate(layer.blobs):
        if blob.owner.needs_diff:
            size = _magnitude(blob.diff_tensor())
            log.info("net.cpp:621", f"    [Backward] Layer {layer.name}, param blob {i} diff: {size}")


def log_parameters(parameters: Sequence[Parameter], device: torch.device) -> None:
    """The norms of all parameters and their diffs."""
    sides = ([p.tensor().detach() for p in parameters], [p.diff_tensor() for p in parameters])

    def norms(order: int) -> str:
        none = torch.zeros((), device=device)
        lengths = [[none, *(torch.linalg.vector_norm(tensor, order) for tensor in side)] for side in sides]
        return ", ".join(log.number(float(torch.linalg.vector_norm(torch.stack(n), order))) for n in lengths)

    totals = f"L1 norm = ({norms(1)}); L2 norm = ({norms(2)})"
    log.info("net.cpp:562", f"    [Backward] All net params (data, diff): {totals}")


def _magnitude(tensor: torch.Tensor) -> str:
    """The mean of the absolute values, as a log line has it."""
    return log.number(float(tensor.detach().float().abs().mean()) if tensor.numel() else 0.0)
