"""What the tests of layers hold values and gradients against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from small_nets import normal, run

import caffe


def close(ours: np.ndarray, reference: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal shapes, and values to `tolerance`, relative and absolute."""
    assert ours.shape == np.shape(reference)
    np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=tolerance)


def backward(net: caffe.Net, **diffs: np.ndarray) -> None:
    """A backward pass, the parameters' diffs 0 before it."""
    net.clear_param_diffs()
    net.backward(**diffs)


def check_gradient(
    net: caffe.Net,
    *inputs: np.ndarray,
    of: Sequence[int] | None = None,
    step: float = 1e-2,
    tolerance: float = 2e-3,
) -> None:
    """Backward's gradients of the inputs numbered `of` (default: all) and of every parameter against differences of
    Σ w · y along random directions; those of the other inputs are 0. A loss has the weight that the net gives it."""
    out = run(net, *inputs)
    weights = {name: normal(*value.shape, seed=7) for name, value in out.items() if not net.blob_loss_weights[name]}
    backward(net, **weights)
    weights.update((name, np.float64(net.blob_loss_weights[name])) for name in out if name not in weights)
    of = range(len(inputs)) if of is None else of
    for i in set(range(len(inputs))).difference(of):
        assert not net.blobs[f"x{i}"].diff.any(), f"x{i} has a gradient"
    blobs = [net.blobs[f"x{i}"] for i in of]
    blobs += [blob for blob in net.learnable_params if blob.lr_mult]
    gradients = [blob.diff.copy() for blob in blobs]

    def value() -> float:
        return sum(float((out.astype(np.float64) * weights[name]).sum()) for name, out in net.forward().items())

    for seed, (blob, gradient) in enumerate(zip(blobs, gradients, strict=True)):
        direction = np.sign(normal(*blob.shape, seed=100 + seed))
        before = blob.data.copy()
        blob.data[...] = before + step * direction
        above = value()
        blob.data[...] = before - step * direction
        slope = (above - value()) / (2 * step)
        blob.data[...] = before
        expected = float((gradient.astype(np.float64) * direction).sum())
        scale = max(float(np.abs(gradient).sum()), 1.0)
        assert abs(slope - expected) <= tolerance * scale, (blob, slope, expected)
